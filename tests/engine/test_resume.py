"""A training that was interrupted anywhere ends with the weights of one that wasn't."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from loradash.domain.events import Failed
from tests.engine.conftest import LocalTraining, write_dataset

Start = Callable[..., LocalTraining]

EVERYTHING: dict[str, Any] = {
    "gradient_accumulation": 2,
    "ema_decay": 0.9,
    "text_encoder_learning_rate": 5e-3,
    "alpha": 2,
    "caption_dropout_rate": 0.2,
    "lr_scheduler": "cosine",
    "warmup_steps": 3,
    "min_snr_gamma": 5,
}
EVERYTHING_FULL = {
    "datasets.0.shuffle_tokens": True,
    "datasets.0.flip_x": True,
    "datasets.0.cache_latents_to_disk": True,
    "network.dropout": 0.1,
    "network.conv": 2,
    "train.noise_offset": 0.05,
}


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    different = [key for key in first if not np.array_equal(first[key], second[key])]
    assert different == []


def losses(training: LocalTraining) -> dict[int, float]:
    return {event.step: event.loss for event in training.run().of("step")}


@pytest.mark.parametrize(
    ("short", "full"),
    [
        pytest.param({}, {}, id="plain"),
        pytest.param(EVERYTHING, EVERYTHING_FULL, id="everything"),
        pytest.param({**EVERYTHING, "precision": "bf16"}, EVERYTHING_FULL, id="everything-bf16"),
        pytest.param({"precision": "fp16"}, {}, id="fp16-with-loss-scaling"),
        pytest.param({"gradient_checkpointing": True}, {}, id="gradient-checkpointing"),
        pytest.param(
            {"optimizer": "prodigy", "learning_rate": 1, "lr_scheduler": "cosine",
             "text_encoder_learning_rate": 1},
            {"train.optimizer_params": {"d0": 1e-3, "d_coef": 2, "use_bias_correction": True,
                                        "weight_decay": 0.01, "safeguard_warmup": True}},
            id="prodigy",
        ),
    ],
)  # fmt: skip
def test_stopped_and_crashed_training_ends_with_equal_weights(
    start: Start, tiny_base: Path, mixed_dataset: Path, short: dict[str, Any], full: dict[str, Any]
) -> None:
    common = {"dataset": str(mixed_dataset), "base_model": str(tiny_base), "full": full, **short}
    undisturbed = start(**common)
    expected = losses(undisturbed)

    disturbed = start(**common)
    disturbed.crash_at(2)  # before the first checkpoint: starts anew
    disturbed.crash_at(5)  # two steps after the checkpoint of step 3
    stopped = disturbed.stop_after(4)
    assert stopped.of("stopped")[0].step == 4
    resumed = disturbed.run()

    assert resumed.of("resumed")[0].step == 4
    assert {event.step: event.loss for event in resumed.of("step")} == {
        step: loss for step, loss in expected.items() if step > 4
    }
    assert_equal_weights(undisturbed.adapter, disturbed.adapter)


def test_regularization_with_prior_prediction_resumes_exactly(
    start: Start, tiny_v_base: Path, mixed_dataset: Path, tmp_path: Path
) -> None:
    prior = write_dataset(tmp_path / "prior", [(32, 32), (48, 24)], "a thing")
    common = {
        "dataset": str(mixed_dataset),
        "base_model": str(tiny_v_base),
        "regularization": str(prior),
        "text_encoder_learning_rate": 1e-3,
    }
    undisturbed, disturbed = start(**common), start(**common)
    undisturbed.run()
    disturbed.crash_at(5)
    disturbed.run()
    assert_equal_weights(undisturbed.adapter, disturbed.adapter)


def test_two_trainings_with_one_seed_are_equal_and_another_seed_differs(
    start: Start, tiny_base: Path, square_dataset: Path
) -> None:
    common = {"dataset": str(square_dataset), "base_model": str(tiny_base), "steps": 3}
    one, same, other = start(**common), start(**common), start(**common, seed=12)
    for training in (one, same, other):
        training.run()
    assert_equal_weights(one.adapter, same.adapter)
    with pytest.raises(AssertionError):
        assert_equal_weights(one.adapter, other.adapter)


def test_samples_do_not_change_the_weights(
    start: Start, tiny_base: Path, mixed_dataset: Path
) -> None:
    common = {"dataset": str(mixed_dataset), "base_model": str(tiny_base), "steps": 5}
    without = start(**common)
    with_samples = start(
        **common,
        sample_prompts=["a [trigger] blob"],
        sample_every=1,
        sample_steps=2,
        sample_size=16,
    )
    without.run()
    recorder = with_samples.run()
    assert [event.step for event in recorder.of("sample")] == [0, 1, 2, 3, 4, 5]
    assert_equal_weights(without.adapter, with_samples.adapter)


def test_damaged_newest_checkpoint_is_passed_over_for_the_one_before(
    start: Start, tiny_base: Path, square_dataset: Path
) -> None:
    common = {"dataset": str(square_dataset), "base_model": str(tiny_base)}
    undisturbed, damaged = start(**common), start(**common)
    undisturbed.run()
    damaged.crash_at(7)
    assert damaged.checkpoints == [3, 6]
    state = damaged.folder / "checkpoints/step-000000006/state.safetensors"
    data = bytearray(state.read_bytes())
    data[-5] ^= 1
    state.write_bytes(data)

    recorder = damaged.run()

    assert "checkpoint_damaged" in recorder.codes
    assert "training_begins_again" not in recorder.codes
    assert recorder.of("resumed")[0].step == 3
    assert_equal_weights(undisturbed.adapter, damaged.adapter)


@pytest.mark.parametrize("file", ["state.safetensors", "adapter.safetensors", "checkpoint.json"])
def test_truncated_or_missing_checkpoint_file_is_never_used(
    start: Start, tiny_base: Path, square_dataset: Path, file: str
) -> None:
    training = start(dataset=str(square_dataset), base_model=str(tiny_base))
    training.crash_at(4)
    path = training.folder / "checkpoints/step-000000003" / file
    path.write_bytes(path.read_bytes()[:-20])
    recorder = training.run()
    assert "checkpoint_damaged" in recorder.codes
    assert "training_begins_again" in recorder.codes
    assert recorder.of("resumed") == []
    assert recorder.of("done")


def test_checkpoint_of_another_job_is_refused(
    start: Start, tiny_base: Path, square_dataset: Path
) -> None:
    training = start(dataset=str(square_dataset), base_model=str(tiny_base))
    training.crash_at(4)
    job = training.folder / "job.json"
    job.write_text(
        job.read_text().replace('"linear": 4', '"linear": 5').replace(": 0.01", ": 0.02")
    )
    failed = training.run().of("failed")[0]
    assert failed.code == "checkpoint_invalid"


def test_changed_dataset_is_refused_at_resume_and_each_file_is_named(
    start: Start, tiny_base: Path, tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path / "data", [(32, 32)] * 7)
    training = start(dataset=str(dataset), base_model=str(tiny_base))
    training.crash_at(4)
    kept = shutil.copytree(dataset, tmp_path / "kept")
    (dataset / "image_00.txt").write_text("another caption")
    (dataset / "image_01.txt").unlink()
    (dataset / "image_02.png").unlink()
    shutil.copyfile(dataset / "image_06.png", dataset / "image_03.png")
    for ending in ("png", "txt"):
        (dataset / f"image_04.{ending}").rename(dataset / f"moved.{ending}")
    (dataset / "image_05.png").write_bytes(b"broken")
    shutil.copyfile(dataset / "image_06.png", dataset / "new.png")

    def seen_failure() -> Failed:
        recorder = training.run()
        assert recorder.phases == ["loading dataset"]  # nothing heavy was loaded before
        return recorder.of("failed")[0]

    failed = seen_failure()
    assert failed.code == "dataset_invalid"
    assert failed.resumable
    assert [text.partition(": not")[0] for text in failed.problems] == [
        "added: new.png", "can't be read any more: image_05.png", "removed: image_02.png",
        "renamed: image_04.png is now moved.png", "with another caption: image_00.png",
        "with another caption: image_01.png", "with another image: image_03.png",
    ]  # fmt: skip
    assert "7 files (1 added, 1 can't be read any more, 1 removed" in failed.message
    assert "resume" in failed.remedy
    assert "--from-adapter" in failed.remedy
    shutil.rmtree(dataset)
    gone = seen_failure()
    assert "doesn't exist" in gone.message
    assert gone.remedy == failed.remedy
    shutil.copytree(kept, dataset)
    assert training.run().of("done")


def test_a_dataset_that_changed_since_a_job_of_an_older_release_is_refused_too(
    start: Start, tiny_base: Path, tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path / "data", [(32, 32)] * 2)
    training = start(dataset=str(dataset), base_model=str(tiny_base))
    job = training.folder / "job.json"
    document = json.loads(job.read_text())
    del document["datasets"][0]["images"]
    job.write_text(json.dumps(document))
    (dataset / "image_00.txt").write_text("another caption")
    failed = training.run().of("failed")[0]
    assert failed.code == "dataset_invalid"
    assert "has changed" in failed.message


def test_base_model_that_was_replaced_is_refused_at_resume(
    start: Start, tiny_base: Path, square_dataset: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    training = start(dataset=str(square_dataset), base_model=str(base))
    training.crash_at(4)
    weights = base / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({key: value + 0.01 for key, value in tensors.items()}, weights)
    failed = training.run().of("failed")[0]
    assert failed.code == "base_model_invalid"
    assert "changed" in failed.message
    assert failed.resumable
    shutil.rmtree(base)
    shutil.copytree(tiny_base, base)
    assert training.run().of("done")


def test_retention_keeps_the_newest_and_at_least_two(
    start: Start, tiny_base: Path, square_dataset: Path
) -> None:
    common = {"dataset": str(square_dataset), "base_model": str(tiny_base), "save_every": 1}
    three, one, everything = (
        start(**common, keep_checkpoints=3),
        start(**common, keep_checkpoints=1),
        start(**common, keep_checkpoints=0),
    )
    for training in (three, one, everything):
        training.run()
    assert three.checkpoints == [6, 7, 8]
    assert one.checkpoints == [7, 8]
    assert everything.checkpoints == [1, 2, 3, 4, 5, 6, 7, 8]


def test_half_written_checkpoint_of_a_killed_attempt_is_removed(
    start: Start, tiny_base: Path, square_dataset: Path
) -> None:
    training = start(dataset=str(square_dataset), base_model=str(tiny_base))
    training.crash_at(4)
    leftover = training.folder / "checkpoints/.partial-12345"
    leftover.mkdir()
    (leftover / "state.safetensors").write_bytes(b"half")
    training.run()
    assert not leftover.exists()


def test_finished_training_that_is_run_again_only_writes_its_adapter(
    start: Start, tiny_base: Path, square_dataset: Path
) -> None:
    training = start(dataset=str(square_dataset), base_model=str(tiny_base))
    training.run()
    before = load_file(training.adapter)
    training.adapter.unlink()
    recorder = training.run()
    assert recorder.of("step") == []
    assert recorder.of("done")[0].step == 8
    after = load_file(training.adapter)
    assert all(np.array_equal(before[key], after[key]) for key in before)
