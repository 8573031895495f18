"""The registry in memory: for tests, and the reference of what the ports mean."""

import threading
from collections.abc import Sequence

from loradash.domain.artifacts import ArtifactKind
from loradash.domain.kinds import Kind, kind_names
from loradash.domain.process import ProcessRecord, Status
from loradash.registry.change_feed import (
    CHANGES_PER_PAGE,
    ChangeLog,
    ChangePage,
    Part,
    ProcessChange,
)
from loradash.registry.cursors import ArtifactPlace, ProcessPlace
from loradash.registry.registry import (
    MAX_PLACES,
    Change,
    LogLine,
    Metric,
    NewLine,
    ProcessPage,
    StoredArtifact,
    as_it_is,
    no_such_process,
    process_exists,
)


class MemoryRegistry:
    """Records and what belongs to them in dictionaries; one lock makes each method atomic."""

    poll_interval_s = 0.1

    def __init__(self) -> None:
        self._records: dict[str, ProcessRecord] = {}
        self._metrics: dict[str, dict[int, Metric]] = {}
        self._log: dict[str, list[LogLine]] = {}
        self._artifacts: dict[str, dict[str, StoredArtifact]] = {}
        self._paused = False
        self._changes = ChangeLog()
        self._lock = threading.Lock()

    def create(self, record: ProcessRecord, *, contested: bool = False) -> ProcessRecord:
        """See `ProcessRegistry.create`."""
        del contested  # of two only one succeeds in any case
        with self._lock:
            if record.id in self._records:
                raise process_exists(record.id)
            self._records[record.id] = record
            self._metrics[record.id] = {}
            self._log[record.id] = []
            self._artifacts[record.id] = {}
            self._changed(record.id, Part.RECORD)
        return record

    def get(self, process_id: str) -> ProcessRecord:
        """See `ProcessRegistry.get`."""
        with self._lock:
            return self._load(process_id)

    def change(self, process_id: str, change: Change) -> ProcessRecord:
        """See `ProcessRegistry.change`."""
        with self._lock:
            return self._change(self._load(process_id), change)

    def page(
        self,
        *,
        kind: Kind | None = None,
        statuses: Sequence[Status] = (),
        limit: int = 50,
        cursor: str = "",
    ) -> ProcessPage:
        """See `ProcessRegistry.page`."""
        before = ProcessPlace.read(cursor) if cursor else None
        with self._lock:
            found = [
                record
                for record in self._records.values()
                if (not kind or record.kind == kind)
                and (not statuses or record.status in statuses)
                and (not before or ProcessPlace.of(record) < before)
            ]
        found.sort(key=ProcessPlace.of, reverse=True)
        if len(found) <= limit:
            return ProcessPage(tuple(found), "")
        return ProcessPage(tuple(found[:limit]), ProcessPlace.of(found[limit - 1]).cursor)

    def counts(self) -> dict[tuple[Kind, Status], int]:
        """See `ProcessRegistry.counts`."""
        kinds = kind_names()
        counts = {(kind, status): 0 for kind in kinds for status in Status}
        with self._lock:
            for record in self._records.values():
                counts[record.kind, record.status] += 1
        return counts

    def running(self) -> tuple[ProcessRecord, ...]:
        """See `ProcessRegistry.running`."""
        with self._lock:
            found = [one for one in self._records.values() if one.status is Status.RUNNING]
        return tuple(sorted(found, key=lambda record: record.id))

    def append_metrics(self, process_id: str, token: str, rows: Sequence[Metric]) -> None:
        """See `ProcessRegistry.append_metrics`."""
        with self._lock:
            self._load(process_id).owned_by(token)
            self._metrics[process_id].update({row.step: row for row in rows})
            self._changed(process_id, Part.METRICS)

    def forget_metrics(self, process_id: str, token: str, after_step: int) -> None:
        """See `ProcessRegistry.forget_metrics`."""
        with self._lock:
            self._load(process_id).owned_by(token)
            kept = {
                step: row for step, row in self._metrics[process_id].items() if step <= after_step
            }
            self._metrics[process_id] = kept
            self._changed(process_id, Part.METRICS)

    def metrics(
        self, process_id: str, *, after_step: int = 0, limit: int = 1000
    ) -> tuple[Metric, ...]:
        """See `ProcessRegistry.metrics`."""
        with self._lock:
            self._load(process_id)
            rows = self._metrics[process_id]
            return tuple(rows[step] for step in sorted(rows) if step > after_step)[:limit]

    def append_log(self, process_id: str, token: str, lines: Sequence[NewLine]) -> None:
        """See `ProcessRegistry.append_log`."""
        with self._lock:
            self._load(process_id).owned_by(token)
            log = self._log[process_id]
            log += [
                LogLine(number=number, **line._asdict())
                for number, line in enumerate(lines, start=len(log) + 1)
            ]
            self._changed(process_id, Part.LOG)

    def log(
        self, process_id: str, *, after: int = 0, limit: int = 1000, newest: bool = False
    ) -> tuple[LogLine, ...]:
        """See `ProcessRegistry.log`."""
        with self._lock:
            self._load(process_id)
            lines = self._log[process_id][max(after, 0) :]
        return tuple(lines[-limit:] if newest else lines[:limit])

    def put_artifacts(
        self, token: str, entries: Sequence[StoredArtifact], *, replaces: Sequence[str] = ()
    ) -> None:
        """See `ProcessRegistry.put_artifacts`."""
        process_id = entries[0].process_id
        with self._lock:
            self._load(process_id).owned_by(token)
            for key in replaces:
                self._artifacts[process_id].pop(key, None)
            self._artifacts[process_id].update({one.key: one for one in entries})
            self._changed(process_id, Part.ARTIFACTS)

    def drop_artifacts(
        self, process_id: str, keys: Sequence[str], *, guard: Change = as_it_is
    ) -> None:
        """See `ProcessRegistry.drop_artifacts`."""
        with self._lock:
            guard(self._load(process_id))
            for key in keys:
                self._artifacts[process_id].pop(key, None)
            self._changed(process_id, Part.ARTIFACTS)

    def artifacts(
        self, process_id: str, kinds: Sequence[ArtifactKind] = ()
    ) -> tuple[StoredArtifact, ...]:
        """See `ProcessRegistry.artifacts`."""
        with self._lock:
            self._load(process_id)
            found = [
                artifact
                for artifact in self._artifacts[process_id].values()
                if not kinds or artifact.kind in kinds
            ]
        return tuple(sorted(found, key=lambda artifact: artifact.key))

    def newest_artifacts(
        self, kinds: Sequence[ArtifactKind], *, limit: int = 100, before: str = ""
    ) -> tuple[tuple[StoredArtifact, ...], str]:
        """See `ProcessRegistry.newest_artifacts`."""
        place = ArtifactPlace.read(before) if before else None
        with self._lock:
            found = [
                artifact
                for of_process in self._artifacts.values()
                for artifact in of_process.values()
                if (not kinds or artifact.kind in kinds)
                and (not place or ArtifactPlace.of(artifact) < place)
            ]
        found.sort(key=ArtifactPlace.of, reverse=True)
        if len(found) <= limit:
            return tuple(found), ""
        return tuple(found[:limit]), ArtifactPlace.of(found[limit - 1]).cursor

    def close(self) -> None:
        """See `ProcessRegistry.close`; the records stay."""

    def take_next(
        self, kind: Kind, change: Change, *, exclude: Sequence[str] = ()
    ) -> ProcessRecord | None:
        """See `ProcessQueue.take_next`."""
        with self._lock:
            waiting = [one for one in self._queue(kind) if one.id not in exclude]
            return self._change(waiting[0], change) if waiting and not self._paused else None

    def pending(self, kind: Kind | None = None, *, limit: int = 100) -> tuple[ProcessRecord, ...]:
        """See `ProcessQueue.pending`."""
        with self._lock:
            return tuple(self._queue(kind)[:limit])

    def positions(self, process_ids: Sequence[str]) -> dict[str, int]:
        """See `ProcessQueue.positions`."""
        kinds = kind_names()
        with self._lock:
            return {
                record.id: place
                for kind in kinds
                for place, record in enumerate(self._queue(kind)[:MAX_PLACES], start=1)
                if record.id in process_ids
            }

    def paused(self) -> bool:
        """See `ProcessQueue.paused`."""
        return self._paused

    def pause(self, paused: bool) -> None:
        """See `ProcessQueue.pause`."""
        with self._lock:
            self._paused = paused

    def changes_since(self, cursor: str = "", *, limit: int = CHANGES_PER_PAGE) -> ChangePage:
        """See `ChangeFeed.changes_since`."""
        with self._lock:
            return self._changes.since(cursor, limit)

    def _load(self, process_id: str) -> ProcessRecord:
        if process_id not in self._records:
            raise no_such_process(process_id)
        return self._records[process_id]

    def _change(self, record: ProcessRecord, change: Change) -> ProcessRecord:
        new = change(record)
        if new != record:
            self._records[record.id] = new
            self._changed(record.id, Part.RECORD)
        return new

    def _changed(self, process_id: str, part: Part) -> None:
        self._changes.add([ProcessChange(process_id, frozenset((part,)))])

    def _queue(self, kind: Kind | None) -> list[ProcessRecord]:
        waiting = (
            record
            for record in self._records.values()
            if record.status is Status.PENDING and (not kind or record.kind == kind)
        )
        return sorted(waiting, key=lambda one: (-one.priority, one.enqueued_at, one.id))
