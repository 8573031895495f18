"""The port of the object store: put, get, head, list, delete over keys.

Keys are ``/``-separated and relative; an object is there whole or not at all, and replacing one is
atomic. ``ConditionalPut`` is an ability that not every store has.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from loradash.errors import InvalidKey, NotFound

_PART = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f\x7f\ud800-\udfff]+")
MAX_PART_BYTES = 200  # file systems take 255, and partial files have longer names
MAX_KEY_LENGTH = 1000


class ObjectInfo(NamedTuple):
    """What is known of an object without reading it."""

    key: str
    size_bytes: int
    modified_s: float
    etag: str


class ObjectStore(Protocol):
    """Objects by key. All methods raise `InvalidKey` for keys that `check_key` refuses."""

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """Store bytes under a key, replacing what is there."""
        ...

    def put_file(self, key: str, path: Path) -> ObjectInfo:
        """Store a file's content under a key, replacing what is there."""
        ...

    def get(self, key: str) -> bytes:
        """Return an object's content. Raises `NotFound`."""
        ...

    def get_file(self, key: str, path: Path) -> ObjectInfo:
        """Write an object's content to a file, whole or not at all. Raises `NotFound`."""
        ...

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object. Raises `NotFound`."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield all objects below ``prefix`` (whole path parts: ``a/b`` isn't ``a/bc``), by key."""
        ...

    def delete(self, key: str) -> None:
        """Delete an object; nothing happens if it isn't there."""
        ...


@runtime_checkable
class ConditionalPut(Protocol):
    """Writes that only happen if nobody else was faster."""

    def put_if(self, key: str, data: bytes, etag: str | None) -> ObjectInfo:
        """Store bytes if the object still has this etag, or (None) if there is none.

        Raises `PreconditionFailed` otherwise, and has then written nothing.
        """
        ...


@runtime_checkable
class LocalFiles(Protocol):
    """Objects that are files on this machine, so that a server can send them without copying."""

    def path_of(self, key: str) -> Path:
        """Return the file of an object. Raises `NotFound`."""
        ...


def check_key(key: str) -> str:
    """Return the key, or raise `InvalidKey` that says what is wrong with it."""
    if not key or len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_LENGTH:
        raise InvalidKey(
            f"key of {len(key)} characters", remedy=f"Keys have 1 to {MAX_KEY_LENGTH} bytes."
        )
    for part in key.split("/"):
        if not _PART.fullmatch(part) or len(part.encode()) > MAX_PART_BYTES:
            raise InvalidKey(
                f"key {key!r}: the part {part!r} isn't allowed",
                remedy="Keys are parts joined by '/', without '.', '..', '\\' or control codes.",
            )
    return key


def check_prefix(prefix: str) -> str:
    """Return a prefix without its last slash; '' means everything. Raises `InvalidKey`."""
    return check_key(prefix.removesuffix("/")) if prefix else ""


def no_such_object(key: str) -> NotFound:
    """The error for a missing object."""
    return NotFound(f"there is no object {key!r}", remedy="Check the key, or list the objects.")
