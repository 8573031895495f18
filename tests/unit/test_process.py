"""What may become of a process, without any registry."""

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from pydantic import ValidationError

from loradash.domain.process import (
    MAX_PRIORITY,
    MAX_WARNING_CHARACTERS,
    MAX_WARNINGS,
    MIN_PRIORITY,
    TRANSITIONS,
    Problem,
    ProcessRecord,
    Progress,
    Status,
    cancel_requested,
    cancelled,
    completed,
    dispatched,
    expired,
    failed,
    given_up,
    recalled,
    released,
    renewed,
    reprioritized,
    requeued,
    resumed_at,
    taken,
)
from loradash.errors import ConflictingState, InvalidRequest, LeaseLost, WorkerLost

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PROBLEM = Problem(code="out_of_memory", message="the memory ran out", resumable=True)


def at(seconds):
    return NOW + timedelta(seconds=seconds)


def waiting(**changes):
    return ProcessRecord(
        id="train_01k9x3q4zt8m2v7c0hde", kind="training", name="cats",
        created_at=NOW, enqueued_at=NOW, updated_at=NOW, **changes,
    )  # fmt: skip


def take(record, start_s=0.0, lease_s=30.0, token="token"):
    return taken(
        record, owner="worker", token=token, now=at(start_s), lease_s=lease_s, device="cuda:0"
    )


def stepped(record, step, now_s=0.5):
    progress = record.progress.model_copy(update={"step": step, "total_steps": 100})
    return renewed(record, "token", now=at(now_s), lease_s=30, progress=progress)


def lost(record, now_s=31.0, max_attempts=3):
    return expired(record, now=at(now_s), max_attempts=max_attempts, owner_is_gone=True)


def in_status(status):
    running = take(waiting())
    return {
        Status.PENDING: waiting(),
        Status.RUNNING: running,
        Status.COMPLETED: completed(running, "token", now=at(9), output_prefix="results/x"),
        Status.FAILED: failed(running, "token", PROBLEM, at(9)),
        Status.CANCELLED: cancelled(running, "token", at(9)),
    }[status]


MOVES = {
    Status.PENDING: [
        lambda record: requeued(record, at(10)),
        lambda record: released(record, "token", at(10)),
        lambda record: expired(record, now=at(60), max_attempts=3, owner_is_gone=True),
    ],
    Status.RUNNING: [lambda record: take(record, 10)],
    Status.COMPLETED: [lambda record: completed(record, "token", now=at(10), output_prefix="r")],
    Status.FAILED: [
        lambda record: failed(record, "token", PROBLEM, at(10)),
        lambda record: expired(record, now=at(60), max_attempts=1, owner_is_gone=True),
        lambda record: given_up(record, PROBLEM, at(10)),
    ],
    Status.CANCELLED: [
        lambda record: cancel_requested(record, at(10)),
        lambda record: cancel_requested(record, at(60), owner_is_gone=True),
        lambda record: cancelled(record, "token", at(10)),
    ],
}
"""All functions by which a process may come to be in a status."""


@pytest.mark.parametrize(("source", "target"), list(product(Status, Status)))
def test_the_functions_allow_the_moves_of_the_table_and_no_others(source, target):
    reached = set()
    for move in MOVES[target]:
        try:
            reached.add(move(in_status(source)).status)
        except (ConflictingState, LeaseLost) as error:
            assert error.remedy
    if source is not target:
        assert (target in reached) == (target in TRANSITIONS[source])


@pytest.mark.parametrize("status", Status)
def test_an_end_is_where_nothing_happens_by_itself(status):
    assert status.is_end == (status in (Status.COMPLETED, Status.FAILED, Status.CANCELLED))


def test_a_taken_process_runs_and_notes_the_attempt():
    record = take(waiting(), 5)
    assert (record.status, record.started_at, record.device) == (Status.RUNNING, at(5), "cuda:0")
    assert record.lease.expires_at == at(35)
    assert record.attempt_count == record.attempt.number == 1
    assert (record.attempt.owner, record.attempt.started_at) == ("worker", at(5))
    assert record.attempt.ended_at is None


def test_the_first_start_stays_the_start():
    record = take(lost(take(waiting(), 0)), 60)
    assert (record.started_at, record.attempt.started_at) == (at(0), at(60))


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.RUNNING])
def test_only_a_running_process_can_be_lost(status):
    record = in_status(status)
    assert expired(record, now=at(10**6), max_attempts=1, owner_is_gone=True) is record


def test_renewing_moves_the_end_of_the_lease_and_nothing_else():
    record = take(waiting())
    later = renewed(record, "token", now=at(20), lease_s=30)
    assert (later.lease.expires_at, later.lease.length_s) == (at(50), 30)
    assert later.model_copy(update={"lease": record.lease}) == record


def test_each_renewal_shows_even_if_the_clock_stands_still():
    record = take(waiting())
    leases = [record.lease]
    for _ in range(3):
        record = renewed(record, "token", now=at(0), lease_s=30)
        leases.append(record.lease)
    assert len(set(leases)) == 4


def test_a_lease_of_an_older_loradash_is_read_and_renewed():
    record = take(waiting())
    old = record.model_dump(mode="json")
    for field in ("length_s", "renewals"):
        del old["lease"][field]
    read = ProcessRecord.model_validate(old)
    assert (read.lease.length_s, read.lease.token) == (None, "token")
    assert renewed(read, "token", now=at(20), lease_s=30).lease != read.lease
    assert read.elapsed_s(at(1000)) == 30
    assert read.elapsed_s(at(-1000)) == 0


def test_progress_is_an_update_only_if_it_is_new():
    record = stepped(take(waiting()), 7, now_s=5)
    again = renewed(record, "token", now=at(9), lease_s=30, progress=record.progress)
    assert (record.progress.step, record.updated_at, again.updated_at) == (7, at(5), at(5))


@pytest.mark.parametrize(
    "change",
    [
        lambda record: renewed(record, "old", now=NOW, lease_s=30),
        lambda record: resumed_at(record, "old", 5, NOW),
        lambda record: completed(record, "old", now=NOW, output_prefix=""),
        lambda record: failed(record, "old", PROBLEM, NOW),
        lambda record: cancelled(record, "old", NOW),
        lambda record: released(record, "old", NOW),
    ],
)
@pytest.mark.parametrize("status", Status)
def test_only_the_owner_changes_what_it_works_on(status, change):
    with pytest.raises(LeaseLost) as caught:
        change(in_status(status))
    assert caught.value.remedy


def test_elapsed_time_is_that_of_all_attempts():
    record = waiting()
    assert record.elapsed_s(at(100)) == 0
    record = take(record, 10)
    assert record.elapsed_s(at(15)) == 5
    record = released(record, "token", at(20))
    assert record.elapsed_s(at(100)) == record.worked_s == 10
    record = take(record, 100)
    assert record.elapsed_s(at(107)) == 17


def test_the_work_of_a_lost_attempt_ends_with_its_lease():
    running = take(waiting(), 0, lease_s=30)
    assert running.elapsed_s(at(1000)) == 30
    record = lost(running, now_s=1000)
    assert (record.worked_s, record.attempt.ended_at, record.attempt.ending) == (30, at(30), "lost")


@pytest.mark.parametrize("ahead_s", [-600, -120, -2, 0, 2, 120, 600])
def test_another_machines_clock_hardly_changes_how_long_something_took(ahead_s):
    """Times of work are the owner's; whoever looks at it is believed within the lease only."""
    record = take(waiting(), 0)
    record = renewed(record, "token", now=at(100), lease_s=30)
    assert 100 <= record.elapsed_s(at(105 + ahead_s)) <= 130
    record = lost(record, now_s=131 + ahead_s)
    assert 100 <= record.worked_s <= 130
    assert at(100) <= record.attempt.ended_at <= at(130)


def test_an_owner_whose_clock_was_set_back_has_not_worked_for_less_than_nothing():
    record = take(waiting(), 0)
    assert failed(record, "token", PROBLEM, at(-50)).worked_s == 0


def test_a_lost_process_waits_again_at_its_old_place():
    record = lost(stepped(take(waiting()), 5))
    assert (record.status, record.lease, record.ended_at) == (Status.PENDING, None, None)
    assert record.enqueued_at == NOW
    assert (record.progress.step, record.progress.phase) == (5, "")


def test_a_process_that_is_not_lost_stays_as_it_is():
    for status in Status:
        record = in_status(status)
        assert expired(record, now=at(2000), max_attempts=1, owner_is_gone=False) is record


def test_a_process_whose_owner_is_known_to_be_gone_need_not_wait_for_its_lease():
    record = expired(take(waiting()), now=at(20), max_attempts=3, owner_is_gone=True)
    assert (record.status, record.worked_s) == (Status.PENDING, 20)


def test_a_process_that_keeps_killing_its_workers_is_given_up():
    record = waiting()
    for n in range(2):
        record = lost(take(record, n * 60), n * 60 + 31)
        assert (record.status, record.fruitless_attempts) == (Status.PENDING, n + 1)
    record = lost(take(record, 120), 151)
    assert (record.status, record.ended_at) == (Status.FAILED, at(151))
    assert record.error.code == WorkerLost.code == "worker_lost"
    assert record.error.resumable
    assert record.error.remedy


def test_progress_resets_the_count_of_fruitless_attempts():
    record = lost(take(lost(take(waiting()))), 200)
    assert record.fruitless_attempts == 2
    record = lost(stepped(take(record, 200), 1, 201), 300)
    assert (record.status, record.fruitless_attempts) == (Status.PENDING, 0)


def test_an_attempt_that_only_repeats_steps_is_fruitless():
    record = lost(stepped(take(waiting()), 50))
    record = resumed_at(take(record, 60), "token", 40, at(61))
    assert (record.progress.step, record.attempt.from_step) == (40, 40)
    record = lost(record, 200)
    assert record.fruitless_attempts == 1


def test_a_cancel_that_was_asked_for_is_what_becomes_of_a_lost_or_released_process():
    record = cancel_requested(take(waiting()), at(5))
    assert lost(record, max_attempts=1).status is Status.CANCELLED
    assert released(record, "token", at(6)).status is Status.CANCELLED


def test_cancelling_what_waits_ends_it_at_once():
    record = cancel_requested(waiting(), at(5))
    assert (record.status, record.ended_at) == (Status.CANCELLED, at(5))


def test_cancelling_what_runs_asks_its_owner_and_asking_again_changes_nothing():
    record = cancel_requested(take(waiting()), at(5))
    assert (record.status, record.cancel_requested_at) == (Status.RUNNING, at(5))
    assert cancel_requested(record, at(6)).cancel_requested_at == at(5)


def test_cancelling_what_is_lost_ends_it_at_once():
    record = cancel_requested(take(waiting()), at(31), owner_is_gone=True)
    assert (record.status, record.lease, record.worked_s) == (Status.CANCELLED, None, 30)


def test_cancelling_what_is_cancelled_changes_nothing():
    record = in_status(Status.CANCELLED)
    assert cancel_requested(record, at(50)) is record


@pytest.mark.parametrize("status", [Status.COMPLETED, Status.FAILED])
def test_what_has_ended_otherwise_can_not_be_cancelled(status):
    with pytest.raises(ConflictingState, match=status):
        cancel_requested(in_status(status), at(50))


def test_a_completed_process_is_at_its_last_step():
    record = completed(stepped(take(waiting()), 99), "token", now=at(9), output_prefix="results/x")
    assert (record.progress.step, record.progress.total_steps) == (100, 100)
    assert (record.output_prefix, record.ended_at, record.lease) == ("results/x", at(9), None)
    assert record.attempt.ending == "completed"


def test_a_failed_process_says_why_and_keeps_its_progress():
    record = failed(stepped(take(waiting()), 40), "token", PROBLEM, at(9))
    assert (record.error, record.progress.step, record.attempt.to_step) == (PROBLEM, 40, 40)


def test_a_requeued_process_goes_to_the_end_of_the_queue_with_a_clean_slate():
    record = requeued(lost(cancel_requested(take(waiting()), at(1))), at(60))
    assert (record.status, record.enqueued_at, record.ended_at) == (Status.PENDING, at(60), None)
    assert record.cancel_requested_at is None
    assert requeued(lost(take(waiting()), max_attempts=1), at(60)).error is None


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (Status.PENDING, "is waiting in the queue; nothing to resume"),
        (Status.RUNNING, "is already running; nothing to resume"),
        (Status.COMPLETED, "is already completed; nothing to resume"),
    ],
)
def test_only_failed_and_cancelled_processes_are_resumed(status, said):
    with pytest.raises(ConflictingState, match=said):
        requeued(in_status(status), at(60))


def test_a_completed_process_that_is_taken_says_what_is_so():
    with pytest.raises(ConflictingState, match="is already completed; nothing to resume"):
        take(in_status(Status.COMPLETED))


def sent(record, job_id="job-1", after_attempt=0, now_s=1.0):
    return dispatched(record, job_id, after_attempt=after_attempt, now=at(now_s))


def test_jobs_that_bring_a_process_nowhere_are_counted_until_a_worker_takes_it():
    first = sent(waiting())
    again = sent(first, "job-2", now_s=2)
    assert (again.dispatch.job_id, again.dispatch.count, again.dispatch.sent_at) == (
        "job-2", 2, at(2),
    )  # fmt: skip
    back = released(take(again, 3), "token", at(4))
    assert back.was_taken_since_dispatch
    assert not again.was_taken_since_dispatch
    assert sent(back, "job-3", after_attempt=1).dispatch.count == 1


def test_a_job_may_be_noted_after_a_worker_has_taken_its_process():
    record = sent(take(waiting()))
    assert record.status is Status.RUNNING
    assert record.was_taken_since_dispatch
    ended = completed(take(waiting()), "token", now=at(9), output_prefix="r")
    assert sent(ended) is ended


def test_a_job_is_recalled_only_while_it_is_the_one_that_is_waited_for():
    record = sent(waiting())
    assert recalled(record, "job-1", at(5)).dispatch is None
    assert recalled(record, "job-0", at(5)) is record
    assert recalled(waiting(), "job-1", at(5)).dispatch is None
    running = take(record, 2)
    assert recalled(running, "job-1", at(5)) is running


def test_what_is_given_up_says_why_and_can_be_resumed_with_a_clean_slate():
    record = given_up(sent(waiting()), PROBLEM, at(5))
    assert (record.status, record.error, record.ended_at) == (Status.FAILED, PROBLEM, at(5))
    assert requeued(record, at(6)).dispatch is None
    with pytest.raises(ConflictingState, match="running"):
        given_up(take(waiting()), PROBLEM, at(5))


def test_priorities_have_a_range_and_only_what_waits_has_one():
    assert reprioritized(waiting(), MAX_PRIORITY, at(1)).priority == MAX_PRIORITY
    assert reprioritized(waiting(), MIN_PRIORITY, at(1)).updated_at == at(1)
    for priority in (MIN_PRIORITY - 1, MAX_PRIORITY + 1):
        with pytest.raises(InvalidRequest, match="priority"):
            reprioritized(waiting(), priority, at(1))
    with pytest.raises(ConflictingState, match="running"):
        reprioritized(take(waiting()), 1, at(1))


def test_only_the_latest_attempts_are_kept_and_all_are_counted():
    record = waiting()
    for n in range(30):
        record = stepped(take(record, n * 60), n + 1, n * 60 + 1)
        record = released(record, "token", at(n * 60 + 2))
    assert (len(record.attempts), record.attempt_count) == (20, 30)
    assert [note.number for note in record.attempts] == list(range(11, 31))
    assert record.worked_s == 60


def test_functions_never_change_the_record_they_are_given():
    for source, moves in product(Status, MOVES.values()):
        record = in_status(source)
        before = record.model_dump_json()
        for move in moves:
            try:
                move(record)
            except (ConflictingState, LeaseLost):
                continue
        assert record.model_dump_json() == before


def test_a_record_survives_json_exactly():
    progress = Progress(step=3, loss=0.1 + 0.2, learning_rate=1e-4)
    time = NOW + timedelta(microseconds=123457)
    record = take(waiting(summary={"base_model": "/models/x", "adapters": ["a"]}))
    record = renewed(record, "token", now=time, lease_s=0.000001, progress=progress)
    assert ProcessRecord.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize("loss", [float("inf"), float("-inf"), float("nan")])
def test_a_loss_that_is_no_number_survives_json(loss):
    text = Progress(loss=loss).model_dump_json()
    assert str(Progress.model_validate_json(text).loss) == str(loss)


def test_times_without_a_zone_are_refused():
    fields = waiting().model_dump() | {"created_at": datetime(2026, 3, 1)}
    with pytest.raises(ValidationError, match="timezone"):
        ProcessRecord.model_validate(fields)


def test_warnings_are_kept_once_shortened_and_up_to_a_number():
    record = renewed(take(waiting()), "token", now=at(1), lease_s=30, warnings=["a", "b", "a"])
    assert (record.warnings, record.updated_at) == (("a", "b"), at(1))
    again = renewed(record, "token", now=at(2), lease_s=30, warnings=["b"])
    assert (again.warnings, again.updated_at) == (record.warnings, at(1))
    long = renewed(record, "token", now=at(2), lease_s=30, warnings=["x" * 5000])
    assert len(long.warnings[-1]) == MAX_WARNING_CHARACTERS
    for count in (MAX_WARNINGS - 2, MAX_WARNINGS - 1, 500):
        many = [f"warning {number}" for number in range(count)]
        full = renewed(record, "token", now=at(2), lease_s=30, warnings=many)
        assert len(full.warnings) == min(count + 2, MAX_WARNINGS)
        assert full.warnings[:3] == ("a", "b", "warning 0")
        assert ("in the log" in full.warnings[-1]) == (count + 2 > MAX_WARNINGS)
        more = renewed(full, "token", now=at(3), lease_s=30, warnings=["one more"])
        assert len(more.warnings) == MAX_WARNINGS
