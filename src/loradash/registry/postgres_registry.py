"""The registry in a PostgreSQL database, which announces changes to the programs that listen."""

import contextlib
import threading
import time
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from loradash.registry.database import Database
from loradash.registry.postgres import CHANNEL
from loradash.registry.sql import SqlRegistry

log = structlog.get_logger("loradash.registry")

_RECONNECT_S = 1.0


class PostgresRegistry(SqlRegistry):
    """See `SqlRegistry`; it is `Notifies`, too.

    Besides the pool, the first wait opens one connection of its own, which stays.
    """

    def __init__(self, url: str, *, wait_s: float = 30.0) -> None:
        super().__init__(url, wait_s=wait_s)
        self._listener = _Listener(self._database)

    def wait_for_change(self, timeout_s: float) -> bool:
        """See `Notifies.wait_for_change`."""
        return self._listener.wait(timeout_s)

    def close(self) -> None:
        """See `ProcessRegistry.close`."""
        self._listener.close()
        super().close()


class _Listener:
    """A connection that listens, made anew when it was lost."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Any = None
        self._closed = threading.Event()
        self._lock = threading.Lock()

    def wait(self, timeout_s: float) -> bool:
        """Wait for an announcement; True too after a reconnection, as some may be missed."""
        deadline_s = time.monotonic() + timeout_s
        with self._lock:
            while not self._closed.is_set():
                try:
                    if self._connection is None:
                        self._connection = self._connected()
                        return True
                    return self._received(max(0.0, deadline_s - time.monotonic()))
                except Exception as error:  # of psycopg, which isn't imported for other databases
                    if not _is_of_database(error):
                        raise
                    log.info("registry_listener_lost", reason=type(error).__name__)
                    self._disconnect()
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or self._closed.wait(min(_RECONNECT_S, left_s)):
                    return False
        return False

    def close(self) -> None:
        """Stop listening; a wait that goes on ends within its time."""
        self._closed.set()
        with self._lock:
            self._disconnect()

    def _connected(self) -> Any:
        pooled = self._database.engine.raw_connection()
        connection: Any = pooled.driver_connection
        pooled.detach()  # it is none of those that transactions share
        try:
            connection.autocommit = True
            connection.execute(f"LISTEN {CHANNEL}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _received(self, timeout_s: float) -> bool:
        """Wait for one announcement, and take all that have come with it."""
        found = list(self._connection.notifies(timeout=timeout_s, stop_after=1))
        return bool(found)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # it may be broken already
                connection.close()


def _is_of_database(error: Exception) -> bool:
    return isinstance(error, SQLAlchemyError | OSError) or type(error).__module__.startswith(
        "psycopg"
    )
