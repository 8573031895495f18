"""What share of a training's CPU time goes into telling the parent about it?

The cost of one event: a child process runs our emitter (pydantic, JSON, a real pipe), paced like a
fast training so that each event wakes the reader; the parent runs our supervisor on it (reader
thread, parsing) and keeps each event in a file as the training service does. The same child also
runs with the pacing alone; what that costs is subtracted.

The cost of one training step is measured on a real training of the embedded base model with batch
4, run by the training service with its record in a registry in memory, and so is all that the
parent does meanwhile. The share is ours without a peer: cost of an event / cost of a step.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from bench.measure import Row, judged, parser, reading, report
from bench.workload import (
    REPOSITORY,
    make_engine,
    make_trainings,
    training_config,
    write_images,
)
from loradash.domain.events import Done, Event, StepDone, parse_event
from loradash.engines.diffusers.child.emitter import Emitter
from loradash.engines.engine import Command
from loradash.runtime.supervisor import Limits, StopRequest, supervise
from loradash.telemetry import logging

PAUSE_S = 0.002
LIMITS = Limits(timeout_s=600, stall_s=60, grace_s=1)
AT_MOST = 0.01


class EventCost(NamedTuple):
    """CPU seconds for one event."""

    child_s: float
    parent_s: float


class StepCost(NamedTuple):
    """CPU seconds for one training step."""

    child_s: float
    parent_s: float


def main() -> None:
    """Measure events and steps in turn, and report."""
    if sys.argv[1:2] == ["child"]:
        emit_events(int(sys.argv[2]))
        return
    options = parser(__doc__, repeats=5)
    options.add_argument("--events", type=int, default=2000)
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--dropped", type=int, default=20, help="first steps left out")
    arguments = options.parse_args()
    logging.configure(None, "warning", as_json=False, stream=sys.stderr)
    events: list[EventCost] = []
    steps: list[StepCost] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_images(root / "images", root / "unused")
        for number in range(arguments.repeats):
            events.append(event_cost(arguments.events, root))
            steps.append(step_cost(root, arguments.steps, arguments.dropped))
            print(f"repeat {number + 1}: {events[-1]} {steps[-1]}", file=sys.stderr)
    pairs = list(zip(events, steps, strict=True))
    rows = [
        Row("training step, child's CPU", "s", [step.child_s for step in steps]),
        Row("one event, child's CPU", "s", [event.child_s for event in events]),
        Row("one event, parent's CPU", "s", [event.parent_s for event in events]),
        judged(
            Row("events' share of the child's CPU time", "",
                [event.child_s / step.child_s for event, step in pairs]),
            "at most 0.01", lambda share: share <= AT_MOST,
        ),
        judged(
            Row("events' share, child and parent", "",
                [(event.child_s + event.parent_s) / step.child_s for event, step in pairs]),
            "at most 0.01", lambda share: share <= AT_MOST,
        ),
        Row("all that the parent does during a training / child's CPU", "",
            [step.parent_s / step.child_s for step in steps]),
    ]  # fmt: skip
    report(rows, arguments, events=arguments.events)


def emit_events(count: int) -> None:
    """Be the child: pace without events, then with events; report the CPU seconds of an event."""
    emitter = Emitter.from_environment(on_reader_gone=lambda: None)
    started = time.process_time()
    for _ in range(count):
        time.sleep(PAUSE_S)
    paced = time.process_time()
    for number in range(count):
        time.sleep(PAUSE_S)
        emitter.emit(
            StepDone(
                step=number + 1,
                total_steps=count,
                loss=0.123456789 + number,
                learning_rate=1e-4,
                grad_norm=0.0123456789,
                steps_per_s=9.87654321,
                eta_s=1234.56789,
            )
        )
    emitted = time.process_time()
    emitter.emit(Done(duration_s=((emitted - paced) - (paced - started)) / count))


def event_cost(count: int, root: Path) -> EventCost:
    """Run the child below the supervisor; return what one event costs on both sides."""
    command = Command(
        argv=(sys.executable, "-m", "bench.events", "child", str(count)),
        environment={"PYTHONPATH": str(REPOSITORY)},
        working_directory=root,
    )
    marks = []
    with (root / "events.jsonl").open("w", encoding="utf-8") as record:

        def keep(event: Event) -> None:
            marks.append(reading())
            record.write(event.model_dump_json() + "\n")
            record.flush()

        ending = supervise(
            command, parse_event, root / "log.txt", keep, LIMITS, StopRequest(), lambda: False
        )
    if not isinstance(ending, Done) or len(marks) != count:
        raise RuntimeError(f"the child failed: {ending}")
    return EventCost(ending.duration_s, (marks[-1] - marks[0]).cpu_s / (count - 1))


def step_cost(root: Path, steps: int, dropped: int) -> StepCost:
    """Train for real; return what one step costs the child, and the parent meanwhile."""
    engine = make_engine()
    trainings = make_trainings(engine, root / "workspace")
    child_marks, parent_marks = [], []

    def mark(event: Event) -> None:
        if isinstance(event, StepDone):
            child_marks.append(reading(_only_child()))
            parent_marks.append(reading())

    _, ending = trainings.train(training_config(root / "images", steps), mark)
    if not isinstance(ending, Done):
        raise RuntimeError(f"the training failed: {ending}")
    child = (child_marks[-1] - child_marks[dropped - 1]).per(steps - dropped)
    parent = (parent_marks[-1] - parent_marks[dropped - 1]).per(steps - dropped)
    return StepCost(child.cpu_s, parent.cpu_s)


def _only_child() -> int:
    """Pid of the engine, which the service keeps to itself."""
    (pid,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return int(pid)


if __name__ == "__main__":
    main()
