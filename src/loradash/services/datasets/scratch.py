"""A place for what arrives and isn't stored yet. What a killed program left there is removed.

An upload lies here first, and then also in the object store, which may be a folder of the same disk
or of another one. Room for both is kept before anything is written, so that uploads, however many
at the same time, leave the space that trainings and the registry need.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from loradash.storage.disk import DiskGuard, Room, as_disk_full

_PREFIX = "loradash-"


class UploadRoom(NamedTuple):
    """Room kept for an upload: where it arrives, and where it is stored, if that is a folder."""

    arriving: Room
    storing: Room | None

    def grow(self, size_bytes: int) -> None:
        """Keep so much more. Raises `DiskFull`."""
        self.arriving.grow(size_bytes)
        if self.storing:
            self.storing.grow(size_bytes)

    def wrote(self, size_bytes: int) -> None:
        """Note that so much has arrived."""
        self.arriving.wrote(size_bytes)

    def stored(self, size_bytes: int) -> None:
        """Note that so much is stored."""
        if self.storing:
            self.storing.wrote(size_bytes)


class Scratch:
    """Files and folders that live as long as a block; in ``root``, or where the system has them.

    ``stored_at`` is the folder of an object store that is one.
    """

    def __init__(
        self,
        root: Path | None = None,
        guard: DiskGuard | None = None,
        stored_at: Path | None = None,
    ) -> None:
        self._root = root
        self._guard = guard or DiskGuard()
        self._stored_at = stored_at

    @contextlib.contextmanager
    def room(self, size_bytes: int = 0, *, arrives: bool = True) -> Iterator[UploadRoom]:
        """Keep room for an upload. Without ``arrives`` it is stored from where it lies already.

        Raises `DiskFull`.
        """
        here = self._root or Path(tempfile.gettempdir())
        with contextlib.ExitStack() as rooms:
            # One after the other: on one disk the second counts the first.
            arriving = rooms.enter_context(self._guard.reserve(here, size_bytes if arrives else 0))
            storing = None
            if self._stored_at:
                storing = rooms.enter_context(self._guard.reserve(self._stored_at, size_bytes))
            yield UploadRoom(arriving, storing)

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
            if full := as_disk_full(error):
                raise full from error
            raise

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
