"""Jobs as RunPod's API shows them.

A training or generation is its process: the job's id is the process id, so its status outlives
the server. Every other request is answered within moments; its reply is kept for a while under the
request's id, as RunPod keeps it.
"""

import heapq
import json
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from loradash.domain.ids import is_process_id
from loradash.errors import ConflictingState, NotFound
from loradash.protocol.context import Reply
from loradash.protocol.dispatch import Dispatcher, new_request_id
from loradash.protocol.job_json import (
    endpoint_health,
    finished_job,
    is_error,
    job_state,
    process_job,
    stream_progress,
)
from loradash.services.processes.service import ProcessService

KEPT_S = {"run": 30 * 60.0, "runsync": 60.0}
"""Seconds for which a reply can be fetched again (RunPod's documented retention)."""
MAX_KEPT_BYTES = 64 * 2**20
"""Bytes of JSON that are kept, of replies and of the inputs of failed jobs together."""
MAX_RETRIED_INPUT_BYTES = 2**18
_JOB_BYTES = 2000  # what a job takes beside its texts
_THREADS = 16


@dataclass
class _Job:
    """A job. What is kept of one that has ended is JSON text: its length is what it takes."""

    id: str
    kept_s: float
    future: "Future[Reply] | None" = None
    created_s: float = field(default_factory=time.monotonic)
    began_s: float | None = None
    ended_s: float | None = None
    reply: bytes | None = None
    input: bytes | None = None
    """Kept of failed jobs only, which can be retried."""
    streamed: bool = False

    @property
    def size_bytes(self) -> int:
        return _JOB_BYTES + len(self.reply or b"") + len(self.input or b"")


class JobService:
    """Runs requests as jobs. Thread-safe; waiting is left to the caller."""

    def __init__(self, dispatcher: Dispatcher, processes: ProcessService) -> None:
        self._dispatcher = dispatcher
        self._processes = processes
        self._jobs: dict[str, _Job] = {}
        self._expiries: list[tuple[float, str, int]] = []
        self._kept_bytes = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="job")
        self._stream_positions: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._stream_lock = threading.Lock()
        self._retried = 0

    def start(
        self, data: object, base_url: str, route: str, *, follows_links: bool = True
    ) -> tuple[str, "Future[Reply]"]:
        """Begin to answer a request; return the job's id and its coming reply.

        ``follows_links`` says whether its client can take a file that comes as a link.
        """
        job_id = new_request_id()
        job = _Job(job_id, KEPT_S[route])
        with self._lock:
            self._forget_old()
            self._jobs[job_id] = job
            job.future = future = self._pool.submit(
                self._answer, job, data, base_url, follows_links
            )
        return job_id, future

    def shown(self, job_id: str) -> dict[str, Any]:
        """Return a job's state. Raises `NotFound`."""
        if is_process_id(job_id):
            return process_job(self._processes.get(job_id))
        job = self._job(job_id)
        with self._lock:
            reply, is_cancelled = job.reply, job.future is not None and job.future.cancelled()
        if is_cancelled:
            return {"id": job_id, "status": "CANCELLED"}
        if reply is None:
            state = "IN_QUEUE" if job.began_s is None else "IN_PROGRESS"
            return {"id": job_id, "status": state}
        return {**finished_job(job_id, json.loads(reply)), **_times(job)}

    def stream(self, job_id: str) -> dict[str, Any]:
        """Return what is new since this was asked last. Raises `NotFound`.

        For a process that is its progress and its new log lines.
        """
        if not is_process_id(job_id):
            job, shown = self._job(job_id), self.shown(job_id)
            chunks = []
            if "output" in shown and not job.streamed:
                job.streamed = True
                chunks = [{"output": shown["output"]}]
            return {"id": job_id, "status": shown["status"], "stream": chunks}
        with self._stream_lock:  # two that ask at once must not both get the same lines
            return self._stream_process(job_id)

    def _stream_process(self, process_id: str) -> dict[str, Any]:
        with self._lock:
            seen, last = self._stream_positions.get(process_id, (0, ""))
        lines = self._processes.log(process_id, seen, 500)
        view = self._processes.get(process_id)
        progress = stream_progress(view)
        now = json.dumps(progress)
        chunks = []
        if lines or now != last:
            chunks = [{"output": {**progress, "log": [line.text for line in lines]}}]
        with self._lock:
            self._stream_positions[process_id] = (lines[-1].number if lines else seen, now)
            self._stream_positions.move_to_end(process_id)
            while len(self._stream_positions) > 1000:
                self._stream_positions.popitem(last=False)
        return {"id": process_id, "status": job_state(view), "stream": chunks}

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job. Raises `NotFound`, and `ConflictingState` if it has ended."""
        if is_process_id(job_id):
            self._processes.cancel(job_id)
            return {"id": job_id, "status": "CANCELLED"}
        job = self._job(job_id)
        with self._lock:
            if job.future is None:
                raise ConflictingState(f"job {job_id} has ended", remedy="Check its status.")
            if job.ended_s is None and job.future.cancel():
                self._ended(job)
        return {"id": job_id, "status": self.shown(job_id)["status"]}

    def retry(self, job_id: str, base_url: str) -> dict[str, Any]:
        """Run a failed job again under its id. Raises `NotFound`, `ConflictingState`."""
        if is_process_id(job_id):
            self._processes.resume(job_id)
            self._retried += 1
            return {"id": job_id, "status": "IN_QUEUE"}
        job, shown = self._job(job_id), self.shown(job_id)
        if shown["status"] != "FAILED":
            raise ConflictingState(
                f"job {job_id} is {shown['status']}", remedy="Only failed jobs can be retried."
            )
        if job.input is None:
            raise ConflictingState(
                f"job {job_id}: its input was too large to be kept", remedy="Send it again."
            )
        with self._lock:
            if job.future is None and job.input is not None:  # else another retry was faster
                data = json.loads(job.input)
                job.began_s = job.ended_s = job.reply = job.input = None
                job.future = self._pool.submit(self._answer, job, data, base_url)
                self._retried += 1
        return {"id": job_id, "status": "IN_QUEUE"}

    def purge_queue(self) -> dict[str, Any]:
        """Cancel what waits."""
        return {"removed": self._processes.purge_queue(), "status": "completed"}

    def health(self) -> dict[str, Any]:
        """Count jobs and workers."""
        return endpoint_health(self._processes.counts(), self._processes.queue(), self._retried)

    def close(self) -> None:
        """Take no more jobs."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, job: _Job, data: object, base_url: str, follows_links: bool = True) -> Reply:
        job.began_s = time.monotonic()
        reply = self._dispatcher.answer(
            data, base_url=base_url, request_id=job.id, follows_links=follows_links
        )
        text = json.dumps(reply).encode()
        kept_input = _small(data) if is_error(reply) else None
        with self._lock:
            job.reply, job.input, job.future = text, kept_input, None
            self._ended(job)
        return reply

    def _job(self, job_id: str) -> _Job:
        with self._lock:
            self._forget_old()
            if job_id not in self._jobs:
                raise NotFound(
                    f"there is no job {job_id[:80]!r}",
                    remedy="Replies are kept for 30 minutes (run) or 1 minute (runsync).",
                )
            return self._jobs[job_id]

    def _ended(self, job: _Job) -> None:
        """Keep what was answered, for its time; the lock is held."""
        job.ended_s = time.monotonic()
        self._kept_bytes += job.size_bytes
        heapq.heappush(self._expiries, (job.ended_s + job.kept_s, job.id, job.size_bytes))

    def _forget_old(self) -> None:
        """Forget what has expired, and what expires next if all of it is too much.

        Each look costs what it forgets, not what is kept: it comes with every request.
        """
        now = time.monotonic()
        while self._expiries and (
            self._expiries[0][0] < now
            or (self._kept_bytes > MAX_KEPT_BYTES and len(self._expiries) > 1)
        ):
            expires_s, job_id, size_bytes = heapq.heappop(self._expiries)
            self._kept_bytes -= size_bytes
            job = self._jobs.get(job_id)
            if job and job.ended_s is not None and job.ended_s + job.kept_s == expires_s:
                del self._jobs[job_id]  # else it was begun anew


def _times(job: _Job) -> dict[str, Any]:
    began = job.began_s or job.created_s
    return {
        "delayTime": round((began - job.created_s) * 1000),
        "executionTime": round(((job.ended_s or time.monotonic()) - began) * 1000),
    }


def _small(data: object) -> bytes | None:
    text = json.dumps(data).encode()
    return text if len(text) <= MAX_RETRIED_INPUT_BYTES else None
