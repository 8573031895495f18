"""The emulator's application: routes around one queue, and the clock that drives it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection

from fastapi import FastAPI, Request, Response

from loradash.dev import client_routes, inspection, webhooks, worker_routes
from loradash.dev.exchange import Exchange, json_response
from loradash.dev.faults import Faults
from loradash.dev.polls import Bell
from loradash.dev.queue import Queue, Refused
from loradash.page_guard import LOCAL_NAMES, PageGuard

_TICK_S = 0.1


def cut_nothing(request: Request) -> None:
    """Stand for the end of a connection where there is none."""
    raise ConnectionResetError(f"{request.url.path} is dropped")


def create_app(
    queue: Queue,
    *,
    api_key: str = "",
    poll_hold_s: float = 10.0,
    webhook_pause_s: float = 10.0,
    cut: Callable[[Request], None] = cut_nothing,
    names: Collection[str] = LOCAL_NAMES,
) -> FastAPI:
    """Return the application, for programs that call it by one of these names, and no web pages.

    ``cut`` ends the connection of a request without an answer.
    """
    bell = Bell()
    faults = Faults()
    exchange = Exchange(faults, queue.note, cut)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        bell.hang()
        queue.on_change(bell.ring)
        driving = asyncio.create_task(_drive(queue, webhook_pause_s))
        try:
            yield
        finally:
            driving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await driving

    app = FastAPI(lifespan=lifespan, title="loradash dev queue", docs_url=None, redoc_url=None)
    # Any page could send jobs otherwise, and jobs name webhooks that are called.
    app.add_middleware(PageGuard, remedy="use its client outside of a browser", names=names)
    app.include_router(client_routes.make_router(queue, exchange, bell, api_key), prefix="/v2")
    app.include_router(worker_routes.make_router(queue, exchange, bell, poll_hold_s), prefix="/v2")
    app.include_router(inspection.make_router(queue, faults), prefix="/_emulator")

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return json_response({"error": error.message}, error.status)

    return app


async def _drive(queue: Queue, webhook_pause_s: float) -> None:
    """Let time pass for the queue, and send its webhooks."""
    async with asyncio.TaskGroup() as telling:
        while True:
            queue.tick()
            for url, document in queue.webhooks_due():
                telling.create_task(webhooks.tell(url, document, webhook_pause_s, queue.note))
            await asyncio.sleep(_TICK_S)
