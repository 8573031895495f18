"""RunPod's SDK, kept to this file: the environment it reads, its import cost, its traps.

Measured with runpod 1.12.0. `docs/deploy-runpod.md` tells what follows for users.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType, ModuleType
from typing import Any

import structlog

log = structlog.get_logger("loradash.worker")

Job = dict[str, Any]
Handler = Callable[[Job], Awaitable[dict[str, Any]]]

_PR_SET_PDEATHSIG = 1
_ANSWER_S = 20.0
_QUICK_S = 1.0  # no long poll without a job takes less
_LONGEST_PAUSE_S = 10.0
_REPORT_INTERVAL_S = 60.0
_MOST_TEXTS = 100


def load() -> Any:
    """Import the SDK and return ``runpod.serverless``.

    Two thirds of its import are spent on describing the CPU for a debugger, and a tenth on SSH for
    its command line; a worker uses neither, so these modules are left out. The checks that it makes
    by itself would open a CUDA context in this process, which works on no GPU; ours take their
    place.
    """
    os.environ.setdefault("RUNPOD_SKIP_AUTO_SYSTEM_CHECKS", "true")
    os.environ.setdefault("RUNPOD_SKIP_GPU_CHECK", "true")
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")  # its default prints every output
    with _left_out("cpuinfo", "paramiko"):
        import runpod.serverless

    return runpod.serverless


@contextlib.contextmanager
def _left_out(*names: str) -> Iterator[None]:
    """Have an import find nothing in these modules, unless they were imported before."""
    names = tuple(name for name in names if name not in sys.modules)
    for name in names:
        stub = ModuleType(name)
        stub.get_cpu_info = dict  # type: ignore[attr-defined]  # called while it is imported
        sys.modules[name] = stub
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def start(
    serverless: Any,
    handler: Handler,
    checks: list[Callable[[], None]],
    on_signal: Callable[[], None],
    grace_s: float,
) -> None:
    """Take jobs until a signal ends the worker. Returns where the SDK returns.

    At a signal ``on_signal`` is called, and then this process ends as soon as no job is in hand, at
    the latest after ``grace_s``. The SDK alone would keep its long poll open, take one more job and
    never run it.
    """
    from runpod.serverless.modules import rp_scale
    from runpod.serverless.modules.worker_state import JobsProgress

    for check in checks:
        serverless.register_fitness_check(check)
    _let_children_die_with_us()
    signals = _Signals(on_signal, grace_s)
    pace = Pace()
    rp_scale.log = SeldomErrors(rp_scale.log)

    async def handle(job: Job) -> dict[str, Any]:
        pace.job_came()
        return await handler(job)

    def concurrency(_current: int) -> int:
        signals.install()  # after the SDK's own, which are set when its loop begins
        return pace.concurrency(has_job=JobsProgress().get_job_count() > 0)

    serverless.start({"handler": handle, "concurrency_modifier": concurrency})


class Pace:
    """Says before each take whether to ask for a job now.

    A take is a long poll, after which the SDK asks again at once, however it has ended: an endpoint
    that refuses connections or answers with an error would be asked hundreds of times a second. Of
    a concurrency of 0 the SDK makes a pause of a second.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked_s: float | None = None
        self._in_vain = 0
        self._pause_until_s = 0.0
        self._told_s: float | None = None
        self._came = False

    def job_came(self) -> None:
        """A take has brought a job."""
        self._came = True

    def concurrency(self, *, has_job: bool) -> int:
        """Return 1 to ask for a job, 0 to let a second pass. ``has_job``: one is in hand."""
        now_s = self._clock()
        if now_s < self._pause_until_s:
            return 0
        asked_s, self._asked_s = self._asked_s, now_s
        came, self._came = self._came, False
        if asked_s is None:  # the first one, and the one after a pause
            return 1
        if has_job or came or now_s - asked_s >= _QUICK_S:
            self._in_vain = 0
            return 1
        self._in_vain += 1
        if self._in_vain == 1:
            return 1
        pause_s = min(_LONGEST_PAUSE_S, 2.0 ** (self._in_vain - 2))
        self._pause_until_s, self._asked_s = now_s + pause_s, None
        if self._told_s is None or now_s - self._told_s >= _REPORT_INTERVAL_S:
            self._told_s = now_s
            log.warning("job_take_brings_nothing", times_in_a_row=self._in_vain, pause_s=pause_s)
        return 0


class SeldomErrors:
    """The SDK's logger of its loops, which repeat an error each second, without the repetitions."""

    def __init__(self, logger: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._last_s: dict[str, float] = {}

    def error(self, message: object, *details: Any) -> None:
        """Log an error unless the same one was logged within a minute."""
        text, now_s = str(message), self._clock()
        if now_s - self._last_s.get(text, -_REPORT_INTERVAL_S) < _REPORT_INTERVAL_S:
            return
        if len(self._last_s) >= _MOST_TEXTS:
            self._last_s.clear()
        self._last_s[text] = now_s
        self._logger.error(message, *details)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)


async def tell_progress(job: Job, progress: dict[str, Any]) -> None:
    """Send a job's progress and wait until it has arrived.

    The SDK's own ``progress_update`` sends in a thread that nobody waits for, so that progress can
    arrive after the result and make a finished job look unfinished.
    """
    from runpod.http_client import AsyncClientSession
    from runpod.serverless.modules.rp_http import send_result

    async with AsyncClientSession() as session:
        await send_result(session, {"status": "IN_PROGRESS", "output": progress}, job)


def _let_children_die_with_us() -> None:
    """Forked children end with this process, even if it is killed.

    The SDK's child would otherwise go on telling RunPod that the dead worker's job is being worked
    on. Engines aren't forked in this sense: they notice by themselves and write a checkpoint.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    os.register_at_fork(after_in_child=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))


class _Signals:
    def __init__(self, on_signal: Callable[[], None], grace_s: float) -> None:
        self._on_signal = on_signal
        self._grace_s = grace_s
        self._is_installed = False
        self._is_ending = False

    def install(self) -> None:
        """Take the place of the SDK's handlers, which don't tell the one who works."""
        if self._is_installed:
            return
        self._is_installed = True
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            signal.signal(number, self._chained(before))

    def _chained(self, before: Any) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            self._on_signal()
            if not self._is_ending:
                self._is_ending = True
                threading.Thread(target=self._end, name="end", daemon=True).start()
            if callable(before):
                before(number, frame)

        return handle

    def _end(self) -> None:
        """Leave once no job is in hand: the SDK would wait for its polls, up to 90 s."""
        from runpod.serverless.modules.worker_state import JobsProgress

        deadline_s = time.monotonic() + self._grace_s + _ANSWER_S
        while JobsProgress().get_job_count() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        log.info("worker_ends", unfinished=JobsProgress().get_job_count())
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(0)
