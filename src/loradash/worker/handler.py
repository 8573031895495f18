"""From RunPod's event to a request and back: what the SDK calls for each job."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from loradash.domain.requests import makes_process
from loradash.errors import LoradashError
from loradash.runtime.supervisor import StopRequest
from loradash.worker.work import JobStopped, Worker, is_control_planes, runs_process

log = structlog.get_logger("loradash.worker")

Job = dict[str, Any]
Reply = dict[str, Any]

MAX_REPLY_BYTES = 9_500_000  # RunPod takes 10 MB for jobs of `run`

SYNC_ID = "sync-"
"""How the ids of jobs begin whose client waits."""


class Handler:
    """An async handler: one job in, one small JSON reply out.

    ``tell`` sends progress and returns when it has arrived. ``look`` says how a process stands.
    ``resend`` sends a job of its own for a process: a client that waits then has its reply at once,
    and not after the 90 s that RunPod keeps it waiting.
    """

    def __init__(
        self,
        worker: Worker,
        tell: Callable[[Job, Reply], Awaitable[None]],
        look: Callable[[str], Reply],
        *,
        resend: Callable[[str], None] | None = None,
        tell_every_s: float = 10.0,
    ) -> None:
        self._worker = worker
        self._tell = tell
        self._look = look
        self._resend = resend
        self._tell_every_s = tell_every_s

    async def __call__(self, job: Job) -> Reply:
        """Return the reply; raises `asyncio.CancelledError` where the job must get none."""
        data, job_id = job.get("input"), str(job["id"])
        reply = await asyncio.to_thread(self._worker.answer, job_id, data)
        if "error" in reply or not runs_process(data):
            return sendable(reply)
        if job_id.startswith(SYNC_ID) and await self._is_sent_on(reply["process_id"]):
            return sendable(reply)
        stop = StopRequest()
        telling = asyncio.create_task(self._tell_on(job, reply))
        running = asyncio.ensure_future(
            asyncio.to_thread(
                self._worker.run, reply["process_id"], stop, follow=not is_control_planes(data)
            )
        )
        try:
            ended = await asyncio.shield(running)
        except JobStopped:
            log.info("job_given_back", job=job_id, process_id=reply["process_id"])
            raise asyncio.CancelledError from None
        except asyncio.CancelledError:
            # Cancelled, timed out or expired: RunPod doesn't say which. A control plane asks it,
            # and lets the process go on elsewhere; nobody else would.
            stop("shutdown" if is_control_planes(data) else "job_ended")
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()
            raise
        finally:
            telling.cancel()
            await asyncio.wait([telling])
        ended.setdefault("request_id", reply.get("request_id"))
        return sendable(ended)

    async def _is_sent_on(self, process_id: str) -> bool:
        """Whether another job was sent that runs the process, so that this one need not."""
        if self._resend is None:
            return False
        try:
            await asyncio.to_thread(self._resend, process_id)
        except LoradashError as error:
            log.warning("job_not_sent", process_id=process_id, error=str(error))
            return False
        return True

    async def _tell_on(self, job: Job, reply: Reply) -> None:
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
                    progress = await asyncio.to_thread(self._look, process_id)
                number += 1
                await self._tell(job, {**progress, "sequence": number})
            except (LoradashError, OSError) as error:
                log.warning("progress_not_told", process_id=process_id, error=str(error))
            await asyncio.sleep(self._tell_every_s)


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
