"""Optimizers by name."""

from typing import Any

import torch

from loradash.domain.training_config import TrainSection
from loradash.engines.diffusers.child.emitter import Emitter


def make_optimizer(
    groups: list[dict[str, Any]], train: TrainSection, device: torch.device, emitter: Emitter
) -> torch.optim.Optimizer:
    """Return the optimizer of a config; 8-bit ones fall back to 32 bits with a warning.

    8-bit optimizers need bitsandbytes and a GPU. They save memory and change nothing else, so a
    config that asks for one still trains without it.
    """
    options = train.optimizer_params
    arguments: dict[str, Any] = {
        "betas": options.betas,
        "eps": options.eps,
        "weight_decay": options.weight_decay if train.optimizer.startswith("adamw") else 0.0,
    }
    kinds: dict[str, Any] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
    }
    name = train.optimizer.removesuffix("8bit")
    if train.optimizer.endswith("8bit"):
        reason = _why_not_8bit(device)
        if reason is None:
            import bitsandbytes

            kind = {"adamw": bitsandbytes.optim.AdamW8bit, "adam": bitsandbytes.optim.Adam8bit}
            return kind[name](groups, **arguments)
        emitter.warn("optimizer_fallback", f"{train.optimizer} needs {reason}; {name} is used")
    return kinds[name](groups, fused=device.type in ("cuda", "cpu"), **arguments)


def _why_not_8bit(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "a CUDA GPU"
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        return "the package bitsandbytes"
    return None
