"""A training's weights are numbers: what holds NaN or infinity isn't written."""

from collections.abc import Mapping

import torch
from torch import Tensor

from loradash.domain.sizes import counted
from loradash.engines.diffusers.adapters.layers import some_of
from loradash.errors import LossNotFinite

_LOWER_RATE = "Lower the learning rate, and look for broken images."


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity, with one look at the device's memory."""
    names = [name for name, value in tensors.items() if value.is_floating_point()]
    if not names:
        return []
    verdicts = torch.stack([tensors[name].isfinite().all() for name in names])
    return [name for name, is_finite in zip(names, verdicts.tolist(), strict=True) if not is_finite]


def require_finite_state(tensors: Mapping[str, Tensor], step: int) -> None:
    """Raise `LossNotFinite` if a training's state can't be gone on from."""
    if names := not_finite(tensors):
        raise LossNotFinite(
            f"the weights aren't finite after step {step}: {counted(len(names), 'tensor')} of "
            f"{len(tensors)} {_hold(names)} NaN or infinity: {some_of(names)}",
            remedy=_LOWER_RATE,
        )


def require_finite_adapter(values: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Raise `LossNotFinite` if an adapter isn't finite, or not any more as it is to be stored."""
    names = not_finite(stored)
    if not names:
        return
    if broken := not_finite(values):
        raise LossNotFinite(
            f"the adapter isn't finite: {counted(len(broken), 'tensor')} of {len(values)} "
            f"{_hold(broken)} NaN or infinity: {some_of(broken)}",
            remedy=_LOWER_RATE,
        )
    largest = max(float(values[name].abs().max()) for name in names)
    dtype = str(stored[names[0]].dtype).removeprefix("torch.")
    raise LossNotFinite(
        f"{counted(len(names), 'tensor')} of {len(values)} of the adapter "
        f"{'has' if len(names) == 1 else 'have'} values too large for {dtype} (up to "
        f"{largest:.1e}): {some_of(names)}",
        remedy="The learning rate is probably too high; if such values are meant, set save.dtype "
        "to float32.",
    )


def _hold(names: list[str]) -> str:
    return "holds" if len(names) == 1 else "hold"
