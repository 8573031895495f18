"""Texts that are longer than what a text encoder reads: how much is lost, and where they end."""

from collections.abc import Sequence
from typing import NamedTuple

from loradash.domain.sizes import counted

_SHOWN_END = 30
_SHOWN_TEXTS = 5


class CutText(NamedTuple):
    """A text whose end the text encoder doesn't read."""

    limit: int
    """Tokens that are read, without those for start and end."""
    lost: int
    """Tokens that aren't."""
    end: str
    """The last letters that are read."""

    def sentence(self, what: str) -> str:
        """Say of a text, named by ``what``, that it is cut, and after which words."""
        return (
            f"{what} is longer than the {counted(self.limit, 'token')} that the text encoder "
            f"reads: {self._loss}"
        )

    @property
    def _loss(self) -> str:
        verb = "isn't" if self.lost == 1 else "aren't"
        return f"{counted(self.lost, 'token')} after {self.end!r} {verb} read"


def cut_of(text: str, spans: Sequence[tuple[int, int]], limit: int) -> CutText | None:
    """Return where a text is cut; None if it is read whole.

    ``spans`` are the places in the text of all tokens, of which the first and the last stand for
    its start and end, and ``limit`` is how many the text encoder takes, these two included.
    """
    if len(spans) <= limit:
        return None
    end = text[: spans[limit - 2][1]] if limit > 2 else ""
    shown = end if len(end) <= _SHOWN_END else f"...{end[-_SHOWN_END:]}"
    return CutText(limit - 2, len(spans) - limit, shown)


def cut_captions(cuts: Sequence[tuple[str, CutText | None]]) -> str:
    """Say how many captions are cut, with their files and places; '' if none is.

    One pair of file name and cut for each caption.
    """
    found = [(name, cut) for name, cut in cuts if cut is not None]
    if not found:
        return ""
    limit = found[0][1].limit
    shown = "; ".join(f"{name}: {cut._loss}" for name, cut in found[:_SHOWN_TEXTS])
    more = f"; and {len(found) - _SHOWN_TEXTS} more" if len(found) > _SHOWN_TEXTS else ""
    verb = "is" if len(found) == 1 else "are"
    return (
        f"{len(found)} of {counted(len(cuts), 'caption')} {verb} longer than the "
        f"{counted(limit, 'token')} that the text encoder reads, and the rest isn't trained: "
        f"{shown}{more}"
    )
