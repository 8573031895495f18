"""Which registry a database's URL stands for."""

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from loradash.registry import postgres
from loradash.registry.postgres_registry import PostgresRegistry
from loradash.registry.sql import SqlRegistry


def open_database_registry(url: str) -> SqlRegistry:
    """Return the registry in the database that a SQLAlchemy URL names.

    Raises `InvalidSettings` for a URL that can't be used, and `RegistryUnavailable`.
    """
    try:
        is_postgres = make_url(url).drivername in postgres.DRIVERS
    except (ArgumentError, ValueError):
        is_postgres = False  # the registry says what is wrong with it
    return PostgresRegistry(url) if is_postgres else SqlRegistry(url)
