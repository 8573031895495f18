"""The log files of a folder: how big they are, their last lines, and emptying them.

Files are emptied in place and not deleted, since they are open: in our own handlers, in another
program, in an engine. All of those append, so they go on at the new end. Only files of known names
are touched, only directly in the folder, and never through a link.
"""

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from loradash.domain.log_types import LOG_TYPES, ClearedLogs, LogType
from loradash.errors import InvalidRequest
from loradash.telemetry.logging import APP_FILE, ERRORS_FILE, REQUESTS_FILE, rotation_paused

_CURRENT: dict[LogType, str] = {"app": APP_FILE, "requests": REQUESTS_FILE, "errors": ERRORS_FILE}
_ENGINES = re.compile(r"generator.*\.txt", re.DOTALL)
_MAX_TAIL_BYTES = 2_000_000


class LogFile(NamedTuple):
    """One log file as it is now."""

    name: str
    log_type: LogType
    size_bytes: int
    modified: datetime


class Cleared(NamedTuple):
    """A file that was emptied, and what was in it."""

    name: str
    size_bytes: int


class LogFiles:
    """The logs of the program and of its engines in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sizes(self) -> list[LogFile]:
        """Return all log files, sorted by name."""
        files = []
        for entry in self._entries():
            log_type = _log_type(entry.name)
            status = _status(entry)
            if log_type and status:
                modified = datetime.fromtimestamp(status.st_mtime, UTC)
                files.append(LogFile(entry.name, log_type, status.st_size, modified))
        return sorted(files)

    def clear(self, log_type: ClearedLogs) -> list[Cleared]:
        """Empty the files of one type, or all; older ones that were rotated away are deleted.

        Returns those that held something. Raises `InvalidRequest` for an unknown type.
        """
        _check(log_type, (*LOG_TYPES, "all"))
        cleared = []
        with rotation_paused():
            for file in self.sizes():
                if log_type in (file.log_type, "all"):
                    size_bytes = self._empty(file.name)
                    if size_bytes:
                        cleared.append(Cleared(file.name, size_bytes))
        return cleared

    def tail(self, log_type: LogType, lines: int) -> list[str]:
        """Return the last lines of one type, oldest first, from at most the last 2 MB.

        ``system`` is the engine's log that was written last. Raises `InvalidRequest`.
        """
        _check(log_type, LOG_TYPES)
        files = [file for file in self.sizes() if file.log_type == log_type]
        if log_type == "system":
            files = sorted(files, key=lambda file: file.modified)[-1:]
        else:
            files.sort(key=lambda file: _age(file.name))
        text, budget = b"", _MAX_TAIL_BYTES
        for file in files:  # the newest first
            text = self._end_of(file.name, budget - len(text)) + text
            if text.count(b"\n") > lines or len(text) >= budget:
                break
        if len(text) >= budget:
            text = text.partition(b"\n")[2]  # the first line isn't whole
        found = text.decode("utf-8", "replace").replace("\r", "\n").split("\n")
        return [line for line in found if line.strip()][-lines:] if lines > 0 else []

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._folder) as entries:
                return list(entries)
        except FileNotFoundError:
            return []

    def _empty(self, name: str) -> int:
        """Empty a file and return its size; 0 if it isn't there or isn't ours to empty."""
        with _opened(self._folder / name, os.O_WRONLY) as descriptor:
            if descriptor is None:
                return 0
            size_bytes = os.fstat(descriptor).st_size
            if _age(name):
                (self._folder / name).unlink(missing_ok=True)
            else:
                os.ftruncate(descriptor, 0)
            return size_bytes

    def _end_of(self, name: str, max_bytes: int) -> bytes:
        with _opened(self._folder / name, os.O_RDONLY) as descriptor:
            if descriptor is None or max_bytes <= 0:
                return b""
            size_bytes = os.fstat(descriptor).st_size
            return os.pread(descriptor, max_bytes, max(0, size_bytes - max_bytes))


def _check(log_type: str, known: Sequence[str]) -> None:
    if log_type not in known:
        raise InvalidRequest(
            f"log_type: {log_type[:40]!r} is unknown", remedy=f"Choose one of {', '.join(known)}."
        )


def _log_type(name: str) -> LogType | None:
    """What a file's name says it is; None for all other files."""
    for log_type, current in _CURRENT.items():
        if re.fullmatch(re.escape(current) + r"(\.[1-9][0-9]?)?", name):
            return log_type
    return "system" if _ENGINES.fullmatch(name) else None


def _age(name: str) -> int:
    """0 for the file that is written to, 1 and more for those that were rotated away."""
    number = name.rpartition(".")[2]
    return int(number) if number.isdecimal() else 0


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


@contextlib.contextmanager
def _opened(path: Path, mode: int) -> Iterator[int | None]:
    """Open a plain file and no link, pipe or device that took its name meanwhile."""
    try:
        descriptor = os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            raise
        yield None
        return
    try:
        yield descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    finally:
        os.close(descriptor)
