"""Long polls: they wait for a change, and end when who asked has gone."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request

T = TypeVar("T")

# A hang-up passes through the transport, the server and our watcher before we see it.
_TURNS = 4


class HungUp(Exception):
    """Nobody waits for the answer any more."""


class Bell:
    """Wakes all that wait. Rings from any thread, once its loop is known."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ring: asyncio.Future[None] | None = None

    def hang(self) -> None:
        """Belong to the running loop."""
        self._loop = asyncio.get_running_loop()
        self._ring = self._loop.create_future()

    def ring(self) -> None:
        """Wake all that wait."""
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake)

    def next(self) -> "asyncio.Future[None]":
        """Return what is done when it rings next."""
        assert self._ring
        return self._ring

    def _wake(self) -> None:
        assert self._loop and self._ring
        self._ring.set_result(None)
        self._ring = self._loop.create_future()


async def hold(
    request: Request, bell: Bell, seconds: float, look: Callable[[], T | None]
) -> T | None:
    """Return what ``look`` finds, as soon as it finds something; None after the time.

    Raises `HungUp` if the client has gone; then ``look`` hasn't been called after that, so what it
    takes out of a queue isn't taken for nobody.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    gone = asyncio.create_task(_hang_up(request))
    try:
        while True:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            if gone.done():
                raise HungUp
            rung = bell.next()
            found = look()
            if found is not None:
                return found
            left_s = deadline - loop.time()
            if left_s <= 0:
                return None
            await asyncio.wait({gone, rung}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
