"""Unit tests can't reach another machine, and one that tries fails."""

import socket

import pytest

from tests.unit.no_network import network_refused


@pytest.mark.parametrize(
    "act",
    [
        lambda: socket.create_connection(("93.184.216.34", 80), timeout=1),
        lambda: socket.socket().connect_ex(("93.184.216.34", 80)),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("8.8.8.8", 53)),
        lambda: socket.getaddrinfo("example.com", 443),
        lambda: socket.gethostbyname("example.com"),
    ],
    ids=["connect", "connect_ex", "sendto", "getaddrinfo", "gethostbyname"],
)
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_another_machine_is_refused_and_noted(act) -> None:
    with network_refused() as tried, pytest.raises(OSError, match="no network in unit tests"):
        act()
    assert len(tried) == 1


def test_this_machine_is_reached() -> None:
    with network_refused() as tried, socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
        socket.create_connection(("localhost", server.getsockname()[1])).close()
    assert tried == []


def test_a_name_that_cannot_exist_is_not_looked_up() -> None:
    with network_refused() as tried, pytest.raises(socket.gaierror):
        socket.getaddrinfo("somewhere.invalid", 80)
    assert tried == []
