"""Waiting for what other threads and programs do: long at most, and no longer than it takes."""

import time


def until(condition, timeout_s=20.0):
    """Wait until the condition holds and return what it returned."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it didn't happen"
        time.sleep(0.005)
    return found


def never(condition, during_s=0.3):
    """Assert that the condition doesn't come to hold for a while."""
    deadline = time.monotonic() + during_s
    while time.monotonic() < deadline:
        assert not condition(), "it happened"
        time.sleep(0.01)
