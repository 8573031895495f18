"""Real Stable Diffusion classes at a size that trains in milliseconds, built from configs."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from loradash.data import base_model_folder


def build_stable_diffusion(folder: Path, prediction_type: str = "epsilon") -> Path:
    """Save a pipeline of random weights: UNet of two levels, autoencoder f = 2, CLIP of two layers.

    Its buckets are multiples of 4 pixels. The tokenizer is the embedded base model's.
    """
    torch.manual_seed(0)
    tokenizer = _tokenizer()
    text_encoder = CLIPTextModel(_clip_config(tokenizer))
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip
    vae = _autoencoder(0.18215)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type=prediction_type, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    return folder


def build_stable_diffusion_xl(folder: Path, prediction_type: str = "epsilon") -> Path:
    """Save an SDXL pipeline of random weights: as above, with two CLIPs of different widths."""
    torch.manual_seed(0)
    tokenizer, tokenizer_2 = _tokenizer(), _tokenizer()
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=56,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4), norm_num_groups=8, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
        prediction_type=prediction_type, timestep_spacing="leading",
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        vae=_autoencoder(0.13025), unet=unet, scheduler=scheduler, add_watermarker=False,
        text_encoder=CLIPTextModel(_clip_config(tokenizer)), tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(
            _clip_config(tokenizer_2, hidden_size=24, projection_dim=16, num_hidden_layers=3)
        ),
        tokenizer_2=tokenizer_2,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(base_model_folder("emoji-base") / "tokenizer")


def _clip_config(tokenizer: CLIPTokenizer, **changes: int) -> CLIPTextConfig:
    settings = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 16,
    }  # fmt: skip
    return CLIPTextConfig(
        vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        **(settings | changes),
    )  # fmt: skip


def _autoencoder(scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4,
        norm_num_groups=8, sample_size=32, mid_block_add_attention=False,
        scaling_factor=scaling_factor,
    )  # fmt: skip
