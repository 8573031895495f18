"""Which of two models is better? Numbers that don't depend on taste, and a sheet that does.

- Loss: v-prediction error on every training picture, on fixed noise at a fixed grid of timesteps.
- Recognition: each concept is drawn once from its plain caption; how often is the nearest training
  picture one of that concept? A stricter test than the loss, and closer to what a user sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from .captions import plain_caption
from .denoiser import token_ids
from .icons import SIZE, Icons, on_colour

TIMESTEPS = (25, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999)
SAMPLING_STEPS = 20
GUIDANCE = 3.0
_BATCH = 32

PROMPTS = (
    "a cat face", "a red apple", "a mushroom", "a pizza",
    "a bear", "a frog", "a penguin", "a tulip",
    "a hamburger", "a strawberry", "an octopus", "a panda",
    "a banana", "a dog face", "a tiger face", "an owl",
    "a sunflower", "a fish", "a carrot", "a cactus",
    "a lion", "a pig face", "a doughnut", "a watermelon",
    "a red apple on a blue background", "a banana on a black background",
    "a penguin on a pink background", "a deciduous tree on a yellow background",
    "a frog noto style", "a frog fluent style",
    "a panda emoji on a green background", "a mushroom on a purple background",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LossReport:
    """Mean v-prediction loss, overall and per timestep."""

    mean: float
    by_timestep: dict[int, float]


@dataclass(frozen=True, slots=True)
class RecognitionReport:
    """How many concepts were drawn so that they are nearest to themselves."""

    concepts: int
    first: int  # the nearest training picture is of that concept
    top5: int  # one of the five nearest concepts is
    missed: list[str]  # not even among the five
    picture_error: float  # mean squared distance (0..1) to the nearest picture of the concept


@torch.inference_mode()
def velocity_loss(pipeline: StableDiffusionPipeline, icons: Icons, seed: int = 1234) -> LossReport:
    """Measure the loss on all pictures, on white, with plain captions.

    Each model sees its own VAE's latents (normalised alike), and the same noise.
    """
    pictures = torch.from_numpy(on_colour(icons.rgba)).permute(0, 3, 1, 2) * 2 - 1
    latents = torch.cat(
        [pipeline.vae.encode(part).latent_dist.mean for part in torch.split(pictures, 64)]
    )
    latents = latents * pipeline.vae.config.scaling_factor
    words = _encode_words(pipeline, [plain_caption(name) for name in icons.names.tolist()])
    by_timestep: dict[int, float] = {}
    for timestep in TIMESTEPS:
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed + timestep))
        times = torch.full((len(latents),), timestep)
        target = pipeline.scheduler.get_velocity(latents, noise, times)
        noisy = pipeline.scheduler.add_noise(latents, noise, times)
        guesses = [
            pipeline.unet(part, timestep, part_words).sample
            for part, part_words in _batches(noisy, words)
        ]
        by_timestep[timestep] = (torch.cat(guesses) - target).pow(2).mean().item()
    return LossReport(sum(by_timestep.values()) / len(by_timestep), by_timestep)


def recognition(
    pipeline: StableDiffusionPipeline,
    icons: Icons,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> RecognitionReport:
    """Draw every concept once and look it up among the training pictures (on white)."""
    known = on_colour(icons.rgba).reshape(len(icons), -1)
    concepts = icons.concepts()
    first, top5, missed, errors = 0, 0, [], []
    for start in range(0, len(concepts), _BATCH):
        names = concepts[start : start + _BATCH]
        drawn = draw(pipeline, [plain_caption(name) for name in names], seed + start)
        for name, picture in zip(names, drawn.reshape(len(names), -1), strict=True):
            distances = ((known - picture) ** 2).mean(axis=1)
            errors.append(float(distances[icons.names == name].min()))
            nearest = list(dict.fromkeys(icons.names[np.argsort(distances)].tolist()))[:5]
            first += nearest[0] == name
            top5 += name in nearest
            if name not in nearest:
                missed.append(name)
        report(f"recognition: {min(start + _BATCH, len(concepts))} of {len(concepts)} concepts")
    return RecognitionReport(len(concepts), first, top5, missed, float(np.mean(errors)))


def draw(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], seed: int
) -> npt.NDArray[np.float32]:
    """Draw one picture per prompt, (n, h, w, 3) in 0..1; picture i has its own seed, seed + i."""
    pictures: npt.NDArray[np.float32] = pipeline(
        list(prompts),
        num_inference_steps=SAMPLING_STEPS,
        guidance_scale=GUIDANCE,
        generator=[torch.Generator().manual_seed(seed + place) for place in range(len(prompts))],
        output_type="np",
    ).images
    return pictures


def contact_sheet(
    pipelines: dict[str, StableDiffusionPipeline],
    prompts: Sequence[str] = PROMPTS,
    seed: int = 0,
    columns: int = 8,
) -> Image.Image:
    """Draw the prompts with each model: for each row of prompts one labelled row per model."""
    zoom, label = 2, 22
    cell = SIZE * zoom
    rows = -(-len(prompts) // columns)
    height = rows * len(pipelines) * (cell + label)
    sheet = Image.new("RGB", (columns * cell, height), "white")
    pen = ImageDraw.Draw(sheet)
    for line, (title, pipeline) in enumerate(pipelines.items()):
        for place, picture in enumerate(draw(pipeline, prompts, seed)):
            row = place // columns * len(pipelines) + line
            left, top = place % columns * cell, row * (cell + label)
            tile = Image.fromarray((picture * 255).round().astype(np.uint8))
            sheet.paste(tile.resize((cell, cell), Image.Resampling.NEAREST), (left, top + label))
            words = prompts[place].replace(" background", "").replace(" on a ", " / ")
            pen.text((left + 2, top + 1), words, fill="black", font_size=10)
            pen.text((left + 2, top + 11), title, fill="gray", font_size=9)
    return sheet


def _batches(*rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    return zip(*(torch.split(tensor, _BATCH) for tensor in rows), strict=True)


def _encode_words(pipeline: StableDiffusionPipeline, captions: list[str]) -> torch.Tensor:
    words: torch.Tensor = pipeline.text_encoder(token_ids(pipeline.tokenizer, captions))[0]
    return words
