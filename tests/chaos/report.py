"""A run in words and figures."""

import json
from dataclasses import asdict

from tests.chaos.run import Outcome
from tests.chaos.scene import REQUEUE_S, SETTINGS


def report(outcome: Outcome) -> str:
    """Return the report of a run."""
    wanted = outcome.wanted
    lines = [
        f"seed {wanted.seed}: {wanted.workers} workers, {wanted.trainings} trainings",
        f"{outcome.kills.total()} of {wanted.kills} machines lost",
        f"lease 4 s, requeued {REQUEUE_S} s after the last ping, "
        + ", ".join(f"{name}={value}" for name, value in SETTINGS.items()),
        f"undisturbed {outcome.undisturbed_s:.0f} s, disturbed {outcome.disturbed_s:.0f} s",
        "killed while: " + ", ".join(f"{doing} {n}" for doing, n in outcome.kills.most_common()),
        "",
        "| training | steps | attempts | lost | steps done twice | weights | losses | files |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for number, one in outcome.disturbed:
        before = outcome.undisturbed[number]
        lines.append(
            f"| {one.process_id} | {one.total_steps} | {len(one.attempts)} | {one.lost_attempts} "
            f"| {one.steps_done_twice} | {_same(one.weights == before.weights)} "
            f"| {_same(one.metrics == before.metrics)} "
            f"| {_same(sorted(one.names) == sorted(before.names))} |"
        )
    lines.append("")
    if outcome.problems:
        lines += [f"BROKEN: {problem}" for problem in outcome.problems]
        lines.append(f"NOT HELD: {len(outcome.problems)} promises broken; see {outcome.folder}")
    else:
        lines.append(
            f"HELD: all {len(outcome.disturbed)} trainings completed with the weights, "
            "measurements and files of undisturbed ones"
        )
    return "\n".join(lines)


def as_json(outcome: Outcome) -> str:
    """Return everything as JSON."""
    facts = {
        "wanted": outcome.wanted._asdict(),
        "held": not outcome.problems,
        "problems": outcome.problems,
        "kills": dict(outcome.kills),
        "undisturbed_s": outcome.undisturbed_s,
        "disturbed_s": outcome.disturbed_s,
        "undisturbed": [asdict(one) for one in outcome.undisturbed],
        "disturbed": [{"config": number, **asdict(one)} for number, one in outcome.disturbed],
    }
    return json.dumps(facts, indent=1)


def _same(is_so: bool) -> str:
    return "equal" if is_so else "OTHERS"
