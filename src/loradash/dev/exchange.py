"""One call and its answer: who may call, what a body may hold, and the faults it meets."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request, Response

from loradash.dev.faults import AFTER, BEFORE, Fault, Faults
from loradash.dev.queue import Refused


def json_response(content: Any, status: int = 200) -> Response:
    """Return JSON."""
    return Response(json.dumps(content), status, media_type="application/json")


def authorized(api_key: str) -> Callable[[Request], None]:
    """Return what refuses calls without an ``Authorization``, or with another key than this."""

    def check(request: Request) -> None:
        key = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not key or (api_key and key != api_key):
            raise Refused(401, "unauthorized")

    return check


async def read_json(request: Request, limit_bytes: int, too_large: int = 413) -> Any:
    """Return a body, whatever its content type says: RunPod's SDK says form and sends JSON.

    Raises `Refused`.
    """
    refusal = Refused(too_large, f"the body is larger than {limit_bytes} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit_bytes:
        raise refusal
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit_bytes:
            raise refusal
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the body isn't JSON") from error


class Exchange:
    """Lets calls meet their faults."""

    def __init__(
        self, faults: Faults, note: Callable[..., None], cut: Callable[[Request], None]
    ) -> None:
        self.faults = faults
        self._note = note
        self._cut = cut

    async def answer(
        self, request: Request, operation: str, worker: str, work: Callable[[], Awaitable[Response]]
    ) -> Response:
        """Do the work, or what a fault wants instead."""
        while fault := self.faults.next(operation, worker, BEFORE):
            self.tell(fault, worker)
            if fault.action == "status":
                return json_response({"error": "a fault that was asked for"}, fault.status)
            if fault.action == "drop_before":
                return await self.drop(request)
            await asyncio.sleep(fault.seconds)
        response = await work()
        if operation != "take" and (fault := self.faults.next(operation, worker, AFTER)):
            self.tell(fault, worker)
            return await self.drop(request)
        return response

    async def drop(self, request: Request) -> Response:
        """Close the connection; the response that is returned reaches nobody."""
        self._cut(request)
        for _ in range(2):  # until the server has noticed, too
            await asyncio.sleep(0)
        return Response(status_code=500)

    def tell(self, fault: Fault, worker: str) -> None:
        """Log that a fault has happened."""
        self._note("fault", operation=fault.operation, action=fault.action, worker=worker)
