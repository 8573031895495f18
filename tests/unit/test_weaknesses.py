"""What must not happen again, where no other test tells it; see docs/reference-weaknesses.md."""

import threading
import time
from datetime import UTC, datetime

import pytest

from loradash.domain.process import Status
from loradash.domain.training_text import parse_training_text
from loradash.errors import EngineCrashed, NotFound
from loradash.runtime.attempt import Timing
from loradash.runtime.supervisor import StopRequest
from loradash.services.processes.running import Runner

from .world import HeldRegistry, World, logged

TIMING = Timing(lease_s=60, cancel_grace_s=1, max_attempts=3)


@pytest.fixture(autouse=True)
def log():
    with logged() as stream:
        yield stream


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


class FailingWork:
    """The work of an engine that always fails."""

    def __init__(self, error):
        self.error = error
        self.runs = 0

    def work(self, attempt):
        self.runs += 1
        raise self.error


def run_and_fail(world, kind, error):
    work = FailingWork(error)
    process_id = world.waiting(kind).id
    runner = Runner(world.registry, world.store, {kind: work}, TIMING)
    record = world.registry.take_next(kind, runner.taking("cpu"))
    runner.run(record, None, StopRequest())
    assert record.id == process_id
    return process_id, work.runs


@pytest.mark.parametrize("kind", ["training", "generation"])
def test_what_failed_is_not_run_a_second_time_by_itself(world, kind):
    process_id, runs = run_and_fail(world, kind, EngineCrashed("it crashed", remedy="Look."))
    assert runs == 1
    record = world.registry.get(process_id)
    assert (record.status, record.attempt_count) == (Status.FAILED, 1)
    assert world.registry.pending() == ()


def test_a_generation_that_failed_has_no_pictures_of_any_kind(world):
    process_id, _ = run_and_fail(world, "generation", EngineCrashed("no memory", remedy="Buy."))
    assert world.registry.artifacts(process_id, ["image"]) == ()
    assert not list(world.workspace.root.rglob("*.png"))
    assert [info.key for info in world.store.list()] == [f"results/{process_id}/config.yaml"]
    assert "is failed" in world.ask("download", process_id=process_id)["error"]


def test_a_training_that_failed_is_a_failed_job_and_not_a_completed_one(world):
    process_id, _ = run_and_fail(world, "training", EngineCrashed("no memory", remedy="Buy."))
    with world.client() as client:
        job = client.get(f"/v2/local/status/{process_id}").json()
    assert (job["status"], job["error"]) == ("FAILED", "no memory\nBuy.")


def test_a_traceback_is_in_the_log_and_not_in_the_record(world, log):
    process_id, _ = run_and_fail(world, "training", RuntimeError("a bug of ours"))
    shown = world.ask("process_status", process_id=process_id)
    assert "Traceback" not in str(shown)
    assert ".py" not in str(shown)
    assert "a bug of ours" in shown["error_message"]
    assert "Traceback" in log.getvalue()


def test_the_folder_that_a_config_wants_to_write_to_is_not_written(world, tmp_path):
    text = f"""
job: extension
config:
  name: cat
  process:
  - type: sd_trainer
    training_folder: {tmp_path}/elsewhere
    network: {{type: lora}}
    model: {{name_or_path: emoji-base}}
    train: {{lr: 0.0001}}
    datasets: [{{folder_path: cats}}]
"""
    process_id = world.waiting().id
    folder = world.workspace.training(process_id)
    folder.mkdir(parents=True)
    world.engine.write_training_job(
        process_id, parse_training_text(text), (), folder, datetime.now(UTC)
    )
    assert world.engine.training_command(folder).working_directory == folder
    assert not (tmp_path / "elsewhere").exists()


def test_a_request_that_hangs_does_not_hold_up_the_others(tmp_path):
    world = World(tmp_path, registry=HeldRegistry())
    process_id = world.waiting().id
    with world.client() as client:
        hanging = [
            threading.Thread(
                target=client.post, args=("/v2/local/runsync",),
                kwargs={"json": {"input": {"type": "processes"}}}, daemon=True,
            )
            for _ in range(5)
        ]  # fmt: skip
        for thread in hanging:
            thread.start()
        began_s = time.monotonic()
        job = client.post("/v2/local/runsync", json={"input": {"type": "list_models"}}).json()
        assert job["status"] == "COMPLETED"
        assert client.post(f"/v2/local/cancel/{process_id}").json()["status"] == "CANCELLED"
        assert time.monotonic() - began_s < 10
        assert all(thread.is_alive() for thread in hanging)
        world.registry.released.set()
        for thread in hanging:
            thread.join(30)


def test_a_process_that_never_was_is_an_error_and_not_a_state(world):
    for kind in ("process_status", "cancel", "download"):
        reply = world.ask(kind, process_id="train_00000000000000000000")
        assert list(reply) == ["error"]
        assert "there is no process" in reply["error"]
    with pytest.raises(NotFound):
        world.services.processes.get("train_00000000000000000000")
