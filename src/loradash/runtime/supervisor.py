"""One run of an engine from its start to its end, and the truth about how it ended.

The child's exit code alone proves nothing: a run is complete only if the engine said so and its
result verifies. Everything else is stopped or failed, with a code and a sentence.
"""

import enum
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

from loradash.domain.events import Done, Event, Failed, Stopped, Terminal
from loradash.engines.engine import Command
from loradash.errors import EngineCrashed, EngineStalled, EngineUnavailable, TimedOut
from loradash.runtime.child import Child, tail
from loradash.runtime.orphans import ChildRecords
from loradash.storage.disk import as_disk_full

_POLL_S = 0.1
_STEP_BETWEEN_SIGNALS_S = 5.0


class EndCause(enum.StrEnum):
    """Why a run is being ended from outside."""

    REQUEST = "request"
    TIMEOUT = "timeout"
    STALL = "stall"


StopReason = Literal["", "cancel", "shutdown", "job_ended", "lease_lost", "disk_full"]


@dataclass(eq=False)
class StopRequest:
    """Set from another thread or a signal handler to end a run; twice to end it at once."""

    count: int = 0
    reason: StopReason = ""
    """Why, as the first one who asked said."""
    grace_s: float | None = None
    """Time for a checkpoint, if it is another one than usual."""
    asked_at_s: float = 0.0
    """When it was asked for first, on the monotonic clock."""

    def __call__(self, reason: StopReason = "", grace_s: float | None = None) -> None:
        """Ask once more."""
        if not self.count:
            self.reason, self.grace_s = reason, grace_s
            self.asked_at_s = time.monotonic()
        self.count += 1


@dataclass(frozen=True)
class Limits:
    """How long a run may take, be silent, and take to stop; in seconds."""

    timeout_s: float
    stall_s: float
    grace_s: float


@dataclass
class _Ending:
    """A run that is being ended, and when the next stronger signal is due."""

    reason: EndCause
    signals: list[tuple[float, signal.Signals]] = field(default_factory=list)


def supervise(  # noqa: PLR0913 - what a run is made of
    command: Command,
    parse: Callable[[str], Event | None],
    log_path: Path,
    on_event: Callable[[Event], None],
    limits: Limits,
    stop: StopRequest,
    has_checkpoint: Callable[[], bool],
    *,
    records: ChildRecords | None = None,
    what: str = "",
    keep_open: tuple[int, ...] = (),
    lines: "SimpleQueue[str] | None" = None,
) -> Terminal:
    """Run an engine and hand on its events; return how it ended.

    The terminal event is returned and not handed to ``on_event``: the caller reports it once the
    result is verified. When this returns, no process of the engine's group is alive. ``lines`` that
    come meanwhile go to the engine's stdin, such as `SavesNow.save_line`.
    """
    try:
        child = Child(
            command.argv, command.environment, command.working_directory, log_path,
            records=records, what=what, keep_open=keep_open,
        )  # fmt: skip
    except OSError as error:
        if full := as_disk_full(error, "Free space, and resume it."):
            return _failed(full.code, full.message, True, full.remedy)
        return _failed(
            EngineUnavailable.code, f"the engine can't be started: {error}", False,
            "Check the installation with `loradash doctor`.",
        )  # fmt: skip
    with child:
        terminal, ending = _follow(child, parse, on_event, limits, stop, lines or SimpleQueue())
        exit_code = child.wait(_step_between_signals_s(stop))
    return _verdict(terminal, ending, exit_code, log_path, limits, has_checkpoint)


def _follow(
    child: Child,
    parse: Callable[[str], Event | None],
    on_event: Callable[[Event], None],
    limits: Limits,
    stop: StopRequest,
    lines: "SimpleQueue[str]",
) -> tuple[Terminal | None, _Ending | None]:
    terminal: Terminal | None = None
    ending: _Ending | None = None
    started = last_sign = time.monotonic()
    while not child.ended:
        line = child.next_line(_POLL_S)
        now = time.monotonic()
        if line is not None:
            last_sign = now
            event = parse(line)
            if isinstance(event, Done | Failed | Stopped):
                terminal = event
            elif event is not None:
                on_event(event)
        while not lines.empty():
            child.send(lines.get())
        if ending is None:
            reason = _reason_to_end(stop, now - started, now - last_sign, limits)
            if reason:
                grace_s = limits.grace_s if stop.grace_s is None else stop.grace_s
                ending = _Ending(
                    reason, _signal_plan(now, grace_s, _step_between_signals_s(stop), reason)
                )
        if stop.count > 1:
            child.kill()
        while ending and ending.signals and ending.signals[0][0] <= now:
            child.signal(ending.signals.pop(0)[1])
    return terminal, ending


def _reason_to_end(
    stop: StopRequest, running_s: float, silent_s: float, limits: Limits
) -> EndCause | None:
    if stop.count:
        return EndCause.REQUEST
    if running_s > limits.timeout_s:
        return EndCause.TIMEOUT
    if silent_s > limits.stall_s:
        return EndCause.STALL
    return None


def _step_between_signals_s(stop: StopRequest) -> float:
    """Who allows little time for a checkpoint wants it ended soon."""
    return _STEP_BETWEEN_SIGNALS_S if stop.grace_s is None else min(1.0, _STEP_BETWEEN_SIGNALS_S)


def _signal_plan(
    now: float, grace_s: float, step_s: float, reason: EndCause
) -> list[tuple[float, signal.Signals]]:
    """SIGINT asks for a checkpoint; then SIGTERM; then the group is killed."""
    if reason is EndCause.STALL:
        return [(now, signal.SIGTERM), (now + step_s, signal.SIGKILL)]
    return [
        (now, signal.SIGINT),
        (now + grace_s, signal.SIGTERM),
        (now + grace_s + step_s, signal.SIGKILL),
    ]


def _verdict(
    terminal: Terminal | None,
    ending: _Ending | None,
    exit_code: int | None,
    log_path: Path,
    limits: Limits,
    has_checkpoint: Callable[[], bool],
) -> Terminal:
    if isinstance(terminal, Done) and exit_code == 0:
        return terminal  # done is done, even if a stop came while it ended
    if isinstance(terminal, Failed):
        return terminal
    if ending and ending.reason is EndCause.TIMEOUT:
        return _failed(
            TimedOut.code, f"stopped after its time limit of {limits.timeout_s:g} s",
            has_checkpoint(), "Resume it, or raise TRAINING_TIMEOUT or GENERATION_TIMEOUT.",
        )  # fmt: skip
    if ending and ending.reason is EndCause.STALL:
        return _failed(
            EngineStalled.code, f"no output for {limits.stall_s:g} s",
            has_checkpoint(), f"See {log_path}; resume it.",
        )  # fmt: skip
    if ending:
        return terminal if isinstance(terminal, Stopped) else Stopped()
    if isinstance(terminal, Stopped):
        return terminal
    how = "it was still running" if exit_code is None else _exit_text(exit_code)
    last = tail(log_path, 3)
    return _failed(
        EngineCrashed.code,
        f"the engine ended without a result ({how})",
        has_checkpoint(),
        f"Last lines of {log_path}: {' | '.join(last)[:500]}" if last else f"See {log_path}.",
    )


def _exit_text(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"


def _failed(code: str, message: str, resumable: bool, remedy: str) -> Failed:
    return Failed(
        time_s=time.time(), code=code, message=message, remedy=remedy, resumable=resumable
    )
