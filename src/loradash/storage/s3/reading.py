"""Reading an object in pieces, which goes on where it was when the connection breaks."""

from collections.abc import Iterator
from typing import Any

from loradash.errors import PreconditionFailed, StoreUnavailable
from loradash.storage.s3.bucket import Bucket
from loradash.storage.s3.failures import STORE_ERRORS, is_out_of_range
from loradash.storage.store import ObjectInfo

PIECE_BYTES = 256 * 1024

Buffer = Any  # bytes in the memory of obstore; has a length, and can be written and hashed


class Reader:
    """Reads a range of one version of an object."""

    def __init__(
        self, bucket: Bucket, key: str, start: int = 0, end: int | None = None, etag: str = ""
    ) -> None:
        self._bucket = bucket
        self._key = key
        self._end = end
        self._etag = etag
        self._stream: Any = None
        self._size = 0
        self._is_whole = False
        self.offset = start

    def open(self) -> ObjectInfo:
        """Ask for the range; return what the object is. Raises `NotFound`."""
        if self._end is not None and self._end <= self.offset:  # no range for S3
            return self._bucket.call("HEAD", self._key, lambda: self._bucket.head_once(self._key))
        return self._bucket.call("GET", self._key, self._ask)

    def takes_all(self) -> bool:
        """Whether the whole object comes although a range was asked for; then it is all read."""
        if self._is_whole:
            self._end = self._size
        return self._is_whole

    def pieces(self) -> Iterator[Buffer]:
        """Yield the bytes up to the end of the range, as obstore's buffers.

        Raises `StoreUnavailable`, also if the object was replaced meanwhile.
        """
        while self._end is None or self.offset < self._end:
            try:
                piece = self._at_hand() or self._bucket.call("GET", self._key, self._next)
            except PreconditionFailed as error:
                raise StoreUnavailable(
                    f"object {self._key!r} was replaced while it was read", remedy="Read it again."
                ) from error
            if self._end is not None and self.offset + len(piece) > self._end:
                piece = memoryview(piece)[: self._end - self.offset]
            self.offset += len(piece)
            yield piece

    def _ask(self) -> ObjectInfo:
        try:
            result = self._bucket.open_once(self._key, self.offset, self._end, self._etag)
        except STORE_ERRORS as error:
            if not is_out_of_range(error):
                raise
            info = self._bucket.head_once(self._key)
            if info.size_bytes > self.offset:
                raise StoreUnavailable(
                    f"object {self._key!r} was replaced while it was asked for",
                    remedy="Read it again.",
                ) from error
            self._end = self.offset  # the object ends before this range begins
            return info
        info = self._bucket.info(result.meta)
        self._etag = info.etag
        self._end = info.size_bytes if self._end is None else min(self._end, info.size_bytes)
        self._size = info.size_bytes
        before = self.offset - result.range[0]
        self._is_whole = result.range == (0, info.size_bytes) and self._end < info.size_bytes
        stream = iter(result.stream(min_chunk_size=PIECE_BYTES))
        self._stream = _without(stream, before) if before else stream
        return info

    def _at_hand(self) -> Buffer | None:
        """Return the next piece if the connection gives it. Most pieces need no more than that."""
        try:
            piece: Buffer | None = next(self._stream, None) if self._stream else None
        except STORE_ERRORS:
            piece = None
        if not piece:
            self._stream = None
        return piece

    def _next(self) -> Buffer:
        """Return the next piece of a new connection, which begins there."""
        if self._stream is None:
            self._ask()
        try:
            piece = next(self._stream, b"") if self._stream else b""
        except STORE_ERRORS:
            self._stream = None
            raise
        if not piece:
            self._stream = None
            raise StoreUnavailable(
                f"GET {self._key}: the reply ended at byte {self.offset} of {self._end}",
                remedy="It may pass; try again.",
            )
        return piece


def _without(stream: Iterator[Buffer], skipped: int) -> Iterator[Buffer]:
    """Leave out so many bytes at the beginning."""
    for piece in stream:
        if skipped < len(piece):
            yield memoryview(piece)[skipped:] if skipped else piece
        skipped = max(0, skipped - len(piece))
