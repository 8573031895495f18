"""A registry whose writes are announced in this program as soon as they are committed."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import structlog

from loradash.domain.artifacts import ArtifactKind
from loradash.domain.kinds import Kind
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import RegistryUnavailable
from loradash.registry.change_feed import Announcement, Part, ProcessChange, Subscriber
from loradash.registry.registry import (
    Change,
    LogLine,
    Metric,
    NewLine,
    ProcessPage,
    ProcessQueue,
    ProcessRegistry,
    StoredArtifact,
    Sweepable,
    as_it_is,
)

log = structlog.get_logger("loradash.registry")


class _Registry(ProcessRegistry, ProcessQueue, Protocol):
    """What is wrapped."""


class _SweepableRegistry(_Registry, Sweepable, Protocol):
    """What is wrapped, with the ability to sweep."""


def announcing(registry: _Registry) -> "AnnouncingRegistry":
    """Return the registry with its writes announced; it keeps the ability `Sweepable`."""
    if isinstance(registry, Sweepable):
        return _AnnouncingSweepable(registry)
    return AnnouncingRegistry(registry)


class AnnouncingRegistry:
    """Passes every call on, and announces writes afterwards. See `Announcing`.

    A write whose answer got lost may have been committed, so it is announced, too.
    """

    def __init__(self, registry: _Registry) -> None:
        self._registry = registry
        self._subscribers: tuple[Subscriber, ...] = ()
        self._guard = threading.Lock()

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """See `Announcing.subscribe`."""

        def end() -> None:
            with self._guard:
                self._subscribers = tuple(one for one in self._subscribers if one != subscriber)

        with self._guard:
            self._subscribers = (*self._subscribers, subscriber)
        return end

    def create(self, record: ProcessRecord, *, contested: bool = False) -> ProcessRecord:
        """See `ProcessRegistry.create`."""
        with self._announced(record.id, Part.RECORD):
            return self._registry.create(record, contested=contested)

    def get(self, process_id: str) -> ProcessRecord:
        """See `ProcessRegistry.get`."""
        return self._registry.get(process_id)

    def change(self, process_id: str, change: Change) -> ProcessRecord:
        """See `ProcessRegistry.change`."""
        try:
            record = self._registry.change(process_id, change)
        except RegistryUnavailable:
            self._announce(process_id, Part.RECORD)
            raise
        self._announce(process_id, Part.RECORD, record)
        return record

    def page(
        self,
        *,
        kind: Kind | None = None,
        statuses: Sequence[Status] = (),
        limit: int = 50,
        cursor: str = "",
    ) -> ProcessPage:
        """See `ProcessRegistry.page`."""
        return self._registry.page(kind=kind, statuses=statuses, limit=limit, cursor=cursor)

    def counts(self) -> dict[tuple[Kind, Status], int]:
        """See `ProcessRegistry.counts`."""
        return self._registry.counts()

    def running(self) -> tuple[ProcessRecord, ...]:
        """See `ProcessRegistry.running`."""
        return self._registry.running()

    def append_metrics(self, process_id: str, token: str, rows: Sequence[Metric]) -> None:
        """See `ProcessRegistry.append_metrics`."""
        with self._announced(process_id, Part.METRICS):
            self._registry.append_metrics(process_id, token, rows)

    def forget_metrics(self, process_id: str, token: str, after_step: int) -> None:
        """See `ProcessRegistry.forget_metrics`."""
        with self._announced(process_id, Part.METRICS):
            self._registry.forget_metrics(process_id, token, after_step)

    def metrics(
        self, process_id: str, *, after_step: int = 0, limit: int = 1000
    ) -> tuple[Metric, ...]:
        """See `ProcessRegistry.metrics`."""
        return self._registry.metrics(process_id, after_step=after_step, limit=limit)

    def append_log(self, process_id: str, token: str, lines: Sequence[NewLine]) -> None:
        """See `ProcessRegistry.append_log`."""
        with self._announced(process_id, Part.LOG):
            self._registry.append_log(process_id, token, lines)

    def log(
        self, process_id: str, *, after: int = 0, limit: int = 1000, newest: bool = False
    ) -> tuple[LogLine, ...]:
        """See `ProcessRegistry.log`."""
        return self._registry.log(process_id, after=after, limit=limit, newest=newest)

    def put_artifacts(
        self, token: str, entries: Sequence[StoredArtifact], *, replaces: Sequence[str] = ()
    ) -> None:
        """See `ProcessRegistry.put_artifacts`."""
        with self._announced(entries[0].process_id, Part.ARTIFACTS):
            self._registry.put_artifacts(token, entries, replaces=replaces)

    def drop_artifacts(
        self, process_id: str, keys: Sequence[str], *, guard: Change = as_it_is
    ) -> None:
        """See `ProcessRegistry.drop_artifacts`."""
        with self._announced(process_id, Part.ARTIFACTS):
            self._registry.drop_artifacts(process_id, keys, guard=guard)

    def artifacts(
        self, process_id: str, kinds: Sequence[ArtifactKind] = ()
    ) -> tuple[StoredArtifact, ...]:
        """See `ProcessRegistry.artifacts`."""
        return self._registry.artifacts(process_id, kinds)

    def newest_artifacts(
        self, kinds: Sequence[ArtifactKind], *, limit: int = 100, before: str = ""
    ) -> tuple[tuple[StoredArtifact, ...], str]:
        """See `ProcessRegistry.newest_artifacts`."""
        return self._registry.newest_artifacts(kinds, limit=limit, before=before)

    def close(self) -> None:
        """See `ProcessRegistry.close`."""
        self._registry.close()

    def take_next(
        self, kind: Kind, change: Change, *, exclude: Sequence[str] = ()
    ) -> ProcessRecord | None:
        """See `ProcessQueue.take_next`."""
        record = self._registry.take_next(kind, change, exclude=exclude)
        if record is not None:
            self._announce(record.id, Part.RECORD, record)
        return record

    def pending(self, kind: Kind | None = None, *, limit: int = 100) -> tuple[ProcessRecord, ...]:
        """See `ProcessQueue.pending`."""
        return self._registry.pending(kind, limit=limit)

    def positions(self, process_ids: Sequence[str]) -> dict[str, int]:
        """See `ProcessQueue.positions`."""
        return self._registry.positions(process_ids)

    def paused(self) -> bool:
        """See `ProcessQueue.paused`."""
        return self._registry.paused()

    def pause(self, paused: bool) -> None:
        """See `ProcessQueue.pause`."""
        self._registry.pause(paused)

    @contextlib.contextmanager
    def _announced(self, process_id: str, part: Part) -> Iterator[None]:
        """Announce a write once the block has ended, unless it was refused."""
        try:
            yield
        except RegistryUnavailable:
            self._announce(process_id, part)
            raise
        self._announce(process_id, part)

    def _announce(self, process_id: str, part: Part, record: ProcessRecord | None = None) -> None:
        made = Announcement(ProcessChange(process_id, frozenset((part,))), record)
        for subscriber in self._subscribers:
            try:
                subscriber(made)
            except Exception:  # the write is done, and polling finds it, too
                log.exception("change_not_announced", process_id=process_id)


class _AnnouncingSweepable(AnnouncingRegistry):
    """The same for a registry that can sweep."""

    def __init__(self, registry: _SweepableRegistry) -> None:
        super().__init__(registry)
        self._sweepable = registry

    def sweep(self) -> int:
        """See `Sweepable.sweep`."""
        return self._sweepable.sweep()
