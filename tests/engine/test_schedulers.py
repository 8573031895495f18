"""Every scheduler with numbers of steps, on the noise schedules that base models come with."""

import json
from typing import Any

import diffusers
import pytest
import torch

from loradash.data import base_model_folder
from loradash.domain.schedulers import SCHEDULERS, SchedulerName
from loradash.engines.diffusers.child.schedulers import make_scheduler
from loradash.errors import InvalidConfig

_STABLE_DIFFUSION_1 = {
    "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "clip_sample": False,
}  # fmt: skip
_STABLE_DIFFUSION_2 = {
    "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "set_alpha_to_one": False,
    "prediction_type": "v_prediction", "steps_offset": 1, "clip_sample": False,
}  # fmt: skip
# Each where something begins or ends: starts of several steps, doubled timesteps, LCM's 50 steps.
_STEPS = (1, 2, 3, 4, 20, 21, 51)
_FEW_STEPS = (1, 3, 21)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def own_scheduler(config: dict[str, Any] | None = None) -> Any:
    if config is None:
        path = base_model_folder("emoji-base") / "scheduler/scheduler_config.json"
        config = json.loads(path.read_text())
    return getattr(diffusers, config["_class_name"]).from_config(config)


def denoised(scheduler: Any) -> torch.Tensor:
    """Run a schedule with a denoiser that predicts a third of what it is shown."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 1, 1, 2, generator=generator) * scheduler.init_noise_sigma
    takes_generator = "generator" in scheduler.step.__code__.co_varnames
    options = {"generator": generator} if takes_generator else {}
    for timestep in scheduler.timesteps:
        shown = scheduler.scale_model_input(latents, timestep)
        prediction = 0.3 * shown.clamp(-3, 3)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False, **options)[0]
    return latents


@pytest.mark.parametrize("name", SCHEDULERS)
def test_numbers_of_steps_are_drawn_on_the_embedded_base_model(name: SchedulerName) -> None:
    own = own_scheduler()
    for steps in _STEPS:
        scheduler = make_scheduler(name, own, steps)
        scheduler.set_timesteps(steps)  # as the pipeline does
        assert torch.isfinite(denoised(scheduler)).all(), steps


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_schedule_of_published_models_is_drawn(name: SchedulerName) -> None:
    own = own_scheduler(_STABLE_DIFFUSION_1)
    for steps in _FEW_STEPS:
        assert torch.isfinite(denoised(make_scheduler(name, own, steps))).all(), steps


def test_a_schedule_is_walked_from_its_first_step_even_if_that_is_there_twice() -> None:
    scheduler = make_scheduler("dpm++_2m_karras", own_scheduler(), 30)
    assert scheduler.timesteps[0] == scheduler.timesteps[1]
    denoised(scheduler)
    assert scheduler.step_index == 30


def test_steps_that_a_noise_schedule_does_not_have_are_refused_by_name() -> None:
    own = own_scheduler({**_STABLE_DIFFUSION_2, "num_train_timesteps": 20})
    with pytest.raises(InvalidConfig, match="ddim can't take 21 steps"):
        make_scheduler("ddim", own, 21)
    assert make_scheduler("lcm", own, 4).timesteps.numel() == 4


def test_nothing_is_logged_about_settings_of_another_scheduler(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What libraries log is told to the user, who can do nothing about this."""
    monkeypatch.setattr(diffusers.utils.logging.get_logger("diffusers"), "propagate", True)
    for config in (None, _STABLE_DIFFUSION_1):
        own = own_scheduler(config)
        caplog.clear()
        for name in SCHEDULERS:
            make_scheduler(name, own, 3)
        assert not [record for record in caplog.records if record.name.startswith("diffusers")]
