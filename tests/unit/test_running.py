"""From a process that waits, or has ended, to its end in this program."""

import errno
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from loradash.domain import process as changes
from loradash.domain.events import Done, PhaseChanged, Stopped
from loradash.domain.ids import new_process_id
from loradash.domain.process import Problem, ProcessRecord, Status
from loradash.errors import (
    ConflictingState,
    InvalidDataset,
    NotFound,
    OutOfMemory,
    RegistryUnavailable,
)
from loradash.registry.memory import MemoryRegistry
from loradash.runtime.attempt import Timing
from loradash.runtime.gpu import Slot
from loradash.runtime.lease_watch import LeaseWatch
from loradash.runtime.owner import is_gone, this_owner
from loradash.runtime.supervisor import StopRequest
from loradash.services.processes.running import Runner, take_over
from loradash.storage.memory import MemoryStore
from tests.clock import Clock

TIMING = Timing(lease_s=60, cancel_grace_s=5, max_attempts=3)


class Work:
    """A use case that does what it is told and keeps the attempts it was given."""

    def __init__(self, does=None):
        self.does = does or (lambda attempt: Done())
        self.attempts = []

    def work(self, attempt):
        self.attempts.append(attempt)
        return self.does(attempt)


@pytest.fixture
def registry():
    return MemoryRegistry()


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def ended():
    return []


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def runner(registry, work, ended, clock):
    works = {"training": work, "generation": work}
    return Runner(
        registry, MemoryStore(), works, TIMING, on_end=ended.append, clock=clock, pause=clock.sleep
    )


def waiting(registry, kind="training"):
    now = datetime.now(UTC)
    return registry.create(
        ProcessRecord(
            id=new_process_id(kind), kind=kind, name="cat",
            created_at=now, enqueued_at=now, updated_at=now, request_id="req_1",
        )
    )  # fmt: skip


def running(registry, owner="elsewhere/1/1.00", lease_s=60.0):
    return registry.change(
        waiting(registry).id,
        lambda one: changes.taken(
            one, owner=owner, token="theirs", now=datetime.now(UTC) - timedelta(seconds=1),
            lease_s=lease_s, device="cpu",
        ),
    )  # fmt: skip


def dead_owner():
    """The name of a program on this machine that has ended."""
    code = "from loradash.runtime.owner import this_owner; print(this_owner())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def run(runner, process_id, on_event=lambda event: None):
    return runner.run_here(process_id, on_event, StopRequest())


def test_a_process_that_waits_is_taken_and_run_to_its_end(runner, registry, work):
    def look(attempt):
        found = registry.get(attempt.id)
        assert (found.status, found.device) == (Status.RUNNING, "local")
        assert found.lease.owner == this_owner()
        return Done()

    work.does = look
    record = waiting(registry)
    assert run(runner, record.id) == Done()
    found = registry.get(record.id)
    assert (found.status, found.attempt_count) == (Status.COMPLETED, 1)


@pytest.mark.parametrize("kind", ["training", "generation"])
def test_an_error_of_ours_is_a_failure_with_its_code_and_its_remedy(runner, registry, work, kind):
    def fail(attempt):
        raise InvalidDataset("2 images are bad", remedy="Repair them.", problems=["a", "b"])

    work.does = fail
    record = waiting(registry, kind)
    ending = run(runner, record.id)
    assert (ending.type, ending.code, ending.message) == (
        "failed", "dataset_invalid", "2 images are bad",
    )  # fmt: skip
    assert registry.get(record.id).error == Problem(
        code="dataset_invalid", message="2 images are bad", remedy="Repair them.",
        problems=("a", "b"), resumable=kind == "training",
    )  # fmt: skip


def test_an_error_that_nobody_expected_is_a_failure_and_its_traceback_is_logged(
    runner, registry, work
):
    def fail(attempt):
        raise ZeroDivisionError("x" * 1000)

    work.does = fail
    record = waiting(registry)
    with structlog.testing.capture_logs() as logged:
        run(runner, record.id)
    error = registry.get(record.id).error
    assert (error.code, error.resumable) == ("internal", True)
    assert error.message.startswith("internal error: ZeroDivisionError: xxx")
    assert len(error.message) == 500
    assert "log" in error.remedy
    (entry,) = [one for one in logged if one["event"] == "process_failed"]
    assert entry["exc_info"]
    assert entry["log_level"] == "error"


def test_an_error_that_names_an_odd_file_is_a_failure_like_others(runner, registry, work):
    def fail(attempt):
        raise FileNotFoundError("caf\udce9.png")

    work.does = fail
    record = waiting(registry)
    run(runner, record.id)
    assert registry.get(record.id).error.message.encode()


def test_a_kind_without_a_use_case_is_a_failure(registry, ended):
    record = waiting(registry)
    run(Runner(registry, MemoryStore(), {}, TIMING), record.id)
    assert registry.get(record.id).error.code == "internal"


@pytest.mark.parametrize("end", ["failed", "cancelled", "never begun"])
def test_what_has_failed_or_was_cancelled_is_run_again(runner, registry, end):
    if end == "never begun":
        record = waiting(registry)
        registry.change(record.id, lambda one: changes.cancel_requested(one, datetime.now(UTC)))
    else:
        record = running(registry)
        problem = Problem(code=OutOfMemory.code, message="full")
        registry.change(
            record.id,
            lambda one: (
                changes.failed(one, "theirs", problem, datetime.now(UTC))
                if end == "failed"
                else changes.cancelled(one, "theirs", datetime.now(UTC))
            ),
        )
    assert run(runner, record.id) == Done()
    found = registry.get(record.id)
    assert (found.status, found.error, found.cancel_requested_at) == (Status.COMPLETED, None, None)


def test_what_is_completed_is_not_run_again(runner, registry, work):
    record = waiting(registry)
    run(runner, record.id)
    before = registry.get(record.id)
    with pytest.raises(ConflictingState, match="completed"):
        run(runner, record.id)
    assert registry.get(record.id) == before
    assert len(work.attempts) == 1


@pytest.mark.parametrize("where", ["elsewhere", "here"])
def test_what_somebody_works_on_is_left_to_him(runner, registry, work, clock, where):
    record = running(registry, "elsewhere/1/1.00" if where == "elsewhere" else this_owner())
    said = []

    def sleep(seconds):
        clock.now_s += seconds
        if clock.now_s > 50:
            renew(registry, record.id)

    runner._pause = sleep
    with pytest.raises(ConflictingState, match="another program"):
        runner.run_here(record.id, lambda event: None, StopRequest(), said.append)
    assert said == [
        f"waiting 60 s to see whether {record.id}'s worker ({record.lease.owner}) is alive"
    ]
    assert registry.get(record.id).lease.token == record.lease.token
    assert work.attempts == []
    assert 50 < clock.now_s < 60


def renew(registry, process_id):
    return registry.change(
        process_id,
        lambda one: changes.renewed(one, one.lease.token, now=datetime.now(UTC), lease_s=60),
    )


def test_who_waits_to_see_whether_a_worker_is_alive_may_be_stopped(runner, registry, clock):
    record = running(registry)
    stop = StopRequest()
    runner._pause = lambda seconds: stop("cancel")
    with pytest.raises(ConflictingState):
        runner.run_here(record.id, lambda event: None, stop)
    assert registry.get(record.id) == record


def test_a_renewal_at_the_last_moment_wins(runner, registry, clock, monkeypatch):
    """Between the look that finds a lease run out and the change that takes the process."""
    record = running(registry)
    change = registry.change

    def later(process_id, taking):
        monkeypatch.setattr(registry, "change", change)
        renew(registry, process_id)
        return change(process_id, taking)

    monkeypatch.setattr(registry, "change", later)
    with pytest.raises(ConflictingState, match="another program"):
        run(runner, record.id)
    assert clock.now_s >= 60
    assert registry.get(record.id).lease.token == record.lease.token


@pytest.mark.parametrize("cancel", [False, True])
@pytest.mark.parametrize("how", ["expired", "gone"])
def test_what_has_lost_its_owner_is_taken_over(runner, registry, how, cancel):
    expired = how == "expired"
    record = running(registry) if expired else running(registry, dead_owner())
    if cancel:
        registry.change(
            record.id, lambda one: one.model_copy(update={"cancel_requested_at": one.updated_at})
        )
    assert run(runner, record.id) == Done()
    found = registry.get(record.id)
    assert [note.ending for note in found.attempts] == ["lost", "completed"]


def test_what_nobody_knows_is_not_found(runner):
    with pytest.raises(NotFound):
        run(runner, "train_00000000000000000000")


def test_each_attempt_has_a_token_of_its_own(runner, registry, work):
    work.does = lambda attempt: Stopped()
    record = waiting(registry)
    run(runner, record.id)
    run(runner, record.id)
    first, second = (attempt.token for attempt in work.attempts)
    assert first != second
    assert len(first) == 32


def test_the_end_is_told_once_with_the_final_record(runner, registry, work, ended):
    seen = []

    def look(attempt):
        attempt.event(PhaseChanged(phase="training"))
        assert not ended
        return Done()

    work.does = look
    record = waiting(registry)
    run(runner, record.id, seen.append)
    assert ended == [registry.get(record.id)]
    assert ended[0].status is Status.COMPLETED
    assert seen == [PhaseChanged(phase="training")]


def test_who_was_superseded_tells_the_record_as_he_knew_it(runner, registry, work, ended):
    def lose(attempt):
        registry.change(
            attempt.id,
            lambda one: changes.expired(
                one, now=datetime.now(UTC), max_attempts=3, owner_is_gone=True
            ),
        )  # fmt: skip
        return Done()

    work.does = lose
    record = waiting(registry)
    run(runner, record.id)
    assert registry.get(record.id).status is Status.PENDING
    assert [one.attempt.ending for one in ended] == [""]


def test_the_work_gets_its_slots_environment_and_the_callers_stop(runner, registry, work):
    stop = StopRequest()
    slot = Slot("cuda:1", 1, {"CUDA_VISIBLE_DEVICES": "GPU-1"})
    record = registry.change(waiting(registry).id, runner.taking(slot.name))
    runner.run(record, slot, stop)
    (attempt,) = work.attempts
    assert attempt.environment == {"CUDA_VISIBLE_DEVICES": "GPU-1"}
    assert attempt.stop is stop
    assert attempt.record.device == "cuda:1"


def test_what_is_logged_meanwhile_names_process_and_request(runner, registry, work):
    bound = []

    def look(attempt):
        bound.append(structlog.contextvars.get_contextvars())
        return Done()

    work.does = look
    record = waiting(registry)
    run(runner, record.id)
    assert bound == [{"process_id": record.id, "request_id": "req_1"}]
    assert structlog.contextvars.get_contextvars() == {}


def test_no_thread_is_left(runner, registry):
    record = waiting(registry)
    run(runner, record.id)
    assert not [thread for thread in threading.enumerate() if record.id in thread.name]


# Taking over


def test_a_process_whose_owner_is_gone_is_queued_again(registry):
    record = running(registry, dead_owner())
    found = take_over(registry, record.id, 3, LeaseWatch(60, look_every_s=2))
    assert (found.status, found.attempt.ending) == (Status.PENDING, "lost")


def test_who_took_over_meanwhile_is_not_taken_for_the_one_who_is_gone(registry):
    """The caller has seen a dead owner, but another program was faster."""
    record = running(registry, this_owner())
    assert not is_gone(record.lease.owner)
    assert take_over(registry, record.id, 3, LeaseWatch(60, look_every_s=2)) == record


@pytest.fixture
def watch(clock):
    return LeaseWatch(60, look_every_s=10, clock=clock)


def watched_until_run_out(watch, registry, clock):
    for _ in range(7):
        (seen,) = watch.look(registry.running)
        clock.now_s += 10
    assert watch.is_lost(seen)


def test_a_lease_that_was_renewed_meanwhile_holds(registry, watch, clock):
    record = running(registry)
    watched_until_run_out(watch, registry, clock)
    renewed = renew(registry, record.id)
    assert take_over(registry, record.id, 3, watch) == renewed


def test_what_can_not_be_taken_over_is_watched_from_the_start_again(registry, watch, clock):
    """What kept us from writing may have kept its owner from renewing its lease."""
    record = running(registry)
    watched_until_run_out(watch, registry, clock)
    failing = Failing(registry)
    with pytest.raises(RegistryUnavailable):
        take_over(failing, record.id, 3, watch)
    assert take_over(registry, record.id, 3, watch) == record
    watched_until_run_out(watch, registry, clock)
    assert take_over(registry, record.id, 3, watch).status is Status.PENDING


class Failing:
    def __init__(self, registry):
        self.registry = registry

    def change(self, process_id, change):
        change(self.registry.get(process_id))
        raise RegistryUnavailable("away")


@pytest.mark.parametrize("kind", ["training", "generation"])
def test_a_full_disk_is_told_with_its_remedy_and_the_process_can_be_resumed(
    runner, registry, work, kind
):
    def fill(attempt):
        raise OSError(errno.ENOSPC, "No space left on device", "/data/ws/x")

    work.does = fill
    record = waiting(registry, kind)
    runner.run_here(record.id, lambda _event: None, StopRequest())
    error = registry.get(record.id).error
    assert (error.code, error.resumable) == ("disk_full", True)
    assert error.message == "the disk of /data/ws is full"
    assert error.remedy == "Free space, and resume it."
