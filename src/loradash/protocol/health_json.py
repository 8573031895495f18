"""The health of a server as JSON, with the names that clients of the dashboard's protocol read."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from loradash.protocol.process_json import endpoint_json, slot_json
from loradash.services.system.health import (
    DiskHealth,
    HealthReport,
    MachineHealth,
    PartHealth,
    QueueHealth,
    StoreHealth,
)

Json = dict[str, Any]

_NAMES = {
    "queue": "process_manager", "store": "storage", "machine": "gpu_manager", "disk": "disk",
}  # fmt: skip


def health_json(report: HealthReport) -> Json:
    """Return the state of each part; ``status`` is healthy only if all of them are."""
    return {
        "status": "healthy" if report.is_healthy else "degraded",
        "problems": [_NAMES[name] for name in report.problems],
        "services": {
            _NAMES["queue"]: _part(report.queue, _queue),
            _NAMES["store"]: _part(report.store, _store),
            _NAMES["machine"]: _part(report.machine, _machine),
            _NAMES["disk"]: _part(report.disk, _disk),
        },
        "version": report.version,
        "worker_id": report.worker,
        "environment": report.environment,
        "uptime_s": round(report.uptime_s, 1),
        "requests": {
            kind: figures.model_dump(mode="json") for kind, figures in report.requests.items()
        },
    }


def _part(part: PartHealth, facts: Callable[[Any], Mapping[str, Any]]) -> Json:
    error = {"error": part.error} if part.error else {}
    return {"status": part.status, **facts(part), **error}


def _queue(part: QueueHealth) -> Json:
    if part.queue is None or part.counts is None:
        return {}
    executor = part.queue.executor
    return {
        "counts": {str(status): number for status, number in part.counts.items()},
        "paused": part.queue.is_paused,
        "slots": [slot_json(slot) for slot in executor.slots],
        **({"endpoint": endpoint_json(executor.endpoint)} if executor.endpoint else {}),
    }


def _store(part: StoreHealth) -> Json:
    return {
        "kind": part.kind,
        **({"capabilities": asdict(part.capabilities)} if part.capabilities else {}),
        **({"circuit": part.circuit._asdict()} if part.circuit else {}),
    }


def _machine(part: MachineHealth) -> Json:
    return {
        "gpus": [
            {
                "device": gpu.index, "name": gpu.name, "total_mb": gpu.total_mb,
                "free_mb": gpu.free_mb, "used_mb": gpu.used_mb,
                "usage_percent": gpu.utilization_percent,
            }
            for gpu in part.gpus
        ],
        "count": len(part.gpus),
        "note": part.note,
        "memory": part.memory._asdict() if part.memory else None,
    }  # fmt: skip


def _disk(part: DiskHealth) -> Json:
    facts: Json = dict(part.disk._asdict()) if part.disk else {}
    return {**facts, **({"remedy": part.remedy} if part.remedy else {})}
