"""Jobs of RunPod's queue as JSON: as its API shows them, and as workers report them."""

from collections.abc import Mapping
from typing import Any

from loradash.domain.process import ProcessRecord, Status
from loradash.errors import TimedOut
from loradash.protocol.context import Reply
from loradash.protocol.process_json import process_detail_json, process_json
from loradash.services.processes.views import ProcessDetail, ProcessView, QueueView

Json = dict[str, Any]

_STATES = {
    Status.PENDING: "IN_QUEUE",
    Status.RUNNING: "IN_PROGRESS",
    Status.COMPLETED: "COMPLETED",
    Status.FAILED: "FAILED",
    Status.CANCELLED: "CANCELLED",
}
_STREAMED = (
    "process_id", "status", "phase", "step", "total_steps", "progress", "loss", "eta",
)  # fmt: skip
_PROGRESS = (
    "phase", "phase_detail", "progress", "step", "total_steps", "loss", "eta", "attempt",
)  # fmt: skip


def finished_job(job_id: str, reply: Reply) -> Json:
    """A job whose reply is there, as RunPod's SDK would report it.

    The SDK takes ``error`` out of a reply, and leaves out ``output`` if nothing remains.
    """
    if is_error(reply):
        return {"id": job_id, "status": "FAILED", "error": reply["error"]}
    return {"id": job_id, "status": "COMPLETED", "output": reply}


def is_error(reply: Reply) -> bool:
    """Whether a reply says that the request failed."""
    return "error" in reply and len(reply) == 1


def job_state(view: ProcessView) -> str:
    """Return the status that RunPod has for a process."""
    if view.error and view.error.code == TimedOut.code:
        return "TIMED_OUT"
    return _STATES[view.status]


def process_job(view: ProcessDetail) -> Json:
    """A process as a job of its own id; times in milliseconds."""
    shown: Json = {
        "id": view.id,
        "status": job_state(view),
        "executionTime": round(view.elapsed_s * 1000),
    }
    if view.started_at:
        shown["delayTime"] = round((view.started_at - view.created_at).total_seconds() * 1000)
    if view.worker:
        shown["workerId"] = view.worker
    if view.status is Status.FAILED:
        error = view.error
        parts = (error.message, error.remedy, *error.problems) if error else ()
        shown["error"] = "\n".join(text for text in parts if text)
    else:
        output = process_detail_json(view)
        del output["config"]
        shown["output"] = {**output, "data": {"process_id": view.id}}
    return shown


def stream_progress(view: ProcessView) -> Json:
    """What a stream of a process's output shows beside its log lines."""
    shown = process_json(view)
    return {name: shown[name] for name in _STREAMED}


def endpoint_health(counts: Mapping[Status, int], queue: QueueView, retried: int) -> Json:
    """Count jobs and workers; a slot's lane is a worker, or an endpoint has some."""
    slots = queue.executor.slots
    busy = sum(bool(lane.process_id) for slot in slots for lane in slot.lanes)
    idle = sum(len(slot.lanes) for slot in slots) - busy
    endpoint = queue.executor.endpoint
    return {
        "jobs": {
            "completed": counts[Status.COMPLETED],
            "failed": counts[Status.FAILED],
            "inProgress": counts[Status.RUNNING],
            "inQueue": counts[Status.PENDING],
            "retried": retried,
        },
        "workers": dict((endpoint and endpoint.workers) or {}) or {
            "idle": idle, "running": busy, "ready": idle, "initializing": 0, "throttled": 0,
            "unhealthy": 0,
        },
    }  # fmt: skip


def begun_job(process_id: str) -> Reply:
    """A worker's first reply to a job whose process is there already."""
    return {
        "process_id": process_id,
        "data": {"process_id": process_id},
        "message": f"process {process_id} is being worked on",
        "status": "started",
    }


def ended_job(record: ProcessRecord) -> Reply:
    """How a process stands, as a job's small output. One that failed has an ``error``."""
    reply: Reply = {
        "process_id": record.id,
        "data": {"process_id": record.id},
        "process_status": str(record.status),
        "type": record.kind,
        "name": record.name,
        "output_path": record.output_prefix or None,
        "attempts": record.attempt_count,
    }
    if record.status is Status.COMPLETED:
        message = f"{record.kind} {record.id} is completed"
        return {**reply, "status": "completed", "message": message}
    if not record.status.is_end:
        message = f"{record.kind} {record.id} is worked on by another worker"
        return {**reply, "status": "elsewhere", "message": message}
    if record.error:
        text = "\n".join(
            part for part in (record.error.message, record.error.remedy, *record.error.problems)
            if part
        )  # fmt: skip
        return {**reply, "error": text, "error_code": record.error.code}
    return {**reply, "error": f"process {record.id} was cancelled", "error_code": "cancelled"}


def job_progress(view: ProcessView) -> Reply:
    """What a job's progress shows of its process."""
    shown = process_json(view)
    return {
        "process_id": view.id,
        "data": {"process_id": view.id},
        **{name: shown[name] for name in _PROGRESS},
    }
