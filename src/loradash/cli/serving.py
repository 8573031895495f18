"""Uvicorn around the application, with our way of stopping."""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import uvicorn

from loradash.api.app import Server, create_app
from loradash.api.connections import bounded_protocol, limits_for, raise_file_limit
from loradash.errors import LoradashError
from loradash.listening import listen
from loradash.streams import at_hangup

_CONNECTIONS_END_S = 5
_WAITING = 512  # connections that the kernel holds until they are accepted


class _Uvicorn(uvicorn.Server):
    """Says when it is ready; a second signal doesn't wait for checkpoints."""

    def __init__(
        self,
        config: uvicorn.Config,
        on_ready: Callable[[], None],
        end_streams: Callable[[], None],
        stop_now: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._end_streams = end_streams
        self._stop_now = stop_now

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then say so."""
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End streams of live data first: connections with one would be waited for."""
        await asyncio.to_thread(self._end_streams)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; the second time at once.

        Uvicorn's own way would raise the signal again at the end, so that a server that has stopped
        in good order looks like one that was killed; and a second Ctrl-C would skip our stopping.
        """
        del sig, frame
        if self.should_exit:
            self._stop_now()
        self.should_exit = True


def serve(server: Server, host: str, port: int, on_ready: Callable[[str], None]) -> None:
    """Serve until a signal asks for the end.

    Raises `InvalidSettings` if the port is taken, and what the server's start raises.
    """
    problems: list[LoradashError] = []

    def start() -> None:
        try:
            server.start()
        except LoradashError as error:  # Uvicorn would log a traceback and no remedy
            problems.append(error)
            uvicorn_server.should_exit = True

    limits = limits_for(raise_file_limit())
    listener = listen(host, port)
    url = f"http://{host}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        create_app(replace(server, start=start)), log_config=None, access_log=False,
        timeout_graceful_shutdown=_CONNECTIONS_END_S, http=bounded_protocol(limits), ws="none",
        backlog=limits.accepted_at_once,
    )  # fmt: skip

    def ready() -> None:
        listener.listen(_WAITING)  # for the kernel; asyncio still accepts fewer at once
        on_ready(url)

    uvicorn_server = _Uvicorn(config, ready, server.changes.stop, server.stop_now)
    at_hangup(uvicorn_server.handle_exit)
    try:
        uvicorn_server.run(sockets=[listener])
    finally:
        listener.close()
    if problems:
        raise problems[0]
