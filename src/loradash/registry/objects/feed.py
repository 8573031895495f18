"""The change feed of the registry in the object store: what a list of the records shows as new.

Each request costs money, so a poll is one request to list for whoever listens, and sees up to
`_LISTED` objects. A bucket with more of them is listed page by page, one page a poll, from the
beginning again after the last; besides, such a poll looks for new processes at the head of the
timeline (one more list), and at the `_RECENT` processes that have changed last (one cheap request
each), since what runs changes all the time. So with n thousand records a change of a process that
runs, and a new process, is seen by the next poll, and any other change by the n-th at the latest.

A list doesn't show which part of a process has changed, so each of them may have.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from loradash.errors import NotFound
from loradash.registry.change_feed import ALL_PARTS, ChangeLog, ChangePage, ProcessChange
from loradash.registry.objects.backend import Backend
from loradash.registry.objects.timeline import Timeline
from loradash.storage import keys
from loradash.storage.store import ObjectInfo

POLL_INTERVAL_S = 1.5

_LISTED = 1000  # what S3 returns at once
_NEWEST = 100
_RECENT = 20
_MOST_REMEMBERED = 10_000
_WEAK_ETAG_S = 3.0


class ObjectFeed:
    """Compares lists of the records with what was listed before. Thread-safe."""

    def __init__(
        self, backend: Backend, timeline: Timeline, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._backend = backend
        self._timeline = timeline
        self._clock = clock
        self._changes = ChangeLog(_MOST_REMEMBERED)
        self._etags: dict[str, str] = {}
        self._known: set[str] = set()
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._report_again_s: OrderedDict[str, float] = OrderedDict()
        self._listing: Iterator[ObjectInfo] | None = None
        self._found: set[str] = set()
        """What is to be reported; it outlives a poll that fails halfway."""
        self._is_begun = False
        self._lock = threading.Lock()

    def changes_since(self, cursor: str, limit: int) -> ChangePage:
        """See `ChangeFeed.changes_since`."""
        with self._lock:
            if self._is_begun:
                self._poll()
            else:
                self._note(self._backend.list(keys.processes()))
                self._is_begun = True
                self._found.clear()
        return self._changes.since(cursor, limit)

    def _poll(self) -> None:
        is_first_page = self._listing is None
        self._note(self._listed())
        if not is_first_page or self._listing is not None:  # this poll hasn't listed everything
            self._note(self._newest_and_recent())
        self._note_settled()
        for process_id in self._found:
            self._recent[process_id] = None
            self._recent.move_to_end(process_id)
        while len(self._recent) > _RECENT:
            self._recent.popitem(last=False)
        found = sorted(self._found)
        self._changes.add(ProcessChange(process_id, ALL_PARTS) for process_id in found)
        self._found.clear()

    def _listed(self) -> Iterator[ObjectInfo]:
        """Yield the next page of the list of all records."""
        listing = self._listing or self._backend.list(keys.processes())
        self._listing = None  # an error begins it anew
        count = 0
        for info in islice(listing, _LISTED):
            count += 1
            yield info
        if count == _LISTED:
            self._listing = listing

    def _newest_and_recent(self) -> Iterator[ObjectInfo]:
        newest = [place.id for place in islice(self._timeline.after(None), _NEWEST)]
        wanted = {*self._recent, *(one for one in newest if one not in self._known)}
        for infos in self._backend.in_parallel(sorted(wanted), self._of_process):
            yield from infos

    def _of_process(self, process_id: str) -> tuple[ObjectInfo, ...]:
        try:
            record = self._backend.head(keys.process_record(process_id))
        except NotFound:
            return ()  # whoever created it hasn't got that far, or died before
        if self._backend.is_conditional:
            return (record,)
        return (record, *self._backend.list(keys.process_epochs(process_id)))

    def _note(self, infos: Iterable[ObjectInfo]) -> None:
        """Remember what was listed, and the processes for which it is new."""
        reports_twice = self._is_begun and not self._backend.is_conditional
        for info in infos:
            process_id, rest = keys.recorded_process(info.key)
            is_record = process_id and not rest.endswith(".claim")
            if not is_record or self._etags.get(info.key) == info.etag:
                continue
            self._etags[info.key] = info.etag
            self._known.add(process_id)
            self._found.add(process_id)
            if reports_twice:
                self._report_again_s[process_id] = self._clock() + _WEAK_ETAG_S
                self._report_again_s.move_to_end(process_id)

    def _note_settled(self) -> None:
        """Report processes once more whose change was found a while ago.

        Without conditional writes an etag may be made of a time in seconds and a size, so a write
        soon after the one that was found can have the same.
        """
        now_s = self._clock()
        while self._report_again_s and next(iter(self._report_again_s.values())) <= now_s:
            self._found.add(self._report_again_s.popitem(last=False)[0])
