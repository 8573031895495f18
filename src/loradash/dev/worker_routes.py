"""What RunPod's SDK calls from inside a worker: take, done, stream, ping and stop."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from loradash.dev.client_routes import RUN_BYTES, SYNC_BYTES
from loradash.dev.exchange import Exchange, authorized, json_response, read_json
from loradash.dev.faults import WITH_JOB, Fault
from loradash.dev.polls import Bell, HungUp, hold
from loradash.dev.queue import Queue, Refused

BatchSize = Annotated[int, Query(ge=1, le=1000)]
_Taken = tuple[list[dict[str, Any]], Fault | None]


def make_router(queue: Queue, exchange: Exchange, bell: Bell, hold_s: float) -> APIRouter:  # noqa: C901, PLR0915 - each function inside is a route
    """Return the routes of workers below ``/v2``."""
    router = APIRouter(dependencies=[Depends(authorized(""))])

    async def take_up_to(
        count: int, endpoint: str, worker: str, request: Request
    ) -> list[dict[str, Any]] | Response:
        """Wait for jobs. A response instead of jobs is what the worker gets."""

        def look() -> _Taken | None:
            return _take(queue, exchange, count, endpoint, worker)

        try:
            with queue.polling(endpoint, worker):
                taken = await hold(request, bell, hold_s, look)
        except HungUp:
            queue.note("take hung up", worker=worker)
            return Response(status_code=499)
        jobs, fault = taken or ([], None)
        if fault and fault.action == "drop_after":
            return await exchange.drop(request)
        return jobs or Response(status_code=204)

    @router.get("/{endpoint}/job-take/{worker}")
    async def take(endpoint: str, worker: str, request: Request) -> Response:
        async def work() -> Response:
            jobs = await take_up_to(1, endpoint, worker, request)
            return jobs if isinstance(jobs, Response) else json_response(jobs[0])

        return await exchange.answer(request, "take", worker, work)

    @router.get("/{endpoint}/job-take-batch/{worker}")
    async def take_batch(
        endpoint: str, worker: str, request: Request, batch_size: BatchSize = 1
    ) -> Response:
        async def work() -> Response:
            jobs = await take_up_to(batch_size, endpoint, worker, request)
            return jobs if isinstance(jobs, Response) else json_response(jobs)

        return await exchange.answer(request, "take", worker, work)

    @router.post("/{endpoint}/job-done/{worker}/{job_id}")
    async def done(endpoint: str, worker: str, job_id: str, request: Request) -> Response:
        limit = SYNC_BYTES if job_id.startswith("sync-") else RUN_BYTES
        said = await read_json(request, limit, too_large=400)
        if not isinstance(said, dict):
            raise Refused(400, "the body must be a JSON object")
        is_progress = said.get("status") == "IN_PROGRESS"

        async def work() -> Response:
            if is_progress:
                queue.progress(endpoint, worker, job_id, said.get("output"))
            else:
                queue.done(endpoint, worker, job_id, said)
            return json_response({})

        return await exchange.answer(request, "progress" if is_progress else "done", worker, work)

    @router.post("/{endpoint}/job-stream/{worker}/{job_id}")
    async def stream(endpoint: str, worker: str, job_id: str, request: Request) -> Response:
        said = await read_json(request, SYNC_BYTES, too_large=400)
        if not isinstance(said, dict):
            raise Refused(400, "the body must be a JSON object")
        queue.post_stream(endpoint, worker, job_id, said.get("output"))
        return json_response({})

    @router.get("/{endpoint}/ping/{worker}")
    async def ping(
        endpoint: str, worker: str, request: Request, job_id: str = "", status: str = ""
    ) -> Response:
        reason = request.query_params.get("reason", "") or status
        unhealthy = reason if status == "unhealthy" else ""

        async def work() -> Response:
            queue.ping(endpoint, worker, [each for each in job_id.split(",") if each], unhealthy)
            return json_response({})

        return await exchange.answer(request, "ping", worker, work)

    @router.get("/{endpoint}/job-stop/{worker}")
    async def stop(endpoint: str, worker: str, request: Request) -> Response:
        def look() -> list[str] | None:
            return queue.stops(endpoint, worker) or None

        async def work() -> Response:
            try:
                with queue.polling(endpoint, worker):
                    job_ids = await hold(request, bell, hold_s, look)
            except HungUp:
                return Response(status_code=499)
            return json_response({"jobsToStop": job_ids}) if job_ids else Response(status_code=204)

        return await exchange.answer(request, "stop", worker, work)

    return router


def _take(
    queue: Queue, exchange: Exchange, count: int, endpoint: str, worker: str
) -> _Taken | None:
    """Take jobs that are there; no jobs beside a fault mean that the worker isn't told of them.

    Nothing here waits, so that what is seen in the queue is still there when it's taken.
    """
    jobs: list[dict[str, Any]] = []
    while len(jobs) < count and queue.has_job_for(endpoint, worker):
        fault = exchange.faults.next("take", worker, WITH_JOB)
        if fault:
            exchange.tell(fault, worker)
        action = fault.action if fault else ""
        job = queue.take(endpoint, worker, leave=action == "duplicate", swallow=action == "swallow")
        if action == "swallow":
            return jobs, fault
        if job:
            jobs.append(job)
        if action == "drop_after":
            return jobs, fault
    return (jobs, None) if jobs else None
