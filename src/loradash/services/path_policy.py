"""Which local files a request may name.

Whoever types a command on this machine can read its files anyway. A request that comes over the
network may name only what lies in the workspace or in folders that the settings allow.
"""

from collections.abc import Sequence
from pathlib import Path

from loradash.errors import LoradashError
from loradash.paths import local_path


class PathPolicy:
    """Folders below which local paths are allowed; ``None`` allows all."""

    def __init__(self, roots: Sequence[Path] | None) -> None:
        self._roots = None if roots is None else [root.expanduser().resolve() for root in roots]

    @property
    def roots(self) -> list[Path] | None:
        """The folders, resolved; None for all."""
        return self._roots

    def check(self, text: str, error: type[LoradashError], what: str) -> None:
        """Raise ``error`` if the text names something on this machine that isn't allowed.

        Links are followed first. A text that names nothing here (a hub id) passes.
        """
        if self._roots is None:
            return
        path = local_path(text, error, what)
        # A hub id has no '..'; a program that works in another folder could find a file by it.
        climbs = text.startswith((".", "~")) or ".." in path.parts
        if not (path.is_absolute() or climbs or path.exists()):
            return
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as problem:  # links in a circle
            raise error(f"{what} {text[:200]}: {problem}", remedy="Check the path.") from problem
        if not any(real.is_relative_to(root) for root in self._roots):
            raise error(
                f"{what} {text[:200]}: not a place that requests may name",
                remedy="Use a path in the workspace, or add its folder to LORADASH_ALLOWED_PATHS.",
            )


ANYWHERE = PathPolicy(None)
