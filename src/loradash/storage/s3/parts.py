"""Parts of a large file: hashed, then read again as they are sent, in small pieces."""

import hashlib
import os
from collections.abc import Iterator

from loradash.storage.s3.reading import PIECE_BYTES
from loradash.storage.store import OnBytes

MAX_PARTS = 10_000


class Part:
    """A range of an open file. What is counted while it is sent is taken back if that failed."""

    def __init__(self, descriptor: int, start: int, size: int, on_bytes: OnBytes | None) -> None:
        self.start = start
        self.size = size
        self._descriptor = descriptor
        self._on_bytes = on_bytes or (lambda _bytes: None)
        self._counted = 0

    def md5(self) -> bytes:
        """Return the MD5 of the content."""
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
            piece = os.pread(self._descriptor, min(PIECE_BYTES, end - offset), offset)
            if not piece:
                raise OSError("the file became shorter while it was sent")
            offset += len(piece)
            yield piece


def part_size(size: int, wanted: int) -> int:
    """Return the bytes of one part, so that a file has no more parts than S3 takes."""
    least = -(-size // MAX_PARTS)
    mebibyte = 2**20
    return max(wanted, -(-least // mebibyte) * mebibyte)
