"""The page that shows the state to people."""

import re

import pytest

from loradash.domain.process import Problem
from loradash.executors.state import EndpointState, ExecutorState
from loradash.visible_text import visible

from .world import World, logged

EVIL = "<script>alert('x')</script>"


@pytest.fixture(autouse=True)
def log():
    with logged() as stream:
        yield stream


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def page(world):
    with world.client() as client:
        response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    return response.text


def row(text, process_id):
    """The words of a process's row."""
    (found,) = [part for part in text.split("<tr>") if process_id in part]
    return " ".join(re.sub(r"<[^>]*>", " ", found).split())


def test_an_empty_server_says_what_to_do(world):
    text = page(world)
    assert "Nothing yet." in text
    assert "/v2/local/runsync" in text


def test_a_control_plane_shows_its_endpoint_and_why_nothing_starts(world, monkeypatch):
    state = ExecutorState(
        error=f"RunPod can't be reached {EVIL}",
        endpoint=EndpointState(
            id="ep1", workers={"throttled": 2, "idle": 0, "unhealthy": 1},
            waiting_reason="RunPod has no worker for it yet",
        ),
    )  # fmt: skip
    monkeypatch.setattr(world.executor, "state", lambda: state, raising=False)
    text = page(world)
    words = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    assert "RunPod endpoint ep1 : 2 throttled, 1 unhealthy RunPod has no worker for it yet" in words
    assert "RunPod can&#39;t be reached" in text
    assert EVIL not in text


def test_a_running_training_is_shown_with_its_progress(world):
    process_id = world.running(name="my cat", step=3).id
    text = page(world)
    shown = row(text, process_id)
    assert "my cat" in shown
    assert "running" in shown
    assert "training" in shown
    assert "3/10" in shown
    assert "0.5000" in shown
    assert 'value="30.0"' in text


def test_a_failed_process_is_shown_with_its_reason(world):
    process_id = world.failed(world.running().id, "the GPU has no memory left").id
    shown = row(page(world), process_id)
    assert "failed" in shown
    assert "the GPU has no memory left" in shown


def test_a_processs_warnings_are_shown(world):
    process_id = world.running(warnings=(f"the rate is high {EVIL}",)).id
    text = page(world)
    assert "the rate is high" in row(text, process_id)
    assert EVIL not in text


def test_what_waits_is_shown_with_its_place(world):
    first, second = world.waiting().id, world.waiting(priority=5).id
    text = page(world)
    assert "place 2" in row(text, first)
    assert "place 1" in row(text, second)


def test_a_paused_queue_is_shown(world):
    assert "the queue is paused" not in page(world)
    world.services.processes.pause(True)
    assert "the queue is paused" in page(world)


def test_a_process_whose_worker_is_gone_is_shown_as_lost(world):
    process_id = world.waiting().id
    world.started(process_id)
    assert "lost" not in row(page(world), process_id)
    for _ in range(4):
        world.watch.look(world.registry.running)
        world.clock.now_s += 200
    assert "lost" in row(page(world), process_id)
    world.progressed(process_id, 1)
    assert "lost" not in row(page(world), process_id)


def test_counts_and_what_is_wrong_are_shown(world, monkeypatch):
    world.trained()
    world.waiting()
    text = page(world)
    assert re.search(r"<strong>1</strong> <span class=\"completed\">", text)
    assert re.search(r"<span class=\"healthy\">healthy</span>", text)
    monkeypatch.setattr(world.services.health._machine, "disk", lambda path: None)
    assert re.search(r"<span class=\"degraded\">degraded: disk</span>", page(world))


def test_nothing_that_others_wrote_becomes_a_part_of_the_page(world):
    process_id = world.waiting(name=EVIL).id
    world.started(process_id)
    world.registry.change(
        process_id,
        lambda one: one.model_copy(
            update={
                "progress": one.progress.model_copy(update={"phase": EVIL, "detail": EVIL}),
                "error": Problem(code="internal", message=EVIL),
            }
        ),
    )
    text = page(world)
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 4


def test_the_page_loads_nothing_from_elsewhere(world):
    world.trained()
    text = page(world)
    assert not re.search(r"(?:src|href)=\"(?!/)", text)
    assert "http://" not in text
    assert "https://" not in text


def test_only_the_newest_processes_are_shown(world):
    ids = [world.waiting(name=f"number {n}").id for n in range(30)]
    text = page(world)
    assert sum(one in text for one in ids) == 25
    assert ids[-1] in text


@pytest.mark.parametrize("name", ["\x1b[2J", "\u202egnp.exe", "\x9b31m", "a\u2028b"])
def test_a_name_can_not_turn_the_page_around(world, name):
    process_id = world.running(name=f"n{name}").id
    found = row(page(world), process_id)
    assert f"n{visible(name)}" in found
