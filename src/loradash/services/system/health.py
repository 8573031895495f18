"""Is everything there that requests need? Told in facts, part by part."""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import loradash
from loradash.errors import LoradashError
from loradash.executors.local import QueuedRegistry
from loradash.resilience.call_timeout import CallWithTimeout
from loradash.runtime.gpu import Machine
from loradash.runtime.owner import this_owner
from loradash.runtime.workspace import Workspace
from loradash.services.processes.service import ProcessService
from loradash.storage.store import ObjectStore, Remote
from loradash.telemetry.masking import masked
from loradash.telemetry.metrics import Metrics

LOW_DISK_GB = 5.0
_STORE_ANSWERS_S = 5.0


class HealthService:
    """Looks at registry, store, machine and queue; never raises."""

    def __init__(
        self,
        registry: QueuedRegistry,
        store: ObjectStore,
        machine: Machine,
        workspace: Workspace,
        processes: ProcessService,
        metrics: Metrics,
        environment: str,
    ) -> None:
        self._registry = registry
        self._store = store
        self._machine = machine
        self._workspace = workspace
        self._processes = processes
        self._metrics = metrics
        self.environment = environment
        self._started_s = time.monotonic()
        self._store_answer: CallWithTimeout[dict[str, Any]] = CallWithTimeout(
            self._ask_store, "health"
        )

    def report(self) -> dict[str, Any]:
        """Return the state of each part; ``status`` is healthy only if all of them are."""
        services = {
            "process_manager": _part(self._queue),
            "storage": _part(self._storage),
            "gpu_manager": _part(self._gpus),
            "disk": _part(self._disk),
        }
        bad = [name for name, part in services.items() if part["status"] != "healthy"]
        return {
            "status": "degraded" if bad else "healthy",
            "problems": bad,
            "services": services,
            "version": loradash.__version__,
            "worker_id": this_owner(),
            "environment": self.environment,
            "uptime_s": round(time.monotonic() - self._started_s, 1),
            "requests": {
                kind: figures.model_dump(mode="json")
                for kind, figures in self._metrics.snapshot().items()
            },
        }

    def _queue(self) -> dict[str, Any]:
        counts = self._processes.counts()
        queue = self._processes.queue()
        trouble = queue.get("trouble")
        return {
            "counts": {str(status): number for status, number in counts.items()},
            "paused": queue["paused"],
            "slots": queue["slots"],
            **({"endpoint": queue["endpoint"]} if "endpoint" in queue else {}),
            **({"status": "unavailable", "error": masked(trouble)} if trouble else {}),
        }

    def _storage(self) -> dict[str, Any]:
        """Ask the store, but don't wait for one that hangs."""
        facts: dict[str, Any] = {"kind": type(self._store).__name__.removesuffix("Store").lower()}
        try:
            facts |= self._store_answer.result(_STORE_ANSWERS_S)
        except (LoradashError, OSError) as error:  # a TimeoutError is an OSError
            facts |= {"status": "unavailable", "error": masked(str(error))}
        if isinstance(self._store, Remote):
            facts["circuit"] = self._store.state._asdict()
        return facts

    def _ask_store(self) -> dict[str, Any]:
        next(iter(self._store.list("health")), None)
        return {"capabilities": asdict(self._store.capabilities)}

    def _gpus(self) -> dict[str, Any]:
        gpus = self._machine.gpus()
        memory = self._machine.memory()
        return {
            "gpus": [
                {
                    "device": gpu.index, "name": gpu.name, "total_mb": gpu.total_mb,
                    "free_mb": gpu.free_mb, "used_mb": gpu.used_mb,
                    "usage_percent": gpu.utilization_percent,
                }
                for gpu in gpus
            ],
            "count": len(gpus),
            "note": self._machine.reason,
            "memory": memory._asdict() if memory else None,
        }  # fmt: skip

    def _disk(self) -> dict[str, Any]:
        disk = self._machine.disk(self._workspace.root)
        if disk is None:
            return {"status": "unknown"}
        low = disk.free_gb < LOW_DISK_GB
        facts: dict[str, Any] = disk._asdict()
        if low:
            facts |= {"status": "low", "remedy": "Free space: checkpoints need room."}
        return facts


def _part(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"status": "healthy", **look()}
    except (LoradashError, OSError) as error:
        return {"status": "unavailable", "error": masked(str(error))}
