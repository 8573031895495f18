"""The database of an SQL registry: its connections, transactions and errors."""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import structlog
from sqlalchemy import URL, Connection, make_url, select
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from loradash.domain.kinds import kind_names
from loradash.domain.process import Status
from loradash.errors import InvalidSettings, RegistryUnavailable
from loradash.registry import postgres, schema, tables
from loradash.registry.dialect import Dialect
from loradash.registry.migrations import MIGRATIONS, Migration
from loradash.registry.postgres import PostgresDialect
from loradash.registry.rows import count_anew
from loradash.registry.sqlite import SqliteDialect

Result = TypeVar("Result")

log = structlog.get_logger("loradash.registry")

_RETRY_READS_S, _RETRY_WRITES_S = 5.0, 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5
_DOWN_S = 5.0


class Database:
    """What a SQLAlchemy URL names, with its tables, which are created if they are missing.

    Whatever is wrong with it is raised as `RegistryUnavailable`. What passes, such as a deadlock or
    a server that restarts, is retried for some seconds before. Thread-safe.
    """

    def __init__(
        self, url: str, wait_s: float, migrations: Sequence[Migration] = MIGRATIONS
    ) -> None:
        parsed = _parsed(url)
        self.dialect = _dialect_of(parsed)
        self.name = parsed.render_as_string(hide_password=True)
        self._password = parsed.password
        self._wait_s = wait_s
        self._down_until_s = float("-inf")
        self.engine = self.dialect.open_engine(parsed, wait_s)
        self._reader = self.engine.execution_options(**self.dialect.reading_options)
        self._writer = self.engine.execution_options(writes=True)
        try:
            schema.prepare(self, migrations)
            self._complete_counts()
        except BaseException:
            self.close()
            raise

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """Call ``work``, which reads with one statement; it sees what is committed."""

        def attempt() -> Result:
            with self._reader.connect() as connection:
                return work(connection)

        return self._retrying(attempt, _RETRY_READS_S)

    def write(self, work: Callable[[Connection], Result]) -> Result:
        """Call ``work`` in a transaction, commit it and return the result.

        What it raises is raised, and then nothing is written. It may be called more than once,
        but what it writes is written once.
        """
        unsure: list[tuple[Any, Result]] = []

        def attempt() -> Result:
            if unsure:
                commit, result = unsure[0]
                if self._is_committed(commit):
                    return result
                unsure.clear()
            with self._writer.connect() as connection, connection.begin() as transaction:
                result = work(connection)
                commit = self.dialect.about_to_commit(connection)
                try:
                    transaction.commit()
                except SQLAlchemyError:
                    if commit is not None:
                        unsure.append((commit, result))
                    raise
                return result

        return self._retrying(attempt, _RETRY_WRITES_S)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def _retrying(self, attempt: Callable[[], Result], retry_s: float) -> Result:
        """Call ``attempt`` until it succeeds, fails for good, or the time is over.

        After a call has used up its time, others try once for a while: threads would pile up.
        """
        start_s = time.monotonic()
        is_down = start_s < self._down_until_s
        deadline_s = start_s + (0.0 if is_down else min(retry_s, self._wait_s))
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                result = attempt()
            except SQLAlchemyError as error:
                now_s = time.monotonic()
                is_passing = self.dialect.is_passing(error)
                if not is_passing or now_s >= deadline_s:
                    if is_passing:
                        self._down_until_s = now_s + _DOWN_S
                    raise self._translated(error) from error
                if pause_s == _FIRST_PAUSE_S:
                    log.info("registry_retries", reason=self._reason(error))
                time.sleep(random.uniform(0, pause_s))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._down_until_s = float("-inf")
                return result

    def _is_committed(self, commit: Any) -> bool:
        """Whether a transaction came through whose connection was lost while it committed."""
        with self._reader.connect() as connection:
            is_committed = self.dialect.is_committed(connection, commit)
        if is_committed is None:
            raise RegistryUnavailable(
                f"registry {self.name}: the connection was lost during a commit, and the server "
                "can't tell whether it happened",
                remedy="Look at the process, and do again what isn't shown there.",
            )
        return is_committed

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

    def _reason(self, error: SQLAlchemyError) -> str:
        reason = self.dialect.reason(error)
        return reason.replace(self._password, "***") if self._password else reason

    def _translated(self, error: SQLAlchemyError) -> RegistryUnavailable:
        return RegistryUnavailable(
            f"registry {self.name}: {self._reason(error)}", remedy=self.dialect.remedy(error)
        )


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError) as error:
        raise InvalidSettings("the registry's URL is invalid", remedy=_URL_REMEDY) from error


def _dialect_of(url: URL) -> Dialect:
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        return SqliteDialect()
    if url.drivername in postgres.DRIVERS:
        return PostgresDialect()
    raise InvalidSettings(
        f"there is no registry for {url.drivername} databases", remedy=_URL_REMEDY
    )


_URL_REMEDY = f"{SqliteDialect.url_remedy} Or: {PostgresDialect.url_remedy}"
