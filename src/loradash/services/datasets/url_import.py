"""Files fetched from web addresses that strangers name, without lending them our network.

Who can make a server fetch addresses asks from where the server stands: it may reach machines that
the asker can't. So a name is resolved here, all of its addresses must be public, and the
connection goes to one of those very addresses; a name that points elsewhere a moment later gains
nothing. Redirects are followed by hand, each as suspiciously as the first address. A proxy that the
environment names is asked to connect to that very address, never to a name. Other credentials of
the environment aren't used, and no error tells what isn't public.
"""

import contextlib
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import httpcore2
import httpx2

from loradash.domain.dataset_files import IMAGE_KINDS, file_reason
from loradash.domain.sizes import size_text
from loradash.domain.upload_fields import file_name, shown
from loradash.errors import InvalidRequest
from loradash.services.datasets.proxy_tunnel import ProxyOf, connect_through, environment_proxy
from loradash.services.datasets.public_addresses import IpAddress, is_public
from loradash.storage.disk import Room

IsAllowed = Callable[[IpAddress], bool]
Kind = Literal["zip", "jpeg", "png", "webp", "bmp", "gif", "tiff", "avif", "heif"]

MAX_REDIRECTS = 5
MAX_URL_CHARACTERS = 2000
WEB_PORTS = frozenset({80, 443})

_DEFAULT_PORTS = {"http": 80, "https": 443}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEAD_BYTES = 16
_ENDINGS: dict[Kind, tuple[str, ...]] = {
    "jpeg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "png": (".png", ".apng"),
    "webp": (".webp",),
    "bmp": (".bmp", ".dib"),
    "gif": (".gif",),
    "tiff": (".tif", ".tiff"),
    "avif": (".avif", ".avifs"),
    "heif": (".heic", ".heif", ".hif", ".heics", ".heifs"),
}


class Download(NamedTuple):
    """A file that was fetched; ``name`` is an image's file name, with an ending that is true."""

    path: Path
    kind: Kind
    name: str


@dataclass(frozen=True)
class TimeLimits:
    """How long a server may take, in seconds; ``total_s`` for everything, redirects included."""

    connect_s: float = 10.0
    read_s: float = 30.0
    total_s: float = 900.0


DEFAULT_TIMES = TimeLimits()


class UrlImporter:
    """Fetches zip files and images. ``is_allowed`` and ``ports`` say where it may connect to."""

    def __init__(
        self,
        *,
        is_allowed: IsAllowed = is_public,
        ports: Collection[int] = WEB_PORTS,
        times: TimeLimits = DEFAULT_TIMES,
        ssl_context: ssl.SSLContext | None = None,
        proxy_of: ProxyOf = environment_proxy,
    ) -> None:
        self._is_allowed = is_allowed
        self._proxy_of = proxy_of
        self._ports = ports
        self._times = times
        self._ssl_context = ssl_context

    def fetch(self, url: str, path: Path, max_bytes: int, room: Room | None = None) -> Download:
        """Fetch a zip file or an image into a file, for which ``room`` grows as it's announced.

        Raises `DiskFull`, and `InvalidRequest` for an address that may not be asked, and for
        whatever goes wrong on the way: it isn't there, too large, too slow, or neither a zip file
        nor an image.
        """
        target = self._checked(url)
        deadline = _Deadline(self._times.total_s)
        backend = _CheckedBackend(self._is_allowed, deadline, self._proxy_of)
        with (
            _told_as_invalid(),
            httpcore2.ConnectionPool(self._ssl_context, network_backend=backend) as pool,
        ):
            for _ in range(MAX_REDIRECTS + 1):
                with self._response(pool, target) as response:
                    location = _location(response)
                    if location is None:
                        _receive(response, path, max_bytes, room)
                        return _downloaded(target, path)
                target = self._checked(location, target)
        raise InvalidRequest(
            f"url: more than {MAX_REDIRECTS} redirects", remedy="Give the file's own address."
        )

    def _checked(self, text: str, base: httpx2.URL | None = None) -> httpx2.URL:
        """Return an address that may be asked, as far as it can be told without resolving it."""
        if len(text) > MAX_URL_CHARACTERS:
            raise InvalidRequest(
                f"url: {len(text):,} characters; at most {MAX_URL_CHARACTERS:,}",
                remedy="Give a shorter address.",
            )
        try:
            url = base.join(text) if base else httpx2.URL(text)
        except (httpx2.InvalidURL, ValueError) as error:  # a name that can't be a host's is one
            raise InvalidRequest(
                f"url: {shown(text)} isn't an address", remedy="Give one like https://host/file.zip"
            ) from error
        if url.scheme not in _DEFAULT_PORTS or not url.host:
            raise InvalidRequest(
                f"url: {shown(text)} isn't an http or https address",
                remedy="Give one like https://host/file.zip",
            )
        if url.userinfo:
            raise InvalidRequest(
                "url: it holds a user name or password",
                remedy="Give an address that works without, for instance a signed one.",
            )
        if _port(url) not in self._ports:
            raise InvalidRequest(
                f"url: port {_port(url)} isn't one of {', '.join(map(str, sorted(self._ports)))}",
                remedy="Give an address without a port.",
            )
        return url

    def _response(
        self, pool: httpcore2.ConnectionPool, url: httpx2.URL
    ) -> contextlib.AbstractContextManager[httpcore2.Response]:
        times = self._times
        return pool.stream(
            b"GET",
            httpcore2.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            ),
            headers=[
                (b"Host", url.netloc),
                (b"User-Agent", b"loradash"),
                (b"Accept", b"*/*"),
                (b"Accept-Encoding", b"identity"),
            ],
            extensions={
                "timeout": {
                    "connect": times.connect_s, "read": times.read_s, "write": times.read_s,
                    "pool": times.connect_s,
                }
            },
        )  # fmt: skip


class _Deadline:
    """When everything must be over."""

    def __init__(self, total_s: float) -> None:
        self._end_s = time.monotonic() + total_s

    def within(self, timeout_s: float | None) -> float:
        """Return how long one step may take. Raises `httpcore2.ReadTimeout` if no time is left."""
        left_s = self._end_s - time.monotonic()
        if left_s <= 0:
            raise httpcore2.ReadTimeout("it took too long altogether")
        return left_s if timeout_s is None else min(left_s, timeout_s)


class _CheckedBackend(httpcore2.NetworkBackend):
    """Connects to addresses that are allowed, by the number that was looked at."""

    def __init__(self, is_allowed: IsAllowed, deadline: _Deadline, proxy_of: ProxyOf) -> None:
        self._is_allowed = is_allowed
        self._proxy_of = proxy_of
        self._deadline = deadline
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the first address of a host that answers. Raises `InvalidRequest`."""
        failure: Exception = httpcore2.ConnectError("no address")
        addresses = self._addresses(host, port)
        proxy = self._proxy_of(host, port)

        def connect(host: str, port: int) -> httpcore2.NetworkStream:
            return self._sockets.connect_tcp(
                host, port, self._deadline.within(timeout), local_address, socket_options
            )

        for address in addresses:
            try:
                stream = (
                    connect_through(proxy, address, port, connect, self._deadline.within(timeout))
                    if proxy
                    else connect(str(address), port)
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
            else:
                return _TimedStream(stream, self._deadline)
        raise failure

    def _addresses(self, host: str, port: int) -> list[IpAddress]:
        """Return a host's addresses, if all may be used; else it isn't told what they are."""
        addresses: list[IpAddress] = []
        with contextlib.suppress(OSError, UnicodeError):  # there's no such name
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = [ipaddress.ip_address(str(one[4][0])) for one in found]
        if not addresses or not all(self._is_allowed(address) for address in addresses):
            raise InvalidRequest(
                f"url: {shown(host)} isn't a host of the public internet",
                remedy="Give an address that anybody can open, or upload the file.",
            )
        return list(dict.fromkeys(addresses))


class _TimedStream(httpcore2.NetworkStream):
    """A connection whose every step ends with the deadline: a drop now and then isn't enough."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: _Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """See `httpcore2.NetworkStream`."""
        return self._stream.read(max_bytes, self._deadline.within(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """See `httpcore2.NetworkStream`."""
        self._stream.write(buffer, self._deadline.within(timeout))

    def close(self) -> None:
        """See `httpcore2.NetworkStream`."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        """See `httpcore2.NetworkStream`; the name is the host's, not the address's."""
        stream = self._stream.start_tls(
            ssl_context, server_hostname, self._deadline.within(timeout)
        )
        return _TimedStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        """See `httpcore2.NetworkStream`."""
        return self._stream.get_extra_info(info)


@contextlib.contextmanager
def _told_as_invalid() -> Iterator[None]:
    try:
        yield
    except httpcore2.TimeoutException as error:
        raise InvalidRequest(
            "url: the server is too slow", remedy="Try again, or upload the file."
        ) from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        reason = "its certificate isn't trusted" if _is_certificate(error) else "not reached"
        raise InvalidRequest(
            f"url: the server didn't return the file ({reason})",
            remedy="Check the address, and try again.",
        ) from error


def _is_certificate(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _port(url: httpx2.URL) -> int:
    return _DEFAULT_PORTS[url.scheme] if url.port is None else url.port


def _location(response: httpcore2.Response) -> str | None:
    """Return where a response sends us; None for the file itself. Raises for anything else."""
    headers = {name.lower(): value for name, value in response.headers}
    if response.status in _REDIRECTS and b"location" in headers:
        return headers[b"location"].decode("utf-8", "replace")
    if response.status != 200:
        raise InvalidRequest(
            f"url: the server answered {response.status}",
            remedy="Open the address in a browser that isn't logged in: it must return the file.",
        )
    return None


def _receive(response: httpcore2.Response, path: Path, max_bytes: int, room: Room | None) -> None:
    """Write a response's content into a file, as far as it isn't too large."""
    headers = {name.lower(): value for name, value in response.headers}
    length = headers.get(b"content-length", b"")
    size_bytes = 0
    if length.isdigit() and len(length) < 20:
        _refuse_too_large(int(length), max_bytes)
        if room:
            room.announce(int(length))
    with path.open("wb") as file:
        for piece in response.iter_stream():
            size_bytes += len(piece)
            _refuse_too_large(size_bytes, max_bytes)
            if room:
                room.write(len(piece))
            file.write(piece)


def _refuse_too_large(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise InvalidRequest(
            f"url: the file is larger than {size_text(max_bytes)}",
            remedy="Split it, or raise MAX_UPLOAD_SIZE_MB.",
        )


def _downloaded(url: httpx2.URL, path: Path) -> Download:
    with path.open("rb") as file:
        kind = _kind(file.read(_HEAD_BYTES))
    if kind is None:
        raise InvalidRequest(
            f"url: the content is neither a zip file nor a {IMAGE_KINDS} image",
            remedy="Give the address of the file itself, not of a page that shows it.",
        )
    return Download(path, kind, _named(url, kind))


def _kind(head: bytes) -> Kind | None:
    """Tell by a file's first bytes what it is."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if head[4:8] == b"ftyp":
        return "avif" if head[8:12] in (b"avif", b"avis") else "heif"
    return "bmp" if head.startswith(b"BM") else None


def _named(url: httpx2.URL, kind: Kind) -> str:
    """Return the last part of an image's address with the right ending, or ``image``."""
    if kind == "zip":
        return ""
    endings = _ENDINGS[kind]
    last = PurePosixPath(url.path).name
    name = last if last.lower().endswith(endings) else f"{PurePosixPath(last).stem}{endings[0]}"
    with contextlib.suppress(ValueError):
        name = file_name(name)
        if file_reason(name) is None:
            return name
    return f"image{endings[0]}"
