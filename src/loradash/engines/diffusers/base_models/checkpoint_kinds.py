"""What a single .safetensors file is, told by the names and shapes of its tensors.

People have many files of one ending: whole checkpoints of each family, parts of one, adapters. The
names are those of the original programs (CompVis ``ldm``, Stability's and Black Forest Labs'
repositories) as diffusers 0.42 tells them apart (``loaders/single_file_utils.py``).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from loradash.engines.diffusers.base_models.families import (
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_XL,
    Family,
)
from loradash.engines.diffusers.base_models.findings import Finding
from loradash.engines.diffusers.base_models.pipeline_layout import INPUT_CHANNELS
from loradash.engines.diffusers.base_models.weights import Tensor

_UNET = "model.diffusion_model."
_FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"
_V2_ATTENTION = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
# What a name must hold, and what the file is then; the first that fits counts.
_ADAPTER = (
    ".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".lora.down.", ".hada_w1_a", ".lokr_w",
)  # fmt: skip
_KINDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("image_proj.", "ip_adapter."), "an IP-Adapter"),
    (("control_model.", "controlnet_cond_embedding.", "input_hint_block."), "a ControlNet"),
    (("motion_modules.",), "an AnimateDiff motion module"),
    (("emb_params", "string_to_param"), "an embedding (textual inversion)"),
    (("edm_mean",), "a Playground v2.5 model"),
    (("conditioner.embedders.0.model.",), "the refiner of SDXL"),
    (("distilled_guidance_layer.",), "a Chroma model"),
    (("single_stream_modulation.",), "a FLUX.2 model"),
    (("double_stream_blocks.",), "a HiDream model"),
    (("double_blocks.", "single_transformer_blocks."), "a FLUX model"),
    (("joint_blocks.",), "an SD3 model"),
    (("cap_embedder.", "noise_refiner."), "a Z-Image or Lumina model"),
    (("transformer_blocks.0.img_mod", "txtfusion."), "a Qwen-Image or Krea model"),
    (("blocks.0.self_attn.",), "a Wan model"),
)
_WHOLE = "give the whole checkpoint, or the top folder of a diffusers pipeline"


_XL = "model.diffusion_model.label_emb."
_PREDICTS_V = "v_pred"
"""An empty tensor by which checkpoints of SDXL say that they predict v; ComfyUI reads it, too."""
_ENDS_IN_NOISE = "ztsnr"
"""An empty tensor by which they say that their noise schedule ends in pure noise."""


class Checkpoint(NamedTuple):
    """A whole checkpoint in the names of the original code."""

    family: Family
    native_size: int
    """Side in pixels of the images that such models were trained on."""
    configs: str
    """The repository whose configs fit, as diffusers chooses it."""
    has_text_encoders: bool
    predicts_v: bool = False
    ends_in_noise: bool = False


def checkpoint_kind(tensors: Mapping[str, Tensor]) -> Checkpoint | Finding:
    """Return what a file is by its tensors, or why it can't be a base model here."""
    if _holds(_ADAPTER, tensors):
        return Finding(
            "this is an adapter (LoRA), not a base model",
            "give the model that it was trained on; an adapter to start from is "
            "network.pretrained_lora_path",
        )
    for parts, kind in _KINDS:
        if _holds(parts, tensors):
            return Finding(
                f"this is {kind}, which the diffusers engine can't train", STABLE_DIFFUSION.ordinary
            )
    first = tensors.get(_FIRST_CONVOLUTION)
    has_vae = any(key.startswith("first_stage_model.") for key in tensors)
    if first is None:
        return Finding(_what_else(tensors, has_vae=has_vae), _WHOLE)
    is_xl = any(key.startswith(_XL) for key in tensors)
    if what := INPUT_CHANNELS.get(first.shape[1] if len(first.shape) > 1 else 4):
        family = STABLE_DIFFUSION_XL if is_xl else STABLE_DIFFUSION
        return Finding(f"this is {what}", family.ordinary)
    if not has_vae:
        return Finding("it holds no VAE (first_stage_model.*)", _WHOLE)
    if quantised := [key for key, one in tensors.items() if one.dtype in ("U8", "I8")
                     and key.endswith(".weight")]:  # fmt: skip
        return Finding(
            f"it is quantised ({quantised[0]} is {tensors[quantised[0]].dtype})",
            "use the model's version that isn't quantised",
        )
    return _described(tensors, is_xl=is_xl)


def _described(tensors: Mapping[str, Tensor], *, is_xl: bool) -> Checkpoint:
    """Describe a whole checkpoint that can be a base model."""
    if is_xl:
        return Checkpoint(
            STABLE_DIFFUSION_XL,
            1024,
            "stabilityai/stable-diffusion-xl-base-1.0",
            has_text_encoders=_holds(("conditioner.embedders.1.",), tensors),
            predicts_v=_PREDICTS_V in tensors,
            ends_in_noise=_ENDS_IN_NOISE in tensors,
        )
    attention = tensors.get(_V2_ATTENTION)
    has_text = any(key.startswith("cond_stage_model.") for key in tensors)
    if attention is not None and attention.shape[-1] == 1024:
        return Checkpoint(STABLE_DIFFUSION, 768, "stabilityai/stable-diffusion-2-1", has_text)
    return Checkpoint(
        STABLE_DIFFUSION, 512, "stable-diffusion-v1-5/stable-diffusion-v1-5", has_text
    )


def _holds(parts: tuple[str, ...], tensors: Iterable[str]) -> bool:
    return any(part in key for key in tensors for part in parts)


def _what_else(tensors: Mapping[str, Tensor], *, has_vae: bool) -> str:
    """Describe a file without the original UNet."""
    tops = {key.split(".", 1)[0] for key in tensors}
    if {"down_blocks", "up_blocks", "conv_in"} <= tops:
        return "this is only the UNet of a diffusers folder"
    if {"encoder", "decoder"} & tops or has_vae:
        return "this is only a VAE"
    if {"text_model", "text_projection"} & tops or "cond_stage_model" in tops:
        return "this is only a text encoder"
    names = ", ".join(sorted(tensors)[:3])
    if any(key.startswith(_UNET) for key in tensors):
        return f"this is a model that the diffusers engine doesn't know (it holds {names}, ...)"
    return f"this isn't a checkpoint of Stable Diffusion (it holds {names}, ...)"
