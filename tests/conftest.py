"""What all tests share: real S3 servers, started by the first test that asks for one."""

import signal
from collections.abc import Iterator

import pytest

from tests.servers.juicefs import JuiceServer
from tests.servers.seaweedfs import SeaweedServer


def pytest_configure() -> None:
    """Take Ctrl-C even where a shell has started the tests in its background.

    Such a shell has SIGINT ignored, and all that the tests start would inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: begun last, it alone would keep everybody waiting."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[SeaweedServer]:
    """A complete S3 server; take a `new_bucket` of it in each test."""
    with SeaweedServer() as server:
        yield server


@pytest.fixture(scope="session")
def juicefs() -> Iterator[JuiceServer]:
    """An S3 server that ignores conditions; take a `new_bucket` of it in each test."""
    with JuiceServer() as server:
        yield server
