import contextlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from structlog.testing import capture_logs

from loradash.errors import NotFound, PreconditionFailed, StoreRefused, StoreUnavailable
from loradash.resilience.circuit import Circuit, Policy

ANSWERS = [NotFound("no"), PreconditionFailed("changed"), StoreRefused("not you")]

QUICK = Policy(
    retries=3, deadline_s=30, first_wait_s=0.001, longest_wait_s=0.002, failing_s_to_open=0,
    open_s=30,
)  # fmt: skip


class Line:
    """Work that fails so many times, then answers; it remembers when it was called."""

    def __init__(self, failures=0, error=None):
        self.failures = failures
        self.times = []
        self.errors = []
        self._error = error
        self._lock = threading.Lock()

    def __call__(self):
        with self._lock:
            self.times.append(time.monotonic())
            calls = len(self.times)
        if calls <= self.failures:
            error = self._error or StoreUnavailable(f"no answer {calls}", remedy="Wait.")
            self.errors.append(error)
            raise error
        return "answer"

    @property
    def calls(self):
        return len(self.times)

    @property
    def waits(self):
        return [later - before for before, later in zip(self.times, self.times[1:], strict=False)]


def circuit(**policy):
    return Circuit("the store", StoreUnavailable, QUICK._replace(**policy))


def fail(one, times=1):
    for _ in range(times):
        with pytest.raises(StoreUnavailable):
            one.call_once(Line(failures=1))


def opened(open_s=0.1, failures_to_open=3, **policy):
    """A circuit that has just opened."""
    one = circuit(open_s=open_s, failures_to_open=failures_to_open, **policy)
    fail(one, failures_to_open)
    assert one.state.state == "open"
    return one


def wait_until_half_open(one):
    deadline = time.monotonic() + 5
    while one.state.state == "open":
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert one.state.state == "half_open"


# Trying again


def test_work_that_is_answered_is_done_once():
    line = Line()
    assert circuit().call(line) == "answer"
    assert line.calls == 1


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_work_is_tried_again_until_it_is_answered(failures):
    line = Line(failures)
    assert circuit().call(line) == "answer"
    assert line.calls == failures + 1


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_the_last_fault_is_raised_after_so_many_retries(retries):
    line = Line(failures=99)
    with pytest.raises(StoreUnavailable) as caught:
        circuit(retries=retries).call(line)
    assert line.calls == retries + 1
    assert caught.value is line.errors[-1]


def test_a_single_try_is_never_repeated():
    line = Line(failures=1)
    with pytest.raises(StoreUnavailable):
        circuit().call_once(line)
    assert line.calls == 1


def test_waits_grow():
    line = Line(failures=3)
    circuit(first_wait_s=0.05, longest_wait_s=10).call(line)
    assert [wait >= least for wait, least in zip(line.waits, (0.05, 0.1, 0.2), strict=True)] == (
        [True] * 3
    )


def test_no_wait_is_longer_than_the_longest():
    line = Line(failures=6)
    circuit(retries=6, first_wait_s=0.04, longest_wait_s=0.05).call(line)
    assert sum(line.waits) < 1  # else 2.5 s


def test_waits_differ_so_that_many_callers_dont_return_at_the_same_moment():
    lines = [Line(failures=1) for _ in range(24)]
    one = circuit(first_wait_s=0.1, longest_wait_s=1, failures_to_open=99)
    with ThreadPoolExecutor(24) as threads:
        list(threads.map(one.call, lines))
    waits = [wait for line in lines for wait in line.waits]
    assert min(waits) < 0.14
    assert max(waits) > 0.16


def test_no_other_try_is_waited_for_after_the_deadline():
    line, begun = Line(failures=99), time.monotonic()
    with pytest.raises(StoreUnavailable, match="no answer"):
        circuit(
            retries=98, deadline_s=0.3, first_wait_s=0.05, longest_wait_s=0.06, failures_to_open=99
        ).call(line)
    assert 2 <= line.calls <= 8
    assert time.monotonic() - begun < 1.5  # 98 retries would take 5 s


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.code)
def test_an_answer_that_is_an_error_is_raised_at_once(answer):
    line, one = Line(failures=9, error=answer), circuit()
    with pytest.raises(type(answer)) as caught:
        one.call(line)
    assert caught.value is answer
    assert line.calls == 1
    assert one.state == ("closed", 0, 0, 0.0, "")


def test_a_bug_is_raised_at_once_and_says_nothing_about_the_other_side():
    one = circuit()
    fail(one, 2)
    line = Line(failures=9, error=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        one.call(line)
    assert line.calls == 1
    assert one.state.failures == 2


def test_nothing_is_tried_again_once_it_was_given_up():
    one, line = circuit(first_wait_s=30, longest_wait_s=30), Line(failures=9)
    one.give_up()
    with pytest.raises(StoreUnavailable):
        one.call(line)
    assert line.calls == 1
    assert one.call(Line()) == "answer"


# Opening


def test_failures_of_one_moment_do_not_open_it():
    """Sixteen transfers under way are sixteen failures when one line breaks."""
    one = circuit(failures_to_open=3, failing_s_to_open=0.3)
    fail(one, 20)
    assert one.state.state == "closed"
    assert one.call(Line()) == "answer"
    fail(one, 20)
    assert one.state.state == "closed"
    time.sleep(0.35)
    fail(one, 1)
    assert one.state.state == "open"


def test_a_single_failure_can_be_enough():
    one = circuit(failures_to_open=1, failing_s_to_open=0.3)
    fail(one, 1)
    assert one.state.state == "open"


def test_it_opens_after_so_many_failures_in_a_row():
    one = circuit(failures_to_open=3)
    fail(one, 2)
    assert one.state.state == "closed"
    fail(one)
    assert one.state.state == "open"


def test_failures_of_all_threads_count_together():
    one, together = circuit(failures_to_open=10), threading.Barrier(10)

    def work():
        together.wait(10)
        raise StoreUnavailable("no answer")

    with ThreadPoolExecutor(10) as threads:
        calls = [threads.submit(one.call_once, work) for _ in range(10)]
    assert [type(call.exception()) for call in calls] == [StoreUnavailable] * 10
    assert one.state[:2] == ("open", 10)


def test_an_answer_in_between_begins_the_count_anew():
    one = circuit(failures_to_open=3)
    for work in [Line(), *(Line(failures=1, error=answer) for answer in ANSWERS)]:
        fail(one, 2)
        assert one.state.failures == 2
        with contextlib.suppress(NotFound, PreconditionFailed, StoreRefused):
            one.call_once(work)
        assert one.state == ("closed", 0, 0, 0.0, "")


def test_while_it_is_open_calls_are_refused_at_once_and_not_made():
    one, line, begun = opened(open_s=30, first_wait_s=10, longest_wait_s=10), Line(), time.time()
    for ask in (one.call, one.call_once):
        with pytest.raises(StoreUnavailable, match="the store doesn't answer") as caught:
            ask(line)
        assert caught.value.remedy
        assert "no answer 1" in caught.value.message
    assert line.calls == 0
    assert time.time() - begun < 5


def test_no_more_tries_are_made_once_it_has_opened():
    line = Line(failures=99)
    one = circuit(retries=10, failures_to_open=3)
    with pytest.raises(StoreUnavailable) as caught:
        one.call(line)
    assert line.calls == 3
    assert caught.value is line.errors[-1], "the caller learns what really went wrong"


def test_another_ones_failures_end_the_tries_of_a_call():
    one = circuit(retries=10, failures_to_open=4, first_wait_s=0.2, longest_wait_s=0.2)
    line = Line(failures=99)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(one.call, line)
        while not line.calls:
            time.sleep(0.005)
        fail(one, 3)
        assert isinstance(call.exception(10), StoreUnavailable)
    assert line.calls == 1


# Half-open


def test_after_a_while_a_single_call_is_let_through_and_success_closes_it():
    one, running, go_on = opened(), threading.Event(), threading.Event()
    wait_until_half_open(one)

    def slow():
        running.set()
        assert go_on.wait(10)
        return "answer"

    with ThreadPoolExecutor(1) as threads:
        probe = threads.submit(one.call_once, slow)
        assert running.wait(10)
        others = Line()
        for _ in range(5):
            with pytest.raises(StoreUnavailable, match="doesn't answer"):
                one.call_once(others)
        assert others.calls == 0
        assert one.state.state == "half_open"
        go_on.set()
        assert probe.result(10) == "answer"
    assert one.state == ("closed", 0, 0, 0.0, "")
    assert one.call_once(others) == "answer"


def test_a_failure_opens_it_again_for_as_long():
    one = opened(open_s=0.3, failures_to_open=5)
    wait_until_half_open(one)
    fail(one)
    assert one.state.state == "open"
    line = Line()
    with pytest.raises(StoreUnavailable, match="doesn't answer"):
        one.call_once(line)
    assert line.calls == 0
    wait_until_half_open(one)
    assert one.call_once(line) == "answer"
    assert one.state.state == "closed"


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.code)
def test_an_error_that_is_an_answer_closes_it_too(answer):
    one = opened()
    wait_until_half_open(one)
    with pytest.raises(type(answer)):
        one.call_once(Line(failures=1, error=answer))
    assert one.state.state == "closed"


def test_a_bug_while_it_is_half_open_lets_the_next_call_find_out():
    one = opened()
    wait_until_half_open(one)
    with pytest.raises(OSError):
        one.call_once(Line(failures=1, error=OSError("the file is gone")))
    assert one.state.state == "half_open"
    assert one.call_once(Line()) == "answer"
    assert one.state.state == "closed"


def test_a_patient_call_waits_for_the_one_that_finds_out():
    one, running = opened(first_wait_s=0.2, longest_wait_s=0.2), threading.Event()
    wait_until_half_open(one)

    def slow():
        running.set()
        time.sleep(0.05)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(one.call_once, slow)
        assert running.wait(10)
        line = Line()
        assert one.call(line) == "answer"
    assert line.calls == 1


def test_a_call_that_comes_just_after_a_failed_one_is_refused():
    """It saw that the circuit is half-open before the other one's failure opened it again."""
    one, line = opened(open_s=0.3), Line()
    wait_until_half_open(one)
    lock = one._probing

    class LateLock:
        def acquire(self, blocking):
            one._probing = lock
            fail(one)
            return lock.acquire(blocking)

    one._probing = LateLock()
    with pytest.raises(StoreUnavailable, match="doesn't answer"):
        one.call_once(line)
    assert line.calls == 0
    wait_until_half_open(one)
    assert one.call_once(line) == "answer", "the lock was given back"


# Working


def test_calls_run_at_the_same_time():
    one, together = circuit(), threading.Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(one.call, lambda: together.wait(10)) for _ in range(8)]
    assert sorted(call.result() for call in calls) == list(range(8))


def test_the_state_can_be_asked_while_calls_are_under_way():
    one, asked = circuit(), threading.Event()
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(one.call_once, lambda: asked.wait(10))
        assert one.state.state == "closed"
        asked.set()
        assert call.result(10)


# What it tells


def test_a_fresh_circuit_is_closed_and_knows_of_no_failure():
    assert circuit().state == ("closed", 0, 0, 0.0, "")


def test_the_state_tells_failures_and_the_first_line_of_the_last_error():
    one = circuit()
    fail(one)
    with pytest.raises(StoreUnavailable):
        one.call_once(Line(failures=1, error=StoreUnavailable("reset", remedy="Try later.")))
    assert one.state == ("closed", 2, 0, 0.0, "reset")


def test_the_state_tells_when_the_next_try_is():
    one = opened(open_s=5)
    assert 3 < one.state.next_try_s <= 5
    assert opened(open_s=0.01).state.next_try_s <= 1


def test_retries_of_all_threads_are_counted():
    one = circuit(failures_to_open=10**6, first_wait_s=1e-6, longest_wait_s=1e-6)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(one.call, [Line(failures=2) for _ in range(500)]))
    finally:
        sys.setswitchinterval(interval)
    assert one.state.retries == 1000


def test_opening_and_closing_are_logged_once_each():
    with capture_logs() as logs:
        one = opened(failures_to_open=2)
        with pytest.raises(StoreUnavailable):
            one.call_once(Line())
        wait_until_half_open(one)
        one.call_once(Line())
        one.call_once(Line())
    assert [(entry["event"], entry["name"]) for entry in logs] == [
        ("circuit_open", "the store"),
        ("circuit_closed", "the store"),
    ]
    assert "no answer 1" in logs[0]["error"]


def test_retries_log_nothing_of_their_own(caplog):
    """The library's own lines would hold the arguments of what is called."""
    with capture_logs() as logs:
        circuit().call(Line(failures=2))
    assert (logs, caplog.records) == ([], [])
