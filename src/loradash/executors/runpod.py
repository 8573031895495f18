"""The executor of a control plane: a RunPod Serverless endpoint works off the registry's queue.

For each waiting process a job is sent that names it; the worker that gets the job takes the
process. What is known stands in the record (`Dispatch`), so a restart of the control plane changes
nothing; a job that is sent once too often finds its process taken and costs a moment.

One thread looks at the queue and alone sends jobs; requests only leave notes for it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import structlog

from loradash.domain import process as changes
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import ExecutorRefused, LoradashError
from loradash.executors.local import QueuedRegistry
from loradash.executors.runpod_client import EndpointHealth, JobStatus, RunpodJob
from loradash.executors.runpod_rules import JobRules, Verdict, input_of, judge, waiting_reason
from loradash.executors.server_lock import only_one
from loradash.executors.state import EndpointState, ExecutorState
from loradash.runtime.lease_watch import LeaseWatch

log = structlog.get_logger("loradash.executor")

LOOK_EVERY_S = 2.0
_LOOK_IDLE_EVERY_S = 15.0  # what other programs submit; each look costs requests to the registry
_ASK_EVERY_S = 5.0
_HEALTH_EVERY_S = 15.0
_REFUSED_PAUSE_S = 30.0
_BLIND_S = 60.0  # after a look so long ago nothing is known of the time between
_CANCEL_PATIENCE_S = 8.0  # the owner sees a cancel in the registry, which is the better way
_ASK_AT_ONCE = 8
_MOST = 1000  # of what waits, and of what runs; more jobs than that can't be asked for
_LOCK_PATIENCE_S = 1.0


class Client(Protocol):
    """What is needed of `loradash.executors.runpod_client.RunpodClient`."""

    def run(
        self,
        payload: Mapping[str, Any],
        *,
        execution_timeout_s: float,
        ttl_s: float,
        webhook: str = "",
    ) -> str:
        """Queue a job; return its id."""
        ...

    def status(self, job_id: str) -> RunpodJob | None:
        """Return a job, or None if RunPod doesn't know it."""
        ...

    def cancel(self, job_id: str) -> bool:
        """Cancel a job; whether RunPod knew it."""
        ...

    def health(self) -> EndpointHealth:
        """Count jobs and workers."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class _Sight(NamedTuple):
    """How a job was seen, since when, and when last; on the monotonic clock."""

    state: str
    since_s: float
    last_s: float


def send_job(
    client: Client, registry: QueuedRegistry, record: ProcessRecord, rules: JobRules
) -> ProcessRecord:
    """Send a job for a waiting process and note it in its record, which is returned.

    If the note can't be made, the job is there all the same, and another one may follow it.
    """
    job_id = client.run(
        input_of(record.id), execution_timeout_s=rules.execution_timeout_s(record.kind),
        ttl_s=rules.ttl_s(record.kind), webhook=rules.webhook,
    )  # fmt: skip
    log.info("job_sent", process_id=record.id, job=job_id)
    noted = registry.change(
        record.id,
        lambda now_is: changes.dispatched(
            now_is, job_id, after_attempt=record.attempt_count, now=datetime.now(UTC)
        ),
    )
    if noted.status is Status.CANCELLED:  # meanwhile, and nobody knew of the job
        client.cancel(job_id)
    return noted


class RunpodExecutor:
    """Sends what waits to an endpoint, and sees to it that a worker takes it."""

    def __init__(
        self,
        registry: QueuedRegistry,
        client: Client,
        rules: JobRules,
        *,
        endpoint_id: str,
        max_jobs: int,
        watch: LeaseWatch,
        take_over: Callable[[str], ProcessRecord],
        lock_path: Path,
    ) -> None:
        self._registry = registry
        self._client = client
        self._rules = rules
        self._endpoint_id = endpoint_id
        self._max_jobs = max_jobs
        self._watch = watch
        self._take_over = take_over
        self._lock_path = lock_path
        self._lock_file: IO[str] | None = None
        self._wake = threading.Event()
        self._stopping = False
        self._error = ""
        self._health: EndpointHealth | None = None
        self._next_health_s = 0.0
        self._something_waits = False
        self._unwanted: deque[str] = deque()
        self._cancel_seen_s: dict[str, float] = {}
        self._cancel_asked: set[str] = set()
        self._next_ask_s: dict[str, float] = {}
        self._sights: dict[tuple[str, int], _Sight] = {}
        self._pool = ThreadPoolExecutor(_ASK_AT_ONCE, thread_name_prefix="runpod")
        self._thread = threading.Thread(target=self._work, name="executor", daemon=True)

    def start(self) -> None:
        """Begin to send jobs. Raises `AlreadyRunning` if another server has this workspace."""
        self._lock_file = only_one(self._lock_path, _LOCK_PATIENCE_S)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Send nothing more. What runs at RunPod goes on, and the next start finds it."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident:
            self._thread.join(timeout_s)
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()
        if self._lock_file:
            self._lock_file.close()

    def stop_now(self) -> None:
        """Send nothing more; to be called from a signal handler."""
        self._stopping = True

    def submitted(self, process_id: str) -> None:
        """See `Executor.submitted`."""
        del process_id
        self._wake.set()

    def cancelled(self, record: ProcessRecord) -> None:
        """See `Executor.cancelled`: a job that waits for a worker is taken out of the queue."""
        if record.status is Status.CANCELLED and record.dispatch:
            self._unwanted.append(record.dispatch.job_id)
            self._wake.set()

    def state(self) -> ExecutorState:
        """See `Executor.state`."""
        return ExecutorState(endpoint=self._endpoint_state(), error=self._error)

    def _endpoint_state(self) -> EndpointState:
        health = self._health
        if health is None:
            return EndpointState(id=self._endpoint_id)
        reason = waiting_reason(health.jobs, health.workers) if self._something_waits else ""
        return EndpointState(
            id=self._endpoint_id, jobs=dict(health.jobs), workers=dict(health.workers),
            waiting_reason=reason,
        )  # fmt: skip

    def _work(self) -> None:
        while not self._stopping:
            problem, pause_s = "", min(LOOK_EVERY_S, self._watch.look_every_s)
            try:
                if not self.look():
                    pause_s = _LOOK_IDLE_EVERY_S
            except LoradashError as error:
                problem = str(error)
                if problem != self._error:
                    log.warning("queue_poll_failed", error=problem)
                if isinstance(error, ExecutorRefused):
                    pause_s = _REFUSED_PAUSE_S
            except Exception as error:  # the queue must go on, whatever one look into it has met
                problem = repr(error)
                if problem != self._error:
                    log.exception("queue_poll_failed")
            self._error = problem
            self._wake.wait(pause_s)
            self._wake.clear()

    def look(self) -> bool:
        """Do once all that is to be done; whether there is anything that must be looked after.

        Raises what the registry and the client raise; what was done until then stays done.
        """
        self._cancel_unwanted()
        running = self._running()
        paused = self._registry.paused()
        waiting = self._registry.pending(limit=_MOST)
        self._something_waits = bool(waiting)
        self._end_overdue_cancels(running)
        sent = [record for record in waiting if record.dispatch]
        if paused:
            self._recall([record for record in sent if not record.was_taken_since_dispatch])
        else:
            self._look_after(sent)
            self._send(
                [record for record in waiting if record.dispatch is None],
                room=self._max_jobs - len(running) - len(sent),
            )
        self._forget_all_but([*waiting, *running])
        self._look_at_health(is_idle=not waiting and not running)  # only to be shown: last
        return bool(waiting or running)

    def _cancel_unwanted(self) -> None:
        """Cancel the jobs that were replaced or that their process no longer needs."""
        while self._unwanted:
            try:
                self._client.cancel(self._unwanted[0])
            except ExecutorRefused as error:  # at worst a worker finds its process cancelled
                log.warning("job_not_cancelled", job=self._unwanted[0], error=str(error))
            self._unwanted.popleft()

    def _running(self) -> list[ProcessRecord]:
        """Return what runs, after taking over what has lost its owner."""
        running = []
        for record in self._watch.look(self._registry.running):
            if self._watch.is_lost(record):
                record = self._take_over(record.id)
                if record.status is not Status.RUNNING:
                    log.warning("owner_lost", process_id=record.id, status=str(record.status))
            if record.status is Status.RUNNING:
                running.append(record)
        return running

    def _send(self, unsent: list[ProcessRecord], room: int) -> None:
        """Send jobs for the first of these processes, as many as there is room for."""
        for record in unsent[: max(0, room)]:
            if self._stopping:
                break
            send_job(self._client, self._registry, record, self._rules)

    def _look_after(self, sent: list[ProcessRecord]) -> None:
        """Find out what becomes of the jobs that were sent, and act on it."""
        now_s = time.monotonic()
        due = [one for one in sent if self._next_ask_s.get(one.id, 0.0) <= now_s]
        jobs = self._pool.map(self._job_of, due)
        for record, job in zip(due, jobs, strict=True):
            self._next_ask_s[record.id] = now_s + _ASK_EVERY_S
            verdict = judge(record, job, self._seen(record, job), self._rules)
            if verdict.action != "wait":
                log.warning(
                    "job_ended_without_attempt", process_id=record.id, action=verdict.action,
                    reason=verdict.reason,
                )  # fmt: skip
                self._act(record, verdict)

    def _job_of(self, record: ProcessRecord) -> RunpodJob | None:
        assert record.dispatch
        return self._client.status(record.dispatch.job_id)

    def _seen(self, record: ProcessRecord, job: RunpodJob | None) -> timedelta:
        """How long the job has been as it is now, as far as we have seen.

        While nothing could be seen, because RunPod or the registry was away, it may have been
        otherwise, and whoever works on the process couldn't say so: that time doesn't count.
        """
        assert record.dispatch
        key = (record.dispatch.job_id, record.attempt_count)
        state = "missing" if job is None else f"{job.status} {job.word}".strip()
        now_s = time.monotonic()
        before = self._sights.get(key)
        is_new = before is None or before.state != state
        if before is None or is_new or now_s - before.last_s > _BLIND_S:
            before = _Sight(state, now_s, now_s)
        if is_new and (job is None or job.status is JobStatus.UNKNOWN):
            log.warning("job_unclear", process_id=record.id, job=key[0], state=state)
        self._sights[key] = before._replace(last_s=now_s)
        return timedelta(seconds=now_s - before.since_s)

    def _act(self, record: ProcessRecord, verdict: Verdict) -> None:
        dispatch, now = record.dispatch, datetime.now(UTC)
        assert dispatch

        def is_outdated(now_is: ProcessRecord) -> bool:
            """A worker has it after all, or it was ended."""
            return now_is.status is not Status.PENDING or now_is.dispatch != dispatch

        def change(now_is: ProcessRecord) -> ProcessRecord:
            if is_outdated(now_is):
                return now_is
            if verdict.action == "cancel":
                return changes.cancel_requested(now_is, now)
            assert verdict.problem
            return changes.given_up(now_is, verdict.problem, now)

        if verdict.action == "resend":
            if is_outdated(self._registry.get(record.id)):
                return
            # The new job first: should this program end now, the process has one all the same.
            send_job(self._client, self._registry, record, self._rules)
        else:
            self._registry.change(record.id, change)
        if verdict.action != "cancel":
            self._client.cancel(dispatch.job_id)

    def _recall(self, sent: list[ProcessRecord]) -> None:
        """The queue is paused: take out of RunPod's queue what no worker has taken yet."""
        for record in sent:
            assert record.dispatch
            job_id = record.dispatch.job_id
            recalled = self._registry.change(
                record.id,
                lambda now_is, job_id=job_id: changes.recalled(  # type: ignore[misc]
                    now_is, job_id, datetime.now(UTC)
                ),
            )
            if recalled.dispatch is None:
                self._client.cancel(job_id)

    def _end_overdue_cancels(self, running: Sequence[ProcessRecord]) -> None:
        """Tell RunPod, too, if an owner hasn't acted within moments on a cancel that we have seen.

        When it was asked for stands in the record by the clock of whoever asked, who may be
        another program on another machine.
        """
        now_s = time.monotonic()
        for record in running:
            dispatch = record.dispatch
            if not record.cancel_requested_at or not dispatch:
                continue
            seen_s = self._cancel_seen_s.setdefault(dispatch.job_id, now_s)
            if dispatch.job_id not in self._cancel_asked and now_s - seen_s > _CANCEL_PATIENCE_S:
                self._cancel_asked.add(dispatch.job_id)
                self._client.cancel(dispatch.job_id)

    def _look_at_health(self, *, is_idle: bool) -> None:
        now_s = time.monotonic()
        if now_s < self._next_health_s or (is_idle and self._health is not None):
            return
        self._next_health_s = now_s + _HEALTH_EVERY_S
        self._health = self._client.health()

    def _forget_all_but(self, records: list[ProcessRecord]) -> None:
        ids = {record.id for record in records}
        jobs = {record.dispatch.job_id for record in records if record.dispatch}
        self._next_ask_s = {one: s for one, s in self._next_ask_s.items() if one in ids}
        self._cancel_seen_s = {one: s for one, s in self._cancel_seen_s.items() if one in jobs}
        self._cancel_asked &= jobs
        self._sights = {key: sight for key, sight in self._sights.items() if key[0] in jobs}
