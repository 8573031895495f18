"""Log lines that repeat are written once a second, with the number of those that were left out.

Whatever goes wrong again and again, or whoever asks for it, must not fill the disk with it or
rotate away what the logs held before. Two things are bounded: the very same line, and lines of one
event that differ only in their fields, of which a number may come at once.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_VARYING = frozenset({"timestamp", "exception", "exc_info", "stack"})
_KEPT = 2000  # lines and events that are remembered
_KEY_CHARS = 500


@dataclass
class _Seen:
    left: float
    """How many lines may come at once."""
    at_s: float
    suppressed: int = 0


class Repeats:
    """Decides which records are written; thread-safe.

    ``at_once`` lines of an event may come one after the other, and from then on ``a_second``.
    """

    def __init__(
        self,
        *,
        at_once: int = 50,
        a_second: float = 1.0,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._at_once = at_once
        self._a_second = a_second
        self._clock_s = clock_s
        self._seen: OrderedDict[tuple[object, ...], _Seen] = OrderedDict()
        self._lock = threading.Lock()

    def passes(self, record: logging.LogRecord) -> bool:
        """Whether to write a record; if so, it tells how many like it weren't written before."""
        fields = record.msg if isinstance(record.msg, Mapping) else None
        text = str(fields.get("event") if fields else record.msg)[:_KEY_CHARS]
        event = (record.name, record.levelno, text)
        line = (*event, _line(record, fields))
        now_s = self._clock_s()
        with self._lock:
            same = self._at(line, 1, 1.0, now_s)
            alike = self._at(event, self._at_once, self._a_second, now_s)
            if same.left < 1:
                same.suppressed += 1
                return False
            if alike.left < 1:
                alike.suppressed += 1
                return False
            same.left -= 1
            alike.left -= 1
            suppressed = same.suppressed + alike.suppressed
            same.suppressed = alike.suppressed = 0
        if suppressed and fields is not None:
            record.msg = {**fields, "suppressed": suppressed}
        elif suppressed:
            record.msg = f"{record.msg} ({suppressed} like this suppressed)"
        return True

    def _at(self, key: tuple[object, ...], most: float, a_second: float, now_s: float) -> _Seen:
        seen = self._seen.setdefault(key, _Seen(most, now_s))
        self._seen.move_to_end(key)
        while len(self._seen) > _KEPT:
            self._seen.popitem(last=False)
        seen.left = min(most, seen.left + (now_s - seen.at_s) * a_second)
        seen.at_s = now_s
        return seen


class WrittenOnce(logging.Filter):
    """Decides once for each record, whatever the number of handlers that it passes.

    Loggers named in ``others`` have bounds of their own.
    """

    def __init__(self, repeats: Repeats, others: Mapping[str, Repeats]) -> None:
        super().__init__()
        self._repeats = repeats
        self._others = dict(others)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        decided: bool | None = getattr(record, "_is_written", None)
        if decided is None:
            decided = self._others.get(record.name, self._repeats).passes(record)
            record._is_written = decided
        return decided


def _line(record: logging.LogRecord, fields: Mapping[str, object] | None) -> str:
    """What makes a line the same as another one; lines of different requests are different."""
    if fields is None:
        return record.getMessage()[:_KEY_CHARS]
    return repr(
        [(name, str(value)[:100]) for name, value in fields.items() if name not in _VARYING]
    )[:_KEY_CHARS]
