"""The emulator as a server on loopback that can close connections without an answer."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import uvicorn
from fastapi import FastAPI, Request
from uvicorn.protocols.http.h11_impl import H11Protocol

from loradash.listening import listen
from loradash.streams import at_hangup

HOST = "127.0.0.1"  # anybody who reaches it may do anything with it
_CONNECTIONS_END_S = 1  # long polls are cut: there is nothing to save


class Connections:
    """Open connections by the address of their other end."""

    def __init__(self) -> None:
        self._transports: dict[tuple[str, int], asyncio.Transport] = {}

    def cut(self, request: Request) -> None:
        """Close the connection of a request at once."""
        client = request.client
        transport = self._transports.get((client.host, client.port)) if client else None
        if transport:
            transport.abort()

    def protocol(self) -> type[asyncio.Protocol]:
        """Return Uvicorn's protocol, made to note its connections here."""
        transports = self._transports

        class Noted(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                transports[_peer(transport)] = transport
                super().connection_made(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                transports.pop(_peer(self.transport), None)
                super().connection_lost(exc)

        return Noted


class _Uvicorn(uvicorn.Server):
    """Tells when it's ready, and ends in good order at a signal."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self._on_ready()

    def handle_exit(self, sig: int, frame: Any) -> None:
        # Uvicorn's own way would raise the signal again, so that we'd look like killed.
        del sig, frame
        self.force_exit = self.should_exit
        self.should_exit = True


def serve(
    make_app: Callable[[Callable[[Request], None]], FastAPI],
    port: int,
    on_ready: Callable[[str], None],
) -> None:
    """Serve until a signal asks for the end; ``make_app`` gets what cuts a connection.

    Raises `InvalidSettings` if the port is taken.
    """
    connections = Connections()
    listener = listen(HOST, port)
    url = f"http://{HOST}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        make_app(connections.cut), http=connections.protocol(), log_config=None,
        log_level="critical", access_log=False, timeout_graceful_shutdown=_CONNECTIONS_END_S,
    )  # fmt: skip
    server = _Uvicorn(config, lambda: on_ready(url))
    at_hangup(server.handle_exit)
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()


def _peer(transport: asyncio.Transport) -> tuple[str, int]:
    return cast("tuple[str, int]", transport.get_extra_info("peername"))
