"""The port of the registry: records, and what belongs to them by the page.

A registry applies the changes of `loradash.domain.process` atomically and decides nothing itself.
What an owner appends (metrics, log lines, artifacts) is guarded by its lease token, so that a
worker that was given up can't write any more.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import AwareDatetime, BaseModel, ConfigDict

from loradash.domain.artifacts import ArtifactKind
from loradash.domain.kinds import Kind
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import ConflictingState, NotFound

Change = Callable[[ProcessRecord], ProcessRecord]


MAX_PLACES = 1000


def as_it_is(record: ProcessRecord) -> ProcessRecord:
    """The change that changes nothing."""
    return record


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")


class Metric(_Row):
    """The measurements of one optimizer update. One row per step: a later attempt replaces it."""

    step: int
    attempt: int
    time: AwareDatetime
    loss: float
    learning_rate: float
    grad_norm: float | None = None
    steps_per_s: float | None = None


class LogLine(_Row):
    """One line of a process's log; ``number`` counts from 1 without gaps."""

    number: int
    attempt: int
    time: AwareDatetime
    source: Literal["loradash", "engine"]
    text: str


class NewLine(NamedTuple):
    """A line to append; the registry numbers it."""

    attempt: int
    time: datetime
    source: Literal["loradash", "engine"]
    text: str


class StoredArtifact(_Row):
    """A file of a process that is in the object store, verified when it was put there."""

    process_id: str
    key: str
    kind: str
    """One of `ArtifactKind`, or what a newer loradash has stored."""
    name: str
    size_bytes: int
    sha256: str
    created_at: AwareDatetime
    step: int | None = None
    index: int | None = None


class ProcessPage(NamedTuple):
    """Some processes, and where the next page begins ('' after the last)."""

    records: tuple[ProcessRecord, ...]
    next_cursor: str


class ProcessRegistry(Protocol):
    """Records by process id. Unknown ids raise `NotFound`. Thread-safe.

    Limits are positive. No statuses, or no kinds, stand for all of them.
    """

    def create(self, record: ProcessRecord, *, contested: bool = False) -> ProcessRecord:
        """Add a new record. Raises `ConflictingState` if the id exists.

        ``contested`` says that others may create the same id at this moment, since it isn't made of
        chance: only then does a registry without conditional writes take the time to agree.
        """
        ...

    def get(self, process_id: str) -> ProcessRecord:
        """Return a record."""
        ...

    def change(self, process_id: str, change: Change) -> ProcessRecord:
        """Replace a record by ``change(record)``, as one atomic step; return the new record.

        What ``change`` raises is raised, and then nothing is written. It may be called more than
        once and must have no effects. A change that returns an equal record writes nothing.
        """
        ...

    def page(
        self,
        *,
        kind: Kind | None = None,
        statuses: Sequence[Status] = (),
        limit: int = 50,
        cursor: str = "",
    ) -> ProcessPage:
        """Return a page, the newest first. Raises `InvalidRequest` for a cursor that isn't ours."""
        ...

    def counts(self) -> dict[tuple[Kind, Status], int]:
        """Return how many processes of each kind and status there are, zeros included."""
        ...

    def running(self) -> tuple[ProcessRecord, ...]:
        """Return all running processes, by id; there are about as many as workers."""
        ...

    def append_metrics(self, process_id: str, token: str, rows: Sequence[Metric]) -> None:
        """Add rows, replacing those of the same step. Raises `LeaseLost`."""
        ...

    def forget_metrics(self, process_id: str, token: str, after_step: int) -> None:
        """Drop rows of later steps: an attempt goes on before them. Raises `LeaseLost`."""
        ...

    def metrics(
        self, process_id: str, *, after_step: int = 0, limit: int = 1000
    ) -> tuple[Metric, ...]:
        """Return rows of later steps than ``after_step``, by step."""
        ...

    def append_log(self, process_id: str, token: str, lines: Sequence[NewLine]) -> None:
        """Add lines. Raises `LeaseLost`."""
        ...

    def log(
        self, process_id: str, *, after: int = 0, limit: int = 1000, newest: bool = False
    ) -> tuple[LogLine, ...]:
        """Return lines after that number, in order: the first ones, or the last if ``newest``."""
        ...

    def put_artifacts(
        self, token: str, entries: Sequence[StoredArtifact], *, replaces: Sequence[str] = ()
    ) -> None:
        """Add artifacts of one process, in place of those with these and with their own keys.

        All of it is one atomic step. Raises `LeaseLost`, and has then changed nothing.
        """
        ...

    def drop_artifacts(
        self, process_id: str, keys: Sequence[str], *, guard: Change = as_it_is
    ) -> None:
        """Forget artifacts; keys that aren't there are ignored.

        ``guard`` is asked about the record in the same atomic step; what it raises is raised, and
        nothing is forgotten then.
        """
        ...

    def artifacts(
        self, process_id: str, kinds: Sequence[ArtifactKind] = ()
    ) -> tuple[StoredArtifact, ...]:
        """Return a process's artifacts, by key."""
        ...

    def newest_artifacts(
        self, kinds: Sequence[ArtifactKind], *, limit: int = 100, before: str = ""
    ) -> tuple[tuple[StoredArtifact, ...], str]:
        """Return artifacts of all processes, the newest first, and the cursor of the next page.

        Raises `InvalidRequest` for a cursor that isn't ours.
        """
        ...

    def close(self) -> None:
        """Close connections."""
        ...


class ProcessQueue(Protocol):
    """An ability of registries that can order: what waits, in which order, and whether it may go.

    The order is by priority, the higher first, then by the time of entry, then by id.
    """

    def take_next(
        self, kind: Kind, change: Change, *, exclude: Sequence[str] = ()
    ) -> ProcessRecord | None:
        """Apply ``change`` to the first pending process of this kind, as one atomic step.

        Return the new record; None if there is none, or while the queue is paused.
        """
        ...

    def pending(self, kind: Kind | None = None, *, limit: int = 100) -> tuple[ProcessRecord, ...]:
        """Return what waits, in order."""
        ...

    def positions(self, process_ids: Sequence[str]) -> dict[str, int]:
        """Return the place of each waiting process among those of its kind, counted from 1.

        Those behind the first `MAX_PLACES` are left out: counting them would take ever longer.
        """
        ...

    def paused(self) -> bool:
        """Whether nothing may be started. Survives restarts."""
        ...

    def pause(self, paused: bool) -> None:
        """Stop or go on starting processes; those that run aren't touched."""
        ...


@runtime_checkable
class Sweepable(Protocol):
    """An ability of registries that others write to without a transaction: they leave things."""

    def sweep(self) -> int:
        """Delete what writers that died have left, and no record names; return how much it was."""
        ...


@runtime_checkable
class Notifies(Protocol):
    """An ability of registries that announce changes to other programs as they happen.

    An announcement is a hint: it may get lost, so whoever waits for one polls besides.
    """

    def wait_for_change(self, timeout_s: float) -> bool:
        """Wait until a process was created, or its status or a request to cancel it changed.

        Return False after ``timeout_s`` without an announcement, and after `close`. True may also
        mean that some may have been missed. One thread at a time may wait.
        """
        ...


def no_such_process(process_id: str) -> NotFound:
    """Return the error for an id that no process has."""
    return NotFound(
        f"there is no process {process_id!r}", remedy="`loradash processes` shows what is there."
    )


def process_exists(process_id: str) -> ConflictingState:
    """Return the error for an id that a process has already."""
    return ConflictingState(f"process {process_id} exists already", remedy="Use another id.")
