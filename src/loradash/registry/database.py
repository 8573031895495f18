"""The database of an SQL registry: its connections, transactions, errors and schema version."""

import contextlib
from collections.abc import Iterator
from typing import get_args

from sqlalchemy import Connection, insert, inspect, make_url, select
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from loradash.domain.process import Kind, Status
from loradash.errors import InvalidSettings, RegistryUnavailable
from loradash.registry import sqlite, tables
from loradash.registry.rows import count_anew


class Database:
    """What a SQLAlchemy URL names, with its tables, which are created if they are missing.

    Whatever is wrong with it is raised as `RegistryUnavailable`.
    """

    def __init__(self, url: str, wait_s: float) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise InvalidSettings(
                "the registry's URL is invalid", remedy=sqlite.URL_REMEDY
            ) from error
        if parsed.drivername not in ("sqlite", "sqlite+pysqlite"):
            raise InvalidSettings(
                f"there is no registry for {parsed.drivername} databases",
                remedy=sqlite.URL_REMEDY,
            )
        self.name = parsed.render_as_string(hide_password=True)
        self._engine = sqlite.open_engine(parsed, wait_s)
        self._writer = self._engine.execution_options(writes=True)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Lend a connection for one statement; it sees what is committed."""
        with self._translated(), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """Begin a transaction that nobody else writes in; commit it unless the block raises."""
        with self._translated(), self._writer.begin() as connection:
            yield connection

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    def _prepare(self) -> None:
        with self.reading() as connection:
            version = _schema_version(connection)
        if version is None:
            with self.writing() as connection:
                version = _schema_version(connection)
                if version is None:  # no other program has just created it
                    version = _create_schema(connection)
        if version > tables.SCHEMA_VERSION:
            raise RegistryUnavailable(
                f"registry {self.name} was made by a newer loradash: its schema is {version} and "
                f"this one knows {tables.SCHEMA_VERSION}",
                remedy="Update loradash, or use another registry.",
            )
        self._complete_counts()

    def _complete_counts(self) -> None:
        """Count what the loradash that made this database didn't know, and so didn't count."""
        every = {(kind, status) for kind in get_args(Kind) for status in Status}

        def missing(connection: Connection) -> set[tuple[str, Status]]:
            rows = connection.execute(select(tables.counts.c.kind, tables.counts.c.status)).all()
            return every - {(kind, status) for kind, status in rows}

        with self.reading() as connection:
            if not missing(connection):
                return
        with self.writing() as connection:
            for kind, status in missing(connection):  # unless another program was faster
                count_anew(connection, kind, status)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            # Not the whole text: that would show statements.
            reason = getattr(error, "orig", None) or type(error).__name__
            raise RegistryUnavailable(
                f"registry {self.name}: {reason}", remedy=sqlite.remedy(error)
            ) from error


def _schema_version(connection: Connection) -> int | None:
    if not inspect(connection).has_table(tables.state.name):
        return None
    query = select(tables.state.c.value).where(tables.state.c.name == tables.SCHEMA_VERSION_NAME)
    return connection.scalar(query)


def _create_schema(connection: Connection) -> int:
    # A table of that name that isn't ours has to fail now and not at the first query.
    tables.metadata.create_all(connection, checkfirst=False)
    connection.execute(
        insert(tables.state),
        [
            {"name": tables.SCHEMA_VERSION_NAME, "value": tables.SCHEMA_VERSION},
            {"name": tables.PAUSED_NAME, "value": 0},
        ],
    )
    return tables.SCHEMA_VERSION
