"""Local paths from users' text, with errors of our own instead of the system's."""

from pathlib import Path

from loradash.errors import LoradashError


def local_path(
    text: str | Path, error: type[LoradashError], what: str, remedy: str = "Check the path."
) -> Path:
    """Return the path with ``~`` expanded; raise ``error`` if no file could have such a name."""
    try:
        path = Path(text).expanduser()
        path.exists()
    except (RuntimeError, OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise error(f"{what} {str(text)[:200]}: {reason}", remedy=remedy) from problem
    return path


def full_path(text: str) -> str:
    """Return the path in full if it is one on this machine, so that it holds for other programs."""
    try:
        path = Path(text).expanduser()
        return str(path.absolute()) if path.exists() else text
    except (RuntimeError, OSError, ValueError):  # no file could have such a name
        return text
