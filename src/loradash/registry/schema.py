"""The version of a database's schema: how it is created, checked and migrated."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import structlog
from sqlalchemy import Connection, Engine, insert, inspect, select, update

from loradash.errors import RegistryUnavailable
from loradash.registry import tables
from loradash.registry.dialect import Dialect
from loradash.registry.migrations import FIRST_VERSION, MIGRATIONS, Migration

Result = TypeVar("Result")

log = structlog.get_logger("loradash.registry")

SCHEMA_VERSION = FIRST_VERSION + len(MIGRATIONS)
"""The version that this loradash creates, and migrates older databases to."""

_VERSION, _USABLE_SINCE = "schema_version", "schema_usable_since"


class Schema(NamedTuple):
    """What a database says of its schema."""

    version: int
    usable_since: int
    """The oldest version whose programs can work with it."""


class _Database(Protocol):
    """The part of `loradash.registry.database.Database` that is needed here."""

    name: str
    dialect: Dialect
    engine: Engine

    def read(self, work: Callable[[Connection], Result]) -> Result: ...

    def write(self, work: Callable[[Connection], Result]) -> Result: ...


def prepare(database: _Database, migrations: Sequence[Migration]) -> None:
    """Create the schema, or bring an older one up to date after a backup.

    Several programs may do so at once. A migration that fails leaves the old schema. Raises
    `RegistryUnavailable` for one that is too new.
    """
    newest = FIRST_VERSION + len(migrations)
    found = database.read(stored)
    if found is None:
        found = database.write(lambda connection: _create(connection, database.dialect))
    if found.version < newest:
        found = database.write(lambda connection: _migrate(connection, database, migrations))
    if found.usable_since > newest:
        raise RegistryUnavailable(
            f"registry {database.name} was made by a newer loradash: its schema is "
            f"{found.version} and this one knows {newest}",
            remedy="Update loradash, or use another registry.",
        )


def stored(connection: Connection) -> Schema | None:
    """Return what a database says of its schema; None if it has none."""
    if not inspect(connection).has_table(tables.state.name):
        return None
    names = tables.state.c.name
    query = select(names, tables.state.c.value).where(names.in_((_VERSION, _USABLE_SINCE)))
    found = {row.name: row.value for row in connection.execute(query)}
    if _VERSION not in found:
        return None
    return Schema(found[_VERSION], found.get(_USABLE_SINCE, found[_VERSION]))


def _create(connection: Connection, dialect: Dialect) -> Schema:
    dialect.lock_schema(connection)
    if found := stored(connection):  # another program has just created it
        return found
    # A table of that name that isn't ours has to fail now and not at the first query.
    tables.metadata.create_all(connection, checkfirst=False)
    schema = Schema(SCHEMA_VERSION, _usable_since(MIGRATIONS))
    rows = {_VERSION: schema.version, _USABLE_SINCE: schema.usable_since, tables.PAUSED_NAME: 0}
    connection.execute(
        insert(tables.state), [{"name": name, "value": value} for name, value in rows.items()]
    )
    return schema


def _migrate(
    connection: Connection, database: _Database, migrations: Sequence[Migration]
) -> Schema:
    database.dialect.lock_schema(connection)
    found = stored(connection)
    assert found is not None
    newest = FIRST_VERSION + len(migrations)
    if found.version >= newest:  # another program has just done it
        return found
    if backup := database.dialect.back_up(database.engine, found.version):
        log.info("registry_backed_up", registry=database.name, version=found.version, path=backup)
    else:
        log.warning(
            "registry_not_backed_up",
            registry=database.name,
            version=found.version,
            reason="only its operator can copy this database, with pg_dump for example",
        )
    for migration in migrations:
        if migration.version > found.version:
            migration.apply(connection)
    schema = Schema(newest, _usable_since(migrations))
    _note(connection, _VERSION, schema.version)
    _note(connection, _USABLE_SINCE, schema.usable_since)
    log.info(
        "registry_migrated", registry=database.name, from_version=found.version, to_version=newest
    )
    return schema


def _usable_since(migrations: Sequence[Migration]) -> int:
    return max((one.usable_since for one in migrations), default=FIRST_VERSION)


def _note(connection: Connection, name: str, value: int) -> None:
    state = tables.state
    changed = connection.execute(update(state).where(state.c.name == name).values(value=value))
    if not changed.rowcount:
        connection.execute(insert(state).values(name=name, value=value))
