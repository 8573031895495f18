"""What is particular to SQLite: how its file is opened and backed up, and what its errors mean."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from loradash.errors import InvalidSettings, RegistryUnavailable

_REMEDIES = {
    "SQLITE_BUSY": "Another program is writing to it for too long: end that program, or retry.",
    "SQLITE_NOTADB": "The file is something else: name another file, or move it away.",
    "SQLITE_CORRUPT": "The file is damaged: put a backup in its place, or move it away.",
    "SQLITE_FULL": "The disk is full: free some space and retry.",
    "SQLITE_READONLY": "Give this user the right to write the file and its folder.",
    "SQLITE_CANTOPEN": "Give this user the right to write the file and its folder.",
    "SQLITE_PERM": "Give this user the right to write the file and its folder.",
    "SQLITE_IOERR": "Look at the disk: reading or writing it failed; a quota may be used up.",
}
_OTHERWISE = "Look at the file, and at whether this program may write it; then retry."


class SqliteDialect:
    """See `loradash.registry.dialect.Dialect`."""

    url_remedy = "Give a URL like sqlite:////folder/registry.sqlite3, without parameters."
    reading_options: Mapping[str, Any] = MappingProxyType({})

    def open_engine(self, url: URL, wait_s: float) -> Engine:
        """Return an engine for the file, which is created for this user alone if it is missing.

        loradash begins transactions itself (SQLAlchemy's recipe for sqlite3): those that write take
        the write lock at once, so that none fails halfway because another program was faster. For
        readers each statement is a transaction of its own and never waits for writers.
        """
        file = url.database or ":memory:"
        if url != URL.create(url.drivername, database=file) or file.startswith(
            (":memory:", "file:")
        ):
            raise InvalidSettings(
                "the registry's URL doesn't name a plain SQLite file", remedy=self.url_remedy
            )
        path = Path(file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except OSError as error:
            raise RegistryUnavailable(
                f"registry {path}: {error}",
                remedy="Name a file in a folder that can be written.",
            ) from error
        engine = create_engine(
            url,
            connect_args={"isolation_level": None, "timeout": wait_s},
            hide_parameters=True,  # errors are logged, and configs are private
            max_overflow=-1,  # threads wait for the file's lock and never for a connection
        )

        @event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, _: object) -> None:
            _use_write_ahead_log(connection, time.monotonic() + wait_s)
            connection.execute(
                "PRAGMA synchronous = FULL"
            )  # what was committed survives a power cut
            connection.execute("PRAGMA foreign_keys = ON")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            if connection.get_execution_options().get("writes"):
                connection.exec_driver_sql("BEGIN IMMEDIATE")

        return engine

    def lock_schema(self, connection: Connection) -> None:
        """See `Dialect.lock_schema`: a transaction that writes holds the whole file already."""

    def back_up(self, engine: Engine, version: int) -> str:
        """See `Dialect.back_up`: a copy beside the file, named by its version and the time."""
        path = Path(engine.url.database or "")
        time_text = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        copy = path.with_name(f"{path.name}.schema-{version}.{time_text}.backup")
        partial = copy.with_name(f"{copy.name}.partial")
        try:
            os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            with engine.connect() as connection:
                # Of the committed state; a file that is there and empty keeps its mode.
                connection.exec_driver_sql("VACUUM INTO ?", (str(partial),))
            _verify(partial)
            _flush(partial)
            partial.rename(copy)
            _flush(copy.parent)
        except (OSError, sqlite3.Error, SQLAlchemyError) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            reason = getattr(error, "orig", None) or error
            raise RegistryUnavailable(
                f"registry {path}: the backup before its migration failed: {reason}",
                remedy="Free some space beside the file and retry; nothing was changed.",
            ) from error
        return str(copy)

    def announce(self, connection: Connection, process_id: str) -> None:
        """See `Dialect.announce`: other programs poll the file."""

    def about_to_commit(self, connection: Connection) -> None:
        """See `Dialect.about_to_commit`: a commit of a file has an outcome."""

    def is_committed(self, connection: Connection, commit: None) -> None:
        """See `Dialect.is_committed`."""

    def is_passing(self, error: SQLAlchemyError) -> bool:
        """See `Dialect.is_passing`: SQLite has waited for other programs already."""
        del error
        return False

    def reason(self, error: SQLAlchemyError) -> str:
        """See `Dialect.reason`."""
        return str(getattr(error, "orig", None) or type(error).__name__)

    def remedy(self, error: SQLAlchemyError) -> str:
        """See `Dialect.remedy`."""
        name = getattr(getattr(error, "orig", None), "sqlite_errorname", "")
        return next((text for code, text in _REMEDIES.items() if name.startswith(code)), _OTHERWISE)


def _verify(path: Path) -> None:
    """Raise `sqlite3.DatabaseError` unless the file is a whole database."""
    with contextlib.closing(sqlite3.connect(path)) as file:
        found = [row[0] for row in file.execute("PRAGMA integrity_check")]
    if found != ["ok"]:
        raise sqlite3.DatabaseError(f"integrity check: {found[0]}")


def _flush(path: Path) -> None:
    """Have a file or folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _use_write_ahead_log(connection: sqlite3.Connection, deadline: float) -> None:
    """Let readers and a writer go on at once. The file keeps this mode.

    While two programs switch a new file, SQLite answers one of them that it is locked, without
    waiting for the timeout that it was given.
    """
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                raise
        time.sleep(0.01)
