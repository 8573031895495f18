"""The HTTP application: job API, files, queue, metrics, and a plain page that shows the state."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Annotated, Any

import structlog
from fastapi import FastAPI, HTTPException, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from jinja2 import Environment, Template, select_autoescape
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

import loradash
from loradash.api.datasets import make_router as make_datasets_router
from loradash.api.examples import EXAMPLES
from loradash.api.files import make_router as make_files_router
from loradash.api.gateway import json_response, make_router
from loradash.api.guard import Guard
from loradash.api.intake import Intake
from loradash.api.jobs import JobService
from loradash.api.uploads import make_router as make_uploads_router
from loradash.domain.process import MAX_PRIORITY, MIN_PRIORITY
from loradash.errors import (
    ConflictingState,
    DiskFull,
    ExecutorRefused,
    ExecutorUnavailable,
    InvalidRequest,
    LoradashError,
    NotFound,
    RegistryUnavailable,
    ResultsNotStored,
    ServerBusy,
    StoreRefused,
    StoreUnavailable,
    TransferFailed,
)
from loradash.page_guard import LOCAL_NAMES
from loradash.protocol import requests
from loradash.protocol.dispatch import Dispatcher
from loradash.protocol.health_json import health_json
from loradash.protocol.process_json import queue_json
from loradash.protocol.request_fields import MAX_REFERENCE_CHARACTERS
from loradash.protocol.result_json import adapter_json, deletion_reply
from loradash.services.changes.hub import ChangeHub
from loradash.services.use_cases import Services
from loradash.storage.disk import as_disk_full
from loradash.storage.store import ObjectStore
from loradash.telemetry.masking import masked
from loradash.telemetry.metrics import Metrics
from loradash.visible_text import visible_lines

log = structlog.get_logger("loradash.api")

_STATUS_OF: dict[type[LoradashError], int] = {
    NotFound: 404,
    ConflictingState: 409,
    ResultsNotStored: 500,
    StoreRefused: 502,
    ExecutorRefused: 502,
    TransferFailed: 502,
    StoreUnavailable: 503,
    ExecutorUnavailable: 503,
    RegistryUnavailable: 503,
    ServerBusy: 503,
    DiskFull: 507,
}


@dataclass(frozen=True)
class Server:
    """What the application is made of; ``start`` and ``stop`` frame its life."""

    dispatcher: Dispatcher
    services: Services
    changes: ChangeHub
    metrics: Metrics
    store: ObjectStore
    start: Callable[[], None]
    stop: Callable[[], None]
    stop_now: Callable[[], None] = lambda: None
    cors_origins: tuple[str, ...] = ()
    names: frozenset[str] = LOCAL_NAMES
    max_request_bytes: int = 96 * 2**20


_Adapter = Annotated[str, Path(max_length=MAX_REFERENCE_CHARACTERS)]


class _Name(BaseModel):
    model_config = ConfigDict(strict=True)

    name: str


class _Priority(BaseModel):
    model_config = ConfigDict(strict=True)

    priority: int = Field(ge=MIN_PRIORITY, le=MAX_PRIORITY)


def create_app(server: Server) -> FastAPI:
    """Return the application; it starts working when a server starts its lifespan."""
    jobs = JobService(server.dispatcher, server.services.processes)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(server.start)
        try:
            yield
        finally:
            jobs.close()
            await asyncio.to_thread(server.stop)

    app = FastAPI(
        title="loradash",
        version=loradash.__version__,
        summary="Train LoRA adapters and generate images with them, through RunPod's job API.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
    )
    intake = Intake(server.max_request_bytes)
    app.include_router(make_router(jobs, intake), prefix="/v2")
    # The published dashboard takes any address that holds this name for RunPod's.
    published = make_router(jobs, intake, for_dashboard=True)
    app.include_router(published, prefix="/api.runpod.ai/v2", include_in_schema=False)
    app.include_router(make_files_router(server.store, server.services.results))
    app.include_router(make_uploads_router(server.services))
    app.include_router(make_datasets_router(server.store, server.services))
    _add_routes(app, server)
    _add_error_handlers(app)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(server.cors_origins),
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["authorization", "content-type", "x-runpod-token"],
        expose_headers=["X-Request-ID"],
    )
    app.add_middleware(
        Guard, origins=server.cors_origins, max_body_bytes=server.max_request_bytes,
        names=server.names,
    )  # fmt: skip
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _add_routes(app: FastAPI, server: Server) -> None:  # noqa: C901 - each function inside is a route
    services = server.services

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def status_page() -> str:
        return render_status(server)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    def reference(request: Request) -> str:
        return render_reference(request.app)  # FastAPI caches endpoints: none may hold the app

    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["server"], summary="Health of the server")
    def health() -> Response:
        report = services.health.report()
        return json_response(health_json(report), 200 if report.is_healthy else 503)

    @app.get("/metrics", tags=["server"], summary="Metrics for Prometheus")
    def metrics() -> Response:
        content, content_type = server.metrics.render()
        return Response(content, media_type=content_type)

    @app.get("/queue", tags=["queue"], summary="Show waiting and running processes")
    def queue() -> Response:
        return json_response(queue_json(services.processes.queue()))

    @app.post("/queue/pause", tags=["queue"], summary="Pause the queue")
    def pause() -> Response:
        services.processes.pause(True)
        return json_response({"paused": True})

    @app.post("/queue/resume", tags=["queue"], summary="Resume the queue")
    def resume() -> Response:
        services.processes.pause(False)
        return json_response({"paused": False})

    @app.get("/models/{adapter:path}", tags=["models"], summary="A trained LoRA, by id or name")
    def show_model(adapter: _Adapter) -> Response:
        return json_response(adapter_json(services.adapters.show(adapter)))

    @app.patch("/models/{adapter:path}", tags=["models"], summary="Change a model's shown name")
    def rename(adapter: _Adapter, wanted: _Name) -> Response:
        return json_response(services.adapters.rename(adapter, wanted.name).model_dump(mode="json"))

    @app.delete("/models/{adapter:path}", tags=["models"], summary="Delete a trained LoRA")
    def delete_model(adapter: _Adapter) -> Response:
        return json_response(deletion_reply(services.adapters.delete(adapter)))

    @app.post("/queue/{process_id}/priority", tags=["queue"], summary="Change a process's priority")
    def priority(process_id: str, wanted: _Priority) -> Response:
        record = services.processes.reprioritize(process_id, wanted.priority)
        return json_response({"id": record.id, "priority": record.priority})


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(LoradashError)
    async def known(_request: Request, error: LoradashError) -> Response:
        status = next((code for kind, code in _STATUS_OF.items() if isinstance(error, kind)), 400)
        return json_response({"error": masked(str(error))}, status)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        problems = [
            requests.described({**one, "loc": one["loc"][1:]}) for one in error.errors()[:20]
        ]
        text = str(
            InvalidRequest(
                "the request can't be used", problems=problems,
                remedy="Correct what is named above and send the request again.",
            )
        )  # fmt: skip
        return json_response({"error": masked(text)}, 400)

    @app.exception_handler(HTTPException)
    @app.exception_handler(404)
    @app.exception_handler(405)
    async def http(_request: Request, error: HTTPException) -> Response:
        return json_response({"error": str(error.detail)}, error.status_code)

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        log.error("request_broke", path=request.url.path[:200], exc_info=error)
        if full := as_disk_full(error):
            return json_response({"error": masked(str(full))}, 507)
        text = f"internal error ({type(error).__name__}); see the server's log"
        return json_response({"error": text}, 500)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The API's description, with the request types, which FastAPI doesn't see by itself."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes
        )
        request: dict[str, Any] = TypeAdapter(requests.Request).json_schema(
            ref_template="#/components/schemas/{model}"
        )
        parts = schema.setdefault("components", {}).setdefault("schemas", {})
        parts.update(request.pop("$defs", {}))
        parts["Request"] = request
        for operations in schema["paths"].values():
            for operation in operations.values():
                if operation["responses"].pop("422", None):  # FastAPI's; we answer as RunPod does
                    operation["responses"]["400"] = _ERROR_REPLY
        app.openapi_schema = schema
    return app.openapi_schema


_ERROR_REPLY = {
    "description": "What is wrong, and what to do",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {"error": {"type": "string"}},
            }
        }
    },
}

_templates = Environment(
    autoescape=select_autoescape(default=True),
    finalize=lambda value: type(value)(visible_lines(value)) if isinstance(value, str) else value,
    trim_blocks=True,
)


def render_status(server: Server) -> str:
    """The page at ``/``: what runs, what waits, what has ended lately, and whether all is well."""
    page = server.services.processes.page(kind=None, statuses=(), limit=25, cursor="")
    return _template("status.html").render(
        processes=page.processes,
        counts=server.services.processes.counts(),
        queue=server.services.processes.queue(),
        health=server.services.health.report(),
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
    )


def render_reference(app: FastAPI) -> str:
    """The page at ``/docs``: routes, and an example of each request."""
    described: dict[str, Any] = app.openapi()["paths"]
    routes = [
        {
            "methods": ", ".join(method.upper() for method in operations),
            "path": path,
            "summary": next(iter(operations.values()))["summary"],
        }
        for path, operations in described.items()
    ]
    return _template("reference.html").render(
        version=loradash.__version__, routes=routes, examples=EXAMPLES
    )


def _template(name: str) -> Template:
    text = files("loradash.api").joinpath(name).read_text(encoding="utf-8")
    return _templates.from_string(text)
