"""One try of a process by its owner: the record stays true while the work runs, and ends once.

The owner renews its lease several times before it could expire, reports progress, log lines,
measurements and results to the registry, and polls it for a request to cancel. After it has lost
the lease it writes nothing any more.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

import structlog

from loradash.domain import process as changes
from loradash.domain.engine_use import EngineUse
from loradash.domain.events import (
    CheckpointWritten,
    Done,
    Event,
    Failed,
    ImageWritten,
    PhaseChanged,
    Resumed,
    SampleWritten,
    StepDone,
    Stopped,
    Terminal,
    Warned,
)
from loradash.domain.process import Problem, ProcessRecord, Progress, merged_warnings
from loradash.errors import (
    DiskFull,
    LeaseLost,
    LoradashError,
    RegistryUnavailable,
    ResultsNotStored,
)
from loradash.registry.change_feed import Announcement, Announcing
from loradash.registry.registry import Metric, NewLine, ProcessRegistry
from loradash.runtime.log_pump import LogPump
from loradash.runtime.patience import AWAY, Patience
from loradash.runtime.results import NewArtifact, ResultKeeper
from loradash.runtime.supervisor import StopRequest
from loradash.storage import keys
from loradash.storage.store import ObjectStore
from loradash.telemetry.masking import masked

log = structlog.get_logger("loradash.attempt")

Result = TypeVar("Result")

TICK_S = 0.5
"""How often steps and log lines are written, and how often a request to cancel is polled for."""

_CHECK_DISK_S = 5.0


class Timing(NamedTuple):
    """Seconds: how long a lease holds, what a cancelled engine gets; tries until given up.

    ``store_patience_s`` is how long an object store or a registry that is away is waited for, and
    ``stop_grace_s`` how long by an owner who was asked to stop; ``report_interval_s`` is the time
    between two writes of steps and log lines, and ``poll_interval_s`` that between two polls for a
    cancel, if not with every tick: where each write costs money they are reported less often.
    """

    lease_s: float
    cancel_grace_s: float
    max_attempts: int
    store_patience_s: float = 0.0
    report_interval_s: float = 0.0
    poll_interval_s: float = 0.0
    stop_grace_s: float = 0.0


class Attempt:
    """An owner's work on one process. Use as a context manager; `finish` says how it ended."""

    def __init__(
        self,
        registry: ProcessRegistry,
        store: ObjectStore,
        record: ProcessRecord,
        stop: StopRequest,
        timing: Timing,
        *,
        environment: dict[str, str] | None = None,
        on_event: Callable[[Event], None] | None = None,
        disk_is_low: Callable[[], bool] = lambda: False,
    ) -> None:
        assert record.lease is not None
        self.record = record
        self.id = record.id
        self.number = record.attempt_count
        self.stop = stop
        self.environment = environment or {}
        self.token = record.lease.token
        self._registry = registry
        self._timing = timing
        self._on_event = on_event
        self._disk_is_low = disk_is_low
        self._checked_disk_s = 0.0
        self._progress = record.progress
        self._rewind_to: tuple[int, tuple[StepDone, ...]] | None = None
        self._began_training = False
        self._lock = threading.Lock()
        self._metrics: list[Metric] = []
        self._lines: list[NewLine] = []
        self._pump: LogPump | None = None
        self._due = threading.Event()
        self._over = threading.Event()
        self._unsubscribe: Callable[[], None] = _nothing
        self._renewed_s = time.monotonic() - _age_s(record, timing)
        self._shown = record.progress
        self._warnings: tuple[str, ...] = ()
        self._shown_warnings: tuple[str, ...] = ()
        self._results_wait = False
        self._patience = Patience(
            timing.store_patience_s, stop, timing.stop_grace_s,
            while_waiting=self._shown_as_waiting, process_id=record.id,
        )  # fmt: skip
        self.keeper = ResultKeeper(registry, store, record.id, self.token)
        self._ticker = threading.Thread(target=self._tick_on, name=f"attempt-{record.id}")
        self._ticker.daemon = True

    def __enter__(self) -> "Attempt":
        if isinstance(self._registry, Announcing):
            self._unsubscribe = self._registry.subscribe(self._announced)
        self._ticker.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._unsubscribe()
        self._end_ticker()
        self.keeper.close()

    @property
    def lost(self) -> bool:
        """Whether the lease was lost: the process is queued again, or another owner's."""
        return self.stop.reason == "lease_lost"

    def follow_log(self, path: Path) -> None:
        """Copy what the engine will print into this file to the process's log."""
        self._pump = LogPump(path)

    def works_with(self, engine: EngineUse) -> None:
        """Note the engine that works now. Raises `LeaseLost`, and what the registry raises."""
        if engine != self.record.engine:
            self.record = self._registry.change(
                self.id, lambda one: changes.worked_by(one, self.token, engine)
            )

    def say(self, text: str) -> None:
        """Write a line of our own into the process's log."""
        with self._lock:
            self._lines.append(NewLine(self.number, datetime.now(UTC), "loradash", _plain(text)))
        self._due.set()

    def warn(self, text: str) -> None:
        """Note what the user should know, in the record and in the process's log."""
        with self._lock:
            self._warnings = merged_warnings(self._warnings, [_plain(text)])
        self.say(f"warning: {text}")

    def show(self, phase: str, detail: str = "") -> None:
        """Tell what is being done before the engine can."""
        with self._lock:
            self._progress = self._progress.model_copy(update={"phase": phase, "detail": detail})

    def event(self, event: Event) -> None:
        """Take one event of the engine: record, measurements, log and results follow."""
        match event:
            case StepDone():
                self._step(event)
            case PhaseChanged():
                self._phase(event)
            case Resumed():
                self._resumed(event.step, event.steps)
                self.say(f"continuing after step {event.step}")
            case SampleWritten():
                path = Path(event.path)
                self.keeper.later(NewArtifact("sample", path, path.name, event.step, event.index))
                self.say(f"sample at step {event.step}: {path.name}")
            case ImageWritten():
                path = Path(event.path)
                self.keeper.later(NewArtifact("image", path, path.name, None, event.index))
                self.say(f"image {path.name} (seed {event.seed}, {event.duration_s:.1f} s)")
            case CheckpointWritten():
                self.keeper.checkpoint_later(Path(event.path), event.step)
                self.say(f"checkpoint at step {event.step} ({event.size_bytes} bytes)")
            case Warned():
                self.warn(event.message)
            case _:
                pass
        if self._on_event:
            self._on_event(event)

    def finish(self, ending: Terminal) -> Terminal:
        """Write the end into the record, after all results are stored; return what was written.

        A lost lease isn't an error here: the record belongs to another owner, and stays as it is.
        Raises `RegistryUnavailable` if the end couldn't be written within the whole patience: the
        record stays ours until the lease has expired, and whoever takes it up then finds all that
        was stored.
        """
        if isinstance(ending, Stopped) and self.stop.reason == "disk_full":
            ending = failure(_no_room(), resumable=True)
        try:
            self.patiently(self.keeper.finish)
        except LeaseLost:
            self._superseded()
        except (ResultsNotStored, DiskFull, *AWAY) as error:
            self._results_wait = isinstance(error, AWAY)
            if isinstance(ending, Done):
                given_up = self._results_wait and self.stop.count
                ending = Stopped(time_s=time.time()) if given_up else failure(error, resumable=True)
            else:
                self.warn(str(error))
        self.say(_end_text(ending))
        self._end_ticker()
        tries = 0

        def write_end() -> None:
            nonlocal tries
            tries += 1
            self._write_end(ending)

        try:
            self._patience(write_end, insist=True)
        except LeaseLost:
            if tries == 1 or not self._end_has_arrived():
                self._superseded()
        return ending

    def patiently(self, work: Callable[[], Result]) -> Result:
        """Work, and wait while the registry or the object store is away; see `Patience`.

        At last raises `RegistryUnavailable` or `StoreUnavailable`.
        """
        return self._patience(work)

    @contextmanager
    def _shown_as_waiting(self) -> Iterator[None]:
        before = self._progress
        self.show(before.phase or "uploading", "waiting for the object store")
        try:
            yield
        finally:
            self.show(before.phase, before.detail)

    def _write_end(self, ending: Terminal) -> None:
        self._write()
        if self._results_wait:  # the outage is over, or the store's goes on without the registry's
            with suppress(ResultsNotStored, DiskFull, *AWAY):
                self.keeper.finish()
                self._results_wait = False
        self.record = self._registry.change(self.id, self._final_change(ending))

    def _end_has_arrived(self) -> bool:
        """Whether the record has our end, the answer to an earlier try having got lost.

        The end of an attempt whose owner was superseded is written by others, as "lost".
        """
        record = self._registry.get(self.id)
        note = next((one for one in record.attempts if one.number == self.number), None)
        if note is None or note.ending in ("", "lost"):
            return False
        self.record = record
        return True

    def _final_change(self, ending: Terminal) -> Callable[[ProcessRecord], ProcessRecord]:
        def change(record: ProcessRecord) -> ProcessRecord:
            now = datetime.now(UTC)
            if isinstance(ending, Done):
                prefix = keys.results(self.id)
                return changes.completed(record, self.token, now=now, output_prefix=prefix)
            if isinstance(ending, Failed):
                problem = Problem(
                    code=ending.code, message=_plain(ending.message),
                    remedy=_plain(ending.remedy), resumable=ending.resumable,
                    problems=tuple(_plain(problem) for problem in ending.problems[:50]),
                )  # fmt: skip
                return changes.failed(record, self.token, problem, now)
            # Nobody would go on by himself with a process whose job has ended.
            if record.cancel_requested_at or self.stop.reason in ("cancel", "job_ended"):
                return changes.cancelled(record, self.token, now)
            if self.stop.reason == "shutdown":
                return changes.released(record, self.token, now)
            # Another program has signalled the engine; handled as if the worker were lost.
            return changes.expired(
                record.owned_by(self.token), now=now, max_attempts=self._timing.max_attempts,
                owner_is_gone=True,
            )  # fmt: skip

        return change

    def _step(self, event: StepDone) -> None:
        if not self._began_training:
            self._resumed(event.step - 1)
        with self._lock:
            self._metrics.append(_metric(event, self.number, datetime.now(UTC)))
            self._progress = self._progress.model_copy(
                update={
                    "step": event.step, "total_steps": event.total_steps, "loss": event.loss,
                    "learning_rate": event.learning_rate, "steps_per_s": event.steps_per_s,
                    "eta_s": event.eta_s, "detail": "",
                }
            )  # fmt: skip

    def _phase(self, event: PhaseChanged) -> None:
        update: dict[str, object] = {"phase": event.phase, "detail": event.detail}
        if event.phase == "generating":
            update |= {"step": event.done or 0, "total_steps": event.total or 0}
        elif event.total:
            update["detail"] = f"{event.detail} {event.done or 0}/{event.total}".strip()
        with self._lock:
            changed = event.phase != self._progress.phase
            self._progress = self._progress.model_copy(update=update)
        if changed:
            if event.phase not in ("training", "sampling", "saving"):
                self.say(f"{event.phase} {event.detail}".strip())
            self._due.set()

    def _resumed(self, step: int, before: tuple[StepDone, ...] = ()) -> None:
        """The attempt goes on after this step; what is known of later ones is taken back.

        Of the steps ``before``, those are added that an earlier owner died too early to write.
        """
        self._began_training = True
        with self._lock:
            self._progress = self._progress.model_copy(update={"step": step})
            self._rewind_to = step, before

    def _tick_on(self) -> None:
        reachable = True
        reported_s = 0.0
        report_interval_s = min(
            self._timing.report_interval_s, self._timing.lease_s / 4
        )  # a report renews the lease
        while not self._over.is_set():
            is_due = self._due.wait(max(TICK_S, self._timing.poll_interval_s))
            self._due.clear()
            try:
                self._check_disk()
                if is_due or time.monotonic() - reported_s >= report_interval_s:
                    reported_s = time.monotonic()
                    self._write()
                self._poll_for_cancel()
                reachable = True
            except LeaseLost:
                self._superseded()
                return
            except (RegistryUnavailable, OSError) as error:
                # The work goes on: a late report is better than work thrown away.
                if reachable:
                    log.warning("registry_unreachable", process_id=self.id, error=str(error))
                reachable = False
                self._over.wait(TICK_S)
            except Exception:  # what couldn't be reported is dropped; the lease must not be
                log.exception("attempt_not_reported", process_id=self.id)

    def _write(self) -> None:
        """Bring everything new into the registry. Raises `LeaseLost`."""
        with self._lock:
            rewind_to, self._rewind_to = self._rewind_to, None
            metrics, self._metrics = self._metrics, []
            lines, self._lines = self._lines, []
            progress, warnings = self._progress, self._warnings
        if self._pump:
            lines += [
                NewLine(self.number, datetime.now(UTC), "engine", text)
                for text in self._pump.new_lines(at_end=self._over.is_set())
            ]
        try:
            if rewind_to is not None:
                self._rewind(*rewind_to)
                rewind_to = None
            if metrics:
                self._registry.append_metrics(self.id, self.token, metrics)
                metrics = []
            if lines:
                self._registry.append_log(self.id, self.token, lines)
                lines = []
        except (RegistryUnavailable, OSError):
            with self._lock:
                self._metrics, self._lines = metrics + self._metrics, lines + self._lines
                self._rewind_to = rewind_to if self._rewind_to is None else self._rewind_to
            raise
        due = time.monotonic() - self._renewed_s > self._timing.lease_s / 4
        if due or progress != self._shown or warnings != self._shown_warnings:
            self._renew(progress, warnings)

    def _rewind(self, step: int, before: tuple[StepDone, ...]) -> None:
        self._registry.change(
            self.id, lambda one: changes.resumed_at(one, self.token, step, datetime.now(UTC))
        )
        self._registry.forget_metrics(self.id, self.token, step)
        if before:
            known = self._registry.metrics(
                self.id, after_step=before[0].step - 1, limit=len(before)
            )
            steps = {row.step for row in known}
            missing = [self._metric_of_before(one) for one in before if one.step not in steps]
            self._registry.append_metrics(self.id, self.token, missing)

    def _metric_of_before(self, event: StepDone) -> Metric:
        done_at = datetime.fromtimestamp(event.time_s, UTC)
        began = [one.number for one in self.record.attempts if one.started_at <= done_at]
        return _metric(event, began[-1] if began else 1, done_at)

    def _renew(self, progress: Progress, warnings: tuple[str, ...]) -> None:
        began_s = time.monotonic()
        self._registry.change(
            self.id,
            lambda record: changes.renewed(
                record, self.token, now=datetime.now(UTC), lease_s=self._timing.lease_s,
                progress=progress, warnings=warnings,
            ),
        )  # fmt: skip
        self._shown, self._shown_warnings, self._renewed_s = progress, warnings, began_s

    def _check_disk(self) -> None:
        """Stop the work, with a checkpoint, while there is still room for one."""
        now_s = time.monotonic()
        if now_s - self._checked_disk_s < _CHECK_DISK_S or self.stop.count:
            return
        self._checked_disk_s = now_s
        if self._disk_is_low():
            log.warning("disk_is_low", process_id=self.id)
            self.say("the disk is nearly full: stopping with a checkpoint")
            self.stop("disk_full")

    def _announced(self, announcement: Announcement) -> None:
        """Poll for a cancel at once if this program has just written one."""
        record = announcement.record
        if record and record.id == self.id and record.cancel_requested_at and not self.stop.count:
            self._due.set()

    def _poll_for_cancel(self) -> None:
        record = self._registry.get(self.id).owned_by(self.token)
        if record.cancel_requested_at and not self.stop.count:
            log.info("cancel_received", process_id=self.id)
            self.say("cancel requested")
            self.stop("cancel", self._timing.cancel_grace_s)

    def _superseded(self) -> None:
        """End the work at once: its results would be refused."""
        if not self.lost:
            log.warning("lease_lost", process_id=self.id, attempt=self.number)
        self.stop.reason = "lease_lost"
        self.stop.count += 2

    def _end_ticker(self) -> None:
        self._over.set()
        self._due.set()
        if self._ticker.is_alive():
            self._ticker.join()


def _nothing() -> None:
    """The end of no subscription."""


def _age_s(record: ProcessRecord, timing: Timing) -> float:
    """How long its owner has had the lease: its taking may have been answered late."""
    assert record.lease is not None
    left_s = (record.lease.expires_at - datetime.now(UTC)).total_seconds()
    return max(0.0, timing.lease_s - left_s)


def _metric(event: StepDone, attempt: int, done_at: datetime) -> Metric:
    return Metric(
        step=event.step, attempt=attempt, time=done_at, loss=event.loss,
        learning_rate=event.learning_rate, grad_norm=event.grad_norm,
        steps_per_s=event.steps_per_s,
    )  # fmt: skip


def _no_room() -> DiskFull:
    return DiskFull(
        "stopped because the disk of the workspace is nearly full",
        remedy="Free space, or lower LORADASH_MIN_FREE_DISK_MB, and resume it.",
    )


def failure(error: Exception, *, resumable: bool = False) -> Failed:
    """Return the terminal event for an error."""
    if isinstance(error, LoradashError):
        return Failed(
            time_s=time.time(), code=error.code, message=error.message, remedy=error.remedy,
            problems=error.problems, resumable=resumable,
        )  # fmt: skip
    return Failed(
        time_s=time.time(), code=LoradashError.code,
        message=f"internal error: {type(error).__name__}: {error}"[:500],
        remedy="The server's log has the traceback. Please report it.", resumable=resumable,
    )  # fmt: skip


def _plain(text: str) -> str:
    """The text as a record may hold it: without secrets that libraries put into their errors.

    And without lone surrogates, which names of files may hold; they can't be stored.
    """
    return masked(text.encode("utf-8", "replace").decode())


def _end_text(ending: Terminal) -> str:
    if isinstance(ending, Done):
        return "completed"
    if isinstance(ending, Failed):
        return f"failed ({ending.code}): {ending.message}"
    return "stopped" + (f" at step {ending.step}" if ending.step is not None else "")
