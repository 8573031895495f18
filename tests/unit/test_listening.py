"""A socket to serve at, or the reason why there is none."""

import socket

import pytest

from loradash.errors import InvalidSettings
from loradash.listening import listen


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
