"""What is particular to PostgreSQL: connections, time limits, passing errors and their remedies.

A connection may be lost while its transaction commits, and then it isn't known whether it did. The
server can tell by the transaction's number, as long as it is the same server, or has the same
history: a standby that took over may have given the number to another transaction.
"""

import contextlib
import importlib.util
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, select, text
from sqlalchemy import exc as sqlalchemy_errors
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from loradash.errors import InvalidSettings

DRIVERS = ("postgresql", "postgresql+psycopg", "postgres")
CHANNEL = "loradash"
"""Where `pg_notify` announces changes; the payload is the id of a process."""

OLDEST_VERSION = (13, 0)
_SCHEMA_LOCK = 7305131  # any number that other programs of the same database don't use

_POOL_SIZE, _POOL_OVERFLOW = 5, 15
_RECYCLE_S = 1800
_CONNECT_TIMEOUT_S = 5
_MOST_LOCK_WAIT_S = 10.0
_STATEMENT_S = 30.0
_IDLE_IN_TRANSACTION_S = 30.0
_KEEPALIVE: Mapping[str, str | int] = MappingProxyType(
    {
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
    }
)

_PASSING_CLASSES = ("08", "57P")  # connection errors; a shutdown or a start of the server
_PASSING_STATES = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "55P03",  # lock_not_available: lock_timeout
        "25P03",  # idle_in_transaction_session_timeout
        "25006",  # read_only_sql_transaction: the server has become a standby
        "53300",  # too_many_connections
    }
)
_REMEDIES = {
    "28": "Check the user and password in DATABASE_URL, and the server's pg_hba.conf.",
    "3D000": "Create the database that DATABASE_URL names, with the encoding UTF8.",
    "42501": "Give the user of DATABASE_URL the right to create and use tables in its schema.",
    "42P07": "Another program's tables are in this schema: name a database of its own.",
    "42P01": "A table is missing: restore the database from a backup.",
    "53300": "The server has no connection left: raise max_connections, or use PgBouncer.",
    "53": "The server's disk or memory is full: free some space and retry.",
    "55P03": "Another program has held a lock for too long: end its transaction, or retry.",
    "57014": "A statement took too long: look at the load of the server, and retry.",
    "25006": "The server is a standby: name the primary in DATABASE_URL, or all hosts.",
    "XX": "The server reports damage: look at its log, and restore a backup.",
}
_REFUSALS = {
    "password authentication failed": "28",
    "no password supplied": "28",
    "pg_hba.conf": "28",
    "role ": "28",
    "database ": "3D000",
}
"""Where the server refuses a connection, libpq passes on only its sentence, without the code."""
_REFUSED = re.compile(
    r"FATAL: .*(?:authentication failed|no password supplied|pg_hba|does not exist)"
)
_UNREACHABLE = "Check that the server of DATABASE_URL runs and can be reached; then retry."
_OTHERWISE = "Look at the server's log; then retry."


class Commit(NamedTuple):
    """A transaction that writes, so that its outcome can be asked for later."""

    number: str
    history: str


class PostgresDialect:
    """See `loradash.registry.dialect.Dialect`."""

    url_remedy = "Give a URL like postgresql://user:password@host:5432/database."
    reading_options: Mapping[str, Any] = MappingProxyType({"isolation_level": "AUTOCOMMIT"})

    def open_engine(self, url: URL, wait_s: float) -> Engine:
        """See `Dialect.open_engine`.

        Of several hosts the one that can be written to is used. Statements aren't prepared on the
        server, so that PgBouncer may stand between.
        """
        if importlib.util.find_spec("psycopg") is None:
            raise InvalidSettings(
                "a PostgreSQL registry needs the psycopg package, which isn't installed",
                remedy="Install it: pip install 'loradash[postgres]'",
            )
        engine = create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args=_connect_arguments(url, wait_s),
            pool_size=_POOL_SIZE,
            max_overflow=_POOL_OVERFLOW,
            pool_timeout=wait_s,
            pool_recycle=_RECYCLE_S,
            pool_pre_ping=True,
            hide_parameters=True,  # errors are logged, and configs are private
        )
        event.listen(engine, "connect", _note_history)
        return engine

    def lock_schema(self, connection: Connection) -> None:
        """See `Dialect.lock_schema`."""
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(select(func.pg_advisory_xact_lock(_SCHEMA_LOCK)))

    def back_up(self, engine: Engine, version: int) -> str:
        """See `Dialect.back_up`: a client can't copy a server's database."""
        del engine, version
        return ""

    def announce(self, connection: Connection, process_id: str) -> None:
        """See `Dialect.announce`."""
        connection.execute(select(func.pg_notify(CHANNEL, process_id)))

    def about_to_commit(self, connection: Connection) -> Commit | None:
        """See `Dialect.about_to_commit`."""
        number = connection.scalar(text("SELECT pg_current_xact_id_if_assigned()::text"))
        history = connection.connection.info.get("history", "")
        return Commit(number, history) if number else None

    def is_committed(self, connection: Connection, commit: Commit) -> bool | None:
        """See `Dialect.is_committed`."""
        query = text("SELECT pg_xact_status(CAST(CAST(:number AS text) AS xid8))")
        try:
            status = connection.scalar(query, {"number": commit.number})
        except DBAPIError as error:
            if _state(error) == "22023":  # a number of the future: this server never had it
                return False
            raise
        if status == "aborted":
            return False
        history = connection.connection.info.get("history", "")
        is_known = status == "committed" and history and history == commit.history
        return True if is_known else None

    def is_passing(self, error: SQLAlchemyError) -> bool:
        """See `Dialect.is_passing`."""
        if isinstance(error, sqlalchemy_errors.TimeoutError):
            return False  # the pool has waited already
        state = _state(error)
        if state:
            return state.startswith(_PASSING_CLASSES) or state in _PASSING_STATES
        return _is_unreachable(error)

    def reason(self, error: SQLAlchemyError) -> str:
        """See `Dialect.reason`: the first line only, as others may show values of rows."""
        if isinstance(error, sqlalchemy_errors.TimeoutError):
            return "all connections of this program are in use"
        original = getattr(error, "orig", None)
        message = getattr(getattr(original, "diag", None), "message_primary", None)
        lines = str(message or original or type(error).__name__).strip().splitlines()
        return lines[0] if lines else type(error).__name__

    def remedy(self, error: SQLAlchemyError) -> str:
        """See `Dialect.remedy`."""
        state = _state(error)
        if not state:
            return _UNREACHABLE if _is_unreachable(error) else _OTHERWISE
        found = (remedy for prefix, remedy in _REMEDIES.items() if state.startswith(prefix))
        return next(found, _UNREACHABLE if state.startswith(_PASSING_CLASSES) else _OTHERWISE)


def _connect_arguments(url: URL, wait_s: float) -> dict[str, Any]:
    """Return psycopg's arguments; what the URL says itself comes first."""
    limits = {
        "lock_timeout": min(wait_s, _MOST_LOCK_WAIT_S),
        "statement_timeout": _STATEMENT_S,
        "idle_in_transaction_session_timeout": _IDLE_IN_TRANSACTION_S,
    }
    options = [f"-c {name}={round(seconds * 1000)}" for name, seconds in limits.items()]
    defaults = {
        "connect_timeout": _CONNECT_TIMEOUT_S,
        "application_name": "loradash",
        "target_session_attrs": "read-write",
        **_KEEPALIVE,
    }
    return {
        **{name: value for name, value in defaults.items() if name not in url.query},
        "client_encoding": "utf8",
        "prepare_threshold": None,
        "options": " ".join([*options, str(url.query.get("options", ""))]).strip(),
    }


def _state(error: SQLAlchemyError) -> str:
    original = getattr(error, "orig", None)
    if state := getattr(original, "sqlstate", None):
        return str(state)
    refusal = _REFUSED.search(str(original))
    return next((code for part, code in _REFUSALS.items() if refusal and part in refusal[0]), "")


def _is_unreachable(error: SQLAlchemyError) -> bool:
    """Whether there was no connection, or none any more."""
    is_lost = isinstance(error, DBAPIError) and error.connection_invalidated
    return is_lost or isinstance(error, sqlalchemy_errors.OperationalError)


def _note_history(connection: Any, record: Any) -> None:
    """Keep which line of history the server is on; '' where it can't be asked."""
    record.info["history"] = ""
    query = (
        "SELECT system_identifier::text || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8)"
        " FROM pg_control_system()"
    )
    was_autocommit = connection.autocommit
    connection.autocommit = True
    with contextlib.suppress(Exception):  # services that imitate PostgreSQL don't have all of it
        record.info["history"] = connection.execute(query).fetchone()[0]
    connection.autocommit = was_autocommit
