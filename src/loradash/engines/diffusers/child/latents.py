"""What an autoencoder makes of an image: a distribution of latents, kept as mean and variance."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Posterior:
    """A normal distribution of latents, (batch, channels, height, width), in float32.

    Without a ``log_variance`` it is a single point: the autoencoder is used deterministically.
    """

    mean: Tensor
    log_variance: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of the latents."""
        return self.mean.shape

    def sample(self, noise: Tensor) -> Tensor:
        """Return latents, given standard normal ``noise`` of their shape."""
        if self.log_variance is None:
            return self.mean
        return self.mean + torch.exp(0.5 * self.log_variance.clamp(-30.0, 20.0)) * noise

    def to(self, device: torch.device | str) -> "Posterior":
        """Return it on a device."""
        variance = None if self.log_variance is None else self.log_variance.to(device)
        return Posterior(self.mean.to(device), variance)

    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return all(bool(one.isfinite().all()) for one in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, as a file holds them."""
        tensors = {"mean": self.mean, "log_variance": self.log_variance}
        return {name: one for name, one in tensors.items() if one is not None}


def batch_of(posteriors: Sequence[Posterior]) -> Posterior:
    """Join posteriors of one size and one kind along the batch axis."""
    variances = [one.log_variance for one in posteriors if one.log_variance is not None]
    return Posterior(
        torch.cat([one.mean for one in posteriors]), torch.cat(variances) if variances else None
    )
