"""Keeps unit tests from talking to other machines: neither connections nor look-ups of names.

It listens to Python's audit events (PEP 578), so that it also sees what libraries do with sockets,
`connect_ex` and datagrams. What doesn't go through Python's sockets (obstore, curl) isn't seen.
"""

import errno
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

_LOCAL = {None, "", "localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn()}
_LOOKUPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
_SENDS = {"socket.connect", "socket.sendto", "socket.sendmsg"}

_attempts: list[str] | None = None


@contextmanager
def network_refused() -> Iterator[list[str]]:
    """Refuse it inside; the list holds what was tried. One at a time in a process."""
    global _attempts
    if not _installed:
        sys.addaudithook(_audit)
        _installed.append(True)
    tried: list[str] = []
    _attempts = tried
    try:
        yield tried
    finally:
        _attempts = None


_installed: list[bool] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _attempts is None or not event.startswith("socket."):
        return
    if event in _LOOKUPS:
        _look_up(arguments[0])
    elif event in _SENDS:
        address = arguments[1]
        if isinstance(address, tuple) and not _is_local(address[0]):
            _refuse(f"{event} {address[0]}:{address[1]}")


def _look_up(host: str | bytes | None) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    name = name.removesuffix(".") if name else name
    if name in _LOCAL or _is_number(name):
        return
    # Names that no network knows (RFC 6761), or that aren't any: they are not even asked for.
    if name.endswith((".invalid", ".test")) or "%" in name:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    _refuse(f"look-up of {name}")


def _refuse(what: str) -> None:
    if _attempts is not None:
        _attempts.append(what)
    raise OSError(errno.ENETUNREACH, f"no network in unit tests: {what}")


def _is_number(name: str | None) -> bool:
    """Whether it is an address, also in the old forms such as 127.1, which need no look-up."""
    try:
        ip_address(name or "")
    except ValueError:
        try:
            socket.inet_aton(name or "x")
        except OSError:
            return False
    return True


def _is_local(host: str) -> bool:
    if host in _LOCAL:
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
