"""Which settings of a training config this engine follows, and which it must refuse or mention."""

from importlib.util import find_spec

from loradash.domain.ai_toolkit_keys import asks_for_something
from loradash.domain.foreign_choices import foreign_choices
from loradash.domain.optimizers import LEAST_OWN_RATE, kind_of
from loradash.domain.sizes import counted
from loradash.domain.training_config import TrainingConfig
from loradash.engines.diffusers.adapters.foreign_keys import foreign_keys
from loradash.engines.diffusers.base_models.families import (
    FAMILIES,
    TRAINABLE,
    Family,
    find_base_model,
)
from loradash.engines.diffusers.base_models.pipeline_layout import Layout
from loradash.engines.diffusers.drawing_limits import drawing_limits
from loradash.engines.diffusers.preview_checks import check_previews
from loradash.engines.diffusers.target_layers import no_layers
from loradash.errors import InvalidBaseModel, InvalidConfig


def check(config: TrainingConfig, layout: Layout | None = None) -> tuple[str, ...]:
    """Return a sentence for each setting without effect; raise `InvalidConfig` for others.

    ``layout`` is the base model's, if it is known.
    """
    process = config.process
    found = foreign_keys(config)
    refused, warnings = [*foreign_choices(config), *found.refused], [*found.mentioned]
    refused += _other_families(config)
    refused += no_layers(config, layout.layers if layout else {})
    previews = check_previews(config, drawing_limits(layout.configs if layout else {}))
    refused += previews.problems
    warnings += previews.warnings
    if refused:
        raise InvalidConfig(
            "training config: settings that this engine can't follow",
            problems=refused,
            remedy="Correct or remove them, or train with another engine.",
        )
    warnings += _warnings_about_model(config)
    if layout:
        warnings += _other_family_named(config, layout.family)
    if "lr" not in process.train.model_fields_set:
        warnings.append(
            f"train.lr isn't given: {process.train.lr:g} is used (ai-toolkit would use 1e-06)"
        )
    warnings += _warnings_about_training(config)
    if process.train.steps_per_update > 1:
        warnings.append(
            f"train.gradient_accumulation_steps counts batches: "
            f"{counted(process.train.steps, 'step')} make "
            f"{counted(process.train.updates, 'optimizer update')}, and save_every and "
            "sample_every follow"
        )
    return tuple(warnings)


def warnings_about_machine(config: TrainingConfig, device: str) -> tuple[str, ...]:
    """What this machine lacks for a config, where a training goes on without it."""
    name = config.process.train.optimizer
    missing = [
        what
        for what, is_missing in (
            ("a CUDA GPU", device == "cpu"),
            ("the package bitsandbytes", find_spec("bitsandbytes") is None),
        )
        if is_missing
    ]
    if not name.endswith("8bit") or not missing:
        return ()
    sentence = (
        f"train.optimizer: {name} needs {' and '.join(missing)}; trained here, it is "
        f"{name.removesuffix('8bit')}, which learns the same and needs more memory"
    )
    return (sentence,)


def _warnings_about_training(config: TrainingConfig) -> list[str]:
    """Settings that are followed, but perhaps not as they were meant."""
    train, warnings = config.process.train, []
    if kind_of(train.optimizer).own_rate and train.lr < LEAST_OWN_RATE:
        warnings.append(
            f"train.lr of {train.lr:g} is for other optimizers: {train.optimizer} finds the rate "
            "itself, so 1 is used; give 1, and change it with optimizer_params.d_coef"
        )
    if train.text_encoder_lr and not train.train_text_encoder:
        warnings.append("train.text_encoder_lr has no effect while train_text_encoder is false")
    schedule = train.lr_scheduler_params
    if train.lr_scheduler == "linear" and schedule.start_factor is schedule.end_factor is None:
        warnings.append(
            "train.lr_scheduler: linear falls to 0 here, and rises from a third to the whole rate "
            "in ai-toolkit; lr_scheduler_params.start_factor and end_factor say which"
        )
    if train.warmup_updates and schedule.num_warmup_steps is None:
        warnings.append(
            f"train.lr_scheduler_params.num_warmup_steps isn't given: {train.warmup_updates} are "
            "taken, as in ai-toolkit"
        )
    if config.process.save.save_every == 0:
        warnings.append(
            "save.save_every is 0: checkpoints are written at a stop and at the end only, so a "
            "crash costs the whole training"
        )
    return warnings


def _other_families(config: TrainingConfig) -> list[str]:
    """Settings that say that the base model is of a family that this engine can't train."""
    model = config.process.model
    archs = set().union(*(family.ai_toolkit_archs for family in FAMILIES))
    problems = []
    if _is_on_hub(model.name_or_path):
        problems += [
            f"model.{flag}: the diffusers engine can't train models of this kind yet, only "
            f"{TRAINABLE}"
            for flag in _foreign_flags(config)
        ]
    if model.arch and model.arch.split(":")[0] not in archs:
        problems.append(
            f"model.arch: {model.arch!r} can't be trained by the diffusers engine yet; it can "
            f"train {', '.join(sorted(archs))}"
        )
    return problems


def _is_on_hub(base_model: str) -> bool:
    try:
        return find_base_model(base_model).kind == "hub"
    except InvalidBaseModel:  # whoever looks through it says so
        return False


def _foreign_flags(config: TrainingConfig) -> list[str]:
    known = set().union(*(family.ai_toolkit_flags for family in FAMILIES))
    keys = config.process.model.other_keys.items()
    flags = {key for key, value in keys if key.startswith("is_")
             and asks_for_something("model", key, value)}  # fmt: skip
    return sorted(flags - known)


def _other_family_named(config: TrainingConfig, family: Family) -> list[str]:
    """Settings that name a family that can be trained, but isn't the base model's."""
    model = config.process.model
    others = [one for one in FAMILIES if one is not family]
    flags = set().union(*(one.ai_toolkit_flags for one in others))
    keys = model.other_keys.items()
    named = sorted(
        f"model.{key}" for key, value in keys
        if key in flags and asks_for_something("model", key, value)
    )  # fmt: skip
    if model.arch and any(model.arch.split(":")[0] in one.ai_toolkit_archs for one in others):
        named.append(f"model.arch: {model.arch}")
    return [
        f"{what} has no effect: the base model is of {family.title}, and is trained as such"
        for what in named
    ]


def _warnings_about_model(config: TrainingConfig) -> list[str]:
    """Settings that contradict the family; the base model itself says what it is."""
    train = config.process.train
    warnings = [
        f"model.{flag}: ignored, the base model says itself what it is"
        for flag in _foreign_flags(config)
    ]
    if train.noise_scheduler == "flowmatch":
        warnings.append(
            "train.noise_scheduler: flowmatch is for flow models; the base model's own is used"
        )
    return warnings
