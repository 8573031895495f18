"""Choices of a config that other trainers have and the built-in engine hasn't, with the reasons.

The config takes them, since another engine may have them; the built-in one, and the conversion of
configs for it, refuse them by these sentences.
"""

from loradash.domain.optimizers import foreign_optimizer
from loradash.domain.training_config import TrainingConfig

_NOISE = frozenset({"mean_flow", "custom_lcm"})
_LOSSES = frozenset({"mse", "mae"})


def foreign_choices(config: TrainingConfig) -> list[str]:
    """Return a sentence for each choice that the built-in engine can't follow."""
    network, train = config.process.network, config.process.train
    problems = []
    if network.type != "lora":
        problems.append(
            f"network.type: networks of type {network.type} aren't trained here; set type to lora, "
            "with linear and linear_alpha for its rank and alpha"
        )
    if train.noise_scheduler in _NOISE:
        problems.append(
            f"train.noise_scheduler: {train.noise_scheduler} is a noise process of its own, and "
            "isn't trained here; use ddpm, which is the base model's own"
        )
    if train.loss_type not in _LOSSES:
        problems.append(
            f"train.loss_type: the loss {train.loss_type} isn't computed here; use mse or mae"
        )
    if reason := foreign_optimizer(train.optimizer):
        problems.append(f"train.optimizer: {reason}")
    problems += [
        f"train.optimizer_params.{name}: adafactor's own rate isn't followed here; set it to false "
        "and give the rate in lr"
        for name in ("relative_step", "warmup_init")
        if getattr(train.optimizer_params, name)
    ]
    return problems
