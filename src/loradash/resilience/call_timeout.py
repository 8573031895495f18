"""An answer within a time, from something that may take longer or for ever."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class CallWithTimeout(Generic[Result]):
    """Asks in a thread, one question at a time; the thread never keeps the program alive."""

    def __init__(self, ask: Callable[[], Result], name: str) -> None:
        self._ask = ask
        self._name = name
        self._lock = threading.Lock()
        self._question: _Question[Result] | None = None

    def result(self, timeout_s: float) -> Result:
        """Return the answer, or raise what the question raises.

        Raises `TimeoutError` if there is none in time; the next call then waits for the same one.
        """
        with self._lock:
            if self._question is None or not self._question.is_alive():
                self._question = _Question(self._ask, self._name)
                self._question.start()
            question = self._question
        question.join(timeout_s)
        return question.answer(timeout_s)


class _Question(threading.Thread, Generic[Result]):
    def __init__(self, ask: Callable[[], Result], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._ask = ask
        self._answers: list[Result] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Ask."""
        try:
            self._answers.append(self._ask())
        except BaseException as error:  # noqa: BLE001 - raised again where the answer is wanted
            self._error = error

    def answer(self, waited_s: float) -> Result:
        """Return the answer, or raise."""
        if self._error is not None:
            raise self._error
        if not self._answers:
            raise TimeoutError(f"no answer for {waited_s:g} s")
        return self._answers[0]
