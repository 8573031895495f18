"""Stable Diffusion 1.x and 2.x: one UNet, one CLIP text encoder, epsilon or v-prediction."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch import Tensor

from loradash.domain.adapter import BaseModelNames
from loradash.domain.text_length import CutText, cut_of
from loradash.domain.training_config import TrainSection
from loradash.engines.diffusers.child.architecture import (
    AdaptedModule,
    Conditioning,
    ImageFacts,
)
from loradash.engines.diffusers.child.latents import Posterior
from loradash.engines.diffusers.child.objective import DiffusionObjective
from loradash.engines.diffusers.target_layers import (
    CLIP_ATTENTION,
    UNET_CONVOLUTIONS,
    UNET_LINEARS,
)


class StableDiffusion:
    """`Architecture` of Stable Diffusion 1.x and 2.x."""

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self.pipeline = pipeline
        self._is_v2 = pipeline.unet.config.cross_attention_dim == 1024

    def published_names(self, prediction_type: str) -> BaseModelNames:
        """Version 2 takes captions of 1024 numbers a token; its 768 px models predict v."""
        predicts_v = prediction_type == "v_prediction"
        version = "v2" if self._is_v2 else "v1"
        size = ("-768-v" if predicts_v else "-512") if self._is_v2 else ""
        return BaseModelNames(
            modelspec=f"stable-diffusion-{version}{size}",
            kohya=f"sd_{version}{'_v' if predicts_v else ''}",
            is_v2=self._is_v2,
        )

    def denoiser(self) -> AdaptedModule:
        """The UNet."""
        return AdaptedModule(
            name="unet",
            module=self.pipeline.unet,
            kohya_prefix="lora_unet",
            target_modules=UNET_LINEARS,
            convolutions=UNET_CONVOLUTIONS,
        )

    def text_encoders(self) -> list[AdaptedModule]:
        """The CLIP text model."""
        return [
            AdaptedModule(
                name="text_encoder",
                module=self.pipeline.text_encoder,
                kohya_prefix="lora_te",
                target_modules=CLIP_ATTENTION,
                is_text=True,
            )
        ]

    def bucket_step(self) -> int:
        """Autoencoder's factor times the UNet's: 8 x 8 = 64 for the published models."""
        levels = len(self.pipeline.unet.config.block_out_channels)
        return int(self.pipeline.vae_scale_factor * 2 ** (levels - 1))

    def default_size(self) -> int:
        """512 for 1.x, 768 for 2.x."""
        return int(self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor)

    def objective(self, train: TrainSection, device: torch.device) -> DiffusionObjective:
        """Betas and prediction type of the pipeline's scheduler."""
        schedule = DDPMScheduler.from_config(self.pipeline.scheduler.config)
        return DiffusionObjective(schedule, train, device)

    def encode_images(self, pixels: Tensor) -> Posterior:
        """See `Architecture.encode_images`; in float32, since published ones overflow in fp16."""
        vae = self.pipeline.vae
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            parameters: Tensor = vae.encode(pixels.to(vae.dtype)).latent_dist.parameters
        return Posterior(*parameters.float().chunk(2, dim=1))

    def normalise(self, latents: Tensor) -> Tensor:
        """Scale, as `diffusers`' pipelines decode them."""
        return latents * float(self.pipeline.vae.config.scaling_factor)

    def decode(self, latents: Tensor) -> Tensor:
        """See `Architecture.decode`; in the autoencoder's float32, whatever was drawn in."""
        vae = self.pipeline.vae
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            scaled = latents.to(vae.dtype) / float(vae.config.scaling_factor)
            pixels: Tensor = vae.decode(scaled).sample
        return pixels

    def cut(self, text: str) -> CutText | None:
        """See `Architecture.cut`."""
        tokenizer: Any = self.pipeline.tokenizer
        tokens = tokenizer(text, truncation=False, return_offsets_mapping=True, verbose=False)
        return cut_of(text, tokens.offset_mapping, tokenizer.model_max_length)

    def encode_captions(self, captions: Sequence[str]) -> list[Conditioning]:
        """Hidden states of the text encoder's last layer, (77, width) each."""
        tokens = self.pipeline.tokenizer(
            list(captions),
            padding="max_length",
            max_length=self.pipeline.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        hidden = self.pipeline.text_encoder(tokens.input_ids.to(self.pipeline.device))[0]
        return [{"text": row} for row in hidden.unbind()]

    def predict(
        self,
        noisy: Tensor,
        time: Tensor,
        captions: Sequence[Conditioning],
        images: Sequence[ImageFacts],
    ) -> Tensor:
        """Run the UNet, which isn't told of images; ``time`` are the timesteps."""
        del images
        text = torch.stack([caption["text"] for caption in captions])
        prediction: Tensor = self.pipeline.unet(noisy, time, encoder_hidden_states=text).sample
        return prediction

    def call_arguments(self, **arguments: Any) -> dict[str, Any]:
        """The pipeline's own names are the common ones."""
        return arguments
