"""How much memory a container may have. The machine's own numbers don't tell: they show the host.

Read from the files of control groups, version 2 and 1: docs.kernel.org, admin-guide/cgroup-v2 and
admin-guide/cgroup-v1/memory.
"""

from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


class MemoryLimit(NamedTuple):
    """A limit, and what is left below it."""

    limit_bytes: int
    left_bytes: int


class _Names(NamedTuple):
    limit: str
    usage: str
    reclaimable: str
    """The line of ``memory.stat`` with the file cache that the kernel reclaims on demand."""


_V2 = _Names("memory.max", "memory.current", "inactive_file")
_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def memory_limit(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> MemoryLimit | None:
    """Return the limit with the least left of all groups around us, or None if there is none."""
    try:
        lines = membership.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    found: list[MemoryLimit] = []
    for line in lines:
        _number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if not controllers:
            found += _limits(root, group, _V2)
        elif "memory" in controllers.split(","):
            found += _limits(root / "memory", group, _V1)
    return min(found, key=lambda limit: limit.left_bytes, default=None)


def _limits(mount: Path, group: str, names: _Names) -> list[MemoryLimit]:
    """The limits of a group and of those above it.

    Inside a container the mount may begin at the container's own group though the path is the
    host's; the parts of the path aren't there then, and the mount's root is what counts.
    """
    own = mount / group.lstrip("/")
    folders = [own, *(parent for parent in own.parents if parent.is_relative_to(mount))]
    limits = [_limit(folder, names) for folder in folders]
    return [limit for limit in limits if limit]


def _limit(folder: Path, names: _Names) -> MemoryLimit | None:
    try:
        limit = int((folder / names.limit).read_text(encoding="ascii"))  # "max": no limit
        usage = int((folder / names.usage).read_text(encoding="ascii"))
        stat = (folder / "memory.stat").read_text(encoding="ascii")
        reclaimable = dict(line.split() for line in stat.splitlines()).get(names.reclaimable, "0")
        return MemoryLimit(limit, max(0, limit - usage + int(reclaimable)))
    except (OSError, ValueError):
        return None
