"""Processes and the queue as JSON, with the names that clients of the dashboard's protocol read."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from loradash.domain.generation import parse_generation_text
from loradash.domain.kinds import GENERATION, TRAINING
from loradash.domain.process import Status
from loradash.domain.yaml_text import load_mapping
from loradash.errors import LoradashError
from loradash.executors.state import EndpointState, SlotState
from loradash.services.processes.views import ProcessDetail, ProcessView, QueueView

Json = dict[str, Any]

WAITING_REASON = "_waiting_reason"
"""What follows a lane's name in the field that says why it waits."""


def process_json(view: ProcessView) -> Json:
    """Return a process; lengths of time are seconds, except for ``elapsed_ms``."""
    progress, error = view.progress, view.error
    return {
        "id": view.id,
        "process_id": view.id,
        "name": view.name,
        "type": view.kind,
        "status": str(view.status),
        "lost": view.is_lost,
        "phase": progress.phase,
        "phase_detail": progress.detail,
        "progress": view.percent,
        "step": progress.step,
        "total_steps": progress.total_steps,
        "loss": progress.loss,
        "learning_rate": progress.learning_rate,
        "steps_per_s": progress.steps_per_s,
        # The published client prints both as they are, and the device as "GPU" and its id.
        "eta": _whole(progress.eta_s) if view.status is Status.RUNNING else None,
        "elapsed_time": int(view.elapsed_s),
        "elapsed_ms": round(view.elapsed_s * 1000),
        "gpu_id": view.device if view.device not in ("", "cpu") else None,
        "device": view.device or None,
        "worker_id": view.worker,
        "created_at": _iso(view.created_at),
        "updated_at": _iso(view.updated_at),
        "started_at": _iso(view.started_at),
        "ended_at": _iso(view.ended_at),
        "attempt": view.attempt_count,
        "priority": view.priority,
        "queue_position": view.queue_position,
        "cancel_requested": view.cancel_requested_at is not None,
        "error": error.message if error else None,
        "error_message": error.message if error else None,
        "error_code": error.code if error else None,
        "error_problems": list(error.problems) if error else [],
        "remedy": error.remedy if error else None,
        "resumable": view.is_resumable,
        "output_path": view.output_prefix or None,
        "request_id": view.request_id or None,
        "origin": view.origin.model_dump(mode="json") if view.origin else None,
        "config": _short_config(view),
    }


def process_detail_json(view: ProcessDetail) -> Json:
    """Return a process with its whole config, its attempts and its results."""
    shown = process_json(view)
    shown["config"] = _config(view) or shown["config"]
    shown["attempts"] = [note.model_dump(mode="json") for note in view.attempts]
    shown["artifacts"] = [
        {
            "key": entry.key, "kind": entry.kind, "name": entry.name, "step": entry.step,
            "size": entry.size_bytes, "sha256": entry.sha256,
        }
        for entry in view.artifacts
    ]  # fmt: skip
    shown["warnings"] = list(view.warnings)
    return shown


def queue_json(queue: QueueView) -> Json:
    """Return the queue, and what runs where."""
    endpoint = queue.executor.endpoint
    return {
        "paused": queue.is_paused,
        "pending": queue.pending_count,
        "running": queue.running_count,
        "order": [
            {"id": one.id, "type": one.kind, "name": one.name, "priority": one.priority}
            for one in queue.waiting
        ],
        "slots": [slot_json(slot) for slot in queue.executor.slots],
        **({"endpoint": endpoint_json(endpoint)} if endpoint else {}),
        # Not "error", by which clients know a reply that is nothing but an error.
        "executor_error": queue.executor.error or None,
    }


def slot_json(slot: SlotState) -> Json:
    """Return what runs on a device, and why what waits for it is waiting."""
    shown: Json = {"slot": slot.name}
    for lane in slot.lanes:
        shown[lane.name] = lane.process_id
        if lane.waiting_reason:
            shown[f"{lane.name}{WAITING_REASON}"] = lane.waiting_reason
    return shown


def endpoint_json(endpoint: EndpointState) -> Json:
    """Return what is known of an endpoint."""
    shown: Json = {"id": endpoint.id}
    if endpoint.jobs is not None:
        shown["jobs"] = dict(endpoint.jobs)
    if endpoint.workers is not None:
        shown["workers"] = dict(endpoint.workers)
    if endpoint.waiting_reason:
        shown["waiting_reason"] = endpoint.waiting_reason
    return shown


def _config(view: ProcessDetail) -> Json | None:
    """The parsed config; None if it isn't shown or can't be read."""
    if view.config_text is None:
        return None
    try:
        document = load_mapping(view.config_text, "config")
        if view.kind == GENERATION.name and "job" not in document:
            request = parse_generation_text(view.config_text).model_dump()
            if request["engine"] is None:
                del request["engine"]  # the default, which clients that know one engine don't read
            return _as_generation_config(request)
    except LoradashError:
        return None
    return document


def _short_config(view: ProcessView) -> Json:
    """The parts of the config that lists show, in the shape of the whole one."""
    summary = view.summary
    if view.kind == GENERATION.name:
        return _as_generation_config({"name": view.name, **summary})
    if view.kind != TRAINING.name:
        return {"name": view.name, **summary}
    process = {
        "trigger_word": summary.get("trigger_word"),
        "model": {"name_or_path": summary.get("base_model")},
        "datasets": [{"folder_path": path} for path in summary.get("datasets", ())],
        "train": {"steps": summary.get("steps")},
    }
    return {"job": "extension", "config": {"name": view.name, "process": [process]}}


def _as_generation_config(request: Mapping[str, Any]) -> Json:
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


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else math.ceil(seconds)


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat(timespec="milliseconds") if moment else None
