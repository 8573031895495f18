"""Calls to something remote: tried again where that may help, and not made while it is away.

stamina retries with exponential backoff and jitter; circuitbreaker counts the failures in a row,
opens, and lets a call through after a while to see whether the other side is back (half-open). Only
one kind of error is a fault; every other one, such as "not found", is an answer.
"""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import stamina
import structlog
from circuitbreaker import CircuitBreaker

from loradash.errors import LoradashError
from loradash.resilience.circuit_state import CircuitState

log = structlog.get_logger("loradash.resilience")

Result = TypeVar("Result")


class Policy(NamedTuple):
    """How patient calls are. Waits grow from the first to the longest, each with jitter."""

    retries: int = 3
    deadline_s: float = 300.0
    """No new try of a call is begun after so many seconds."""
    first_wait_s: float = 0.2
    longest_wait_s: float = 10.0
    failures_to_open: int = 10
    """In a row, over all threads. High enough that an unsteady line doesn't count as dead."""
    failing_s_to_open: float = 3.0
    """As long must they go on at least: all that is under way may fail in one bad moment."""
    open_s: float = 10.0


class Circuit:
    """All calls to one remote side. Thread-safe; calls run at the same time."""

    def __init__(self, name: str, fault: type[LoradashError], policy: Policy) -> None:
        self._name = name
        self._fault = fault
        self._policy = policy
        self._probing = threading.Lock()
        self._counting = threading.Lock()
        self._retries = 0
        self._is_closing = False
        self._failing_since = 0.0
        stamina.instrumentation.set_on_retry_hooks([])  # its log lines would hold every argument
        self._breaker = CircuitBreaker(
            failure_threshold=policy.failures_to_open, recovery_timeout=policy.open_s,
            expected_exception=fault, name=name,
        )  # fmt: skip

    def call(self, work: Callable[[], Result]) -> Result:
        """Return what the work returns; faults are tried again. Raises the last fault.

        While the circuit is open, the fault is raised without a call.
        """
        for attempt in stamina.retry_context(
            on=self._helps_to_retry,
            attempts=self._policy.retries + 1,
            timeout=self._policy.deadline_s,
            wait_initial=self._policy.first_wait_s,
            wait_max=self._policy.longest_wait_s,
            wait_jitter=self._policy.first_wait_s,
        ):
            if attempt.num > 1:
                with self._counting:
                    self._retries += 1
            with attempt:
                return self.call_once(work)
        raise AssertionError("stamina yields until a try succeeds or raises")

    def give_up(self) -> None:
        """Try nothing again from now on: the program ends."""
        self._is_closing = True

    def call_once(self, work: Callable[[], Result]) -> Result:
        """As `call`, without another try."""
        state = self._breaker.state
        if state == "open":
            raise self._away()
        if state == "half_open":
            if not self._probing.acquire(blocking=False):
                raise self._away()  # another thread is trying just now
            try:
                if self._breaker.state == "open":  # another thread has just tried
                    raise self._away()
                return self._counted(work)
            finally:
                self._probing.release()
        return self._counted(work)

    @property
    def state(self) -> CircuitState:
        """What is known of the other side."""
        breaker = self._breaker
        return CircuitState(
            breaker.state,
            breaker.failure_count,
            self._retries,
            max(0.0, float(breaker.open_remaining)) if breaker.state == "open" else 0.0,
            str(breaker.last_failure or "").partition("\n")[0],
        )

    def _counted(self, work: Callable[[], Result]) -> Result:
        try:
            result = work()
        except self._fault as error:
            self._count(error)
            raise
        except LoradashError:
            self._count(None)  # an answer
            raise
        self._count(None)
        return result

    def _count(self, error: LoradashError | None) -> None:
        with self._counting:
            before = self._breaker.state
            if not (error and before == "closed" and self._is_a_moment()):
                self._breaker.__exit__(type(error) if error else None, error, None)
            after = self._breaker.state
        if after != before:
            log.warning(
                "circuit_" + after, name=self._name, failures=self._breaker.failure_count,
                **({"error": str(error)} if error else {}),
            )  # fmt: skip

    def _is_a_moment(self) -> bool:
        """Whether a failure would open the circuit, but the failures haven't lasted long enough."""
        now, before = time.monotonic(), self._breaker.failure_count
        if not before:
            self._failing_since = now
        would_open = before and before + 1 >= self._policy.failures_to_open
        return bool(would_open) and now - self._failing_since < self._policy.failing_s_to_open

    def _helps_to_retry(self, error: Exception) -> bool:
        is_fault = isinstance(error, self._fault)
        return is_fault and not self._is_closing and self._breaker.state != "open"

    def _away(self) -> LoradashError:
        state = self.state
        return self._fault(
            f"{self._name} doesn't answer, so it isn't asked for {state.next_try_s:.0f} s"
            + (f" (last: {state.last_error})" if state.last_error else ""),
            remedy="It is tried again by itself; see its state in health.",
        )
