"""Sizes that a config leaves to the base model: the side of the images that it was trained on.

A model draws and learns badly, and slowly, far from that size; so it's the default of trainings and
previews alike, and what is far from it is mentioned.
"""

from typing import Any

from loradash.domain.training_config import TrainingConfig

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
