"""The port of a base model's architecture: all that training and sampling need to know about it.

One class per architecture, found by its family in `LOADERS`. The trainer
and the generator hold no ``if sdxl`` anywhere: what differs stands behind this port.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from loradash.domain.adapter import BaseModelNames
from loradash.domain.text_length import CutText
from loradash.domain.training_config import TrainSection
from loradash.engines.diffusers.child.latents import Posterior
from loradash.engines.diffusers.child.objective import Objective

Conditioning = dict[str, Tensor]
"""What a denoiser is given for one caption, by name; no tensor has a batch axis or padding."""


class ImageFacts(NamedTuple):
    """Where a training image comes from; some denoisers are told. All are (height, width)."""

    original: tuple[int, int]
    """Size of the image's file in pixels."""
    crop: tuple[int, int]
    """What was cut off at the top and at the left, in pixels of ``target``."""
    target: tuple[int, int]
    """Size at which it is trained."""


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
    is_text: bool = False
    """Whether it is a text encoder."""


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

    def objective(self, train: TrainSection, device: torch.device) -> Objective:
        """What the base model was trained to predict, with the config's choices."""
        ...

    def encode_images(self, pixels: Tensor) -> Posterior:
        """Encode (batch, 3, height, width) in -1..1."""
        ...

    def normalise(self, latents: Tensor) -> Tensor:
        """Turn the autoencoder's latents into the denoiser's: shifted, scaled, rearranged."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Turn what the pipeline returns as latents into (batch, 3, height, width) in -1..1."""
        ...

    def cut(self, text: str) -> CutText | None:
        """Where a caption or prompt is cut because the text encoder reads no more; or None."""
        ...

    def encode_captions(self, captions: Sequence[str]) -> list[Conditioning]:
        """Encode captions; gradients flow if a text encoder is trained."""
        ...

    def predict(
        self,
        noisy: Tensor,
        time: Tensor,
        captions: Sequence[Conditioning],
        images: Sequence[ImageFacts],
    ) -> Tensor:
        """Run the denoiser on ``noisy`` (batch, channels, height, width), with a caption for each.

        ``time`` (batch,) and what is returned are the objective's.
        """
        ...

    def call_arguments(self, **arguments: Any) -> dict[str, Any]:
        """Turn the common arguments of a generation into those of the pipeline's ``__call__``."""
        ...
