"""The generator that stays warm: started at the first request, ended when nobody needs it.

The base model takes seconds to minutes to load and gigabytes to hold. So the engine's process is
kept between generations and ended after an idle time, on request (a training wants the memory), or
when it misbehaves; ending the process is the only way to give all GPU memory back.
"""

import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from loradash.domain.events import Done, Event, Failed, Ready, Stopped, Terminal
from loradash.domain.generation import GenerationRequest
from loradash.engines.engine import WarmGenerator
from loradash.errors import EngineCrashed, EngineStalled, TimedOut
from loradash.runtime.child import Child, tail
from loradash.runtime.orphans import ChildRecords
from loradash.runtime.supervisor import StopRequest

_POLL_S = 0.1
_END_GRACE_S = 1.0  # it has nothing to save


class WarmPipeline:
    """Runs generations one after another in one long-lived engine process. Thread-safe."""

    def __init__(
        self,
        engine: WarmGenerator,
        log_path: Path,
        idle_unload_s: float,
        *,
        environment: Mapping[str, str] | None = None,
        records: ChildRecords | None = None,
    ) -> None:
        self._engine = engine
        self._environment = dict(environment or {})
        self._records = records
        self._log_path = log_path
        self._idle_unload_s = idle_unload_s
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._idle_timer: threading.Timer | None = None
        self.starts = 0
        """How often the process had to be started."""

    @property
    def pid(self) -> int | None:
        """Process id of the generator, or None while it isn't running."""
        return self._child.pid if self._child else None

    def generate(  # noqa: PLR0913 - what a run is made of
        self,
        request_id: str,
        request: GenerationRequest,
        adapters: tuple[Path, ...],
        folder: Path,
        on_event: Callable[[Event], None],
        stop: StopRequest,
        timeout_s: float,
        stall_s: float,
        done: tuple[int, ...] = (),
    ) -> Terminal:
        """Generate into ``folder``; wait for running generations first. Return how it ended.

        Images whose numbers are in ``done`` are there already and not drawn.
        """
        line = self._engine.generation_line(request_id, request, adapters, folder, done)
        with self._lock:
            self._cancel_idle_timer()
            try:
                return self._run(request_id, line, on_event, stop, timeout_s, stall_s)
            finally:
                self._start_idle_timer()

    def unload(self) -> None:
        """End the process and give its memory back; waits for a running generation."""
        with self._lock:
            self._cancel_idle_timer()
            self._end()

    close = unload

    def _run(  # noqa: C901 - the states of one request, in order
        self,
        request_id: str,
        line: str,
        on_event: Callable[[Event], None],
        stop: StopRequest,
        timeout_s: float,
        stall_s: float,
    ) -> Terminal:
        child = self._running_child()
        if not child.send(line):  # it died while idle
            self._end()
            child = self._running_child()
            child.send(line)
        started = last_sign = time.monotonic()
        terminal: Terminal | None = None
        cancelled_s: float | None = None
        while not child.ended:
            text = child.next_line(_POLL_S)
            now = time.monotonic()
            if text is not None:
                last_sign = now
                event = self._engine.parse(text)
                if isinstance(event, Ready) and terminal is not None:
                    return terminal
                if event is None or event.request_id != request_id:
                    continue
                if isinstance(event, Done | Failed | Stopped):
                    terminal = event
                else:
                    on_event(event)
            if stop.count and cancelled_s is None:
                cancelled_s = now
                child.send(f'{{"type": "cancel", "request_id": "{request_id}"}}')
            overdue = (
                cancelled_s is not None
                and stop.grace_s is not None
                and (now - cancelled_s > stop.grace_s)
            )
            if stop.count > 1 or overdue:
                self._end()
                return Stopped(time_s=time.time(), request_id=request_id)
            if now - started > timeout_s:
                self._end()
                return self._failed(
                    TimedOut.code, request_id, f"stopped after its time limit of {timeout_s:g} s",
                    "Ask for fewer images or steps, or raise GENERATION_TIMEOUT.",
                )  # fmt: skip
            if now - last_sign > stall_s:
                self._end()
                return self._failed(
                    EngineStalled.code, request_id, f"no output for {stall_s:g} s",
                    f"See {self._log_path}.",
                )  # fmt: skip
        self._end()
        if terminal is not None:
            return terminal
        last = " | ".join(tail(self._log_path, 3))[:500]
        return self._failed(
            EngineCrashed.code, request_id, "the generator ended without a result",
            f"Last lines of {self._log_path}: {last}",
        )  # fmt: skip

    def _running_child(self) -> Child:
        if self._child is None:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            command = self._engine.serve_command(self._log_path.parent)
            self._child = Child(
                command.argv, {**command.environment, **self._environment},
                command.working_directory, self._log_path, records=self._records, what="generator",
            )  # fmt: skip
            self.starts += 1
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.signal(signal.SIGTERM)
        child.wait(_END_GRACE_S)
        child.kill()

    def _start_idle_timer(self) -> None:
        if self._child is not None:
            self._idle_timer = threading.Timer(self._idle_unload_s, self._unload_if_idle)
            self._idle_timer.daemon = True
            self._idle_timer.start()

    def _cancel_idle_timer(self) -> None:
        if self._idle_timer:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _unload_if_idle(self) -> None:
        # A generation that holds the lock will start a timer of its own when it ends.
        if self._lock.acquire(blocking=False):
            try:
                if self._idle_timer is threading.current_thread():
                    self._end()
            finally:
                self._lock.release()

    def _failed(self, code: str, request_id: str, message: str, remedy: str) -> Failed:
        return Failed(
            time_s=time.time(), request_id=request_id, code=code, message=message, remedy=remedy
        )
