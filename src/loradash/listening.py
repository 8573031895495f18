"""A socket to serve at, or an error that says why not."""

import errno
import socket
from ipaddress import ip_address

import psutil

from loradash.errors import InvalidSettings


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to this address; port 0 means any that is free.

    Raises `InvalidSettings` if it is taken or can't be had.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise InvalidSettings(
                f"Port {port} is already in use.",
                remedy="Choose another port with --port, or stop the program that uses it.",
            ) from error
        raise InvalidSettings(
            f"Can't listen on {host}:{port}: {error.strerror}",
            remedy="Choose another address or port.",
        ) from error
    return listener


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def names_of(host: str) -> frozenset[str]:
    """Return the names by which requests may call a server that listens at this address.

    Others are refused, so that no page gets at the server through a name of its own that leads
    here.
    """
    names = {host.lower()}
    if not is_loopback(host):
        names |= {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
        names |= {
            address.address.partition("%")[0].lower()
            for addresses in psutil.net_if_addrs().values()
            for address in addresses
            if address.family in (socket.AF_INET, socket.AF_INET6)
        }
    return frozenset(names)
