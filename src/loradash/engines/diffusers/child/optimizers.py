"""Optimizers by name, each from the library that keeps it."""

from collections.abc import Callable
from typing import Any

import torch

from loradash.domain.optimizers import kind_of
from loradash.domain.training_config import OptimizerParams, TrainSection
from loradash.engines.diffusers.child.emitter import Emitter

_FUSED = ("adamw", "adam")


def make_optimizer(
    groups: list[dict[str, Any]], train: TrainSection, device: torch.device, emitter: Emitter
) -> torch.optim.Optimizer:
    """Return the optimizer of a config; those of 8 bits fall back to 32 bits with a warning.

    8-bit optimizers need bitsandbytes and a GPU. They save memory and change nothing else, so a
    config that asks for one still trains without it.
    """
    arguments: dict[str, Any] = {
        "lr": groups[0]["lr"],
        **kind_of(train.optimizer).defaults,
        **train.optimizer_params.given,
    }
    name = train.optimizer.removesuffix("8bit")
    if train.optimizer.endswith("8bit"):
        reason = _why_not_8bit(name, device)
        if reason is None:
            return _eight_bits(name)(groups, **arguments)
        emitter.warn("optimizer_fallback", f"{train.optimizer} needs {reason}; {name} is used")
    if name in _FUSED:
        arguments["fused"] = device.type in ("cuda", "cpu")
    optimizer: torch.optim.Optimizer = _class(name)(groups, **arguments)
    return optimizer


def effective_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate of the first group; with prodigy, times the one that it has found (d)."""
    group = optimizer.param_groups[0]
    return float(group["lr"]) * float(group.get("d", 1.0))


def optimizer_text(optimizer: torch.optim.Optimizer) -> str:
    """Return an optimizer's class and options as sd-scripts writes them into its files."""
    kind = type(optimizer)
    options = ",".join(
        f"{name}={optimizer.defaults[name]}"
        for name in OptimizerParams.model_fields
        if optimizer.defaults.get(name) is not None
    )
    return f"{kind.__module__}.{kind.__qualname__}" + (f"({options})" if options else "")


def _class(name: str) -> Callable[..., Any]:
    match name:
        case "adamw":
            return torch.optim.AdamW
        case "adam":
            return torch.optim.Adam
        case "adagrad":
            return torch.optim.Adagrad
        case "lion":
            from lion_pytorch import Lion

            return Lion
        case "prodigy":
            from prodigyopt import Prodigy

            return Prodigy
        case _:
            # torch's own Adafactor always scales by the weights, which begin at 0 in a LoRA.
            from transformers.optimization import Adafactor

            return Adafactor


def _eight_bits(name: str) -> Callable[..., Any]:
    import bitsandbytes

    kinds: dict[str, Callable[..., Any]] = {
        "adamw": bitsandbytes.optim.AdamW8bit,
        "adam": bitsandbytes.optim.Adam8bit,
        "lion": bitsandbytes.optim.Lion8bit,
    }
    return kinds[name]


def _why_not_8bit(name: str, device: torch.device) -> str | None:
    if name == "prodigy":
        return "ai-toolkit's own code"
    if device.type != "cuda":
        return "a CUDA GPU"
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        return "the package bitsandbytes"
    return None
