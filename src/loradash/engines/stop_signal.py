"""What a child process is asked to do: by signal, by a word on stdin, or because its parent died.

The standard library is all that this needs, so that any engine's child may use it.
"""

import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from loradash.errors import Interrupted

SAVE_LINE = "save"
"""A line on stdin that asks for a checkpoint after the present step."""
SAMPLE_LINE = "sample"
"""A line on stdin that asks for previews after the present step."""


class StopSignal:
    """Set once the work is asked to end; the work checks it between steps."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._save = threading.Event()
        self._sample = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether the work should end at the next good moment."""
        return self._stop.is_set()

    def request(self) -> None:
        """Ask for the end."""
        self._stop.set()

    def request_save(self) -> None:
        """Ask for a checkpoint after the present step."""
        self._save.set()

    def take_save_request(self) -> bool:
        """Whether a checkpoint was asked for since the last call."""
        requested = self._save.is_set()
        self._save.clear()
        return requested

    def request_sample(self) -> None:
        """Ask for previews after the present step."""
        self._sample.set()

    def take_sample_request(self) -> bool:
        """Whether previews were asked for since the last call."""
        requested = self._sample.is_set()
        self._sample.clear()
        return requested

    def wait(self, seconds: float) -> None:
        """Wait so long, or until the end is asked for."""
        self._stop.wait(seconds)

    def check(self) -> None:
        """Raise `Interrupted` if the end was asked for."""
        if self.requested:
            raise Interrupted("stopped on request")

    def listen_to_signals(self) -> None:
        """SIGINT and SIGTERM ask for the end, the second one forces it; SIGUSR1 asks for a save."""
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGUSR1, lambda *_: self.request_save())

    def listen_to_stdin(self) -> None:
        """Take ``stop``, ``save`` and ``sample`` from stdin; its end is the parent's: stop."""
        threading.Thread(target=self._read_stdin, name="stdin", daemon=True).start()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._stop.set()

    def _read_stdin(self) -> None:
        for line in stdin_lines():
            word = line.strip()
            if word == SAVE_LINE.encode():
                self.request_save()
            elif word == SAMPLE_LINE.encode():
                self.request_sample()
            elif word == b"stop":
                self._stop.set()
        self._stop.set()


def stdin_lines() -> Iterator[bytes]:
    """Yield the lines of stdin, for a daemon thread.

    It reads the descriptor itself: a thread that waits inside ``sys.stdin`` holds a lock that the
    interpreter wants when it ends, and ends it with SIGABRT.
    """
    rest = b""
    while block := os.read(0, 65536):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
