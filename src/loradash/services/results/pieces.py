"""Content in pieces, for replies that say beforehand how many bytes will come."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from zipstream import ZipStream

from loradash.errors import LoradashError


def exactly(pieces: Iterable[bytes], size_bytes: int, wrong: LoradashError) -> Iterator[bytes]:
    """Yield pieces that have so many bytes together.

    Raises ``wrong`` rather than end too soon or go on too long.
    """
    left = size_bytes
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            break
        yield piece
    if left:
        raise wrong


class ZipEntry(NamedTuple):
    """A file of a zip file. Nothing is read before it is its turn."""

    name: str
    size_bytes: int
    pieces: Iterator[bytes]


class ZipPieces:
    """A zip file that is made while it is sent; it can be read once.

    Its size is known beforehand, and no more of it is in memory than one piece of one file. Nothing
    is compressed: images and adapters don't get smaller.
    """

    def __init__(self, entries: Iterable[ZipEntry]) -> None:
        self._zip = ZipStream(sized=True)
        for entry in entries:
            self._zip.add(entry.pieces, entry.name, size=entry.size_bytes)

    @property
    def size_bytes(self) -> int:
        """How many bytes all pieces have together."""
        return len(self._zip)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the file in pieces. Raises what the entries' pieces raise."""
        yield from self._zip
