"""Room on this machine's disks: asked for before something is written, so that nothing is cut off.

A disk that runs full harms more than what fills it: engines can't write checkpoints, the registry
can't write records. So some of each disk stays free. What is under way is counted too, or several
uploads at the same time would each find room for itself.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from loradash.domain.sizes import size_text
from loradash.errors import DiskFull

_REMEDY = "Free space and retry."
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What libraries make of these errors: safetensors (and all of Rust), torch's writer of zip files,
# SQLite, and whoever keeps only the system's text.
_NO_SPACE_TEXT = re.compile(
    r"no space left on device|disk quota exceeded|file too large|failed to write whole buffer"
    rf"|\(os error (?:{'|'.join(str(number) for number in sorted(_NO_SPACE))})\)"
    r"|database or disk is full|\bunexpected pos \d+|PytorchStreamWriter failed writing",
    re.IGNORECASE,
)


def as_disk_full(error: BaseException, remedy: str = _REMEDY) -> DiskFull | None:
    """Return the error as `DiskFull` if a full disk, a quota or a file's greatest size caused it.

    Libraries pack what the system says into errors of their own, so causes and texts count too.
    """
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, DiskFull):
            return cause
        number = cause.errno if isinstance(cause, OSError) else None
        if number in _NO_SPACE or (number is None and _NO_SPACE_TEXT.search(str(cause)[:2000])):
            return _disk_full(cause, number, remedy)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def _disk_full(cause: BaseException, number: int | None, remedy: str) -> DiskFull:
    text = str(cause).lower()
    where = ""
    if isinstance(cause, OSError) and isinstance(cause.filename, str):
        where = f" of {Path(cause.filename).parent}"
    if number == errno.EDQUOT or "quota" in text:
        what = f"the quota of the disk{where} is used up"
    elif number == errno.EFBIG or "file too large" in text:
        return DiskFull(
            f"the disk{where} takes no file of this size",
            remedy=f"Look at its file system, and at the limit that `ulimit -f` shows. {remedy}",
        )
    else:
        what = f"the disk{where} is full"
    return DiskFull(what, remedy=remedy)


class Room:
    """Room on one disk that is kept for something until it is written; see `DiskGuard.reserve`."""

    def __init__(self, guard: "DiskGuard", folder: Path, size_bytes: int) -> None:
        self._guard = guard
        self.folder = folder
        self.disk = _disk_of(folder)
        self.left_bytes = size_bytes

    def wrote(self, size_bytes: int) -> None:
        """Note that so much of it is on the disk by now, and so no longer to be kept free."""
        with self._guard.lock:
            self.left_bytes = max(0, self.left_bytes - size_bytes)

    def write(self, size_bytes: int) -> None:
        """Note that so much is being written, announced or not. Raises `DiskFull`."""
        with self._guard.lock:
            self.grow(max(0, size_bytes - self.left_bytes))
            self.wrote(size_bytes)

    def announce(self, size_bytes: int) -> None:
        """Keep as much as is going to be written. Raises `DiskFull`."""
        with self._guard.lock:
            self.grow(max(0, size_bytes - self.left_bytes))

    def grow(self, size_bytes: int) -> None:
        """Keep so much more. Raises `DiskFull`."""
        if size_bytes:
            with self._guard.lock:
                self._guard.require(self.folder, size_bytes)
                self.left_bytes += size_bytes


class DiskGuard:
    """How much of each disk stays free, in bytes; 0 guards nothing.

    One for the whole program: it counts what is reserved. Other programs' writing isn't known.
    """

    def __init__(self, keep_free_bytes: int = 0) -> None:
        self.keep_free_bytes = keep_free_bytes
        self.lock = threading.RLock()
        self._rooms: set[Room] = set()

    def is_low(self, folder: Path) -> bool:
        """Whether less than that is free where ``folder`` is, or will be."""
        return self.keep_free_bytes > 0 and free_bytes(folder) < self.keep_free_bytes

    def require(self, folder: Path, size_bytes: int) -> None:
        """Raise `DiskFull` unless so much can be written and enough stays free."""
        if not self.keep_free_bytes:
            return
        with self.lock:
            free = free_bytes(folder)
            disk = _disk_of(folder)
            reserved = sum(room.left_bytes for room in self._rooms if room.disk == disk)
        if free - reserved - size_bytes < self.keep_free_bytes:
            others = f", {size_text(reserved)} of them for what is under way" if reserved else ""
            raise DiskFull(
                f"{size_text(size_bytes)} don't fit on the disk of {folder}: {size_text(free)} are "
                f"free{others}, and {size_text(self.keep_free_bytes)} stay free",
                remedy="Free space and retry, or lower LORADASH_MIN_FREE_DISK_MB.",
            )

    @contextlib.contextmanager
    def reserve(self, folder: Path, size_bytes: int) -> Iterator[Room]:
        """Keep room for something that is about to be written into a folder. Raises `DiskFull`."""
        room = Room(self, folder, size_bytes)
        with self.lock:
            self.require(folder, size_bytes)
            self._rooms.add(room)
        try:
            yield room
        finally:
            with self.lock:
                self._rooms.discard(room)


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk where a folder is, or will be."""
    return shutil.disk_usage(_existing(folder)).free


def _disk_of(folder: Path) -> int:
    return _existing(folder).stat().st_dev


def _existing(folder: Path) -> Path:
    return next((one for one in (folder, *folder.absolute().parents) if one.exists()), folder)


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


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write everything; the system may take less at once, as it does just before a disk is full."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


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
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and (full := as_disk_full(error)):
            raise full from error
        raise
