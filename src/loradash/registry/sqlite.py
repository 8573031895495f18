"""What is particular to SQLite: how its file is opened, and what its errors mean."""

import contextlib
import os
import sqlite3
import time
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from loradash.errors import InvalidSettings, RegistryUnavailable

URL_REMEDY = "Give a URL like sqlite:////folder/registry.sqlite3, without parameters."

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


def open_engine(url: URL, wait_s: float) -> Engine:
    """Return an engine for the file, which is created for this user alone if it is missing.

    Transactions are begun by us (SQLAlchemy's recipe for sqlite3): those with the execution option
    ``writes`` take the write lock at once, so that none fails halfway because another program was
    faster. Without it, each statement is a transaction of its own and never waits for writers.
    """
    file = url.database or ":memory:"
    if url != URL.create(url.drivername, database=file) or file.startswith((":memory:", "file:")):
        raise InvalidSettings(
            "the registry's URL doesn't name a plain SQLite file", remedy=URL_REMEDY
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
        connection.execute("PRAGMA synchronous = FULL")  # what was committed survives a power cut
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get("writes"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _use_write_ahead_log(connection: sqlite3.Connection, deadline: float) -> None:
    """Let readers and a writer go on at once. The file keeps this mode.

    While two programs switch a new file, SQLite tells one of them that it is locked without waiting
    as long as it was told to.
    """
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def remedy(error: SQLAlchemyError) -> str:
    """Say what a user can do about an error of the database."""
    name = getattr(getattr(error, "orig", None), "sqlite_errorname", "")
    return next((text for code, text in _REMEDIES.items() if name.startswith(code)), _OTHERWISE)
