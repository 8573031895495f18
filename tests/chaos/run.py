"""The run: trainings undisturbed, the same ones while machines die, and the verdict."""

import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.acceptance.conftest import draw_dataset, training
from tests.chaos.scene import Scene, configs, scene
from tests.chaos.verdict import Training, broken_promises
from tests.servers.seaweedfs import SeaweedServer

AIMED_AT = (
    "caching", "saving", "sampling", "uploading", "answering", "submitting", "awaiting the lease",
)  # fmt: skip
"""What takes moments only, so that a kill at a random time would hardly ever meet it."""

_AIMED_SHARE = 0.5
_AIM_S = 8.0
_LOOK_EVERY_S = 0.5
_TRAINING_S = 240.0
"""What a training may take before a run without an end is called stuck."""


class Wanted(NamedTuple):
    """What a run is asked for; the same wishes give the same trainings and the same chances."""

    seed: int = 7
    workers: int = 3
    trainings: int = 12
    kills: int = 50
    steps: int = 80
    mean_between_s: float = 6.0


class Kill(NamedTuple):
    """A machine that was lost."""

    at_s: float
    """Since the disturbed trainings were sent."""
    worker: str
    doing: str
    aimed_at: str


@dataclass
class Outcome:
    """What a run has found."""

    wanted: Wanted
    undisturbed: list[Training] = field(default_factory=list)
    disturbed: list[tuple[int, Training]] = field(default_factory=list)
    """The number of the config, and the training."""
    kills: list[Kill] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    undisturbed_s: float = 0.0
    disturbed_s: float = 0.0
    unnamed_parts: int = 0
    folder: Path = Path()

    @property
    def kills_by_phase(self) -> Counter[str]:
        """How often a worker was killed while it did what."""
        return Counter(one.doing for one in self.kills)


def run(wanted: Wanted, say: Callable[[str], None] = print) -> Outcome:
    """Do it all. Files stay in the outcome's folder, for who wants to look."""
    outcome = Outcome(wanted, folder=Path(tempfile.mkdtemp(prefix="loradash-chaos-")))
    wishes = [
        training("shapes", **one) for one in configs(wanted.seed, wanted.trainings, wanted.steps)
    ]
    with SeaweedServer() as s3, scene(outcome.folder, s3) as stage:
        for _ in range(wanted.workers):
            stage.start_worker()
        stage.endpoint.upload(draw_dataset(outcome.folder / "dataset"), "shapes")
        say(f"{len(wishes)} trainings undisturbed ...")
        began_s = time.monotonic()
        jobs = [_submit(stage, wish) for wish in wishes]
        _wait(stage, jobs, outcome)
        outcome.undisturbed_s = time.monotonic() - began_s
        outcome.undisturbed = [stage.observed(job) for job in jobs]
        for one in outcome.undisturbed:
            outcome.problems += [f"undisturbed {one.process_id}: {broken}"
                                 for broken in broken_promises(one, one)]  # fmt: skip
        if not outcome.problems:
            began_s = time.monotonic()
            jobs += _disturb(stage, wishes, outcome, say)
            outcome.disturbed_s = time.monotonic() - began_s
            _judge(stage, jobs, outcome)
        _end_workers(stage, outcome)
        outcome.unnamed_parts = stage.unnamed_parts()
    return outcome


def _submit(stage: Scene, wish: dict[str, Any]) -> str:
    return stage.endpoint.queue.submit({"type": "train", "config": wish})


def _disturb(
    stage: Scene, wishes: list[dict[str, Any]], outcome: Outcome, say: Callable[[str], None]
) -> list[str]:
    """Submit all, kill until all kills are spent, again if everything has ended before."""
    wanted, chance = outcome.wanted, random.Random(outcome.wanted.seed)
    jobs: list[str] = []
    births: list[float] = []
    began_s = time.monotonic()
    plan = _Plan(chance, wanted.mean_between_s)
    while (killed := len(outcome.kills)) < wanted.kills:
        if all(stage.has_ended(job) for job in jobs):
            say(f"{killed} kills; {len(wishes)} trainings sent ...")
            jobs += [_submit(stage, wish) for wish in wishes]
            plan = _Plan(chance, wanted.mean_between_s)
        for born_s in [one for one in births if one <= time.monotonic()]:
            births.remove(born_s)
            stage.start_worker()
        if (kill := plan.due(stage, time.monotonic() - began_s)) is not None:
            stage.lose_machine(kill.worker)
            outcome.kills.append(kill)
            births.append(time.monotonic() + chance.uniform(0, 2))
            plan = _Plan(chance, wanted.mean_between_s)
        time.sleep(0.05)
    for _ in births:
        stage.start_worker()
    say(f"{len(outcome.kills)} kills; waiting for the end ...")
    _wait(stage, jobs, outcome)
    return jobs


class _Plan:
    """When the next machine is lost, and which: drawn before, so that it's the same each time."""

    def __init__(self, chance: random.Random, mean_between_s: float) -> None:
        self._due_s = time.monotonic() + chance.uniform(0.25, 1.75) * mean_between_s
        self._aimed_at = chance.choice(AIMED_AT) if chance.random() < _AIMED_SHARE else ""
        self._order = chance.random()

    def due(self, stage: Scene, at_s: float) -> Kill | None:
        """Return the kill if its moment has come."""
        names = sorted(stage.endpoint.workers)
        now_s = time.monotonic()
        if now_s < self._due_s or not names:
            return None
        first = int(self._order * len(names))
        names = names[first:] + names[:first]
        if self._aimed_at:
            for name in names:
                if (doing := stage.doing(name)) == self._aimed_at:
                    return Kill(at_s, name, doing, self._aimed_at)
            if now_s < self._due_s + _AIM_S:
                return None
        return Kill(at_s, names[0], stage.doing(names[0]), self._aimed_at)


def _wait(stage: Scene, jobs: list[str], outcome: Outcome) -> None:
    """Wait for the end of all; those that don't end are noted."""
    deadline_s = time.monotonic() + _TRAINING_S * max(1, len(jobs) / outcome.wanted.workers)
    open_jobs = list(jobs)
    while open_jobs := [job for job in open_jobs if not stage.has_ended(job)]:
        if time.monotonic() > deadline_s:
            outcome.problems += [f"{stage.process_id(job)}: no end" for job in open_jobs]
            return
        time.sleep(_LOOK_EVERY_S)


def _judge(stage: Scene, jobs: list[str], outcome: Outcome) -> None:
    count = len(outcome.undisturbed)
    for place, job in enumerate(jobs[count:]):
        number = place % count
        seen = stage.observed(job)
        outcome.disturbed.append((number, seen))
        outcome.problems += [
            f"{seen.process_id}: {broken}"
            for broken in broken_promises(seen, outcome.undisturbed[number])
        ]
    outcome.problems += [f"{process_id}: not at its end" for process_id in stage.running()]
    wanted, there = {stage.process_id(job) for job in jobs}, stage.recorded()
    outcome.problems += [f"{one}: isn't listed" for one in sorted(wanted - there)]
    outcome.problems += [f"{one}: nobody asked for it" for one in sorted(there - wanted)]


def _end_workers(stage: Scene, outcome: Outcome) -> None:
    for worker in stage.endpoint.workers.values():
        worker.terminate()
    for name, worker in list(stage.endpoint.workers.items()):
        try:
            code = worker.wait(60)
        except subprocess.TimeoutExpired:
            outcome.problems.append(f"worker {name} didn't end")
            continue
        del stage.endpoint.workers[name]
        still_starting = code == -signal.SIGTERM and not stage.endpoint.log(name)
        if code and not still_starting:
            outcome.problems.append(f"worker {name} ended with {code}")
    outcome.problems += [f"still there: {one}" for one in stage.left_over()]
