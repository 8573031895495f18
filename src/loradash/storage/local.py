"""The object store in a local folder: one file an object, replaced atomically.

An etag is made of size, change time and inode: each replacement is a new file. A partial file has
a name that no key can have (a backslash), so it is never an object.
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from loradash.errors import DiskFull, InvalidKey, InvalidSettings, PreconditionFailed
from loradash.storage.disk import DiskGuard, arriving, as_disk_full, new_file, write_all
from loradash.storage.store import (
    Capabilities,
    ObjectInfo,
    OnBytes,
    check_key,
    check_prefix,
    no_such_object,
)

_PARTIAL_PREFIX = "\\partial-"
_PIECE_BYTES = 1024 * 1024
_NO_GUARD = DiskGuard()


class LocalStore:
    """Objects as files below ``root``, which nothing can lead out of.

    In a folder that is ``shared`` (a network volume that several machines write) locks can't be
    relied on, so there are no conditional writes: each key must have one writer.
    """

    def __init__(self, root: Path, *, shared: bool = False, guard: DiskGuard = _NO_GUARD) -> None:
        self._root = root.expanduser().absolute()
        self._guard = guard
        self.capabilities = Capabilities(
            conditional_create=not shared, conditional_replace=not shared
        )

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """See `ObjectStore.put`."""
        path = self._path(key)
        with self._replacing(path) as file:
            file.write(data)
        return self._info(key, path)

    def put_if(self, key: str, data: bytes, etag: str | None) -> ObjectInfo:
        """See `ConditionalPut.put_if`; a lock file makes check and write one action."""
        path = self._path(key)
        with self._locked():
            current = self._info(key, path).etag if path.is_file() else None
            if current != etag:
                raise PreconditionFailed(
                    f"object {key!r} was changed by another writer", remedy="Read it again."
                )
            with self._replacing(path) as file:
                file.write(data)
            return self._info(key, path)

    def put_file(self, key: str, path: Path, on_bytes: OnBytes | None = None) -> ObjectInfo:
        """See `ObjectStore.put_file`."""
        target = self._path(key)
        with path.open("rb") as source, self._replacing(target) as file:
            while piece := source.read(_PIECE_BYTES):
                file.write(piece)
                if on_bytes:
                    on_bytes(len(piece))
        return self._info(key, target)

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        try:
            return self._existing(key).read_bytes()
        except FileNotFoundError as error:
            raise no_such_object(key) from error

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `ObjectStore.read`."""
        try:
            file = self._existing(key).open("rb")
        except FileNotFoundError as error:
            raise no_such_object(key) from error
        return _pieces(file, start, end)

    def get_file(self, key: str, path: Path, on_bytes: OnBytes | None = None) -> ObjectInfo:
        """See `ObjectStore.get_file`."""
        source = self._existing(key)
        try:
            with source.open("rb") as content:
                info = self._info(key, source)
                with (
                    self._guard.reserve(path.parent, info.size_bytes) as room,
                    arriving(path) as descriptor,
                ):
                    for piece in _pieces(content, 0, None):
                        write_all(descriptor, piece)
                        room.wrote(len(piece))
                        if on_bytes:
                            on_bytes(len(piece))
        except FileNotFoundError as error:
            if source.exists():
                raise
            raise no_such_object(key) from error  # deleted since
        return info

    def head(self, key: str) -> ObjectInfo:
        """See `ObjectStore.head`."""
        path = self._existing(key)
        try:
            return self._info(key, path)
        except FileNotFoundError as error:  # deleted since
            raise no_such_object(key) from error

    def path_of(self, key: str) -> Path:
        """See `LocalFiles.path_of`."""
        return self._existing(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        prefix = check_prefix(prefix)
        start = self._path(prefix) if prefix else self._root
        # A walk passes over folders that vanish meanwhile; Python 3.11's `rglob` raises.
        paths = (Path(folder, name) for folder, _, names in os.walk(start) for name in names)
        found = (path for path in paths if path.is_file() and not path.is_symlink())
        for key, path in sorted((self._key(path), path) for path in found):
            if "\\" not in key:  # a partial file, or the lock
                with contextlib.suppress(FileNotFoundError):  # deleted since
                    yield self._info(key, path)

    def folders(self, prefix: str) -> tuple[str, ...]:
        """See `ObjectStore.folders`."""
        start = self._path(check_prefix(prefix)) if prefix else self._root
        if not start.is_dir():
            return ()
        found = (path for path in start.iterdir() if path.is_dir() and not path.is_symlink())
        names = (path.name for path in found if any(self.list(self._key(path))))
        return tuple(sorted(names))

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        path = self._path(key)
        if path.is_file():
            # Between the check and the write of a conditional put nothing may vanish.
            alone = (
                self._locked()
                if self.capabilities.conditional_replace
                else contextlib.nullcontext()
            )
            with alone:
                path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the first that isn't empty ends it
                for folder in path.parents:
                    if folder == self._root:
                        break
                    folder.rmdir()

    def delete_many(self, keys: Sequence[str]) -> None:
        """See `ObjectStore.delete_many`."""
        for key in keys:
            self.delete(key)

    def close(self) -> None:
        """See `ObjectStore.close`; there is nothing to let go of."""

    def remove_partial_files(self, before_s: float) -> int:
        """Remove what killed programs left half-written before this Unix time; return how many."""
        removed = 0
        for path in self._root.rglob(f"{glob.escape(_PARTIAL_PREFIX)}*"):
            with contextlib.suppress(OSError):
                if path.is_file() and path.stat().st_mtime < before_s:
                    path.unlink()
                    removed += 1
        return removed

    def _path(self, key: str) -> Path:
        path = self._root / check_key(key)
        if not path.parent.resolve().is_relative_to(self._root.resolve()) or path.is_symlink():
            raise InvalidKey(
                f"key {key!r} leads out of the store through a link", remedy="Remove the link."
            )
        return path

    def _key(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()

    def _existing(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_file():
            raise no_such_object(key)
        return path

    def _info(self, key: str, path: Path) -> ObjectInfo:
        facts = path.stat()
        text = f"{facts.st_size}/{facts.st_mtime_ns}/{facts.st_ino}"
        etag = hashlib.sha256(text.encode()).hexdigest()[:32]
        return ObjectInfo(key, facts.st_size, facts.st_mtime, etag)

    @contextlib.contextmanager
    def _replacing(self, path: Path) -> Iterator[IO[bytes]]:
        """Open a file that takes the place of ``path`` only if the block ends well."""
        try:
            descriptor, partial = _partial_file(path.parent)
        except (NotADirectoryError, FileExistsError) as error:
            raise InvalidKey(
                f"key of {path}: a part of it is an object itself", remedy="Use another key."
            ) from error
        except OSError as error:
            if full := as_disk_full(error):
                raise full from error
            raise InvalidSettings(
                f"object store {self._root}: {error.strerror or error}",
                remedy="Set LORADASH_OBJECTS_PATH to a folder that can be written.",
            ) from error
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except IsADirectoryError as error:
            partial.unlink(missing_ok=True)
            raise InvalidKey(
                f"key of {path}: other objects lie below it", remedy="Use another key."
            ) from error
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError) and (full := as_disk_full(error)):
                raise DiskFull(
                    f"object store {self._root}: {full.message}", remedy=full.remedy
                ) from error
            raise

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / "\\lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _pieces(file: IO[bytes], start: int, end: int | None) -> Iterator[bytes]:
    with file:
        file.seek(start)
        left = end - start if end is not None else None
        while left is None or left > 0:
            piece = file.read(_PIECE_BYTES if left is None else min(left, _PIECE_BYTES))
            if not piece:
                return
            left = None if left is None else left - len(piece)
            yield piece


def _partial_file(folder: Path) -> tuple[int, Path]:
    """Create a partial file, and its folder, which a delete of another object may be removing."""
    for _ in range(100):
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return new_file(folder, _PARTIAL_PREFIX)
    raise FileNotFoundError(errno.ENOENT, "the folder is removed again and again", str(folder))
