"""Bodies of requests that are read into memory: how many at once, and how they become values.

A byte of JSON can take twenty times as much as a value (an empty list), and parsing holds up every
other thread. So the number of values is bounded before anything is parsed, and so are the bytes
that all requests together hold until they are answered.
"""

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from typing import Any

from fastapi import Request
from pydantic_core import from_json

from loradash.errors import InvalidRequest, ServerBusy

MAX_VALUES = 250_000
"""Elements and keys that a body may have; about 100 bytes each. A base64 text is one."""
MAX_DEPTH = 64
_ALWAYS_BYTES = 2**16  # smaller bodies are read without a reservation
_PIECE_BYTES = 2**22
_ROOM_WAIT_S = 30.0


class Reservation:
    """Room for a body, until `release` is called; calling it again changes nothing."""

    def __init__(self, intake: "Intake", size_bytes: int) -> None:
        self._intake = intake
        self._size_bytes = size_bytes
        self._lock = threading.Lock()

    def release(self, _ended: "Future[Any] | None" = None) -> None:
        """Give the room back. Thread-safe; it can be a future's callback."""
        with self._lock:
            size_bytes, self._size_bytes = self._size_bytes, 0
        if size_bytes:
            self._intake.give_back(size_bytes)


class Intake:
    """Room in memory for the bodies of all requests that are being read, wait, or are answered.

    ``max_body_bytes`` is the largest body; all together may hold ``room_bytes``. Who finds no room
    waits in order, for ``wait_s`` at most.
    """

    def __init__(
        self, max_body_bytes: int, *, room_bytes: int | None = None, wait_s: float = _ROOM_WAIT_S
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._free_bytes = max(max_body_bytes, room_bytes or 2 * max_body_bytes)
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def reserve(self, request: Request) -> Reservation:
        """Return room for a request's body. Raises `ServerBusy` if there is none in time."""
        length = request.headers.get("content-length", "")
        known = (
            int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else None
        )
        size_bytes = self._max_body_bytes if known is None else min(known, self._max_body_bytes)
        if size_bytes <= _ALWAYS_BYTES:
            return Reservation(self, 0)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.append((size_bytes, turn))
            self._admit()
        try:
            await asyncio.wait_for(asyncio.shield(turn), self._wait_s)
        except (TimeoutError, asyncio.CancelledError) as error:
            with self._lock:
                if (size_bytes, turn) in self._waiting:
                    self._waiting.remove((size_bytes, turn))
                else:  # it was admitted at this very moment
                    self._free_bytes += size_bytes
                self._admit()
            if isinstance(error, TimeoutError):
                raise ServerBusy(
                    "the server is busy with other large requests",
                    remedy="Send it again in a minute, or send files by create_upload.",
                ) from error
            raise
        return Reservation(self, size_bytes)

    def give_back(self, size_bytes: int) -> None:
        """Room is free again; thread-safe."""
        with self._lock:
            self._free_bytes += size_bytes
            self._admit()

    def _admit(self) -> None:
        """Let in who waits, in order; the lock is held."""
        while self._waiting and self._waiting[0][0] <= self._free_bytes:
            size_bytes, turn = self._waiting.popleft()
            self._free_bytes -= size_bytes
            turn.get_loop().call_soon_threadsafe(_admitted, turn)


def _admitted(turn: "asyncio.Future[None]") -> None:
    if not turn.done():
        turn.set_result(None)


async def read_json(request: Request) -> Any:
    """Return a body's value, parsed in a thread. Raises `InvalidRequest`."""
    body = await request.body()
    return await asyncio.to_thread(parsed, body)


def parsed(body: bytes) -> Any:
    """Return the value of a JSON text. Raises `InvalidRequest` for what isn't JSON or too much."""
    values = 0
    for start in range(0, len(body), _PIECE_BYTES):  # other threads have their turn in between
        end = start + _PIECE_BYTES
        values += sum(body.count(sign, start, end) for sign in (b",", b"[", b"{"))
    if values > MAX_VALUES:
        raise InvalidRequest(
            f"the body has about {values:,} values, and {MAX_VALUES:,} are read",
            remedy="Send less at a time.",
        )
    try:
        value = from_json(body)
    except ValueError as error:
        raise InvalidRequest(
            f"the body isn't JSON: {str(error)[:200]}", remedy="Send a JSON object."
        ) from error
    if not _is_flat(value):
        raise InvalidRequest(
            f"the body is nested more than {MAX_DEPTH} deep", remedy="Send a flatter JSON object."
        )
    return value


def _is_flat(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return True
    return False
