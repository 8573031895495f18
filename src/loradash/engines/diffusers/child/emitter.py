"""Telling the parent what happens: one JSON object a line, on a pipe of its own."""

import os
import threading
import time
from typing import Any

from loradash.domain.events import EVENTS_FD_VARIABLE, Event, Failed, Phase, PhaseChanged, Warned
from loradash.errors import LoradashError


class ParentGone(Exception):
    """Nobody reads the events any more."""


class Emitter:
    """Writes events to a file descriptor; thread-safe."""

    def __init__(self, file_descriptor: int) -> None:
        self._fd = file_descriptor
        self._lock = threading.Lock()
        self.request_id = ""

    @classmethod
    def from_environment(cls) -> "Emitter":
        """Use the pipe that the parent has passed, which grandchildren must not hold open."""
        file_descriptor = int(os.environ.pop(EVENTS_FD_VARIABLE, "1"))
        if file_descriptor > 2:
            os.set_inheritable(file_descriptor, False)
        return cls(file_descriptor)

    def emit(self, event: Event) -> None:
        """Write one event. Raises `ParentGone` if the other end is closed."""
        stamp: dict[str, Any] = {"time_s": time.time()}
        if self.request_id:
            stamp["request_id"] = self.request_id
        line = event.model_copy(update=stamp).model_dump_json(exclude_defaults=False)
        data = line.encode() + b"\n"
        with self._lock:
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except BrokenPipeError as error:
                raise ParentGone from error

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
