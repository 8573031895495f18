"""From RunPod's event to a request and back: what the SDK calls for each job."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import structlog

from loradash.errors import LoradashError
from loradash.protocol.requests import makes_process, process_of_job
from loradash.runtime.supervisor import StopReason, StopRequest
from loradash.worker.work import JobStopped, Worker, is_control_planes, runs_process

log = structlog.get_logger("loradash.worker")

Job = dict[str, Any]
Reply = dict[str, Any]

MAX_REPLY_BYTES = 9_500_000  # RunPod takes 10 MB for jobs of `run`

SYNC_ID = "sync-"
"""How the ids of jobs begin whose client waits."""


class Jobs(Protocol):
    """What a worker may ask of its endpoint."""

    def send(self, process_id: str) -> None:
        """Queue a job of its own for a process that waits."""
        ...

    def goes_on(self, job_id: str) -> bool:
        """Whether a job waits or runs, as far as RunPod is concerned."""
        ...

    def was_ended(self, job_id: str) -> bool:
        """Whether RunPod has ended a job, because of a cancel or its time limits."""
        ...


class Handler:
    """An async handler: one job in, one small JSON reply out.

    ``send_progress`` returns when the progress has arrived; ``read_progress`` reads a process's.
    ``jobs`` are those of the endpoint, where the worker has a key to ask for them.
    """

    def __init__(
        self,
        worker: Worker,
        send_progress: Callable[[Job, Reply], Awaitable[None]],
        read_progress: Callable[[str], Reply],
        *,
        jobs: Jobs | None = None,
        progress_interval_s: float = 10.0,
        poll_interval_s: float = 60.0,
    ) -> None:
        self._worker = worker
        self._send_progress = send_progress
        self._read_progress = read_progress
        self._jobs = jobs
        self._progress_interval_s = progress_interval_s
        self._poll_interval_s = poll_interval_s

    async def __call__(self, job: Job) -> Reply:
        """Return the reply; raises `asyncio.CancelledError` where the job must get none."""
        data, job_id = job.get("input"), str(job["id"])
        stop = StopRequest()
        reply = await self._answered(job_id, data, stop)
        if "error" in reply or not runs_process(data):
            return sendable(reply)
        process_id = reply["process_id"]
        if job_id.startswith(SYNC_ID) and await self._is_sent_on(process_id):
            return sendable(reply)
        beside = [asyncio.create_task(self._report_progress(job, reply))]
        running = asyncio.ensure_future(
            asyncio.to_thread(
                self._worker.run, process_id, stop, follow=not is_control_planes(data)
            )
        )
        try:
            if self._jobs is not None:
                beside.append(asyncio.create_task(self._end_at_runpod(self._jobs, job_id)))
            await asyncio.wait([running, *beside[1:]], return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                raise asyncio.CancelledError
            ended = running.result()
        except JobStopped:
            log.info("job_given_back", job=job_id, process_id=process_id)
            raise asyncio.CancelledError from None
        except asyncio.CancelledError:
            stop(await self._stop_reason(job_id, data))
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()
            raise
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)
        if request_id := reply.get("request_id"):
            ended.setdefault("request_id", request_id)
        return sendable(ended)

    async def _answered(self, job_id: str, data: Any, stop: StopRequest) -> Reply:
        """Return what the worker answers before it works on a process."""
        answering = asyncio.ensure_future(
            asyncio.to_thread(self._worker.answer, job_id, data, stop)
        )
        try:
            return await asyncio.shield(answering)
        except JobStopped:
            log.info("job_given_back", job=job_id)
            raise asyncio.CancelledError from None
        except asyncio.CancelledError:
            reason = await self._stop_reason(job_id, data)
            stop(reason)
            await asyncio.wait([answering])
            if reason == "job_ended" and makes_process(data):
                # What was submitted, now or by an earlier delivery, would go on otherwise.
                process_id = process_of_job(data, job_id)
                await asyncio.to_thread(self._worker.cancel, process_id, stop)
            raise

    async def _end_at_runpod(self, jobs: Jobs, job_id: str) -> None:
        """Return once RunPod has ended the job.

        RunPod sends that to the SDK once, which drops it for a job that it is just taking; so
        RunPod is polled.
        """
        while True:
            try:
                if await asyncio.to_thread(jobs.was_ended, job_id):
                    log.info("job_ended_at_runpod", job=job_id)
                    return
            except LoradashError as error:
                log.warning("job_not_asked_for", job=job_id, error=str(error))
            except Exception:  # whatever was met, it doesn't end the work
                log.exception("job_not_asked_for", job=job_id)
            await asyncio.sleep(self._poll_interval_s)

    async def _stop_reason(self, job_id: str, data: Any) -> StopReason:
        """What is to become of a process whose job was taken from us.

        It was cancelled, ran out of time, or was given to another worker: the SDK doesn't say
        which. A control plane finds out and sees to its process; for other jobs we ask, if we can.
        """
        if is_control_planes(data):
            return "shutdown"
        if self._jobs is not None:
            try:
                if await asyncio.to_thread(self._jobs.goes_on, job_id):
                    return "shutdown"
            except LoradashError as error:
                log.warning("job_not_asked_for", job=job_id, error=str(error))
        return "job_ended"

    async def _is_sent_on(self, process_id: str) -> bool:
        """Whether another job was sent that runs the process, so that this one need not.

        A client that waits then has its reply at once, and not after the 90 s that RunPod keeps it.
        """
        if self._jobs is None:
            return False
        try:
            await asyncio.to_thread(self._jobs.send, process_id)
        except LoradashError as error:
            log.warning("job_not_sent", process_id=process_id, error=str(error))
            return False
        return True

    async def _report_progress(self, job: Job, reply: Reply) -> None:
        """Send progress now and then: a client that waits finds the ``process_id`` in it.

        Each message is complete before the next one begins, and none is begun after the end.
        """
        number = 0
        process_id = reply["process_id"]
        while True:
            try:
                if number == 0 and makes_process(job.get("input")):
                    progress = reply
                else:
                    progress = await asyncio.to_thread(self._read_progress, process_id)
                number += 1
                await self._send_progress(job, {**progress, "sequence": number})
            except (LoradashError, OSError) as error:
                log.warning("progress_not_sent", process_id=process_id, error=str(error))
            await asyncio.sleep(self._progress_interval_s)


def sendable(reply: Reply) -> Reply:
    """Return what RunPod can carry: the SDK sends nothing at all of a reply that isn't JSON."""
    try:
        size = len(json.dumps(reply, allow_nan=False))
    except (TypeError, ValueError) as error:
        log.error("reply_is_no_json", error=str(error))
        return {"error": f"an error in loradash itself: the reply isn't JSON ({error})"}
    if size > MAX_REPLY_BYTES:
        return {
            "error": f"the reply has {size} bytes, and RunPod's queue carries {MAX_REPLY_BYTES}\n"
            "Ask for less at a time, or fetch the objects from the bucket by their keys."
        }
    return reply
