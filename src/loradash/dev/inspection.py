"""What tests ask of the emulator itself: its jobs, its log, and faults."""

from dataclasses import asdict

from fastapi import APIRouter, Request, Response

from loradash.dev.exchange import json_response, read_json
from loradash.dev.faults import Faults
from loradash.dev.queue import Queue

_FAULT_BYTES = 10_000


def make_router(queue: Queue, faults: Faults) -> APIRouter:
    """Return the routes below ``/_emulator``."""
    router = APIRouter()

    @router.get("/jobs")
    async def jobs() -> Response:
        return json_response(queue.inspect())

    @router.get("/log")
    async def log() -> Response:
        return json_response(queue.log())

    @router.get("/faults")
    async def pending() -> Response:
        return json_response(faults.documents())

    @router.post("/faults")
    async def add(request: Request) -> Response:
        return json_response(asdict(faults.add(await read_json(request, _FAULT_BYTES))))

    @router.delete("/faults")
    async def clear() -> Response:
        faults.clear()
        return Response(status_code=204)

    return router
