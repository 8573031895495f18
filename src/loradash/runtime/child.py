"""One engine as a child process: its group, its event pipe, its log, and how it is ended.

The child leads a process group of its own, so that a signal reaches whatever it has started, and
Ctrl-C in our terminal doesn't reach it by itself. Events come on a pipe of their own; everything
it prints goes to the log file without passing through us. Its stdin stays open as long as we live:
its end tells the child that we are gone.
"""

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

from loradash.domain.events import EVENTS_FD_VARIABLE
from loradash.runtime.child_environment import inherited
from loradash.runtime.orphans import ChildRecords

_END = object()
_DRAIN_S = 1.0  # for lines still in the pipe when the child has exited


class Child:
    """A running engine. Use as a context manager: leaving it ends the whole group.

    ``records`` remembers it for the case that we die; ``keep_open`` are descriptors that the group
    holds as long as it lives, such as a locked file.
    """

    def __init__(
        self,
        argv: tuple[str, ...],
        environment: Mapping[str, str],
        working_directory: Path,
        log_path: Path,
        *,
        records: ChildRecords | None = None,
        what: str = "",
        keep_open: tuple[int, ...] = (),
    ) -> None:
        read_end, write_end = os.pipe()
        try:
            with log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    argv,
                    cwd=working_directory,
                    env={
                        **inherited(os.environ),
                        **environment,
                        EVENTS_FD_VARIABLE: str(write_end),
                    },
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(write_end, *keep_open),
                    start_new_session=True,
                )
            self.pid = self._process.pid
            if records:
                self._remember(records, what)
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        self._records = records
        self._lines: queue.Queue[object] = queue.Queue()
        self._ended = False
        self._exited_s: float | None = None
        self._outbox: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._write, name=f"stdin-{self.pid}", daemon=True).start()
        reader = threading.Thread(
            target=self._pump,
            args=(os.fdopen(read_end, "rb"),),
            name=f"events-{self.pid}",
            daemon=True,
        )
        reader.start()

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.kill()

    def next_line(self, timeout_s: float) -> str | None:
        """Return the next event line, or None if there is none within the time or ever again."""
        if self._ended:
            return None
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            self._end_if_exited()
            return None
        if line is _END:
            self._ended = True
            return None
        assert isinstance(line, str)
        return line

    @property
    def ended(self) -> bool:
        """Whether no more lines will come: the pipe is closed, or its writer gone for a while.

        A grandchild may hold the pipe open after the child has exited; it goes with the group.
        """
        return self._ended

    def send(self, line: str) -> bool:
        """Hand a line to the child's stdin; False if the child is gone.

        The writing happens in a thread: a child that doesn't read must not block us.
        """
        if self._process.poll() is not None:
            return False
        self._outbox.put(line.encode() + b"\n")
        return True

    def signal(self, number: signal.Signals) -> None:
        """Signal the whole group; nothing happens if it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the child's exit code; None if it still runs after the time."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End the whole group at once, and close our ends of the pipes."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        self._outbox.put(b"")
        if self._records:
            self._records.remove(self.pid)

    def group_is_gone(self, timeout_s: float = 5.0) -> bool:
        """Whether no process of the group is left, waiting for it a little."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.02)
        return False

    def _remember(self, records: ChildRecords, what: str) -> None:
        """Note the child; one that can't be noted is ended, since nobody would find it."""
        try:
            records.add(self.pid, what)
        except BaseException:
            with self._process:  # closes its stdin and waits
                self.signal(signal.SIGKILL)
            raise

    def _end_if_exited(self) -> None:
        if self._process.poll() is None:
            return
        now = time.monotonic()
        self._exited_s = self._exited_s or now
        self._ended = now - self._exited_s > _DRAIN_S

    def _write(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            while data := self._outbox.get():
                stdin.write(data)
                stdin.flush()

    def _pump(self, pipe: IO[bytes]) -> None:
        with pipe:
            for raw in pipe:
                self._lines.put(raw.decode("utf-8", "replace").rstrip("\n"))
        self._lines.put(_END)


def tail(path: Path, lines: int = 15, max_bytes: int = 64_000) -> list[str]:
    """Return the last lines of a log file; none if it doesn't exist."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - max_bytes))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip()][-lines:]
