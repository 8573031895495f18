"""The port of the object store: put, get, head, list, delete over keys.

Keys are ``/``-separated and relative; an object is there whole or not at all, and replacing one is
atomic. What only some stores can do is an ability of its own (`ConditionalPut`, `PresignedUrls`,
`MultipartUploads`, `LocalFiles`). For S3 it also depends on the provider, so it's asked with
`conditional_put`, `presigned_urls`, `multipart_uploads`, which look at the `Capabilities`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from loradash.errors import InvalidKey, NotFound
from loradash.resilience.circuit_state import CircuitState

_PART = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f\x7f\ud800-\udfff]+")
MAX_PART_BYTES = 200  # file systems take 255, and partial files have longer names
MAX_KEY_LENGTH = 1000


OnBytes = Callable[[int], None]
"""Told how many more bytes have been moved; negative where some must be moved once more."""


class ObjectInfo(NamedTuple):
    """What is known of an object without reading it.

    A conditional put takes the ``etag``. It changes with the content; the same content may get the
    same one again. ``modified_s`` as a put returns it may be this machine's clock.
    """

    key: str
    size_bytes: int
    modified_s: float
    etag: str


@dataclass(frozen=True)
class Capabilities:
    """What a store can really do. Code asks these, never who the provider is."""

    conditional_create: bool = False
    """A put can be made to fail if the object is there already."""
    conditional_replace: bool = False
    """A put can be made to fail if the object isn't the one that was read."""
    bulk_delete: bool = False
    """Many objects can be deleted by one request."""
    presign: bool = False
    """URLs can be signed with which others read and write an object for a while."""
    post_policy: bool = False
    """Forms can be signed with which a browser sends a file of limited size."""
    md5_etag: bool = False
    """The etag of a put is the MD5 of its content, so that arrival can be verified by it."""


class ObjectStore(Protocol):
    """Objects by key. All methods raise `InvalidKey` for keys that `check_key` refuses.

    Stores behind a network raise `StoreUnavailable` after their retries, and `StoreRefused` where
    trying again is no use. Thread-safe.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What this store can do; found out at the first look, where that takes requests."""
        ...

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """Store bytes under a key, replacing what is there; returns once they have arrived."""
        ...

    def put_file(self, key: str, path: Path, on_bytes: OnBytes | None = None) -> ObjectInfo:
        """Store a file's content under a key, replacing what is there.

        What arrived is compared with the file before this returns.
        """
        ...

    def get(self, key: str) -> bytes:
        """Return an object's content. Raises `NotFound`."""
        ...

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield an object's bytes from ``start`` up to, without, ``end``, in pieces.

        Raises `NotFound` before the first piece, and `StoreUnavailable` rather than end too soon.
        """
        ...

    def get_file(self, key: str, path: Path, on_bytes: OnBytes | None = None) -> ObjectInfo:
        """Write an object's content to a file, whole or not at all. Raises `NotFound`."""
        ...

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object. Raises `NotFound`."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield all objects below ``prefix`` (whole path parts: ``a/b`` isn't ``a/bc``).

        They come by key, unless a provider is a file system at heart and orders by folder.
        """
        ...

    def folders(self, prefix: str) -> Sequence[str]:
        """Return the names right below ``prefix`` that have objects below them, sorted.

        Some providers still name folders whose objects were deleted a moment ago.
        """
        ...

    def delete(self, key: str) -> None:
        """Delete an object; nothing happens if it isn't there."""
        ...

    def delete_many(self, keys: Sequence[str]) -> None:
        """Delete objects. Raises what a `delete` raises, having tried all of them."""
        ...

    def close(self) -> None:
        """Let go of connections and threads; nothing is asked of the store afterwards."""
        ...


@runtime_checkable
class ConditionalPut(Protocol):
    """Writes that only happen if nobody else was faster."""

    def put_if(self, key: str, data: bytes, etag: str | None) -> ObjectInfo:
        """Store bytes if the object still has this etag, or (None) if there is none.

        Raises `PreconditionFailed` otherwise, and has then written nothing.
        """
        ...


class Examination(NamedTuple):
    """What a remote store was found to do, and, in a sentence each, what it can't."""

    provider: str
    capabilities: Capabilities
    notes: tuple[str, ...]


@runtime_checkable
class Remote(Protocol):
    """Stores behind a network, which may be away."""

    @property
    def state(self) -> CircuitState:
        """Whether it answers, as far as is known without asking."""
        ...

    def examine(self) -> Examination:
        """Return what it really does, found out at the first call.

        Raises `StoreUnavailable` or `StoreRefused`.
        """
        ...


@runtime_checkable
class Prompt(Protocol):
    """Stores that may wait long for an answer, and can be told not to."""

    def prompt(self, silence_s: float) -> ObjectStore:
        """Return the same store, giving up small requests after such a silence."""
        ...


@dataclass(frozen=True)
class SignedRequest:
    """A request that anybody may send as it is, until it expires."""

    method: str
    url: str
    headers: Mapping[str, str]
    """Must be sent along, as they are signed too."""


@dataclass(frozen=True)
class SignedForm:
    """A form (multipart/form-data) that a browser may send, with a field ``file`` as the last."""

    url: str
    fields: Mapping[str, str]


@runtime_checkable
class PresignedUrls(Protocol):
    """URLs with which others read and write single objects, for seconds, without credentials."""

    def get_url(self, key: str, *, filename: str, expires_s: int) -> str:
        """Return where to download an object, saved under ``filename``."""
        ...

    def put_url(
        self, key: str, *, content_type: str, size_bytes: int, expires_s: int
    ) -> SignedRequest:
        """Return the request that uploads an object of exactly this content type and size."""
        ...

    def post_form(
        self, key: str, *, content_type: str, max_bytes: int, expires_s: int
    ) -> SignedForm:
        """Return the form that uploads an object of at most so many bytes."""
        ...


@runtime_checkable
class MultipartUploads(Protocol):
    """Uploads in parts, which others can send; nothing is visible before `finish_upload`."""

    def begin_upload(self, key: str, *, content_type: str) -> str:
        """Begin an upload; return its id."""
        ...

    def part_url(self, key: str, upload_id: str, number: int, *, expires_s: int) -> SignedRequest:
        """Return the request that sends one part (from 1); its reply has the header ``ETag``."""
        ...

    def finish_upload(self, key: str, upload_id: str, etags: Sequence[str]) -> ObjectInfo:
        """Make the object of the parts, whose etags are in order of their numbers."""
        ...

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Drop an upload and its parts; nothing happens if it isn't there."""
        ...


@runtime_checkable
class LocalFiles(Protocol):
    """Objects that are files on this machine, so that a server can send them without copying."""

    def path_of(self, key: str) -> Path:
        """Return the file of an object. Raises `NotFound`."""
        ...


def conditional_put(store: ObjectStore) -> ConditionalPut | None:
    """Return the store if it can create and replace on a condition, else None."""
    if not isinstance(store, ConditionalPut):
        return None
    able = store.capabilities
    return store if able.conditional_create and able.conditional_replace else None


def presigned_urls(store: ObjectStore) -> PresignedUrls | None:
    """Return the store if it can sign URLs, else None."""
    return store if isinstance(store, PresignedUrls) and store.capabilities.presign else None


def multipart_uploads(store: ObjectStore) -> MultipartUploads | None:
    """Return the store if others can send it parts of an object, else None."""
    return store if isinstance(store, MultipartUploads) and store.capabilities.presign else None


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
