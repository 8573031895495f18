"""How commands talk: live progress for people at a terminal, lines for logs, JSON for programs."""

import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import structlog

from loradash.cli import terminal
from loradash.cli.lines import say, say_json
from loradash.domain.events import (
    CheckpointWritten,
    Event,
    ImageWritten,
    PhaseChanged,
    Resumed,
    SampleWritten,
    StepDone,
    Warned,
)
from loradash.domain.sizes import size_text
from loradash.runtime.supervisor import StopRequest

if TYPE_CHECKING:
    from rich.console import Console

_LINE_EVERY_S = 10.0

log = structlog.get_logger("loradash.output")


class Ending(NamedTuple):
    """What the command line makes of a terminal event."""

    status: str
    exit_code: int


ENDINGS = {
    "done": Ending("completed", 0),
    "failed": Ending("failed", 1),
    "stopped": Ending("stopped", 130),
}

ENDED_EXIT_CODES = {"completed": 0, "failed": 1, "cancelled": 130}


class Reporter(Protocol):
    """Shows events while something runs."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def event(self, event: Event) -> None:
        """Show one event."""
        ...

    def note(self, text: str) -> None:
        """Say something to a person; with --json it isn't printed."""
        ...


def reporter(as_json: bool, what: str) -> Reporter:
    """Return the reporter that fits: JSON lines, a live display, or plain lines."""
    if as_json:
        return UnfailingReporter(JsonReporter())
    console = terminal.make_console()
    live = console.is_terminal
    return UnfailingReporter(LiveReporter(console, what) if live else LineReporter(what))


def to_stderr(*lines: str) -> None:
    """Write lines to standard error."""
    say(*lines, to=sys.stderr)


def print_result(facts: dict[str, Any]) -> None:
    """Write the last line for programs."""
    say_json({"type": "result", **facts})


@contextmanager
def stop_on_signals(stop: StopRequest, note: Callable[[str], None]) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into a stop request; the second one ends the work at once."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop("cancel")
        if stop.count == 1:
            note("Stopping after a checkpoint (press again to stop at once) ...")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class UnfailingReporter:
    """Shows by another reporter. One that fails, for whatever reason, doesn't end the work.

    Also called from a signal handler, where the stream may just be in use.
    """

    def __init__(self, shown: Reporter) -> None:
        self._shown = shown
        self._failed = False

    def __enter__(self) -> Self:
        self._try(self._shown.__enter__)
        return self

    def __exit__(self, *_: object) -> None:
        self._try(self._shown.__exit__)

    def event(self, event: Event) -> None:
        """Show one event, if that can be."""
        self._try(lambda: self._shown.event(event))

    def note(self, text: str) -> None:
        """Say something, if that can be."""
        self._try(lambda: self._shown.note(text))

    def _try(self, show: Callable[[], object]) -> None:
        try:
            show()
        except Exception:
            if not self._failed:
                self._failed = True
                log.warning("progress_not_shown", exc_info=True)


class JsonReporter:
    """One JSON object a line, as the engine has sent it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def event(self, event: Event) -> None:
        """Write the event."""
        say_json(event.model_dump(mode="json"))

    def note(self, text: str) -> None:
        """Say nothing."""


class LineReporter:
    """Plain lines, a few seconds apart, for logs and pipes."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._phase = ""
        self._next_line_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def event(self, event: Event) -> None:
        """Write a line if the event is worth one."""
        if isinstance(event, StepDone):
            last = event.step == event.total_steps
            if last or event.step == 1 or time.monotonic() >= self._next_line_s:
                self._next_line_s = time.monotonic() + _LINE_EVERY_S
                self.note(f"step {event.step}/{event.total_steps}  {_step_text(event)}")
        elif isinstance(event, PhaseChanged):
            text = f"{event.phase} {event.detail}".strip()
            if text != self._phase and event.phase not in ("training", "saving"):
                self.note(f"{text} ...")
            self._phase = text
        elif text := _event_text(event):
            self.note(text)

    def note(self, text: str) -> None:
        """Write a line."""
        say(text)


class LiveReporter:
    """A live bar with loss, speed and ETA; what stays to be read is printed above it."""

    def __init__(self, console: "Console", what: str) -> None:
        self._console = console
        self._progress = terminal.work_progress(console)
        self._what = what
        self._steps = self._progress.add_task(what, total=1, visible=False, rest="")
        self._phase = self._progress.add_task("starting", total=None, rest="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.update(self._phase, visible=False)
        self._progress.stop()

    def event(self, event: Event) -> None:
        """Move the bars."""
        if isinstance(event, StepDone):
            self._progress.update(
                self._steps, visible=True, total=event.total_steps, completed=event.step,
                description=self._what, rest=_step_text(event),
            )  # fmt: skip
        elif isinstance(event, PhaseChanged):
            self._progress.update(
                self._phase,
                visible=event.phase != "training",
                description=f"{event.phase} {event.detail}".strip(),
                total=event.total,
                completed=event.done or 0,
            )
        elif text := _event_text(event):
            style = "yellow" if isinstance(event, Warned) else ""
            self._console.print(terminal.plain_text(text, style), soft_wrap=True)

    def note(self, text: str) -> None:
        """Print above the bars."""
        self._console.print(terminal.plain_text(text), soft_wrap=True)


def _step_text(event: StepDone) -> str:
    parts = [f"loss {event.loss:.4f}", f"lr {event.learning_rate:.2e}"]
    if event.steps_per_s:
        slow = event.steps_per_s < 1
        parts.append(
            f"{1 / event.steps_per_s:.1f} s/step" if slow else f"{event.steps_per_s:.1f} steps/s"
        )
    if event.eta_s is not None:
        parts.append(f"ETA {duration_text(event.eta_s)}")
    return "  ".join(parts)


def _event_text(event: Event) -> str:
    match event:
        case Warned():
            return f"warning: {event.message}"
        case Resumed():
            return f"continuing after step {event.step}"
        case CheckpointWritten():
            return f"checkpoint at step {event.step} ({size_text(event.size_bytes)})"
        case SampleWritten():
            return f"sample at step {event.step}: {event.path}"
        case ImageWritten():
            return f"{event.path}  (seed {event.seed}, {event.duration_s:.1f} s)"
        case _:
            return ""


def duration_text(seconds: float) -> str:
    """Return a duration such as ``1:02:03`` or ``0:42``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def fail_lines(
    code: str, message: str, remedy: str, problems: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return a failure as people read it."""
    lines = (f"failed ({code}): {message}", *(f"  - {problem}" for problem in problems))
    return (*lines, remedy) if remedy else lines


def program() -> str:
    """How this program can be called again: by its name, or by its path if that isn't on PATH."""
    name = Path(sys.argv[0]).name
    if name == "__main__.py":
        return f"{sys.executable} -m loradash"
    return name if shutil.which(name) else sys.argv[0]
