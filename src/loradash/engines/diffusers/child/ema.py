"""Exponential moving average of the adapter's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class MovingAverage:
    """A shadow of the parameters that follows them slowly.

    The decay rises from 2/11 to its final value, as in Polyak averaging with warm-up, so that the
    random start has no say in a short training.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self.shadow = [parameter.detach().clone() for parameter in parameters]

    def update(self, updates_done: int) -> None:
        """Follow the parameters after update number ``updates_done`` (from 1)."""
        decay = min(self._decay, (1 + updates_done) / (10 + updates_done))
        with torch.no_grad():
            torch._foreach_lerp_(self.shadow, list(self._parameters), 1 - decay)

    def load(self, shadow: list[Tensor]) -> None:
        """Take the shadow of a checkpoint."""
        for ours, saved in zip(self.shadow, shadow, strict=True):
            ours.copy_(saved)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averaged weights into the model for as long as the context lasts."""
        with torch.no_grad():
            current = [parameter.detach().clone() for parameter in self._parameters]
            for parameter, shadow in zip(self._parameters, self.shadow, strict=True):
                parameter.copy_(shadow)
            try:
                yield
            finally:
                for parameter, value in zip(self._parameters, current, strict=True):
                    parameter.copy_(value)
