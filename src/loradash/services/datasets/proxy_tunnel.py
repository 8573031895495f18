"""A connection to one address through the proxy that the environment names, if it names one.

Whoever imports decides which address may be reached, so the proxy is asked for that very address
and never for a name, which it might find elsewhere.
"""

import base64
from collections.abc import Callable
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore2

from loradash.errors import InvalidRequest
from loradash.services.datasets.public_addresses import IpAddress

ProxyOf = Callable[[str, int], str]
"""Returns the address of the proxy for a host and a port, '' for none."""

_DEFAULT_PORTS = {"http": 8080, "https": 443}
_MAX_REPLY_BYTES = 16 * 1024


def environment_proxy(host: str, port: int) -> str:
    """Return what HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY say, as HTTP clients read it."""
    proxies = getproxies()
    if proxy_bypass(host):
        return ""
    return proxies.get("https" if port == 443 else "http") or proxies.get("all") or ""


def connect_through(
    proxy: str,
    address: IpAddress,
    port: int,
    connect: Callable[[str, int], httpcore2.NetworkStream],
    timeout_s: float,
) -> httpcore2.NetworkStream:
    """Return a connection to an address that a proxy has made.

    ``connect`` connects to the proxy. Raises `InvalidRequest` if it refuses.
    """
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise InvalidRequest(
            "url: the proxy in HTTP_PROXY or HTTPS_PROXY isn't one that is called by http",
            remedy="Set one like http://proxy:3128, or upload the file.",
        )
    stream = connect(parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme])
    if parts.scheme == "https":
        context = httpcore2.default_ssl_context()
        stream = stream.start_tls(context, parts.hostname, timeout_s)
    target = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    head = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        head += f"Proxy-Authorization: Basic {base64.b64encode(user.encode()).decode()}\r\n"
    stream.write(f"{head}\r\n".encode(), timeout_s)
    reply = b""
    while b"\r\n\r\n" not in reply and len(reply) < _MAX_REPLY_BYTES:
        if not (piece := stream.read(_MAX_REPLY_BYTES, timeout_s)):
            break
        reply += piece
    status = reply.split(b" ", 2)[1:2]
    if not status or not status[0].startswith(b"2"):
        stream.close()
        said = status[0].decode("latin-1")[:20] if status else "nothing"
        raise InvalidRequest(
            f"url: the proxy in HTTP_PROXY or HTTPS_PROXY answers {said}",
            remedy="It must connect this program to addresses (CONNECT), for ports 80 and 443.",
        )
    return stream
