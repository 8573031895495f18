"""What a registry needs to know of the database product that holds it."""

from collections.abc import Mapping
from typing import Any, Protocol

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import SQLAlchemyError


class Dialect(Protocol):
    """The differences between database products that SQLAlchemy doesn't hide."""

    url_remedy: str
    """What a usable URL looks like."""
    reading_options: Mapping[str, Any]
    """Execution options with which each statement is a transaction of its own."""

    def open_engine(self, url: URL, wait_s: float) -> Engine:
        """Return an engine whose transactions wait up to ``wait_s`` for each other.

        Those with the execution option ``writes`` change something. Nothing has to be connected.
        Raises `InvalidSettings` for a URL that can't be used.
        """
        ...

    def lock_schema(self, connection: Connection) -> None:
        """Keep other programs from creating or migrating the schema until the transaction ends."""
        ...

    def back_up(self, engine: Engine, version: int) -> str:
        """Copy the database before its first migration; return where the copy is.

        The caller holds the schema's lock in another connection. '' says that only the operator
        can make a copy. Raises `RegistryUnavailable` if it can't be made or doesn't verify.
        """
        ...

    def announce(self, connection: Connection, process_id: str) -> None:
        """Wake other programs when this transaction has changed a process, if that is possible."""
        ...

    def about_to_commit(self, connection: Connection) -> Any:
        """Return a mark of the transaction by which `is_committed` finds it; None for none."""
        ...

    def is_committed(self, connection: Connection, commit: Any) -> bool | None:
        """Whether a transaction was committed, asked in another one; None if it isn't known."""
        ...

    def is_passing(self, error: SQLAlchemyError) -> bool:
        """Whether the same transaction may succeed if it is tried again soon."""
        ...

    def reason(self, error: SQLAlchemyError) -> str:
        """Return the database's own message, without statements, parameters and passwords."""
        ...

    def remedy(self, error: SQLAlchemyError) -> str:
        """Return what a user can do about an error."""
        ...
