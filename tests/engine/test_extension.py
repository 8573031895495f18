"""A finished training that is given more steps ends as one training of that many steps."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loradash.domain.training_text import parse_training
from loradash.engines.diffusers.engine import DiffusersEngine
from loradash.engines.diffusers.job import TrainingJob
from tests.engine.conftest import CREATED_AT, LocalTraining
from tests.engine.test_resume import EVERYTHING, EVERYTHING_FULL, assert_equal_weights

Start = Callable[..., LocalTraining]
ENGINE = DiffusersEngine(device="cpu", threads=2, offline=True)


def extended(training: LocalTraining, steps: int, folder: Path) -> LocalTraining:
    """A training of its own that goes on from the finished one's newest checkpoint."""
    job = TrainingJob.model_validate_json((training.folder / "job.json").read_bytes())
    document = job.config.model_dump(mode="json", exclude_unset=True)
    config = parse_training(document, {"train.steps": steps})
    folder.mkdir()
    ENGINE.write_extended_job(
        f"train_{'9' * 20}",
        config,
        training.folder / "job.json",
        tuple(section.folder_path for section in config.process.datasets),
        folder,
        CREATED_AT,
    )
    newest = sorted((training.folder / "checkpoints").iterdir())[-1]
    shutil.copytree(newest, folder / "checkpoints" / newest.name)
    return LocalTraining(folder)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        pytest.param({}, {}, id="plain"),
        pytest.param({**EVERYTHING, "lr_scheduler": "constant"}, EVERYTHING_FULL, id="everything"),
    ],
)
def test_an_extended_training_has_the_weights_of_one_training_of_that_many_steps(
    start: Start,
    tiny_base: Path,
    mixed_dataset: Path,
    tmp_path: Path,
    short: dict[str, Any],
    full: dict[str, Any],
) -> None:
    common = {"dataset": str(mixed_dataset), "base_model": str(tiny_base), "full": full, **short}
    whole, first = start(**common, steps=7), start(**common, steps=4)
    expected = {event.step: event.loss for event in whole.run().of("step")}
    first.run()
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}

    second = extended(first, 7, tmp_path / "second")
    second.crash_at(6)  # and it resumes as any other
    recorder = second.run()

    assert {event.step: event.loss for event in recorder.of("step")} == {
        step: loss for step, loss in expected.items() if step > 4
    }
    assert_equal_weights(whole.adapter, second.adapter)
    job = TrainingJob.model_validate_json((second.folder / "job.json").read_bytes())
    assert job.threads == 1  # as in the job before, on whatever machine
    assert {path: path.read_bytes() for path in before} == before


def test_the_checkpoint_of_any_other_job_is_refused(
    start: Start, tiny_base: Path, square_dataset: Path, tmp_path: Path
) -> None:
    common = {"dataset": str(square_dataset), "base_model": str(tiny_base), "steps": 2}
    first, other = start(**common), start(**common, seed=99)
    first.run()
    other.run()
    second = extended(first, 3, tmp_path / "second")
    shutil.rmtree(second.folder / "checkpoints")
    missing = second.run().of("failed")[0]
    assert missing.code == "checkpoint_invalid"
    assert "no checkpoint" in missing.message
    shutil.copytree(other.folder / "checkpoints", second.folder / "checkpoints")
    assert second.run().of("failed")[0].code == "checkpoint_invalid"


@pytest.mark.parametrize(
    ("schedule", "is_exact"),
    [
        ({"lr_scheduler": "constant"}, True),
        ({"lr_scheduler": "constant_with_warmup", "warmup_steps": 2}, True),
        ({"lr_scheduler": "cosine"}, False),
        ({"lr_scheduler": "linear", "warmup_steps": 1}, False),
        ({"lr_scheduler": "polynomial"}, False),
        ({"lr_scheduler": "cosine_with_restarts"}, False),
    ],
)
def test_a_schedule_that_depends_on_the_last_step_is_told_with_its_rates(
    schedule: dict[str, Any], is_exact: bool
) -> None:
    short = {"dataset": "d", "base_model": "b", "learning_rate": 1e-3, **schedule}
    before, after = (parse_training({**short, "steps": steps}) for steps in (100, 300))
    warnings = ENGINE.extension_warnings(before, after)
    assert (warnings == ()) is is_exact
    if not is_exact:
        assert "300 steps" in warnings[0]
        assert schedule["lr_scheduler"] in warnings[0]


def test_the_rates_at_the_seam_of_a_cosine_are_those_of_both_schedules() -> None:
    short = {"dataset": "d", "base_model": "b", "learning_rate": 1e-3, "lr_scheduler": "cosine"}
    before, after = (parse_training({**short, "steps": steps}) for steps in (100, 200))
    (text,) = ENGINE.extension_warnings(before, after)
    assert "5.00e-04" in text  # half of 1e-3 in the middle of the longer one
    assert "2.47e-07" in text  # the last step of the shorter one


def test_a_training_that_starts_from_an_adapter_begins_with_its_weights(
    start: Start, tiny_base: Path, square_dataset: Path, tmp_path: Path
) -> None:
    common = {"dataset": str(square_dataset), "base_model": str(tiny_base)}
    first = start(
        **common, steps=2, rank=6, alpha=3, full={"save.dtype": "fp32", "network.conv": 2}
    )
    first.run()
    settings = ENGINE.network_of(first.adapter)
    assert settings == {"linear": 6, "linear_alpha": 3, "conv": 2, "conv_alpha": 2}
    full = {f"network.{key}": value for key, value in settings.items()}
    full |= {"network.pretrained_lora_path": str(first.adapter), "save.dtype": "fp32"}
    second = start(**common, full=full, steps=2, learning_rate=1e-20)
    job = second.folder / "job.json"
    (second.folder / "start.safetensors").write_bytes(first.adapter.read_bytes())
    job.write_text(job.read_text().replace(str(first.adapter), "start.safetensors"))
    second.crash_at(1)
    assert second.run().of("done")
    assert_equal_weights(first.adapter, second.adapter)


def test_an_adapter_that_is_gone_is_not_missed_once_there_is_a_checkpoint(
    start: Start, tiny_base: Path, square_dataset: Path, tmp_path: Path
) -> None:
    common = {"dataset": str(square_dataset), "base_model": str(tiny_base), "save_every": 1}
    first = start(**common, steps=1)
    first.run()
    adapter = shutil.copyfile(first.adapter, tmp_path / "start.safetensors")
    full = {"network.pretrained_lora_path": str(adapter)}
    undisturbed, second = start(**common, steps=3, full=full), start(**common, steps=3, full=full)
    undisturbed.run()
    second.crash_at(3)
    adapter.unlink()
    assert second.run().of("done")
    assert_equal_weights(undisturbed.adapter, second.adapter)
