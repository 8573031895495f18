"""Standard output and error that may go away: whoever only shows something must not end the work.

A reader that has closed its pipe (``| head``), a closed terminal and a full disk make every write
fail. What is shown is lost then; the work that it tells of goes on, and its exit code says how it
ended.
"""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, TextIO

_GONE_FOR_EVER = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)


class LossyStream:
    """Passes text on to a stream, and drops what it doesn't take."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None
        """Why something was dropped, the first time."""

    def write(self, text: str) -> int:
        """Write, or drop the text."""
        with self._losing():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line, or drop it."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, or drop what waits."""
        with self._losing():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = self.lost or error
            if error.errno in _GONE_FOR_EVER:
                self.drop_all()
        except ValueError:  # it was closed
            pass

    def drop_all(self) -> None:
        """Let everything that is still to be written go nowhere, at the interpreter's end too."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def open_standard_files() -> None:
    """Open what the caller has closed of descriptors 0 to 2, for nothing else may get their number.

    A database that is opened as descriptor 1 would be written to by whatever prints.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, mode)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


@contextlib.contextmanager
def lossy_output() -> Iterator[None]:
    """Let standard output and error lose what can't be written, for as long as this lasts."""
    before = sys.stdout, sys.stderr
    streams = LossyStream(sys.stdout), LossyStream(sys.stderr)
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
            if stream.lost:
                stream.drop_all()  # else the interpreter's last flush would change the exit code
        sys.stdout, sys.stderr = before


def at_hangup(handler: Callable[[int, FrameType | None], object]) -> None:
    """Call ``handler`` when the terminal is closed, unless ``nohup`` has that ignored."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, handler)


def outlive_the_terminal() -> None:
    """Go on when the terminal is closed, as under ``nohup``."""
    at_hangup(lambda _number, _frame: None)
