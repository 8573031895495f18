"""The finished product: a StableDiffusionPipeline folder as diffusers and older tools read it."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

_PREFIX = "text_model."


def make_scheduler() -> DDIMScheduler:
    """Make the noise schedule: v-prediction, zero terminal SNR, trailing steps.

    Zero terminal SNR (Lin et al., arXiv:2305.08891) lets the model draw dark and coloured
    backgrounds: with the usual schedule the mean brightness leaks through the last step.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def export_pipeline(
    out: Path,
    *,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
) -> None:
    """Write the pipeline folder in fp16; the folder is replaced only when the new one is whole."""
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(vae).half(),
        text_encoder=copy.deepcopy(text_encoder).half(),
        tokenizer=tokenizer,
        unet=copy.deepcopy(unet).half().to(memory_format=torch.contiguous_format),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial, safe_serialization=True)
    _prefix_text_encoder_keys(partial / "text_encoder/model.safetensors")
    _make_portable(partial)
    replace_folder(partial, out)


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Load a pipeline folder in fp32, from disk only; FileNotFoundError if it is not one."""
    if not (folder / "model_index.json").exists():
        raise FileNotFoundError(f"{folder} is not a pipeline folder: no model_index.json")
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_component(component: Any, out: Path) -> None:
    """Write one part (VAE or tokenizer) as a folder that appears only when it is whole."""
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    component.save_pretrained(partial)
    _make_portable(partial)
    replace_folder(partial, out)


def replace_folder(new: Path, out: Path) -> None:
    """Put a finished folder in the place of an older one, if there is one."""
    old = out.with_name(f"{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.replace(old)
    new.replace(out)
    shutil.rmtree(old, ignore_errors=True)


def _prefix_text_encoder_keys(weights: Path) -> None:
    """Name the CLIP keys ``text_model.*``: transformers 4 needs it, transformers 5 reads both."""
    state = load_file(weights)
    if all(key.startswith(_PREFIX) for key in state):
        return
    renamed = {f"{_PREFIX}{key.removeprefix(_PREFIX)}": value for key, value in state.items()}
    save_file(renamed, weights, metadata={"format": "pt"})


def _make_portable(folder: Path) -> None:
    """Remove the paths that the libraries remember from loading, and let everybody read it."""
    for path in folder.rglob("*.*"):
        path.chmod(0o644)  # safetensors writes 0600
        if path.suffix != ".json" or path.name == "tokenizer.json":
            continue
        content = json.loads(path.read_text("utf-8"))
        kept = {k: v for k, v in content.items() if k not in ("_name_or_path", "name_or_path")}
        if kept != content:
            path.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
