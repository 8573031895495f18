"""Processes and the queue as entry points see them. Times are aware, lengths are in seconds."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from loradash.domain.engine_use import EngineUse
from loradash.domain.kinds import Kind
from loradash.domain.process import (
    AttemptNote,
    Origin,
    Problem,
    ProcessRecord,
    Progress,
    Status,
)
from loradash.executors.state import ExecutorState
from loradash.registry.registry import StoredArtifact


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class ProcessView(_View):
    """A process as lists show it."""

    id: str
    kind: Kind
    engine: EngineUse
    name: str
    status: Status
    is_lost: bool = Field(description="running, but its worker is dead; it will be queued again")
    created_at: AwareDatetime
    updated_at: AwareDatetime
    started_at: AwareDatetime | None
    ended_at: AwareDatetime | None
    priority: int
    queue_position: int | None = Field(description="from 1; None unless it waits")
    progress: Progress
    percent: float = Field(description="0 to 100; 100 only if it is completed")
    elapsed_s: float = Field(description="of work so far, over all attempts")
    attempt_count: int
    device: str = Field(description="'' before the first attempt")
    worker: str | None = Field(description="who runs it: machine/pid/start time")
    cancel_requested_at: AwareDatetime | None
    error: Problem | None
    is_resumable: bool
    warnings: tuple[str, ...]
    output_prefix: str = Field(description="of the keys of its results; '' unless completed")
    request_id: str
    origin: Origin | None
    summary: Mapping[str, Any] = Field(
        description="the most wanted settings, as JSON: base_model, trigger_word, adapters, ..."
    )


class ProcessDetail(ProcessView):
    """A process with its whole config, its attempts and its results."""

    config_text: str | None = Field(
        description="as it was submitted; None if it is missing or too large to be shown"
    )
    attempts: tuple[AttemptNote, ...]
    artifacts: tuple[StoredArtifact, ...]


class ProcessPage(_View):
    """Some processes; ``next_cursor`` is '' after the last."""

    processes: tuple[ProcessView, ...]
    next_cursor: str


class QueuedProcess(_View):
    """A process that waits."""

    id: str
    kind: Kind
    name: str
    priority: int


class QueueView(_View):
    """What waits in which order, and what runs where."""

    is_paused: bool
    pending_count: int
    running_count: int
    waiting: tuple[QueuedProcess, ...] = Field(description="the first ones, in their order")
    executor: ExecutorState


def process_view(
    record: ProcessRecord,
    now: datetime,
    queue_position: int | None = None,
    *,
    owner_is_lost: bool = False,
) -> ProcessView:
    """Return a process as it is seen at a moment."""
    return ProcessView(**_fields(record, now, queue_position, owner_is_lost))


def process_detail(
    record: ProcessRecord,
    now: datetime,
    queue_position: int | None,
    *,
    owner_is_lost: bool,
    config_text: str | None,
    artifacts: tuple[StoredArtifact, ...],
) -> ProcessDetail:
    """Return a process with all that is known of it."""
    return ProcessDetail(
        **_fields(record, now, queue_position, owner_is_lost),
        config_text=config_text,
        attempts=record.attempts,
        artifacts=artifacts,
    )


def _fields(
    record: ProcessRecord, now: datetime, queue_position: int | None, owner_is_lost: bool
) -> dict[str, Any]:
    same = (
        "id", "kind", "engine", "name", "status", "created_at", "updated_at", "started_at",
        "ended_at", "priority", "progress", "attempt_count", "device", "cancel_requested_at",
        "error", "output_prefix", "request_id", "origin", "summary", "warnings",
    )  # fmt: skip
    return {
        **{name: getattr(record, name) for name in same},
        "is_lost": owner_is_lost,
        "queue_position": queue_position,
        "percent": percent(record),
        "elapsed_s": record.elapsed_s(now),
        "worker": record.lease.owner if record.lease else None,
        "is_resumable": bool(record.error and record.error.resumable)
        or record.status is Status.CANCELLED,
    }


def percent(record: ProcessRecord) -> float:
    """How much is done, 0 to 100; 100 only for what is completed."""
    if record.status is Status.COMPLETED:
        return 100.0
    total = record.progress.total_steps
    return min(99.9, round(100 * record.progress.step / total, 1)) if total else 0.0
