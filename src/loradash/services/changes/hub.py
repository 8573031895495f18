"""The hub: polls the registry once for everybody, and wakes whoever listens.

Writes of this program reach listeners at once, by the registry's announcements; those of others
are found by polling its change feed, sooner where the registry is notified of them. Nothing is
polled while nobody listens: the feed continues at its cursor afterwards, so whoever comes back with
a cursor of the hub has missed nothing.
"""

import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

import structlog

from loradash.errors import LoradashError
from loradash.registry.change_feed import (
    Announcement,
    Announcing,
    ChangeFeed,
    ChangeLog,
    ProcessChange,
)
from loradash.registry.registry import Notifies
from loradash.services.changes.listener import Listener

log = structlog.get_logger("loradash.changes")

_MOST_REMEMBERED = 10_000
_MOST_PAGES = 20
_STOP_S = 5.0
_LEAST_BETWEEN_POLLS_S = 0.02
_LONGEST_WAIT_S = 0.5


class HubState(NamedTuple):
    """How a hub is doing, for health and metrics."""

    listeners: int
    is_stale: bool


class ChangeHub:
    """Wakes listeners when processes change. Thread-safe; stop it before the registry is closed."""

    def __init__(self, feed: ChangeFeed, announcements: Announcing | None = None) -> None:
        self._feed = feed
        self._history = ChangeLog(_MOST_REMEMBERED)
        self._feed_cursor = ""
        self._listeners: set[Listener] = set()
        self._is_stale = False
        self._is_stopped = False
        self._stopping = threading.Event()
        self._has_work = threading.Condition()
        self._thread: threading.Thread | None = None
        self._unsubscribe = announcements.subscribe(self._announced) if announcements else None

    @property
    def state(self) -> HubState:
        """How it is doing."""
        with self._has_work:
            return HubState(len(self._listeners), self._is_stale)

    def listen(self, after: str = "", process_ids: Iterable[str] = ()) -> Listener:
        """Return a listener to all processes, or to these; close it when done.

        With the cursor of an earlier listener it gets what has changed since, or is told to reload
        if that isn't known any more. Without one it gets what changes from now on.
        """
        with self._has_work:
            listener = Listener(self._history.cursor, process_ids, on_close=self._closed)
            if self._is_stopped:
                listener.end()
                return listener
            if after:
                page = self._history.since(after)
                if page.must_reload:
                    listener.reload(page.cursor)
                else:
                    listener.deliver(page.changes, page.cursor)
            if self._is_stale:
                listener.set_stale()
            self._listeners.add(listener)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="changes", daemon=True)
                self._thread.start()
            self._has_work.notify_all()
            return listener

    def stop(self) -> None:
        """End all listeners at once, and poll no more."""
        if self._unsubscribe:
            self._unsubscribe()
        with self._has_work:
            self._is_stopped = True
            listeners, self._listeners = self._listeners, set()
            self._has_work.notify_all()
        for listener in listeners:
            listener.end()
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_STOP_S)  # a poll that hangs must not hold up the end

    def _announced(self, announcement: Announcement) -> None:
        with self._has_work:
            if self._listeners:  # else the feed reports it to whoever comes next
                self._publish([announcement.change])

    def _closed(self, listener: Listener) -> None:
        with self._has_work:
            self._listeners.discard(listener)

    def _work(self) -> None:
        while self._wait_for_listeners():
            try:
                self._poll()
            except LoradashError as error:
                if not self._is_stale:
                    log.warning("changes_unavailable", error=str(error))
                self._fail()
            except Exception:  # listeners must not wait for a thread that has died
                log.exception("changes_unavailable")
                self._fail()
            time.sleep(_LEAST_BETWEEN_POLLS_S)  # however many changes are announced
            self._wait_for_next_poll()

    def _wait_for_listeners(self) -> bool:
        """Wait for a listener; False once the hub is stopped."""
        with self._has_work:
            self._has_work.wait_for(lambda: self._listeners or self._is_stopped)
            return not self._is_stopped

    def _wait_for_next_poll(self) -> None:
        if not isinstance(self._feed, Notifies):
            self._stopping.wait(self._feed.poll_interval_s)
            return
        deadline_s = time.monotonic() + self._feed.poll_interval_s
        while not self._stopping.is_set() and (left_s := deadline_s - time.monotonic()) > 0:
            if self._feed.wait_for_change(min(left_s, _LONGEST_WAIT_S)):
                return

    def _poll(self) -> None:
        for _ in range(_MOST_PAGES):
            page = self._feed.changes_since(self._feed_cursor)
            with self._has_work:
                if page.must_reload:
                    self._reload()
                elif page.changes:
                    self._publish(page.changes)
            self._feed_cursor = page.cursor
            if page.is_last:
                return
        self._feed_cursor = ""  # so much has changed that reloading is less work

    def _publish(self, changes: Iterable[ProcessChange]) -> None:
        changes = tuple(changes)
        cursor = self._history.add(changes)
        for listener in self._listeners:
            listener.deliver(changes, cursor)

    def _reload(self) -> None:
        """Have everybody read everything again, now that the registry answers."""
        if self._is_stale:
            log.info("changes_available_again")
        self._is_stale = False
        cursor = self._history.expire_cursors()
        for listener in self._listeners:
            listener.reload(cursor)

    def _fail(self) -> None:
        # A database that comes back may have lost its last commits, or be a copy: begin anew.
        self._feed_cursor = ""
        with self._has_work:
            self._is_stale = True
            for listener in self._listeners:
                listener.set_stale()
