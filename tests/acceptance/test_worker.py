"""Real workers on RunPod's own SDK, an emulated queue, and a bucket that holds everything else."""

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.acceptance.conftest import scripted, training
from tests.servers.endpoint import Endpoint
from tests.servers.queue import RunpodQueue
from tests.servers.seaweedfs import SeaweedServer

pytestmark = pytest.mark.slow


@pytest.fixture
def endpoint(seaweedfs: SeaweedServer, tmp_path: Path) -> Iterator[Endpoint]:
    with RunpodQueue(requeue_after=3) as queue:
        endpoint = Endpoint(queue, seaweedfs, tmp_path / "workers")
        yield endpoint
        endpoint.close()


def test_a_job_lasts_as_long_as_its_training_and_its_results_are_in_the_bucket(
    endpoint: Endpoint, dataset: Path
) -> None:
    endpoint.start("a")
    endpoint.upload(dataset, "shapes")
    job_id = endpoint.queue.submit(
        {"type": "train", "config": training("shapes", steps=6, save_every=3)}
    )
    process_id = endpoint.process_of(job_id)
    job = endpoint.end_of(job_id)

    assert job["status"] == "COMPLETED", (job, endpoint.log("a"))
    assert job["output"]["process_id"] == process_id
    assert job["output"]["process_status"] == "completed"
    shown = endpoint.ask(type="process_status", process_id=process_id, metrics_after=0)
    assert [row["step"] for row in shown["metrics"]] == [1, 2, 3, 4, 5, 6]
    assert [model["process_id"] for model in endpoint.ask(type="list_models")["models"]] == [
        process_id
    ]

    endpoint.kill("a")  # what other trainings go on from comes out of the bucket
    endpoint.start("b")
    for request in (
        {"extend": {"process_id": process_id, "steps": 8}},
        {"config": training("shapes", steps=1, from_adapter=process_id)},
    ):
        job = endpoint.end_of(endpoint.queue.submit({"type": "train", **request}))
        assert job["status"] == "COMPLETED", (job, endpoint.log("b"))
        shown = endpoint.ask(type="process_status", process_id=job["output"]["process_id"])
        assert shown["origin"]["process_id"] == process_id
        assert shown["attempts"][0]["from_step"] == (6 if "extend" in request else 0)


def test_a_training_goes_on_at_another_worker_when_its_own_is_killed(
    endpoint: Endpoint, dataset: Path
) -> None:
    endpoint.start("a")
    endpoint.upload(dataset, "shapes")
    job_id = endpoint.queue.submit(
        {"type": "train", "config": scripted("shapes", steps=40, save_every=5)}
    )
    process_id = endpoint.process_of(job_id)
    endpoint.wait_for_checkpoint(process_id)
    endpoint.kill("a")
    endpoint.start("b")
    job = endpoint.end_of(job_id)

    assert job["status"] == "COMPLETED", (job, endpoint.log("b"))
    shown = endpoint.ask(type="process_status", process_id=process_id, metrics_after=0)
    assert [row["step"] for row in shown["metrics"]] == list(range(1, 41))
    first, second = shown["attempts"]
    assert (first["ending"], second["ending"]) == ("lost", "completed")
    assert second["from_step"] >= 5
    assert first["owner"] != second["owner"]
    assert endpoint.queue.jobs()[job_id]["deliveries"] == 2


def test_sigterm_gives_a_training_back_with_a_checkpoint_and_another_worker_ends_it(
    endpoint: Endpoint, dataset: Path
) -> None:
    worker = endpoint.start("a")
    endpoint.upload(dataset, "shapes")
    job_id = endpoint.queue.submit(
        {"type": "train", "config": scripted("shapes", steps=60, save_every=10)}
    )
    process_id = endpoint.process_of(job_id)
    endpoint.wait_for_checkpoint(process_id)
    began_s = time.monotonic()
    worker.terminate()

    assert worker.wait(30) == 0, endpoint.log("a")
    assert time.monotonic() - began_s < 15
    assert endpoint.queue.status(job_id)["status"] in ("IN_PROGRESS", "IN_QUEUE")
    endpoint.start("b")
    job = endpoint.end_of(job_id)
    assert job["status"] == "COMPLETED", (job, endpoint.log("b"))
    shown = endpoint.ask(type="process_status", process_id=process_id, metrics_after=0)
    assert [row["step"] for row in shown["metrics"]] == list(range(1, 61))
    assert [one["ending"] for one in shown["attempts"]] == ["released", "completed"]
    assert shown["attempts"][1]["from_step"] == shown["attempts"][0]["to_step"] >= 10


def test_an_idle_worker_ends_at_once_and_takes_no_job_with_it(endpoint: Endpoint) -> None:
    worker = endpoint.start("a")
    endpoint.ask(type="health")
    time.sleep(1.5)  # it is in its long poll again
    began_s = time.monotonic()
    worker.terminate()
    assert worker.wait(20) == 0
    assert time.monotonic() - began_s < 2
    job_id = endpoint.queue.submit({"type": "health"})
    time.sleep(1)
    assert endpoint.queue.status(job_id)["status"] == "IN_QUEUE"
    endpoint.start("b")
    assert endpoint.end_of(job_id)["status"] == "COMPLETED"


def test_a_killed_worker_leaves_no_ping_behind(endpoint: Endpoint) -> None:
    worker = endpoint.start("a")
    endpoint.ask(type="health")
    children = psutil.Process(worker.pid).children()
    assert children, "the SDK pings from a process of its own"
    worker.kill()
    worker.wait()
    gone, alive = psutil.wait_procs(children, timeout=3)
    assert gone
    assert not alive


@pytest.mark.parametrize("asked", ["request", "queue"])
def test_a_running_training_is_cancelled_within_moments(
    endpoint: Endpoint, dataset: Path, asked: str
) -> None:
    endpoint.start("a")
    endpoint.upload(dataset, "shapes")
    job_id = endpoint.queue.submit(
        {"type": "train", "config": scripted("shapes", steps=2000, save_every=1000)}
    )
    process_id = endpoint.process_of(job_id)
    endpoint.start("b")
    began_s = time.monotonic()
    if asked == "request":
        endpoint.ask(type="cancel", process_id=process_id)
    else:
        endpoint.queue.cancel(job_id)
    while endpoint.ask(type="process_status", process_id=process_id)["status"] != "cancelled":
        assert time.monotonic() - began_s < 20, endpoint.log("a")
    assert time.monotonic() - began_s < 10
    if asked == "request":
        job = endpoint.end_of(job_id)
        assert job["status"] == "FAILED"
        assert "was cancelled" in job["error"]
    else:
        assert endpoint.queue.status(job_id)["status"] == "CANCELLED"


def test_a_job_that_two_workers_get_runs_once(endpoint: Endpoint, dataset: Path) -> None:
    endpoint.start("a")
    endpoint.upload(dataset, "shapes")
    endpoint.start("b")
    endpoint.queue.fault("take", "duplicate", count=1)
    job_id = endpoint.queue.submit({"type": "train", "config": training("shapes", steps=6)})
    job = endpoint.end_of(job_id)
    assert job["status"] == "COMPLETED", job
    [process] = endpoint.ask(type="processes")["processes"]
    assert (process["status"], process["attempt"]) == ("completed", 1)
    assert endpoint.queue.jobs()[job_id]["deliveries"] == 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"LORADASH_REQUIRE_GPU": "true"}, "LORADASH_REQUIRE_GPU"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_a_worker_that_can_not_work_takes_no_job_and_says_why(
    seaweedfs: SeaweedServer, tmp_path: Path, settings: dict[str, str], named: str
) -> None:
    with RunpodQueue(requeue_after=3) as queue:
        endpoint = Endpoint(queue, seaweedfs, tmp_path / "workers", settings)
        job_id = queue.submit({"type": "health"})
        worker = endpoint.start("a")
        assert worker.wait(30) == 1, endpoint.log("a")
        assert queue.status(job_id)["status"] == "IN_QUEUE"
        assert named in endpoint.log("a")
        endpoint.close()
