"""From settings to the concrete parts: the only place that names them.

Adding an engine is one folder below ``engines`` and one line in `make_engine`.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from loradash.domain.process import ProcessRecord, Status
from loradash.domain.requests import REQUEST_TYPES
from loradash.engines.diffusers.engine import DiffusersEngine
from loradash.errors import LoradashError
from loradash.executors.executor import Executor, NoExecutor
from loradash.executors.local import LocalExecutor, MemoryNeeds, QueuedRegistry
from loradash.registry.sql import SqlRegistry
from loradash.runtime.attempt import Timing
from loradash.runtime.gpu import Machine, Slot
from loradash.runtime.orphans import ChildRecords
from loradash.runtime.supervisor import Limits, StopRequest
from loradash.runtime.warm_pipeline import WarmPipeline
from loradash.runtime.workspace import Workspace
from loradash.services.dispatch import Dispatcher, Services
from loradash.services.generation import GenerationService
from loradash.services.health import HealthService
from loradash.services.places import ANYWHERE, Places
from loradash.services.processes import ProcessService
from loradash.services.results import ResultService
from loradash.services.retention import Retention
from loradash.services.running import Runner, take_over
from loradash.services.stored_datasets import DatasetStore
from loradash.services.training import TrainingService
from loradash.settings import Settings
from loradash.storage.local import LocalStore
from loradash.telemetry.log_files import LogFiles
from loradash.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from loradash.api.app import Server

log = structlog.get_logger("loradash.retention")

MAX_INLINE_BYTES = 64 * 2**20  # larger results are links
_CLEAN_EVERY_S = 3600.0
_PARTIAL_FILES_LIVE_S = 24 * 3600.0


@dataclass(frozen=True)
class Core:
    """What every entry point needs to run and look at processes on this machine."""

    settings: Settings
    workspace: Workspace
    store: LocalStore
    registry: QueuedRegistry
    datasets: DatasetStore
    training: TrainingService
    generation: GenerationService
    runner: Runner
    engine: DiffusersEngine
    machine: Machine
    children: ChildRecords
    metrics: Metrics

    def close(self) -> None:
        """End the warm pipelines and let go of the registry."""
        self.generation.close()
        self.registry.close()


def make_engine(settings: Settings, threads: int = 0, device: str = "") -> DiffusersEngine:
    """Return the engine that trains and generates."""
    return DiffusersEngine(
        device=device or settings.device,
        threads=threads or settings.threads,
        offline=settings.offline,
    )


def make_core(settings: Settings, *, threads: int = 0, device: str = "") -> Core:
    """Return the parts that run processes; close it when done.

    Raises `RegistryUnavailable` if the registry can't be opened.
    """
    engine = make_engine(settings, threads, device)
    workspace = Workspace(settings.workspace_path)
    workspace.ensure()
    store = LocalStore(settings.objects_path)
    registry = SqlRegistry(settings.registry_url)
    datasets = DatasetStore(store)
    children = ChildRecords(workspace.run)
    metrics = Metrics(REQUEST_TYPES)
    training = TrainingService(
        engine, workspace, store, registry, datasets,
        _limits(settings, settings.training_timeout_s), children,
    )  # fmt: skip

    def make_pipeline(name: str, environment: Mapping[str, str]) -> WarmPipeline:
        log_path = workspace.logs / f"generator-{name.replace(':', '-')}.txt"
        return WarmPipeline(
            engine, log_path, settings.idle_unload_s, environment=environment, records=children
        )

    generation = GenerationService(
        engine, make_pipeline, workspace, store, registry,
        _limits(settings, settings.generation_timeout_s),
    )  # fmt: skip
    timing = Timing(settings.lease_s, settings.cancel_grace_s, settings.max_attempts)
    runner = Runner(
        registry, store, {"training": training, "generation": generation}, timing,
        on_end=partial(_count_end, metrics),
    )  # fmt: skip
    machine = Machine(os.environ.get("CUDA_VISIBLE_DEVICES"))
    return Core(
        settings, workspace, store, registry, datasets, training, generation, runner, engine,
        machine, children, metrics,
    )  # fmt: skip


def make_dispatcher(core: Core) -> Dispatcher:
    """Return what answers requests in this program, without a server."""
    services = _make_services(core, NoExecutor(), ANYWHERE, "command")
    return Dispatcher(services, core.metrics, debug=core.settings.debug)


def make_server(settings: Settings) -> "Server":
    """Return the embedded server: requests, queue and executor on this machine."""
    from loradash.api.app import Server  # commands do without FastAPI

    machine = Machine(os.environ.get("CUDA_VISIBLE_DEVICES"))
    slots = machine.slots(settings.device)
    # Each child sees one GPU only, so it's the first one for it. Without NVML, torch may still know
    # a device (Apple's, AMD's), so the setting stays what it is.
    device = "cuda" if slots[0].gpu_index is not None else settings.device
    core = make_core(settings, device=device)
    executor = _make_executor(core, slots)
    places = Places([core.workspace.root, *_folders(settings.allowed_paths)])
    services = _make_services(core, executor, places, "local")
    retention = Retention(
        core.registry, core.store, core.workspace, core.engine, settings.file_retention_days
    )
    stopping = threading.Event()

    def clean() -> None:
        retention.clean()
        core.store.remove_partial_files(time.time() - _PARTIAL_FILES_LIVE_S)

    cleaner = threading.Thread(
        target=_repeat, args=(clean, stopping), name="retention", daemon=True
    )
    core.metrics.watch(
        queue_length=partial(_counts, core.registry, Status.PENDING),
        running=partial(_counts, core.registry, Status.RUNNING),
    )

    def start() -> None:
        executor.start()
        cleaner.start()

    def stop() -> None:
        stopping.set()
        executor.stop(settings.stop_grace_s + 10)
        core.close()

    return Server(
        dispatcher=Dispatcher(services, core.metrics, debug=settings.debug),
        services=services,
        metrics=core.metrics,
        store=core.store,
        start=start,
        stop=stop,
        hurry=executor.hurry,
        cors_origins=tuple(_words(settings.cors_origins, ",")),
        max_request_bytes=settings.max_request_mb * 2**20,
    )


def server_lock(settings: Settings) -> Path:
    """The file that a server holds as long as it works in the workspace."""
    return Workspace(settings.workspace_path).run / "server.lock"


def _make_services(core: Core, executor: Executor, places: Places, environment: str) -> Services:
    processes = ProcessService(core.registry, core.store, executor)
    return Services(
        training=core.training,
        generation=core.generation,
        processes=processes,
        results=ResultService(core.registry, core.store, core.workspace, MAX_INLINE_BYTES),
        datasets=core.datasets,
        health=HealthService(
            core.registry, core.store, core.machine, core.workspace, processes, core.metrics,
            environment,
        ),
        executor=executor,
        log_files=LogFiles(core.workspace.logs),
        places=places,
    )  # fmt: skip


def _make_executor(core: Core, slots: tuple[Slot, ...]) -> LocalExecutor:
    settings = core.settings

    def run(record: ProcessRecord, slot: Slot, stop: StopRequest) -> None:
        core.runner.run(record, slot, stop)

    def lost(process_id: str, owner_is_gone: bool) -> ProcessRecord:
        return take_over(
            core.registry, process_id, settings.max_attempts, owner_is_gone=owner_is_gone
        )

    return LocalExecutor(
        core.registry,
        slots,
        core.machine,
        MemoryNeeds(settings.training_memory_mb, settings.generation_memory_mb),
        taking=core.runner.taking,
        run=run,
        take_over=lost,
        give_way=core.generation.give_way,
        children=core.children,
        lock_path=server_lock(settings),
        orphan_grace_s=settings.stop_grace_s,
    )


def _limits(settings: Settings, timeout_s: float) -> Limits:
    return Limits(
        timeout_s=timeout_s, stall_s=settings.stall_timeout_s, grace_s=settings.stop_grace_s
    )


def _count_end(metrics: Metrics, record: ProcessRecord) -> None:
    if record.attempt and record.attempt.ending:  # else another owner tells how it ended
        metrics.count_attempt(record.kind, record.attempt.ending)
    if record.status.is_end:
        code = record.error.code if record.error else ""
        metrics.count_process_end(record.kind, str(record.status), code)


def _counts(registry: QueuedRegistry, wanted: Status) -> dict[str, int]:
    return {kind: n for (kind, status), n in registry.counts().items() if status is wanted}


def _repeat(work: Callable[[], object], stopping: threading.Event) -> None:
    while not stopping.is_set():
        try:
            work()
        except (LoradashError, OSError) as error:
            log.warning("not_cleaned", error=str(error))
        stopping.wait(_CLEAN_EVERY_S)


def _words(text: str, separator: str) -> list[str]:
    return [word.strip() for word in text.split(separator) if word.strip()]


def _folders(text: str) -> list[Path]:
    return [Path(word) for word in _words(text, os.pathsep)]
