"""Following a process in the registry of this machine: commands wait for its changes."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import typer
import uvicorn
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from loradash.cli import backend as backend_module
from loradash.cli import process_commands
from loradash.cli.backend import LocalBackend
from loradash.cli.serving import _Uvicorn
from loradash.listening import listen
from loradash.registry.announcing import announcing
from loradash.registry.memory import MemoryRegistry
from loradash.services.changes.hub import ChangeHub
from tests.unit.world import World

WAIT_S = 10.0


class Local(LocalBackend):
    """The commands' backend over the parts of a test."""

    def __init__(self, world):
        self._dispatcher = world.dispatcher
        self._core = world
        self.asked = threading.Condition()
        self.asks = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, **request):
        reply = super().ask(**request)
        with self.asked:
            self.asks += 1
            self.asked.notify_all()
        return reply

    def wait_for_asks(self, count):
        with self.asked:
            assert self.asked.wait_for(lambda: self.asks >= count, WAIT_S)


@pytest.fixture
def world(tmp_path):
    registry = announcing(MemoryRegistry())
    world = World(tmp_path, registry=registry)
    world.changes = ChangeHub(registry._registry, registry)
    yield world
    world.changes.stop()


def test_a_log_is_followed_by_what_changes_and_to_the_end(world, monkeypatch, capsys):
    monkeypatch.setattr(backend_module, "_LONGEST_WAIT_S", 3600.0)
    record = world.running()
    local = Local(world)
    monkeypatch.setattr(process_commands, "_backend", lambda: local)

    def follow():
        with pytest.raises(typer.Exit) as ended:
            process_commands.logs(record.id, follow=True, after=0)
        return ended.value.exit_code

    with ThreadPoolExecutor(1) as threads:
        following = threads.submit(follow)
        local.wait_for_asks(2)  # at first, and as the hub has its first cursor
        other = world.waiting()  # isn't asked for
        world.said(record.id, "the first line")
        local.wait_for_asks(3)
        world.completed(record.id)
        assert following.result(WAIT_S) == 0
    assert other.id != record.id
    assert capsys.readouterr().out.count("the first line") == 1
    assert local.asks <= 6


def test_a_log_that_is_not_followed_ends_and_starts_no_hub(world, monkeypatch, capsys):
    record = world.running()
    monkeypatch.setattr(process_commands, "_backend", lambda: Local(world))
    world.said(record.id, "the first line")
    process_commands.logs(record.id, follow=False, after=0)
    assert "the first line" in capsys.readouterr().out
    assert world.changes._thread is None


def test_a_server_ends_streams_of_live_data_at_once_when_it_is_asked_to_stop(world):
    updates = []

    async def stream(_request):
        async def lines():
            with world.changes.listen() as listener:
                yield b"begun\n"
                async for update in listener:
                    updates.append(update)  # noqa: PERF401 - the test looks at it

        return StreamingResponse(lines())

    app = Starlette(routes=[Route("/", stream)])
    with listen("127.0.0.1", 0) as listener:
        listener.listen(1)
        config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=600)
        server = _Uvicorn(config, lambda: None, world.changes.stop, lambda: None)
        with ThreadPoolExecutor(1) as threads:
            ended = threads.submit(server.run, sockets=[listener])
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx2.stream("GET", url) as response:
                assert next(response.iter_bytes()) == b"begun\n"
                server.should_exit = True
                ended.result(WAIT_S)
    assert updates  # the listener was a real one
