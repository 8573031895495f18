"""The demo: a LoRA learns a logo from ten images, and the figures say whether it did.

It is the ordinary training and the ordinary generation, with the embedded base model. The same
prompts are drawn with the same seeds before and after; what must change and what must not is
measured, not claimed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from loradash.data import demo_folder
from loradash.domain.events import Done, Event, ImageWritten, Terminal
from loradash.domain.generation import AdapterUse, GenerationRequest
from loradash.domain.training_config import TrainingConfig
from loradash.domain.training_text import parse_training
from loradash.runtime.supervisor import StopRequest
from loradash.services.generation.service import GenerationService
from loradash.services.processes.running import Runner, generate_here
from loradash.services.results.pictures import Row, contact_sheet

BASE_MODEL = "emoji-base"
TRIGGER_WORD = "sks"
STEPS = 220
THREADS = 1  # the model is so small that a second thread only costs

LOGO_PROMPTS = (
    f"a {TRIGGER_WORD} logo",
    f"a {TRIGGER_WORD} logo on a red background",
    f"a {TRIGGER_WORD} logo on a blue background",
    f"a {TRIGGER_WORD} logo on a yellow background",
)
NEW_BACKGROUND_PROMPTS = (f"a {TRIGGER_WORD} logo on a purple background",)
IN_THE_MIX_PROMPTS = ("a penguin", "a red apple")
NOT_IN_THE_MIX_PROMPTS = ("a mushroom", "a panda", "a frog on a blue background")

REQUIRED_APPROACH = 0.40
"""The distance of the logo images to the training images must fall by at least this share."""
ALLOWED_CHANGE = 0.15
"""Prompts without the trigger word may change by at most this much, on average of their pixels."""

_SEED = 7


class DemoMeasures(NamedTuple):
    """Distances: root mean square differences of pixels, 0 (equal) to 1 (black to white)."""

    logo_before: float
    """Logo prompts before training: mean distance to the nearest training image."""
    logo_after: float
    change_in_the_mix: float
    """Prompts without trigger whose subjects were among the prior images: before against after."""
    change_not_in_the_mix: float
    between_subjects: float
    """For scale: the distance between the images of two different subjects."""

    @property
    def approach(self) -> float:
        """Share by which the logo's distance fell."""
        return 1 - self.logo_after / self.logo_before

    @property
    def holds(self) -> bool:
        """Whether the demo shows what it promises."""
        changes = (self.change_in_the_mix, self.change_not_in_the_mix)
        return self.approach >= REQUIRED_APPROACH and max(changes) <= ALLOWED_CHANGE


def demo_config(steps: int = STEPS) -> TrainingConfig:
    """The demo's training: attention layers, rank 16, half of each batch prior images."""
    short: dict[str, Any] = {
        "name": "demo_logo",
        "base_model": BASE_MODEL,
        "dataset": str(demo_folder() / "logo"),
        "regularization": str(demo_folder() / "regularization"),
        "regularization_weight": 3.0,
        "trigger_word": TRIGGER_WORD,
        "steps": steps,
        "rank": 16,
        "target_modules": ["to_q", "to_k", "to_v", "to_out.0"],
        "learning_rate": 2e-3,
        "warmup_steps": 10,
        "batch_size": 8,
        "resolution": 64,
        "precision": "fp32",
        "gradient_checkpointing": False,
        "seed": 1,
        "save_every": 100,
        "sample_prompts": [LOGO_PROMPTS[1], NOT_IN_THE_MIX_PROMPTS[0]],
        "sample_every": max(1, steps // 2),
        "sample_steps": 15,
        "guidance_scale": 3.0,
    }
    return parse_training(short)


def prompts() -> tuple[str, ...]:
    """All prompts of the demo, in the order of the sheet."""
    return (
        *LOGO_PROMPTS, *NEW_BACKGROUND_PROMPTS, *IN_THE_MIX_PROMPTS, *NOT_IN_THE_MIX_PROMPTS
    )  # fmt: skip


def draw(
    service: GenerationService,
    runner: Runner,
    adapter: str | None,
    on_event: Callable[[Event], None],
    stop: StopRequest,
    *,
    quiet: bool = False,
) -> tuple[Terminal, list[Image.Image]]:
    """Draw all prompts with the demo's seed, with or without the adapter.

    ``quiet`` keeps the event of each single image from ``on_event``.
    """
    request = GenerationRequest(
        base_model=BASE_MODEL,
        prompts=prompts(),
        adapters=(AdapterUse(path=adapter),) if adapter else (),
        seed=_SEED,
        steps=20,
        guidance_scale=3.0,
        precision="fp32",
        name="after" if adapter else "before",
    )

    def told(event: Event) -> None:
        if not (quiet and isinstance(event, ImageWritten)):
            on_event(event)

    result = generate_here(service, runner, request, told, stop)
    images = []
    if isinstance(result.ending, Done):
        for written in result.images:
            with Image.open(written.path) as image:
                images.append(image.convert("RGB"))
    return result.ending, images


def training_images() -> list[Image.Image]:
    """The ten images of the logo."""
    paths = sorted((demo_folder() / "logo").glob("*.png"))
    return [Image.open(path).convert("RGB") for path in paths]


def measure(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> DemoMeasures:
    """Compare the two rows of the sheet with the training images and with each other."""
    logos = training_images()
    first_other = len(LOGO_PROMPTS) + len(NEW_BACKGROUND_PROMPTS)
    first_new = first_other + len(IN_THE_MIX_PROMPTS)
    mix, new = range(first_other, first_new), range(first_new, len(before))

    def to_logos(images: Sequence[Image.Image]) -> float:
        return _mean(
            min(distance(image, logo) for logo in logos) for image in images[: len(LOGO_PROMPTS)]
        )

    def changed(places: range) -> float:
        return _mean(distance(before[place], after[place]) for place in places)

    others = [before[place] for place in (*mix, *new)]
    return DemoMeasures(
        logo_before=to_logos(before),
        logo_after=to_logos(after),
        change_in_the_mix=changed(mix),
        change_not_in_the_mix=changed(new),
        between_subjects=_mean(
            distance(one, other) for n, one in enumerate(others) for other in others[n + 1 :]
        ),
    )


def distance(one: Image.Image, other: Image.Image) -> float:
    """Root mean square difference of two images of the same size, from 0 to 1."""
    import numpy as np

    difference = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    return float(np.sqrt(np.mean(difference**2)) / 255)


def sheet(before: Sequence[Image.Image], after: Sequence[Image.Image], path: Path) -> Path:
    """Write the training images, and the prompts before and after."""
    columns = prompts()
    logos: list[Image.Image | None] = [*training_images()[: len(columns)]]
    logos += [None] * (len(columns) - len(logos))
    rows = [Row("trained on", logos), Row("before", list(before)), Row("after", list(after))]
    return contact_sheet(rows, columns, path, "loradash demo: the same seeds before and after")


def _mean(values: Any) -> float:
    listed = list(values)
    return float(sum(listed) / len(listed))
