"""The worker: jobs of RunPod's queue, one process at a time, everything else in the bucket."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog

from loradash.domain.process import Status
from loradash.errors import DiskFull, EngineUnavailable, InvalidSettings
from loradash.executors.executor import NoExecutor
from loradash.executors.local import MemoryNeeds
from loradash.protocol.dispatch import Dispatcher
from loradash.protocol.job_json import job_progress
from loradash.runtime.gpu import Machine
from loradash.runtime.owner import name_machine
from loradash.services.path_policy import PathPolicy
from loradash.services.processes.views import process_view
from loradash.settings import Settings, visible_devices
from loradash.wiring.core import (
    Core,
    folders,
    lease_watch,
    make_core,
    make_services,
    sharing_registry,
)
from loradash.worker import sdk
from loradash.worker.handler import Handler
from loradash.worker.ownership import Ownership
from loradash.worker.work import POLL_INTERVAL_S, Worker

log = structlog.get_logger("loradash.wiring")

MAX_QUEUED_BYTES = 6 * 2**20  # RunPod's queue carries 10 MB, and base64 takes a third more


def make_worker(settings: Settings) -> Callable[[], None]:
    """Return what takes RunPod's jobs on this machine until a signal ends it.

    Raises `RegistryUnavailable` if the registry can't be opened.
    """
    settings = sharing_registry(settings)
    if settings.runpod_pod_id:
        name_machine(settings.runpod_pod_id)
    slot = Machine(visible_devices()).slots(settings.device)[0]
    device = "cuda" if slot.gpu_index is not None else settings.device
    core = make_core(settings, device=device)
    path_policy = PathPolicy([core.workspace.root, *folders(settings.allowed_paths)])
    services = make_services(core, NoExecutor(), path_policy, "serverless", MAX_QUEUED_BYTES)
    worker = Worker(
        Dispatcher(services, core.metrics, debug=settings.debug),
        core.registry,
        Ownership(
            core.registry,
            core.runner.taking,
            settings.max_attempts,
            partial(lease_watch, settings, POLL_INTERVAL_S),
        ),
        core.runner,
        slot,
        core.machine,
        MemoryNeeds(settings.memory_needs_mb()),
        core.generation.unload_pipeline,
        stop_grace_s=settings.stop_grace_s,
        patience_s=settings.store_patience_s,
    )

    def look(process_id: str) -> dict[str, Any]:
        return job_progress(process_view(core.registry.get(process_id), datetime.now(UTC)))

    def store_answers() -> None:
        next(iter(core.store.list("health")), None)

    def disk_has_room() -> None:
        if core.runner.disk_is_low():
            raise DiskFull("the workspace's disk is nearly full", remedy="Give it more space.")

    def gpu_is_there() -> None:
        if settings.require_gpu and slot.gpu_index is None:
            raise EngineUnavailable(
                f"no GPU is there ({core.machine.reason or 'none was found'})",
                remedy="Give the endpoint a GPU, or unset LORADASH_REQUIRE_GPU.",
            )

    def start() -> None:
        for orphan in core.children.end_orphans(settings.stop_grace_s):
            log.warning("orphan_ended", **orphan._asdict())
        handler = Handler(worker, sdk.tell_progress, look, jobs=_jobs_of(core))
        checks = [store_answers, disk_has_room, gpu_is_there]
        sdk.start(sdk.load(), handler, checks, worker.stop, settings.stop_grace_s)

    return start


class _Jobs:
    """The endpoint's jobs, for a worker that has a key for them."""

    def __init__(self, core: Core) -> None:
        from loradash.executors.runpod_client import JobStatus  # imports cost a start's time
        from loradash.wiring.runpod import job_rules, make_client

        self._registry = core.registry
        self._client = make_client(core.settings)
        self._rules = job_rules(core.settings)
        self._ended = (JobStatus.CANCELLED, JobStatus.TIMED_OUT)

    def send(self, process_id: str) -> None:
        """See `loradash.worker.handler.Jobs`."""
        from loradash.executors.runpod import send_job

        record = self._registry.get(process_id)
        if record.status is Status.PENDING and record.dispatch is None:  # else it was sent before
            send_job(self._client, self._registry, record, self._rules)

    def goes_on(self, job_id: str) -> bool:
        """See `loradash.worker.handler.Jobs`."""
        job = self._client.status(job_id)
        return job is not None and not job.status.final

    def was_ended(self, job_id: str) -> bool:
        """See `loradash.worker.handler.Jobs`."""
        job = self._client.status(job_id)
        return job is not None and job.status in self._ended


def _jobs_of(core: Core) -> _Jobs | None:
    if not core.settings.runpod_api_key.get_secret_value():
        return None
    try:
        return _Jobs(core)
    except InvalidSettings as error:
        log.warning("jobs_unreachable", error=str(error))
        return None
