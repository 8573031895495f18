"""What an adapter file says about itself, in the metadata that other programs read.

Stability AI's ModelSpec 1.0.1 (``modelspec.*``), sd-scripts' ``ss_*``, our own ``loradash.*``, and
what the config's ``meta`` holds, under its own names as ai-toolkit writes it. All values are text,
as safetensors wants them. docs/adapters.md lists them for users.
"""

import json
from typing import Any

import loradash
from loradash.domain.adapter import AdapterDescription
from loradash.domain.kohya_metadata import kohya_metadata


def adapter_metadata(description: AdapterDescription) -> dict[str, str]:
    """Return an adapter's metadata, without the hashes of its tensors."""
    return {
        **_from_the_user(description),
        "format": "pt",
        **_model_spec(description),
        **kohya_metadata(description),
        **_our_own(description),
    }


def _from_the_user(description: AdapterDescription) -> dict[str, str]:
    meta = description.config.meta.model_dump(mode="json", exclude_unset=True)
    return {key: _text(value, description) for key, value in meta.items() if value is not None}


def _text(value: Any, description: AdapterDescription) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.replace("[name]", description.config.name)  # as in ai-toolkit's files


def _model_spec(description: AdapterDescription) -> dict[str, str]:
    config = description.config
    train, meta = config.process.train, config.meta
    side = max(config.process.datasets[0].resolution)
    v_prediction = description.prediction_type == "v_prediction"
    fields: dict[str, str | None] = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{description.names.modelspec}/lora",
        "implementation": "diffusers",
        "title": meta.title or config.name,
        "date": description.created_at.isoformat(timespec="seconds"),
        "resolution": f"{side}x{side}",
        "prediction_type": "v" if v_prediction else description.prediction_type,
        "trigger_phrase": config.trigger_word,
        "description": meta.description,
        "author": meta.author or meta.creator_name,
        "license": meta.license,
        "usage_hint": meta.usage_hint,
        "tags": ", ".join(meta.tags),
    }
    if (train.min_denoising_steps, train.max_denoising_steps) != (0, 999):
        fields["timestep_range"] = f"{train.min_denoising_steps},{train.max_denoising_steps}"
    if config.process.save.metadata == "full":
        fields["thumbnail"] = description.thumbnail
    return {
        f"modelspec.{name}": _text(value, description) for name, value in fields.items() if value
    }


def _our_own(description: AdapterDescription) -> dict[str, str]:
    config = description.config
    fields = {
        "version": loradash.__version__,
        "engine": description.engine.name,
        "engine_version": description.engine.version,
        "process_id": description.process_id,
        "base_model": description.base_model,
        "rank": str(config.process.network.rank),
        "alpha": f"{config.process.network.alpha:g}",
        "trigger_word": config.trigger_word,
        "steps": str(description.steps),
        "dataset_sha256": description.dataset_sha256,
    }
    if not description.engine.version:  # a job of an earlier release
        del fields["engine_version"]
    if config.process.save.metadata == "minimal":
        del fields["dataset_sha256"]
        if description.base_model_is_local:
            del fields["base_model"]
    return {f"loradash.{name}": value for name, value in fields.items()}
