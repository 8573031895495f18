"""How fast a training goes, and how long it still takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_WINDOW_S = 20.0


class Speed:
    """Steps per second over the last while, without the time spent on checkpoints and previews."""

    def __init__(self, step: int) -> None:
        self._marks = [(time.monotonic(), step)]

    def after(self, step: int, total: int) -> tuple[float | None, float | None]:
        """Return steps per second and the seconds that are left, or None before there are any."""
        now = time.monotonic()
        self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[1][0] > _WINDOW_S:
            self._marks.pop(0)
        then, first = self._marks[0]
        if now <= then:
            return None, None
        rate = (step - first) / (now - then)
        return rate, (total - step) / rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of other work."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            away_s = time.monotonic() - began_s
            self._marks = [(then + away_s, step) for then, step in self._marks]
