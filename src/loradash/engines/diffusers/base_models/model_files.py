"""The files of a base model, wherever they are: enough to judge it without loading or fetching it.

`FolderFiles` reads a folder of this machine; the hub's are in ``hub.py``.
"""

import json
from pathlib import Path
from typing import Any, Protocol

MAX_TEXT_BYTES = 50_000_000
"""A config, an index or a tokenizer; anything larger isn't one."""


class ModelFiles(Protocol):
    """Read access to the files of one base model, by paths below its top folder."""

    def names(self) -> frozenset[str]:
        """Paths of all files, with ``/`` between their parts."""
        ...

    def size(self, name: str) -> int:
        """Size of a file in bytes. Raises `OSError`."""
        ...

    def start(self, name: str, size: int) -> bytes:
        """Return the first ``size`` bytes of a file, or all of a shorter one. Raises `OSError`."""
        ...


class FolderFiles:
    """`ModelFiles` of a folder, or of the folder that a single file is in."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> frozenset[str]:
        """See `ModelFiles.names`; only the top folder and those directly in it are looked at."""
        levels = (self._root.glob("*"), self._root.glob("*/*"))
        return frozenset(
            path.relative_to(self._root).as_posix()
            for level in levels
            for path in level
            if path.is_file()
        )

    def size(self, name: str) -> int:
        """See `ModelFiles.size`."""
        return (self._root / name).stat().st_size

    def start(self, name: str, size: int) -> bytes:
        """See `ModelFiles.start`."""
        with (self._root / name).open("rb") as file:
            return file.read(size)


def read_json(files: ModelFiles, name: str) -> dict[str, Any]:
    """Return a file's JSON object. Raises `ValueError` that says what is wrong, and `OSError`."""
    if files.size(name) == 0:
        raise ValueError("is empty")
    text = files.start(name, MAX_TEXT_BYTES)
    try:
        document = json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError("isn't text in UTF-8") from error
    except (ValueError, RecursionError) as error:
        if text.lstrip()[:1] == b"<":
            raise ValueError("is a web page (HTML), not JSON") from error
        if text.startswith(b"version https://git-lfs"):
            raise ValueError("is a Git LFS pointer, not the file itself") from error
        raise ValueError(f"can't be read as JSON ({error})") from error
    if not isinstance(document, dict):
        raise ValueError("isn't a JSON object")
    return document
