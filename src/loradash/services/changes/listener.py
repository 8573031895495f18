"""One listener to changes: what it hasn't taken yet, and how it waits, in a thread or a loop."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from types import TracebackType
from typing import NamedTuple, Self

from loradash.registry.change_feed import Part, ProcessChange

MOST_PENDING = 1000
"""Processes of which a listener may be behind; with more it is told to reload."""


class Update(NamedTuple):
    """What a listener has to do, and the cursor with which it can continue after a break."""

    cursor: str
    changes: tuple[ProcessChange, ...] = ()
    must_reload: bool = False
    """Anything may have changed: read everything that is shown again."""
    is_stale: bool = False
    """The registry can't be reached at present, so what is shown may be out of date."""


class Listener:
    """Takes updates as they come. One reader at a time; use as a context manager.

    Changes that aren't taken in time are merged by process, so a slow reader holds up nobody and
    gets each process once, and its memory is bounded.
    """

    def __init__(
        self,
        cursor: str,
        process_ids: Iterable[str] = (),
        *,
        on_close: Callable[["Listener"], None],
        most_pending: int = MOST_PENDING,
    ) -> None:
        self._cursor = self._cursor_after = cursor
        self._wanted = frozenset(process_ids)
        self._on_close = on_close
        self._most_pending = most_pending
        self._pending: dict[str, frozenset[Part]] = {}
        self._must_reload = False
        self._is_stale = False
        self._has_news = False
        self._has_ended = False
        self._wake_loop: Callable[[], None] | None = None
        self._condition = threading.Condition()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def cursor(self) -> str:
        """The cursor of what follows the last update that was taken."""
        return self._cursor

    @property
    def has_ended(self) -> bool:
        """Whether no update will come any more: it was closed, or its hub stopped."""
        return self._has_ended

    def next(self, timeout_s: float | None = None) -> Update | None:
        """Wait for an update, for so long at most; None if there is none, or at the end."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._condition:
            while (update := self._take()) is None and not self._has_ended:
                left_s = None if deadline is None else deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    return None
                self._condition.wait(left_s)
            return update

    def __iter__(self) -> Iterator[Update]:
        """Yield updates to the end."""
        while (update := self.next()) is not None:
            yield update

    async def next_async(self, timeout_s: float | None = None) -> Update | None:
        """See `next`; holds no thread while it waits."""
        loop, woken = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(woken.set)

        with self._condition:
            update = self._take()
            if update is not None or self._has_ended:
                return update
            self._wake_loop = wake
        try:
            await asyncio.wait_for(woken.wait(), timeout_s)
        except TimeoutError:
            pass
        finally:
            with self._condition:  # the hub is calling it, or finds it gone
                self._wake_loop = None
        with self._condition:
            return self._take()

    async def __aiter__(self) -> AsyncIterator[Update]:
        """Yield updates to the end."""
        while not self._has_ended:
            if (update := await self.next_async()) is not None:
                yield update

    def close(self) -> None:
        """Listen no more."""
        self.end()
        self._on_close(self)

    # For the hub

    def deliver(self, changes: Iterable[ProcessChange], cursor: str) -> None:
        """Add changes to what is to be taken."""
        with self._condition:
            self._cursor_after = cursor
            for process_id, parts in changes:
                if self._must_reload or (self._wanted and process_id not in self._wanted):
                    continue
                self._pending[process_id] = self._pending.get(process_id, frozenset()) | parts
                self._has_news = True
            if len(self._pending) > self._most_pending:
                self._reload()
            self._wake()

    def reload(self, cursor: str) -> None:
        """Say that anything may have changed, and that the registry can be reached."""
        with self._condition:
            self._cursor_after = cursor
            self._is_stale = False
            self._reload()
            self._wake()

    def set_stale(self) -> None:
        """Say that the registry can't be reached, until the next reload."""
        with self._condition:
            self._has_news |= not self._is_stale
            self._is_stale = True
            self._wake()

    def end(self) -> None:
        """Say that no more will come; whoever waits returns at once."""
        with self._condition:
            self._has_ended = True
            self._wake(always=True)

    def _reload(self) -> None:
        self._pending.clear()
        self._must_reload = self._has_news = True

    def _wake(self, *, always: bool = False) -> None:
        if self._has_news or always:
            self._condition.notify_all()
            if self._wake_loop:
                self._wake_loop()

    def _take(self) -> Update | None:
        if not self._has_news or self._has_ended:
            return None
        self._cursor = self._cursor_after
        changes = tuple(ProcessChange(*one) for one in self._pending.items())
        update = Update(self._cursor, changes, self._must_reload, self._is_stale)
        self._pending = {}
        self._must_reload = self._has_news = False
        return update
