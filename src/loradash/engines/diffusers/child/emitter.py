"""Telling the parent what happens: one JSON object a line, on a pipe of its own."""

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from loradash.domain.events import EVENTS_FD_VARIABLE, Event, Failed, Phase, PhaseChanged, Warned
from loradash.errors import LoradashError


class Emitter:
    """Writes events to a file descriptor; thread-safe.

    Once nobody reads them any more, ``on_reader_gone`` is called and later events are dropped, so
    that the work can still write its checkpoint and end in good order.
    """

    def __init__(self, file_descriptor: int, on_reader_gone: Callable[[], None]) -> None:
        self._fd = file_descriptor
        self._on_reader_gone = on_reader_gone
        self._reader_gone = False
        self._lock = threading.Lock()
        self.request_id = ""

    @classmethod
    def from_environment(cls, on_reader_gone: Callable[[], None]) -> "Emitter":
        """Use the pipe that the parent has passed, which grandchildren must not hold open."""
        file_descriptor = int(os.environ.pop(EVENTS_FD_VARIABLE, "1"))
        if file_descriptor > 2:
            os.set_inheritable(file_descriptor, False)
        return cls(file_descriptor, on_reader_gone)

    def emit(self, event: Event) -> None:
        """Write one event."""
        stamp: dict[str, Any] = {"time_s": time.time()}
        if self.request_id:
            stamp["request_id"] = self.request_id
        line = event.model_copy(update=stamp).model_dump_json(exclude_defaults=False)
        data = line.encode() + b"\n"
        with self._lock:
            if self._reader_gone:
                return
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except BrokenPipeError:
                self._reader_gone = True
                self._on_reader_gone()

    def phase(
        self, phase: Phase, detail: str = "", done: int | None = None, total: int | None = None
    ) -> None:
        """Report a phase and how far it is."""
        self.emit(PhaseChanged(phase=phase, detail=detail, done=done, total=total))

    def fail(self, error: LoradashError, *, resumable: bool) -> None:
        """Report the error that ended the work."""
        self.emit(
            Failed(
                code=error.code,
                message=error.message,
                remedy=error.remedy,
                problems=error.problems,
                resumable=resumable,
            )
        )

    def warn(self, code: str, message: str) -> None:
        """Report something that the user should know."""
        self.emit(Warned(code=code, message=message))
