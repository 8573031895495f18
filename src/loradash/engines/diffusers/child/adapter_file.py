"""Writing an adapter as one safetensors file that other programs read.

The default has kohya's key names with one alpha a layer, which sd-scripts, ComfyUI, A1111 and
diffusers all read. ``save_format: diffusers`` has diffusers' names; docs/adapters.md says who reads
which, and tools/check_loaders asks the other programs' own code.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from loradash.domain.adapter import AdapterDescription
from loradash.domain.adapter_metadata import adapter_metadata
from loradash.engines.diffusers.child.adapter_header import HASHES, finish_header
from loradash.engines.diffusers.child.architecture import AdaptedModule
from loradash.engines.diffusers.child.finite import require_finite_adapter
from loradash.engines.diffusers.child.lora import ADAPTER_NAME, kohya_layer

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def kohya_state(modules: list[AdaptedModule]) -> dict[str, Tensor]:
    """Collect the LoRAs under kohya's names: ``lora_down``, ``lora_up`` and ``alpha`` a layer."""
    state: dict[str, Tensor] = {}
    for adapted in modules:
        for layer, down, up in _pairs(adapted):
            name = f"{adapted.kohya_prefix}_{kohya_layer(adapted, layer)}"
            alpha = adapted.module.get_submodule(layer).lora_alpha[ADAPTER_NAME]
            state[f"{name}.lora_down.weight"] = down
            state[f"{name}.lora_up.weight"] = up
            state[f"{name}.alpha"] = torch.tensor(float(alpha))
    return state


def diffusers_state(modules: list[AdaptedModule]) -> dict[str, Tensor]:
    """Collect the LoRAs under diffusers' names, with alpha / rank multiplied into the weights.

    Of the names that diffusers has had, those of its attention processors and
    ``lora_linear_layer``: diffusers still reads those, and ComfyUI reads no others. No alpha
    stands in such a file, so whoever reads one takes it to be the rank.
    """
    state: dict[str, Tensor] = {}
    for adapted in modules:
        for layer, down, up in _pairs(adapted):
            name = diffusers_layer(adapted, layer)
            module = adapted.module.get_submodule(layer)
            scale = module.lora_alpha[ADAPTER_NAME] / module.r[ADAPTER_NAME]
            state[f"{name}.down.weight"], state[f"{name}.up.weight"] = _scaled(down, up, scale)
    return state


def diffusers_layer(adapted: AdaptedModule, layer: str) -> str:
    """Return what diffusers calls the LoRA of a layer, such as ``unet...processor.to_q_lora``."""
    if adapted.is_text:
        # transformers 5 dropped the level "text_model" that files have and readers expect.
        return f"{adapted.name}.text_model.{layer.removeprefix('text_model.')}.lora_linear_layer"
    for projection in _ATTENTION:
        if layer.endswith(f".{projection}"):
            attention = layer.removesuffix(f".{projection}")
            name = projection.removesuffix(".0")
            return f"{adapted.name}.{attention}.processor.{name}_lora"
    return f"{adapted.name}.{layer}.lora"


def write_adapter(
    path: Path,
    modules: list[AdaptedModule],
    description: AdapterDescription,
    dtype: torch.dtype,
    save_format: str,
) -> None:
    """Write the adapter as one safetensors file. The caller makes the write atomic.

    Raises `LossNotFinite` for values that aren't finite, or aren't as they would be stored.
    """
    if save_format == "diffusers":
        state = diffusers_state(modules)
        description = description.model_copy(update={"scale_in_weights": True})
    else:
        state = kohya_state(modules)
    tensors = {
        key: value.detach().to(device="cpu", dtype=dtype).contiguous()
        for key, value in sorted(state.items())
    }
    require_finite_adapter(state, tensors)
    save_file(tensors, path, metadata={**adapter_metadata(description), **HASHES})
    finish_header(path)


def _pairs(adapted: AdaptedModule) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each layer's path with its two factors."""
    factors = get_peft_model_state_dict(adapted.module)
    for key in sorted(factors):
        layer, _, part = key.rpartition(".lora_")
        if part.startswith("A"):
            yield layer, factors[key], factors[f"{layer}.lora_B.weight"]


def _scaled(down: Tensor, up: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Multiply one factor by ``scale``: the one that stays further from fp16's limits."""
    if (down.abs().max() > up.abs().max()) == (scale < 1):
        return down * scale, up
    return down, up * scale
