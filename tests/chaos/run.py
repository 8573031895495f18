"""The run: trainings undisturbed, the same ones while machines die, and the verdict."""

import random
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

_LOOK_EVERY_S = 0.5
_TRAINING_S = 240.0
"""What a training may take before a run without an end is called stuck."""


class Wanted(NamedTuple):
    """What a run is asked for; the same wishes give the same trainings and the same chances."""

    seed: int = 7
    workers: int = 3
    trainings: int = 12
    kills: int = 50
    mean_between_s: float = 9.0


@dataclass
class Outcome:
    """What a run has found."""

    wanted: Wanted
    undisturbed: list[Training] = field(default_factory=list)
    disturbed: list[tuple[int, Training]] = field(default_factory=list)
    """The number of the config, and the training."""
    kills: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    undisturbed_s: float = 0.0
    disturbed_s: float = 0.0
    folder: Path = Path()


def run(wanted: Wanted, say: Callable[[str], None] = print) -> Outcome:
    """Do it all. Files stay in the outcome's folder if anything is wrong."""
    outcome = Outcome(wanted, folder=Path(tempfile.mkdtemp(prefix="loradash-chaos-")))
    chance = random.Random(wanted.seed)
    wishes = [training("shapes", **one) for one in configs(wanted.seed, wanted.trainings)]
    with SeaweedServer() as s3, scene(outcome.folder, s3) as stage:
        for _ in range(wanted.workers):
            stage.start_worker()
        stage.endpoint.upload(draw_dataset(outcome.folder / "dataset"), "shapes")
        say(f"{len(wishes)} trainings undisturbed ...")
        began_s = time.monotonic()
        jobs = [_submit(stage, wish) for wish in wishes]
        if not _wait(stage, jobs, outcome):
            return outcome
        outcome.undisturbed = [stage.observed(job) for job in jobs]
        outcome.undisturbed_s = time.monotonic() - began_s
        for one in outcome.undisturbed:
            outcome.problems += [f"undisturbed {one.process_id}: {broken}"
                                 for broken in broken_promises(one, one)]  # fmt: skip
        began_s = time.monotonic()
        jobs = _disturb(stage, wishes, outcome, chance, say)
        if _wait(stage, jobs, outcome):
            _judge(stage, jobs, outcome)
        outcome.disturbed_s = time.monotonic() - began_s
        _end_workers(stage, outcome)
    return outcome


def _submit(stage: Scene, wish: dict[str, Any]) -> str:
    return stage.endpoint.queue.submit({"type": "train", "config": wish})


def _disturb(
    stage: Scene,
    wishes: list[dict[str, Any]],
    outcome: Outcome,
    chance: random.Random,
    say: Callable[[str], None],
) -> list[str]:
    """Submit all, and kill until all kills are spent; again if everything has ended before."""
    wanted, jobs = outcome.wanted, list[str]()
    births: list[float] = []
    next_kill_s = time.monotonic()
    while (killed := outcome.kills.total()) < wanted.kills:
        if all(stage.has_ended(job) for job in jobs):
            say(f"{killed} kills; {len(wishes)} trainings sent ...")
            jobs += [_submit(stage, wish) for wish in wishes]
            next_kill_s = time.monotonic() + chance.uniform(0, 2 * wanted.mean_between_s)
        now_s = time.monotonic()
        for born_s in [one for one in births if one <= now_s]:
            births.remove(born_s)
            stage.start_worker()
        if now_s >= next_kill_s and stage.endpoint.workers:
            victim = chance.choice(sorted(stage.endpoint.workers))
            outcome.kills[stage.lose_machine(victim)] += 1
            births.append(time.monotonic() + chance.uniform(0, 2))
            next_kill_s = now_s + chance.uniform(0, 2 * wanted.mean_between_s)
        time.sleep(0.1)
    for _ in births:
        stage.start_worker()
    say(f"{outcome.kills.total()} kills; waiting for the end ...")
    return jobs


def _wait(stage: Scene, jobs: list[str], outcome: Outcome) -> bool:
    """Wait for the end of all; whether it came."""
    deadline_s = time.monotonic() + _TRAINING_S * max(1, len(jobs) / outcome.wanted.workers)
    open_jobs = list(jobs)
    while open_jobs := [job for job in open_jobs if not stage.has_ended(job)]:
        if time.monotonic() > deadline_s:
            for job in open_jobs:
                record = stage.record(job)
                outcome.problems.append(
                    f"stuck: {stage.process_id(job)} is {record.status if record else 'missing'}, "
                    f"its job {stage.endpoint.queue.status(job)['status']}"
                )
            return False
        time.sleep(_LOOK_EVERY_S)
    return True


def _judge(stage: Scene, jobs: list[str], outcome: Outcome) -> None:
    for place, job in enumerate(jobs):
        number = place % outcome.wanted.trainings
        seen = stage.observed(job)
        outcome.disturbed.append((number, seen))
        outcome.problems += [
            f"{seen.process_id}: {broken}"
            for broken in broken_promises(seen, outcome.undisturbed[number])
        ]
    outcome.problems += [f"not at its end: {process_id}" for process_id in stage.running()]
    records = {stage.process_id(job) for job in jobs}
    if len(records) != len(jobs):
        outcome.problems.append(f"{len(jobs)} jobs, {len(records)} trainings")


def _end_workers(stage: Scene, outcome: Outcome) -> None:
    for worker in stage.endpoint.workers.values():
        worker.terminate()
    for name, worker in list(stage.endpoint.workers.items()):
        try:
            code = worker.wait(60)
        except subprocess.TimeoutExpired:
            outcome.problems.append(f"worker {name} didn't end")
            continue
        if code:
            outcome.problems.append(f"worker {name} ended with {code}")
    outcome.problems += [f"still there: {one}" for one in stage.left_over()]
