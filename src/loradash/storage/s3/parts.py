"""Content that is hashed, then read again as it is sent, in small pieces: of a file or a part."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from loradash.storage.s3.reading import PIECE_BYTES
from loradash.storage.store import OnBytes

MAX_PARTS = 10_000


ReadAt = Callable[[int, int], bytes]
"""Returns at most so many bytes from a place on, as `os.pread` does."""


class Part:
    """A range of something. What is counted while it is sent is taken back if that failed."""

    def __init__(self, read_at: ReadAt, start: int, size: int, on_bytes: OnBytes | None) -> None:
        self.start = start
        self.size = size
        self._read_at = read_at
        self._on_bytes = on_bytes or (lambda _bytes: None)
        self._counted = 0

    def md5(self) -> bytes:
        """Read the content; return its MD5."""
        digest = hashlib.md5(usedforsecurity=False)
        for piece in self._read():
            digest.update(piece)
        return digest.digest()

    def pieces(self) -> Iterator[bytes]:
        """Yield the content from its beginning, counting it. Raises `OSError`."""
        if self._counted:
            self._on_bytes(-self._counted)
            self._counted = 0
        for piece in self._read():
            yield piece
            self._counted += len(piece)
            self._on_bytes(len(piece))

    def _read(self) -> Iterator[bytes]:
        offset = self.start
        end = self.start + self.size
        while offset < end:
            piece = self._read_at(min(PIECE_BYTES, end - offset), offset)
            if not piece:
                raise OSError("the file became shorter while it was sent")
            offset += len(piece)
            yield piece


def of_file(descriptor: int) -> ReadAt:
    """Read from an open file."""
    return partial(os.pread, descriptor)


def of_bytes(data: bytes) -> ReadAt:
    """Read from memory."""
    return lambda size, start: data[start : start + size]


def part_size(size: int, wanted: int) -> int:
    """Return the bytes of one part, so that a file has no more parts than S3 takes."""
    least = -(-size // MAX_PARTS)
    mebibyte = 2**20
    return max(wanted, -(-least // mebibyte) * mebibyte)


def etag_of_parts(etags: Sequence[str]) -> str:
    """Return the etag that an object of these parts has where etags are MD5s, else ''."""
    try:
        md5s = b"".join(bytes.fromhex(etag.strip('"')) for etag in etags)
    except ValueError:
        return ""
    return f"{hashlib.md5(md5s, usedforsecurity=False).hexdigest()}-{len(etags)}"
