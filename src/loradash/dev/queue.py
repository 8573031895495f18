"""The emulated queue: a state machine without I/O, safe to call from any thread.

Time comes from outside, and what time does to jobs is done by `Queue.tick`.
"""

import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from loradash.dev.jobs import Delivery, Job, Status
from loradash.dev.workers import Worker

_LOG_EVENTS = 20_000
_REMOVED_JOBS = 5_000  # how many are kept for inspection
_SYNC_RETENTION = 30  # /runsync keeps results for one 30th of the time of /run
_MAX_POLICY_MS = 7 * 24 * 3600 * 1000
_EXECUTION_TIMEOUT_MS = 600_000
_TTL_MS = 24 * 3600 * 1000
_HEARD_LATELY_S = 15.0


class Refused(Exception):
    """A call that the queue doesn't do, with the HTTP status to say so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Rules:
    """How the queue behaves; the defaults are RunPod's where they are known."""

    requeue_after_s: float = 30.0
    """How long no ping may name a job before another worker gets it."""
    retention_s: float = 1800.0
    """How long results of ``/run`` are kept; those of ``/runsync`` for one 30th of it."""
    max_deliveries: int = 5
    """A job that this many workers have lost fails."""


class Queue:
    """Jobs and workers of all endpoints. Endpoints exist as soon as they are named."""

    def __init__(
        self, rules: Rules | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rules = rules or Rules()
        self._clock = clock
        self._began_s = clock()
        self._began_at = time.time()
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        self._waiting: dict[str, deque[Job]] = {}
        self._workers: dict[tuple[str, str], Worker] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._webhooks: list[tuple[str, dict[str, Any]]] = []
        self._log: deque[dict[str, Any]] = deque(maxlen=_LOG_EVENTS)
        self._changed: Callable[[], None] = lambda: None

    def on_change(self, changed: Callable[[], None]) -> None:
        """Have this called, by whatever thread, when something may have come for who waits."""
        self._changed = changed

    # What clients do

    def submit(self, endpoint: str, request: Any, *, sync: bool) -> str:
        """Queue a job; return its id."""
        if not isinstance(request, dict) or "input" not in request:
            raise Refused(400, "the body must be a JSON object with the key input")
        policy = request.get("policy")
        policy = {} if policy is None else policy
        webhook = request.get("webhook") or ""
        if not isinstance(policy, dict) or not isinstance(webhook, str):
            raise Refused(400, "policy must be an object, and webhook a URL")
        with self._lock:
            job = Job(
                id=f"{'sync-' if sync else ''}{uuid.uuid4()}-u1",
                endpoint=endpoint,
                input=request["input"],
                sync=sync,
                queued_s=self._clock(),
                execution_timeout_s=_policy_s(policy, "executionTimeout", _EXECUTION_TIMEOUT_MS),
                ttl_s=_policy_s(policy, "ttl", _TTL_MS),
                webhook=webhook,
                s3_config=request.get("s3Config"),
            )
            self._jobs[job.id] = job
            self._queue_of(endpoint).append(job)
            self._note("submitted", job)
            self._changed()
            return job.id

    def status(self, endpoint: str, job_id: str) -> dict[str, Any]:
        """Return what ``/status`` replies."""
        with self._lock:
            return self._find(endpoint, job_id).for_client()

    def is_final(self, endpoint: str, job_id: str) -> bool:
        """Whether a job is final, or gone."""
        with self._lock:
            job = self._jobs.get(job_id)
            return job is None or job.endpoint != endpoint or bool(job.removed or job.status.final)

    def stream(self, endpoint: str, job_id: str) -> dict[str, Any]:
        """Return what ``/stream`` replies: each piece of output once."""
        with self._lock:
            job = self._find(endpoint, job_id)
            pieces, job.stream = job.stream, []
            return {
                "id": job.id,
                "status": job.status,
                "stream": [{"output": piece} for piece in pieces],
            }

    def cancel(self, endpoint: str, job_id: str) -> dict[str, Any]:
        """Cancel a job, unless it's final already."""
        with self._lock:
            job = self._find(endpoint, job_id)
            if not job.status.final:
                self._stop(job)
                self._end(job, Status.CANCELLED)
            return {"id": job.id, "status": job.status}

    def retry(self, endpoint: str, job_id: str) -> dict[str, Any]:
        """Queue a failed job again, with the same id and input."""
        with self._lock:
            job = self._find(endpoint, job_id)
            if job.status not in (Status.FAILED, Status.TIMED_OUT):
                raise Refused(400, f"the job is {job.status}: only failed ones can be retried")
            job.said, job.stream, job.worker = {}, [], ""
            job.run_begins = len(job.deliveries)
            job.queued_s, job.started_s, job.ended_s = self._clock(), 0.0, 0.0
            for worker in self._workers.values():  # or it would be told to stop the new run
                worker.to_stop = [each for each in worker.to_stop if each != job.id]
            job.status = Status.IN_QUEUE
            self._queue_of(endpoint).append(job)
            self._counts[endpoint, "retried"] += 1
            self._note("retried", job)
            self._changed()
            return {"id": job.id, "status": job.status}

    def purge(self, endpoint: str) -> int:
        """Cancel all jobs that wait; return how many."""
        with self._lock:
            waiting = [job for job in self._queue_of(endpoint) if job.status is Status.IN_QUEUE]
            for job in waiting:
                self._end(job, Status.CANCELLED)
            return len(waiting)

    def health(self, endpoint: str) -> dict[str, dict[str, int]]:
        """Count jobs and workers; workers are those that were heard lately."""
        with self._lock:
            jobs = [job for job in self._of(endpoint) if not job.removed]
            busy = {delivery.worker for job in jobs for delivery in job.active}
            lately_s = self._clock() - _HEARD_LATELY_S
            alive = [
                worker
                for (where, _), worker in self._workers.items()
                if where == endpoint and (worker.open_polls or worker.heard_s >= lately_s)
            ]
            well = [worker for worker in alive if not worker.unhealthy]
            running = sum(worker.id in busy for worker in well)
            states = Counter(job.status for job in jobs)
            return {
                "jobs": {
                    "completed": self._counts[endpoint, "completed"],
                    "failed": self._counts[endpoint, "failed"],
                    "inProgress": states[Status.IN_PROGRESS],
                    "inQueue": states[Status.IN_QUEUE],
                    "retried": self._counts[endpoint, "retried"],
                },
                "workers": {
                    "idle": len(well) - running,
                    "running": running,
                    "ready": len(well) - running,
                    "initializing": 0,
                    "throttled": 0,
                    "unhealthy": len(alive) - len(well),
                },
            }

    # What workers do

    def polling(self, endpoint: str, worker: str) -> AbstractContextManager[None]:
        """Count a worker as alive as long as its poll is open."""
        with self._lock:
            return self._heard(endpoint, worker).polling()

    def has_job_for(self, endpoint: str, worker: str) -> bool:
        """Whether `take` would give this worker a job."""
        with self._lock:
            return self._next_for(endpoint, worker) is not None

    def take(
        self, endpoint: str, worker: str, *, leave: bool = False, swallow: bool = False
    ) -> dict[str, Any] | None:
        """Hand the oldest job to a worker.

        ``leave`` keeps it in the queue too, for one more worker; ``swallow`` notes that the worker
        won't be told.
        """
        with self._lock:
            self._heard(endpoint, worker)
            job = self._next_for(endpoint, worker)
            if job is None:
                return None
            if not leave:
                self._queue_of(endpoint).remove(job)
            now_s = self._clock()
            if job.status is Status.IN_QUEUE:
                job.status, job.started_s = Status.IN_PROGRESS, now_s
            job.worker = worker
            job.deliveries.append(Delivery(worker, now_s, now_s, swallowed=swallow))
            stops = self._heard(endpoint, worker).to_stop
            if job.id in stops:
                stops.remove(job.id)
            self._note("taken", job, worker=worker, left=leave, swallowed=swallow)
            if leave:
                self._changed()
            return job.for_worker()

    def ping(self, endpoint: str, worker: str, job_ids: list[str], unhealthy: str = "") -> None:
        """Note that a worker lives and has these jobs."""
        with self._lock:
            heard = self._heard(endpoint, worker)
            if unhealthy and not heard.unhealthy:
                self._note("unhealthy", worker=worker, reason=unhealthy)
            heard.unhealthy = unhealthy
            for job_id in job_ids:
                job = self._jobs.get(job_id)
                delivery = job.delivery_to(worker) if job else None
                if delivery:
                    delivery.seen_s = self._clock()

    def stops(self, endpoint: str, worker: str) -> list[str]:
        """Return, once, which jobs a worker is to stop."""
        with self._lock:
            heard = self._heard(endpoint, worker)
            job_ids, heard.to_stop = heard.to_stop, []
            if job_ids:
                self._note("stop told", worker=worker, jobs=job_ids)
            return job_ids

    def progress(self, endpoint: str, worker: str, job_id: str, output: Any) -> bool:
        """Note a worker's progress; return whether it counts."""
        with self._lock:
            job = self._accepting(endpoint, worker, job_id, "progress")
            if job is None:
                return False
            job.said = {"output": output}
            self._note("progress", job, worker=worker)
            self._changed()
            return True

    def post_stream(self, endpoint: str, worker: str, job_id: str, piece: Any) -> bool:
        """Note a piece of output; return whether it counts."""
        with self._lock:
            job = self._accepting(endpoint, worker, job_id, "stream")
            if job is None:
                return False
            job.stream.append(piece)
            self._changed()
            return True

    def done(self, endpoint: str, worker: str, job_id: str, result: dict[str, Any]) -> bool:
        """End a job with a worker's result; return whether it counts.

        It does as long as the job is in progress, whoever else has got it meanwhile: a queue that
        delivers at least once has no reason to throw a result away.
        """
        with self._lock:
            job = self._accepting(endpoint, worker, job_id, "result")
            if job is None:
                return False
            delivery = job.delivery_to(worker)
            assert delivery
            if delivery is not job.deliveries[-1]:
                job.overtaken_results += 1
                self._note("overtaken result", job, worker=worker)
            failed = result.get("error") is not None
            job.worker, job.started_s = worker, delivery.taken_s
            job.said = {key: result[key] for key in ("output", "error") if key in result}
            self._end(job, Status.FAILED if failed else Status.COMPLETED)
            return True

    # What time does

    def tick(self) -> None:
        """Do what is due: expiry, timeouts, lost workers, retention."""
        with self._lock:
            now_s = self._clock()
            for job in list(self._jobs.values()):
                if job.removed:
                    continue
                if job.status.final:
                    keep_s = self._rules.retention_s / (_SYNC_RETENTION if job.sync else 1)
                    if now_s >= job.ended_s + keep_s:
                        self._remove(job, "retention")
                elif now_s >= job.queued_s + job.ttl_s:
                    self._stop(job)
                    self._remove(job, "ttl")
                elif job.status is Status.IN_PROGRESS:
                    self._watch(job, now_s)
            self._forget()

    def webhooks_due(self) -> list[tuple[str, dict[str, Any]]]:
        """Return, once, which URLs are to be told of which final states."""
        with self._lock:
            due, self._webhooks = self._webhooks, []
            return due

    # What tests look at

    def inspect(self) -> list[dict[str, Any]]:
        """Return all jobs, also those that clients don't find any more."""
        with self._lock:
            return [job.for_inspection() for job in self._jobs.values()]

    def log(self) -> list[dict[str, Any]]:
        """Return what has happened, oldest first."""
        with self._lock:
            return list(self._log)

    def note(self, event: str, **facts: Any) -> None:
        """Log something that happened outside of the queue."""
        with self._lock:
            self._note(event, **facts)

    def _watch(self, job: Job, now_s: float) -> None:
        if now_s >= job.started_s + job.execution_timeout_s:
            self._stop(job)
            job.said["error"] = "job timed out after executionTimeout"
            self._end(job, Status.TIMED_OUT)
            return
        for delivery in job.active:
            if now_s >= delivery.seen_s + self._rules.requeue_after_s:
                delivery.active = False
                self._note("lost", job, worker=delivery.worker)
        if job.active:
            return
        delivered = len(job.deliveries) - job.run_begins
        if delivered >= self._rules.max_deliveries:
            job.said["error"] = f"job was delivered {delivered} times, and each worker was lost"
            self._end(job, Status.FAILED)
            return
        job.status, job.worker, job.said, job.started_s = Status.IN_QUEUE, "", {}, 0.0
        queue = self._queue_of(job.endpoint)
        if job not in queue:
            queue.appendleft(job)  # it has waited longer than the others
        self._counts[job.endpoint, "retried"] += 1
        self._note("requeued", job)
        self._changed()

    def _accepting(self, endpoint: str, worker: str, job_id: str, what: str) -> Job | None:
        """Return the job if it takes posts of this worker, else count the post as late."""
        self._heard(endpoint, worker)
        job = self._jobs.get(job_id)
        if job is None or job.endpoint != endpoint:
            self._note("late post", worker=worker, what=what, job=job_id, status="unknown")
            return None
        delivery = job.delivery_to(worker)
        running = job.status is Status.IN_PROGRESS and not job.removed
        # Progress of a worker that was given up would hide that of the one that has the job.
        if running and delivery and (delivery.active or what == "result"):
            return job
        job.late_posts += 1
        self._note("late post", job, worker=worker, what=what, status=job.removed or job.status)
        return None

    def _end(self, job: Job, status: Status) -> None:
        job.status, job.ended_s = status, self._clock()
        self._let_go(job)
        if status is Status.COMPLETED:
            self._counts[job.endpoint, "completed"] += 1
        elif status in (Status.FAILED, Status.TIMED_OUT):
            self._counts[job.endpoint, "failed"] += 1
        if job.webhook:
            self._webhooks.append((job.webhook, job.for_client()))
        self._note("ended", job, status=status, worker=job.worker)
        self._changed()

    def _remove(self, job: Job, reason: str) -> None:
        job.removed = reason
        self._let_go(job)
        job.input, job.said, job.stream = None, {}, []
        self._note("removed", job, reason=reason)
        self._changed()

    def _let_go(self, job: Job) -> None:
        for delivery in job.deliveries:
            delivery.active = False
        queue = self._queue_of(job.endpoint)
        if job in queue:
            queue.remove(job)

    def _stop(self, job: Job) -> None:
        for delivery in job.active:
            self._worker(job.endpoint, delivery.worker).to_stop.append(job.id)
        self._changed()

    def _forget(self) -> None:
        removed = [job.id for job in self._jobs.values() if job.removed]
        for job_id in removed[: max(0, len(removed) - _REMOVED_JOBS)]:
            del self._jobs[job_id]

    def _find(self, endpoint: str, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if job is None or job.endpoint != endpoint or job.removed:
            raise Refused(404, "job not found")
        return job

    def _of(self, endpoint: str) -> list[Job]:
        return [job for job in self._jobs.values() if job.endpoint == endpoint]

    def _next_for(self, endpoint: str, worker: str) -> Job | None:
        for job in self._queue_of(endpoint):
            delivery = job.delivery_to(worker)
            if delivery is None or not delivery.active:  # a second copy is for another worker
                return job
        return None

    def _queue_of(self, endpoint: str) -> deque[Job]:
        return self._waiting.setdefault(endpoint, deque())

    def _worker(self, endpoint: str, worker: str) -> Worker:
        known = self._workers.get((endpoint, worker))
        if known is None:
            known = self._workers[endpoint, worker] = Worker(worker, self._clock())
            self._note("worker", worker=worker)
        return known

    def _heard(self, endpoint: str, worker: str) -> Worker:
        heard = self._worker(endpoint, worker)
        heard.heard_s = self._clock()
        return heard

    def _note(self, event: str, about: Job | None = None, /, **facts: Any) -> None:
        at_s = self._clock() - self._began_s
        which = {"job": about.id} if about else {}
        self._log.append(
            {"time": self._began_at + at_s, "at_s": at_s, "event": event, **which, **facts}
        )


def _policy_s(policy: dict[str, Any], name: str, default_ms: int) -> float:
    value = policy.get(name, default_ms)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(400, f"policy.{name} must be a number of milliseconds")
    if not 0 < value <= _MAX_POLICY_MS:
        raise Refused(400, f"policy.{name} must be more than 0 and at most 7 days")
    return value / 1000
