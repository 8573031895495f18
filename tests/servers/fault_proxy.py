"""A proxy that does to HTTP what networks and servers do: late, broken, half, twice or not at all.

It passes requests on as they are (the ``Host`` header too, which S3 signatures cover) and streams
bodies. Beside a delay, which all requests have, a request meets at most one fault:

- ``500`` ``503``: an S3 error; the server never sees the request.
- ``500_after`` ``error_in_200``: the server does it, and the client is told that it failed; the
  second with the status 200, as S3 may answer ``CompleteMultipartUpload`` and copies (chance gives
  other requests the first).
- ``reset_before`` ``reset_upload``: the connection is reset (RST) before the server sees the
  request, or in the middle of its body.
- ``reset_after`` ``reset_middle``: the server does it; reset before the reply, or in its middle.
- ``stall_before`` ``stall_middle``: no answer for ``stall_s``, then a reset, and the server never
  sees the request; or the reply stops in its middle for ``stall_s`` and goes on.
- ``truncate``: the connection is closed, cleanly, after half of the reply.

A fault is chosen by chance (`FaultProxy.disturb`) or for the next requests of a kind
(`FaultProxy.fail_next`). As a process, ``python -m tests.servers.fault_proxy --upstream URL`` says
``proxy is ready: URL`` and takes commands as JSON from its standard input, one a line:
``{"disturb": {"share": 0.3}}``, ``{"fail_next": {"fault": "500"}}``, ``{"delay_s": 0.015}``,
``{"down": true}``, ``{"report": true}``. It ends with its input.
"""

import argparse
import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self, TypeVar
from urllib.parse import parse_qs, urlsplit

from tests.servers.ports import free_port

FAULTS = (
    "500", "503", "500_after", "error_in_200", "reset_before", "reset_upload", "reset_after",
    "reset_middle", "stall_before", "stall_middle", "truncate",
)  # fmt: skip
_NEVER_SENT = ("500", "503", "reset_before", "stall_before")
_TOLD_LATE = ("CompleteMultipartUpload", "CopyObject")  # S3 says 200 before it has done these
_HEAD_BYTES = 256 * 1024
_CHUNK_BYTES = 256 * 1024
_LINE_BYTES = 16 * 1024 * 1024  # what may be on its way at once: no limit at 30 ms and 500 MB/s
_RESET = struct.pack("ii", 1, 0)  # linger for 0 s: close() sends RST

T = TypeVar("T")


@dataclass
class Seen:
    """A request and what became of it. Header names are in lower case."""

    method: str
    path: str
    """With its query, as it was sent."""
    operation: str
    """The S3 operation: ``PutObject``, ``ListObjectsV2``..."""
    headers: Mapping[str, str] = field(repr=False, default_factory=dict)
    status: int = 0
    """What the client was told; 0 if nothing."""
    fault: str = ""
    sent_bytes: int = 0
    """Of the request's body, as the server got them."""


@dataclass(frozen=True)
class _Match:
    """Which requests are meant. Empty means all."""

    operations: Sequence[str] = ()
    methods: Sequence[str] = ()
    containing: str = ""

    def __call__(self, seen: Seen) -> bool:
        return (
            (not self.operations or seen.operation in self.operations)
            and (not self.methods or seen.method in self.methods)
            and self.containing in seen.path
        )


class FaultProxy:
    """The proxy, in a thread of its own. A context manager; `start` and `stop` otherwise.

    ``delay_s`` is the way in one direction: replies take twice that, and the first one on a new
    connection four times. It and ``stall_s`` may be set while it runs.
    """

    def __init__(
        self, upstream: str, *, port: int = 0, seed: int = 0, delay_s: float = 0,
        stall_s: float = 5,
    ) -> None:  # fmt: skip
        address = urlsplit(upstream)
        self._upstream = (address.hostname or "127.0.0.1", address.port or 80)
        self.port = port or free_port()
        self.delay_s = delay_s
        self.stall_s = stall_s
        self.requests: list[Seen] = []
        """All requests in order of their arrival."""
        self._random = random.Random(seed)
        self._share = 0.0
        self._faults: Sequence[str] = ()
        self._match = _Match()
        self._next: deque[tuple[str, _Match]] = deque()
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Start the thread and listen."""
        self._thread.start()
        self.come_back()
        return self

    def stop(self) -> None:
        """Close all connections and end the thread."""
        if self._thread.is_alive():
            self.go_down()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        if not self._loop.is_closed():
            self._loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def disturb(
        self, share: float, faults: Sequence[str] = FAULTS, *, operations: Sequence[str] = (),
        methods: Sequence[str] = (), containing: str = "",
    ) -> None:  # fmt: skip
        """From now on, this share of the requests (of these kinds) meets one of the faults."""
        for fault in faults:
            _check(fault)
        with self._lock:
            self._share, self._faults = share, tuple(faults)
            self._match = _Match(operations, methods, containing)

    def fail_next(
        self, fault: str, count: int = 1, *, operations: Sequence[str] = (),
        methods: Sequence[str] = (), containing: str = "",
    ) -> None:  # fmt: skip
        """Let the next so many requests (of these kinds) meet this fault."""
        _check(fault)
        with self._lock:
            self._next.extend([(fault, _Match(operations, methods, containing))] * count)

    def calm(self) -> None:
        """No more faults; the delay stays."""
        with self._lock:
            self._share = 0.0
            self._next.clear()

    def go_down(self) -> None:
        """Refuse connections, and reset those that there are."""
        self._do(self._close())

    def come_back(self) -> None:
        """Listen again, on the same port."""
        self._do(self._listen())

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Refuse connections for a while."""
        self.go_down()
        try:
            yield
        finally:
            self.come_back()

    def count(self, operation: str = "", *, method: str = "", fault: str = "") -> int:
        """Return how many requests of a kind were seen."""
        return sum(
            operation in ("", seen.operation)
            and method in ("", seen.method)
            and fault in ("", seen.fault)
            for seen in list(self.requests)
        )

    @property
    def operations(self) -> Counter[str]:
        """How many requests of each S3 operation were seen."""
        return Counter(seen.operation for seen in list(self.requests))

    @property
    def faults(self) -> Counter[str]:
        """How many requests met which fault."""
        return Counter(seen.fault for seen in list(self.requests) if seen.fault)

    def forget(self) -> None:
        """Empty the list of requests."""
        self.requests = []

    def report(self) -> dict[str, Any]:
        """Return the counters and the list of requests, without headers, for other processes."""
        requests = [asdict(seen) for seen in list(self.requests)]
        for request in requests:
            del request["headers"]
        return {
            "operations": self.operations,
            "faults": self.faults,
            "requests": requests,
        }

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        if self._server:
            return
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, limit=_HEAD_BYTES, backlog=256
        )

    async def _close(self) -> None:
        if self._server:
            self._server.close()
            self._server = None
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        connection = _Connection(self, reader, writer)
        try:
            await connection.serve()
        except asyncio.CancelledError:
            connection.reset()
        except (OSError, EOFError, asyncio.LimitOverrunError, _BadHttpError):
            connection.reset()  # one side has gone, and so does the other
        finally:
            connection.close()
            self._connections.discard(task)

    def choose(self, seen: Seen) -> str:
        """Remember a request; return the fault that it shall meet, or ''."""
        with self._lock:
            self.requests.append(seen)
            for number, (fault, match) in enumerate(self._next):
                if match(seen):
                    del self._next[number]
                    return fault
            if self._share and self._match(seen) and self._random.random() < self._share:
                fault = self._random.choice(self._faults)
                is_told_late = seen.operation in _TOLD_LATE
                return "500_after" if fault == "error_in_200" and not is_told_late else fault
            return ""

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection to the server."""
        return await asyncio.open_connection(*self._upstream, limit=_HEAD_BYTES)


class _Connection:
    """A client's connection and the one to the server that goes with it."""

    def __init__(
        self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._reader = reader
        self._client = _Line(writer, proxy)
        self._answers: asyncio.StreamReader | None = None
        self._server: _Line | None = None
        self._is_new = True

    async def serve(self) -> None:
        """Pass on one request after the other, until one side closes."""
        while True:
            try:
                head = _Head(await self._reader.readuntil(b"\r\n\r\n"))
            except asyncio.IncompleteReadError:
                return
            if self._is_new and self._proxy.delay_s:
                await asyncio.sleep(2 * self._proxy.delay_s)  # the handshake's round trip
            self._is_new = False
            seen = head.seen()
            seen.fault = self._proxy.choose(seen)
            if not await self._pass_on(head, seen):
                await self._client.flush()
                return

    def reset(self) -> None:
        """Let the client's connection end with RST."""
        self._client.reset()

    def close(self) -> None:
        """Close both connections."""
        self._client.close()
        if self._server:
            self._server.close()

    async def _pass_on(self, head: "_Head", seen: Seen) -> bool:
        """Deal with one request; return whether the connection is good for another."""
        if seen.fault in _NEVER_SENT:
            return await self._refuse(head, seen)
        answers, server = await self._server_connection()
        sending = asyncio.create_task(self._send(head, seen, server))
        try:
            is_open = await self._answer(head, seen, answers, sending)
        finally:
            is_sent = sending.done()
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError, EOFError):
                await sending
        return is_open and is_sent  # an early answer leaves half a request behind

    async def _refuse(self, head: "_Head", seen: Seen) -> bool:
        if seen.fault == "stall_before":
            await asyncio.sleep(self._proxy.stall_s)
        if seen.fault in ("stall_before", "reset_before"):
            raise ConnectionResetError
        is_waiting = "100-continue" in head.headers.get("expect", "").lower()
        if not is_waiting:  # else the client sends no body after an error
            async for _ in _body(self._reader, head.framing()):
                pass
        seen.status = int(seen.fault)
        await self._client.write(_error_reply(seen.status, seen.method, close=is_waiting))
        return not is_waiting

    async def _server_connection(self) -> tuple[asyncio.StreamReader, "_Line"]:
        if self._answers and self._answers.at_eof() and self._server:
            self._server.close()
            self._server = None
        if not self._server:
            self._answers, writer = await self._proxy.connect()
            self._server = _Line(writer, self._proxy)
        assert self._answers
        return self._answers, self._server

    async def _send(self, head: "_Head", seen: Seen, server: "_Line") -> None:
        await server.write(head.raw)
        framing = head.framing()
        half = (framing or 0) // 2
        async for piece in _body(self._reader, framing):
            if seen.fault == "reset_upload" and seen.sent_bytes + len(piece) >= half:
                await server.write(piece[: max(0, half - seen.sent_bytes)])
                await server.flush()
                server.reset()
                self.reset()
                return
            await server.write(piece)
            seen.sent_bytes += len(piece)
        if seen.fault == "reset_upload":  # no body to be in the middle of
            server.reset()
            self.reset()

    async def _answer(
        self, head: "_Head", seen: Seen, answers: asyncio.StreamReader, sending: asyncio.Task[None]
    ) -> bool:
        while True:
            try:
                reply = _Reply(await answers.readuntil(b"\r\n\r\n"))
            except asyncio.IncompleteReadError:
                raise ConnectionResetError from None
            if reply.status >= 200:
                break
            await self._client.write(reply.raw)
        framing = reply.framing(head.method)
        if seen.fault in ("reset_after", "500_after", "error_in_200"):
            async for _ in _body(answers, framing):
                pass
            await sending
            if seen.fault == "reset_after":
                raise ConnectionResetError
            seen.status = 500 if seen.fault == "500_after" else 200
            await self._client.write(_error_reply(seen.status, head.method))
            return True
        seen.status = reply.status
        if seen.fault in ("reset_middle", "stall_middle", "truncate"):
            return await self._half(seen, reply, answers, framing)
        await self._client.write(reply.raw)
        async for piece in _body(answers, framing):
            await self._client.write(piece)
        await self._client.flush()
        return framing != _UNTIL_CLOSED and "close" not in reply.headers.get("connection", "")

    async def _half(
        self, seen: Seen, reply: "_Reply", answers: asyncio.StreamReader, framing: int
    ) -> bool:
        """Pass on half of a reply, and then what the fault says. Half of its head if that's all."""
        pieces = _body(answers, framing)
        if framing:
            await self._client.write(reply.raw)
            left = framing // 2 if framing > 0 else 1
            async for piece in pieces:
                if len(piece) >= left:
                    break
                await self._client.write(piece)
                left -= len(piece)
            else:
                piece = b""
        else:
            piece, left = reply.raw, len(reply.raw) // 2
        await self._client.write(piece[:left])
        await self._client.flush()
        if seen.fault == "reset_middle":
            await asyncio.sleep(0.05)  # the RST would overtake what isn't read yet
            raise ConnectionResetError
        if seen.fault == "truncate":
            return False
        await asyncio.sleep(self._proxy.stall_s)
        await self._client.write(piece[left:])
        async for piece in pieces:
            await self._client.write(piece)
        await self._client.flush()
        return framing != _UNTIL_CLOSED


class _Line:
    """One direction of a connection: what is written arrives after the delay."""

    def __init__(self, writer: asyncio.StreamWriter, proxy: FaultProxy) -> None:
        self._writer = writer
        self._proxy = proxy
        self._queue: deque[tuple[float, bytes]] = deque()
        self._queued_bytes = 0
        self._more = asyncio.Event()
        self._less = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def write(self, data: bytes) -> None:
        """Send data, later if there is a delay."""
        if not data:
            return
        if not self._proxy.delay_s and not self._queue:
            self._writer.write(data)
            await self._writer.drain()
            return
        if not self._task:
            self._task = asyncio.create_task(self._deliver())
        due = asyncio.get_running_loop().time() + self._proxy.delay_s
        self._queue.append((due, data))
        self._queued_bytes += len(data)
        self._more.set()
        await self._wait(_LINE_BYTES)

    async def flush(self) -> None:
        """Wait until all has been sent."""
        await self._wait(0)
        await self._writer.drain()

    def reset(self) -> None:
        """Close with RST, dropping what is on its way."""
        connection = self._writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._writer.transport.abort()

    def close(self) -> None:
        """Close; what was flushed arrives."""
        if self._task:
            self._task.cancel()
        self._writer.close()

    async def _wait(self, at_most_bytes: int) -> None:
        while self._queued_bytes > at_most_bytes:
            if not self._task or self._task.done():
                raise ConnectionResetError
            self._less.clear()
            await self._less.wait()

    async def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                while not self._queue:
                    self._more.clear()
                    await self._more.wait()
                due, data = self._queue[0]
                if (wait_s := due - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                self._writer.write(data)
                await self._writer.drain()
                self._queue.popleft()
                self._queued_bytes -= len(data)
                self._less.set()
        except OSError:
            loop.call_soon(self._less.set)  # by then the task counts as done


class _BadHttpError(Exception):
    """Something that isn't HTTP/1.1."""


_CHUNKED, _UNTIL_CLOSED = -1, -2


class _Head:
    """The first lines of a request, and how its body is framed."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        first, *lines = raw.decode("latin-1").split("\r\n")
        self.first = first.split(" ", 2)
        if len(self.first) < 2:
            raise _BadHttpError(first)
        self.method, self.target = self.first[:2]
        self.headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines if line)
        }

    def framing(self) -> int:
        """Return the length of the body, or `_CHUNKED`."""
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            return _CHUNKED
        return int(self.headers.get("content-length", 0))

    def seen(self) -> Seen:
        return Seen(self.method, self.target, _operation(self), self.headers)


class _Reply(_Head):
    """The first lines of a reply."""

    @property
    def status(self) -> int:
        return int(self.target)

    def framing(self, method: str = "") -> int:
        """Return the length of the body, or `_CHUNKED`, or `_UNTIL_CLOSED`."""
        if method == "HEAD" or self.status in (204, 304):
            return 0
        if "content-length" in self.headers or "transfer-encoding" in self.headers:
            return super().framing()
        return _UNTIL_CLOSED


async def _body(reader: asyncio.StreamReader, framing: int) -> AsyncIterator[bytes]:
    """Yield a body as it comes, with the marks of its chunks. Raises `EOFError` if it's cut."""
    if framing == _UNTIL_CLOSED:
        while piece := await reader.read(_CHUNK_BYTES):
            yield piece
        return
    while framing == _CHUNKED:
        line = await reader.readuntil(b"\r\n")
        yield line
        size = int(line.split(b";")[0], 16)
        if not size:
            while line != b"\r\n":  # trailers, and the empty line after them
                line = await reader.readuntil(b"\r\n")
                yield line
            return
        async for piece in _body(reader, size + 2):
            yield piece
    left = framing
    while left:
        piece = await reader.read(min(left, _CHUNK_BYTES))
        if not piece:
            raise EOFError
        left -= len(piece)
        yield piece


def _operation(head: _Head) -> str:
    """Return the name of the S3 operation that a request is."""
    address = urlsplit(head.target)
    query = parse_qs(address.query, keep_blank_values=True)
    host = head.headers.get("host", "").rsplit(":", 1)[0]
    in_path = host in ("", "localhost") or host.replace(".", "").isdigit()
    parts = address.path.lstrip("/").split("/", 1 if in_path else 0)
    if in_path and not parts[0]:
        return "ListBuckets"
    has_key = bool(parts[-1]) and len(parts) == (2 if in_path else 1)
    method = head.method
    if not has_key:
        if method == "POST":
            return "DeleteObjects" if "delete" in query else "PostObject"
        if method == "GET":
            if "uploads" in query:
                return "ListMultipartUploads"
            return "ListObjectsV2" if "2" in query.get("list-type", ()) else "ListObjects"
        return {"HEAD": "HeadBucket", "PUT": "CreateBucket", "DELETE": "DeleteBucket"}.get(
            method, method
        )
    if "uploads" in query and method == "POST":
        return "CreateMultipartUpload"
    if "uploadId" in query:
        names = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "GET": "ListParts"}
        return names.get(method, "AbortMultipartUpload")
    if method == "PUT" and "x-amz-copy-source" in head.headers:
        return "CopyObject"
    return f"{method.capitalize()}Object"


def _error_reply(status: int, method: str, *, close: bool = False) -> bytes:
    """Return an error as S3 words it."""
    code = "SlowDown" if status == 503 else "InternalError"
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>Injected by the fault proxy.</Message>"
        "<RequestId>fault</RequestId></Error>"
    )
    reason = {200: "OK", 500: "Internal Server Error", 503: "Slow Down"}[status]
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\n{'Connection: close' + chr(13) + chr(10) if close else ''}"
    )
    return f"{head}\r\n{'' if method == 'HEAD' else body}".encode()


def _check(fault: str) -> None:
    if fault not in FAULTS:
        raise ValueError(f"there is no fault {fault!r}; there are {', '.join(FAULTS)}")


def main() -> None:
    """Run a proxy as a process, until its input ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delay-s", type=float, default=0)
    parser.add_argument("--stall-s", type=float, default=5)
    with FaultProxy(**vars(parser.parse_args())) as proxy:
        print(f"proxy is ready: {proxy.url}", flush=True)
        for line in sys.stdin:
            for name, value in json.loads(line).items():
                _obey(proxy, name, value)


def _obey(proxy: FaultProxy, name: str, value: Any) -> None:
    if name in ("disturb", "fail_next"):
        getattr(proxy, name)(**value)
    elif name in ("delay_s", "stall_s"):
        setattr(proxy, name, value)
    elif name == "calm":
        proxy.calm()
    elif name == "down":
        proxy.go_down() if value else proxy.come_back()
    elif name == "report":
        print(json.dumps(proxy.report()), flush=True)
    else:
        raise ValueError(f"unknown command {name!r}")


if __name__ == "__main__":
    main()
