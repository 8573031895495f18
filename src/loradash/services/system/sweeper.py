"""Objects that no record lists, deleted: what late or dead writers have left in the store.

An owner that was frozen may put something long after another one has finished; one that dies may
have put what it never listed. `loradash.runtime.leftovers` says which objects these are, and why
no record will ever list them. Processes that the registry doesn't know are left alone: they may be
in another one that shares the bucket.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import structlog
from cachetools import TTLCache

from loradash.domain.process import Status
from loradash.errors import NotFound
from loradash.registry.registry import ProcessRegistry, Sweepable
from loradash.runtime.leftovers import leftovers
from loradash.storage import keys
from loradash.storage.store import ObjectStore

log = structlog.get_logger("loradash.sweeper")

_REMEMBERED_S = 24 * 3600.0
_MOST_REMEMBERED = 100_000


class Swept(NamedTuple):
    """How many objects were deleted: results, and rows of the registry."""

    results: int
    rows: int


class Sweeper:
    """Looks through the store; safe to call at any time, and by several programs at once.

    What was found clean is looked at again once other objects are there, or after a day.
    """

    def __init__(self, registry: ProcessRegistry, store: ObjectStore) -> None:
        self._registry = registry
        self._store = store
        self._clean: TTLCache[str, int] = TTLCache(_MOST_REMEMBERED, _REMEMBERED_S)

    def sweep(self) -> Swept:
        """Delete what no record lists. Raises what store and registry raise."""
        results = 0
        for process_id, stored in self._stored():
            if self._clean.get(process_id) != stored:
                results += self.sweep_process(process_id)
        rows = self._registry.sweep() if isinstance(self._registry, Sweepable) else 0
        if results or rows:
            log.info("store_swept", results=results, rows=rows)
        return Swept(results, rows)

    def sweep_process(self, process_id: str) -> int:
        """Delete results of one process that its record doesn't list; return their number."""
        stored = list(self._store.list(keys.results(process_id)))
        try:
            record = self._registry.get(process_id)
            listed = {entry.key for entry in self._registry.artifacts(process_id)}
        except NotFound:
            return 0
        unlisted = leftovers(record, listed, stored)
        if unlisted:
            self._store.delete_many(unlisted)
        elif record.status is not Status.RUNNING:
            self._clean[process_id] = _fingerprint(info.key for info in stored)
        return len(unlisted)

    def _stored(self) -> Iterator[tuple[str, int]]:
        """Yield the processes that have results, and what tells whether others have come."""
        infos = self._store.list(keys.all_results())
        for process_id, group in groupby(infos, key=lambda info: keys.process_of(info.key)):
            if process_id:
                yield process_id, _fingerprint(info.key for info in group)


def _fingerprint(names: Iterator[str]) -> int:
    return hash(frozenset(names))
