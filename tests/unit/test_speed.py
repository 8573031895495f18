"""How fast a training goes."""

import pytest

from loradash.engines.diffusers.child import speed as module
from loradash.engines.diffusers.child.speed import Speed


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now_s = 100.0

        def monotonic(self):
            return self.now_s

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_the_time_of_checkpoints_and_previews_is_left_out(clock):
    speed = Speed(0)
    clock.now_s += 2.0
    assert speed.after(1, 10) == (0.5, 18.0)
    with speed.paused():
        clock.now_s += 600.0
    clock.now_s += 2.0
    rate, left_s = speed.after(2, 10)
    assert rate == pytest.approx(0.5)
    assert left_s == pytest.approx(16.0)


def test_only_the_last_while_counts(clock):
    speed = Speed(0)
    for step in range(1, 11):
        clock.now_s += 10.0
        speed.after(step, 1000)
    for step in range(11, 60):
        clock.now_s += 1.0
        rate, _ = speed.after(step, 1000)
    assert rate == pytest.approx(1.0)
