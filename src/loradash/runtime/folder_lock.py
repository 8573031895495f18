"""Holding a process's folder, so that one program at a time works in it or removes it.

The system lets go of the lock when everybody who has its descriptor is gone. An engine inherits the
descriptor: as long as one of its processes lives, nobody else can begin.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from loradash.errors import AlreadyRunning

LOCK_FILE = ".lock"
_LOOK_EVERY_S = 0.1


@contextlib.contextmanager
def folder_lock(
    folder: Path, *, patience_s: float = 0.0, while_waiting: Callable[[], None] = lambda: None
) -> Iterator[int]:
    """Create the folder if it is missing, hold it, and yield the descriptor that holds it.

    Raises `AlreadyRunning` if another program has it for longer than ``patience_s``, and what
    ``while_waiting`` raises.
    """
    deadline = time.monotonic() + patience_s
    while (descriptor := _try(folder)) is None:
        if time.monotonic() >= deadline:
            raise AlreadyRunning(
                f"process {folder.name} is being run by another program",
                remedy="Wait for it, or stop that program.",
            )
        while_waiting()
        time.sleep(_LOOK_EVERY_S)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try(folder: Path) -> int | None:
    """The descriptor of the lock, or None if another program has it or has removed the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_FILE
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(path, descriptor):
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is still the one at this path."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
