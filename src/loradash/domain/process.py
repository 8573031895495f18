"""A process: one training or generation, its record, and the only ways in which that changes.

Each change is a function from a record to the next one. It checks that the change is allowed and
that whoever asks for it owns the process; a registry only has to apply it atomically. Nothing else
in loradash decides what a status may become.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from loradash.domain.engine_use import EngineUse
from loradash.domain.ids import ProcessId, is_process_id
from loradash.domain.kinds import Kind
from loradash.errors import ConflictingState, InvalidRequest, LeaseLost, WorkerLost

MIN_PRIORITY, MAX_PRIORITY = -10, 10
MAX_WARNINGS = 50
"""Distinct warnings that a record keeps; the last place then says that there are more."""
MAX_WARNING_CHARACTERS = 1000
_ATTEMPTS_KEPT = 20
_MORE_WARNINGS = "there are more warnings; they are in the log"


class Status(StrEnum):
    """Where a process stands. Three of them are ends; only a request to resume leaves those."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        """Whether nothing more happens by itself."""
        return self not in (Status.PENDING, Status.RUNNING)


TRANSITIONS: Mapping[Status, frozenset[Status]] = MappingProxyType(
    {
        Status.PENDING: frozenset({Status.RUNNING, Status.FAILED, Status.CANCELLED}),
        Status.RUNNING: frozenset(
            {Status.PENDING, Status.COMPLETED, Status.FAILED, Status.CANCELLED}
        ),
        Status.FAILED: frozenset({Status.PENDING}),
        Status.CANCELLED: frozenset({Status.PENDING}),
        Status.COMPLETED: frozenset(),
    }
)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")


class Lease(_Frozen):
    """The exclusive ownership of a process, as long as its owner renews it.

    It has expired when one observer has seen it unchanged for ``length_s`` by its clock. Its times
    are those of the owner's clock, which says nothing to anybody else.
    """

    owner: str
    token: str
    expires_at: AwareDatetime = Field(description="by the owner's clock; decides nothing")
    length_s: float | None = Field(None, description="None: an older loradash wrote it")
    renewals: int = Field(0, description="how often it was renewed, so that each renewal shows")

    def worked_until(self, started_at: datetime, now: datetime) -> datetime:
        """Until when its owner has worked at most, by the clock that told when it started.

        That is ``now`` if it is between the last renewal and the end of the lease. The clock of
        whoever asks may be far from there: he isn't believed any further.
        """
        length = timedelta(seconds=self.length_s or 0.0)
        earliest = max(started_at, self.expires_at - length) if self.length_s else started_at
        return max(earliest, min(now, self.expires_at))


class Dispatch(_Frozen):
    """The job in another queue that is to bring a process to a worker."""

    job_id: str
    sent_at: AwareDatetime
    after_attempt: int = Field(description="number of attempts when it was sent")
    count: int = Field(1, description="jobs in a row that were sent without an attempt between")


class Problem(_Frozen):
    """Why a process failed: a stable code, a sentence, and what the user can do."""

    code: str
    message: str
    remedy: str = ""
    problems: tuple[str, ...] = ()
    resumable: bool = False


class AttemptNote(_Frozen):
    """One try of a process by one owner, for the record's story."""

    number: int
    owner: str
    device: str = ""
    started_at: AwareDatetime
    ended_at: AwareDatetime | None = None
    from_step: int = 0
    to_step: int = 0
    ending: Literal["", "completed", "failed", "cancelled", "released", "lost"] = ""


class Progress(_Frozen):
    """How far a process is: a training counts steps, a generation counts images."""

    phase: str = ""
    detail: str = ""
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    steps_per_s: float | None = None
    eta_s: float | None = None


class Origin(_Frozen):
    """What a training goes on from: another one's last checkpoint, or an adapter's weights."""

    kind: Literal["extends", "adapter"]
    process_id: str = Field("", description="of the training that made it; '' for another file")
    step: int = Field(0, description="steps that it had")
    name: str = Field("", description="the adapter, as it was named")
    sha256: str = Field("", description="of the adapter's file")


class ProcessRecord(_Frozen):
    """All that is known of a process except its metrics, log lines and artifacts.

    Fields that a newer loradash has added are kept, so that an older worker doesn't erase them.
    """

    model_config = ConfigDict(extra="allow")

    id: ProcessId
    kind: Kind
    name: str
    status: Status = Status.PENDING
    created_at: AwareDatetime
    enqueued_at: AwareDatetime
    updated_at: AwareDatetime
    started_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    priority: int = Field(0, ge=MIN_PRIORITY, le=MAX_PRIORITY)
    request_id: str = ""
    summary: Mapping[str, Any] = Field(
        default_factory=dict,
        description="what lists show of the config: base_model, trigger_word, adapters, ...",
    )
    progress: Progress = Progress()
    device: str = ""
    lease: Lease | None = None
    cancel_requested_at: AwareDatetime | None = None
    attempt_count: int = 0
    fruitless_attempts: int = Field(
        0, description="attempts in a row that were lost without getting further"
    )
    attempts: tuple[AttemptNote, ...] = Field((), description="the latest ones")
    worked_s: float = Field(0.0, description="seconds that ended attempts took")
    dispatch: Dispatch | None = None
    error: Problem | None = None
    output_prefix: str = Field("", description="where the results are, once completed")
    config_key: str = Field(
        "", description="the object with its config; '' is where earlier releases put it"
    )
    origin: Origin | None = Field(None, description="None: it began with fresh weights")
    warnings: tuple[str, ...] = Field(
        (), description="what the user should know of it, from its submission and all attempts"
    )
    engine: EngineUse = Field(
        EngineUse(),
        description="the one that was chosen, in the version that worked last; earlier releases "
        "wrote none and had only the built-in one",
    )

    @property
    def attempt(self) -> AttemptNote | None:
        """The latest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def was_taken_since_dispatch(self) -> bool:
        """Whether the job that was sent for it has brought it to a worker."""
        return self.dispatch is not None and self.attempt_count > self.dispatch.after_attempt

    def elapsed_s(self, now: datetime) -> float:
        """Seconds of work so far, over all attempts."""
        last = self.attempt
        if last is None or last.ended_at is not None:
            return self.worked_s
        until = self.lease.worked_until(last.started_at, now) if self.lease else now
        return self.worked_s + (until - last.started_at).total_seconds()

    def owned_by(self, token: str) -> "ProcessRecord":
        """Return the record. Raises `LeaseLost` unless ``token`` is that of its lease."""
        if self.status is not Status.RUNNING or self.lease is None or self.lease.token != token:
            raise LeaseLost(
                f"this worker no longer owns process {self.id} (it is {self.status})",
                remedy="Nothing to do: another worker has taken it over.",
            )
        return self


def taken(
    record: ProcessRecord, *, owner: str, token: str, now: datetime, lease_s: float, device: str
) -> ProcessRecord:
    """A worker takes a pending process: a new attempt begins. Raises `ConflictingState`."""
    number = record.attempt_count + 1
    note = AttemptNote(
        number=number, owner=owner, device=device, started_at=now,
        from_step=record.progress.step, to_step=record.progress.step,
    )  # fmt: skip
    return _moved(
        record,
        Status.RUNNING,
        now,
        lease=Lease(
            owner=owner, token=token, expires_at=now + timedelta(seconds=lease_s), length_s=lease_s
        ),
        attempt_count=number,
        attempts=(*record.attempts, note)[-_ATTEMPTS_KEPT:],
        started_at=record.started_at or now,
        ended_at=None,
        device=device,
        progress=record.progress.model_copy(
            update={"phase": "starting", "detail": "", "eta_s": None, "steps_per_s": None}
        ),
    )


def renewed(
    record: ProcessRecord,
    token: str,
    *,
    now: datetime,
    lease_s: float,
    progress: Progress | None = None,
    warnings: Iterable[str] = (),
) -> ProcessRecord:
    """The owner is alive, and reports its progress and new warnings. Raises `LeaseLost`."""
    lease = record.owned_by(token).lease
    assert lease is not None
    changes: dict[str, Any] = {
        "lease": lease.model_copy(
            update={
                "expires_at": now + timedelta(seconds=lease_s),
                "length_s": lease_s,
                "renewals": lease.renewals + 1,
            }
        )
    }
    if progress is not None and progress != record.progress:
        changes |= {"progress": progress, "updated_at": now}
    if (kept := merged_warnings(record.warnings, warnings)) != record.warnings:
        changes |= {"warnings": kept, "updated_at": now}
    return record.model_copy(update=changes)


def merged_warnings(warnings: Iterable[str], more: Iterable[str] = ()) -> tuple[str, ...]:
    """Return all warnings, each once and shortened, as many as a record keeps."""
    texts = (text[:MAX_WARNING_CHARACTERS] for text in (*warnings, *more))
    distinct = tuple(dict.fromkeys(texts))
    if len(distinct) <= MAX_WARNINGS:
        return distinct
    return (*distinct[: MAX_WARNINGS - 1], _MORE_WARNINGS)


def resumed_at(record: ProcessRecord, token: str, step: int, now: datetime) -> ProcessRecord:
    """The attempt goes on after ``step``: that is where it begins. Raises `LeaseLost`."""
    record = record.owned_by(token)
    note = record.attempts[-1].model_copy(update={"from_step": step, "to_step": step})
    progress = record.progress.model_copy(update={"step": step})
    return record.model_copy(
        update={"attempts": (*record.attempts[:-1], note), "progress": progress, "updated_at": now}
    )


def worked_by(record: ProcessRecord, token: str, engine: EngineUse) -> ProcessRecord:
    """The owner works with this version of the process's engine. Raises `LeaseLost`."""
    return record.owned_by(token).model_copy(update={"engine": engine})


def completed(
    record: ProcessRecord, token: str, *, now: datetime, output_prefix: str
) -> ProcessRecord:
    """The owner has verified and stored the results. Raises `LeaseLost`."""
    progress = record.owned_by(token).progress.model_copy(
        update={
            "phase": "", "detail": "", "eta_s": None,
            "step": record.progress.total_steps or record.progress.step,
        }
    )  # fmt: skip
    return _ended(
        record, Status.COMPLETED, "completed", now, progress=progress,
        output_prefix=output_prefix, error=None, cancel_requested_at=None,
    )  # fmt: skip


def failed(record: ProcessRecord, token: str, problem: Problem, now: datetime) -> ProcessRecord:
    """The owner reports the failure. Raises `LeaseLost`."""
    return _ended(record.owned_by(token), Status.FAILED, "failed", now, error=problem)


def cancelled(record: ProcessRecord, token: str, now: datetime) -> ProcessRecord:
    """The owner has ended the work on request. Raises `LeaseLost`."""
    return _ended(record.owned_by(token), Status.CANCELLED, "cancelled", now)


def released(record: ProcessRecord, token: str, now: datetime) -> ProcessRecord:
    """The owner gives the process back, to be continued: the worker shuts down. `LeaseLost`.

    A cancel that was asked for meanwhile is what happens.
    """
    if record.owned_by(token).cancel_requested_at:
        return cancelled(record, token, now)
    return _ended(record, Status.PENDING, "released", now)


def expired(
    record: ProcessRecord, *, now: datetime, max_attempts: int, owner_is_gone: bool
) -> ProcessRecord:
    """The owner is gone, if the caller knows that: queue the process again, or give it up.

    It is given up after ``max_attempts`` attempts in a row were lost without getting a step
    further than the one before, since it then probably kills its workers. A cancel that was asked
    for meanwhile is what happens. Returns the record as it is if its owner isn't gone. Nothing in
    a record tells that: a caller has watched its lease (`loradash.runtime.lease_watch`).
    """
    if record.status is not Status.RUNNING or not owner_is_gone:
        return record
    if record.cancel_requested_at:
        return _ended(record, Status.CANCELLED, "lost", now)
    last = record.attempts[-1]
    fruitless = 0 if record.progress.step > last.from_step else record.fruitless_attempts + 1
    if fruitless >= max_attempts:
        problem = Problem(
            code=WorkerLost.code,
            message=f"its worker was lost {fruitless} times in a row without any progress",
            remedy="Check its log and the machine's memory, then resume it.",
            resumable=True,
        )
        return _ended(
            record, Status.FAILED, "lost", now, error=problem, fruitless_attempts=fruitless
        )
    return _ended(record, Status.PENDING, "lost", now, fruitless_attempts=fruitless)


def cancel_requested(
    record: ProcessRecord, now: datetime, *, owner_is_gone: bool = False
) -> ProcessRecord:
    """Ask it to end: at once if it waits or its owner is lost, else by its owner.

    Whether the owner is gone is for the caller to know, as in `expired`. Asking twice changes
    nothing. Raises `ConflictingState` for a process that has ended otherwise.
    """
    if record.status is Status.CANCELLED:
        return record
    if record.status is Status.PENDING:
        return _moved(record, Status.CANCELLED, now, ended_at=now, cancel_requested_at=now)
    if record.status is Status.RUNNING and owner_is_gone:
        return _ended(record, Status.CANCELLED, "lost", now, cancel_requested_at=now)
    if record.status is Status.RUNNING:
        return record.model_copy(
            update={
                "cancel_requested_at": record.cancel_requested_at or now,
                "updated_at": now,
            }
        )
    raise ConflictingState(
        f"process {record.id} has already {'failed' if record.error else record.status}",
        remedy="Only waiting and running processes can be cancelled.",
    )


def requeued(record: ProcessRecord, now: datetime) -> ProcessRecord:
    """The user wants a failed or cancelled process to go on. Raises `ConflictingState`."""
    if record.status not in (Status.FAILED, Status.CANCELLED):
        raise ConflictingState(
            f"process {record.id} is {_already(record.status)}; nothing to resume",
            remedy="Failed and cancelled processes can be resumed.",
        )
    return _moved(
        record, Status.PENDING, now, enqueued_at=now, ended_at=None, error=None,
        cancel_requested_at=None, fruitless_attempts=0, dispatch=None,
    )  # fmt: skip


def dispatched(
    record: ProcessRecord, job_id: str, *, after_attempt: int, now: datetime
) -> ProcessRecord:
    """A job was sent that brings it to a worker; one that has ended meanwhile stays as it is.

    ``after_attempt`` is the number of its attempts before the job was sent: by now a worker may
    have taken it.
    """
    if record.status.is_end:
        return record
    before = record.dispatch
    in_a_row = before.count if before and before.after_attempt == after_attempt else 0
    dispatch = Dispatch(job_id=job_id, sent_at=now, after_attempt=after_attempt, count=in_a_row + 1)
    return record.model_copy(update={"dispatch": dispatch, "updated_at": now})


def recalled(record: ProcessRecord, job_id: str, now: datetime) -> ProcessRecord:
    """The job that was sent for it is to bring it nowhere; changes nothing if it already has."""
    dispatch = record.dispatch
    if record.status is not Status.PENDING or not dispatch or dispatch.job_id != job_id:
        return record
    return record.model_copy(update={"dispatch": None, "updated_at": now})


def given_up(record: ProcessRecord, problem: Problem, now: datetime) -> ProcessRecord:
    """No worker takes it: a waiting process fails. Raises `ConflictingState` unless it waits."""
    if record.status is not Status.PENDING:
        raise ConflictingState(
            f"process {record.id} is {record.status} and isn't waiting for a worker",
            remedy="Check its status.",
        )
    return _moved(record, Status.FAILED, now, ended_at=now, error=problem)


def reprioritized(record: ProcessRecord, priority: int, now: datetime) -> ProcessRecord:
    """Change the place in the queue. Raises `ConflictingState` unless it waits.

    Raises `InvalidRequest` for a priority outside of the range.
    """
    if not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        raise InvalidRequest(
            f"priority {priority} is out of range",
            remedy=f"Give one from {MIN_PRIORITY} to {MAX_PRIORITY}.",
        )
    if record.status is not Status.PENDING:
        raise ConflictingState(
            f"process {record.id} is {record.status} and isn't waiting in the queue",
            remedy="Only waiting processes have a priority.",
        )
    return record.model_copy(update={"priority": priority, "updated_at": now})


def renamed(record: ProcessRecord, name: str, now: datetime) -> ProcessRecord:
    """Change the name that is shown; files keep theirs. Raises `InvalidRequest`."""
    if not re.fullmatch(r"\w(?:[\w ._-]{0,98}[\w._-])?", name) or is_process_id(name):
        raise InvalidRequest(
            f"name {name[:100]!r} can't be used",
            remedy="Give 1 to 100 letters, digits, spaces, '.', '_' and '-', with a letter or "
            "digit first and no space last, and not the form of a process id.",
        )
    return record.model_copy(update={"name": name, "updated_at": now})


def _ended(
    record: ProcessRecord,
    status: Status,
    ending: Literal["completed", "failed", "cancelled", "released", "lost"],
    now: datetime,
    **changes: Any,
) -> ProcessRecord:
    """The running attempt is over."""
    last = record.attempts[-1]
    ended_at = now
    if ending == "lost" and record.lease:  # another observer says so, by another clock
        ended_at = record.lease.worked_until(last.started_at, now)
    note = last.model_copy(
        update={"ended_at": ended_at, "ending": ending, "to_step": record.progress.step}
    )
    progress = record.progress.model_copy(
        update={"phase": "", "detail": "", "eta_s": None, "steps_per_s": None}
    )
    return _moved(
        record,
        status,
        now,
        **{
            "lease": None,
            "attempts": (*record.attempts[:-1], note),
            # The owner's clock may have been set back meanwhile.
            "worked_s": record.worked_s + max(0.0, (ended_at - last.started_at).total_seconds()),
            "progress": progress,
            "ended_at": now if status.is_end else None,
            "fruitless_attempts": 0,
            **changes,
        },
    )


def _moved(record: ProcessRecord, status: Status, now: datetime, **changes: Any) -> ProcessRecord:
    if status not in TRANSITIONS[record.status]:
        raise _conflict(record, status)
    return record.model_copy(update={"status": status, "updated_at": now, **changes})


def _conflict(record: ProcessRecord, status: Status) -> ConflictingState:
    if status.is_end:
        what = f"is {_already(record.status)}; it can't be marked as {status}"
    elif record.status.is_end:
        what = f"is {_already(record.status)}; nothing to resume"
    else:
        what = f"is {_already(record.status)}; nothing to start"
    return ConflictingState(f"process {record.id} {what}", remedy="Check its status.")


def _already(status: Status) -> str:
    return "waiting in the queue" if status is Status.PENDING else f"already {status}"
