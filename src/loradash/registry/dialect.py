"""What a registry needs to know of the database product that holds it."""

from typing import Protocol

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import SQLAlchemyError


class Dialect(Protocol):
    """The differences between database products that SQLAlchemy doesn't hide."""

    url_remedy: str
    """What a usable URL looks like."""

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
        """Copy the database before its first migration; return a sentence that says where to.

        The caller holds the schema's lock in another connection. Raises `RegistryUnavailable` if
        the copy can't be made or doesn't verify.
        """
        ...

    def reason(self, error: SQLAlchemyError) -> str:
        """Return the database's own message, without statements, parameters and passwords."""
        ...

    def remedy(self, error: SQLAlchemyError) -> str:
        """Return what a user can do about an error."""
        ...
