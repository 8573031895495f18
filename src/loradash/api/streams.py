"""Replies whose content is passed on in pieces while it is read.

A source that breaks in the middle breaks the connection too: the client was told how many bytes to
expect.
"""

import contextlib
from collections.abc import Generator, Iterator, Mapping
from urllib.parse import quote

import structlog
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from loradash.domain.media_types import media_type
from loradash.errors import LoradashError

log = structlog.get_logger("loradash.api")


def streamed(
    request: Request,
    pieces: Iterator[bytes],
    name: str,
    headers: Mapping[str, str],
    status: int = 200,
) -> Response:
    """Return a reply of these pieces, which together have as many bytes as the headers say.

    The first one is waited for, so that a store that doesn't answer is told as an error. Starlette
    reads the others in threads.
    """
    kind = media_type(name)
    if request.method == "HEAD":
        return Response(None, status, headers, kind)
    first = next(pieces, b"")
    return _Stream(_passed_on(first, pieces, name), status, headers, kind)


def file_headers(name: str, *, save: bool = False) -> dict[str, str]:
    """Headers under which a browser shows an image, saves the rest, and takes nothing for a page.

    With ``save`` it saves images too. The name says what is an image, so that content which only
    pretends to be one isn't run.
    """
    is_image = media_type(name).startswith("image/")
    shown = "inline" if is_image and not save else "attachment"
    quoted = quote(name, safe="")
    named = f'filename="{name}"' if quoted == name else f"filename*=UTF-8''{quoted}"
    return {
        "Content-Disposition": f"{shown}; {named}",
        "X-Content-Type-Options": "nosniff",
    }


class _Stream(StreamingResponse):
    """Ends the reading when the client goes away; Starlette would leave it to the collector."""

    def __init__(
        self,
        pieces: Generator[bytes, None, None],
        status: int,
        headers: Mapping[str, str],
        kind: str,
    ) -> None:
        super().__init__(pieces, status, headers, kind)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with contextlib.suppress(ValueError):  # at a forced stop a thread may still read
                self._pieces.close()


def _passed_on(first: bytes, pieces: Iterator[bytes], name: str) -> Generator[bytes, None, None]:
    yield first
    del first
    try:
        yield from pieces
    except (LoradashError, OSError) as error:
        log.warning("download_broke", file=name, error=str(error))
        raise
