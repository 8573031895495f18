"""Small base models and our adapters for them, with what each adapter adds to each weight."""

from datetime import UTC, datetime
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from loradash.data import base_model_folder
from loradash.domain.adapter import AdapterDescription
from loradash.domain.training_config import NetworkSection
from loradash.domain.training_text import parse_training
from loradash.engines.diffusers.child.adapter_file import write_adapter
from loradash.engines.diffusers.child.lora import ADAPTER_NAME, add_lora
from loradash.engines.diffusers.child.stable_diffusion import StableDiffusion

FORMATS = ("safetensors", "diffusers")
CASES = {
    "alpha-is-rank": {"linear": 4, "linear_alpha": 4},
    "alpha-1": {"linear": 4, "linear_alpha": 1},
    "alpha-16": {"linear": 4, "linear_alpha": 16},
    "convolutions": {"linear": 4, "linear_alpha": 2, "conv": 2, "conv_alpha": 5},
    "text-encoder": {"linear": 4, "linear_alpha": 2},
    "text-encoder-only": {"linear": 4, "linear_alpha": 2},
}
LEVELS = (32, 32, 64, 64)


def make_files(folder: Path) -> None:
    """Write ``sd1`` and ``sd2``, and for each ``<base>-<format>-<case>.safetensors``.

    Beside each, ``.deltas`` holds what is added by the names in the pipeline, in float32.
    """
    for base in ("sd1", "sd2"):
        _build(base).save_pretrained(folder / base)
        for case, network in CASES.items():
            pipeline = StableDiffusionPipeline.from_pretrained(folder / base)
            architecture = StableDiffusion(pipeline)
            modules = [] if case == "text-encoder-only" else [architecture.denoiser()]
            if case.startswith("text-encoder"):
                modules += architecture.text_encoders()
            torch.manual_seed(len(case))
            for adapted in modules:
                add_lora(adapted, NetworkSection(**network))
                for name, parameter in adapted.module.named_parameters():
                    if ".lora_B." in name:
                        torch.nn.init.normal_(parameter, std=0.1)
            for save_format in FORMATS:
                path = folder / f"{base}-{save_format}-{case}.safetensors"
                description = _description(architecture, network, base)
                write_adapter(path, modules, description, torch.float32, save_format)
                save_file(_deltas(modules), path.with_suffix(".deltas"))


def _build(base: str) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    width = 1024 if base == "sd2" else 48
    tokenizer = CLIPTokenizer.from_pretrained(base_model_folder("emoji-base") / "tokenizer")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=16,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=LEVELS, layers_per_block=2, cross_attention_dim=width,
        use_linear_projection=base == "sd2", attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=8, latent_channels=4)
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet,
        scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def _deltas(modules: list) -> dict[str, Tensor]:
    return {
        f"{adapted.name}.{name}": layer.get_delta_weight(ADAPTER_NAME).detach().contiguous()
        for adapted in modules
        for name, layer in adapted.module.named_modules()
        if ADAPTER_NAME in getattr(layer, "lora_A", {})
    }


def _description(architecture: StableDiffusion, network: dict, base: str) -> AdapterDescription:
    config = parse_training({"dataset": "photos", "base_model": base, "name": base})
    document = config.model_dump(mode="json", exclude_unset=True)
    config = parse_training(document, {f"network.{key}": value for key, value in network.items()})
    return AdapterDescription(
        process_id="check", created_at=datetime(2026, 1, 1, tzinfo=UTC), config=config,
        base_model=base, base_model_is_local=True, names=architecture.published_names("epsilon"),
        prediction_type="epsilon", zero_terminal_snr=False, precision="fp32", optimizer="",
        caption_tokens=75, datasets=(), dataset_sha256="",
    )  # fmt: skip
