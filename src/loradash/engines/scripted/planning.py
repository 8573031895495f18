"""From configs and requests to what the scripted child is handed."""

import hashlib
from datetime import datetime
from pathlib import Path

import loradash
from loradash.data import EMBEDDED_BASE_MODELS
from loradash.domain.engine_use import EngineUse
from loradash.domain.generation import GenerationRequest, image_name
from loradash.domain.image_size import rounded_side
from loradash.domain.training_config import TrainingConfig
from loradash.engines.sample_prompts import sample_prompts
from loradash.engines.scripted.orders import parse_orders
from loradash.engines.scripted.plan import Picture, TrainingPlan

_SIDE = 64


def training_plan(
    use: EngineUse,
    process_id: str,
    config: TrainingConfig,
    dataset_sha256: str,
    folder: Path,
    created_at: datetime,
) -> TrainingPlan:
    """Return the plan of a config whose starting adapter, if any, lies in ``folder``."""
    process = config.process
    per_update = process.train.steps_per_update
    start = process.network.pretrained_lora_path
    return TrainingPlan(
        process_id=process_id,
        engine=use.model_dump(),
        created_at=created_at.isoformat(),
        name=config.name,
        steps=process.train.updates,
        seed=config.seed,
        learning_rate=process.train.unet_rate,
        rank=process.network.rank,
        alpha=process.network.alpha,
        dtype=process.save.dtype,
        save_every=_updates(process.save.save_every, per_update),
        keep=process.save.max_step_saves_to_keep,
        sample_every=0
        if process.train.disable_sampling
        else _updates(process.sample.sample_every, per_update),
        sample_start=process.sample.sample_start_step // per_update,
        sample_first=not process.train.skip_first_sample,
        samples=_previews_of(config),
        metadata=_metadata(use, process_id, config, dataset_sha256, created_at),
        start_sha256=_sha256(folder / start) if start else "",
        orders=parse_orders(process.model.name_or_path),
    )


def _updates(steps: int, per_update: int) -> int:
    return max(1, steps // per_update) if steps else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _metadata(
    use: EngineUse,
    process_id: str,
    config: TrainingConfig,
    dataset_sha256: str,
    created_at: datetime,
) -> dict[str, str]:
    network = config.process.network
    base_model = config.process.model.name_or_path
    fields = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "scripted/lora",
        "modelspec.implementation": "scripted",
        "modelspec.title": config.name,
        "modelspec.description": "Made by loradash's scripted engine: its weights mean nothing.",
        "modelspec.date": created_at.isoformat(timespec="seconds"),
        "loradash.version": loradash.__version__,
        "loradash.engine": use.name,
        "loradash.engine_version": use.version,
        "loradash.process_id": process_id,
        "loradash.base_model": base_model,
        "loradash.rank": str(network.rank),
        "loradash.alpha": f"{network.alpha:g}",
        "loradash.trigger_word": config.trigger_word,
        "loradash.dataset_sha256": dataset_sha256,
    }
    if config.process.save.metadata == "minimal":
        del fields["loradash.dataset_sha256"]
        if base_model not in EMBEDDED_BASE_MODELS:
            del fields["loradash.base_model"]
    return fields


def _previews_of(config: TrainingConfig) -> tuple[Picture, ...]:
    sample = config.process.sample
    return tuple(
        Picture(
            index, one.text,
            sample.seed + index * sample.walk_seed if one.settings.seed is None
            else one.settings.seed,
            rounded_side(one.settings.width or sample.width),
            rounded_side(one.settings.height or sample.height),
        )
        for index, one in enumerate(sample_prompts(sample, config.trigger_word))
    )  # fmt: skip


def pictures_of(request: GenerationRequest) -> list[Picture]:
    """Return the images of a request: those of the first prompt first, with seeds in a row."""
    pictures = []
    for number, prompt in enumerate(request.prompts):
        own = request.settings_of(number)
        seed = (request.seed or 0) if own.seed is None else own.seed
        for repeat in range(request.num_images):
            index = number * request.num_images + repeat
            pictures.append(
                Picture(
                    index, prompt, seed + repeat, own.width or request.width or _SIDE,
                    own.height or request.height or _SIDE, image_name(request.name, index),
                )
            )  # fmt: skip
    return pictures
