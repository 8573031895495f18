"""What stands before every request: which pages may ask (`loradash.page_guard`), and how much."""

import re
from collections.abc import Collection

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loradash.page_guard import LOCAL_NAMES, PageGuard, refuse

# Their bodies go to disk piece by piece, and have limits that are made for files.
_TO_FILES = re.compile(r"/uploads/.+|/datasets/[^/]+/zip")

# Only job requests may bring whole files, in base64.
_JOB_REQUEST = re.compile(r"(/api\.runpod\.ai)?/v2/[^/]+/run(sync)?")
_SMALL_BODY_BYTES = 2**20


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
        self._max_body_bytes = max_body_bytes
        self._pages = PageGuard(self._bounded, origins=origins, names=names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what is allowed; answer the rest with a sentence that names the remedy."""
        await self._pages(scope, receive, send)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1"): value.decode("latin-1")
                   for key, value in scope["headers"]}  # fmt: skip
        if _TO_FILES.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        limit = self._max_body_bytes
        if not _JOB_REQUEST.fullmatch(scope["path"]):
            limit = min(limit, _SMALL_BODY_BYTES)
        if int(_number(headers.get("content-length", "0"))) > limit:
            await refuse(receive, send, 413, too_large_text(limit), headers.get("origin", ""))
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


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else 0
