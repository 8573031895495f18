"""One server per workspace: a lock that the system lets go of, however its holder ends."""

import fcntl
import time
from pathlib import Path
from typing import IO

from loradash.errors import AlreadyRunning


def only_one(lock_path: Path, patience_s: float = 0.0) -> IO[str]:
    """Return the open file that is the lock. Raises `AlreadyRunning` if another server has it."""
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_s
    lock = lock_path.open("a")
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                lock.close()
                raise AlreadyRunning(
                    f"another loradash server is running in {lock_path.parent}",
                    remedy="Stop it, or give this one another WORKSPACE_PATH.",
                ) from error
        time.sleep(0.05)


def server_is_running(lock_path: Path) -> bool:
    """Whether a server works in the workspace that this lock belongs to."""
    try:
        only_one(lock_path).close()
    except AlreadyRunning:
        return True
    return False
