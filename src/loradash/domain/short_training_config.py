"""The short form of a training config, which expands to the full one."""

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from loradash.domain.engine_use import EngineName
from loradash.domain.names import Name
from loradash.domain.schema import Section
from loradash.domain.training_config import (
    AnyPrecision,
    DatasetPath,
    FilePath,
    Pixels,
    Rate,
    SeedOrRandom,
    SnrGamma,
    Text,
    as_list,
    split_at_commas,
)


def _list_or_none(value: Any) -> Any:
    return None if value is None else as_list(value)


_KEYS = {
    "network.linear": "rank", "network.linear_alpha": "alpha",
    "network.target_modules": "target_modules", "network.pretrained_lora_path": "from_adapter",
    "train.steps": "steps", "train.lr": "learning_rate", "train.lr_scheduler": "lr_scheduler",
    "train.text_encoder_lr": "text_encoder_learning_rate", "train.optimizer": "optimizer",
    "train.batch_size": "batch_size", "train.gradient_accumulation": "gradient_accumulation",
    "train.reg_weight": "regularization_weight", "train.min_snr_gamma": "min_snr_gamma",
    "train.ema_config.ema_decay": "ema_decay", "train.lr_scheduler_params": "warmup_steps",
    "save.save_every": "save_every", "save.max_step_saves_to_keep": "keep_checkpoints",
    "datasets[0].num_repeats": "num_repeats", "sample.sample_every": "sample_every",
    "sample.sampler": "sampler", "sample.width": "sample_size", "sample.height": "sample_size",
    "sample.sample_steps": "sample_steps", "sample.guidance_scale": "guidance_scale",
    "sample.prompts": "sample_prompts",
}  # fmt: skip
"""Where keys of the short form stand below the process."""
_PROCESS = "config.process[0]."


def short_name(problem: str, given: Collection[str]) -> str:
    """Name the key of the short form in a problem of the full one.

    Keys that were given by their path (``--set train.lr=1``) keep it.
    """
    place, colon, text = problem.removeprefix(_PROCESS).partition(": ")
    for path, key in _KEYS.items():
        if path in given or not re.fullmatch(rf"{re.escape(path)}(\[\d+\])?", place):
            continue
        return f"{key}{place[len(path) :]}{colon}{text}"
    return problem


class ShortTrainingConfig(Section):
    """The short form: the settings most people change, with defaults that train well."""

    dataset: DatasetPath
    base_model: FilePath
    name: Name = "my_lora"
    engine: EngineName | None = Field(None, description="what trains it; default: LORADASH_ENGINE")
    trigger_word: Text | None = None
    regularization: DatasetPath | None = Field(None, description="folder of prior images")
    prior_preservation: bool = Field(
        True, description="on prior images, learn what the base model predicts without the adapter"
    )
    regularization_weight: float = Field(1.0, ge=0, le=1000, description="of prior images' loss")
    from_adapter: FilePath | None = Field(
        None, description="start from this adapter: a file, or the id or name of a training"
    )
    steps: int = Field(1000, ge=1)
    rank: int = Field(16, ge=1, le=1024)
    alpha: float | None = Field(None, gt=0, description="default: the rank")
    target_modules: list[str] | None = Field(None, min_length=1)
    learning_rate: float = Field(1e-4, gt=0)
    text_encoder_learning_rate: float | None = Field(None, gt=0, description="trains it too")
    lr_scheduler: str = "cosine"
    warmup_steps: int = Field(0, ge=0)
    optimizer: str = "adamw"
    batch_size: int = Field(1, ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    gradient_checkpointing: bool = True
    precision: AnyPrecision = "auto"
    resolution: Annotated[
        list[Pixels] | None, BeforeValidator(_list_or_none), Field(min_length=1)
    ] = Field(None, description="default: the base model's own size")
    num_repeats: int = Field(1, ge=1)
    caption_dropout_rate: Rate = 0.0
    min_snr_gamma: SnrGamma = None
    ema_decay: float | None = Field(None, gt=0, lt=1)
    seed: SeedOrRandom = 0
    save_every: int = Field(250, ge=0)
    keep_checkpoints: int = Field(4, ge=0)
    on_bad_image: Literal["stop", "skip"] = "stop"
    sample_prompts: list[Text] = Field(default_factory=list)
    sample_every: int = Field(250, ge=0)
    sample_size: Pixels | None = Field(None, description="default: as the first resolution")
    sample_steps: int = Field(20, ge=1)
    guidance_scale: float = Field(7.0, ge=0)
    sampler: str = "default"
    metadata: Literal["full", "minimal"] = Field(
        "full", description="minimal leaves out what tells of the data (folders, tags)"
    )
    description: Text | None = Field(None, description="of the adapter, for who gets the file")
    author: Text | None = None
    license: Text | None = None
    usage_hint: Text | None = None
    tags: Annotated[list[Text], BeforeValidator(split_at_commas)] = Field(default_factory=list)

    def expanded(self) -> dict[str, Any]:
        """Return the same training as a document of the full form."""
        process: dict[str, Any] = {
            "type": "diffusion_trainer",
            "trigger_word": self.trigger_word,
            "training_seed": self.seed,
            "network": {
                "type": "lora",
                **self._network(),
                **({"target_modules": self.target_modules} if self.target_modules else {}),
            },
            "save": {
                "save_every": self.save_every,
                "max_step_saves_to_keep": self.keep_checkpoints,
                "metadata": self.metadata,
            },
            "datasets": self._datasets(),
            "train": self._train(),
            "model": {"name_or_path": self.base_model},
            "sample": self._sample(),
        }
        return {
            "job": "extension",
            **({"engine": self.engine} if self.engine else {}),
            "config": {"name": self.name, "process": [process]},
            **({"meta": meta} if (meta := self._meta()) else {}),
        }

    def _datasets(self) -> list[dict[str, Any]]:
        resolution = {"resolution": self.resolution} if self.resolution else {}
        datasets: list[dict[str, Any]] = [
            {
                "folder_path": self.dataset,
                **resolution,
                "num_repeats": self.num_repeats,
                "caption_dropout_rate": self.caption_dropout_rate,
                "on_bad_image": self.on_bad_image,
            }
        ]
        if self.regularization:
            datasets.append(
                {
                    "folder_path": self.regularization,
                    **resolution,
                    "is_reg": True,
                    "prior_reg": self.prior_preservation,
                    "on_bad_image": self.on_bad_image,
                }
            )
        return datasets

    def _train(self) -> dict[str, Any]:
        train: dict[str, Any] = {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "gradient_accumulation": self.gradient_accumulation,
            "lr": self.learning_rate,
            "optimizer": self.optimizer,
            "lr_scheduler": self.lr_scheduler,
            "lr_scheduler_params": self._schedule(),
            "dtype": self.precision,
            "gradient_checkpointing": self.gradient_checkpointing,
            "reg_weight": self.regularization_weight,
            "min_snr_gamma": self.min_snr_gamma,
            "train_text_encoder": self.text_encoder_learning_rate is not None,
            "text_encoder_lr": self.text_encoder_learning_rate,
        }
        if self.ema_decay:
            train["ema_config"] = {"use_ema": True, "ema_decay": self.ema_decay}
        return {key: value for key, value in train.items() if value is not None}

    def _sample(self) -> dict[str, Any]:
        size = self.sample_size or (self.resolution[0] if self.resolution else None)
        return {
            "sampler": self.sampler,
            "sample_every": self.sample_every,
            **({"width": size, "height": size} if size else {}),
            "sample_steps": self.sample_steps,
            "guidance_scale": self.guidance_scale,
            "prompts": self.sample_prompts,
            "walk_seed": True,
            "seed": self.seed,
        }

    def _meta(self) -> dict[str, Any]:
        names = ("description", "author", "license", "usage_hint", "tags")
        return {name: value for name in names if (value := getattr(self, name))}

    def _schedule(self) -> dict[str, Any]:
        if self.lr_scheduler != "linear":
            return {"num_warmup_steps": self.warmup_steps}
        return {"num_warmup_steps": self.warmup_steps, "start_factor": 1.0, "end_factor": 0.0}

    def _network(self) -> dict[str, Any]:
        """Rank and alpha; what isn't given is left open for the adapter that it starts from."""
        settings: dict[str, Any] = {
            "linear": self.rank, "linear_alpha": self.alpha or float(self.rank),
        }  # fmt: skip
        if not self.from_adapter:
            return settings
        if "rank" not in self.model_fields_set:
            del settings["linear"]
            if not self.alpha:
                del settings["linear_alpha"]
        return {**settings, "pretrained_lora_path": self.from_adapter}
