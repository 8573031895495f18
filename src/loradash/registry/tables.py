"""The tables of a registry in an SQL database, for any dialect.

A change of them needs a migration: see `loradash.registry.migrations`.
Each row holds its record as a JSON document, so a new field needs no migration; columns are only
what is searched or sorted by. Times in columns are microseconds since 1970.
"""

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    Text,
    bindparam,
    select,
    tuple_,
    union_all,
)

metadata = MetaData()

Code = String().with_variant(String(collation="C"), "postgresql")
"""Text that is compared byte by byte, as cursors are: a server's language would sort otherwise."""

state = Table(
    "registry_state",
    metadata,
    Column("name", Code, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
"""Single values: the versions of `loradash.registry.schema`, and PAUSED_NAME."""

PAUSED_NAME = "queue_paused"

processes = Table(
    "processes",
    metadata,
    Column("id", Code, primary_key=True),
    Column("kind", Code, nullable=False),
    Column("status", Code, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("enqueued_us", BigInteger, nullable=False),
    Column("lease_expires_us", BigInteger),
    Column("document", Text, nullable=False),
)
Index(
    "processes_newest",
    processes.c.kind, processes.c.status, processes.c.created_us, processes.c.id,
)  # fmt: skip
Index(
    "processes_queue",
    processes.c.status, processes.c.kind, processes.c.priority.desc(), processes.c.enqueued_us,
    processes.c.id,
)  # fmt: skip
Index("processes_lapsed", processes.c.lease_expires_us, processes.c.id)

counts = Table(
    "process_counts",
    metadata,
    Column("kind", Code, primary_key=True),
    Column("status", Code, primary_key=True),
    Column("count", BigInteger, nullable=False),
)
"""How many processes there are, kept with each write: counting them would take ever longer."""

process_changes = Table(
    "process_changes",
    metadata,
    Column("process_id", Code, ForeignKey(processes.c.id), primary_key=True),
    Column("changed", BigInteger, nullable=False),
    Column("record", BigInteger, nullable=False, server_default="0"),
    Column("metrics", BigInteger, nullable=False, server_default="0"),
    Column("log", BigInteger, nullable=False, server_default="0"),
    Column("artifacts", BigInteger, nullable=False, server_default="0"),
)
"""The numbers of a process's last changes, of all and of each part.

They are apart from the records since they change often: a document isn't copied for a log line.
"""
Index("process_changes_newest", process_changes.c.changed)

metrics = Table(
    "metrics",
    metadata,
    Column("process_id", Code, ForeignKey(processes.c.id), primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("document", Text, nullable=False),
)

log_lines = Table(
    "log_lines",
    metadata,
    Column("process_id", Code, ForeignKey(processes.c.id), primary_key=True),
    Column("number", BigInteger, primary_key=True),
    Column("document", Text, nullable=False),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("process_id", Code, ForeignKey(processes.c.id), primary_key=True),
    Column("key", Code, primary_key=True),
    Column("kind", Code, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
)
Index(
    "artifacts_newest",
    artifacts.c.kind, artifacts.c.created_us, artifacts.c.process_id, artifacts.c.key,
)  # fmt: skip


@lru_cache(maxsize=256)
def newest_first(
    table: Table,
    columns: tuple[str, ...],
    groups: tuple[tuple[str, ...], ...],
    is_later_page: bool,
) -> Select[Any]:
    """Return a query for the newest documents of all groups together, by time and primary key.

    A group is the rows that have its values in ``columns``: one range of an index, of which no more
    than ``limit`` entries are read. So the query costs the same however many rows there are, and
    however rare those are that it finds. Building it costs more than running it, so it is kept. Its
    parameters are ``limit`` and, for a later page, the place before it by the columns' names.
    """
    order = (table.c.created_us, *table.primary_key)
    limit = bindparam("limit", type_=Integer)
    place = [bindparam(column.name, type_=column.type) for column in order]
    older = [tuple_(*order) < tuple_(*place)] if is_later_page else []
    branches = [
        select(*order)
        .where(*(table.c[name] == value for name, value in zip(columns, group, strict=True)))
        .where(*older)
        .order_by(*(column.desc() for column in order))
        .limit(limit)
        .subquery()
        for group in groups
    ]
    found = union_all(*(select(branch) for branch in branches)).subquery()
    newest = select(found).order_by(*(column.desc() for column in found.c)).limit(limit).subquery()
    keys = select(*(newest.c[column.name] for column in table.primary_key))
    return (
        select(table.c.document)
        .where(tuple_(*table.primary_key).in_(keys))
        .order_by(*(column.desc() for column in order))
    )
