"""Drawing images with a loaded pipeline, the same way in training previews and in generation."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import loradash
from loradash.domain.schedulers import SchedulerName
from loradash.engines.diffusers.child.architecture import Architecture
from loradash.engines.diffusers.child.precision import autocast
from loradash.engines.diffusers.child.schedulers import make_scheduler
from loradash.engines.stop_signal import StopSignal
from loradash.errors import ImageNotFinite


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


def draw(
    architecture: Architecture,
    drawing: Drawing,
    own_scheduler: Any,
    dtype: torch.dtype,
    stop: StopSignal,
) -> Image.Image:
    """Draw one image. The start noise depends on the seed and the size alone.

    ``own_scheduler`` is the base model's; the pipeline keeps the one that is drawn with. Raises
    `Interrupted` between two denoising steps once the end is asked for, `InvalidConfig` for steps
    that the scheduler can't take, and `ImageNotFinite`.
    """

    def after_step(_pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> Any:
        stop.check()
        if not torch.isfinite(tensors["latents"]).all():
            raise _not_finite(drawing, f"at step {step + 1} of {drawing.steps}")
        return tensors

    pipeline: Any = architecture.pipeline
    pipeline.scheduler = make_scheduler(drawing.scheduler, own_scheduler, drawing.steps)
    arguments = architecture.call_arguments(
        prompt=drawing.prompt,
        negative_prompt=drawing.negative_prompt or None,
        num_inference_steps=drawing.steps,
        guidance_scale=drawing.guidance_scale,
        width=drawing.width,
        height=drawing.height,
        generator=torch.Generator("cpu").manual_seed(drawing.seed),
        output_type="latent",
    )
    with torch.no_grad(), autocast(pipeline.device, dtype):
        latents = pipeline(**arguments, callback_on_step_end=after_step).images
    pixels = architecture.decode(latents)
    if not torch.isfinite(pixels).all():
        raise _not_finite(drawing, "in the autoencoder")
    image: Image.Image = pipeline.image_processor.postprocess(pixels)[0]
    return image


def _not_finite(drawing: Drawing, where: str) -> ImageNotFinite:
    return ImageNotFinite(
        f"the image of {drawing.prompt[:60]!r} became NaN or infinite {where}",
        remedy="Check base model and adapters, lower the adapters' weights or the guidance scale, "
        "use another scheduler, or precision fp32.",
    )


def one_color(image: Image.Image) -> str:
    """Return the color as ``#rrggbb`` if all pixels have it, or ''."""
    extrema = image.convert("RGB").getextrema()
    if any(low != high for low, high in extrema):  # type: ignore[misc]
        return ""
    return "#" + "".join(f"{low:02x}" for low, _ in extrema)  # type: ignore[misc]


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
