"""A control plane, its workers behind an emulated queue of RunPod, and what goes wrong between."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.acceptance.conftest import CommandLine, Server, scripted, training, upload
from tests.servers import shifted_clock
from tests.servers.endpoint import Endpoint
from tests.servers.queue import RunpodQueue
from tests.servers.seaweedfs import SeaweedServer

pytestmark = pytest.mark.slow


@pytest.fixture
def endpoint(seaweedfs: SeaweedServer, tmp_path: Path) -> Iterator[Endpoint]:
    with RunpodQueue(requeue_after=600) as queue:  # whatever is found again, we find it
        endpoint = Endpoint(queue, seaweedfs, tmp_path / "workers")
        yield endpoint
        endpoint.close()


@pytest.fixture
def plane(cli: CommandLine, endpoint: Endpoint, dataset: Path) -> Iterator[Server]:
    """A running control plane with a dataset."""
    server = Server(cli, **endpoint.control_plane_environment(), LORADASH_TAKE_TIMEOUT="5")
    server.start()
    upload(server, dataset, "shapes")
    yield server
    server.close()


def job_of(endpoint: Endpoint, process_id: str, besides: frozenset[str] = frozenset()) -> str:
    """The job that names this process, once it is in the queue."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for job_id, job in endpoint.queue.jobs().items():
            if job_id not in besides and job["input"].get("process_id") == process_id:
                return job_id
        time.sleep(0.1)
    raise AssertionError(f"no job for {process_id}: {endpoint.queue.jobs()}")


def test_trainings_and_generations_go_to_workers_and_nothing_else_does(
    plane: Server, endpoint: Endpoint
) -> None:
    process_id = plane.submit(type="train", config=training("shapes", steps=6, save_every=3))
    job_id = job_of(endpoint, process_id)
    job = endpoint.queue.jobs()[job_id]
    assert job["policy"] == {"executionTimeout": 8_100_000, "ttl": 94_500_000}
    assert plane.process(process_id)["status"] == "pending"
    endpoint.start("a")
    plane.wait_until(process_id, ["completed"])
    drawn = plane.submit(
        type="generate", prompt="a triangle", lora=process_id, base_model="emoji-base", steps=2,
        width=64, height=64,
    )  # fmt: skip
    plane.wait_until(drawn, ["completed"])
    shown = plane.process(process_id, metrics_after=0)
    assert [row["step"] for row in shown["metrics"]] == [1, 2, 3, 4, 5, 6]
    assert shown["attempts"][0]["owner"].startswith("a-")
    assert [one["process_id"] for one in plane.ask(type="list_models")["models"]] == [process_id]
    assert {job["input"]["type"] for job in endpoint.queue.jobs().values()} == {"run_process"}
    assert len(endpoint.queue.jobs()) == 2


def test_polling_clients_wake_no_worker(plane: Server, endpoint: Endpoint) -> None:
    process_id = plane.submit(type="train", config=scripted("shapes", steps=6))
    job_of(endpoint, process_id)

    def poll(_client: int) -> None:
        with httpx2.Client(timeout=30) as http:
            for _ in range(4):
                for request in ({"type": "processes"}, {"type": "list_models"}):
                    reply = http.post(f"{plane.url}/v2/x/runsync", json={"input": request})
                    assert reply.json()["status"] == "COMPLETED", reply.text

    with ThreadPoolExecutor(50) as clients:
        list(clients.map(poll, range(50)))
    assert [job["input"]["type"] for job in endpoint.queue.jobs().values()] == ["run_process"]


def test_a_job_that_a_worker_took_and_never_began_is_sent_again(
    plane: Server, endpoint: Endpoint
) -> None:
    process_id = plane.submit(type="train", config=scripted("shapes", steps=6))
    swallowed = job_of(endpoint, process_id)
    endpoint.swallow_job("thief")
    assert endpoint.queue.status(swallowed)["status"] == "IN_PROGRESS"
    endpoint.start("a")
    shown = plane.wait_until(process_id, ["completed"])
    assert (shown["attempt"], len(endpoint.queue.jobs())) == (1, 2)
    assert endpoint.queue.status(swallowed)["status"] == "CANCELLED"


@pytest.mark.parametrize("lost", ["machine", "program"])
def test_a_training_whose_worker_is_lost_is_brought_to_another_one(
    plane: Server, endpoint: Endpoint, lost: str
) -> None:
    worker = endpoint.start("a")
    process_id = plane.submit(type="train", config=scripted("shapes", steps=40, save_every=5))
    plane.wait_until(process_id, lambda one: one["step"] >= 8)
    endpoint.wait_for_checkpoint(process_id)
    if lost == "machine":
        endpoint.kill("a")
    else:
        worker.kill()
    endpoint.start("b")
    plane.wait_until(process_id, ["completed"])
    shown = plane.process(process_id, metrics_after=0)
    assert [one["ending"] for one in shown["attempts"]] == ["lost", "completed"]
    assert [row["step"] for row in shown["metrics"]] == list(range(1, 41))


def test_clocks_that_are_minutes_apart_cost_no_training(
    cli: CommandLine, endpoint: Endpoint, dataset: Path
) -> None:
    """Neither is it taken from its worker, nor does its time show the difference."""
    plane = Server(cli, **endpoint.control_plane_environment())
    plane.program = (shifted_clock.__file__, "120")
    plane.start()
    upload(plane, dataset, "shapes")
    endpoint.start("a", (shifted_clock.__file__, "-120"))
    process_id = plane.submit(type="train", config=scripted("shapes", steps=40, save_every=20))
    plane.wait_until(process_id, ["completed"])
    shown = plane.process(process_id)
    plane.close()
    assert [one["ending"] for one in shown["attempts"]] == ["completed"]
    began, ended = (datetime.fromisoformat(shown[name]) for name in ("created_at", "started_at"))
    assert (ended - began).total_seconds() < -150  # their clocks were apart indeed
    assert 1 < shown["elapsed_time"] < 120


def test_a_control_plane_that_was_killed_goes_on_where_it_was(
    plane: Server, endpoint: Endpoint
) -> None:
    endpoint.start("a")
    running = plane.submit(type="train", config=scripted("shapes", steps=60, save_every=20))
    plane.wait_until(running, lambda one: one["step"] >= 2)
    waiting = plane.submit(type="train", config=scripted("shapes", steps=4))
    job_of(endpoint, waiting)
    plane.kill()
    plane.start()
    plane.wait_until(running, ["completed"])
    plane.wait_until(waiting, ["completed"])
    assert [plane.process(one)["attempt"] for one in (running, waiting)] == [1, 1]
    assert len(endpoint.queue.jobs()) == 2


def test_cancels_go_both_ways(plane: Server, endpoint: Endpoint) -> None:
    first = plane.submit(type="train", config=scripted("shapes", steps=2000))
    second = plane.submit(type="train", config=scripted("shapes", steps=2000))
    jobs = [job_of(endpoint, one) for one in (first, second)]
    assert plane.ask(type="cancel", process_id=first)["process_id"] == first
    until(lambda: endpoint.queue.status(jobs[0])["status"] == "CANCELLED")
    assert plane.process(first)["status"] == "cancelled"

    endpoint.queue.cancel(jobs[1])
    plane.wait_until(second, ["cancelled"], 20)

    worker = endpoint.start("a")
    third = plane.submit(type="train", config=scripted("shapes", steps=2000))
    plane.wait_until(third, lambda one: one["step"] >= 1)
    began_s = time.monotonic()
    plane.ask(type="cancel", process_id=third)
    plane.wait_until(third, ["cancelled"], 20)
    assert time.monotonic() - began_s < 5

    fourth = plane.submit(type="train", config=scripted("shapes", steps=2000))
    plane.wait_until(fourth, lambda one: one["step"] >= 1)
    endpoint.queue.cancel(job_of(endpoint, fourth))
    plane.wait_until(fourth, ["cancelled"], 30)
    assert not [
        child for child in psutil.Process(worker.pid).children(recursive=True)
        if "loradash.engines" in " ".join(child.cmdline())
    ]  # fmt: skip


def test_what_no_worker_ever_takes_fails_with_the_reason_and_can_be_resumed(
    plane: Server, endpoint: Endpoint
) -> None:
    process_id = plane.submit(type="train", config=scripted("shapes", steps=4))
    for _ in range(3):
        endpoint.swallow_job("crashing", fail="CUDA driver is too old")
    deadline = time.monotonic() + 30
    while (shown := plane.process(process_id))["status"] == "pending":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert (shown["status"], shown["error_code"]) == ("failed", "worker_lost")
    assert "CUDA driver is too old" in shown["error_message"]
    assert shown["resumable"]
    assert plane.call(f"/v2/local/retry/{process_id}", {}).status_code < 300
    endpoint.start("a")
    plane.wait_until(process_id, ["completed"])


def test_a_paused_queue_sends_nothing_and_calls_back_what_no_worker_has(
    plane: Server, endpoint: Endpoint
) -> None:
    process_id = plane.submit(type="train", config=scripted("shapes", steps=4))
    job_id = job_of(endpoint, process_id)
    plane.call("/queue/pause", {})
    until(lambda: endpoint.queue.status(job_id)["status"] == "CANCELLED")
    assert plane.process(process_id)["status"] == "pending"
    plane.call("/queue/resume", {})
    endpoint.start("a")
    plane.wait_until(process_id, ["completed"])


def test_an_owner_that_was_frozen_past_its_lease_writes_nothing(
    plane: Server, endpoint: Endpoint
) -> None:
    worker = endpoint.start("a")
    process_id = plane.submit(type="train", config=scripted("shapes", steps=60, save_every=5))
    plane.wait_until(process_id, lambda one: one["step"] >= 6)
    endpoint.wait_for_checkpoint(process_id)
    family = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    for one in family:
        one.send_signal(signal.SIGSTOP)
    endpoint.start("b")
    plane.wait_until(process_id, ["completed"])

    def everything() -> tuple[dict[str, Any], dict[str, str]]:
        shown = plane.process(process_id, metrics_after=0, log_after=0)
        return shown | {"request_id": ""}, endpoint.objects(process_id)

    def settled() -> tuple[dict[str, Any], dict[str, str]]:
        """What is there once the other worker has tidied up; the first one is still frozen."""
        deadline = time.monotonic() + 20
        last = everything()
        while True:
            time.sleep(2)
            if (now_is := everything()) == last:
                return last
            assert time.monotonic() < deadline
            last = now_is

    before = settled()
    for one in family:
        one.send_signal(signal.SIGCONT)
    until(lambda: "lease_lost" in endpoint.log("a") or "process_is_elsewhere" in endpoint.log("a"))
    # A put that was under way may arrive under a key of its own, which nobody lists: its owner
    # deletes it. What is listed may not change for a moment.
    listed = [one["key"] for one in before[0]["artifacts"]]

    def is_as_before(now_is: tuple[dict[str, Any], dict[str, str]]) -> bool:
        # A part of its log that it had put and not named yet when it was frozen is swept.
        gone = {key for key in before[1].keys() - now_is[1].keys() if "process-data/" in key}
        named = {key: tag for key, tag in before[1].items() if key not in gone}
        return now_is == (before[0], named)

    deadline = time.monotonic() + 60
    over = time.monotonic() + 5
    while time.monotonic() < over or (
        not is_as_before(everything()) and time.monotonic() < deadline
    ):
        now_is = everything()
        assert {key: now_is[1].get(key) for key in listed} == {
            key: before[1][key] for key in listed
        }
        assert now_is[0] == before[0]
        time.sleep(0.5)
    after = everything()
    assert is_as_before(after), (before, after)
    assert [one["ending"] for one in after[0]["attempts"]] == ["lost", "completed"]
    os.kill(worker.pid, 0)  # it is there, and takes other jobs


def until(is_so, timeout_s: float = 20) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)
