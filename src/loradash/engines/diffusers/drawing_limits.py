"""What a base model can't draw, told from its configs before anything is loaded. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DrawingLimits:
    """How far the settings of an image may go; None where it isn't known."""

    max_steps: int | None = None

    def problem(self, steps: int, where: str) -> str:
        """Return what is wrong with the number of steps, named by ``where``, or ''."""
        if self.max_steps is None or steps <= self.max_steps:
            return ""
        return (
            f"{where}: {steps} steps, but the base model's noise schedule has "
            f"{self.max_steps + 1}; give at most {self.max_steps}"
        )


UNKNOWN_LIMITS = DrawingLimits()


def drawing_limits(configs: Mapping[str, Mapping[str, Any]]) -> DrawingLimits:
    """Read the limits of a base model from its parts' configs, as far as they are known.

    One step less than the noise schedule has is what every scheduler takes: at as many, those that
    begin at step 1 look one up that isn't there, and others divide by the zero between two equals.
    """
    if "scheduler" not in configs:
        return UNKNOWN_LIMITS
    try:
        trained = int(configs["scheduler"].get("num_train_timesteps", 1000))
    except (ValueError, TypeError):
        return UNKNOWN_LIMITS  # loading says what is wrong with it
    return DrawingLimits(max_steps=max(1, trained - 1))
