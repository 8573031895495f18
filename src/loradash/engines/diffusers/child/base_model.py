"""Loading a base model with diffusers' ordinary loaders, and saying plainly why it failed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from loradash.engines.diffusers.base_models.families import (
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_XL,
    BaseModelSource,
    Family,
)
from loradash.engines.diffusers.base_models.findings import Finding, invalid_base_model
from loradash.engines.diffusers.base_models.inspection import checkpoint_of, inspect
from loradash.engines.diffusers.base_models.parts import PartKind
from loradash.engines.diffusers.child.architecture import Architecture
from loradash.engines.diffusers.child.emitter import Emitter
from loradash.engines.diffusers.child.hub_download import on_this_disk
from loradash.engines.diffusers.child.networks import load_networks, not_finite
from loradash.engines.diffusers.child.pickles import no_pickles, wanted_pickle
from loradash.engines.diffusers.child.stable_diffusion import StableDiffusion
from loradash.engines.diffusers.child.stable_diffusion_xl import StableDiffusionXL
from loradash.engines.diffusers.token_count import text_limit
from loradash.engines.stop_signal import StopSignal
from loradash.errors import InvalidBaseModel, LoradashError, OutOfMemory


class Loader(NamedTuple):
    """How the base models of a family are loaded."""

    pipeline: Any
    """The class in diffusers."""
    architecture: Callable[[Any], Architecture]
    left_out: Mapping[str, Any]
    """Arguments that keep it from loading what no training or preview needs."""


LOADERS: Mapping[str, Loader] = {
    STABLE_DIFFUSION.name: Loader(
        StableDiffusionPipeline,
        StableDiffusion,
        # A safety checker is a second network of 1.2 GB.
        {"safety_checker": None, "requires_safety_checker": False},
    ),
    STABLE_DIFFUSION_XL.name: Loader(
        StableDiffusionXLPipeline, StableDiffusionXL, {"add_watermarker": False}
    ),
}
_ENCODERS: tuple[PartKind, ...] = ("clip",)


def load_base_model(
    source: BaseModelSource,
    dtype: torch.dtype,
    device: torch.device,
    emitter: Emitter,
    stop: StopSignal,
    *,
    offline: bool,
) -> Architecture:
    """Load a pipeline onto ``device``: networks in ``dtype``, the autoencoder in float32.

    Only safetensors weights are read; those on the hub are downloaded first, which ``emitter``
    tells and ``stop`` ends. Raises `InvalidBaseModel`, `OutOfMemory`, `DiskFull`, `Interrupted`.
    """
    source = on_this_disk(source, emitter, stop, offline=offline)
    stop.check()
    try:
        with no_pickles():
            pipeline, family = _load(source, dtype)
    except LoradashError:
        raise
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
            f"base model {source.name} can't be loaded: {_with_cause(error)}",
            remedy="Use another copy of the model, saved by a recent version of diffusers.",
        ) from error
    _prepare(pipeline, family, source.name, dtype)
    if source.is_v_pred is not None:
        kind = "v_prediction" if source.is_v_pred else "epsilon"
        _reschedule(pipeline, prediction_type=kind)
    try:
        pipeline.to(device)
        pipeline.vae.to(dtype=torch.float32)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"base model {source.name}: not enough GPU memory to hold it",
            remedy="Free GPU memory, or use bf16.",
        ) from error
    return LOADERS[family.name].architecture(pipeline)


def _prepare(pipeline: Any, family: Family, name: str, dtype: torch.dtype) -> None:
    """Freeze a loaded pipeline's networks, bound its texts, and look for values that aren't finite.

    Raises `InvalidBaseModel`.
    """
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False)
            component.eval()
    networks = {part.name: getattr(pipeline, part.name) for part in family.parts if part.weights}
    for part in family.parts:
        if part.kind == "tokenizer":
            tokenizer, encoder = getattr(pipeline, part.name), networks[part.text_encoder]
            tokenizer.model_max_length = text_limit(
                tokenizer.model_max_length, encoder.config.max_position_embeddings
            )
    if findings := list(not_finite(networks, dtype)):
        raise invalid_base_model(name, findings)


def _load(source: BaseModelSource, dtype: torch.dtype) -> tuple[Any, Family]:
    common: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    if source.kind == "single_file":
        return _load_single_file(source, common, dtype)
    layout = inspect(source).layout
    assert layout is not None
    loader = LOADERS[layout.family.name]
    findings: list[Finding] = []
    networks = load_networks(Path(source.location), layout, dtype, findings)
    if findings:
        raise invalid_base_model(source.name, findings)
    pipeline = loader.pipeline.from_pretrained(
        source.location,
        **common,
        **networks,
        **loader.left_out,
        feature_extractor=None,
        image_encoder=None,
    )
    return pipeline, layout.family


def _load_single_file(
    source: BaseModelSource, common: dict[str, Any], dtype: torch.dtype
) -> tuple[Any, Family]:
    checkpoint = checkpoint_of(source)
    loader = LOADERS[checkpoint.family.name]
    options = {**common, **loader.left_out}
    if source.extras:
        options["config"] = source.extras
    layout = None if checkpoint.has_text_encoders else inspect(source).layout
    if layout and source.extras and Path(source.extras).is_dir():
        findings: list[Finding] = []
        options |= load_networks(Path(source.extras), layout, dtype, findings, _ENCODERS)
        if findings:
            raise invalid_base_model(source.name, findings)
    pipeline = loader.pipeline.from_single_file(source.location, **options)
    if checkpoint.predicts_v:
        _reschedule(pipeline, prediction_type="v_prediction")
    if checkpoint.ends_in_noise:
        _reschedule(pipeline, rescale_betas_zero_snr=True)
    return pipeline, checkpoint.family


def _reschedule(pipeline: Any, **changes: Any) -> None:
    """Change settings of the noise schedule, for trainings and pictures alike."""
    scheduler = pipeline.scheduler
    pipeline.scheduler = type(scheduler).from_config(scheduler.config, **changes)


def _with_cause(error: BaseException) -> str:
    """The error's text and, where it was raised from another one, that one's too."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    texts = [" ".join(str(one).split()) or type(one).__name__ for one in (error, chain[-1])]
    return texts[0] if len(chain) == 1 else f"{texts[0]} (cause: {texts[1]})"
