"""Engines that outlived their server: who they are, and how they are ended.

An engine sees the end of its stdin when our program dies, writes a checkpoint and stops. One that
hangs doesn't, and holds the GPU's memory until a person finds it. So every engine's process group
is noted in a file, and the next start ends what is left of it. A number alone proves nothing, since
the system gives pids out again: the time at which the process was created belongs to it.
"""

import contextlib
import os
import signal
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from loradash.runtime.start_time import SAME_START_S, started_s

Ending = Literal["by_itself", "terminated", "killed", "alive", "unreadable"]

_TERM_S = 3.0
_KILL_S = 10.0  # one that waits for a broken disk can't even be killed
_POLL_S = 0.05
_ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)  # a zombie only waits to be collected


class Orphan(NamedTuple):
    """An engine without a server, and how it ended; or a record that nobody can read.

    ``alive``: it couldn't be ended; its record stays for the next start. ``unreadable``: the
    record ``what`` was deleted and nothing else done.
    """

    pid: int
    what: str
    ending: Ending


class _Record(BaseModel):
    """One file: the leader of a process group, and the server that started it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int = Field(gt=1)  # killpg(0) would end ourselves, and 1 is the system's
    start_s: float
    what: str
    started_at: AwareDatetime
    machine: str
    server_pid: int
    server_start_s: float


class ChildRecords:
    """Records of running child process groups, one small file each.

    The folder belongs to one machine: a record from another one, or from before a restart, tells
    nothing about the processes here.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, pid: int, what: str) -> None:
        """Note a child that leads a group of its own; ``what`` is a process id or a name.

        Nothing is noted if it is gone already.
        """
        try:
            start_s = started_s(pid)
        except psutil.NoSuchProcess:
            return
        record = _Record(
            pid=pid,
            start_s=start_s,
            what=what,
            started_at=datetime.now(UTC),
            machine=_machine(),
            server_pid=os.getpid(),
            server_start_s=started_s(os.getpid()),
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._path(pid).with_suffix(".partial")
        partial.write_text(record.model_dump_json(), encoding="utf-8")
        partial.replace(self._path(pid))

    def remove(self, pid: int) -> None:
        """Forget a child whose group has ended; nothing happens if it isn't known."""
        self._path(pid).unlink(missing_ok=True)

    def end_orphans(self, grace_s: float) -> list[Orphan]:
        """End the groups whose server is gone, all at once, and return what became of them.

        They get ``grace_s`` to write a checkpoint by themselves, then SIGTERM, then SIGKILL.
        Children of another server that is alive, and other programs that got the same pid, are
        left alone. Children of this very program aren't: call it before the first is started.
        """
        records, unreadable = self._read()
        orphans = {}
        for record in records:
            if _has_a_server(record):
                continue
            if _is_alive(record):
                orphans[record.pid] = record.what
            else:
                self.remove(record.pid)
        ended = []
        for pid, ending in _end_groups(orphans, grace_s).items():
            ended.append(Orphan(pid, orphans[pid], ending))
            if ending != "alive":
                self.remove(pid)
        return unreadable + ended

    def _path(self, pid: int) -> Path:
        return self._folder / f"{pid}.json"

    def _read(self) -> tuple[list[_Record], list[Orphan]]:
        records, unreadable = [], []
        for path in sorted(self._folder.glob("*.json")):
            try:
                record = _Record.model_validate_json(path.read_bytes())
                if path != self._path(record.pid):
                    raise ValueError(f"{path.name} is about pid {record.pid}")
            except (OSError, ValidationError, ValueError):
                with contextlib.suppress(OSError):
                    path.unlink()
                unreadable.append(Orphan(0, path.name, "unreadable"))
            else:
                records.append(record)
        return records, unreadable


def _has_a_server(record: _Record) -> bool:
    """Whether another program that started the child is there and looks after it."""
    return (
        record.machine == _machine()
        and record.server_pid != os.getpid()
        and _process(record.server_pid, record.server_start_s) is not None
    )


def _is_alive(record: _Record) -> bool:
    """Whether anything of the very group that was noted is running."""
    if record.machine != _machine() or record.pid == os.getpgrp():
        return False
    if _process(record.pid, record.start_s):
        return True
    if _is_running(record.pid):  # another program that got the pid
        return False
    members = _living_members([record.pid])[record.pid]
    return bool(members) and all(_belongs_to(member, record) for member in members)


def _process(pid: int, start_s: float) -> psutil.Process | None:
    """The process if it is the one that was created then and hasn't ended."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        same = abs(started_s(pid) - start_s) <= SAME_START_S
        if same and process.status() not in _ENDED:
            return process
    return None


def _is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() not in _ENDED)
    except psutil.NoSuchProcess:
        return False


def _belongs_to(member: psutil.Process, record: _Record) -> bool:
    """Whether a process may descend from the leader, which isn't there to be asked."""
    try:
        in_session = os.getsid(member.pid) == record.pid
        return in_session and started_s(member.pid) >= record.start_s - SAME_START_S
    except (OSError, psutil.Error):
        return False


def _end_groups(groups: Collection[int], grace_s: float) -> dict[int, Ending]:
    """End process groups by stronger and stronger means; the waits are for all of them at once."""
    steps: tuple[tuple[signal.Signals | None, float, Ending], ...] = (
        (None, grace_s, "by_itself"),
        (signal.SIGTERM, _TERM_S, "terminated"),
        (signal.SIGKILL, _KILL_S, "killed"),
    )
    left = set(groups)
    endings: dict[int, Ending] = dict.fromkeys(groups, "alive")
    for number, wait_s, ending in steps:
        if number:
            _signal(left, number)
        still = _wait(left, wait_s)
        endings.update(dict.fromkeys(left - still, ending))
        left = still
    return endings


def _signal(groups: set[int], number: signal.Signals) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def _wait(groups: set[int], wait_s: float) -> set[int]:
    """Wait until no group has a living member; return those that have."""
    deadline = time.monotonic() + wait_s
    left = groups
    while left:
        left = {group for group, members in _living_members(left).items() if members}
        rest = deadline - time.monotonic()
        if rest <= 0:
            break
        if left:
            time.sleep(min(_POLL_S, rest))
    return left


def _living_members(groups: Collection[int]) -> Mapping[int, list[psutil.Process]]:
    """Those members of each process group that are more than zombies."""
    members: dict[int, list[psutil.Process]] = {group: [] for group in groups}
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.Error):
            found = members.get(os.getpgid(pid))
            if found is not None:
                process = psutil.Process(pid)
                if process.status() not in _ENDED:
                    found.append(process)
    return members


def _machine() -> str:
    """What pids are relative to: the boot of the machine, and the container's numbering."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
