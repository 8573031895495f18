"""Learning-rate schedules as functions of the step: there is no scheduler state to save."""

import math

from loradash.domain.training_config import ScheduleParams, TrainSection


def factor(step: int, train: TrainSection) -> float:
    """Return what the learning rate is multiplied by for update ``step`` (from 0).

    The shapes are those of diffusers' and transformers' schedules of the same names; the rise takes
    ``num_warmup_steps`` updates, and the fall ends at ``min_factor`` with the last update.
    """
    options = train.lr_scheduler_params
    if step < train.warmup_updates:
        return (step + 1) / train.warmup_updates
    span = max(1, train.updates - train.warmup_updates)
    progress = min(1.0, (step - train.warmup_updates) / span)
    lowest = max(options.min_factor, options.eta_min / train.unet_rate)
    return lowest + (1 - lowest) * _shape(train.lr_scheduler, progress, options)


def _shape(name: str, progress: float, options: ScheduleParams) -> float:
    match name:
        case "linear":
            start = 1.0 if options.start_factor is None else options.start_factor
            end = 0.0 if options.end_factor is None else options.end_factor
            return start + (end - start) * progress
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "cosine_with_restarts":
            return 0.5 * (1 + math.cos(math.pi * ((progress * options.num_cycles) % 1.0)))
        case "polynomial":
            return float((1 - progress) ** options.power)
        case "constant":
            return options.factor
        case _:
            return 1.0
