"""What does it cost to keep the record of a training true, and how soon is it?

A real training, run as the server runs it: leases, progress, measurements, log lines and results
go into SQLite and the local store. The cost is our process's CPU time next to the engine's. The
latency is the time from an event that the engine has sent to the record that shows it, read by
another connection in a tight loop.
"""

import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from bench.measure import Cost, Row, judged, parser, reading, report
from bench.workload import training_config, write_images
from loradash.domain.events import CheckpointWritten, Event, StepDone
from loradash.domain.training_text import parse_training_text, training_text
from loradash.registry.sql import SqlRegistry
from loradash.runtime.supervisor import StopRequest
from loradash.settings import Settings
from loradash.telemetry import logging
from loradash.wiring.core import Core, make_core


def main() -> None:
    """Train, and print the table."""
    options = parser(__doc__, 3)
    options.add_argument("--steps", type=int, default=240)
    arguments = options.parse_args()
    logging.configure(None, "warning", as_json=False, stream=sys.stderr)
    shares, step_latencies, phase_latencies = [], [], []
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as root:
            share, steps, phases = train(Path(root), arguments.steps)
        shares.append(share)
        step_latencies.append(statistics.median(steps))
        phase_latencies.append(statistics.median(phases))
    rows = [
        judged(
            Row("CPU time of supervision / of the training", "", shares),
            "at most 0.02", lambda value: value <= 0.02,
        ),
        judged(
            Row("a step's event to its record", "s", step_latencies),
            "at most 1 s", lambda value: value <= 1,
        ),
        Row("a checkpoint's event to the list of artifacts", "s", phase_latencies),
    ]  # fmt: skip
    report(rows, arguments)


def train(root: Path, steps: int) -> tuple[float, list[float], list[float]]:
    """Return the share of CPU time, and latencies in seconds of steps and of checkpoints."""
    write_images(root / "images", root / "unused")
    settings = Settings(
        WORKSPACE_PATH=root / "workspace", LORADASH_OBJECTS_PATH=root / "objects",
        LORADASH_DEVICE="cpu", LORADASH_THREADS=1, LORADASH_OFFLINE=True,
    )  # fmt: skip
    core = make_core(settings)
    try:
        return _train(core, root, steps)
    finally:
        core.close()


def _train(core: Core, root: Path, steps: int) -> tuple[float, list[float], list[float]]:
    config = parse_training_text(
        training_text(training_config(root / "images", steps)),
        {"save.save_every": max(1, steps // 2)},
    )
    record = core.training.submit(core.training.check(config), taking=core.runner.taking("cpu"))
    watcher = _Watcher(core.settings.registry_url, record.id)
    costs: list[tuple[Cost, Cost]] = []
    engine_pid = 0

    def mark(event: Event) -> None:
        nonlocal engine_pid
        if isinstance(event, StepDone):
            watcher.told_step(event.step)
            engine_pid = engine_pid or _engine()
            # Our own CPU time without that of the watching thread, which is the measurement's.
            costs.append((reading(engine_pid), reading() - Cost(watcher.cpu_s, 0.0)))
        elif isinstance(event, CheckpointWritten):
            watcher.told_checkpoint(event.step)

    watcher.start()
    ending = core.runner.run(record, None, StopRequest(), mark)
    watcher.stop()
    if ending.type != "done":
        raise RuntimeError(f"the training failed: {ending}")
    dropped = steps // 5
    engine = costs[-1][0] - costs[dropped][0]
    ours = costs[-1][1] - costs[dropped][1]
    return ours.cpu_s / engine.cpu_s, watcher.step_latencies, watcher.checkpoint_latencies


class _Watcher:
    """Reads the record over a connection of its own and notes when it shows what was told."""

    def __init__(self, url: str, process_id: str) -> None:
        self._registry = SqlRegistry(url)
        self._id = process_id
        self._steps: dict[int, float] = {}
        self._checkpoints: dict[int, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.step_latencies: list[float] = []
        self.checkpoint_latencies: list[float] = []
        self.cpu_s = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._registry.close()

    def told_step(self, step: int) -> None:
        self._steps[step] = time.monotonic()

    def told_checkpoint(self, step: int) -> None:
        self._checkpoints[step] = time.monotonic()

    def _watch(self) -> None:
        shown = 0
        while not self._over.wait(0.02):
            step = self._registry.get(self._id).progress.step
            now = time.monotonic()
            if step != shown and step in self._steps:
                # The record leaps over steps; each one's latency ends when it is passed.
                passed = [one for one in self._steps if shown < one <= step]
                self.step_latencies += [now - self._steps[one] for one in passed]
                shown = step
            listed = {one.step for one in self._registry.artifacts(self._id, ["checkpoint"])}
            for one in [one for one in self._checkpoints if one in listed]:
                self.checkpoint_latencies.append(now - self._checkpoints.pop(one))
            self.cpu_s = time.thread_time()


def _engine() -> int:
    """Pid of the engine, which the service keeps to itself."""
    children = psutil.Process().children()
    return next(one.pid for one in children if "loradash.engines.diffusers" in one.cmdline())


if __name__ == "__main__":
    main()
