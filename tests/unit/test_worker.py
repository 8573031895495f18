"""What a worker does with jobs: without RunPod's SDK, with a registry in memory."""

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta

import pytest

from loradash.domain import process as changes
from loradash.domain.events import Done, Stopped
from loradash.domain.ids import new_process_id, process_id_of
from loradash.domain.kinds import KINDS
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import ExecutorUnavailable, RegistryUnavailable
from loradash.executors.local import MemoryNeeds
from loradash.registry.memory import MemoryRegistry
from loradash.runtime import patience as patience_module
from loradash.runtime.attempt import Timing
from loradash.runtime.gpu import Slot
from loradash.runtime.lease_watch import LeaseWatch
from loradash.runtime.supervisor import StopRequest
from loradash.services.processes.running import Runner
from loradash.storage.memory import MemoryStore
from loradash.worker import work as work_module
from loradash.worker.handler import Handler, sendable
from loradash.worker.ownership import Ownership
from loradash.worker.work import JobStopped, Worker
from tests.clock import Clock
from tests.unit.waits import until

TIMING = Timing(lease_s=60, cancel_grace_s=5, max_attempts=3)
CPU = Slot("cpu", None, {})


class NoMemory:
    def free_mb(self, slot):
        return None

    def total_mb(self, slot):
        return None


class Work:
    """An engine's work: done at once, or when it is stopped."""

    def __init__(self):
        self.lasts = False
        self.began = threading.Event()
        self.count = 0

    def work(self, attempt):
        self.count += 1
        self.began.set()
        if not self.lasts:
            return Done()
        while not attempt.stop.count:
            time.sleep(0.01)
        return Stopped()


class Dispatcher:
    """Makes a process of each training, the same for the same job."""

    def __init__(self, registry):
        self.registry = registry
        self.delay_s = 0.0
        self.processes = {}

    def answer(self, data, *, request_id="", idempotency_key="", waits=False):
        time.sleep(self.delay_s)
        if data["type"] != "train":
            return {"type": data["type"], "request_id": request_id}
        if "config" not in data:
            return {"error": "config: missing"}
        if idempotency_key not in self.processes:
            process_id = process_id_of("training", idempotency_key)
            self.processes[idempotency_key] = waiting(self.registry, process_id)
        return {"process_id": self.processes[idempotency_key], "request_id": request_id}


def watching():
    return LeaseWatch(60, look_every_s=0.02)


class World:
    def __init__(self, registry):
        self.registry = registry
        self.engine = Work()
        self.dispatcher = Dispatcher(registry)
        runner = Runner(
            registry, MemoryStore(), {"training": self.engine, "generation": self.engine}, TIMING
        )
        self.worker = Worker(
            self.dispatcher, registry, Ownership(registry, runner.taking, 3, watching), runner, CPU,
            NoMemory(), MemoryNeeds(dict.fromkeys(KINDS, 0)), lambda name: None, stop_grace_s=1,
            patience_s=30,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(work_module, "POLL_INTERVAL_S", 0.02)
    monkeypatch.setattr(patience_module, "_FIRST_PAUSE_S", 0.02)


@pytest.fixture
def registry():
    return MemoryRegistry()


@pytest.fixture
def world(registry):
    return World(registry)


@pytest.fixture
def worker(world):
    return world.worker


def waiting(registry, process_id=""):
    now = datetime.now(UTC)
    return registry.create(
        ProcessRecord(
            id=process_id or new_process_id("training"), kind="training", name="cat",
            created_at=now, enqueued_at=now, updated_at=now,
        )
    ).id  # fmt: skip


def taken_elsewhere(registry, process_id, lease_s=60.0):
    return registry.change(
        process_id,
        lambda one: changes.taken(
            one, owner="elsewhere/1/1.00", token="theirs", now=datetime.now(UTC),
            lease_s=lease_s, device="cuda:0",
        ),
    )  # fmt: skip


def in_thread(work):
    results = []

    def run():
        try:
            results.append(work())
        except JobStopped as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


# Processes


def test_a_process_is_run_to_its_end_and_the_reply_says_which(worker, registry):
    process_id = waiting(registry)
    reply = worker.run(process_id, StopRequest())
    assert (reply["status"], reply["process_status"]) == ("completed", "completed")
    assert "error" not in reply
    assert registry.get(process_id).status is Status.COMPLETED


def test_a_job_that_comes_again_finds_its_process_ended(worker, world, registry):
    process_id = waiting(registry)
    first = worker.run(process_id, StopRequest())
    assert worker.run(process_id, StopRequest()) == first
    assert world.engine.count == 1


def test_a_process_of_somebody_else_is_followed_to_its_end(worker, world, registry):
    process_id = waiting(registry)
    taken_elsewhere(registry, process_id)
    thread, replies = in_thread(lambda: worker.run(process_id, StopRequest()))
    time.sleep(0.1)
    assert thread.is_alive()
    registry.change(
        process_id,
        lambda one: changes.completed(
            one, "theirs", now=datetime.now(UTC), output_prefix="results/x"
        ),
    )
    thread.join(5)
    assert replies[0]["output_path"] == "results/x"
    assert world.engine.count == 0


def test_a_process_whose_owner_is_lost_is_taken_over(worker, world, registry):
    process_id = waiting(registry)
    taken_elsewhere(registry, process_id, lease_s=0.2)
    assert worker.run(process_id, StopRequest())["attempts"] == 2
    assert [note.ending for note in registry.get(process_id).attempts] == ["lost", "completed"]


def watched(registry, clock):
    """Who asks for a process again and again, with a clock of his own."""

    def watching():
        return LeaseWatch(30, look_every_s=work_module.POLL_INTERVAL_S, clock=clock)

    runner = Runner(registry, MemoryStore(), {}, TIMING)
    return Ownership(registry, runner.taking, 3, watching)


@pytest.mark.parametrize("ahead_s", [-600, -120, -2, 0, 2, 120, 600])
def test_a_new_worker_watches_for_a_whole_lease_whatever_the_old_ones_clock_says(registry, ahead_s):
    clock = Clock()
    process_id = waiting(registry)
    began_at = datetime.now(UTC) + timedelta(seconds=ahead_s)
    registry.change(
        process_id,
        lambda one: changes.taken(
            one, owner="elsewhere/1/1.00", token="theirs", now=began_at, lease_s=30, device="x"
        ),
    )
    ask = watched(registry, clock).asking(process_id, "cpu")
    for n in range(30):  # its owner is alive for a minute, and dies then
        if n % 4 == 0:
            registry.change(
                process_id,
                lambda one: changes.renewed(one, "theirs", now=began_at, lease_s=30),
            )
        assert not ask().is_ours
        clock.now_s += 2
    renewed_s = clock.now_s - 2 * 2
    while not ask().is_ours:
        clock.now_s += 2
    assert renewed_s + 30 <= clock.now_s <= renewed_s + 34


def test_a_worker_that_could_not_ask_for_a_while_watches_from_the_start_again(
    registry, monkeypatch
):
    clock = Clock()
    process_id = waiting(registry)
    taken_elsewhere(registry, process_id, lease_s=30)
    ask = watched(registry, clock).asking(process_id, "cpu")
    for _ in range(10):
        assert not ask().is_ours
        clock.now_s += 2
    with monkeypatch.context() as away:

        def get(process_id):
            raise RegistryUnavailable("away")

        away.setattr(registry, "get", get)
        with pytest.raises(RegistryUnavailable):
            ask()
    clock.now_s += 120
    back_s = clock.now_s
    while not ask().is_ours:
        clock.now_s += 2
    assert clock.now_s == back_s + 30


def test_asking_again_for_what_another_worker_has_takes_one_read(registry):
    process_id = waiting(registry)
    taken_elsewhere(registry, process_id, lease_s=30)
    ask = watched(registry, Clock()).asking(process_id, "cpu")
    registry.change = None
    assert not ask().is_ours


def test_who_looks_after_its_process_need_not_have_it_followed(worker, world, registry):
    process_id = waiting(registry)
    taken_elsewhere(registry, process_id)
    thread, replies = in_thread(lambda: worker.run(process_id, StopRequest(), follow=False))
    time.sleep(0.1)
    assert thread.is_alive()  # its owner may be dead: no sign of life yet
    registry.change(
        process_id,
        lambda one: changes.renewed(one, "theirs", now=datetime.now(UTC), lease_s=60),
    )
    thread.join(5)
    assert replies[0]["status"] == "elsewhere"
    assert "error" not in replies[0]
    assert world.engine.count == 0


def test_a_poison_job_is_refused_with_its_story(worker, world, registry):
    process_id = waiting(registry)
    for _ in range(3):
        taken_elsewhere(registry, process_id, lease_s=-1)
        registry.change(
            process_id,
            lambda one: changes.expired(
                one, now=datetime.now(UTC), max_attempts=3, owner_is_gone=True
            ),
        )
    reply = worker.run(process_id, StopRequest())
    assert reply["error_code"] == "worker_lost"
    assert "3 times" in reply["error"]
    assert world.engine.count == 0


def test_a_registry_that_is_away_is_waited_for(worker, registry, monkeypatch):
    process_id = waiting(registry)
    real, faults = registry.change, [RegistryUnavailable("away")] * 2

    def change(*arguments):
        if faults:
            raise faults.pop()
        return real(*arguments)

    monkeypatch.setattr(registry, "change", change)
    assert worker.run(process_id, StopRequest())["status"] == "completed"


def test_what_is_not_there_is_an_error(worker):
    missing = new_process_id("training")
    assert "no process" in worker.run(missing, StopRequest())["error"]


@pytest.mark.parametrize(
    ("reason", "status"), [("shutdown", Status.PENDING), ("job_ended", Status.CANCELLED)]
)
def test_a_stop_gives_back_or_cancels_what_runs(worker, world, registry, reason, status):
    process_id = waiting(registry)
    world.engine.lasts = True
    stop = StopRequest()
    thread, results = in_thread(lambda: worker.run(process_id, stop))
    assert world.engine.began.wait(5)
    stop(reason)
    thread.join(5)
    assert registry.get(process_id).status is status
    assert results  # of a job that was taken away nothing is sent, whatever this is


def test_a_stopping_worker_begins_nothing(worker, world, registry):
    process_id = waiting(registry)
    worker.stop()
    with pytest.raises(JobStopped):
        worker.run(process_id, StopRequest())
    assert registry.get(process_id).status is Status.PENDING
    assert world.engine.count == 0


def test_a_control_planes_job_names_its_process(worker):
    process_id = new_process_id("training")
    data = {"type": "run_process", "process_id": process_id}
    assert worker.answer("job-1", data, StopRequest())["process_id"] == process_id
    for wrong in ({}, {"process_id": 3}, {"process_id": "../x"}):
        reply = worker.answer("job-1", {"type": "run_process", **wrong}, StopRequest())
        assert reply["error"].startswith("process_id")


# Jobs


class Jobs:
    def __init__(self, goes_on=False, fault=None, was_ended=False):
        self.sent = []
        self._goes_on = goes_on
        self._fault = fault
        self._was_ended = was_ended

    def send(self, process_id):
        if self._fault:
            raise self._fault
        self.sent.append(process_id)

    def goes_on(self, job_id):
        if self._fault:
            raise self._fault
        return self._goes_on

    def was_ended(self, job_id):
        if self._fault:
            raise self._fault
        return self._was_ended


def handle(world, job, *, jobs=None, then=None, told=None):
    """Handle a job in an event loop; ``then`` may cancel it meanwhile."""
    told = [] if told is None else told

    async def tell(_job, progress):
        told.append(progress)

    async def main():
        handler = Handler(
            world.worker, tell,
            lambda process_id: {"process_id": process_id, "step": 1},
            jobs=jobs, progress_interval_s=0.02,
        )  # fmt: skip
        task = asyncio.ensure_future(handler(job))
        if then:
            await asyncio.to_thread(then)
            task.cancel()
        return await task

    return asyncio.run(main())


def train(job_id="job-1"):
    return {"id": job_id, "input": {"type": "train", "config": "..."}}


def only(registry):
    [record] = registry.page().records
    return record


def test_a_light_request_is_answered(world):
    reply = handle(world, {"id": "job-1", "input": {"type": "health"}})
    assert reply == {"type": "health", "request_id": "job-1"}


def test_a_training_lasts_as_long_as_its_job_and_tells_its_id_first(world, registry):
    world.engine.lasts = True
    told = []

    def then():
        until(lambda: len(told) >= 3)

    with pytest.raises(asyncio.CancelledError):
        handle(world, train(), then=then, told=told)
    assert [one["sequence"] for one in told] == list(range(1, len(told) + 1))
    assert {one["process_id"] for one in told} == {only(registry).id}
    assert only(registry).status is Status.CANCELLED


def test_a_bad_training_is_an_error_and_makes_no_process(world, registry):
    reply = handle(world, {"id": "job-1", "input": {"type": "train"}})
    assert reply == {"error": "config: missing"}


@pytest.mark.parametrize(
    ("jobs", "status"),
    [
        (None, Status.CANCELLED),
        (Jobs(goes_on=False), Status.CANCELLED),
        (Jobs(goes_on=True), Status.PENDING),  # it was only given to another worker
        (Jobs(fault=ExecutorUnavailable("away")), Status.CANCELLED),
    ],
)
def test_a_job_that_is_taken_away_cancels_its_process_unless_it_goes_on_elsewhere(
    world, registry, jobs, status
):
    world.engine.lasts = True
    with pytest.raises(asyncio.CancelledError):
        handle(world, train(), jobs=jobs, then=lambda: world.engine.began.wait(5))
    assert only(registry).status is status


def test_a_control_planes_job_that_is_taken_away_gives_its_process_back(world, registry):
    process_id = waiting(registry)
    world.engine.lasts = True
    job = {"id": "job-1", "input": {"type": "run_process", "process_id": process_id}}
    with pytest.raises(asyncio.CancelledError):
        handle(world, job, then=lambda: world.engine.began.wait(5))
    assert registry.get(process_id).status is Status.PENDING


def test_a_job_that_is_cancelled_while_it_is_submitted_leaves_nothing_waiting(world, registry):
    world.dispatcher.delay_s = 0.2
    with pytest.raises(asyncio.CancelledError):
        handle(world, train(), then=lambda: time.sleep(0.05))
    assert only(registry).status is Status.CANCELLED
    assert world.engine.count == 0


def test_a_client_that_waits_has_its_id_at_once_if_a_job_can_be_sent(world, registry):
    jobs = Jobs()
    reply = handle(world, train("sync-1"), jobs=jobs)
    assert jobs.sent == [reply["process_id"]]
    assert registry.get(reply["process_id"]).status is Status.PENDING


@pytest.mark.parametrize("jobs", [None, Jobs(fault=ExecutorUnavailable("away"))])
def test_else_its_job_lasts_as_long_as_the_training(world, registry, jobs):
    assert handle(world, train("sync-1"), jobs=jobs)["status"] == "completed"


def test_a_cancel_that_came_before_the_job_was_begun_is_found_by_asking(world, registry):
    """The SDK forgets it; so would the training go on to its end."""
    world.engine.lasts = True
    with pytest.raises(asyncio.CancelledError):
        handle(world, train(), jobs=Jobs(was_ended=True))
    assert only(registry).status is Status.CANCELLED


@pytest.mark.parametrize("fault", [ExecutorUnavailable("away"), ValueError("a bug")])
def test_a_job_that_can_not_be_asked_for_is_worked_on_all_the_same(world, registry, fault):
    assert handle(world, train(), jobs=Jobs(fault=fault))["status"] == "completed"


def test_a_reply_that_runpod_can_not_carry_says_so():
    assert "isn't JSON" in sendable({"x": object()})["error"]
    assert "isn't JSON" in sendable({"x": float("nan")})["error"]
    assert "bytes" in sendable({"x": "y" * 9_600_000})["error"]
    assert sendable({"x": 1}) == {"x": 1}


def test_the_same_job_makes_the_same_process(world, registry):
    first = handle(world, train())
    assert handle(world, train())["process_id"] == first["process_id"]
    assert only(registry).attempt_count == 1
    assert timedelta() <= datetime.now(UTC) - only(registry).created_at
