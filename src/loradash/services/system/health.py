"""Whether everything is there that requests need: facts, part by part."""

import time
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

import loradash
from loradash.domain.process import Status
from loradash.errors import LoradashError
from loradash.executors.local import QueuedRegistry
from loradash.resilience.call_timeout import CallWithTimeout
from loradash.resilience.circuit_state import CircuitState
from loradash.runtime.gpu import Disk, Gpu, Machine, Memory
from loradash.runtime.owner import this_owner
from loradash.runtime.workspace import Workspace
from loradash.services.processes.service import ProcessService
from loradash.services.processes.views import QueueView
from loradash.storage.store import Capabilities, ObjectStore, Remote
from loradash.telemetry.masking import masked
from loradash.telemetry.metrics import Metrics, RequestFigures

LOW_DISK_GB = 5.0
_STORE_ANSWERS_S = 5.0


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class PartHealth(_View):
    """The state of one part; facts that couldn't be had are None."""

    status: Literal["healthy", "low", "unavailable", "unknown"] = "healthy"
    error: str = Field("", description="without secrets; '' if nothing is wrong")


class QueueHealth(PartHealth):
    """The registry, and whoever runs what waits in it."""

    counts: Mapping[Status, int] | None = None
    queue: QueueView | None = None


class StoreHealth(PartHealth):
    """The object store; ``circuit`` is how its endpoint has answered, if it is behind a network."""

    kind: str
    capabilities: Capabilities | None = None
    circuit: CircuitState | None = None


class MachineHealth(PartHealth):
    """GPUs and memory; ``note`` says why facts about GPUs are missing, or ''."""

    gpus: tuple[Gpu, ...] = ()
    note: str = ""
    memory: Memory | None = None


class DiskHealth(PartHealth):
    """The disk below the workspace."""

    disk: Disk | None = None
    remedy: str = ""


class HealthReport(_View):
    """The state of this program."""

    queue: QueueHealth
    store: StoreHealth
    machine: MachineHealth
    disk: DiskHealth
    version: str
    worker: str = Field(description="this program as an owner: machine/pid/start time")
    environment: str = Field(description="where it runs: local, serverless, ...")
    uptime_s: float
    requests: Mapping[str, RequestFigures] = Field(description="by the type of request")

    @property
    def parts(self) -> Mapping[str, PartHealth]:
        """All parts by their names."""
        return {
            "queue": self.queue, "store": self.store, "machine": self.machine, "disk": self.disk,
        }  # fmt: skip

    @property
    def problems(self) -> tuple[str, ...]:
        """Names of the parts that aren't healthy."""
        return tuple(name for name, part in self.parts.items() if part.status != "healthy")

    @property
    def is_healthy(self) -> bool:
        """Whether all parts are healthy."""
        return not self.problems


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
        self._store_answer: CallWithTimeout[Capabilities] = CallWithTimeout(
            self._ask_store, "health"
        )

    def report(self) -> HealthReport:
        """Return the state of each part."""
        return HealthReport(
            queue=self._queue(),
            store=self._stored(),
            machine=self._gpus(),
            disk=self._disk(),
            version=loradash.__version__,
            worker=this_owner(),
            environment=self.environment,
            uptime_s=time.monotonic() - self._started_s,
            requests=self._metrics.snapshot(),
        )

    def _queue(self) -> QueueHealth:
        try:
            counts, queue = self._processes.counts(), self._processes.queue()
        except (LoradashError, OSError) as error:
            return QueueHealth(status="unavailable", error=masked(str(error)))
        error_text = masked(queue.executor.error)
        return QueueHealth(
            status="unavailable" if error_text else "healthy",
            error=error_text,
            counts=counts,
            queue=queue,
        )

    def _stored(self) -> StoreHealth:
        """Ask the store, but don't wait for one that hangs."""
        kind = type(self._store).__name__.removesuffix("Store").lower()
        try:
            capabilities = self._store_answer.result(_STORE_ANSWERS_S)
        except (LoradashError, OSError) as error:  # a TimeoutError is an OSError
            return StoreHealth(
                kind=kind, status="unavailable", error=masked(str(error)), circuit=self._circuit()
            )
        return StoreHealth(kind=kind, capabilities=capabilities, circuit=self._circuit())

    def _circuit(self) -> CircuitState | None:
        return self._store.state if isinstance(self._store, Remote) else None

    def _ask_store(self) -> Capabilities:
        next(iter(self._store.list("health")), None)
        return self._store.capabilities

    def _gpus(self) -> MachineHealth:
        gpus = self._machine.gpus()
        return MachineHealth(gpus=gpus, note=self._machine.reason, memory=self._machine.memory())

    def _disk(self) -> DiskHealth:
        disk = self._machine.disk(self._workspace.root)
        if disk is None:
            return DiskHealth(status="unknown")
        if disk.free_gb < LOW_DISK_GB:
            return DiskHealth(status="low", disk=disk, remedy="Free space: checkpoints need room.")
        return DiskHealth(disk=disk)
