"""Loading a base model with diffusers' ordinary loaders, and saying plainly why it failed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors import safe_open

from loradash.engines.diffusers.child.architecture import Architecture
from loradash.engines.diffusers.child.pickles import no_pickles, wanted_pickle
from loradash.engines.diffusers.child.stable_diffusion import StableDiffusion
from loradash.engines.diffusers.families import BaseModelSource
from loradash.errors import InvalidBaseModel, OutOfMemory

ARCHITECTURES: dict[str, Callable[[Any], Architecture]] = {
    StableDiffusionPipeline.__name__: StableDiffusion,
}


def load_base_model(
    source: BaseModelSource, dtype: torch.dtype, device: torch.device, *, offline: bool
) -> Architecture:
    """Load a pipeline onto ``device``: networks in ``dtype``, the autoencoder in float32.

    Only safetensors weights are read. Raises `InvalidBaseModel` and `OutOfMemory`.
    """
    try:
        with no_pickles():
            pipeline = _load(source, dtype, offline)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory(
            f"base model {source.name}: not enough memory to load it",
            remedy="Free memory, use a smaller base model, or train in bf16.",
        ) from error
    except Exception as error:
        if wanted_pickle(error):
            raise InvalidBaseModel(
                f"base model {source.name}: some of its weights are only there as .bin, .ckpt or "
                ".pt files, which can run code when they are read",
                remedy="Use a version of the model whose weights are all .safetensors files.",
            ) from error
        raise InvalidBaseModel(
            f"base model {source.name} can't be loaded: {_first_line(error)}",
            remedy=_remedy(source, offline),
        ) from error
    name = type(pipeline).__name__
    if name not in ARCHITECTURES:
        raise InvalidBaseModel(
            f"base model {source.name} is a {name}, which the diffusers engine can't handle yet",
            remedy=f"Use a base model of: {', '.join(sorted(ARCHITECTURES))}.",
        )
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False)
            component.eval()
    _check_text_encoder(pipeline, source)
    try:
        pipeline.to(device)
        pipeline.vae.to(dtype=torch.float32)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"base model {source.name}: not enough GPU memory to hold it",
            remedy="Free GPU memory, or use bf16.",
        ) from error
    return ARCHITECTURES[name](pipeline)


def _load(source: BaseModelSource, dtype: torch.dtype, offline: bool) -> DiffusionPipeline:
    # A safety checker is a second network of 1.2 GB that no training or preview needs.
    common: dict[str, Any] = {"dtype": dtype, "local_files_only": offline}
    if source.kind == "single_file":
        extras = {"config": source.extras} if source.extras else {}
        return StableDiffusionPipeline.from_single_file(
            source.location, **common, **extras, safety_checker=None
        )
    if source.kind == "folder":
        common |= {"local_files_only": True, "variant": _variant(Path(source.location))}
    return DiffusionPipeline.from_pretrained(
        source.location,
        **common,
        use_safetensors=True,
        safety_checker=None,
        requires_safety_checker=False,
    )


def _variant(folder: Path) -> str | None:
    """Return ``fp16`` for a folder that only holds the half-precision files."""
    weights = list(folder.glob("unet/*.safetensors"))
    halves = [path for path in weights if ".fp16." in path.name]
    return "fp16" if halves and len(halves) == len(weights) else None


def _check_text_encoder(pipeline: DiffusionPipeline, source: BaseModelSource) -> None:
    """Refuse a text encoder that kept its random start because no weight had a matching name.

    Library versions disagree on CLIP's key names (with or without ``text_model.``), and where they
    don't match they only log a line and go on with random weights.
    """
    encoder = getattr(pipeline, "text_encoder", None)
    if encoder is None or source.kind != "folder":
        return
    suffix = "token_embedding.weight"
    loaded = next(
        (value for key, value in encoder.named_parameters() if key.endswith(suffix)), None
    )
    for path in sorted(Path(source.location, "text_encoder").glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                if not key.endswith(suffix) or loaded is None:
                    continue
                stored = file.get_tensor(key).to(loaded.dtype)
                if not torch.equal(stored, loaded.detach().cpu()):
                    raise InvalidBaseModel(
                        f"base model {source.name}: the text encoder's weights don't match the "
                        "names that the installed transformers expects",
                        remedy="Save the base model again with the installed versions.",
                    )
                return


def _remedy(source: BaseModelSource, offline: bool) -> str:
    if source.kind == "hub" and offline:
        return (
            "Downloads are off (HF_HUB_OFFLINE): give a local folder, or allow downloads once so "
            "that the model is in the cache."
        )
    if source.kind == "hub":
        return (
            "Check the id and the network, and set HF_TOKEN if the model asks for it; or give a "
            "local folder."
        )
    if source.kind == "single_file":
        return (
            "A single file holds no configuration. Without a network, give the folder of a model "
            "of the same kind as model.extras_name_or_path."
        )
    return "Check that the folder is complete: every part needs its .safetensors file and config."


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
