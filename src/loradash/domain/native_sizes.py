"""Sizes that a config leaves to the base model: the side of the images that it was trained on.

A model draws and learns badly, and slowly, far from that size; so it's the default of trainings and
previews alike, and what is far from it is mentioned.
"""

from typing import Any

from loradash.domain.training_config import TrainingConfig
from loradash.domain.training_text import parse_training_text
from loradash.errors import InvalidConfig

FORMER_SIZE = 512
"""What an open size was in earlier releases, and is where the base model isn't known."""
FAR = 2.0
"""From so many times larger or smaller on, a size is mentioned."""


def sizes_left_open(config: TrainingConfig, native: int) -> dict[str, Any]:
    """Return overrides that give the sizes which the config doesn't give; empty if it gives all."""
    process = config.process
    overrides: dict[str, Any] = {
        f"datasets.{number}.resolution": [native]
        for number, section in enumerate(process.datasets)
        if "resolution" not in section.model_fields_set
    }
    overrides |= {
        f"sample.{side}": native
        for side in ("width", "height")
        if side not in process.sample.model_fields_set
    }
    return overrides


def users_text(text: str, config: TrainingConfig) -> str:
    """Return a config's own text if it says the same as ``config``, with the size added if need be.

    So its comments stay. '' if the config differs in anything else, or the text is of the full
    form, into which a line can't be put for sure.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    size = config.process.datasets[0].resolution[0]
    added = f"resolution: {size}  # the base model's own size"
    for candidate in (text, f"{text.rstrip()}{newline}{added}{newline}"):
        try:
            if parse_training_text(candidate) == config:
                return candidate
        except InvalidConfig:
            continue
    return ""


def far_from_native(config: TrainingConfig, native: int) -> tuple[str, ...]:
    """Return a sentence for each size that is far from the base model's own."""
    process = config.process
    given: dict[str, list[int]] = {
        f"datasets[{number}].resolution": section.resolution
        for number, section in enumerate(process.datasets)
    }
    if process.sample.prompts or process.sample.samples:
        given["sample.width"] = [process.sample.width]
        given["sample.height"] = [process.sample.height]
    return tuple(
        f"{key}: {size} is far from {native}, the size of the images that the base model was "
        f"trained on{_price(size, native)}"
        for key, sizes in given.items()
        for size in sizes
        if size >= native * FAR or size * FAR <= native
    )


def _price(size: int, native: int) -> str:
    ratio = (size / native) ** 2
    return f"; a step takes some {ratio:.0f} times as long" if ratio >= 2 else ""
