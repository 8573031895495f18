"""Who works on a process: this machine, this program. Enough to see that it is gone.

A lease that nobody renews runs out after a while. For an owner on the same machine there is no need
to wait: if no process has its pid and its start time, it is gone.
"""

import os
import platform
from functools import cache
from pathlib import Path

import psutil

from loradash.runtime.start_time import SAME_START_S, started_s

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_name = ""


@cache
def this_owner() -> str:
    """Name of this program as an owner: ``machine/pid/start time``."""
    return f"{_machine()}/{os.getpid()}/{started_s(os.getpid()):.2f}"


def is_gone(owner: str) -> bool:
    """Whether this owner worked on this machine and doesn't exist any more.

    False for owners elsewhere: nobody can know that from here.
    """
    machine, _, rest = owner.rpartition("/")[0].rpartition("/")
    started_text = owner.rpartition("/")[2]
    if machine != _machine():
        return False
    try:
        pid, start_s = int(rest), float(started_text)
        if abs(started_s(pid) - start_s) > SAME_START_S:
            return True
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except (ValueError, psutil.Error):
        return False


def name_machine(name: str) -> None:
    """Give this machine a name that people know it by, instead of the one that it has."""
    global _name
    _name = name
    _machine.cache_clear()
    this_owner.cache_clear()


@cache
def _machine() -> str:
    """Name of what our pids are relative to: this boot of the machine, and this container.

    Containers may share the machine's name, so their numbering of processes is part of it.
    """
    try:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()[:8]
        numbering = "".join(filter(str.isdigit, str(Path("/proc/self/ns/pid").readlink())))
    except OSError:
        boot, numbering = f"{psutil.boot_time():.0f}", "0"
    return f"{_name or platform.node() or 'localhost'}-{boot}-{numbering}"
