"""A place for what arrives and isn't stored yet. What a killed program left there is removed."""

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from loradash.errors import DiskFull

_PREFIX = "loradash-"


class Scratch:
    """Files and folders that live as long as a block; in ``root``, or where the system has them."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A fresh folder, which is gone after the block with all that is in it.

        Raises `DiskFull` if the block doesn't end because of that.
        """
        try:
            if self._root:
                self._root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=self._root) as name:
                yield Path(name)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise DiskFull(
                f"the disk of {self._root or tempfile.gettempdir()} is full",
                remedy="Free space and retry.",
            ) from error

    def remove_left_over(self, before_s: float) -> int:
        """Remove what was left before this Unix time; return how many folders that were.

        Only of a folder of our own: in the system's there are those of others.
        """
        removed = 0
        if self._root and self._root.is_dir():
            for path in self._root.glob(f"{_PREFIX}*"):
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < before_s:
                        shutil.rmtree(path)
                        removed += 1
        return removed


SYSTEMS_SCRATCH = Scratch()
"""Where the system has its temporary files."""
