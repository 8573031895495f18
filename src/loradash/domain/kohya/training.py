"""Steps, rates, objective, checkpoints and previews of sd-scripts, as our sections."""

import math
from typing import Any, NamedTuple

from loradash.domain.kohya.datasets import Datasets
from loradash.domain.kohya.folders import Files
from loradash.domain.kohya.prompts import samples_of
from loradash.domain.kohya.source import Source, assignments

_OPTIMIZERS = {
    "pagedadamw8bit": "adamw8bit", "pagedadamw": "adamw", "pagedadamw32bit": "adamw",
    "pagedlion8bit": "lion8bit",
}  # fmt: skip
_PRECISIONS = {"no": "fp32", "float": "fp32", "fp16": "fp16", "bf16": "bf16", "auto": "auto"}
_LOSSES = {"l2": "mse", "l1": "mae"}
_DEFAULT_RATE = 2e-6
_DEFAULT_STEPS = 1600
_LAST_TIMESTEP = 1000


class Length(NamedTuple):
    """How long a training is, in optimizer updates."""

    steps: int
    per_epoch: int | None


def length_of(source: Source, datasets: Datasets, accumulation: int) -> Length:
    """Return the steps; epochs count only if the images are on this machine."""
    per_epoch = datasets.batches_per_epoch
    updates = math.ceil(per_epoch / accumulation) if per_epoch else None
    epochs, steps = source.whole("max_train_epochs"), source.whole("max_train_steps")
    if not epochs:
        return Length(steps or _DEFAULT_STEPS, updates)
    if updates is None:
        source.problems.append(
            f"max_train_epochs: {epochs} epochs can't be counted, since the images aren't on this "
            "machine; give max_train_steps instead"
        )
        return Length(1, None)
    source.notes.append(
        f"max_train_epochs: {epochs} epochs are {epochs * updates} steps, as far as batches are "
        "full"
    )
    return Length(epochs * updates, updates)


def train_of(source: Source, datasets: Datasets) -> tuple[dict[str, Any], Length]:
    """Return our ``train`` section, and how long the training is."""
    accumulation = source.whole("gradient_accumulation_steps", 1) or 1
    length = length_of(source, datasets, accumulation)
    train: dict[str, Any] = {
        "steps": length.steps,
        "batch_size": datasets.batch_size,
        "gradient_accumulation": accumulation,
        "gradient_checkpointing": source.switch("gradient_checkpointing"),
        "dtype": _precision(source, "mixed_precision", "no"),
        "noise_scheduler": "ddpm",
        **_rates(source),
        **_optimizer(source),
        **_schedule(source, length.steps),
        **_objective(source),
    }
    if (norm := source.number("max_grad_norm")) is not None:
        train["max_grad_norm"] = norm
    if any(section.get("is_reg") for section in datasets.sections):
        train["reg_weight"] = source.number("prior_loss_weight", 1.0)
    else:
        source.take("prior_loss_weight")
    return train, length


def _rates(source: Source) -> dict[str, Any]:
    rate = source.number("learning_rate")
    if rate is None:
        rate = _DEFAULT_RATE
        source.notes.append(f"learning_rate isn't given: {rate:g}, as in sd-scripts")
    unet = source.number("unet_lr", rate) or 0.0
    text = _text_encoder_rate(source, rate) or 0.0
    if not unet and not text:  # which would train nothing
        unet = text = rate
    unet_only = source.switch("network_train_unet_only")
    text_only = source.switch("network_train_text_encoder_only")
    rates: dict[str, Any] = {"lr": rate or unet or text}
    rates["train_unet"] = not text_only and unet > 0
    rates["train_text_encoder"] = not unet_only and text > 0
    if rates["train_unet"] and unet != rates["lr"]:
        rates["unet_lr"] = unet
    if rates["train_text_encoder"] and text != rates["lr"]:
        rates["text_encoder_lr"] = text
    return rates


def _text_encoder_rate(source: Source, rate: float) -> float | None:
    """The first of several, as in sd-scripts: the others are of a second text encoder."""
    given = source.take("text_encoder_lr")
    if isinstance(given, list) and len(given) > 1:
        source.notes.append("text_encoder_lr: the first one is used; there is one text encoder")
    return source.number("text_encoder_lr", rate, of_several=True)


def _optimizer(source: Source) -> dict[str, Any]:
    given = source.take("optimizer_type")
    eight_bits, lion = source.switch("use_8bit_adam"), source.switch("use_lion_optimizer")
    name = str(given or ("AdamW8bit" if eight_bits else "Lion" if lion else "AdamW")).lower()
    name = name.rpartition(".")[2]  # it may be a class with its module
    arguments = {
        key: _value(text) for key, text in assignments(source.take("optimizer_args")).items()
    }
    if name in _OPTIMIZERS:
        source.notes.append(f"optimizer_type {given}: {_OPTIMIZERS[name]}, which isn't paged")
    if name == "adafactor" and arguments.get("relative_step", True) is not False:
        source.problems.append(
            "optimizer_args: Adafactor chooses its own rate unless relative_step=False; that isn't "
            "followed here, so give relative_step=False, scale_parameter=False and learning_rate"
        )
    optimizer: dict[str, Any] = {"optimizer": _OPTIMIZERS.get(name, name)}
    if arguments:
        optimizer["optimizer_params"] = arguments
    return optimizer


def _value(text: str) -> Any:
    """A number, a switch, several numbers, or text, as Python would read it."""
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    parts = [part for part in text.strip("()[] ").split(",") if part.strip()]
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return text
    if not numbers:
        return text
    return numbers if len(numbers) > 1 else numbers[0]


def _schedule(source: Source, steps: int) -> dict[str, Any]:
    name = str(source.take("lr_scheduler", "constant")).lower()
    warmup = source.number("lr_warmup_steps", 0.0) or 0.0
    params: dict[str, Any] = {
        "num_warmup_steps": int(warmup * steps) if 0 < warmup < 1 else int(warmup)
    }
    cycles = source.whole("lr_scheduler_num_cycles")
    power = source.number("lr_scheduler_power")
    lowest = source.number("lr_scheduler_min_lr_ratio")
    if name == "constant":  # which has no rise there
        params["num_warmup_steps"] = 0
    if name == "linear":
        params |= {"start_factor": 1.0, "end_factor": 0.0}
    if name == "cosine_with_restarts" and cycles:
        params["num_cycles"] = cycles
    if name == "polynomial" and power:
        params["power"] = power
    if name == "cosine_with_min_lr":
        name, params["min_factor"] = "cosine", lowest or 0.0
    return {"lr_scheduler": name, "lr_scheduler_params": params}


def _objective(source: Source) -> dict[str, Any]:
    loss = str(source.take("loss_type", "l2")).lower()
    objective: dict[str, Any] = {"loss_type": _LOSSES.get(loss, loss)}
    if gamma := source.number("min_snr_gamma"):
        objective["min_snr_gamma"] = gamma
    if offset := source.number("noise_offset"):
        objective["noise_offset"] = offset
    if first := source.whole("min_timestep"):
        objective["min_denoising_steps"] = first
    last = source.whole("max_timestep")
    if last is not None and last < _LAST_TIMESTEP:
        objective["max_denoising_steps"] = last - 1
    return objective


def _precision(source: Source, key: str, default: str) -> str:
    given = str(source.take(key, default))
    if (found := _PRECISIONS.get(given.lower())) is None:
        source.problems.append(
            f"{key}: {given[:40]!r} isn't followed here; give fp16, bf16 or none"
        )
    return found or "fp32"


def save_of(source: Source, length: Length) -> dict[str, Any]:
    """Return our ``save`` section."""
    every = _every(source, "save_every_n_steps", "save_every_n_epochs", length)
    save: dict[str, Any] = {
        "dtype": _precision(source, "save_precision", "float"),
        "save_every": every or min(1000, length.steps),
    }
    steps = source.whole("save_last_n_steps")
    save["max_step_saves_to_keep"] = max(2, steps // every) if steps and every else 0
    return save


def sample_of(source: Source, length: Length, files: Files) -> tuple[dict[str, Any], bool]:
    """Return our ``sample`` section, and whether previews are drawn before the first step."""
    every = _every(source, "sample_every_n_steps", "sample_every_n_epochs", length)
    at_first = source.switch("sample_at_first")
    prompts = source.take("sample_prompts")
    sampler = str(source.take("sample_sampler", "ddim"))
    if prompts and not (every or at_first):
        source.notes.append(
            "sample_prompts: without sample_every_n_steps or sample_every_n_epochs no previews are "
            "drawn, as in sd-scripts"
        )
    if not prompts or not (every or at_first):
        return {"sample_every": 0}, False
    return {
        "sampler": sampler,
        "sample_every": every or length.steps,
        "width": 512,
        "height": 512,
        "sample_steps": 30,
        "guidance_scale": 7.5,
        "seed": -1,
        "samples": samples_of(source, str(prompts), files),
    }, at_first


def _every(source: Source, steps_key: str, epochs_key: str, length: Length) -> int | None:
    steps, epochs = source.whole(steps_key), source.whole(epochs_key)
    if steps or not epochs:
        return steps
    if length.per_epoch is None:
        source.notes.append(
            f"{epochs_key}: epochs can't be counted, since the images aren't on this machine; "
            "set the interval in the result"
        )
        return None
    return epochs * length.per_epoch
