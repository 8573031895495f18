"""What a worker does with a job: answer it, or run the process that it asks for to its end.

Synchronous and without RunPod's SDK, so that it can be tested as it is; `handler` puts it into the
SDK's event loop.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar

import structlog

from loradash.domain import process as changes
from loradash.domain.events import Event
from loradash.domain.ids import is_process_id, key_of_job
from loradash.domain.kinds import KINDS
from loradash.domain.process import Lease, ProcessRecord
from loradash.errors import LoradashError, NotFound
from loradash.executors.local import Memory, MemoryNeeds
from loradash.executors.runpod_rules import RUN_PROCESS
from loradash.protocol.context import Reply
from loradash.protocol.dispatch import Dispatcher
from loradash.protocol.job_json import begun_job, ended_job
from loradash.protocol.requests import makes_process, process_of_job
from loradash.registry.registry import ProcessRegistry
from loradash.runtime.gpu import Slot
from loradash.runtime.patience import AWAY, Patience
from loradash.runtime.supervisor import StopReason, StopRequest
from loradash.services.processes.running import Runner
from loradash.telemetry.masking import masked
from loradash.worker.ownership import Answer, Ownership

log = structlog.get_logger("loradash.worker")

POLL_INTERVAL_S = 2.0
_GPU_SHARE = 0.9
_MEMORY_PATIENCE_S = 60.0


Result = TypeVar("Result")


class JobStopped(Exception):
    """The job must not be answered: its process was given back, or another job runs it."""


class Worker:
    """Works off jobs. One process at a time; light requests are answered beside it."""

    def __init__(  # noqa: PLR0913 - made in one place
        self,
        dispatcher: Dispatcher,
        registry: ProcessRegistry,
        ownership: Ownership,
        runner: Runner,
        slot: Slot,
        memory: Memory,
        needs: MemoryNeeds,
        unload_pipeline: Callable[[str], None],
        *,
        stop_grace_s: float,
        patience_s: float,
    ) -> None:
        self._dispatcher = dispatcher
        self._registry = registry
        self._ownership = ownership
        self._runner = runner
        self._slot = slot
        self._memory = memory
        self._needs = needs
        self._unload_pipeline = unload_pipeline
        self._stop_grace_s = stop_grace_s
        self._patience_s = patience_s
        self._one_process = threading.Lock()
        self._stops: list[StopRequest] = []
        self._is_stopping = False

    def answer(self, job_id: str, data: object, stop: StopRequest) -> Reply:
        """Answer a request; a training or generation is submitted, once for each job.

        The reply is ``{"error": text}`` if anything is wrong with the request. A bucket or registry
        that is away says nothing of it: jobs that make a process wait for them, and what was
        submitted by an earlier delivery isn't checked again. Raises `JobStopped` where that can't
        be found out: the job is given back.
        """
        if is_control_planes(data):
            wanted = data.get("process_id") if isinstance(data, dict) else None
            if not isinstance(wanted, str) or not is_process_id(wanted):
                return {"error": f"process_id: a job of type {RUN_PROCESS} names its process"}
            return begun_job(wanted)
        key = key_of_job(job_id)
        if not makes_process(data):
            return self._dispatcher.answer(data, request_id=job_id, idempotency_key=key)
        assert isinstance(data, dict)
        process_id = process_of_job(data, job_id)
        with self._working(stop):
            patience = self._patience(process_id, stop)
            if self._or_stopped(patience, lambda: self._is_known(process_id)):
                return {**begun_job(process_id), "request_id": job_id}
            return self._or_stopped(
                patience,
                lambda: self._dispatcher.answer(
                    data, request_id=job_id, idempotency_key=key, waits=True
                ),
            )

    def run(
        self,
        process_id: str,
        stop: StopRequest,
        on_event: Callable[[Event], None] = lambda _event: None,
        *,
        follow: bool = True,
    ) -> Reply:
        """Run a process, or follow whoever runs it, to its end; return how it ended.

        Without ``follow`` a lease holder that renews its lease is left alone at once: whoever
        sent the job looks after the process, and a GPU that only waits costs money. Raises
        `JobStopped` where nothing may be said: the worker stops, the job was ended, or how the
        process stands can't be found out within the patience with a registry that is away.
        """
        first_seen: Lease | None = None
        try:
            with self._working(stop):
                patience = self._patience(process_id, stop)
                ask = self._ownership.asking(process_id, self._slot.name)
                while True:
                    taken = self._or_stopped(patience, ask)
                    if taken.is_ours:
                        return self._run_ours(taken, stop, on_event)
                    if taken.record.status.is_end:
                        return ended_job(taken.record)
                    lease = taken.record.lease
                    if not follow and first_seen and lease != first_seen:
                        return ended_job(taken.record)
                    first_seen = first_seen or lease
                    _pause(stop)  # another worker holds the lease; retry until it ends or expires
        except JobStopped:
            if stop.reason == "job_ended":
                self.cancel(process_id, stop)
            raise
        except LoradashError as error:
            return {"error": masked(str(error)), "process_id": process_id}

    def cancel(self, process_id: str, stop: StopRequest) -> None:
        """End a process whose job has ended; one that has ended itself stays as it is.

        A registry that is away is waited for, unless this worker stops: no other program does it.
        """

        def ask() -> None:
            self._registry.change(
                process_id, lambda record: changes.cancel_requested(record, datetime.now(UTC))
            )

        self._stops.append(stop)
        try:
            self._patience(process_id, stop)(ask, insist=not self._is_stopping)
        except LoradashError as error:
            log.warning("process_not_cancelled", process_id=process_id, error=error.message)
        finally:
            self._stops.remove(stop)

    def stop(self, reason: StopReason = "shutdown") -> None:
        """Take nothing more, and stop what runs with a checkpoint; the second time at once.

        To be called from a signal handler: no locks here.
        """
        self._is_stopping = True
        for stop in list(self._stops):
            stop(reason, self._stop_grace_s)

    def _run_ours(
        self, taken: Answer, stop: StopRequest, on_event: Callable[[Event], None]
    ) -> Reply:
        record = taken.record
        with self._one_process:
            self._make_room(record, stop)
            # A job whose end can't be written gets no reply: the process is taken up again.
            self._or_stopped(_at_once, lambda: self._runner.run(record, self._slot, stop, on_event))
        patience = self._patience(record.id, stop)
        record = self._or_stopped(patience, lambda: self._registry.get(record.id))
        if record.status.is_end:
            return ended_job(record)
        if stop.reason == "lease_lost":  # another worker has it, whose job will get the reply
            log.warning("process_is_elsewhere", process_id=record.id)
        raise JobStopped

    @contextmanager
    def _working(self, stop: StopRequest) -> Iterator[None]:
        """Stop the work when the worker stops. Raises `JobStopped` if it has already."""
        self._stops.append(stop)
        try:
            if self._is_stopping or stop.count:
                raise JobStopped
            yield
        finally:
            self._stops.remove(stop)

    def _patience(self, process_id: str, stop: StopRequest) -> Patience:
        return Patience(self._patience_s, stop, process_id=process_id)

    def _or_stopped(
        self, patience: Callable[[Callable[[], Result]], Result], work: Callable[[], Result]
    ) -> Result:
        """Work with patience; an outage that outlasts it gives the job back. `JobStopped`."""
        try:
            return patience(work)
        except AWAY as error:
            log.warning("job_given_back", error=error.message)
            raise JobStopped from error

    def _is_known(self, process_id: str) -> bool:
        try:
            self._registry.get(process_id)
        except NotFound:
            return False
        return True

    def _make_room(self, record: ProcessRecord, stop: StopRequest) -> None:
        """Wait a little for memory that an earlier process is about to give back."""
        if KINDS[record.kind].uses_pipeline:
            return  # which may hold the memory itself
        self._unload_pipeline(self._slot.name)
        total = self._memory.total_mb(self._slot)
        if self._slot.gpu_index is None or total is None:
            return
        need = self._needs.of(record.kind, total, is_cpu=False)
        give_up_s = time.monotonic() + _MEMORY_PATIENCE_S
        while (free := self._memory.free_mb(self._slot)) is not None and free < need:
            if stop.count or time.monotonic() > give_up_s:
                log.warning("memory_is_short", free_mb=free, needed_mb=need)
                return  # the engine says so itself, with `out_of_memory`, if it's really too little
            time.sleep(0.5)


def is_control_planes(data: object) -> bool:
    """Whether a control plane sent this job, and looks after its process."""
    return isinstance(data, dict) and data.get("type") == RUN_PROCESS


def runs_process(data: object) -> bool:
    """Whether the job lasts as long as a process does."""
    return is_control_planes(data) or makes_process(data)


def _at_once(work: Callable[[], Result]) -> Result:
    return work()


def _pause(stop: StopRequest) -> None:
    until_s = time.monotonic() + POLL_INTERVAL_S
    while time.monotonic() < until_s:
        if stop.count:
            raise JobStopped
        time.sleep(0.05)
