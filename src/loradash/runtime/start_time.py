"""When a process started: with its pid, what tells it from a later one that got the same pid."""

import os
from pathlib import Path

import psutil

SAME_START_S = 1.0
"""Two start times that are nearer than this are the same."""


def started_s(pid: int) -> float:
    """Return when a process started, in seconds; since the boot, where that is told.

    Not by the clock: that is set at times, and every program would seem to be another one. Raises
    `psutil.NoSuchProcess`.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return float(psutil.Process(pid).create_time())
