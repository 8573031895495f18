"""Single rows of the tables: how a record becomes one, and is added, read and changed."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from sqlalchemy import Connection, Table, bindparam, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from loradash.domain.ids import is_process_id
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import RegistryUnavailable
from loradash.registry import tables
from loradash.registry.cursors import microseconds
from loradash.registry.registry import Change, no_such_process, process_exists
from loradash.registry.tables import processes

Model = TypeVar("Model", bound=BaseModel)


def add_record(connection: Connection, record: ProcessRecord) -> None:
    """Insert a record. Raises `ConflictingState` if its id exists."""
    row = inserting(connection, processes).on_conflict_do_nothing(processes.primary_key)
    counted = row.execution_options(preserve_rowcount=True)
    if not connection.execute(counted, columns(record)).rowcount:
        raise process_exists(record.id)
    _count(connection, {(record.kind, record.status): 1})


def load_record(
    connection: Connection, process_id: str, *, for_update: bool = False
) -> ProcessRecord:
    """Return a record. Raises `NotFound`.

    With ``for_update`` its row is locked until the transaction ends, also against deletion.
    """
    if is_process_id(process_id):  # not every text can be sent to a database
        query = select(processes.c.document).where(processes.c.id == process_id)
        if for_update:  # SQLite leaves it out: a transaction that writes has locked the file
            query = query.with_for_update(key_share=True)
        if document := connection.scalar(query):
            return parsed(ProcessRecord, document)
    raise no_such_process(process_id)


def change_record(
    connection: Connection, process_id: str, change: Change
) -> tuple[ProcessRecord, ProcessRecord]:
    """Replace a record by ``change(record)``; return the old one and the new one.

    It is locked between reading and writing.
    """
    old = load_record(connection, process_id, for_update=True)
    new = change(old)
    if new != old:
        connection.execute(
            update(processes).where(processes.c.id == process_id).values(columns(new))
        )
        if new.status is not old.status:
            _count(connection, {(old.kind, old.status): -1, (new.kind, new.status): 1})
    return old, new


def columns(record: ProcessRecord) -> dict[str, Any]:
    """Return the row of a record."""
    lease = record.lease if record.status is Status.RUNNING else None
    return {
        "id": record.id,
        "kind": record.kind,
        "status": record.status,
        "created_us": microseconds(record.created_at),
        "priority": record.priority,
        "enqueued_us": microseconds(record.enqueued_at),
        "lease_expires_us": microseconds(lease.expires_at) if lease else None,
        "document": record.model_dump_json(),
    }


def put_rows(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows in place of those with the same keys; each has all columns of the table."""
    if not rows:
        return
    statement = inserting(connection, table)
    others = {
        column.name: statement.excluded[column.name]
        for column in table.columns
        if not column.primary_key and column.name in rows[0]
    }
    connection.execute(statement.on_conflict_do_update(table.primary_key, set_=others), rows)


def inserting(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return an insert that can say what becomes of rows that are there already."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)


def delete_rows(connection: Connection, table: Table, keys: Sequence[dict[str, Any]]) -> None:
    """Delete the rows with these primary keys, as far as they are there."""
    if keys:
        same = (column == bindparam(column.name) for column in table.primary_key)
        connection.execute(delete(table).where(*same), keys)


def parsed(model: type[Model], document: str) -> Model:
    """Return the record of a row's document."""
    try:
        return model.model_validate_json(document)
    except ValidationError as error:
        raise RegistryUnavailable(
            f"the registry contains a {model.__name__} that can't be read",
            remedy="If a newer loradash wrote it, update this one.",
        ) from error


def count_anew(connection: Connection, kind: str, status: str, difference: int = 0) -> None:
    """Count the processes of a kind and status, and keep that; there was no row for them.

    If another program adds the row meanwhile, that is changed by ``difference``: it has been
    counted without what this transaction has written.
    """
    counts = tables.counts
    mine = (processes.c.kind == kind, processes.c.status == status)
    count = connection.scalar(select(func.count()).select_from(processes).where(*mine))
    row = inserting(connection, counts).values(kind=kind, status=status, count=count)
    connection.execute(
        row.on_conflict_do_update(counts.primary_key, set_={"count": counts.c.count + difference})
    )


def _count(connection: Connection, differences: Mapping[tuple[str, str], int]) -> None:
    """Keep count of what was just written, by kind and status.

    The rows are locked in one order in all programs: otherwise two changes in opposite directions
    would wait for each other.
    """
    counts = tables.counts
    for kind, status in sorted(differences):
        difference = differences[kind, status]
        updated = connection.execute(
            update(counts)
            .where(counts.c.kind == kind, counts.c.status == status)
            .values(count=counts.c.count + difference)
        )
        if not updated.rowcount:  # whoever made the database didn't know them
            count_anew(connection, kind, status, difference)
