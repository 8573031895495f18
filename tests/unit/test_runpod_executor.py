"""The control plane's executor, with a made-up endpoint and all else real."""

from datetime import UTC, datetime, timedelta

import pytest
import structlog

from loradash.domain import process as changes
from loradash.domain.ids import new_process_id
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import (
    AlreadyRunning,
    ConflictingState,
    ExecutorRefused,
    ExecutorUnavailable,
    RegistryUnavailable,
)
from loradash.executors import runpod as runpod_module
from loradash.executors.runpod import RunpodExecutor
from loradash.executors.runpod_client import EndpointHealth, JobStatus, RunpodJob
from loradash.executors.runpod_rules import JobRules
from loradash.registry.memory import MemoryRegistry
from loradash.runtime.lease_watch import LeaseWatch
from loradash.services.processes.running import take_over
from loradash.services.processes.service import ProcessService
from loradash.storage.memory import MemoryStore
from tests.clock import Clock
from tests.unit.waits import until

RULES = JobRules(timeout_s={"training": 7200, "generation": 600})


class Endpoint:
    """Jobs in a dict; ``fault`` is what every call raises."""

    def __init__(self):
        self.jobs = {}
        self.sent = []
        self.cancelled = []
        self.fault = self.health_fault = None
        self.is_closed = False
        self.counts = EndpointHealth({"inQueue": 0}, {"idle": 1})
        self.on_run = lambda process_id: None

    def run(self, payload, *, execution_timeout_s, ttl_s, webhook=""):
        self._meet_fault()
        job_id = f"job-{len(self.sent)}"
        self.sent.append(payload["process_id"])
        self.jobs[job_id] = "IN_QUEUE"
        self.on_run(payload["process_id"])
        return job_id

    def status(self, job_id):
        self._meet_fault()
        status = self.jobs.get(job_id)
        return RunpodJob(job_id, JobStatus(status)) if status else None

    def cancel(self, job_id):
        self._meet_fault()
        self.cancelled.append(job_id)
        return True

    def health(self):
        self._meet_fault()
        if self.health_fault:
            raise self.health_fault
        return self.counts

    def close(self):
        self.is_closed = True

    def _meet_fault(self):
        if self.fault:
            raise self.fault


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(runpod_module, "_ASK_EVERY_S", 0.0)
    monkeypatch.setattr(runpod_module, "_HEALTH_EVERY_S", 0.0)


@pytest.fixture
def registry():
    return MemoryRegistry()


@pytest.fixture
def endpoint():
    return Endpoint()


@pytest.fixture
def lease_clock():
    return Clock()


@pytest.fixture
def watch(lease_clock):
    return LeaseWatch(60, look_every_s=runpod_module.LOOK_EVERY_S, clock=lease_clock)


@pytest.fixture
def make(registry, endpoint, watch, tmp_path):
    made = []

    def make(max_jobs=20):
        executor = RunpodExecutor(
            registry, endpoint, RULES, endpoint_id="ep", max_jobs=max_jobs,
            watch=watch, take_over=lambda one: take_over(registry, one, 3, watch),
            lock_path=tmp_path / "run" / "server.lock",
        )  # fmt: skip
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor.stop(5)


@pytest.fixture
def executor(make):
    return make()


def waiting(registry, **fields):
    now = datetime.now(UTC)
    return registry.create(
        ProcessRecord(
            id=new_process_id("training"), kind="training", name="cat", created_at=now,
            enqueued_at=now, updated_at=now, **fields,
        )
    ).id  # fmt: skip


def take(registry, process_id, lease_s=60.0):
    return registry.change(
        process_id,
        lambda one: changes.taken(
            one, owner="a/1/1.00", token="token", now=datetime.now(UTC), lease_s=lease_s,
            device="cuda:0",
        ),
    )  # fmt: skip


def test_each_waiting_process_gets_one_job(registry, endpoint, executor):
    ids = [waiting(registry) for _ in range(3)]
    for _ in range(3):
        assert executor.look()
    assert sorted(endpoint.sent) == sorted(ids)
    assert registry.get(ids[0]).dispatch.job_id in endpoint.jobs


def test_another_control_plane_goes_on_with_the_jobs_of_the_one_before(
    registry, endpoint, executor, make
):
    process_id = waiting(registry)
    executor.look()
    make().look()
    assert endpoint.sent == [process_id]


def test_the_more_urgent_goes_first_and_no_more_than_allowed(registry, endpoint, make):
    executor = make(max_jobs=2)
    low, high, middle = (waiting(registry, priority=n) for n in (-5, 5, 0))
    executor.look()
    assert endpoint.sent == [high, middle]
    take(registry, high)
    executor.look()
    assert endpoint.sent == [high, middle]
    registry.change(high, lambda one: changes.cancelled(one, "token", datetime.now(UTC)))
    executor.look()
    assert endpoint.sent == [high, middle, low]


def test_a_paused_queue_sends_nothing_and_calls_back(registry, endpoint, executor):
    first = waiting(registry)
    executor.look()
    registry.pause(True)
    second = waiting(registry)
    executor.look()
    assert endpoint.cancelled == ["job-0"]
    assert registry.get(first).dispatch is None
    registry.pause(False)
    executor.look()
    assert endpoint.sent == [first, first, second]


def test_a_job_is_replaced_before_it_is_ended(registry, endpoint, executor):
    process_id = waiting(registry)
    executor.look()
    endpoint.jobs["job-0"] = "FAILED"
    executor.look()
    assert registry.get(process_id).dispatch.job_id == "job-1"
    assert registry.get(process_id).dispatch.count == 2
    assert endpoint.cancelled == ["job-0"]


def test_what_was_taken_meanwhile_is_left_alone(registry, endpoint, executor, monkeypatch):
    process_id = waiting(registry)
    executor.look()
    endpoint.jobs["job-0"] = "CANCELLED"
    real = endpoint.status

    def status(job_id):
        take(registry, process_id)
        return real(job_id)

    monkeypatch.setattr(endpoint, "status", status)
    executor.look()
    assert registry.get(process_id).status is Status.RUNNING


def test_a_process_without_takers_fails_with_the_reason(registry, endpoint, executor):
    process_id = waiting(registry)
    executor.look()
    for n in range(3):
        endpoint.jobs[f"job-{n}"] = "FAILED"
        executor.look()
    record = registry.get(process_id)
    assert (record.status, record.error.code) == (Status.FAILED, "worker_lost")
    assert len(endpoint.sent) == 3


def test_a_lapsed_process_is_brought_to_another_worker(registry, endpoint, executor, lease_clock):
    process_id = waiting(registry)
    executor.look()
    take(registry, process_id, lease_s=8)
    endpoint.jobs["job-0"] = "COMPLETED"
    for _ in range(5):
        executor.look()
        lease_clock.now_s += 2
    record = registry.get(process_id)
    assert (record.status, record.attempts[0].ending) == (Status.PENDING, "lost")
    assert (record.dispatch.job_id, record.dispatch.count) == ("job-1", 1)


@pytest.mark.parametrize("ahead_s", [-600, -120, -25, 0, 25, 600])
def test_a_live_worker_keeps_its_process_whatever_its_clock_says(
    registry, executor, lease_clock, ahead_s
):
    process_id = waiting(registry)
    executor.look()
    take(registry, process_id, lease_s=30)
    for n in range(60):
        lease_clock.now_s += 2
        if n % 4 == 0:
            registry.change(
                process_id,
                lambda one: changes.renewed(
                    one, "token", now=datetime.now(UTC) + timedelta(seconds=ahead_s), lease_s=30
                ),
            )
        executor.look()
    assert (registry.get(process_id).status, registry.get(process_id).attempt_count) == (
        Status.RUNNING, 1,
    )  # fmt: skip


def test_a_control_plane_that_looks_first_after_an_outage_takes_nothing_away(
    registry, executor, lease_clock, monkeypatch
):
    process_id = waiting(registry)
    executor.look()
    take(registry, process_id, lease_s=30)
    for _ in range(3):
        executor.look()
        lease_clock.now_s += 2
    with monkeypatch.context() as away:
        away.setattr(registry, "running", Raising(RegistryUnavailable("away")))
        for _ in range(30):
            with pytest.raises(RegistryUnavailable):
                executor.look()
            lease_clock.now_s += 2
    for _ in range(14):
        executor.look()
        lease_clock.now_s += 2
    assert registry.get(process_id).status is Status.RUNNING
    for _ in range(3):
        executor.look()
        lease_clock.now_s += 2
    assert registry.get(process_id).status is Status.PENDING


class Raising:
    def __init__(self, error):
        self.error = error

    def __call__(self):
        raise self.error


def test_a_lost_process_is_shown_and_can_be_cancelled_as_far_as_the_server_has_seen(
    registry, executor, watch, lease_clock
):
    """By the server's own watch; a command that has seen nothing can only ask the owner."""
    service = ProcessService(registry, MemoryStore(), executor, watch)
    command = ProcessService(registry, MemoryStore(), executor, LeaseWatch(30, look_every_s=2))
    process_id = waiting(registry)
    take(registry, process_id, lease_s=30)
    while not watch.is_lost(watch.look(registry.running)[0]):
        assert service.get(process_id).is_lost is False
        lease_clock.now_s += 2
    assert (service.get(process_id).is_lost, command.get(process_id).is_lost) == (True, False)
    with pytest.raises(ConflictingState):
        command.resume(process_id)
    assert command.cancel(process_id).status is Status.RUNNING
    assert service.cancel(process_id).status is Status.CANCELLED


def test_a_lost_process_can_be_resumed_before_it_is_taken_over(
    registry, executor, watch, lease_clock
):
    service = ProcessService(registry, MemoryStore(), executor, watch)
    process_id = waiting(registry)
    take(registry, process_id, lease_s=30)
    while not watch.is_lost(watch.look(registry.running)[0]):
        lease_clock.now_s += 2
    assert service.resume(process_id).status is Status.PENDING


def test_a_cancel_counts_from_when_it_is_seen_whoever_asked_by_whichever_clock(
    registry, endpoint, executor
):
    process_id = waiting(registry)
    executor.look()
    take(registry, process_id)
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    registry.change(process_id, lambda one: changes.cancel_requested(one, an_hour_ago))
    executor.look()
    executor.look()
    assert endpoint.cancelled == []


def test_cancelling_what_waits_takes_its_job_out_of_the_queue(registry, endpoint, executor, watch):
    process_id = waiting(registry)
    executor.look()
    ProcessService(registry, MemoryStore(), executor, watch).cancel(process_id)
    executor.look()
    assert endpoint.cancelled == ["job-0"]


def test_a_cancel_while_the_job_is_being_sent_ends_that_job(registry, endpoint, executor, watch):
    process_id = waiting(registry)
    service = ProcessService(registry, MemoryStore(), executor, watch)
    endpoint.on_run = service.cancel
    executor.look()
    assert endpoint.cancelled == ["job-0"]
    assert registry.get(process_id).status is Status.CANCELLED


def test_runpod_is_told_of_a_cancel_that_the_owner_does_not_hear(
    registry, endpoint, executor, watch, monkeypatch
):
    process_id = waiting(registry)
    executor.look()
    take(registry, process_id)
    ProcessService(registry, MemoryStore(), executor, watch).cancel(process_id)
    executor.look()
    assert endpoint.cancelled == []
    monkeypatch.setattr(runpod_module, "_CANCEL_PATIENCE_S", -1.0)
    executor.look()
    executor.look()
    assert endpoint.cancelled == ["job-0"]


@pytest.mark.parametrize("fault", [ExecutorUnavailable("away"), ExecutorRefused("no such key")])
def test_an_error_is_shown_and_passes(registry, endpoint, executor, fault):
    endpoint.fault = fault
    process_id = waiting(registry)
    executor.start()
    until(lambda: str(fault) in executor.state().error)
    assert registry.get(process_id).status is Status.PENDING
    endpoint.fault = None
    executor.submitted(process_id)
    until(lambda: endpoint.sent == [process_id])
    until(lambda: executor.state().error == "")


def test_the_state_tells_workers_and_why_nothing_starts(registry, endpoint, executor):
    endpoint.counts = EndpointHealth({"inQueue": 1}, {"throttled": 3})
    waiting(registry)
    executor.look()
    shown = executor.state().endpoint
    assert shown.workers == {"throttled": 3}
    assert "3 throttled" in shown.waiting_reason


def test_an_idle_control_plane_asks_runpod_nothing(registry, endpoint, executor):
    executor.look()
    endpoint.fault = AssertionError("asked")
    assert not executor.look()


def test_counts_that_can_not_be_had_keep_no_job_back(registry, endpoint, executor):
    endpoint.health_fault = ExecutorUnavailable("away")
    process_id = waiting(registry)
    with pytest.raises(ExecutorUnavailable):
        executor.look()
    assert endpoint.sent == [process_id]


def test_all_that_run_count_as_jobs_however_many_they_are(registry, endpoint, make):
    for _ in range(205):
        take(registry, waiting(registry))
    waiting(registry)
    make(max_jobs=205).look()
    assert endpoint.sent == []


def test_the_connections_end_with_the_executor(endpoint, executor):
    executor.stop(5)
    assert endpoint.is_closed


def test_one_server_works_in_a_workspace(executor, make):
    executor.start()
    with pytest.raises(AlreadyRunning):
        make().start()


@pytest.fixture
def clock(monkeypatch):
    clock = Looks()
    monkeypatch.setattr(runpod_module.time, "monotonic", lambda: clock.now_s)
    return clock


class Looks:
    now_s = 100.0

    def looks(self, executor, seconds, every_s=5.0):
        """Let the executor look again and again for so many seconds."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s = min(until_s, self.now_s + every_s)
            executor.look()


def test_a_job_seen_in_progress_has_its_time_from_then_on(registry, endpoint, executor, clock):
    waiting(registry)
    executor.look()
    clock.looks(executor, 600)  # it has waited for a worker all the time
    endpoint.jobs["job-0"] = "IN_PROGRESS"
    executor.look()
    clock.looks(executor, RULES.take_timeout_s - 1)
    assert len(endpoint.sent) == 1
    clock.looks(executor, 1)
    assert len(endpoint.sent) == 2


def test_a_job_that_runpod_does_not_know_for_a_moment_is_not_sent_again(
    registry, endpoint, executor, clock
):
    """Three 404s within 14 s were taken for three jobs that brought nothing."""
    process_id = waiting(registry)
    executor.look()
    status = endpoint.jobs.pop("job-0")
    clock.looks(executor, 60)
    endpoint.jobs["job-0"] = status
    executor.look()
    endpoint.jobs.pop("job-0")
    clock.looks(executor, RULES.missing_s - 10)
    assert endpoint.sent == [process_id]
    clock.looks(executor, 15)
    assert endpoint.sent == [process_id] * 2
    assert registry.get(process_id).status is Status.PENDING


def test_a_state_that_is_not_known_is_told_and_not_waited_for_without_end(
    registry, endpoint, executor, clock
):
    waiting(registry)
    executor.look()
    endpoint.jobs["job-0"] = "UNKNOWN"
    with structlog.testing.capture_logs() as logged:
        clock.looks(executor, RULES.unclear_s - 5)
        assert len(endpoint.sent) == 1
        clock.looks(executor, 10)
    assert len(endpoint.sent) == 2
    assert [one["event"] for one in logged].count("job_unclear") == 1


def test_time_in_which_nothing_could_be_seen_does_not_count(registry, endpoint, executor, clock):
    """The worker couldn't reach the registry either, to say that it has begun."""
    waiting(registry)
    executor.look()
    endpoint.jobs["job-0"] = "IN_PROGRESS"
    executor.look()
    clock.now_s += 600
    clock.looks(executor, RULES.take_timeout_s - 10)
    assert len(endpoint.sent) == 1
    clock.looks(executor, 20)
    assert len(endpoint.sent) == 2


def test_times_are_those_of_the_record(registry, endpoint, executor):
    process_id = waiting(registry)
    executor.look()
    age = datetime.now(UTC) - registry.get(process_id).dispatch.sent_at
    assert timedelta() <= age < timedelta(seconds=5)
