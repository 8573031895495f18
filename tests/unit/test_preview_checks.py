import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from loradash.data import base_model_folder
from loradash.domain.generation import GenerationRequest
from loradash.domain.training_config import TrainingConfig
from loradash.domain.training_text import parse_training
from loradash.engines.diffusers.base_models.families import find_base_model
from loradash.engines.diffusers.base_models.inspection import inspect
from loradash.engines.diffusers.drawing_limits import DrawingLimits, drawing_limits
from loradash.engines.diffusers.engine import DiffusersEngine
from loradash.engines.diffusers.preview_checks import check_previews
from loradash.engines.diffusers.support import check
from loradash.engines.sample_prompts import sample_prompts
from loradash.errors import InvalidConfig


def training(base_model: str = "emoji-base", **sample: Any) -> TrainingConfig:
    document: dict[str, Any] = {"dataset": "images", "base_model": base_model}
    overrides = {f"sample.{key}": value for key, value in sample.items()}
    return parse_training({**document, "sample_prompts": ["a cat"]}, overrides)


@pytest.fixture
def short_schedule(tmp_path: Path) -> str:
    """A base model whose noise schedule has 20 steps."""
    folder = tmp_path / "short"
    shutil.copytree(base_model_folder("emoji-base"), folder, copy_function=os.symlink)
    path = folder / "scheduler/scheduler_config.json"
    config = {**json.loads(path.read_text()), "num_train_timesteps": 20}
    path.unlink()
    path.write_text(json.dumps(config))
    return str(folder)


def test_a_preview_side_that_is_rounded_is_mentioned_with_its_key() -> None:
    findings = check_previews(
        training(width=100, height=64, samples=[{"prompt": "x", "height": 60}]), DrawingLimits()
    )
    assert findings.warnings == [
        "sample.width: 100 isn't a multiple of 8; 96 is used",
        "sample.samples[0]: height 60 isn't a multiple of 8; 64 is used",
    ]
    assert findings.problems == []


def test_a_sampler_that_nobody_knows_is_a_problem_and_a_foreign_one_a_warning() -> None:
    (problem,) = check_previews(training(sampler="euler_x"), DrawingLimits()).problems
    assert problem.startswith("sample.sampler: 'euler_x' isn't a scheduler; did you mean 'euler")
    (warning,) = check_previews(training(sampler="lms"), DrawingLimits()).warnings
    assert "euler, which comes nearest, is used" in warning


def test_previews_that_are_not_drawn_are_not_looked_at() -> None:
    off = training(sampler="nonsense", width=100, prompts=[])
    assert check_previews(off, DrawingLimits()) == ([], [])


def test_steps_that_the_base_model_does_not_have_are_refused_before_it_is_loaded(
    short_schedule: str,
) -> None:
    engine = DiffusersEngine(device="cpu", threads=1, offline=True)
    layout = inspect(find_base_model(short_schedule)).layout
    with pytest.raises(InvalidConfig) as caught:
        check(training(short_schedule, sample_steps=20), layout)
    (problem,) = caught.value.problems
    assert problem.startswith("sample.sample_steps: 20 steps, but the base model's noise schedule")
    request = GenerationRequest(base_model=short_schedule, prompts=("x",), steps=20)
    with pytest.raises(InvalidConfig) as caught:
        engine.check_generation(request)
    assert caught.value.problems[0].startswith("steps: 20 steps")
    engine.check_generation(request.model_copy(update={"steps": 19}))


def test_the_embedded_base_model_takes_all_steps_that_may_be_asked_for() -> None:
    layout = inspect(find_base_model("emoji-base")).layout
    assert layout
    assert drawing_limits(layout.configs).max_steps == 999


@pytest.mark.parametrize("configs", [{}, {"scheduler": {"num_train_timesteps": "many"}}])
def test_a_scheduler_config_that_does_not_tell_sets_no_limit(
    configs: dict[str, dict[str, str]],
) -> None:
    assert drawing_limits(configs).max_steps is None


def test_an_option_that_cannot_be_read_is_refused_with_its_prompt() -> None:
    findings = check_previews(training(prompts=["a", "a cat --w wide --s 900"]), DrawingLimits())
    (problem,) = findings.problems
    assert problem == (
        "sample.prompts[1]: --w: 'wide' isn't a whole number; "
        "--s: input should be less than or equal to 500 (got 900)"
    )


def test_steps_of_one_prompt_are_held_against_the_base_model() -> None:
    findings = check_previews(training(prompts=["a cat --s 40"]), DrawingLimits(max_steps=19))
    assert any("sample.prompts[0]: 40 steps" in problem for problem in findings.problems)


def test_options_of_sample_prompts_are_followed_and_come_before_the_fields_beside_them() -> None:
    sample = training(
        prompts=["a [trigger] --n ugly, [trigger] --w 96 --h 60 --d 4 --l 2 --s 3 --ss euler_a"],
        samples=[{"prompt": "b --seed 9 --m 0.5", "seed": 1, "neg": "grey"}],
    ).process.sample
    first, second = sample_prompts(sample, "sks")
    assert (first.text, first.settings.seed, first.settings.negative_prompt) == ("b", 9, "grey")
    assert first.settings.multiplier == 0.5
    own = second.settings
    assert second.text == "a sks"
    assert own.negative_prompt == "ugly, sks"
    assert (own.width, own.height, own.seed, own.steps) == (96, 64, 4, 3)
    assert (own.guidance_scale, own.scheduler) == (2.0, "euler_a")
    assert second.notes == ("height 60 isn't a multiple of 8; 64 is used",)


def test_a_prompt_of_before_whose_options_cannot_be_read_is_drawn_as_it_stands() -> None:
    (prompt,) = sample_prompts(training(prompts=["a cat --w wide"]).process.sample, "")
    assert prompt.text == "a cat --w wide"
    assert prompt.problems


def test_an_adapter_that_a_sample_prompt_names_is_left_out_and_told() -> None:
    (prompt,) = sample_prompts(training(prompts=["a cat <lora:other:1>"]).process.sample, "")
    assert prompt.text == "a cat"
    assert prompt.notes[0].startswith("<lora:other:1> is left out")
