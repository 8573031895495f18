"""Devices and number formats."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from loradash.domain.training_config import Precision
from loradash.errors import EngineUnavailable

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def pick_device(name: str) -> torch.device:
    """Return the device for a setting: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.

    Raises `EngineUnavailable` if it isn't there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise EngineUnavailable(
            f"device {name}: {str(error).splitlines()[0]}",
            remedy="Set LORADASH_DEVICE to auto, cpu, or a GPU that `loradash doctor` lists.",
        ) from error
    return device


def pick_precision(name: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """Resolve ``auto``: bf16 (or fp16 where the GPU has no bf16) on CUDA, fp32 elsewhere."""
    if name != "auto":
        return name
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Compute in ``dtype`` where that is safe; nothing for float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)
