"""Room on this machine's disk: asked for before something is fetched, so that nothing is cut off.

A disk that runs full harms more than the download: engines can't write checkpoints, the registry
can't write records. So some of it stays free.
"""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from loradash.domain.sizes import size_text
from loradash.errors import DiskFull


class DiskGuard(NamedTuple):
    """How much of the disk stays free, in bytes; 0 guards nothing."""

    keep_free_bytes: int = 0

    def is_low(self, folder: Path) -> bool:
        """Whether less than that is free where ``folder`` is, or will be."""
        return self.keep_free_bytes > 0 and free_bytes(folder) < self.keep_free_bytes

    def require(self, folder: Path, size_bytes: int) -> None:
        """Raise `DiskFull` unless so much can be written and enough stays free."""
        free = free_bytes(folder)
        if self.keep_free_bytes and free - size_bytes < self.keep_free_bytes:
            raise DiskFull(
                f"{size_text(size_bytes)} don't fit on the disk of {folder}: {size_text(free)} are "
                f"free, of which {size_text(self.keep_free_bytes)} stay free",
                remedy="Free space and retry, or lower LORADASH_MIN_FREE_DISK_MB.",
            )


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk where a folder is, or will be."""
    existing = next((one for one in (folder, *folder.absolute().parents) if one.exists()), folder)
    return shutil.disk_usage(existing).free


def new_file(folder: Path, prefix: str) -> tuple[int, Path]:
    """Create a file of a name that nobody has yet; return its descriptor, to be closed, and path.

    Who may read it is for the umask to say, and for the folder's access lists: what is renamed into
    its place keeps that. (`tempfile` makes all files private, and a chmod asks neither.)
    """
    while True:
        path = folder / f"{prefix}{secrets.token_hex(8)}"
        with contextlib.suppress(FileExistsError):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(path, flags, 0o666), path


@contextlib.contextmanager
def arriving(path: Path) -> Iterator[int]:
    """Give a file descriptor to write to; the file appears at ``path`` if the block ends well.

    Nothing is left behind otherwise. Raises `DiskFull`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = new_file(path.parent, f".{path.name[:100]}.partial-")
    try:
        try:
            yield descriptor
        finally:
            os.close(descriptor)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"the disk of {path.parent} is full", remedy="Free space and retry."
            ) from error
        raise
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
