"""The change feed: an ability of registries to say which processes have changed since a cursor.

Whoever shows live data polls it in place of reading everything again. A feed never misses a change
that is committed, and may report one more than once: a reader takes a change as "read this again".
"""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import NamedTuple, Protocol, runtime_checkable

from loradash.domain.process import ProcessRecord

CHANGES_PER_PAGE = 500


class Part(StrEnum):
    """What of a process has changed."""

    RECORD = "record"
    METRICS = "metrics"
    LOG = "log"
    ARTIFACTS = "artifacts"


ALL_PARTS = frozenset(Part)


class ProcessChange(NamedTuple):
    """A process that has changed, and which of its parts may have."""

    process_id: str
    parts: frozenset[Part]


class ChangePage(NamedTuple):
    """Some changes, the oldest first, each process once; and the cursor of what follows."""

    changes: tuple[ProcessChange, ...]
    cursor: str
    is_last: bool = True
    """Whether no more changes were there; else the next page can be asked for at once."""
    must_reload: bool = False
    """The feed doesn't know what has changed since the given cursor: anything may have."""


@runtime_checkable
class ChangeFeed(Protocol):
    """An ability of registries: what has changed since a cursor, also by other programs."""

    @property
    def poll_interval_s(self) -> float:
        """Seconds between two polls that find changes soon enough and don't cost too much."""
        ...

    def changes_since(self, cursor: str = "", *, limit: int = CHANGES_PER_PAGE) -> ChangePage:
        """Return the processes that have changed since ``cursor``, about ``limit`` at most.

        Without a cursor, or with one that this feed can't continue, the page holds no changes, the
        present cursor, and ``must_reload``. Raises `RegistryUnavailable`.
        """
        ...


class Announcement(NamedTuple):
    """A write of this program that has been committed, or may have been."""

    change: ProcessChange
    record: ProcessRecord | None
    """The new record, where the write has returned one."""


Subscriber = Callable[[Announcement], None]


@runtime_checkable
class Announcing(Protocol):
    """An ability of registries: the writes of this program are announced at once."""

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call ``subscriber`` after each write, in the writer's thread; return what ends that.

        A subscriber must return at once.
        """
        ...


class ChangeLog:
    """The latest changes in memory, numbered. Thread-safe.

    Each process has one entry with the number of its latest change, by part. Beyond ``most``
    processes the oldest entries are dropped, and whoever has an older cursor must reload.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._epoch = secrets.token_hex(6)
        self._entries: OrderedDict[str, dict[Part, int]] = OrderedDict()
        self._last = 0
        self._complete_since = 0
        self._lock = threading.Lock()

    @property
    def cursor(self) -> str:
        """The cursor of what follows."""
        with self._lock:
            return self._cursor_at(self._last)

    def add(self, changes: Iterable[ProcessChange]) -> str:
        """Number these changes; return the cursor of what follows."""
        with self._lock:
            for process_id, parts in changes:
                self._last += 1
                self._entries.setdefault(process_id, {}).update(dict.fromkeys(parts, self._last))
                self._entries.move_to_end(process_id)
                if self._most is not None and len(self._entries) > self._most:
                    _, dropped = self._entries.popitem(last=False)
                    self._complete_since = max(dropped.values())
            return self._cursor_at(self._last)

    def expire_cursors(self) -> str:
        """Make every cursor given until now one that must reload; return a cursor that need not."""
        with self._lock:
            self._entries.clear()
            self._last += 1
            self._complete_since = self._last
            return self._cursor_at(self._last)

    def since(self, cursor: str, limit: int | None = None) -> ChangePage:
        """See `ChangeFeed.changes_since`."""
        with self._lock:
            after = self._number_of(cursor)
            if after is None:
                return ChangePage((), self._cursor_at(self._last), must_reload=True)
            newer: list[tuple[str, dict[Part, int]]] = []
            for process_id, numbers in reversed(self._entries.items()):
                if max(numbers.values()) <= after:
                    break
                newer.append((process_id, numbers))
            page = newer[::-1][:limit]
            is_last = len(page) == len(newer)
            at = self._last if is_last else max(page[-1][1].values())
            changes = tuple(
                ProcessChange(
                    process_id, frozenset(part for part, n in numbers.items() if n > after)
                )
                for process_id, numbers in page
            )
            return ChangePage(changes, self._cursor_at(at), is_last)

    def _cursor_at(self, number: int) -> str:
        return f"{self._epoch}-{number}"

    def _number_of(self, cursor: str) -> int | None:
        """Return the change that a cursor stands behind; None if later ones may be unknown."""
        epoch, _, text = cursor.partition("-")
        if epoch != self._epoch or not (text.isascii() and text.isdecimal() and len(text) <= 18):
            return None
        number = int(text)
        return number if self._complete_since <= number <= self._last else None
