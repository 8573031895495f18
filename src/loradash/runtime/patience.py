"""Waiting for what is away: one patience for the object store and the registry, on one clock.

With records in the bucket an outage of it shows as either of the two, whichever is asked first, so
they are waited for together: the clock starts with the first failure of an outage, and the first
success stops it. It is the monotonic one, which no step of the machine's time moves.
"""

import contextlib
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from loradash.errors import LoradashError, RegistryUnavailable, StoreUnavailable
from loradash.runtime.supervisor import StopRequest

log = structlog.get_logger("loradash.patience")

AWAY = (RegistryUnavailable, StoreUnavailable)
"""What may pass by itself: nothing was said about what was asked for."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0
_POLL_S = 0.05
_UNHURRIED = ("disk_full",)
_INSISTED = ("cancel", "job_ended", *_UNHURRIED)

Result = TypeVar("Result")
Waiting = Callable[[], contextlib.AbstractContextManager[object]]


class Patience:
    """Tries again what fails with `AWAY`, for up to ``patience_s`` seconds of one outage.

    Who was asked to stop waits ``grace_s`` after that at most (less, if the request says so), and
    not at all once he was asked a second time or has lost the process. ``while_waiting`` is open
    between two tries.
    """

    def __init__(
        self,
        patience_s: float,
        stop: StopRequest,
        grace_s: float = 0.0,
        *,
        while_waiting: Waiting = contextlib.nullcontext,
        process_id: str = "",
    ) -> None:
        self._patience_s = patience_s
        self._stop = stop
        self._grace_s = grace_s
        self._while_waiting = while_waiting
        self._process_id = process_id
        self._away_since_s: float | None = None

    def __call__(self, work: Callable[[], Result], *, insist: bool = False) -> Result:
        """Work, and wait while that can't be done. At last raises the error of `AWAY`.

        With ``insist`` a cancel shortens nothing: its own result is what waits.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                result = work()
            except AWAY as error:
                self._note(error)
                if not self._wait(pause_s, insist):
                    raise
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            else:
                self._end_outage()
                return result

    def _note(self, error: LoradashError) -> None:
        if self._away_since_s is None:
            self._away_since_s = time.monotonic()
            log.warning(
                "outage_began", process_id=self._process_id, code=error.code, error=error.message
            )

    def _end_outage(self) -> None:
        if self._away_since_s is not None:
            seconds = round(time.monotonic() - self._away_since_s, 1)
            log.info("outage_ended", process_id=self._process_id, seconds=seconds)
            self._away_since_s = None

    def _wait(self, pause_s: float, insist: bool) -> bool:
        """Wait a moment; return whether to try again."""
        until_s = time.monotonic() + pause_s
        with self._while_waiting():
            while (now_s := time.monotonic()) < until_s:
                if now_s >= self._give_up_s(insist):
                    return False
                time.sleep(_POLL_S)
        return time.monotonic() < self._give_up_s(insist)

    def _give_up_s(self, insist: bool) -> float:
        """When the waiting ends, as things stand now."""
        assert self._away_since_s is not None
        whole_s = self._away_since_s + self._patience_s
        stop = self._stop
        if not stop.count:
            return whole_s
        if stop.count > 1 or stop.reason == "lease_lost":
            return 0.0
        if stop.reason in (_INSISTED if insist else _UNHURRIED):
            return whole_s
        grace_s = self._grace_s if stop.grace_s is None else min(self._grace_s, stop.grace_s)
        return min(whole_s, stop.asked_at_s + grace_s)
