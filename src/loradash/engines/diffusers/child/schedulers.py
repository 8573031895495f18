"""Schedulers by name, made so that every number of steps that they are given can be drawn."""

import inspect
from typing import Any

import diffusers

from loradash.domain.schedulers import SchedulerName
from loradash.errors import InvalidConfig

_KARRAS = {"use_karras_sigmas": True}
_EVEN_AT_THE_END = {"lower_order_final": True}  # for odd numbers of steps, too
_STOCHASTIC = {"algorithm_type": "sde-dpmsolver++"}
_CLASSES: dict[SchedulerName, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_karras": ("EulerDiscreteScheduler", _KARRAS),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "heun_karras": ("HeunDiscreteScheduler", _KARRAS),
    "pndm": ("PNDMScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_karras": ("KDPM2DiscreteScheduler", _KARRAS),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpm2_a_karras": ("KDPM2AncestralDiscreteScheduler", _KARRAS),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++_2m_karras": ("DPMSolverMultistepScheduler", _KARRAS),
    "dpm++_sde": ("DPMSolverMultistepScheduler", _STOCHASTIC),
    "dpm++_sde_karras": ("DPMSolverMultistepScheduler", _STOCHASTIC | _KARRAS),
    "dpm++_2s": ("DPMSolverSinglestepScheduler", _EVEN_AT_THE_END),
    "dpm++_2s_karras": ("DPMSolverSinglestepScheduler", _EVEN_AT_THE_END | _KARRAS),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
_LCM_STEPS = 50
_PNDM_STEPS = 4


def make_scheduler(name: SchedulerName, own: Any, steps: int) -> Any:
    """Return the scheduler with the noise schedule of the base model's ``own``, for ``steps``.

    Raises `InvalidConfig` if it can't take so many steps on this base model.
    """
    kind, options = _CLASSES.get(name, ("", {}))
    made = getattr(diffusers, kind) if kind else type(own)
    understood = inspect.signature(made.__init__).parameters
    config = {key: value for key, value in own.config.items() if key in understood}
    scheduler = made.from_config(config, **options, **_options_for(made, steps, own))
    if hasattr(scheduler, "set_begin_index"):
        _begin_at_the_first_step(scheduler)
    try:
        scheduler.set_timesteps(steps)
    except (ValueError, IndexError, AssertionError, ZeroDivisionError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InvalidConfig(
            f"scheduler {name} can't take {steps} steps on this base model: {reason[:200]}",
            remedy="Give fewer steps, or another scheduler.",
        ) from error
    return scheduler


def _options_for(made: type, steps: int, own: Any) -> dict[str, Any]:
    """Settings without which a scheduler fails at this number of steps."""
    if made is diffusers.PNDMScheduler and steps < _PNDM_STEPS:
        return {"skip_prk_steps": True}  # its usual start takes more steps than there are
    if made is diffusers.LCMScheduler:  # it picks its steps out of so many, which must be enough
        usual = int(own.config.get("original_inference_steps", _LCM_STEPS))
        enough = min(max(usual, steps), own.config.num_train_timesteps)
        return {"original_inference_steps": enough}
    return {}


def _begin_at_the_first_step(scheduler: Any) -> None:
    """Make every run begin at step 0.

    Left to themselves, schedulers look the first timestep up among all, and begin at its second
    place if it is there twice: as it is with Karras' steps, where noise schedules end in pure noise
    ("zero terminal SNR"). Then the last step is missing, and they fail there.
    """
    set_timesteps = scheduler.set_timesteps

    def from_the_first(*arguments: Any, **options: Any) -> None:
        set_timesteps(*arguments, **options)
        scheduler.set_begin_index(0)

    scheduler.set_timesteps = from_the_first
