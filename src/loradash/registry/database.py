"""The database of an SQL registry: its connections, transactions and errors."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from sqlalchemy import URL, Connection, make_url, select
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from loradash.domain.kinds import kind_names
from loradash.domain.process import Status
from loradash.errors import InvalidSettings, RegistryUnavailable
from loradash.registry import schema, tables
from loradash.registry.dialect import Dialect
from loradash.registry.migrations import MIGRATIONS, Migration
from loradash.registry.rows import count_anew
from loradash.registry.sqlite import SqliteDialect

Result = TypeVar("Result")


class Database:
    """What a SQLAlchemy URL names, with its tables, which are created if they are missing.

    Whatever is wrong with it is raised as `RegistryUnavailable`.
    """

    def __init__(
        self, url: str, wait_s: float, migrations: Sequence[Migration] = MIGRATIONS
    ) -> None:
        parsed = _parsed(url)
        self.dialect = _dialect_of(parsed)
        self.name = parsed.render_as_string(hide_password=True)
        self.engine = self.dialect.open_engine(parsed, wait_s)
        self._writer = self.engine.execution_options(writes=True)
        try:
            schema.prepare(self, migrations)
            self._complete_counts()
        except BaseException:
            self.close()
            raise

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """Call ``work``, which reads with one statement; it sees what is committed."""
        with self._translated(), self.engine.connect() as connection:
            return work(connection)

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Call ``work`` in a transaction, commit it and return the result.

        What it raises is raised, and then nothing is written. It may be called more than once.
        """
        with self._translated(), self._writer.begin() as connection:
            return work(connection)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def _complete_counts(self) -> None:
        """Count what the loradash that made this database didn't know, and so didn't count."""
        every = {(kind, status) for kind in kind_names() for status in Status}

        def missing(connection: Connection) -> set[tuple[str, Status]]:
            rows = connection.execute(select(tables.counts.c.kind, tables.counts.c.status)).all()
            return every - {(kind, status) for kind, status in rows}

        def complete(connection: Connection) -> None:
            for kind, status in sorted(missing(connection)):  # unless another program was faster
                count_anew(connection, kind, status)

        if self.read(missing):
            self.write(complete)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            raise RegistryUnavailable(
                f"registry {self.name}: {self.dialect.reason(error)}",
                remedy=self.dialect.remedy(error),
            ) from error


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError as error:
        raise InvalidSettings(
            "the registry's URL is invalid", remedy=SqliteDialect.url_remedy
        ) from error


def _dialect_of(url: URL) -> Dialect:
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        return SqliteDialect()
    raise InvalidSettings(
        f"there is no registry for {url.drivername} databases", remedy=SqliteDialect.url_remedy
    )
