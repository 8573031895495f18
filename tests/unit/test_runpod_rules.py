"""What is done about a waiting process, given its job as RunPod sees it."""

from datetime import UTC, datetime, timedelta

import pytest

from loradash.domain import process as changes
from loradash.domain.process import ProcessRecord
from loradash.executors.runpod_client import JobStatus, RunpodJob
from loradash.executors.runpod_rules import JobRules, judge, waiting_reason

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
RULES = JobRules(timeout_s={"training": 7200, "generation": 600})
SECOND = timedelta(seconds=1)


def sent(times=1, kind="training"):
    record = ProcessRecord(
        id="train_01k9x3q4zt8m2v7c0hde", kind=kind, name="cats", created_at=NOW,
        enqueued_at=NOW, updated_at=NOW,
    )  # fmt: skip
    for n in range(times):
        record = changes.dispatched(record, f"job-{n}", after_attempt=0, now=NOW)
    return record


def given_back(record):
    record = changes.taken(record, owner="a", token="token", now=NOW, lease_s=30, device="cuda:0")
    return changes.released(record, "token", NOW + SECOND)


def job(status, **facts):
    return RunpodJob("job-0", JobStatus(status), **facts)


@pytest.mark.parametrize("record", [sent(), given_back(sent()), sent(3)])
def test_what_is_queued_is_waited_for(record):
    assert judge(record, job("IN_QUEUE"), timedelta(days=1), RULES).action == "wait"


@pytest.mark.parametrize(
    ("seen", "patience_s", "reason"),
    [
        (None, RULES.missing_s, "no longer knows its job"),
        (job("UNKNOWN", word="FROZEN"), RULES.unclear_s, "'FROZEN'"),
    ],
)
def test_what_may_be_an_answer_of_one_moment_must_last_before_anything_is_done(
    seen, patience_s, reason
):
    for record in (sent(), given_back(sent()), sent(3)):
        assert judge(record, seen, (patience_s - 1) * SECOND, RULES).action == "wait"
    verdict = judge(sent(), seen, patience_s * SECOND, RULES)
    assert verdict.action == "resend"
    assert reason in verdict.reason
    assert judge(sent(3), seen, patience_s * SECOND, RULES).action == "fail"


def test_a_worker_has_a_minute_to_begin_what_it_took():
    taken = job("IN_PROGRESS", worker_id="w1")
    assert judge(sent(), taken, 59 * SECOND, RULES).action == "wait"
    verdict = judge(sent(), taken, 60 * SECOND, RULES)
    assert (verdict.action, verdict.reason) == (
        "resend", "worker w1 took its job and never started it",
    )  # fmt: skip


def test_a_worker_that_gave_a_process_back_is_soon_replaced():
    record = given_back(sent())
    assert judge(record, job("IN_PROGRESS"), 9 * SECOND, RULES).action == "wait"
    assert judge(record, job("IN_PROGRESS"), 10 * SECOND, RULES).action == "resend"


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (job("COMPLETED"), "without having run it"),
        (job("COMPLETED", output={"error": "no room\nmore"}), "no room"),
        (job("FAILED", error="CUDA is too old\ntraceback"), "CUDA is too old"),
        (job("FAILED"), "failed"),
        (job("TIMED_OUT"), "time limit"),
    ],
)
def test_a_job_that_brought_nothing_is_sent_again_until_it_makes_no_sense(seen, reason):
    for times in (1, 2):
        verdict = judge(sent(times), seen, timedelta(), RULES)
        assert verdict.action == "resend"
        assert reason in verdict.reason
        assert "traceback" not in verdict.reason
    verdict = judge(sent(3), seen, timedelta(), RULES)
    assert verdict.action == "fail"
    assert verdict.problem.code == "worker_lost"
    assert verdict.problem.resumable
    assert reason in verdict.problem.message


def test_a_process_that_workers_do_take_is_never_given_up_for_its_jobs():
    record = sent(3)
    record = given_back(record)
    assert judge(record, None, timedelta(hours=1), RULES).action == "resend"
    assert judge(record, job("COMPLETED"), timedelta(), RULES).action == "resend"


def test_a_cancel_at_runpod_cancels():
    for record in (sent(), given_back(sent())):
        assert judge(record, job("CANCELLED"), timedelta(), RULES).action == "cancel"


@pytest.mark.parametrize(("kind", "resumable"), [("training", True), ("generation", False)])
def test_a_process_that_ran_out_of_its_jobs_time_fails_with_the_setting_to_raise(kind, resumable):
    verdict = judge(given_back(sent(kind=kind)), job("TIMED_OUT"), timedelta(), RULES)
    assert verdict.problem.code == "timed_out"
    assert verdict.problem.resumable is resumable
    assert "_TIMEOUT" in verdict.problem.remedy


def test_jobs_may_take_longer_than_their_processes_and_wait_a_day():
    assert RULES.execution_timeout_s("training") == 7200 + 900
    assert RULES.execution_timeout_s("generation") == 600 + 900
    assert RULES.ttl_s("training") == 7200 + 900 + 86_400


def test_why_a_queue_stands_still_is_told_by_the_workers_counts():
    assert waiting_reason({"inQueue": 0}, {}) == ""
    assert waiting_reason({"inQueue": 2}, {"running": 1}) == ""
    assert waiting_reason({"inQueue": 2}, {"idle": 0}).endswith("(none is starting)")
    assert waiting_reason({"inQueue": 2}, {"throttled": 2, "unhealthy": 1}).endswith(
        "(2 throttled, 1 unhealthy)"
    )
