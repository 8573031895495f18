"""The training objective: noise, target, and the weight of each timestep.

Epsilon prediction: Ho et al. 2020 (arXiv:2006.11239). v-prediction: Salimans & Ho 2022
(arXiv:2202.00512). Min-SNR weights: Hang et al. 2023 (arXiv:2303.09556).
"""

from typing import Protocol

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from loradash.domain.training_config import TrainSection


class Objective(Protocol):
    """What a denoiser learns: from noise and time to a target and a loss.

    Latents are (batch, channels, height, width); the unit of time, (batch,), is the objective's
    own, and architectures take it.
    """

    prediction_type: str
    """What is predicted, as adapter files name it: ``epsilon``, ``v_prediction``, ``sample``."""
    zero_terminal_snr: bool
    """Whether the noise schedule ends in pure noise."""

    def draw(self, shape: torch.Size, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw noise of ``shape`` and a time for each image."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return the noisy latents at this time."""
        ...

    def target(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return what the denoiser should have predicted, as a new tensor."""
        ...

    def loss(self, predicted: Tensor, target: Tensor, time: Tensor) -> Tensor:
        """Return the weighted loss of each image, shape (batch,), in float32."""
        ...


class DiffusionObjective:
    """`Objective` of DDPM models; time is the number of the timestep, from 0."""

    def __init__(self, schedule: DDPMScheduler, train: TrainSection, device: torch.device) -> None:
        self.prediction_type: str = schedule.config.prediction_type
        self.zero_terminal_snr = bool(schedule.config.get("rescale_betas_zero_snr", False))
        self._alphas_cumprod: Tensor = schedule.alphas_cumprod.to(
            device=device, dtype=torch.float32
        )
        self._first = train.min_denoising_steps
        self._last = min(train.max_denoising_steps, len(self._alphas_cumprod) - 1)
        self._noise_offset = train.noise_offset
        self._gamma = train.min_snr_gamma or train.snr_gamma
        self._loss_type = train.loss_type
        self._preference = train.content_or_style

    def draw(self, shape: torch.Size, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `Objective.draw`."""
        noise = torch.randn(shape, generator=source)
        if self._noise_offset:
            offset = torch.randn((*shape[:2], 1, 1), generator=source)
            noise = noise + self._noise_offset * offset
        return noise, self._draw_timesteps(shape[0], source)

    def _draw_timesteps(self, count: int, source: torch.Generator) -> Tensor:
        """Uniform, or cubic towards one end (T2I-Adapter, arXiv:2302.08453, section 3.4)."""
        if self._preference == "balanced":
            return torch.randint(self._first, self._last + 1, (count,), generator=source)
        from_end = torch.rand(count, generator=source).pow(3) * (self._last + 1 - self._first)
        steps = from_end.long().clamp(max=self._last - self._first)
        return self._last - steps if self._preference == "content" else self._first + steps

    def add_noise(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return the latents at these timesteps of the forward process."""
        alpha, sigma = self._coefficients(time)
        return alpha * latents + sigma * noise

    def loss(self, predicted: Tensor, target: Tensor, time: Tensor) -> Tensor:
        """See `Objective.loss`."""
        difference = predicted.float() - target
        error = difference.abs() if self._loss_type == "mae" else difference.square()
        per_image = error.flatten(1).mean(1)
        return per_image if self._gamma is None else per_image * self._min_snr(time)

    def target(self, latents: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """See `Objective.target`."""
        if self.prediction_type == "epsilon":
            return noise.clone()
        alpha, sigma = self._coefficients(time)
        if self.prediction_type == "v_prediction":
            return alpha * noise - sigma * latents
        return latents.clone()  # "sample"

    def _min_snr(self, timesteps: Tensor) -> Tensor:
        """Weights min(SNR, gamma) of the error in x0, expressed for what is predicted."""
        alphas = self._alphas_cumprod[timesteps]
        snr = alphas / (1 - alphas)
        clipped = snr.clamp(max=self._gamma)
        if self.prediction_type == "v_prediction":
            return clipped / (snr + 1)
        if self.prediction_type == "epsilon":
            # At zero terminal SNR the quotient is 0/0; its limit is 1.
            return torch.where(snr > 0, clipped / snr.clamp(min=1e-12), torch.ones_like(snr))
        return clipped

    def _coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self._alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alphas.sqrt(), (1 - alphas).sqrt()
