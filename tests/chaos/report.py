"""A run in words and figures."""

import json
from dataclasses import asdict

from tests.chaos.run import Outcome
from tests.chaos.scene import LEASE_S, MAX_DELIVERIES, REQUEUE_S, SETTINGS


def report(outcome: Outcome) -> str:
    """Return the report of a run."""
    wanted = outcome.wanted
    kills = outcome.kills_by_phase
    aimed = sum(bool(one.aimed_at) for one in outcome.kills)
    lines = [
        f"seed {wanted.seed}: {wanted.workers} workers, {wanted.trainings} trainings",
        f"{len(outcome.kills)} of {wanted.kills} machines lost, with their disks",
        f"lease {LEASE_S} s, MAX_ATTEMPTS={SETTINGS['MAX_ATTEMPTS']}",
        f"jobs: requeued {REQUEUE_S} s after the last ping, at most {MAX_DELIVERIES} times",
        f"undisturbed {outcome.undisturbed_s:.0f} s, disturbed {outcome.disturbed_s:.0f} s",
        "killed while: "
        + (", ".join(f"{doing} {n}" for doing, n in kills.most_common()) or "never"),
        f"({aimed} of them waited up to some seconds for a short phase)",
        f"objects of dead writers that no record names: {outcome.unnamed_parts}",
        "",
        "| training | steps | attempts | lost | steps done twice | weights | losses |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for number, one in outcome.disturbed:
        before = outcome.undisturbed[number]
        lines.append(
            f"| {one.process_id} | {one.total_steps} | {one.attempt_count} | {one.lost_attempts} "
            f"| {one.steps_done_twice} | {_same(one.weights == before.weights)} "
            f"| {_same(one.metrics == before.metrics)} |"
        )
    lines.append("")
    lines += [f"BROKEN: {problem}" for problem in outcome.problems]
    if outcome.problems:
        lines.append(f"NOT HELD: {len(outcome.problems)} promises broken; see {outcome.folder}")
    else:
        lines.append(
            f"HELD: all {len(outcome.disturbed)} trainings completed with the weights (SHA-256 of "
            "the tensors), measurements and results of undisturbed ones"
        )
    return "\n".join(lines)


def as_json(outcome: Outcome) -> str:
    """Return everything as JSON."""
    facts = {
        "wanted": outcome.wanted._asdict(),
        "settings": {
            **SETTINGS, "requeue_after_s": REQUEUE_S, "max_deliveries": MAX_DELIVERIES,
        },
        "held": not outcome.problems,
        "problems": outcome.problems,
        "kills_by_phase": dict(outcome.kills_by_phase),
        "kills": [one._asdict() for one in outcome.kills],
        "undisturbed_s": outcome.undisturbed_s,
        "disturbed_s": outcome.disturbed_s,
        "unnamed_parts": outcome.unnamed_parts,
        "undisturbed": [asdict(one) for one in outcome.undisturbed],
        "disturbed": [
            {
                "config": number, "lost_attempts": one.lost_attempts,
                "steps_done_twice": one.steps_done_twice, **asdict(one),
            }
            for number, one in outcome.disturbed
        ],
    }  # fmt: skip
    return json.dumps(facts, indent=1)


def _same(is_so: bool) -> str:
    return "equal" if is_so else "OTHERS"
