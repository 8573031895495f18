"""The registry in the object store, for several programs on machines that share only a bucket."""

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from pydantic import BaseModel

from loradash.domain.artifacts import ArtifactKind
from loradash.domain.ids import is_process_id
from loradash.domain.kinds import KINDS, Kind, kind_names
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import ConflictingState, NotFound, RegistryUnavailable
from loradash.registry.change_feed import CHANGES_PER_PAGE, ChangePage
from loradash.registry.cursors import ArtifactPlace, ProcessPlace
from loradash.registry.objects.backend import Backend
from loradash.registry.objects.claimed import ClaimedDocuments
from loradash.registry.objects.document import Document, Edit, PartGone, Parts
from loradash.registry.objects.documents import TRIES, Documents, Listing, list_documents
from loradash.registry.objects.feed import POLL_INTERVAL_S, ObjectFeed
from loradash.registry.objects.parts import ChunkedRows, PartObjects
from loradash.registry.objects.swapped import SwappedDocuments
from loradash.registry.objects.timeline import Timeline
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
from loradash.storage import keys
from loradash.storage.store import ObjectStore

_ROW_OBJECTS_CACHED = 64
_ARTIFACT_OBJECTS_CACHED = 10_000
_FILTERED_BATCH = 64

Result = TypeVar("Result")


class ObjectRegistry:
    """Records and what belongs to them as objects, written so that no two writers meet.

    Where the store writes on a condition, each change is a compare-and-swap. Elsewhere writers
    agree by claims, for which whoever isn't the last writer waits ``settle_s``: see
    `loradash.registry.objects.claimed` for the assumption about time that this makes.

    It is meant for up to some thousand processes: the queue, the counts and the newest artifacts
    are found by listing all records and reading those that have changed since the last time. With
    more of them a database is better. Besides what the ports say, any method may raise
    `RegistryUnavailable`.
    """

    poll_interval_s = POLL_INTERVAL_S

    def __init__(self, store: ObjectStore, *, settle_s: float = 2.0) -> None:
        self._backend = Backend(store)
        self._settle_s = settle_s
        self._timeline = Timeline(self._backend)
        self._feed = ObjectFeed(self._backend, self._timeline)
        self._artifact_objects = PartObjects(
            self._backend, StoredArtifact, _ARTIFACT_OBJECTS_CACHED
        )
        self._metric_rows = ChunkedRows(
            PartObjects(self._backend, Metric, _ROW_OBJECTS_CACHED), lambda row: row.step
        )
        self._log_rows = ChunkedRows(
            PartObjects(self._backend, LogLine, _ROW_OBJECTS_CACHED), lambda line: line.number
        )

    @functools.cached_property
    def _documents(self) -> Documents:
        # Not before the first call, as the store may have to be probed for it.
        if self._backend.is_conditional:
            return SwappedDocuments(self._backend)
        return ClaimedDocuments(self._backend, self._settle_s)

    def create(self, record: ProcessRecord, *, contested: bool = False) -> ProcessRecord:
        """See `ProcessRegistry.create`."""
        place = ProcessPlace.of(record)
        document = Document.first(record)
        # First the place, so that no process is missing in a list: one too many does no harm.
        self._timeline.add(place)
        try:
            self._documents.create(document, contested=contested)
        except ConflictingState as error:
            if ProcessPlace.of(self._documents.load(record.id).record) != place:
                self._timeline.discard(place)
            raise process_exists(record.id) from error
        return record

    def get(self, process_id: str) -> ProcessRecord:
        """See `ProcessRegistry.get`."""
        return self._load(process_id).record

    def change(self, process_id: str, change: Change) -> ProcessRecord:
        """See `ProcessRegistry.change`."""
        return self._update(process_id, Edit(change)).record

    def page(
        self,
        *,
        kind: Kind | None = None,
        statuses: Sequence[Status] = (),
        limit: int = 50,
        cursor: str = "",
    ) -> ProcessPage:
        """See `ProcessRegistry.page`."""
        places = self._timeline.after(ProcessPlace.read(cursor) if cursor else None)
        if kind:
            prefix = f"{KINDS[kind].id_prefix}_"
            places = (place for place in places if place.id.startswith(prefix))
        found: list[ProcessRecord] = []
        batch = limit + 1
        listing: Listing | None = None
        while len(found) <= limit and (some := list(islice(places, batch))):
            found += [
                record
                for record in self._at(some, listing)
                if (not kind or record.kind == kind) and (not statuses or record.status in statuses)
            ]
            if len(found) <= limit < len(some) and listing is None:
                # A filter that few pass: from here on only what has changed is worth a request.
                listing = list_documents(self._backend)
                batch = max(batch, _FILTERED_BATCH)
        if len(found) <= limit:
            return ProcessPage(tuple(found), "")
        return ProcessPage(tuple(found[:limit]), ProcessPlace.of(found[limit - 1]).cursor)

    def counts(self) -> dict[tuple[Kind, Status], int]:
        """See `ProcessRegistry.counts`."""
        kinds = kind_names()
        counts = {(kind, status): 0 for kind in kinds for status in Status}
        for document in self._all():
            counts[document.record.kind, document.record.status] += 1
        return counts

    def running(self) -> tuple[ProcessRecord, ...]:
        """See `ProcessRegistry.running`."""
        found = [document.record for document in self._all()]
        running = (record for record in found if record.status is Status.RUNNING)
        return tuple(sorted(running, key=lambda record: record.id))

    def append_metrics(self, process_id: str, token: str, rows: Sequence[Metric]) -> None:
        """See `ProcessRegistry.append_metrics`."""

        def write(parts: Parts) -> Parts:
            chunks = self._metric_rows.put(process_id, parts.metrics, rows)
            return parts.model_copy(update={"metrics": chunks})

        self._update(process_id, _by_owner(token, write if rows else None))

    def forget_metrics(self, process_id: str, token: str, after_step: int) -> None:
        """See `ProcessRegistry.forget_metrics`."""

        def write(parts: Parts) -> Parts:
            chunks = self._metric_rows.until(process_id, parts.metrics, after_step)
            return parts.model_copy(update={"metrics": chunks})

        self._update(process_id, _by_owner(token, write))

    def metrics(
        self, process_id: str, *, after_step: int = 0, limit: int = 1000
    ) -> tuple[Metric, ...]:
        """See `ProcessRegistry.metrics`."""
        return self._read(
            process_id, lambda parts: self._metric_rows.after(parts.metrics, after_step, limit)
        )

    def append_log(self, process_id: str, token: str, lines: Sequence[NewLine]) -> None:
        """See `ProcessRegistry.append_log`."""

        def write(parts: Parts) -> Parts:
            first = parts.log[-1].last + 1 if parts.log else 1
            rows = [
                LogLine(number=number, **line._asdict())
                for number, line in enumerate(lines, start=first)
            ]
            chunks = self._log_rows.put(process_id, parts.log, rows)
            return parts.model_copy(update={"log": chunks})

        self._update(process_id, _by_owner(token, write if lines else None))

    def log(
        self, process_id: str, *, after: int = 0, limit: int = 1000, newest: bool = False
    ) -> tuple[LogLine, ...]:
        """See `ProcessRegistry.log`."""
        return self._read(
            process_id,
            lambda parts: self._log_rows.after(parts.log, after, limit, newest=newest),
        )

    def put_artifacts(
        self, token: str, entries: Sequence[StoredArtifact], *, replaces: Sequence[str] = ()
    ) -> None:
        """See `ProcessRegistry.put_artifacts`."""
        process_id = entries[0].process_id
        gone = {*replaces, *(one.key for one in entries)}

        def write(parts: Parts) -> Parts:
            others = [one for one in self._artifacts(parts) if one.key not in gone]
            return self._with_artifacts(process_id, parts, [*others, *entries])

        self._update(process_id, _by_owner(token, write))

    def drop_artifacts(
        self, process_id: str, keys: Sequence[str], *, guard: Change = as_it_is
    ) -> None:
        """See `ProcessRegistry.drop_artifacts`."""

        def allowed(record: ProcessRecord) -> ProcessRecord:
            guard(record)
            return record

        guard(self.get(process_id))
        dropped = set(keys)
        if not any(one.key in dropped for one in self.artifacts(process_id)):
            return  # where writers agree by claims, looking first saves the wait

        def write(parts: Parts) -> Parts:
            there = self._artifacts(parts)
            kept = [one for one in there if one.key not in dropped]
            if len(kept) == len(there):
                return parts
            return self._with_artifacts(process_id, parts, kept)

        self._update(process_id, Edit(allowed, write))

    def artifacts(
        self, process_id: str, kinds: Sequence[ArtifactKind] = ()
    ) -> tuple[StoredArtifact, ...]:
        """See `ProcessRegistry.artifacts`."""
        found = self._read(process_id, self._artifacts)
        return tuple(one for one in found if not kinds or one.kind in kinds)

    def newest_artifacts(
        self, kinds: Sequence[ArtifactKind], *, limit: int = 100, before: str = ""
    ) -> tuple[tuple[StoredArtifact, ...], str]:
        """See `ProcessRegistry.newest_artifacts`."""
        place = ArtifactPlace.read(before) if before else None
        documents = [document for document in self._all() if document.parts.artifacts]
        found = [
            artifact
            for of_process in self._backend.in_parallel(documents, self._artifacts_of)
            for artifact in of_process
            if (not kinds or artifact.kind in kinds)
            and (not place or ArtifactPlace.of(artifact) < place)
        ]
        found.sort(key=ArtifactPlace.of, reverse=True)
        if len(found) <= limit:
            return tuple(found), ""
        return tuple(found[:limit]), ArtifactPlace.of(found[limit - 1]).cursor

    def close(self) -> None:
        """See `ProcessRegistry.close`; the store is its owner's to close."""

    def sweep(self) -> int:
        """See `Sweepable.sweep`: rows of processes that don't run, and that aren't named.

        Whoever has written such an object may have been about to name it, and be asleep. So the
        document is replaced by an equal one first: after that, only what was read from the new one
        can be written, and what it doesn't name is never named.
        """
        stored: dict[str, set[str]] = {}
        for info in self._backend.list(keys.process_parts()):
            if process_id := keys.process_of_part(info.key):
                stored.setdefault(process_id, set()).add(info.key)
        listing = list_documents(self._backend)
        swept = 0
        for process_id in sorted(stored.keys() & listing.keys()):
            document = self._documents.listed(process_id, listing[process_id])
            runs = document.record.status is Status.RUNNING  # then its owner may be writing
            if not runs and not stored[process_id] <= document.parts.keys:
                document = self._update(process_id, Edit(as_it_is, renews=True))
                gone = stored[process_id] - document.parts.keys
                self._backend.discard(*sorted(gone))
                swept += len(gone)
        return swept

    def changes_since(self, cursor: str = "", *, limit: int = CHANGES_PER_PAGE) -> ChangePage:
        """See `ChangeFeed.changes_since`."""
        return self._feed.changes_since(cursor, limit)

    def take_next(
        self, kind: Kind, change: Change, *, exclude: Sequence[str] = ()
    ) -> ProcessRecord | None:
        """See `ProcessQueue.take_next`."""
        if self.paused():
            return None

        def take(record: ProcessRecord) -> ProcessRecord:
            if record.status is not Status.PENDING:
                raise _Taken
            return change(record)

        for waiting in self._queue(kind):
            if waiting.id not in exclude:
                try:
                    return self.change(waiting.id, take)
                except _Taken:  # another worker was faster
                    continue
        return None

    def pending(self, kind: Kind | None = None, *, limit: int = 100) -> tuple[ProcessRecord, ...]:
        """See `ProcessQueue.pending`."""
        return tuple(self._queue(kind)[:limit])

    def positions(self, process_ids: Sequence[str]) -> dict[str, int]:
        """See `ProcessQueue.positions`."""
        wanted = set(process_ids)
        queue = self._queue(None) if wanted else []
        places: dict[str, int] = {}
        kinds = kind_names()
        for kind in kinds:
            of_kind = [record.id for record in queue if record.kind == kind][:MAX_PLACES]
            places |= {one: n for n, one in enumerate(of_kind, start=1) if one in wanted}
        return places

    def paused(self) -> bool:
        """See `ProcessQueue.paused`."""
        try:
            return self._backend.read(_Queue, keys.queue_paused()).is_paused
        except NotFound:
            return False

    def pause(self, paused: bool) -> None:
        """See `ProcessQueue.pause`."""
        self._backend.put(keys.queue_paused(), _Queue(is_paused=paused).model_dump_json().encode())

    def _load(self, process_id: str) -> Document:
        return self._documents.load(_checked(process_id))

    def _update(self, process_id: str, edit: Edit) -> Document:
        return self._documents.update(_checked(process_id), edit)

    def _read(self, process_id: str, read: Callable[[Parts], Result]) -> Result:
        """Read some of a process's parts, again if they are replaced meanwhile."""
        for _ in range(TRIES):
            try:
                return read(self._load(process_id).parts)
            except PartGone:
                continue
        raise _damaged(process_id)

    def _artifacts(self, parts: Parts) -> tuple[StoredArtifact, ...]:
        return self._artifact_objects.read(parts.artifacts) if parts.artifacts else ()

    def _artifacts_of(self, document: Document) -> tuple[StoredArtifact, ...]:
        try:
            return self._artifacts(document.parts)
        except PartGone:
            return self.artifacts(document.record.id)

    def _with_artifacts(
        self, process_id: str, parts: Parts, artifacts: Sequence[StoredArtifact]
    ) -> Parts:
        rows = sorted(artifacts, key=lambda artifact: artifact.key)
        key = self._artifact_objects.write(process_id, rows) if rows else ""
        return parts.model_copy(update={"artifacts": key})

    def _at(
        self, places: Sequence[ProcessPlace], listing: Listing | None
    ) -> Iterator[ProcessRecord]:
        """Yield the records at these places of the timeline, leaving out what isn't there."""

        def read(place: ProcessPlace) -> ProcessRecord | None:
            try:
                if listing is None or place.id not in listing:
                    return self._documents.load(place.id).record
                return self._documents.listed(place.id, listing[place.id]).record
            except NotFound:
                return None  # whoever created it died before it was there

        for place, record in zip(places, self._backend.in_parallel(places, read), strict=True):
            if record is not None and ProcessPlace.of(record) == place:
                yield record

    def _all(self) -> tuple[Document, ...]:
        listing = list_documents(self._backend)
        return self._backend.in_parallel(
            list(listing.items()), lambda one: self._documents.listed(*one)
        )

    def _queue(self, kind: Kind | None) -> list[ProcessRecord]:
        waiting = (
            document.record
            for document in self._all()
            if document.record.status is Status.PENDING
            and (not kind or document.record.kind == kind)
        )
        return sorted(waiting, key=lambda one: (-one.priority, one.enqueued_at, one.id))


class _Queue(BaseModel):
    """What is known of the queue as a whole."""

    is_paused: bool


class _Taken(Exception):
    """A process that waited doesn't any more."""


def _by_owner(token: str, write: Callable[[Parts], Parts] | None) -> Edit:
    return Edit(lambda record: record.owned_by(token), write)


def _checked(process_id: str) -> str:
    if not is_process_id(process_id):
        raise no_such_process(process_id)
    return process_id


def _damaged(process_id: str) -> RegistryUnavailable:
    return RegistryUnavailable(
        f"what belongs to process {process_id} isn't where its record says",
        remedy="Check that nothing else deletes from the object store's folder `process-data`.",
    )
