"""Writes a pipeline as the single file that Stable Diffusion was first published in.

Only the names differ; this is the way back from diffusers' names, for the layouts of the tests.
"""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip


def write_single_file(pipeline: StableDiffusionPipeline, path: Path) -> Path:
    """Save UNet, autoencoder and text encoder under their original names."""
    tensors = {
        **_renamed("model.diffusion_model.", pipeline.unet.state_dict(), _unet_names(pipeline)),
        **_renamed("first_stage_model.", pipeline.vae.state_dict(), _vae_names(pipeline)),
    }
    for key, value in pipeline.text_encoder.state_dict().items():
        name = key.removeprefix("text_model.")
        tensors[f"cond_stage_model.transformer.text_model.{name}"] = value
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def write_single_file_xl(pipeline: StableDiffusionXLPipeline, path: Path, *marks: str) -> Path:
    """Save an SDXL pipeline; ``marks`` are names of empty tensors that say something of it."""
    names = _unet_names(pipeline) | {
        "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    }  # fmt: skip
    tensors = {
        **_renamed("model.diffusion_model.", pipeline.unet.state_dict(), names),
        **_renamed("first_stage_model.", pipeline.vae.state_dict(), _vae_names(pipeline)),
        **_open_clip("conditioner.embedders.1.model.", pipeline.text_encoder_2.state_dict()),
        **{mark: torch.zeros(0) for mark in marks},
    }
    for key, value in pipeline.text_encoder.state_dict().items():
        name = key.removeprefix("text_model.")
        tensors[f"conditioner.embedders.0.transformer.text_model.{name}"] = value
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path)
    return path


def _open_clip(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of open_clip, which keeps queries, keys and values in one matrix."""
    outside = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
    }  # fmt: skip
    inside = {
        "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj",
    }  # fmt: skip
    result = {}
    for key, value in state.items():
        name = key.removeprefix("text_model.")
        if name == "text_projection.weight":
            result[f"{prefix}text_projection"] = value.T
        elif name in outside:
            result[prefix + outside[name]] = value
        elif name.startswith("encoder.layers."):
            number, _, rest = name.removeprefix("encoder.layers.").partition(".")
            place = f"{prefix}transformer.resblocks.{number}."
            layer, _, end = rest.rpartition(".")
            if layer in inside:
                result[f"{place}{inside[layer]}.{end}"] = value
            elif layer == "self_attn.q_proj":
                three = [state[key.replace("q_proj", f"{one}_proj")] for one in "qkv"]
                result[f"{place}attn.in_proj_{end}"] = torch.cat(three)
    return result


def _renamed(prefix: str, state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    result = {}
    for key, value in state.items():
        start = max((old for old in names if key.startswith(f"{old}.")), key=len)
        rest = key.removeprefix(f"{start}.")
        if ".resnets." in f".{start}." and prefix.startswith("model."):
            layer, dot, end = rest.partition(".")
            rest = f"{_RESNET[layer]}{dot}{end}"
        elif prefix.startswith("first"):
            rest = rest.replace("conv_shortcut", "nin_shortcut")
        result[f"{prefix}{names[start]}.{rest}"] = value
    return result


def _unet_names(pipeline: StableDiffusionPipeline) -> dict[str, str]:
    unet = pipeline.unet
    names = {
        "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2", "conv_norm_out": "out.0", "conv_out": "out.2",
        "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }  # fmt: skip
    number = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            names[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{number}.0"
            names[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{number}.1"
            number += 1
        if block.downsamplers:
            names[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for i, block in enumerate(unet.up_blocks):
        attentions = hasattr(block, "attentions")
        for j in range(len(block.resnets)):
            names[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{number}.0"
            names[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{number}.1"
            number += 1
        place = 2 if attentions else 1
        names[f"up_blocks.{i}.upsamplers.0"] = f"output_blocks.{number - 1}.{place}"
    return names


def _vae_names(pipeline: StableDiffusionPipeline) -> dict[str, str]:
    vae = pipeline.vae
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for part in ("encoder", "decoder"):
        names |= {
            f"{part}.conv_in": f"{part}.conv_in", f"{part}.conv_out": f"{part}.conv_out",
            f"{part}.conv_norm_out": f"{part}.norm_out",
            f"{part}.mid_block.resnets.0": f"{part}.mid.block_1",
            f"{part}.mid_block.resnets.1": f"{part}.mid.block_2",
        }  # fmt: skip
    count = len(vae.encoder.down_blocks)
    for i in range(count):
        for j in range(len(vae.encoder.down_blocks[i].resnets)):
            names[f"encoder.down_blocks.{i}.resnets.{j}"] = f"encoder.down.{i}.block.{j}"
        names[f"encoder.down_blocks.{i}.downsamplers.0"] = f"encoder.down.{i}.downsample"
        for j in range(len(vae.decoder.up_blocks[i].resnets)):
            names[f"decoder.up_blocks.{i}.resnets.{j}"] = f"decoder.up.{count - 1 - i}.block.{j}"
        names[f"decoder.up_blocks.{i}.upsamplers.0"] = f"decoder.up.{count - 1 - i}.upsample"
    return names
