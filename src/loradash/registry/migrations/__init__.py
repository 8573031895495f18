"""The changes of the database's schema since its first version.

To change the schema: change `loradash.registry.tables`, write a module ``vN_noun.py`` with one
function that makes the change to a database of version N - 1, and append a `Migration` to
`MIGRATIONS`. The function runs in one transaction together with the note of the new version. It
says what it does in literal DDL or with `add_column`, and never by the tables of `tables`, which
go on changing. Columns that are added have a server default, so that programs of the version
before can go on inserting rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import Column, Connection
from sqlalchemy.schema import CreateColumn

from loradash.registry.migrations.v2_changes import add_changes

FIRST_VERSION = 1


class Migration(NamedTuple):
    """One numbered change of the schema."""

    version: int
    """The schema's version after it."""
    usable_since: int
    """The oldest version whose programs can go on reading and writing afterwards: for additions
    the same as of the migration before, else this version."""
    apply: Callable[[Connection], None]


MIGRATIONS: tuple[Migration, ...] = (
    Migration(2, 2, add_changes),  # programs before it would leave out their changes
)
"""All of them, in order and without gaps."""


def add_column(connection: Connection, table: str, column: Column[Any]) -> None:
    """Add a column with a server default to an existing table."""
    definition = CreateColumn(column).compile(dialect=connection.dialect)
    connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {definition}")
