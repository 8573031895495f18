"""A short chaos run, and that its verdict would notice damage. The long one is `make chaos`."""

import json
import shutil
from dataclasses import replace

import pytest

from tests.chaos.report import as_json, report
from tests.chaos.run import Outcome, Wanted, run
from tests.chaos.verdict import Attempt, Stored, Training, broken_promises

LORA = Stored("results/x/lora/a.safetensors", 10, "1" * 64)
CHECKPOINT = Stored("results/x/checkpoints/step-2/adapter.safetensors", 20, "2" * 64)
MANIFEST = Stored("results/x/manifest.json", 30, "3" * 64)

UNDISTURBED = Training(
    process_id="x",
    job_status="COMPLETED",
    status="completed",
    total_steps=3,
    weights="abc",
    metrics=((1, 0.5), (2, 0.4), (3, 0.3)),
    artifacts=(CHECKPOINT, LORA),
    objects=(CHECKPOINT, LORA, MANIFEST),
    attempts=(Attempt(1, "completed", 0, 3),),
    names=("checkpoint step-2", "lora a"),
)
DISTURBED = replace(UNDISTURBED, attempts=(Attempt(1, "lost", 0, 2), Attempt(2, "completed", 1, 3)))


@pytest.mark.slow
def test_trainings_end_with_equal_weights_whatever_dies_meanwhile() -> None:
    outcome = run(Wanted(seed=11, workers=2, trainings=3, kills=6, mean_between_s=7))
    text = report(outcome)
    assert not outcome.problems, text
    shutil.rmtree(outcome.folder, ignore_errors=True)
    assert outcome.kills.total() == 6
    assert len(outcome.disturbed) >= 3
    assert sum(one.lost_attempts for _, one in outcome.disturbed) >= 1, text
    assert json.loads(as_json(outcome))["held"]


def test_what_is_as_it_was_breaks_no_promise() -> None:
    assert broken_promises(UNDISTURBED, UNDISTURBED) == []
    assert broken_promises(DISTURBED, UNDISTURBED) == []
    assert (DISTURBED.lost_attempts, DISTURBED.steps_done_twice) == (1, 1)


@pytest.mark.parametrize(
    ("damage", "noticed"),
    [
        ({"status": "running"}, "process running"),
        ({"job_status": "FAILED"}, "job FAILED"),
        ({"weights": "abd"}, "other weights"),
        ({"metrics": ((1, 0.5), (3, 0.3))}, "2 steps"),
        ({"metrics": ((1, 0.5), (2, 0.4), (2, 0.4), (3, 0.3))}, "4 steps"),
        ({"metrics": ((1, 0.5), (2, 0.4), (3, 0.31))}, "other losses"),
        ({"names": ("lora a",)}, "only in one"),
        ({"names": ("checkpoint step-2", "lora a", "lora a")}, "3 and 2"),
        ({"objects": (CHECKPOINT, MANIFEST)}, "isn't in the bucket"),
        ({"objects": (CHECKPOINT, LORA._replace(sha256="9" * 64), MANIFEST)}, "isn't in the"),
        ({"objects": (*DISTURBED.objects, LORA._replace(key="results/x/lora/b"))}, "to nothing"),
        ({"artifacts": (CHECKPOINT, LORA, LORA)}, "listed twice"),
        ({"attempts": (Attempt(2, "completed", 1, 3),)}, "attempts [2]"),
        ({"attempts": (Attempt(1, "", 0, 3),)}, "without an end"),
    ],
)
def test_damage_is_noticed(damage: dict, noticed: str) -> None:  # type: ignore[type-arg]
    assert any(noticed in one for one in broken_promises(replace(DISTURBED, **damage), UNDISTURBED))


def test_a_report_says_what_was_broken() -> None:
    outcome = Outcome(Wanted(), undisturbed=[UNDISTURBED], disturbed=[(0, DISTURBED)])
    assert "HELD: all 1" in report(outcome)
    outcome.problems.append("x: other weights")
    outcome.disturbed = [(0, replace(DISTURBED, weights="other"))]
    text = report(outcome)
    assert "BROKEN: x: other weights" in text
    assert "OTHERS" in text
    assert "\nHELD" not in text
