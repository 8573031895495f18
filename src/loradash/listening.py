"""A socket to serve at, or an error that says why not."""

import errno
import socket

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
