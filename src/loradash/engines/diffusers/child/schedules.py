"""Learning-rate schedules as functions of the step: there is no scheduler state to save."""

import math

from loradash.domain.training_config import TrainSection


def factor(step: int, train: TrainSection) -> float:
    """Return what the learning rate is multiplied by for update ``step`` (from 0).

    The shapes are those of diffusers' and transformers' schedules of the same names; the rise takes
    ``num_warmup_steps`` updates, and the fall ends at ``min_factor`` with the last update.
    """
    options = train.lr_scheduler_params
    if step < options.num_warmup_steps:
        return (step + 1) / options.num_warmup_steps
    span = max(1, train.updates - options.num_warmup_steps)
    progress = min(1.0, (step - options.num_warmup_steps) / span)
    shape = _shape(train.lr_scheduler, progress, options.num_cycles, options.power)
    return options.min_factor + (1 - options.min_factor) * shape


def _shape(name: str, progress: float, cycles: int, power: float) -> float:
    match name:
        case "linear":
            return 1 - progress
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "cosine_with_restarts":
            return 0.5 * (1 + math.cos(math.pi * ((progress * cycles) % 1.0)))
        case "polynomial":
            return float((1 - progress) ** power)
        case _:
            return 1.0
