"""Which web pages may reach a server on this machine: its own, and those of allowed origins.

There are no accounts yet, so our servers listen on this machine only. Two things would still let a
web page reach them: a browser sends requests to 127.0.0.1 for any page, and a name that points to
127.0.0.1 makes them look like the page's own. So the request must be addressed to this machine by
one of its own names, and pages need an origin that is allowed. Not every request of a page names
its origin: images, frames and links don't. Browsers say of these where they come from by fetch
metadata (https://www.w3.org/TR/fetch-metadata/); a program that isn't a browser sends neither.
"""

import asyncio
import contextlib
import json
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})

# What is still read of a request that was refused: a client reads the reply when it has sent all.
_DISCARDED_BYTES = 512 * 2**20
_DISCARDING_S = 30.0

_OWN_SITES = frozenset({"", "same-origin", "none"})  # none: typed in, or a bookmark


class PageGuard:
    """ASGI middleware that refuses foreign pages and foreign names.

    ``origins`` are those whose pages may use the server; ``remedy`` says how one is allowed.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        origins: Collection[str] = (),
        remedy: str = "add it to LORADASH_CORS_ORIGINS",
        names: Collection[str] = LOCAL_NAMES,
    ) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._remedy = remedy
        self._names = frozenset(names)
        # Pages of allowed origins may show our images; the others are refused before.
        shared = b"cross-origin" if self._origins else b"same-origin"
        self._added = [
            (b"cross-origin-resource-policy", shared),
            (b"x-content-type-options", b"nosniff"),
            (b"x-frame-options", b"DENY"),
            (b"content-security-policy", b"frame-ancestors 'none'"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what is allowed; answer the rest with a sentence that names the remedy."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message.get("headers", ())}
                added = [header for header in self._added if header[0] not in there]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        headers = {key.decode("latin-1"): value.decode("latin-1")
                   for key, value in scope["headers"]}  # fmt: skip
        if problem := self._problem(scope["method"], headers):
            await refuse(receive, send_guarded, 403, problem)
        else:
            await self._app(scope, receive, send_guarded)

    def _problem(self, method: str, headers: Mapping[str, str]) -> str:
        """Say why a request isn't allowed; nothing if it is."""
        host = _host(headers.get("host", ""))
        if host not in self._names:
            return f"host {host[:100]!r} isn't this machine; use http://127.0.0.1"
        origin = headers.get("origin")
        if origin:
            is_allowed = origin in self._origins or _is_ours(origin, headers["host"])
            problem = f"pages of {origin[:100]} may not use this server; {self._remedy}"
            return "" if is_allowed else problem
        if headers.get("sec-fetch-site", "") in _OWN_SITES or _is_visit(method, headers):
            return ""
        page = _origin_of(headers.get("referer", ""))
        if page in self._origins:
            return ""
        return f"pages of {page[:100] or 'other sites'} may not use this server; {self._remedy}"


async def refuse(
    receive: Receive, send: Send, status: int, text: str, allowed_origin: str = ""
) -> None:
    """Answer with an error; a page of an origin that is allowed may read it.

    The connection is closed only after the client had time to send the rest of its body: it would
    otherwise be reset, and most clients read no reply before they have sent everything.
    """
    body = json.dumps({"error": text, "message": text}).encode()
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
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await _discard(receive)
    await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive) -> None:
    """Read what still comes of a request's body, for a bounded while."""
    discarded = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARDING_S):
            while discarded < _DISCARDED_BYTES:
                message = await receive()
                discarded += len(message.get("body", b""))
                if not message.get("more_body"):  # the end, or the client has gone
                    return


def _is_visit(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a person goes from another site to a page or file of ours, in a window of its own.

    By a link or `window.open`, that is, and not in a frame, an object or a form that posts.
    """
    return (
        method in ("GET", "HEAD")
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


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


def _origin_of(url: str) -> str:
    """Return the origin of a page's address; nothing for what is no address."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme and parts.netloc else ""
