"""Free ports on 127.0.0.1, below those that the kernel gives to outgoing connections."""

import contextlib
import errno
import random
import socket
from collections.abc import Collection

_LOWEST, _HIGHEST = 12_000, 22_000  # with 10,000 more still below 32768, Linux's first of its own
_random = random.SystemRandom()  # test runs at the same time must not look in the same order


def free_port(also: Collection[int] = (), taken: Collection[int] = ()) -> int:
    """Return a port that nobody listens on, nor on the ports so much higher (``also``)."""
    for _ in range(1000):
        port = _random.randrange(_LOWEST, _HIGHEST)
        if port not in taken and all(_is_free(port + more) for more in (0, *also)):
            return port
    raise OSError(errno.EADDRINUSE, "no free port found")


def free_ports(count: int, also: Collection[int] = ()) -> list[int]:
    """Return different free ports."""
    found: list[int] = []
    for _ in range(count):
        found.append(free_port(also, found))
    return found


def _is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
