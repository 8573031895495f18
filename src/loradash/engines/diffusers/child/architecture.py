"""The port of a base model's architecture: all that training and sampling need to know about it.

One class per architecture, found by the name of its pipeline class in `ARCHITECTURES`. The trainer
and the generator hold no ``if sdxl`` anywhere: what differs stands behind this port.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from torch import Tensor

from loradash.domain.adapter import BaseModelNames
from loradash.domain.text_length import CutText

Conditioning = dict[str, Tensor]
"""What a denoiser is told about one caption; all tensors have a batch dimension of 1."""


@dataclass(frozen=True)
class AdaptedModule:
    """A part of the base model that can carry a LoRA."""

    name: str
    """Its name in the pipeline, such as ``unet``."""
    module: Any
    """A `torch.nn.Module` with the adapter methods of diffusers or transformers."""
    kohya_prefix: str
    target_modules: tuple[str, ...]
    """Endings of the names of the layers that get a LoRA unless the config says otherwise."""
    convolutions: tuple[str, ...] = ()
    """Endings of the 3x3 convolutions that get one where the config gives them a rank."""


class Architecture(Protocol):
    """One family of base models."""

    pipeline: DiffusionPipeline

    def published_names(self, prediction_type: str) -> BaseModelNames:
        """What ModelSpec and sd-scripts call a base model that predicts this."""
        ...

    def denoiser(self) -> AdaptedModule:
        """The network that removes noise."""
        ...

    def text_encoders(self) -> list[AdaptedModule]:
        """The text encoders that can be trained."""
        ...

    def bucket_step(self) -> int:
        """Multiple of pixels that both sides of a training image must have."""
        ...

    def default_size(self) -> int:
        """Side in pixels of the images that the base model was trained on."""
        ...

    def training_schedule(self, is_v_pred: bool | None) -> DDPMScheduler:
        """The noise schedule that the base model was trained with."""
        ...

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode (batch, 3, height, width) in -1..1 to the latents' mean and log variance."""
        ...

    def sample_latents(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Draw scaled latents from `encode_images`' output with standard normal ``noise``."""
        ...

    def cut(self, text: str) -> CutText | None:
        """Where a caption or prompt is cut because the text encoder reads no more; or None."""
        ...

    def encode_captions(self, captions: list[str]) -> list[Conditioning]:
        """Encode captions; gradients flow if a text encoder is trained."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Run the denoiser on a batch."""
        ...

    def call_arguments(self, **arguments: Any) -> dict[str, Any]:
        """Turn the common arguments of a generation into those of the pipeline's ``__call__``."""
        ...


def latent_shape(parameters: Tensor) -> torch.Size:
    """Shape of the latents whose distribution has these parameters (mean and log variance)."""
    batch, channels, height, width = parameters.shape
    return torch.Size((batch, channels // 2, height, width))
