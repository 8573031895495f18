"""Bounds for the connections of the server: how many, and how long each may take for its next step.

Uvicorn closes a connection that is idle after a reply, and no other: one that never sends a
request, or sends its headers or its body byte by byte, or doesn't read its reply, would hold a file
descriptor for as long as it likes; and when none is left, asyncio accepts nobody any more. So a
connection that takes too long is closed, and when there are too many, the one that has been idle
for longest is closed.
"""

import asyncio
import contextlib
import json
import resource
from typing import NamedTuple

from uvicorn.protocols.http.h11_impl import H11Protocol

_MOST_FILES = 65_536  # some systems allow a thousand million; nothing here needs more than this
_MOST_CONNECTIONS = 1000
_MOST_ACCEPTED = 128


class ConnectionLimits(NamedTuple):
    """What connections may do. ``accepted_at_once`` are taken in before any of them is counted."""

    connections: int = _MOST_CONNECTIONS
    accepted_at_once: int = _MOST_ACCEPTED
    headers_s: float = 20
    """From the connection, or the last reply, to the end of a request's headers."""
    body_s: float = 30
    """In each span of so many seconds, ``body_bytes`` of a body must arrive."""
    body_bytes: int = 4096
    reply_s: float = 300
    """A client that takes no byte of its reply for so long is gone; people pause downloads."""
    look_s: float = 5
    """How often each connection is looked at."""


def raise_file_limit() -> int:
    """Let this process open as many files as it may, and return how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        with contextlib.suppress(ValueError, OSError):  # macOS says infinite and allows less
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
    return _MOST_FILES if soft == resource.RLIM_INFINITY else soft


def limits_for(files: int) -> ConnectionLimits:
    """Return limits that leave half of the files to everything else.

    asyncio accepts connections in a burst, and up to four bursts are under way before the first
    connection that has to be closed has given back its file.
    """
    accepted = max(1, min(_MOST_ACCEPTED, files // 32))
    most = max(1, min(_MOST_CONNECTIONS, files // 2 - 4 * accepted))
    return ConnectionLimits(connections=most, accepted_at_once=accepted)


def bounded_protocol(limits: ConnectionLimits) -> type[asyncio.Protocol]:  # noqa: C901 - each function inside is a method
    """Return Uvicorn's protocol with these limits, for one server."""
    everyone: set[asyncio.Protocol] = set()
    idle: dict[H11Protocol, None] = {}  # no request is answered there; the longest idle first

    class Bounded(H11Protocol):
        """One connection."""

        _looking: asyncio.TimerHandle | None = None
        _idle_since_s = 0.0
        _received = 0
        _body: tuple[float, int] | None = None
        _reply: tuple[float, int] | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            everyone.add(self)
            self._note()
            if len(everyone) > limits.connections:
                oldest = next(iter(idle))  # ourselves if no other
                if oldest is self:
                    self._end(503, "the server has too many connections; try again in a moment")
                else:
                    del idle[oldest]
                    everyone.discard(oldest)
                    oldest.transport.abort()
            self._look_later()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._received += len(data)
            super().data_received(data)
            self._note()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            idle.pop(self, None)
            self._note()

        @property
        def _is_busy(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _note(self) -> None:
            """Keep the list of the idle right."""
            if self._is_busy:
                idle.pop(self, None)
            elif self not in idle and self in everyone:
                idle[self] = None
                self._idle_since_s = self.loop.time()

        def _forget(self) -> None:
            everyone.discard(self)
            idle.pop(self, None)
            if self._looking:
                self._looking.cancel()
                self._looking = None

        def _look_later(self) -> None:
            if self in everyone:
                self._looking = self.loop.call_later(limits.look_s, self._look)

        def _look(self) -> None:
            """End the connection if it has been waited for long enough."""
            now_s = self.loop.time()
            if not self._is_busy:
                self._body = self._reply = None
                if now_s - self._idle_since_s > limits.headers_s:
                    self._end(408, "the request's headers took too long")
            elif self._is_stuck_in_reply(now_s):
                self.transport.abort()
            elif self._is_slow_with_body(now_s):
                self._end(408, "the request's body came too slowly; send it again")
            self._look_later()

        def _is_slow_with_body(self, now_s: float) -> bool:
            if not self.cycle.more_body or self.flow.read_paused:  # it's not the client we wait for
                self._body = None
                return False
            if self._body is None:
                self._body = (now_s, self._received)
            since_s, before = self._body
            if now_s - since_s < limits.body_s:
                return False
            self._body = (now_s, self._received)
            return self._received - before < limits.body_bytes

        def _is_stuck_in_reply(self, now_s: float) -> bool:
            left = self.transport.get_write_buffer_size()
            if not self.flow.write_paused:
                self._reply = None
                return False
            if self._reply is None or self._reply[1] != left:
                self._reply = (now_s, left)
            return now_s - self._reply[0] >= limits.reply_s

        def _end(self, status: int, text: str) -> None:
            """Close the connection; with an answer, if none has begun and a request is there."""
            answered = self._is_busy and self.cycle.response_started
            if not answered and (self._is_busy or self._received or status == 503):
                self.transport.write(_reply(status, text))
            if self.cycle is not None:
                self.cycle.disconnected = True  # what the application still says has no way out
                self.cycle.message_event.set()
            self._forget()
            self.transport.close()

    return Bounded


def _reply(status: int, text: str) -> bytes:
    reason = {408: "Request Timeout", 503: "Service Unavailable"}[status]
    body = json.dumps({"error": text, "message": text}).encode()
    head = (
        f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
