import threading

import pytest

from loradash.errors import NotFound
from loradash.resilience.call_timeout import CallWithTimeout


def test_a_quick_answer_is_returned_and_asked_for_anew_each_time():
    numbers = iter(range(9))
    promptly = CallWithTimeout(lambda: next(numbers), "test")
    assert [promptly.result(10), promptly.result(10)] == [0, 1]


def test_what_the_question_raises_is_raised():
    def ask():
        raise NotFound("nothing")

    with pytest.raises(NotFound):
        CallWithTimeout(ask, "test").result(10)


def test_a_slow_answer_is_not_waited_for_and_not_asked_for_twice():
    go_on, asked = threading.Event(), []

    def ask():
        asked.append(1)
        assert go_on.wait(30)
        return "late"

    promptly = CallWithTimeout(ask, "test")
    for _ in range(3):
        with pytest.raises(TimeoutError):
            promptly.result(0.02)
    go_on.set()
    assert promptly.result(10) == "late"
    assert asked == [1]


def test_the_thread_does_not_keep_the_program_alive():
    go_on, threads = threading.Event(), []

    def ask():
        threads.append(threading.current_thread())
        go_on.wait(30)

    with pytest.raises(TimeoutError):
        CallWithTimeout(ask, "test").result(0.05)
    assert threads[0].daemon
    go_on.set()
