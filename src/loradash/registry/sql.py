"""The registry in an SQL database, for several programs and threads at once."""

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any

from sqlalchemy import Connection, Select, delete, func, select

from loradash.domain.artifacts import ARTIFACT_KINDS, ArtifactKind
from loradash.domain.ids import is_process_id
from loradash.domain.kinds import Kind, kind_names
from loradash.domain.process import ProcessRecord, Status
from loradash.registry.change_feed import CHANGES_PER_PAGE, ChangePage, Part
from loradash.registry.change_rows import changes_page, note_change
from loradash.registry.cursors import ArtifactPlace, ProcessPlace, microseconds
from loradash.registry.database import Database
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
)
from loradash.registry.rows import (
    Model,
    add_record,
    change_record,
    delete_rows,
    load_record,
    parsed,
    put_rows,
)
from loradash.registry.tables import (
    PAUSED_NAME,
    artifacts,
    counts,
    log_lines,
    metrics,
    newest_first,
    processes,
    state,
)
from loradash.storage.store import check_key

_LARGEST = 2**63 - 1  # of a BIGINT
_QUEUE_ORDER = (processes.c.priority.desc(), processes.c.enqueued_us, processes.c.id)


class SqlRegistry:
    """Records and what belongs to them in the database that a SQLAlchemy URL names.

    Each write is one transaction, which locks what it reads and waits up to ``wait_s`` for others.
    Each read is one statement and waits for no lock. Besides what the ports say, any method may
    raise `RegistryUnavailable`.
    """

    poll_interval_s = 0.33

    def __init__(self, url: str, *, wait_s: float = 30.0) -> None:
        self._database = Database(url, wait_s)

    def create(self, record: ProcessRecord, *, contested: bool = False) -> ProcessRecord:
        """See `ProcessRegistry.create`."""
        del contested  # of two only one succeeds in any case

        def add(connection: Connection) -> None:
            add_record(connection, record)
            note_change(connection, record.id, Part.RECORD)
            self._database.dialect.announce(connection, record.id)

        self._database.write(add)
        return record

    def get(self, process_id: str) -> ProcessRecord:
        """See `ProcessRegistry.get`."""
        return self._database.read(lambda connection: load_record(connection, process_id))

    def change(self, process_id: str, change: Change) -> ProcessRecord:
        """See `ProcessRegistry.change`."""
        return self._database.write(lambda connection: self._change(connection, process_id, change))

    def page(
        self,
        *,
        kind: Kind | None = None,
        statuses: Sequence[Status] = (),
        limit: int = 50,
        cursor: str = "",
    ) -> ProcessPage:
        """See `ProcessRegistry.page`."""
        groups = product([kind] if kind else kind_names(), sorted(set(statuses or Status)))
        query = newest_first(processes, ("kind", "status"), tuple(groups), bool(cursor))
        place = ProcessPlace.read(cursor)._asdict() if cursor else {}
        found = self._all(ProcessRecord, query, limit=limit + 1, **place)
        if len(found) <= limit:
            return ProcessPage(found, "")
        return ProcessPage(found[:limit], ProcessPlace.of(found[limit - 1]).cursor)

    def counts(self) -> dict[tuple[Kind, Status], int]:
        """See `ProcessRegistry.counts`."""
        rows = self._database.read(lambda connection: connection.execute(select(counts)).all())
        found = {(kind, status): count for kind, status, count in rows}
        kinds = kind_names()  # a newer loradash may have counted others
        return {(kind, status): found.get((kind, status), 0) for kind in kinds for status in Status}

    def running(self) -> tuple[ProcessRecord, ...]:
        """See `ProcessRegistry.running`."""
        query = select(processes.c.document).where(
            processes.c.status == Status.RUNNING, processes.c.kind.in_(kind_names())
        )
        return self._all(ProcessRecord, query.order_by(processes.c.id))

    def append_metrics(self, process_id: str, token: str, rows: Sequence[Metric]) -> None:
        """See `ProcessRegistry.append_metrics`."""
        latest = {row.step: row.model_dump_json() for row in rows}
        added = [
            {"process_id": process_id, "step": step, "document": document}
            for step, document in latest.items()
        ]

        def put(connection: Connection) -> None:
            put_rows(connection, metrics, added)

        self._as_owner(process_id, token, Part.METRICS, put)

    def forget_metrics(self, process_id: str, token: str, after_step: int) -> None:
        """See `ProcessRegistry.forget_metrics`."""
        later = delete(metrics).where(
            metrics.c.process_id == process_id, metrics.c.step > after_step
        )
        self._as_owner(
            process_id, token, Part.METRICS, lambda connection: connection.execute(later)
        )

    def metrics(
        self, process_id: str, *, after_step: int = 0, limit: int = 1000
    ) -> tuple[Metric, ...]:
        """See `ProcessRegistry.metrics`."""
        query = (
            select(metrics.c.document)
            .where(metrics.c.process_id == process_id, metrics.c.step > min(after_step, _LARGEST))
            .order_by(metrics.c.step)
            .limit(limit)
        )
        return self._belonging(Metric, process_id, query)

    def append_log(self, process_id: str, token: str, lines: Sequence[NewLine]) -> None:
        """See `ProcessRegistry.append_log`."""

        def append(connection: Connection) -> None:
            mine = log_lines.c.process_id == process_id
            last = connection.scalar(select(func.max(log_lines.c.number)).where(mine)) or 0
            rows = []
            for number, line in enumerate(lines, start=last + 1):
                document = LogLine(number=number, **line._asdict()).model_dump_json()
                rows.append({"process_id": process_id, "number": number, "document": document})
            put_rows(connection, log_lines, rows)

        self._as_owner(process_id, token, Part.LOG, append)

    def log(
        self, process_id: str, *, after: int = 0, limit: int = 1000, newest: bool = False
    ) -> tuple[LogLine, ...]:
        """See `ProcessRegistry.log`."""
        number = log_lines.c.number
        query = (
            select(log_lines.c.document)
            .where(log_lines.c.process_id == process_id, number > min(after, _LARGEST))
            .order_by(number.desc() if newest else number)
            .limit(limit)
        )
        found = self._belonging(LogLine, process_id, query)
        return found[::-1] if newest else found

    def put_artifacts(
        self, token: str, entries: Sequence[StoredArtifact], *, replaces: Sequence[str] = ()
    ) -> None:
        """See `ProcessRegistry.put_artifacts`."""
        process_id = entries[0].process_id
        rows = {
            check_key(artifact.key): {
                "process_id": process_id,
                "key": artifact.key,
                "kind": artifact.kind,
                "created_us": microseconds(artifact.created_at),
                "document": artifact.model_dump_json(),
            }
            for artifact in entries
        }

        def put(connection: Connection) -> None:
            delete_rows(connection, artifacts, _keyed(process_id, replaces))
            put_rows(connection, artifacts, list(rows.values()))

        self._as_owner(process_id, token, Part.ARTIFACTS, put)

    def drop_artifacts(
        self, process_id: str, keys: Sequence[str], *, guard: Change = as_it_is
    ) -> None:
        """See `ProcessRegistry.drop_artifacts`."""

        def drop(connection: Connection) -> None:
            guard(load_record(connection, process_id, for_update=True))
            delete_rows(connection, artifacts, _keyed(process_id, keys))
            note_change(connection, process_id, Part.ARTIFACTS)

        self._database.write(drop)

    def artifacts(
        self, process_id: str, kinds: Sequence[ArtifactKind] = ()
    ) -> tuple[StoredArtifact, ...]:
        """See `ProcessRegistry.artifacts`."""
        query = select(artifacts.c.document).where(artifacts.c.process_id == process_id)
        if kinds:
            query = query.where(artifacts.c.kind.in_(kinds))
        return self._belonging(StoredArtifact, process_id, query.order_by(artifacts.c.key))

    def newest_artifacts(
        self, kinds: Sequence[ArtifactKind], *, limit: int = 100, before: str = ""
    ) -> tuple[tuple[StoredArtifact, ...], str]:
        """See `ProcessRegistry.newest_artifacts`."""
        groups = tuple((kind,) for kind in sorted(set(kinds or ARTIFACT_KINDS)))
        query = newest_first(artifacts, ("kind",), groups, bool(before))
        place = ArtifactPlace.read(before)._asdict() if before else {}
        found = self._all(StoredArtifact, query, limit=limit + 1, **place)
        if len(found) <= limit:
            return found, ""
        return found[:limit], ArtifactPlace.of(found[limit - 1]).cursor

    def close(self) -> None:
        """See `ProcessRegistry.close`."""
        self._database.close()

    def take_next(
        self, kind: Kind, change: Change, *, exclude: Sequence[str] = ()
    ) -> ProcessRecord | None:
        """See `ProcessQueue.take_next`."""
        others = [one for one in exclude if is_process_id(one)]
        first = (
            select(processes.c.id)
            .where(processes.c.status == Status.PENDING, processes.c.kind == kind)
            .order_by(*_QUEUE_ORDER)
            .limit(1)
            .with_for_update(skip_locked=True, key_share=True)
        )
        if others:
            first = first.where(processes.c.id.not_in(others))

        def take(connection: Connection) -> ProcessRecord | None:
            if _is_paused(connection, until_commit=True):
                return None
            process_id = connection.scalar(first)
            return self._change(connection, process_id, change) if process_id else None

        return self._database.write(take)

    def pending(self, kind: Kind | None = None, *, limit: int = 100) -> tuple[ProcessRecord, ...]:
        """See `ProcessQueue.pending`."""
        query = select(processes.c.document).where(processes.c.status == Status.PENDING)
        query = query.where(processes.c.kind.in_([kind] if kind else kind_names()))
        return self._all(ProcessRecord, query.order_by(*_QUEUE_ORDER).limit(limit))

    def positions(self, process_ids: Sequence[str]) -> dict[str, int]:
        """See `ProcessQueue.positions`."""
        wanted = set(process_ids)
        places: dict[str, int] = {}
        for kind in kind_names() if wanted else ():
            queue = self._scalars(_waiting(kind))
            places |= {one: n for n, one in enumerate(queue, start=1) if one in wanted}
        return places

    def paused(self) -> bool:
        """See `ProcessQueue.paused`."""
        return self._database.read(_is_paused)

    def pause(self, paused: bool) -> None:
        """See `ProcessQueue.pause`."""
        row = {"name": PAUSED_NAME, "value": int(paused)}
        self._database.write(lambda connection: put_rows(connection, state, [row]))

    def changes_since(self, cursor: str = "", *, limit: int = CHANGES_PER_PAGE) -> ChangePage:
        """See `ChangeFeed.changes_since`."""
        return self._database.read(lambda connection: changes_page(connection, cursor, limit))

    def _change(self, connection: Connection, process_id: str, change: Change) -> ProcessRecord:
        old, new = change_record(connection, process_id, change)
        if new != old:
            note_change(connection, process_id, Part.RECORD)
        if (old.status, old.cancel_requested_at) != (new.status, new.cancel_requested_at):
            self._database.dialect.announce(connection, process_id)
        return new

    def _as_owner(
        self, process_id: str, token: str, part: Part, work: Callable[[Connection], object]
    ) -> None:
        """Change a part of a process as the lease's holder. Raises `LeaseLost` for others."""

        def owned(connection: Connection) -> None:
            load_record(connection, process_id, for_update=True).owned_by(token)
            work(connection)
            note_change(connection, process_id, part)

        self._database.write(owned)

    def _all(
        self, model: type[Model], query: Select[Any], **parameters: int | str
    ) -> tuple[Model, ...]:
        documents = self._scalars(query, **parameters)
        return tuple(parsed(model, document) for document in documents)

    def _scalars(self, query: Select[Any], **parameters: int | str) -> Sequence[Any]:
        return self._database.read(lambda connection: connection.scalars(query, parameters).all())

    def _belonging(
        self, model: type[Model], process_id: str, query: Select[Any]
    ) -> tuple[Model, ...]:
        """Return what belongs to a process. Raises `NotFound` if that doesn't exist."""
        if not is_process_id(process_id):
            raise no_such_process(process_id)
        found = self._all(model, query)
        if not found:
            self.get(process_id)
        return found


@cache
def _waiting(kind: Kind) -> Select[Any]:
    return (
        select(processes.c.id)
        .where(processes.c.status == Status.PENDING, processes.c.kind == kind)
        .order_by(*_QUEUE_ORDER)
        .limit(MAX_PLACES)
    )


def _is_paused(connection: Connection, *, until_commit: bool = False) -> bool:
    """Whether the queue is paused; with ``until_commit`` that is locked until then."""
    query = select(state.c.value).where(state.c.name == PAUSED_NAME)
    return bool(connection.scalar(query.with_for_update(read=True) if until_commit else query))


def _keyed(process_id: str, keys: Sequence[str]) -> list[dict[str, str]]:
    """Return the primary keys of artifacts, without those that no database can be asked for."""
    return [{"process_id": process_id, "key": key} for key in keys if _is_storable(key)]


def _is_storable(text: str) -> bool:
    """Whether a text has neither NUL, which PostgreSQL refuses, nor lone surrogates."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
