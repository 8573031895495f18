"""What stands before every request: who may ask from where, and how much.

There are no accounts yet, so the server listens on this machine only. Two things would still let a
web page reach it: a browser sends requests to 127.0.0.1 for any page, and a name that points to
127.0.0.1 makes them look like the page's own. So pages need an origin that is allowed, and the
request must be addressed to this machine by one of its own names.
"""

import json
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Their bodies go to disk piece by piece, and have limits that are made for files.
_TO_FILES = re.compile(r"/uploads/.+|/datasets/[^/]+/zip")

LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})


class TooLarge(HTTPException):
    """A request's body is larger than the server reads; an HTTP error, so that it stays one."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, too_large_text(limit))


class Guard:
    """ASGI middleware that refuses foreign pages, foreign names and bodies without end."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        origins: Collection[str],
        max_body_bytes: int,
        names: Collection[str] = LOCAL_NAMES,
    ) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._max_body_bytes = max_body_bytes
        self._names = frozenset(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what is allowed; answer the rest with a sentence that names the remedy."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1")
                   for key, value in scope["headers"]}  # fmt: skip
        host = _host(headers.get("host", ""))
        if host not in self._names:
            await _refuse(
                send, 403, f"host {host[:100]!r} isn't this machine; use http://127.0.0.1"
            )
            return
        origin = headers.get("origin")
        if origin and origin not in self._origins and not _is_ours(origin, headers["host"]):
            await _refuse(
                send, 403,
                f"pages of {origin[:100]} may not use this server; add it to LORADASH_CORS_ORIGINS",
            )  # fmt: skip
            return
        if _TO_FILES.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        limit = self._max_body_bytes
        if int(_number(headers.get("content-length", "0"))) > limit:
            await _refuse(send, 413, too_large_text(limit), origin or "")
            return
        await self._app(scope, _limited(receive, limit), send)


def too_large_text(limit: int) -> str:
    """What a client reads whose request is too large."""
    return (
        f"the request has more than {limit // 2**20} MB; send an upload in several parts with "
        "cleanup_existing: false, or raise LORADASH_MAX_REQUEST_MB"
    )


def _limited(receive: Receive, limit: int) -> Receive:
    read = 0

    async def limited() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > limit:
            raise TooLarge(limit)
        return message

    return limited


def _host(header: str) -> str:
    header = header.lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if ":" in header else header


def _is_ours(origin: str, host: str) -> bool:
    """Whether the page came from this very server."""
    try:
        return urlsplit(origin).netloc == host
    except ValueError:  # no address at all
        return False


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0


async def _refuse(send: Send, status: int, text: str, allowed_origin: str = "") -> None:
    """Answer with an error; a page of an origin that is allowed may read it."""
    body = json.dumps({"error": text}).encode()
    allowed = allowed_origin.encode("latin-1")
    cors = [(b"access-control-allow-origin", allowed), (b"vary", b"Origin")]
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
                *(cors if allowed else []),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
