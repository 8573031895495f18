"""Which settings of a training config this engine follows, and which it must refuse or mention."""

import re
from importlib.util import find_spec

from loradash.domain.optimizers import LEAST_OWN_RATE, kind_of
from loradash.domain.schema import Section
from loradash.domain.training_config import TrainingConfig
from loradash.engines.diffusers.drawing_limits import UNKNOWN_LIMITS, DrawingLimits
from loradash.engines.diffusers.families import FAMILIES
from loradash.engines.diffusers.preview_checks import check_previews
from loradash.errors import InvalidConfig

# What these ask for is a different training; ignoring them would waste the user's GPU hours.
_REFUSED_IF_SET = {
    "process": {"adapter", "decorator", "embedding", "do_lorm", "slider", "guidance"},
    "network": {"lorm", "all_layers"},
    "datasets": {
        "control_path", "inpaint_path", "mask_path", "unconditional_path", "alpha_mask",
        "clip_image_path", "controls", "replacements", "diff_output_preservation",
    },
    "train": {
        "prompt_dropout_prob", "diff_output_preservation", "blank_prompt_preservation", "do_cfg",
        "train_turbo",
        "inverted_mask_prior", "do_guidance_loss", "do_differential_guidance", "start_step",
        "adapter_assist_name_or_path", "latent_feature_extractor_path",
        "diffusion_feature_extractor_path", "do_prior_divergence", "merge_network_on_save",
    },
    "model": {
        "lora_path", "assistant_lora_path", "unconditional_lora_path", "refiner_name_or_path",
        "vae_path", "te_name_or_path", "unet_path", "accuracy_recovery_adapter",
    },
}  # fmt: skip
# Set in nearly every file, and either told otherwise here or done anyway: not worth a warning.
_QUIET = {
    "training_folder", "device", "num_workers", "prefetch_factor", "performance_log_every",
    "sqlite_db_path", "log_dir", "dtype", "timestep_type", "content_or_style", "low_vram",
    "cache_text_embeddings", "unload_text_encoder", "buckets", "bucket_tolerance", "fps",
    "num_frames", "transformer_only", "qtype", "qtype_te", "log_every", "use_ui_logger", "verbose",
    "sdp", "xformers", "linear_timesteps", "lokr_full_rank", "lokr_factor",
}  # fmt: skip
_PROMPT_FLAG = re.compile(r"(?:^|\s)--[a-z_]+(?=\s|$)")


def check(config: TrainingConfig, limits: DrawingLimits = UNKNOWN_LIMITS) -> tuple[str, ...]:
    """Return a sentence for each setting without effect; raise `InvalidConfig` for others."""
    process = config.process
    sections: list[tuple[str, str, Section]] = [
        ("network", "network", process.network),
        *(("datasets", f"datasets[{n}]", item) for n, item in enumerate(process.datasets)),
        ("train", "train", process.train),
        ("model", "model", process.model),
        ("sample", "sample", process.sample),
        ("process", "process[0]", process),
        ("ema_config", "train.ema_config", process.train.ema_config),
    ]
    refused: list[str] = []
    warnings: list[str] = []
    for kind, path, section in sections:
        for key, value in section.other_keys.items():
            if not value or key in _QUIET:
                continue
            if key in _REFUSED_IF_SET.get(kind, ()):
                refused.append(f"{path}.{key}: not supported by the diffusers engine")
            elif not key.startswith("is_"):
                warnings.append(f"{path}.{key} has no effect in the diffusers engine")
    refused += _other_families(config)
    previews = check_previews(config, limits)
    refused += previews.problems
    warnings += previews.warnings
    if refused:
        raise InvalidConfig(
            "training config: settings that this engine can't follow",
            problems=refused,
            remedy="Remove them, or train with another engine.",
        )
    warnings += _warnings_about_model(config)
    if "lr" not in process.train.model_fields_set:
        warnings.append(
            f"train.lr isn't given: {process.train.lr:g} is used (ai-toolkit would use 1e-06)"
        )
    warnings += _warnings_about_training(config)
    if process.train.steps_per_update > 1:
        warnings.append(
            f"train.gradient_accumulation_steps counts batches: {process.train.steps} steps are "
            f"{process.train.updates} optimizer updates, and save_every and sample_every follow"
        )
    prompts = [*process.sample.prompts, *(item.prompt for item in process.sample.samples)]
    for prompt in prompts:
        if flags := _PROMPT_FLAG.findall(prompt):
            warnings.append(
                f"sample prompt {prompt[:40]!r}: {flags[0].strip()} is read as text, not as an "
                "option; use sample.samples[] for settings of one prompt"
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
    known = set().union(*(family.ai_toolkit_flags for family in FAMILIES))
    flags = {key for key, value in model.other_keys.items() if key.startswith("is_") and value}
    problems = [
        f"model.{flag}: the diffusers engine can't train models of this kind yet, only Stable "
        "Diffusion 1.x and 2.x"
        for flag in sorted(flags - known)
    ]
    if model.arch and model.arch.split(":")[0] not in archs:
        problems.append(
            f"model.arch: {model.arch!r} can't be trained by the diffusers engine; it can train "
            f"{', '.join(sorted(archs))}"
        )
    return problems


def _warnings_about_model(config: TrainingConfig) -> list[str]:
    """Settings that contradict the family; the base model itself says what it is."""
    train = config.process.train
    warnings = []
    if train.noise_scheduler == "flowmatch":
        warnings.append(
            "train.noise_scheduler: flowmatch is for flow models; the base model's own is used"
        )
    return warnings
