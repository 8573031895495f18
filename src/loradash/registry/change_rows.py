"""The change feed of an SQL registry: each transaction numbers the process that it has changed.

The numbers are as large as the database can order its commits by, and the table has one row for
each process, so a poll reads one range of one index however many processes there are.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

from sqlalchemy import (
    BigInteger,
    Connection,
    Row,
    Select,
    Text,
    and_,
    cast,
    func,
    or_,
    select,
    text,
)
from sqlalchemy.sql.expression import ColumnElement

from loradash.registry.change_feed import ChangePage, Part, ProcessChange
from loradash.registry.rows import inserting
from loradash.registry.tables import process_changes

_NUMBER = re.compile(r"[0-9]{1,18}")
_SNAPSHOT = re.compile(r"([0-9]{1,18}):((?:[0-9]{1,18}(?:,[0-9]{1,18})*)?)")

_changed = process_changes.c.changed


class Numbering(Protocol):
    """How a database product numbers changes, so that a reader can continue after one."""

    @property
    def next_number(self) -> ColumnElement[int]:
        """The number of the present transaction's change."""
        ...

    def page(self, connection: Connection, cursor: str, limit: int) -> ChangePage:
        """See `ChangeFeed.changes_since`. Each statement sees what is committed by then."""
        ...


class SerialNumbers:
    """Counts changes where transactions that write run one after the other, as in SQLite."""

    next_number = select(func.coalesce(func.max(_changed), 0) + 1).scalar_subquery()

    def page(self, connection: Connection, cursor: str, limit: int) -> ChangePage:
        """See `Numbering.page`."""
        last = connection.scalar(select(func.max(_changed))) or 0
        after = int(cursor) if _NUMBER.fullmatch(cursor) else None
        if after is None or after > last:  # another database, or an earlier copy of this one
            return ChangePage((), str(last), must_reload=True)
        if after == last:
            return ChangePage((), cursor)
        query = _rows().where(_changed > after).order_by(_changed).limit(limit)
        rows = connection.execute(query).all()
        is_last = len(rows) < limit
        changes = _changes(rows, lambda number: number > after)
        return ChangePage(changes, str(rows[-1].changed), is_last)


class TransactionNumbers:
    """Takes PostgreSQL's transaction ids (64 bits, never used twice).

    Transactions end in another order than they begin, so a cursor is a snapshot: the first id that
    hadn't begun, and those below it that hadn't ended (``100:91,97``). What a later poll returns is
    exactly what that snapshot didn't see. A transaction that takes hours costs nothing: its id
    stays in the cursor, and is looked up by the index, too.
    """

    next_number = cast(cast(func.pg_current_xact_id(), Text), BigInteger)

    def page(self, connection: Connection, cursor: str, limit: int) -> ChangePage:
        """See `Numbering.page`.

        A database that was restored from a dump holds numbers of another server; those that this
        one hasn't reached are left out.
        """
        snapshot = connection.scalar(text("SELECT CAST(pg_current_snapshot() AS text)"))
        _, present_end, present_open = str(snapshot).split(":")
        present = f"{present_end}:{present_open}"
        match = _SNAPSHOT.fullmatch(cursor)
        if match is None or int(match[1]) > int(present_end):  # a copy that has lost commits
            return ChangePage((), present, must_reload=True)
        if cursor == present:
            return ChangePage((), cursor)
        end, unfinished = int(match[1]), frozenset(_ids(match[2]))

        def is_new(number: int) -> bool:
            return number >= end or number in unfinished

        query = (
            _rows()
            .where(
                or_(
                    and_(_changed >= end, _changed < int(present_end)),
                    _changed.in_(sorted(unfinished)),
                )
            )
            .order_by(_changed)
            .fetch(limit, with_ties=True)  # a transaction may have changed several processes
        )
        rows = connection.execute(query).all()
        changes = _changes(rows, is_new)
        if len(rows) < limit:
            return ChangePage(changes, present)
        last = rows[-1].changed
        still_open = ",".join(str(one) for one in _ids(present_open) if one <= last)
        return ChangePage(changes, f"{last + 1}:{still_open}", is_last=False)


_NUMBERINGS: dict[str, Numbering] = {
    "sqlite": SerialNumbers(),
    "postgresql": TransactionNumbers(),
}


def note_change(connection: Connection, process_id: str, part: Part) -> None:
    """Note in the same transaction that a part of a process has changed; its row is locked."""
    numbering = _NUMBERINGS[connection.dialect.name]
    number = numbering.next_number
    statement = inserting(connection, process_changes).values(
        {"process_id": process_id, "changed": number, part.value: number}
    )
    new = statement.excluded
    connection.execute(
        statement.on_conflict_do_update(
            process_changes.primary_key,
            set_={"changed": new.changed, part.value: new[part.value]},
        )
    )


def changes_page(connection: Connection, cursor: str, limit: int) -> ChangePage:
    """See `ChangeFeed.changes_since`."""
    return _NUMBERINGS[connection.dialect.name].page(connection, cursor, limit)


@cache
def _rows() -> Select[Any]:
    return select(
        process_changes.c.process_id, _changed, *(process_changes.c[part.value] for part in Part)
    )


def _changes(rows: Sequence[Row[Any]], is_new: Callable[[int], bool]) -> tuple[ProcessChange, ...]:
    return tuple(
        ProcessChange(
            row.process_id,
            frozenset(part for part in Part if is_new(row._mapping[part.value])),
        )
        for row in rows
    )


def _ids(text: str) -> list[int]:
    return [int(one) for one in text.split(",")] if text else []
