"""What clients of RunPod Serverless call: ``/v2/{endpoint}/run`` and the others."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from loradash.dev.exchange import Exchange, authorized, json_response, read_json
from loradash.dev.polls import Bell, HungUp, hold
from loradash.dev.queue import Queue

RUN_BYTES = 10_000_000
SYNC_BYTES = 20_000_000
_SYNC_WAITS_MS = 90_000

Wait = Annotated[int, Query(ge=1000, le=300_000)]


def make_router(queue: Queue, exchange: Exchange, bell: Bell, api_key: str) -> APIRouter:  # noqa: C901 - each function inside is a route
    """Return the routes of clients below ``/v2``."""
    router = APIRouter(dependencies=[Depends(authorized(api_key))])

    @router.post("/{endpoint}/run")
    async def run(endpoint: str, request: Request) -> Response:
        async def work() -> Response:
            wanted = await read_json(request, RUN_BYTES)
            job_id = queue.submit(endpoint, wanted, sync=False)
            return json_response({"id": job_id, "status": "IN_QUEUE"})

        return await exchange.answer(request, "run", "", work)

    @router.post("/{endpoint}/runsync")
    async def runsync(endpoint: str, request: Request, wait: Wait = _SYNC_WAITS_MS) -> Response:
        async def work() -> Response:
            wanted = await read_json(request, SYNC_BYTES)
            job_id = queue.submit(endpoint, wanted, sync=True)

            def final() -> bool | None:
                return queue.is_final(endpoint, job_id) or None

            try:
                await hold(request, bell, wait / 1000, final)
            except HungUp:  # the job goes on
                return Response(status_code=499)
            return json_response(queue.status(endpoint, job_id))

        return await exchange.answer(request, "run", "", work)

    @router.post("/{endpoint}/status/{job_id}")
    @router.get("/{endpoint}/status/{job_id}")
    async def status(endpoint: str, job_id: str, request: Request) -> Response:
        async def work() -> Response:
            return json_response(queue.status(endpoint, job_id))

        return await exchange.answer(request, "status", "", work)

    @router.post("/{endpoint}/stream/{job_id}")
    @router.get("/{endpoint}/stream/{job_id}")
    async def stream(endpoint: str, job_id: str) -> Response:
        return json_response(queue.stream(endpoint, job_id))

    @router.post("/{endpoint}/cancel/{job_id}")
    async def cancel(endpoint: str, job_id: str, request: Request) -> Response:
        async def work() -> Response:
            return json_response(queue.cancel(endpoint, job_id))

        return await exchange.answer(request, "cancel", "", work)

    @router.post("/{endpoint}/retry/{job_id}")
    async def retry(endpoint: str, job_id: str) -> Response:
        return json_response(queue.retry(endpoint, job_id))

    @router.post("/{endpoint}/purge-queue")
    async def purge_queue(endpoint: str) -> Response:
        purged: dict[str, Any] = {"removed": queue.purge(endpoint), "status": "completed"}
        return json_response(purged)

    @router.get("/{endpoint}/health")
    async def health(endpoint: str) -> Response:
        return json_response(queue.health(endpoint))

    return router
