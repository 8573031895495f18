"""From settings to the concrete parts that every entry point needs.

Adding an engine is one folder below ``engines`` and one line in `ENGINES`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from loradash.domain.addresses import NO_ADDRESS, Address
from loradash.domain.kinds import GENERATION, TRAINING, Kind, kind_names
from loradash.domain.process import ProcessRecord
from loradash.engines.catalogue import Engines
from loradash.engines.diffusers.engine import DiffusersEngine
from loradash.engines.engine import Engine, WarmGenerator
from loradash.engines.scripted.engine import ScriptedEngine
from loradash.errors import InvalidKey, InvalidSettings
from loradash.executors.executor import Executor, NoExecutor
from loradash.executors.local import QueuedRegistry
from loradash.protocol.dispatch import Dispatcher
from loradash.protocol.requests import REQUEST_TYPES
from loradash.registry.announcing import announcing
from loradash.registry.change_feed import ChangeFeed
from loradash.runtime.attempt import Timing
from loradash.runtime.gpu import Machine
from loradash.runtime.lease_watch import LeaseWatch
from loradash.runtime.orphans import ChildRecords
from loradash.runtime.supervisor import Limits
from loradash.runtime.warm_pipeline import WarmPipeline
from loradash.runtime.workspace import Workspace
from loradash.services.adapters.service import AdapterService
from loradash.services.adapters.stored import StoredAdapters
from loradash.services.changes.hub import ChangeHub
from loradash.services.datasets.editing import DatasetEditor
from loradash.services.datasets.scratch import Scratch
from loradash.services.datasets.store import DatasetStore
from loradash.services.datasets.upload_checks import UploadLimits
from loradash.services.datasets.upload_sessions import UploadSessions
from loradash.services.generation.service import GenerationService
from loradash.services.path_policy import ANYWHERE, PathPolicy
from loradash.services.processes.running import Runner
from loradash.services.processes.service import ProcessService
from loradash.services.processes.starting import ProcessStarter
from loradash.services.results.results import make_results
from loradash.services.system.health import HealthService
from loradash.services.system.log_files import LogFiles
from loradash.services.training.service import TrainingService
from loradash.services.use_cases import Services
from loradash.settings import Settings, visible_devices
from loradash.storage.disk import DiskGuard
from loradash.storage.local import LocalStore
from loradash.storage.store import ObjectStore, Prompt, check_prefix
from loradash.telemetry.metrics import Metrics

MAX_INLINE_BYTES = 64 * 2**20  # larger results are links
_NO_LOOKS_S = 3600.0
_SILENCES_IN_LEASE = 3
_REPORT_OBJECTS_S, _POLL_OBJECTS_S = 3.0, 1.0  # each write and look is a request to the bucket


@dataclass(frozen=True)
class Core:
    """What every entry point needs to run and look at processes on this machine."""

    settings: Settings
    workspace: Workspace
    store: ObjectStore
    registry: QueuedRegistry
    changes: ChangeHub
    datasets: DatasetStore
    training: TrainingService
    generation: GenerationService
    runner: Runner
    engines: Engines
    machine: Machine
    children: ChildRecords
    metrics: Metrics

    def close(self) -> None:
        """End the warm pipelines and listeners, and close store and registry."""
        self.changes.stop()
        self.generation.close()
        self.registry.close()
        self.store.close()


class EngineSettings(NamedTuple):
    """What of the settings an engine may want to know."""

    device: str
    threads: int
    offline: bool


ENGINES: tuple[Callable[[EngineSettings], Engine], ...] = (
    lambda on: DiffusersEngine(device=on.device, threads=on.threads, offline=on.offline),
    lambda _: ScriptedEngine(),
)
"""All engines: one line for each."""


def make_engines(settings: Settings, threads: int = 0, device: str = "") -> Engines:
    """Return the engines that train and generate. Raises `InvalidSettings`."""
    machine = EngineSettings(
        device or settings.device, threads or settings.threads, settings.offline
    )
    return Engines([make(machine) for make in ENGINES], settings.engine)


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
        public_endpoint_url=settings.s3_public_endpoint_url,
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
        return NO_ADDRESS
    try:
        prefix = check_prefix(settings.s3_prefix.strip("/"))
    except InvalidKey as error:
        raise InvalidSettings(
            f"S3_PREFIX: {error.message}", remedy="Give folder names joined by '/'."
        ) from error
    return Address(settings.s3_bucket, prefix)


def sharing_registry(settings: Settings) -> Settings:
    """Return settings for programs on several machines that see the same processes.

    Without a database their records are where the files are.
    """
    is_shared = settings.s3_bucket or settings.objects_shared
    if settings.registry == "auto" and is_shared and not settings.database_url:
        return settings.model_copy(update={"registry": "objects"})
    return settings


def for_workers_elsewhere(settings: Settings) -> Settings:
    """Return settings that workers on other machines can share. Raises `InvalidSettings`."""
    settings = sharing_registry(settings)
    problems = []
    if not settings.s3_bucket and not settings.objects_shared:
        problems.append("S3_BUCKET isn't set, and workers must see the same objects")
    if settings.registry != "objects" and settings.registry_url.startswith("sqlite"):
        problems.append(
            "the records are in a SQLite file, which workers can't see: unset DATABASE_URL or name "
            "a PostgreSQL database, and let LORADASH_REGISTRY be auto or objects"
        )
    if problems:
        raise InvalidSettings(
            "LORADASH_EXECUTOR=runpod needs what this machine and the workers both reach",
            problems=problems,
            remedy="Give both the same bucket, and the same database if there is one.",
        )
    return settings


def make_core(settings: Settings, *, threads: int = 0, device: str = "") -> Core:
    """Return the parts that run processes; close it when done.

    Raises `RegistryUnavailable` if the registry can't be opened.
    """
    engines = make_engines(settings, threads, device)
    workspace = Workspace(settings.workspace_path)
    workspace.ensure()
    guard = DiskGuard(settings.min_free_disk_mb * 2**20)
    store = make_store(settings, guard)
    address = _address(settings)
    recorded = _make_registry(settings, store)
    registry = announcing(recorded)
    datasets = DatasetStore(
        store, address, limits=_upload_limits(settings),
        scratch=scratch_of(workspace, guard, _objects_folder(settings)),
        concurrency=settings.s3_concurrency,
    )  # fmt: skip
    children = ChildRecords(workspace.run)
    metrics = Metrics(REQUEST_TYPES, kind_names())
    training = TrainingService(
        engines, workspace, store, registry, datasets,
        _limits(settings, TRAINING.name), children, address,
    )  # fmt: skip

    def make_pipeline(
        engine: WarmGenerator, name: str, environment: Mapping[str, str]
    ) -> WarmPipeline:
        log_path = workspace.logs / f"generator-{name.replace(':', '-')}.txt"
        return WarmPipeline(
            engine, log_path, settings.idle_unload_s, environment=environment, records=children
        )

    generation = GenerationService(
        engines, make_pipeline, workspace, store, registry,
        _limits(settings, GENERATION.name), address,
    )  # fmt: skip
    report_interval_s, poll_interval_s = (
        (_REPORT_OBJECTS_S, _POLL_OBJECTS_S) if settings.registry == "objects" else (0, 0)
    )
    timing = Timing(
        settings.lease_s, settings.cancel_grace_s, settings.max_attempts,
        store_patience_s=settings.store_patience_s,
        report_interval_s=report_interval_s, poll_interval_s=poll_interval_s,
        stop_grace_s=settings.stop_grace_s,
    )  # fmt: skip
    runner = Runner(
        registry, store, {TRAINING.name: training, GENERATION.name: generation}, timing,
        on_end=partial(_count_end, metrics), disk_is_low=partial(guard.is_low, workspace.root),
    )  # fmt: skip
    machine = Machine(visible_devices())
    return Core(
        settings, workspace, store, registry, ChangeHub(recorded, registry), datasets, training,
        generation, runner, engines,
        machine, children, metrics,
    )  # fmt: skip


class _Registry(QueuedRegistry, ChangeFeed, Protocol):
    """What keeps the records."""


def _make_registry(settings: Settings, store: ObjectStore) -> _Registry:
    # Each does without the other one's libraries, which take a worker's start longer than the rest.
    if settings.registry == "objects":
        from loradash.registry.objects import ObjectRegistry

        return ObjectRegistry(_renewing(store, settings.lease_s))
    from loradash.registry.opening import open_database_registry

    return open_database_registry(settings.registry_url)


def _renewing(store: ObjectStore, lease_s: float) -> ObjectStore:
    """Return the store for records: whoever owns a process must reach it soon after an outage.

    By then all others look again too, and take away what isn't renewed within the lease.
    """
    return store.prompt(lease_s / _SILENCES_IN_LEASE) if isinstance(store, Prompt) else store


def make_dispatcher(core: Core) -> Dispatcher:
    """Return what answers requests in this program, without a server."""
    at_workers = core.settings.executor == "runpod"  # then folders mean theirs
    path_policy = PathPolicy(folders(core.settings.allowed_paths)) if at_workers else ANYWHERE
    services = make_services(core, NoExecutor(), path_policy, "command")
    return Dispatcher(services, core.metrics, debug=core.settings.debug)


def server_lock(settings: Settings) -> Path:
    """The file that a server holds as long as it works in the workspace."""
    return Workspace(settings.workspace_path).run / "server.lock"


def lease_watch(settings: Settings, look_every_s: float) -> LeaseWatch:
    """Return what watches leases, for who looks about that often."""
    return LeaseWatch(settings.lease_s, look_every_s=look_every_s)


def make_services(
    core: Core,
    executor: Executor,
    path_policy: PathPolicy,
    environment: str,
    max_inline_bytes: int = MAX_INLINE_BYTES,
    *,
    watch: LeaseWatch | None = None,
) -> Services:
    """Return the use cases, for an entry point with this policy of paths and size of replies.

    Without a ``watch`` that something polls with, only owners that died here are known to be lost.
    """
    watch = watch or lease_watch(core.settings, _NO_LOOKS_S)
    processes = ProcessService(core.registry, core.store, executor, watch)
    core.training.path_policy = path_policy
    address = _address(core.settings)
    results = make_results(
        core.registry, core.store, core.workspace, max_inline_bytes, address,
        core.settings.s3_url_expiry_s, core.engines,
    )  # fmt: skip
    return Services(
        starting=ProcessStarter(core.training, core.generation, executor, path_policy),
        training=core.training,
        generation=core.generation,
        processes=processes,
        results=results,
        adapters=AdapterService(
            core.registry, core.store, results, StoredAdapters(core.registry, core.store, address)
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
        log_files=LogFiles(core.workspace.logs),
        records_in_store=core.settings.registry == "objects",
    )  # fmt: skip


def _upload_limits(settings: Settings) -> UploadLimits:
    return UploadLimits(
        settings.max_file_mb * 2**20, settings.max_upload_mb * 2**20, settings.max_upload_files
    )


def scratch_of(
    workspace: Workspace, guard: DiskGuard | None = None, objects: Path | None = None
) -> Scratch:
    """Return where uploads lie on their way into the store; ``objects`` is a store's folder."""
    return Scratch(workspace.root / "tmp", guard, objects)


def _objects_folder(settings: Settings) -> Path | None:
    return None if settings.s3_bucket else settings.objects_path


def _limits(settings: Settings, kind: Kind) -> Limits:
    return Limits(
        timeout_s=settings.timeouts_s()[kind],
        stall_s=settings.stall_timeout_s,
        grace_s=settings.stop_grace_s,
    )


def _count_end(metrics: Metrics, record: ProcessRecord) -> None:
    if record.attempt and record.attempt.ending:  # else another owner tells how it ended
        metrics.count_attempt(record.kind, record.attempt.ending)
    if record.status.is_end:
        code = record.error.code if record.error else ""
        metrics.count_process_end(record.kind, str(record.status), code)


def words(text: str, separator: str) -> list[str]:
    """Return the words of a setting that lists some."""
    return [word.strip() for word in text.split(separator) if word.strip()]


def folders(text: str) -> list[Path]:
    """Return the folders of a setting that lists some."""
    return [Path(word) for word in words(text, os.pathsep)]
