"""How often RunPod's SDK asks for jobs, and what it logs, while there is nothing to be had."""

import asyncio
from types import SimpleNamespace

import pytest

from loradash.worker import sdk
from loradash.worker.sdk import Pace, SeldomErrors


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def asked_within(pace, clock, seconds, take_s):
    """How often the SDK's loop asks in a time, if each take lasts so long and brings nothing."""
    asked, until_s = 0, clock.now_s + seconds
    while clock.now_s < until_s:
        if pace.concurrency(has_job=False):
            asked += 1
            clock.now_s += take_s
        else:
            clock.now_s += 1
    return asked


@pytest.mark.parametrize("take_s", [0.0001, 0.02, 0.9])
def test_takes_that_fail_at_once_are_asked_for_less_and_less(clock, take_s):
    assert asked_within(Pace(clock), clock, 600, take_s) <= 2 * 600 / 10


def test_long_polls_without_a_job_follow_each_other_at_once(clock):
    assert asked_within(Pace(clock), clock, 600, 10) == 60


def test_after_an_outage_jobs_are_asked_for_at_once_again(clock):
    pace = Pace(clock)
    asked_within(pace, clock, 60, 0.001)
    while not pace.concurrency(has_job=False):
        clock.now_s += 1
    clock.now_s += 30  # a long poll
    assert asked_within(pace, clock, 100, 10) == 10


def test_short_jobs_are_no_reason_for_a_pause(clock):
    pace = Pace(clock)
    for _ in range(20):
        assert pace.concurrency(has_job=False) == 1
        clock.now_s += 0.01
        pace.job_came()


def test_a_job_in_hand_is_no_reason_for_a_pause(clock):
    pace = Pace(clock)
    for _ in range(20):
        assert pace.concurrency(has_job=True) == 1
        clock.now_s += 0.01


def test_the_same_error_is_logged_once_a_minute(clock):
    told = []
    logger = SimpleNamespace(error=lambda message: told.append(message), level="INFO")
    seldom = SeldomErrors(logger, clock)
    for _ in range(130):
        seldom.error("no answer")
        clock.now_s += 1
    seldom.error("another")
    assert told == ["no answer"] * 3 + ["another"]
    assert seldom.level == "INFO"


def test_the_sdks_own_loop_makes_the_pauses():
    """Without them it asks some thousand times in the same time."""
    sdk.load()
    from runpod.serverless.modules import rp_scale

    pace, asked = Pace(), []

    async def fail(_session, _count):
        asked.append(1)
        raise ConnectionError("refused")

    async def main():
        scaler = rp_scale.JobScaler(
            {"handler": None, "concurrency_modifier": lambda _: pace.concurrency(has_job=False)}
        )
        scaler.jobs_fetcher = fail
        taking = asyncio.ensure_future(scaler.get_jobs(None))
        await asyncio.sleep(1.5)
        scaler.kill_worker()
        await taking

    asyncio.run(main())
    assert 1 <= len(asked) < 10
