"""How much memory this process may use to decode images, all of its threads together.

A few kilobytes of a file can be an image of gigabytes, and images come from many sides at once:
uploads, thumbnails, duplicates, zip files, trainings. So whoever decodes reserves beforehand what
the image will take, and waits its turn.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from functools import cache

import psutil

from loradash.cgroups import memory_limit

_SHARE = 4  # of the machine's or container's memory, one part in so many
_MAX_BYTES = 2**30
_MIN_BYTES = 32 * 2**20  # a dataset of small images can be looked at everywhere


class DecodingBudget:
    """Bytes that are given out in the order in which they were asked for; thread-safe.

    The order matters: else a large image would wait for as long as small ones come.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.most_bytes = 0
        """The most that was ever given out at once."""
        self._used_bytes = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserved(self, wanted_bytes: int) -> Iterator[None]:
        """Wait until so many bytes are free, and hold them for this context.

        Don't reserve within it: two that do would wait for each other. Raises `ValueError` for
        more than there is at all.
        """
        if wanted_bytes > self.size_bytes:
            raise ValueError(f"{wanted_bytes} bytes of {self.size_bytes}")
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                self._changed.wait_for(
                    lambda: (
                        self._waiting[0] is turn
                        and self._used_bytes + wanted_bytes <= self.size_bytes
                    )
                )
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
            self._used_bytes += wanted_bytes
            self.most_bytes = max(self.most_bytes, self._used_bytes)
        try:
            yield
        finally:
            with self._changed:
                self._used_bytes -= wanted_bytes
                self._changed.notify_all()


@cache
def process_budget() -> DecodingBudget:
    """The one budget of this process.

    It goes by all of the memory, and not by what is free at the moment: whether an image can be
    used must not change from one minute to the next.
    """
    limit = memory_limit()
    return DecodingBudget(budget_bytes(psutil.virtual_memory().total, limit and limit.limit_bytes))


def budget_bytes(memory_bytes: int, limit_bytes: int | None) -> int:
    """Return how much of a machine's memory, or of its container's limit, decoding may take."""
    ours = min(memory_bytes, limit_bytes or memory_bytes)
    return max(_MIN_BYTES, min(_MAX_BYTES, ours // _SHARE))
