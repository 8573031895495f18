"""A short chaos run, and that its verdict would notice damage. The long one is `make chaos`."""

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.report import as_json, report
from tests.chaos.run import Kill, Outcome, Wanted, run
from tests.chaos.scene import configs, weights_hash
from tests.chaos.verdict import Attempt, Stored, Training, broken_promises

LORA = Stored("results/x/lora/a.safetensors", 10, "1" * 64, "lora")
SAMPLE = Stored("results/x/samples/2-0.png", 11, "4" * 64, "sample")
CHECKPOINT = Stored("results/x/checkpoints/step-2/adapter.safetensors", 20, "2" * 64, "checkpoint")
STATE = Stored("results/x/checkpoints/step-3/state.pt", 20, "2" * 64, "checkpoint")
MANIFEST = Stored("results/x/manifest.json", 30, "3" * 64)
LISTED = (CHECKPOINT, LORA, SAMPLE)


def there(*listed: Stored) -> tuple[Stored, ...]:
    """Objects as the bucket shows them."""
    return (*(one._replace(kind="") for one in listed), MANIFEST)


UNDISTURBED = Training(
    process_id="x",
    job_status="COMPLETED",
    status="completed",
    total_steps=3,
    weights="abc",
    metrics=((1, 0.5), (2, 0.4), (3, 0.3)),
    artifacts=LISTED,
    manifest=LISTED,
    objects=there(*LISTED),
    attempts=(Attempt(1, "completed", 0, 3, "w1", 10, 20),),
    attempt_count=1,
)
DISTURBED = replace(
    UNDISTURBED,
    attempts=(Attempt(1, "lost", 0, 2, "w1", 10, 15), Attempt(2, "completed", 1, 3, "w2", 16, 20)),
    attempt_count=2,
)


@pytest.mark.slow
@pytest.mark.long
def test_trainings_end_with_equal_weights_whatever_dies_meanwhile() -> None:
    outcome = run(Wanted(seed=11, workers=2, trainings=3, kills=6, steps=40, mean_between_s=5))
    text = report(outcome)
    assert not outcome.problems, text
    shutil.rmtree(outcome.folder, ignore_errors=True)
    assert len(outcome.kills) == 6
    assert len(outcome.disturbed) >= 3
    assert sum(one.lost_attempts for _, one in outcome.disturbed) >= 1, text
    assert json.loads(as_json(outcome))["held"]


def test_what_is_as_it_was_breaks_no_promise() -> None:
    assert broken_promises(UNDISTURBED, UNDISTURBED) == []
    assert broken_promises(DISTURBED, UNDISTURBED) == []
    assert (DISTURBED.lost_attempts, DISTURBED.steps_done_twice) == (1, 1)


def test_how_many_checkpoints_are_kept_may_differ() -> None:
    fewer = (LORA, SAMPLE)
    one = replace(DISTURBED, artifacts=fewer, manifest=fewer, objects=there(*fewer))
    assert broken_promises(one, UNDISTURBED) == []


@pytest.mark.parametrize(
    ("damage", "noticed"),
    [
        ({"status": "running"}, "process running"),
        ({"job_status": "FAILED"}, "job FAILED"),
        ({"weights": "abd"}, "other weights"),
        ({"weights": "none"}, "no weights"),
        ({"metrics": ((1, 0.5), (3, 0.3))}, "steps missing [2]"),
        ({"metrics": ((1, 0.5), (2, 0.4), (2, 0.4), (3, 0.3))}, "too many [2]"),
        ({"metrics": ((1, 0.5), (2, 0.4), (3, 0.31))}, "other losses, from step 3"),
        ({"artifacts": (CHECKPOINT, LORA)}, "results missing: ['sample samples/2-0.png']"),
        ({"artifacts": (CHECKPOINT, LORA, SAMPLE._replace(sha256="7" * 64))}, "other samples"),
        ({"objects": there(CHECKPOINT, SAMPLE)}, "is listed and missing"),
        ({"objects": there(CHECKPOINT, LORA._replace(sha256="9"), SAMPLE)}, "isn't in the bucket"),
        ({"objects": there(*LISTED, LORA._replace(key="results/x/lora/b"))}, "to nothing"),
        ({"artifacts": (*LISTED, LORA)}, "listed 2 times"),
        ({"manifest": (CHECKPOINT, LORA)}, "manifest and record differ"),
        (
            {"artifacts": (*LISTED, STATE, STATE._replace(key="results/x/checkpoints/step-3/b"))},
            "checkpoints of different size",
        ),
        ({"attempts": (Attempt(3, "completed", 1, 3),)}, "attempts [3] of 2"),
        ({"attempts": (Attempt(1, "", 0, 3), Attempt(2, "completed", 3, 3))}, "attempts ended"),
        ({"attempts": (Attempt(2, "lost", 0, 3),)}, "attempts ended ['lost']"),
        ({"attempts": (Attempt(2, "completed", 0, 3, "w1", 10, None),)}, "no end"),
        (
            {
                "attempts": (
                    Attempt(1, "lost", 0, 2, "w1", 10, 15),
                    Attempt(2, "completed", 1, 3, "w2", 14, 20),
                )
            },
            "attempts 1 and 2 overlap",
        ),
        ({"log_gaps": 1}, "1 gaps in its log"),
    ],
)
def test_damage_is_noticed(damage: dict[str, Any], noticed: str) -> None:
    found = broken_promises(replace(DISTURBED, **damage), UNDISTURBED)
    assert any(noticed in one for one in found), found


def test_weights_are_compared_without_what_the_file_says_about_itself() -> None:
    def file(date: str, tensor: bytes) -> bytes:
        header = {"__metadata__": {"date": date}, "a": {"data_offsets": [0, len(tensor)]}}
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + tensor

    assert weights_hash(file("today", b"abcd")) == weights_hash(file("yesterday", b"abcd"))
    assert weights_hash(file("today", b"abcd")) != weights_hash(file("today", b"abce"))


def test_the_same_seed_wishes_the_same_trainings() -> None:
    assert configs(7, 12, 80) == configs(7, 12, 80)
    assert configs(7, 12, 80) != configs(8, 12, 80)
    assert len({json.dumps(one) for one in configs(7, 12, 80)}) == 12


def test_a_report_says_what_was_broken() -> None:
    outcome = Outcome(Wanted(), undisturbed=[UNDISTURBED], disturbed=[(0, DISTURBED)])
    outcome.kills.append(Kill(1.5, "w1", "saving", "saving"))
    assert "HELD: all 1" in report(outcome)
    assert "killed while: saving 1" in report(outcome)
    outcome.problems.append("x: other weights")
    outcome.disturbed = [(0, replace(DISTURBED, weights="other"))]
    text = report(outcome)
    assert "BROKEN: x: other weights" in text
    assert "OTHERS" in text
    assert "\nHELD" not in text
    assert json.loads(as_json(outcome))["kills_by_phase"] == {"saving": 1}
