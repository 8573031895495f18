"""Random seeds: drawn once, when a training is submitted, so that all attempts have the same."""

from collections.abc import Callable
from typing import Any

from loradash.domain.training_config import RANDOM_SEED, TrainingConfig
from loradash.domain.training_text import parse_training

MAX_DRAWN_SEED = 2**32 - 1  # what every program can show and take


def with_seeds_drawn(config: TrainingConfig, draw: Callable[[], int]) -> TrainingConfig:
    """Return the config with a number in place of each seed that is -1.

    The training and its previews have one number, as with ``seed: -1`` of the short form; each
    sample with a seed of its own has its own. Without such a seed the config is returned as it is.
    """
    process = config.process
    sections = [process.training_seed, process.sample.seed]
    if RANDOM_SEED not in (*sections, *(item.seed for item in process.sample.samples)):
        return config
    overrides: dict[str, Any] = {}
    if RANDOM_SEED in sections:
        drawn = draw()
        if process.training_seed == RANDOM_SEED:
            overrides["training_seed"] = drawn
        if process.sample.seed == RANDOM_SEED:
            overrides["sample.seed"] = drawn
    for number, item in enumerate(process.sample.samples):
        if item.seed == RANDOM_SEED:
            overrides[f"sample.samples.{number}.seed"] = draw()
    return parse_training(config.model_dump(mode="json", exclude_unset=True), overrides)
