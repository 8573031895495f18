"""What all tests share: real servers, each started by the first test that asks for it."""

import gc
import signal
from collections.abc import Iterator

import pytest

from tests.servers.juicefs import JuiceServer
from tests.servers.postgres import PostgresServer
from tests.servers.seaweedfs import SeaweedServer
from tests.servers.server import S3Server

SERVERS = frozenset({"seaweedfs", "juicefs", "postgres"})
"""Fixtures, and the parameters of that name, that start a program which others wrote."""


def pytest_configure() -> None:
    """Take Ctrl-C and a hang-up even where the tests run in a shell's background or under nohup.

    There SIGINT or SIGHUP is ignored, and all that the tests start would inherit that.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes longest: begun last, it alone would keep everybody waiting.

    Those that need a server are marked, so that the others can be run alone. Those about what no
    object store decides aren't run once more over each real one.
    """
    repeated = [item for item in items if item.get_closest_marker("any_store") and _over_s3(item)]
    if repeated:
        config.hook.pytest_deselected(items=repeated)
        left_out = set(repeated)
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        if _needs_server(item):
            item.add_marker("server")
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def _parameters(item: pytest.Item) -> list[object]:
    call = getattr(item, "callspec", None)
    return list(call.params.values()) if call else []


def _over_s3(item: pytest.Item) -> bool:
    return any(value in ("seaweedfs", "juicefs") for value in _parameters(item))


def _needs_server(item: pytest.Item) -> bool:
    return bool(SERVERS & set(getattr(item, "fixturenames", ()))) or any(
        value in SERVERS if isinstance(value, str) else _is_server(value)
        for value in _parameters(item)
    )


def _is_server(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, S3Server)


def pytest_collection_finish() -> None:
    """Look for garbage less often, and never among the thousands of tests that were collected.

    Each application that a test makes is thousands of objects in cycles; searching all of them
    again every few tests took a third of the time of such tests.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000, 20, 20)


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; take a `new_schema` of it in each test."""
    with PostgresServer() as server:
        yield server
