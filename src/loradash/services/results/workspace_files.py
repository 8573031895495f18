"""Files in the workspace that clients may read: what processes made or use, and nothing else."""

from pathlib import Path

from loradash.errors import NotFound
from loradash.runtime.workspace import Workspace

_READABLE_FOLDERS = ("output", "models/loras", "training_data")


def readable_file(workspace: Workspace, path: str) -> Path:
    """Return the file that a full path leads to, without links.

    Raises `NotFound` for every other path: settings, logs, hidden files, what isn't there.
    """
    refused = NotFound(
        f"there is no result {path[:200]!r}", remedy="Use the path that list_files shows."
    )
    try:
        real = Path(path).resolve(strict=True)
        roots = [(workspace.root / name).resolve() for name in _READABLE_FOLDERS]
    except (OSError, ValueError, RuntimeError) as error:
        raise refused from error
    inside = [real.relative_to(root) for root in roots if real.is_relative_to(root)]
    hidden = any(part.startswith(".") for below in inside for part in below.parts)
    if not inside or hidden or not real.is_file():
        raise refused
    return real
