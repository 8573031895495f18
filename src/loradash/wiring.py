"""From settings to the concrete parts: the only place that names them.

Adding an engine is one folder below ``engines`` and one line in `make_engine`.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from loradash.domain.process import ProcessRecord, Status
from loradash.domain.requests import REQUEST_TYPES
from loradash.engines.diffusers.engine import DiffusersEngine
from loradash.errors import DiskFull, InvalidKey, InvalidSettings, LoradashError, StoreUnavailable
from loradash.executors.executor import Executor, NoExecutor
from loradash.executors.local import LocalExecutor, MemoryNeeds, QueuedRegistry
from loradash.registry.sql import SqlRegistry
from loradash.resilience.promptly import Promptly
from loradash.runtime.attempt import Timing
from loradash.runtime.gpu import Machine, Slot
from loradash.runtime.orphans import ChildRecords
from loradash.runtime.supervisor import Limits, StopRequest
from loradash.runtime.warm_pipeline import WarmPipeline
from loradash.runtime.workspace import Workspace
from loradash.services.datasets.editing import DatasetEditor
from loradash.services.datasets.scratch import Scratch
from loradash.services.datasets.store import DatasetStore
from loradash.services.datasets.upload_checks import UploadLimits
from loradash.services.datasets.upload_sessions import UploadSessions
from loradash.services.dispatch import Dispatcher, Services
from loradash.services.generation import GenerationService
from loradash.services.health import HealthService
from loradash.services.places import ANYWHERE, Places
from loradash.services.processes import ProcessService
from loradash.services.results import ResultService
from loradash.services.retention import Retention
from loradash.services.running import Runner, take_over
from loradash.services.training import TrainingService
from loradash.settings import Settings
from loradash.storage.disk import DiskGuard
from loradash.storage.keys import NOWHERE, Address
from loradash.storage.local import LocalStore
from loradash.storage.store import Examination, ObjectStore, Remote, check_prefix
from loradash.telemetry.log_files import LogFiles
from loradash.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from loradash.api.app import Server

log = structlog.get_logger("loradash.wiring")

MAX_INLINE_BYTES = 64 * 2**20  # larger results are links
MAX_QUEUED_BYTES = 6 * 2**20  # RunPod's queue carries 10 MB, and base64 takes a third more
_TELL_OBJECTS_S, _HEAR_OBJECTS_S = 3.0, 1.0  # each write and look is a request to the bucket
_CLEAN_EVERY_S = 3600.0
_STORE_ANSWERS_S = 10.0
_PARTIAL_FILES_LIVE_S = 24 * 3600.0


@dataclass(frozen=True)
class Core:
    """What every entry point needs to run and look at processes on this machine."""

    settings: Settings
    workspace: Workspace
    store: ObjectStore
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
        """End the warm pipelines and let go of store and registry."""
        self.generation.close()
        self.registry.close()
        self.store.close()


def make_engine(settings: Settings, threads: int = 0, device: str = "") -> DiffusersEngine:
    """Return the engine that trains and generates."""
    return DiffusersEngine(
        device=device or settings.device,
        threads=threads or settings.threads,
        offline=settings.offline,
    )


def make_store(settings: Settings, guard: DiskGuard) -> ObjectStore:
    """Return the object store: a bucket if one is named, else a folder. Nothing is asked yet.

    Raises `InvalidSettings`.
    """
    if not settings.s3_bucket:
        return LocalStore(settings.objects_path, shared=settings.objects_shared, guard=guard)
    from loradash.resilience.circuit import Policy  # a folder does without
    from loradash.storage.s3.config import S3Config, parse_overrides
    from loradash.storage.s3.store import S3Store

    config = S3Config(
        bucket=settings.s3_bucket,
        access_key_id=settings.s3_access_key_id,
        secret_access_key=settings.s3_secret_access_key.get_secret_value(),
        session_token=settings.s3_session_token.get_secret_value(),
        region=settings.s3_region,
        endpoint_url=settings.s3_endpoint_url,
        prefix=_address(settings).prefix,
        addressing=settings.s3_addressing,
        part_bytes=settings.s3_part_mb * 2**20,
        part_concurrency=settings.s3_part_concurrency,
        concurrency=settings.s3_concurrency,
        timeout_s=settings.s3_timeout_s,
        complete_timeout_s=settings.s3_complete_timeout_s,
        policy=Policy(retries=settings.max_retries),
        overrides=parse_overrides(settings.s3_capabilities),
    )
    return S3Store(config, guard)


def _address(settings: Settings) -> Address:
    if not settings.s3_bucket:
        return NOWHERE
    try:
        prefix = check_prefix(settings.s3_prefix.strip("/"))
    except InvalidKey as error:
        raise InvalidSettings(
            f"S3_PREFIX: {error.message}", remedy="Give folder names joined by '/'."
        ) from error
    return Address(settings.s3_bucket, prefix)


def make_core(settings: Settings, *, threads: int = 0, device: str = "") -> Core:
    """Return the parts that run processes; close it when done.

    Raises `RegistryUnavailable` if the registry can't be opened.
    """
    engine = make_engine(settings, threads, device)
    workspace = Workspace(settings.workspace_path)
    workspace.ensure()
    guard = DiskGuard(settings.min_free_disk_mb * 2**20)
    store = make_store(settings, guard)
    address = _address(settings)
    registry = _make_registry(settings, store)
    datasets = DatasetStore(
        store, address, limits=_upload_limits(settings), scratch=_scratch(workspace),
        concurrency=settings.s3_concurrency,
    )  # fmt: skip
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
        _limits(settings, settings.generation_timeout_s), address,
    )  # fmt: skip
    timing = Timing(
        settings.lease_s, settings.cancel_grace_s, settings.max_attempts,
        settings.store_patience_s,
        *((_TELL_OBJECTS_S, _HEAR_OBJECTS_S) if settings.registry == "objects" else ()),
    )  # fmt: skip
    runner = Runner(
        registry, store, {"training": training, "generation": generation}, timing,
        on_end=partial(_count_end, metrics), disk_is_low=partial(guard.is_low, workspace.root),
    )  # fmt: skip
    machine = Machine(os.environ.get("CUDA_VISIBLE_DEVICES"))
    return Core(
        settings, workspace, store, registry, datasets, training, generation, runner, engine,
        machine, children, metrics,
    )  # fmt: skip


def _make_registry(settings: Settings, store: ObjectStore) -> QueuedRegistry:
    if settings.registry != "objects":
        return SqlRegistry(settings.registry_url)
    from loradash.registry.objects import ObjectRegistry  # a database does without

    return ObjectRegistry(store)


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
        if isinstance(core.store, LocalStore):
            core.store.remove_partial_files(time.time() - _PARTIAL_FILES_LIVE_S)
        _scratch(core.workspace).remove_left_over(time.time() - _PARTIAL_FILES_LIVE_S)

    cleaner = threading.Thread(
        target=_repeat, args=(clean, stopping), name="retention", daemon=True
    )
    core.metrics.watch(
        queue_length=partial(_counts, core.registry, Status.PENDING),
        running=partial(_counts, core.registry, Status.RUNNING),
    )

    def start() -> None:
        _look_at_store(core.store)
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


def make_worker(settings: Settings) -> Callable[[], None]:
    """Return what takes RunPod's jobs on this machine until a signal ends it."""
    from loradash.worker import sdk  # other programs do without RunPod's SDK
    from loradash.worker.handler import Handler
    from loradash.worker.ownership import Ownership
    from loradash.worker.work import Worker, progress_of

    if settings.registry == "auto" and settings.s3_bucket and not settings.database_url:
        settings = settings.model_copy(update={"registry": "objects"})
    slot = Machine(os.environ.get("CUDA_VISIBLE_DEVICES")).slots(settings.device)[0]
    device = "cuda" if slot.gpu_index is not None else settings.device
    core = make_core(settings, device=device)
    places = Places([core.workspace.root, *_folders(settings.allowed_paths)])
    services = _make_services(core, NoExecutor(), places, "serverless", MAX_QUEUED_BYTES)
    worker = Worker(
        Dispatcher(services, core.metrics, debug=settings.debug),
        core.registry,
        Ownership(core.registry, core.runner.taking, settings.max_attempts),
        core.runner,
        slot,
        core.machine,
        MemoryNeeds(settings.training_memory_mb, settings.generation_memory_mb),
        core.generation.give_way,
        stop_grace_s=settings.stop_grace_s,
    )

    def look(process_id: str) -> dict[str, Any]:
        return progress_of(services.processes.get(process_id))

    def store_answers() -> None:
        next(iter(core.store.list("health")), None)

    def disk_has_room() -> None:
        if core.runner.disk_is_low():
            raise DiskFull("the workspace's disk is nearly full", remedy="Give it more space.")

    def start() -> None:
        for orphan in core.children.end_orphans(settings.stop_grace_s):
            log.warning("orphan_ended", **orphan._asdict())
        sdk.start(
            sdk.load(), Handler(worker, sdk.tell_progress, look), [store_answers, disk_has_room],
            worker.stop, settings.stop_grace_s,
        )  # fmt: skip

    return start


def _look_at_store(store: ObjectStore) -> None:
    """Find out what a remote store does before work depends on it.

    Raises `StoreRefused`: that needs a user. One that is away now may come back by itself.
    """
    if not isinstance(store, Remote):
        return
    look: Promptly[Examination] = Promptly(store.examine, "look-at-store")
    try:
        found = look.result(_STORE_ANSWERS_S)
    except (StoreUnavailable, TimeoutError) as error:
        log.warning("store_is_away", error=str(error).partition("\n")[0])
        return
    log.info(
        "store_examined", provider=found.provider, notes=found.notes, **asdict(found.capabilities)
    )


def server_lock(settings: Settings) -> Path:
    """The file that a server holds as long as it works in the workspace."""
    return Workspace(settings.workspace_path).run / "server.lock"


def _make_services(
    core: Core,
    executor: Executor,
    places: Places,
    environment: str,
    max_inline_bytes: int = MAX_INLINE_BYTES,
) -> Services:
    processes = ProcessService(core.registry, core.store, executor)
    return Services(
        training=core.training,
        generation=core.generation,
        processes=processes,
        results=ResultService(
            core.registry, core.store, core.workspace, max_inline_bytes, _address(core.settings),
            core.settings.s3_url_expiry_s
        ),
        datasets=core.datasets,
        uploads=UploadSessions(
            core.store, core.datasets, url_expiry_s=core.settings.s3_url_expiry_s
        ),
        dataset_editor=DatasetEditor(
            core.store, core.datasets, core.workspace.root / "cache"
        ),
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


def _upload_limits(settings: Settings) -> UploadLimits:
    return UploadLimits(
        settings.max_file_mb * 2**20, settings.max_upload_mb * 2**20, settings.max_upload_files
    )


def _scratch(workspace: Workspace) -> Scratch:
    return Scratch(workspace.root / "tmp")


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
