"""Request bodies that go to a file: never whole in memory, and refused as soon as they may be."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from fastapi import Request
from starlette.requests import ClientDisconnect

from loradash.errors import InvalidRequest
from loradash.storage.disk import Room

_PIECE_BYTES = 2**20  # written at once, from a thread


async def receive(
    request: Request, path: Path, what: str, check_size: Callable[[int, bool], None], room: Room
) -> None:
    """Write a body to a file. Raises `InvalidRequest` if it ends before its end.

    ``check_size`` raises for a size that isn't allowed. It is told whether that is the whole: as
    the body's length is announced, as more and more of it comes, and at its end. ``room`` grows as
    much. Raises `DiskFull`.
    """
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdecimal() and len(length) < 20:
        check_size(int(length), True)
        room.announce(int(length))
    size_bytes = 0
    piece = bytearray()
    with path.open("wb") as file:
        try:
            async for part in request.stream():
                size_bytes += len(part)
                check_size(size_bytes, False)
                room.write(len(part))
                piece += part
                if len(piece) >= _PIECE_BYTES:
                    await asyncio.to_thread(file.write, bytes(piece))
                    piece.clear()
        except ClientDisconnect as error:
            raise InvalidRequest(f"the {what} ended early", remedy="Send it again.") from error
        await asyncio.to_thread(file.write, bytes(piece))
    check_size(size_bytes, True)
