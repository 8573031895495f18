"""Processes: list them, get one, cancel, resume, and the queue."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from loradash.domain import process as changes
from loradash.domain.kinds import Kind
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import ConflictingState, LoradashError
from loradash.executors.executor import Executor
from loradash.executors.local import QueuedRegistry
from loradash.registry.cursors import ProcessPlace
from loradash.registry.registry import LogLine, Metric
from loradash.runtime.lease_watch import LeaseWatch
from loradash.services.processes.submission import stored_config
from loradash.services.processes.views import (
    ProcessDetail,
    ProcessPage,
    ProcessView,
    QueuedProcess,
    QueueView,
    process_detail,
    process_view,
)
from loradash.storage.store import ObjectStore

MAX_CONFIG_SHOWN = 200_000
# Of an overview, at most; the rest, and what these leave, is for the newest of all.
_PARTS = {Status.RUNNING: 0.5, Status.PENDING: 0.25, Status.COMPLETED: 0.125}
_NEVER = 2**31  # a user who asks for it isn't counted as a lost worker


class ProcessService:
    """What can be asked of processes, and done to them, from any entry point."""

    def __init__(
        self, registry: QueuedRegistry, store: ObjectStore, executor: Executor, watch: LeaseWatch
    ) -> None:
        """Take what a server has seen of leases; a watch that never looks knows dead owners."""
        self._registry = registry
        self._store = store
        self._executor = executor
        self._watch = watch

    def page(
        self, *, kind: Kind | None, statuses: Sequence[Status], limit: int, cursor: str
    ) -> ProcessPage:
        """Return processes, the newest first."""
        page = self._registry.page(kind=kind, statuses=statuses, limit=limit, cursor=cursor)
        return ProcessPage(processes=self._views(page.records), next_cursor=page.next_cursor)

    def overview(self, limit: int, counts: Mapping[Status, int]) -> ProcessPage:
        """Return processes for a client that shows one page only: the active ones first.

        Old ones that run or wait take the places of newer ones that have ended, and so do the
        newest completed ones where there would be few of them: a page of failed ones hides neither.
        ``counts`` says how many there are. The cursor is that of what is older than the page; of
        what follows it, the old ones that are here already come once more.
        """
        page = self._registry.page(limit=limit)
        newest = page.records
        if not page.next_cursor:
            return ProcessPage(processes=self._views(_active_first(newest)), next_cursor="")
        wanted: dict[str, ProcessRecord] = {}
        for status, part in _PARTS.items():
            here = [record for record in newest if record.status is status]
            there = min(counts[status], int(limit * part))
            if len(here) < there:
                here = list(self._registry.page(statuses=[status], limit=there).records)
            wanted |= {record.id: record for record in here[:there]}
        kept = len(newest)
        while len(wanted.keys() | {record.id for record in newest[:kept]}) > limit:
            kept -= 1
        cursor = ProcessPlace.of(newest[kept - 1]).cursor
        shown = {record.id: record for record in newest[:kept]} | wanted
        ordered = sorted(shown.values(), key=ProcessPlace.of, reverse=True)
        return ProcessPage(processes=self._views(_active_first(ordered)), next_cursor=cursor)

    def _views(self, records: Sequence[ProcessRecord]) -> tuple[ProcessView, ...]:
        waiting = [record.id for record in records if record.status is Status.PENDING]
        positions = self._registry.positions(waiting) if waiting else {}
        now = datetime.now(UTC)
        return tuple(
            process_view(
                record, now, positions.get(record.id), owner_is_lost=self._watch.is_lost(record)
            )
            for record in records
        )

    def get(self, process_id: str) -> ProcessDetail:
        """Return one process, with its whole config and its attempts. Raises `NotFound`."""
        record = self._registry.get(process_id)
        waiting = record.status is Status.PENDING
        return process_detail(
            record,
            datetime.now(UTC),
            self._registry.positions([process_id]).get(process_id) if waiting else None,
            owner_is_lost=self._watch.is_lost(record),
            config_text=self._config_text(record),
            artifacts=tuple(self._registry.artifacts(process_id)),
        )

    def log(self, process_id: str, after: int, limit: int) -> tuple[LogLine, ...]:
        """Return log lines by number. Raises `NotFound`."""
        self._registry.get(process_id)
        return self._registry.log(process_id, after=after, limit=limit)

    def metrics(self, process_id: str, after_step: int, limit: int) -> tuple[Metric, ...]:
        """Return measurements by step. Raises `NotFound`."""
        self._registry.get(process_id)
        return self._registry.metrics(process_id, after_step=after_step, limit=limit)

    def cancel(self, process_id: str) -> ProcessRecord:
        """Ask for a process's end; one that waits has ended at once.

        Raises `NotFound` and `ConflictingState`.
        """

        def change(record: ProcessRecord) -> ProcessRecord:
            return changes.cancel_requested(
                record, datetime.now(UTC), owner_is_gone=self._watch.is_lost(record)
            )

        record = self._registry.change(process_id, change)
        self._executor.cancelled(record)
        return record

    def resume(self, process_id: str) -> ProcessRecord:
        """Queue a failed, cancelled or lost process again.

        Raises `NotFound` and `ConflictingState`.
        """

        def change(record: ProcessRecord) -> ProcessRecord:
            now = datetime.now(UTC)
            if self._watch.is_lost(record):
                return changes.expired(record, now=now, max_attempts=_NEVER, owner_is_gone=True)
            return changes.requeued(record, now)

        record = self._registry.change(process_id, change)
        self._executor.submitted(process_id)
        return record

    def reprioritize(self, process_id: str, priority: int) -> ProcessRecord:
        """Change a waiting process's place. Raises `NotFound`, `ConflictingState`."""
        return self._registry.change(
            process_id,
            lambda record: changes.reprioritized(record, priority, datetime.now(UTC)),
        )

    def rename(self, process_id: str, name: str) -> ProcessRecord:
        """Change the name that lists show. Raises `NotFound` and `InvalidRequest`."""
        return self._registry.change(
            process_id, lambda record: changes.renamed(record, name, datetime.now(UTC))
        )

    def purge_queue(self) -> int:
        """Cancel everything that waits; return how many it was."""
        removed = 0
        while waiting := self._registry.pending(limit=100):
            for record in waiting:
                try:
                    ended = self.cancel(record.id)
                except ConflictingState:
                    continue
                removed += ended.status is Status.CANCELLED
        return removed

    def queue(self) -> QueueView:
        """What waits in which order, what runs where, and whether the queue is paused."""
        waiting = self._registry.pending(limit=100)
        counts = self.counts()
        return QueueView(
            is_paused=self._registry.paused(),
            pending_count=counts[Status.PENDING],
            running_count=counts[Status.RUNNING],
            waiting=tuple(
                QueuedProcess(id=one.id, kind=one.kind, name=one.name, priority=one.priority)
                for one in waiting
            ),
            executor=self._executor.state(),
        )

    def counts(self) -> dict[Status, int]:
        """How many processes of each status there are."""
        totals = dict.fromkeys(Status, 0)
        for (_, status), number in self._registry.counts().items():
            totals[status] += number
        return totals

    def pause(self, paused: bool) -> None:
        """Stop or go on starting processes."""
        self._registry.pause(paused)
        self._executor.submitted("")

    def _config_text(self, record: ProcessRecord) -> str | None:
        """The config; None for one that is too large to be shown with everything else."""
        try:
            text = stored_config(self._store, record)
        except (LoradashError, UnicodeDecodeError):
            return None
        return text if len(text) <= MAX_CONFIG_SHOWN else None


def _active_first(records: Iterable[ProcessRecord]) -> list[ProcessRecord]:
    """Those that run, those that wait, and the others; the order of each kind stays."""
    rank = {Status.RUNNING: 0, Status.PENDING: 1}
    return sorted(records, key=lambda record: rank.get(record.status, 2))
