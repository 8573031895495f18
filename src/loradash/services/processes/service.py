"""Processes as clients see them: list, look at one, cancel, resume, and the queue."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from loradash.domain import process as changes
from loradash.domain.generation import parse_generation_text
from loradash.domain.process import Kind, ProcessRecord, Status
from loradash.domain.yaml_text import load_mapping
from loradash.errors import ConflictingState, LoradashError
from loradash.executors.executor import Executor
from loradash.executors.local import QueuedRegistry
from loradash.registry.cursors import ProcessPlace
from loradash.registry.registry import LogLine, Metric
from loradash.runtime.lease_watch import LeaseWatch
from loradash.services.processes.submission import stored_config
from loradash.storage.store import ObjectStore

MAX_CONFIG_SHOWN = 200_000
# Of an overview, at most; the rest, and what these leave, is for the newest of all.
_PARTS = {Status.RUNNING: 0.5, Status.PENDING: 0.25, Status.COMPLETED: 0.125}
_NEVER = 2**31  # a user who asks for it isn't counted as a lost worker


class ProcessService:
    """What can be asked of processes, and done to them, from any entry point."""

    def __init__(
        self, registry: QueuedRegistry, store: ObjectStore, executor: Executor, watch: LeaseWatch
    ) -> None:
        """Take what a server has seen of leases; a watch that never looks knows dead owners."""
        self._registry = registry
        self._store = store
        self._executor = executor
        self._watch = watch

    def page(
        self, *, kind: Kind | None, statuses: Sequence[Status], limit: int, cursor: str
    ) -> tuple[list[dict[str, Any]], str]:
        """Return processes as clients read them, the newest first, and the next page's cursor."""
        page = self._registry.page(kind=kind, statuses=statuses, limit=limit, cursor=cursor)
        return self._views(page.records), page.next_cursor

    def overview(
        self, limit: int, counts: Mapping[Status, int]
    ) -> tuple[list[dict[str, Any]], str]:
        """Return processes for a client that shows one page only: the active ones first.

        Old ones that run or wait take the places of newer ones that have ended, and so do the
        newest completed ones where there would be few of them: a page of failed ones hides neither.
        ``counts`` says how many there are. The cursor is that of what is older than the page; of
        what follows it, the old ones that are here already come once more.
        """
        page = self._registry.page(limit=limit)
        newest = page.records
        if not page.next_cursor:
            return self._views(_active_first(newest)), ""
        wanted: dict[str, ProcessRecord] = {}
        for status, part in _PARTS.items():
            here = [record for record in newest if record.status is status]
            there = min(counts[status], int(limit * part))
            if len(here) < there:
                here = list(self._registry.page(statuses=[status], limit=there).records)
            wanted |= {record.id: record for record in here[:there]}
        kept = len(newest)
        while len(wanted.keys() | {record.id for record in newest[:kept]}) > limit:
            kept -= 1
        cursor = ProcessPlace.of(newest[kept - 1]).cursor
        shown = {record.id: record for record in newest[:kept]} | wanted
        ordered = sorted(shown.values(), key=ProcessPlace.of, reverse=True)
        return self._views(_active_first(ordered)), cursor

    def _views(self, records: Sequence[ProcessRecord]) -> list[dict[str, Any]]:
        waiting = [record.id for record in records if record.status is Status.PENDING]
        positions = self._registry.positions(waiting) if waiting else {}
        now = datetime.now(UTC)
        return [
            view(
                record, now, positions.get(record.id), owner_is_lost=self._watch.is_lost(record)
            )
            for record in records
        ]  # fmt: skip

    def get(self, process_id: str) -> dict[str, Any]:
        """Return one process, with its whole config and its attempts. Raises `NotFound`."""
        record = self._registry.get(process_id)
        waiting = record.status is Status.PENDING
        position = self._registry.positions([process_id]).get(process_id) if waiting else None
        shown = view(record, datetime.now(UTC), position, owner_is_lost=self._watch.is_lost(record))
        shown["config"] = self._config(record) or shown["config"]
        shown["attempts"] = [note.model_dump(mode="json") for note in record.attempts]
        shown["artifacts"] = [
            {
                "key": entry.key, "kind": entry.kind, "name": entry.name, "step": entry.step,
                "size": entry.size_bytes, "sha256": entry.sha256,
            }
            for entry in self._registry.artifacts(process_id)
        ]  # fmt: skip
        return shown

    def log(self, process_id: str, after: int, limit: int) -> tuple[LogLine, ...]:
        """Return log lines by number. Raises `NotFound`."""
        self._registry.get(process_id)
        return self._registry.log(process_id, after=after, limit=limit)

    def metrics(self, process_id: str, after_step: int, limit: int) -> tuple[Metric, ...]:
        """Return measurements by step. Raises `NotFound`."""
        self._registry.get(process_id)
        return self._registry.metrics(process_id, after_step=after_step, limit=limit)

    def cancel(self, process_id: str) -> ProcessRecord:
        """Ask for a process's end; one that waits has ended at once.

        Raises `NotFound` and `ConflictingState`.
        """

        def change(record: ProcessRecord) -> ProcessRecord:
            return changes.cancel_requested(
                record, datetime.now(UTC), owner_is_gone=self._watch.is_lost(record)
            )

        record = self._registry.change(process_id, change)
        self._executor.cancelled(record)
        return record

    def resume(self, process_id: str) -> ProcessRecord:
        """Queue a failed, cancelled or lost process again.

        Raises `NotFound` and `ConflictingState`.
        """

        def change(record: ProcessRecord) -> ProcessRecord:
            now = datetime.now(UTC)
            if self._watch.is_lost(record):
                return changes.expired(record, now=now, max_attempts=_NEVER, owner_is_gone=True)
            return changes.requeued(record, now)

        record = self._registry.change(process_id, change)
        self._executor.submitted(process_id)
        return record

    def reprioritize(self, process_id: str, priority: int) -> ProcessRecord:
        """Change a waiting process's place. Raises `NotFound`, `ConflictingState`."""
        return self._registry.change(
            process_id,
            lambda record: changes.reprioritized(record, priority, datetime.now(UTC)),
        )

    def rename(self, process_id: str, name: str) -> ProcessRecord:
        """Change the name that lists show. Raises `NotFound` and `InvalidRequest`."""
        return self._registry.change(
            process_id, lambda record: changes.renamed(record, name, datetime.now(UTC))
        )

    def purge_queue(self) -> int:
        """Cancel everything that waits; return how many it was."""
        removed = 0
        while waiting := self._registry.pending(limit=100):
            for record in waiting:
                try:
                    ended = self.cancel(record.id)
                except ConflictingState:
                    continue
                removed += ended.status is Status.CANCELLED
        return removed

    def queue(self) -> dict[str, Any]:
        """What waits in which order, what runs where, and whether the queue is paused."""
        waiting = self._registry.pending(limit=100)
        counts = self._registry.counts()
        return {
            "paused": self._registry.paused(),
            "pending": sum(n for (_, status), n in counts.items() if status is Status.PENDING),
            "running": sum(n for (_, status), n in counts.items() if status is Status.RUNNING),
            "order": [
                {"id": one.id, "type": one.kind, "name": one.name, "priority": one.priority}
                for one in waiting
            ],
            **self._executor.state(),
        }

    def counts(self) -> dict[Status, int]:
        """How many processes of each status there are."""
        totals = dict.fromkeys(Status, 0)
        for (_, status), number in self._registry.counts().items():
            totals[status] += number
        return totals

    def pause(self, paused: bool) -> None:
        """Stop or go on starting processes."""
        self._registry.pause(paused)
        self._executor.submitted("")

    def _config(self, record: ProcessRecord) -> dict[str, Any] | None:
        """The parsed config; None for one that is too large to be shown with everything else."""
        try:
            text = stored_config(self._store, record)
            if len(text) > MAX_CONFIG_SHOWN:
                return None
            if record.kind == "generation":
                document = load_mapping(text, "config")
                if "job" not in document:
                    return _as_generation_config(parse_generation_text(text).model_dump())
                return document
            return load_mapping(text, "config")
        except (LoradashError, UnicodeDecodeError):
            return None


def _active_first(records: Iterable[ProcessRecord]) -> list[ProcessRecord]:
    """Those that run, those that wait, and the others; the order of each kind stays."""
    rank = {Status.RUNNING: 0, Status.PENDING: 1}
    return sorted(records, key=lambda record: rank.get(record.status, 2))


def view(
    record: ProcessRecord,
    now: datetime,
    position: int | None = None,
    *,
    owner_is_lost: bool = False,
) -> dict[str, Any]:
    """A process with the names that clients of the dashboard's protocol read; times in seconds."""
    progress, error, elapsed_s = record.progress, record.error, record.elapsed_s(now)
    return {
        "id": record.id,
        "process_id": record.id,
        "name": record.name,
        "type": record.kind,
        "status": str(record.status),
        "lost": owner_is_lost,
        "phase": progress.phase,
        "phase_detail": progress.detail,
        "progress": percent(record),
        "step": progress.step,
        "total_steps": progress.total_steps,
        "loss": progress.loss,
        "learning_rate": progress.learning_rate,
        "steps_per_s": progress.steps_per_s,
        # The published client prints both as they are, and the device as "GPU" and its id.
        "eta": _whole(progress.eta_s) if record.status is Status.RUNNING else None,
        "elapsed_time": int(elapsed_s),
        "elapsed_ms": round(elapsed_s * 1000),
        "gpu_id": record.device if record.device not in ("", "cpu") else None,
        "device": record.device or None,
        "worker_id": record.lease.owner if record.lease else None,
        "created_at": _iso(record.created_at),
        "updated_at": _iso(record.updated_at),
        "started_at": _iso(record.started_at),
        "ended_at": _iso(record.ended_at),
        "attempt": record.attempt_count,
        "priority": record.priority,
        "queue_position": position,
        "cancel_requested": record.cancel_requested_at is not None,
        "error": error.message if error else None,
        "error_message": error.message if error else None,
        "error_code": error.code if error else None,
        "error_problems": list(error.problems) if error else [],
        "remedy": error.remedy if error else None,
        "resumable": bool(error and error.resumable) or record.status is Status.CANCELLED,
        "output_path": record.output_prefix or None,
        "request_id": record.request_id or None,
        "origin": record.origin.model_dump(mode="json") if record.origin else None,
        "config": _short_config(record),
    }


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else math.ceil(seconds)


def percent(record: ProcessRecord) -> float:
    """How much is done, 0 to 100; 100 only for what is completed."""
    if record.status is Status.COMPLETED:
        return 100.0
    total = record.progress.total_steps
    return min(99.9, round(100 * record.progress.step / total, 1)) if total else 0.0


def _short_config(record: ProcessRecord) -> dict[str, Any]:
    """The parts of the config that lists show, in the shape of the whole one."""
    summary = record.summary
    if record.kind == "generation":
        return _as_generation_config({"name": record.name, **summary})
    process = {
        "trigger_word": summary.get("trigger_word"),
        "model": {"name_or_path": summary.get("base_model")},
        "datasets": [{"folder_path": path} for path in summary.get("datasets", ())],
        "train": {"steps": summary.get("steps")},
    }
    return {"job": "extension", "config": {"name": record.name, "process": [process]}}


def _as_generation_config(request: dict[str, Any]) -> dict[str, Any]:
    """A generation in ai-toolkit's shape, where clients look for the adapter's path."""
    adapters = list(request.get("adapters") or ())
    first = adapters[0] if adapters else {}
    prompts = request.get("prompts")
    generate = {
        key: value for key, value in request.items() if key not in ("base_model", "prompt", "name")
    }
    generate["prompts"] = list(prompts) if isinstance(prompts, tuple) else [request.get("prompt")]
    model = {
        "name_or_path": request.get("base_model"),
        "lora_path": first.get("path"),
        "lora_scale": first.get("weight"),
    }
    process = {"type": "to_folder", "model": model, "generate": {**generate, "adapters": adapters}}
    return {"job": "generate", "config": {"name": request.get("name"), "process": [process]}}


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds") if moment else None
