"""Drawing images with a loaded pipeline, the same way in training previews and in generation."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import loradash
from loradash.domain.generation import SchedulerName
from loradash.engines.diffusers.child.architecture import Architecture
from loradash.engines.diffusers.child.precision import autocast
from loradash.engines.diffusers.child.stop import StopSignal

_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}


@dataclass(frozen=True)
class Drawing:
    """Parameters of one image."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float
    width: int
    height: int
    scheduler: SchedulerName
    base_model: str
    adapters: tuple[tuple[str, float], ...] = ()

    def text(self) -> str:
        """The parameters as A1111 writes them and as most viewers read them."""
        adapters = "".join(f" <lora:{name}:{weight:g}>" for name, weight in self.adapters)
        negative = f"\nNegative prompt: {self.negative_prompt}" if self.negative_prompt else ""
        return (
            f"{self.prompt}{adapters}{negative}\nSteps: {self.steps}, Sampler: {self.scheduler}, "
            f"CFG scale: {self.guidance_scale:g}, Seed: {self.seed}, "
            f"Size: {self.width}x{self.height}, Model: {self.base_model}, "
            f"Version: loradash {loradash.__version__}"
        )

    def facts(self) -> dict[str, Any]:
        """The parameters for programs."""
        return {**vars(self), "version": loradash.__version__}


def set_scheduler(architecture: Architecture, name: SchedulerName, own: Any) -> None:
    """Put a scheduler into the pipeline, with the noise schedule of the base model's own."""
    kind, options = _SCHEDULERS.get(name, ("", {}))
    scheduler = type(own) if not kind else getattr(diffusers, kind)
    architecture.pipeline.scheduler = scheduler.from_config(own.config, **options)


def draw(
    architecture: Architecture,
    drawing: Drawing,
    dtype: torch.dtype,
    stop: StopSignal,
    on_step: Callable[[int], None] | None = None,
) -> Image.Image:
    """Draw one image. The start noise depends on the seed and the size alone.

    Raises `Interrupted` between two denoising steps once the end is asked for.
    """

    def after_step(_pipeline: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> Any:
        stop.check()
        if on_step:
            on_step(step + 1)
        return kwargs

    arguments = architecture.call_arguments(
        prompt=drawing.prompt,
        negative_prompt=drawing.negative_prompt or None,
        num_inference_steps=drawing.steps,
        guidance_scale=drawing.guidance_scale,
        width=drawing.width,
        height=drawing.height,
        generator=torch.Generator("cpu").manual_seed(drawing.seed),
    )
    device = architecture.pipeline.device
    with torch.no_grad(), autocast(device, dtype):
        output = architecture.pipeline(**arguments, callback_on_step_end=after_step)
    image: Image.Image = output.images[0]
    return image


def save_image(image: Image.Image, path: Path, drawing: Drawing) -> None:
    """Write an image whole or not at all; a PNG carries its parameters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    if path.suffix == ".png":
        info = PngInfo()
        info.add_itxt("parameters", drawing.text())
        info.add_itxt("loradash", json.dumps(drawing.facts()))
        image.save(partial, "PNG", pnginfo=info)
    else:
        image.save(partial, {".jpg": "JPEG", ".webp": "WEBP"}[path.suffix], quality=92)
    partial.replace(path)
