"""The scripted child does at a step what its orders say."""

import os
import signal
import time
from pathlib import Path

from loradash.engines.scripted.channel import Channel
from loradash.engines.scripted.orders import Orders
from loradash.engines.stop_signal import StopSignal

FAILURE = "scripted_failure"
_DONE_FILE = ".orders-done"


class ScriptedFailure(Exception):
    """The step fails, as it was ordered."""


def begin(orders: Orders, stop: StopSignal) -> None:
    """Take the time that it takes to begin, and stop listening if that was ordered."""
    if orders.ignore_stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stop.wait(orders.start_s)


def before_step(
    step: int, orders: Orders, folder: Path, channel: Channel, stop: StopSignal
) -> None:
    """Take a step's time; warn, fail, crash or stall if this step was ordered to.

    Raises `ScriptedFailure`.
    """
    if orders.ignore_stop:
        time.sleep(orders.step_s)
    else:
        stop.wait(orders.step_s)
    if step == orders.warn_at:
        channel.send("warning", code="scripted_warning", message=f"step {step} warns, as ordered")
    if step not in (orders.fail_at, orders.crash_at, orders.stall_at):
        return
    done = folder / _DONE_FILE
    if orders.once and done.exists():
        return
    done.touch()
    if step == orders.crash_at:
        os.kill(os.getpid(), signal.SIGKILL)
    if step == orders.stall_at:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while True:
            time.sleep(3600)
    raise ScriptedFailure(f"step {step} failed, as it was ordered")
