"""RunPod's job API: ``/v2/{endpoint}/run``, ``runsync``, ``status`` and the others.

Clients made for RunPod Serverless work against it unchanged. Two things go beyond RunPod's replies,
because published clients look for them there: ``run`` names the process it has queued, and carries
the output of a request that was answered within moments. The endpoint's name may be anything.
"""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from loradash.api.examples import EXAMPLES
from loradash.api.intake import Intake, read_json
from loradash.api.jobs import JobService
from loradash.errors import InvalidRequest
from loradash.protocol.context import Reply
from loradash.protocol.job_json import finished_job, is_error
from loradash.protocol.requests import makes_process

RUN_WAITS_S = 30.0
SYNC_WAITS_MS = 90_000

_READ_BY_STATUS = frozenset({"train", "train_with_yaml", "generate", "cancel", "clear_logs"})
"""Requests of which the published dashboard reads no error in a reply. Of all others it does; and
it stops refreshing its list of processes after one that has another status than 200."""

JobId = Annotated[str, Path(max_length=100)]
Wait = Annotated[int, Query(ge=1000, le=300_000, description="milliseconds to wait for the reply")]

_INPUT = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["input"],
                    "properties": {"input": {"$ref": "#/components/schemas/Request"}},
                },
                "examples": EXAMPLES,
            }
        },
    }
}


def make_router(jobs: JobService, intake: Intake, *, for_dashboard: bool = False) -> APIRouter:  # noqa: C901 - each function inside is a route
    """Return the routes below ``/v2/{endpoint}``.

    ``for_dashboard`` makes them those of the published dashboard in its RunPod mode. It looks at
    the HTTP status alone to see whether a start or a cancel was refused, and takes no file that
    comes as a link; RunPod's own clients look for a job that failed.
    """

    def is_refusal(data: Any, reply: Reply) -> bool:
        kind = data.get("type") if isinstance(data, dict) else None
        return for_dashboard and is_error(reply) and kind in _READ_BY_STATUS

    async def begin(
        request: Request, route: str
    ) -> tuple[Any, dict[str, Any], str, "Future[Reply]"]:
        """Start a job; what it holds of the intake's room is given back once it is answered."""
        room = await intake.reserve(request)
        try:
            data, warnings = await read_input(request)
            job_id, future = jobs.start(
                data, base_url(request), route, follows_links=not for_dashboard
            )
        except BaseException:
            room.release()
            raise
        future.add_done_callback(room.release)
        return data, warnings, job_id, future

    router = APIRouter(tags=["jobs"], dependencies=[Depends(_endpoint)])

    @router.post("/{endpoint}/run", openapi_extra=_INPUT, summary="Start a job")
    async def run(request: Request) -> Response:
        data, warnings, job_id, future = await begin(request, "run")
        reply = await _wait(future, RUN_WAITS_S)
        if reply is None:
            return json_response({"id": job_id, "status": "IN_PROGRESS", **warnings})
        if is_refusal(data, reply):
            return json_response(reply, 400, job_id)
        if makes_process(data) and "process_id" in reply:
            process_id = reply["process_id"]
            return json_response(
                {
                    "id": process_id, "status": "IN_QUEUE", "data": reply["data"],
                    "request_id": reply["request_id"], **warnings,
                }
            )  # fmt: skip
        return json_response({**finished_job(job_id, reply), **warnings}, request_id=job_id)

    @router.post("/{endpoint}/runsync", openapi_extra=_INPUT, summary="Start a job and wait for it")
    async def runsync(request: Request, wait: Wait = SYNC_WAITS_MS) -> Response:
        data, warnings, job_id, future = await begin(request, "runsync")
        reply = await _wait(future, wait / 1000)
        if reply is None:
            return json_response({"id": job_id, "status": "IN_PROGRESS", **warnings})
        if is_refusal(data, reply):
            return json_response(reply, 400, job_id)
        shown = await _in_thread(lambda: jobs.shown(job_id))
        return json_response({**shown, **warnings}, request_id=job_id)

    @router.post("/{endpoint}/status/{job_id}", include_in_schema=False)
    @router.get("/{endpoint}/status/{job_id}", summary="State and output of a job")
    async def status(job_id: JobId) -> Response:
        return json_response(await _in_thread(lambda: jobs.shown(job_id)))

    @router.post("/{endpoint}/stream/{job_id}", include_in_schema=False)
    @router.get("/{endpoint}/stream/{job_id}", summary="New output of a job since the last call")
    async def stream(job_id: JobId) -> Response:
        return json_response(await _in_thread(lambda: jobs.stream(job_id)))

    @router.post("/{endpoint}/cancel/{job_id}", summary="Cancel a job")
    async def cancel(job_id: JobId) -> Response:
        return json_response(await _in_thread(lambda: jobs.cancel(job_id)))

    @router.post("/{endpoint}/retry/{job_id}", summary="Run a failed job again, or resume it")
    async def retry(job_id: JobId, request: Request) -> Response:
        base = base_url(request)
        return json_response(await _in_thread(lambda: jobs.retry(job_id, base)))

    @router.post("/{endpoint}/purge-queue", summary="Cancel all jobs that wait")
    async def purge_queue() -> Response:
        return json_response(await _in_thread(jobs.purge_queue))

    @router.get("/{endpoint}/health", summary="Count jobs and workers")
    async def health() -> Response:
        return json_response(await _in_thread(jobs.health))

    return router


def _endpoint(
    endpoint: Annotated[
        str, Path(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="any id; there is one endpoint")
    ],
) -> None:
    del endpoint


async def read_input(request: Request) -> tuple[Any, dict[str, Any]]:
    """Return a body's ``input``, and warnings about fields of RunPod's that do nothing here.

    Raises `InvalidRequest`.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a foreign page's form can't send
        raise InvalidRequest(
            f"content-type is {kind[:100]!r}", remedy="Send JSON with application/json."
        )
    document = await read_json(request)
    if not isinstance(document, dict) or "input" not in document:
        raise InvalidRequest(
            "input: missing", remedy='Send {"input": {"type": "processes"}} or the like.'
        )
    idle = [name for name in ("webhook", "policy", "s3Config") if name in document]
    warnings = {"warnings": [f"{name} has no effect on this server" for name in idle]}
    return document["input"], warnings if idle else {}


def base_url(request: Request) -> str:
    """The address under which the client has reached us."""
    return str(request.base_url).rstrip("/")


def json_response(content: Any, status: int = 200, request_id: str = "") -> Response:
    """Return JSON that every client can parse: NaN and infinity, which JSON lacks, become null.

    The ``error`` of any other status than success also stands as ``message``, where the published
    dashboard looks for it.
    """
    if status >= 400 and isinstance(content, dict) and "error" in content:
        content = {**content, "message": content["error"]}
    try:
        text = json.dumps(content, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(content), allow_nan=False)
    headers = {"X-Request-ID": request_id} if request_id else None
    return Response(text, status, headers, "application/json")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


async def _wait(future: "Future[Reply]", timeout_s: float) -> Reply | None:
    wrapped = asyncio.wrap_future(future)
    done, _ = await asyncio.wait({wrapped}, timeout=timeout_s)
    return wrapped.result() if done else None


async def _in_thread(work: Callable[[], Any]) -> Any:
    awaitable: Awaitable[Any] = asyncio.to_thread(work)
    return await awaitable
