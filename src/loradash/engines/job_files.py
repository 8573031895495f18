"""Files that engines write and list in a process's folder."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file that appears at once and whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def files_in(folder: Path) -> tuple[Path, ...]:
    """The files of a folder by name, without those that are still being written."""
    if not folder.is_dir():
        return ()
    names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return tuple(path for path in names if path.is_file())
