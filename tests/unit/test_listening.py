"""A socket to serve at, or the reason why there is none."""

import socket

import pytest

from loradash.errors import InvalidSettings
from loradash.listening import is_loopback, listen, names_of


def test_a_port_that_is_taken_is_said_to_be_in_use():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InvalidSettings, match=f"Port {port} is already in use.") as caught:
            listen("127.0.0.1", port)
    assert "--port" in caught.value.remedy


def test_an_address_that_is_not_this_machines_is_named():
    with pytest.raises(InvalidSettings, match=r"192\.0\.2\.1"):
        listen("192.0.2.1", 8000)


def test_port_0_is_a_free_one():
    with listen("127.0.0.1", 0) as listener:
        assert listener.getsockname()[1] > 0


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_only_this_machine_reaches_a_loopback_address(host):
    assert is_loopback(host)
    assert names_of(host) == {host}


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "myhost"])
def test_other_machines_reach_other_addresses_and_call_them_by_our_names(host):
    assert not is_loopback(host)
    assert {host, socket.gethostname().lower(), "127.0.0.1"} <= names_of(host)
    assert "attacker.example" not in names_of(host)
