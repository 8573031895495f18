"""The server: requests and dashboard; processes run on this machine or at a RunPod endpoint."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Protocol

import structlog

from loradash.api.app import Server
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import LoradashError, StoreUnavailable
from loradash.executors.executor import Executor
from loradash.executors.local import (
    POLL_INTERVAL_S,
    SWEEP_EVERY_S,
    LocalExecutor,
    MemoryNeeds,
    QueuedRegistry,
)
from loradash.protocol.dispatch import Dispatcher
from loradash.resilience.call_timeout import CallWithTimeout
from loradash.runtime.gpu import Machine, Slot
from loradash.runtime.lease_watch import LeaseWatch
from loradash.runtime.supervisor import StopRequest
from loradash.services.path_policy import PathPolicy
from loradash.services.processes.running import take_over
from loradash.services.results.retention import Retention
from loradash.services.system.sweeper import Sweeper
from loradash.settings import Settings, visible_devices
from loradash.storage.local import LocalStore
from loradash.storage.store import Examination, ObjectStore, Remote
from loradash.wiring.core import (
    Core,
    folders,
    for_workers_elsewhere,
    lease_watch,
    make_core,
    make_services,
    scratch_of,
    server_lock,
    words,
)

log = structlog.get_logger("loradash.wiring")

_CLEAN_EVERY_S = 3600.0
_STORE_ANSWERS_S = 10.0
_PARTIAL_FILES_LIVE_S = 24 * 3600.0

_POLL_OBJECTS_S = 3.0  # a poll of the queue in a bucket lists all its records


class _ServersExecutor(Executor, Protocol):
    """An executor that lives as long as its server."""

    def start(self) -> None: ...

    def stop(self, timeout_s: float) -> None: ...

    def stop_now(self) -> None: ...


def make_server(settings: Settings) -> Server:
    """Return the server: requests, the queue, and an executor that works it off.

    Raises `InvalidSettings`, and `RegistryUnavailable` if the registry can't be opened.
    """
    is_control_plane = settings.executor == "runpod"
    if is_control_plane:
        settings = for_workers_elsewhere(settings)
    machine = Machine(visible_devices())
    slots = machine.slots(settings.device)
    # Each child sees one GPU only, so it's the first one for it. Without NVML, torch may still know
    # a device (Apple's, AMD's), so the setting stays what it is.
    device = "cuda" if slots[0].gpu_index is not None else settings.device
    core = make_core(settings, device=device)
    executor: _ServersExecutor
    watch: LeaseWatch
    if is_control_plane:
        executor, watch = _make_runpod_executor(core)
        path_policy = PathPolicy(folders(settings.allowed_paths))  # they are the workers' folders
    else:
        executor, watch = _make_local_executor(core, slots)
        path_policy = PathPolicy([core.workspace.root, *folders(settings.allowed_paths)])
    environment = "control plane" if is_control_plane else "local"
    services = make_services(core, executor, path_policy, environment, watch=watch)
    retention = Retention(
        core.registry, core.store, core.workspace, core.engines, settings.file_retention_days
    )
    sweeper = Sweeper(core.registry, core.store)
    stopping = threading.Event()

    def clean() -> None:
        retention.clean()
        sweeper.sweep()
        if isinstance(core.store, LocalStore):
            core.store.remove_partial_files(time.time() - _PARTIAL_FILES_LIVE_S)
        scratch_of(core.workspace).remove_left_over(time.time() - _PARTIAL_FILES_LIVE_S)

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
        changes=core.changes,
        metrics=core.metrics,
        store=core.store,
        start=start,
        stop=stop,
        stop_now=executor.stop_now,
        cors_origins=tuple(words(settings.cors_origins, ",")),
        max_request_bytes=settings.max_request_mb * 2**20,
    )


def _make_local_executor(core: Core, slots: tuple[Slot, ...]) -> tuple[LocalExecutor, LeaseWatch]:
    settings = core.settings
    watch = lease_watch(settings, SWEEP_EVERY_S)

    def run(record: ProcessRecord, slot: Slot, stop: StopRequest) -> None:
        core.runner.run(record, slot, stop)

    executor = LocalExecutor(
        core.registry,
        slots,
        core.machine,
        MemoryNeeds(settings.memory_needs_mb()),
        taking=core.runner.taking,
        run=run,
        watch=watch,
        take_over=_taking_over(core, watch),
        unload_pipeline=core.generation.unload_pipeline,
        children=core.children,
        lock_path=server_lock(settings),
        orphan_grace_s=settings.stop_grace_s,
        poll_interval_s=_POLL_OBJECTS_S if settings.registry == "objects" else POLL_INTERVAL_S,
    )
    return executor, watch


def _make_runpod_executor(core: Core) -> tuple[_ServersExecutor, LeaseWatch]:
    # A machine with a GPU does without.
    from loradash.executors.runpod import LOOK_EVERY_S, RunpodExecutor
    from loradash.wiring.runpod import job_rules, make_client

    settings = core.settings
    watch = lease_watch(settings, LOOK_EVERY_S)
    executor = RunpodExecutor(
        core.registry,
        make_client(settings),
        job_rules(settings),
        endpoint_id=settings.runpod_endpoint_id,
        max_jobs=settings.runpod_max_jobs,
        watch=watch,
        take_over=_taking_over(core, watch),
        lock_path=server_lock(settings),
    )
    return executor, watch


def _taking_over(core: Core, watch: LeaseWatch) -> Callable[[str], ProcessRecord]:
    return lambda process_id: take_over(
        core.registry, process_id, core.settings.max_attempts, watch
    )


def _look_at_store(store: ObjectStore) -> None:
    """Find out what a remote store does before work depends on it.

    Raises `StoreRefused`: that needs a user. One that is away now may come back by itself.
    """
    if not isinstance(store, Remote):
        return
    look: CallWithTimeout[Examination] = CallWithTimeout(store.examine, "look-at-store")
    try:
        found = look.result(_STORE_ANSWERS_S)
    except (StoreUnavailable, TimeoutError) as error:
        log.warning("store_is_away", error=str(error).partition("\n")[0])
        return
    log.info(
        "store_examined", provider=found.provider, notes=found.notes, **asdict(found.capabilities)
    )


def _counts(registry: QueuedRegistry, wanted: Status) -> dict[str, int]:
    return {kind: n for (kind, status), n in registry.counts().items() if status is wanted}


def _repeat(work: Callable[[], object], stopping: threading.Event) -> None:
    while not stopping.is_set():
        try:
            work()
        except (LoradashError, OSError) as error:
            log.warning("not_cleaned", error=str(error))
        stopping.wait(_CLEAN_EVERY_S)
