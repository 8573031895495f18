"""Reading an adapter of any make into what it changes in a base model, and putting it there.

Every layer's change comes down to ``scale * up @ down``. For LoRA these are the file's matrices.
LoHa, LoKr, DoRA and full differences are computed as one matrix, which stands beside an identity,
so that they act exactly, at any weight, and come and go as a LoRA does. Layers are found in the
base model by their whole names, so nothing is loaded under a name that doesn't exist; what has no
place is told. Sources: LyCORIS 3 (LoHa, LoKr, ``dora_scale``), DoRA (arXiv 2402.09353).
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loradash.domain.sizes import counted
from loradash.engines.diffusers.adapters.kinds import made_for
from loradash.engines.diffusers.adapters.layers import (
    AdapterLayer,
    AdapterLayout,
    read_adapter_layout,
    some_of,
)
from loradash.engines.diffusers.adapters.original_names import original_name
from loradash.engines.diffusers.child.architecture import AdaptedModule
from loradash.errors import InvalidAdapter

_OTHER_BASE = "Use an adapter that was trained on this kind of base model."
_LEAST_SHARE = 0.25
"""Of an adapter's layers: with fewer in the base model it was made for another one."""


@dataclass(frozen=True)
class LayerChange:
    """What is added to a layer's weight: ``scale * up @ down``, in float32."""

    down: Tensor
    """(rank, in) or, of a convolution, (rank, in, height, width)."""
    up: Tensor
    """(out, rank)"""
    scale: float
    is_low_rank: bool
    """Whether the file itself has these matrices; otherwise one of them is an identity."""

    @property
    def rank(self) -> int:
        """Number of rows between the two."""
        return self.down.shape[0]

    @property
    def has_effect(self) -> bool:
        """Whether it changes anything: neither its strength nor one of the two is zero."""
        return self.scale != 0 and bool(self.down.any()) and bool(self.up.any())

    def delta(self) -> Tensor:
        """The change as one matrix, (out, in) or (out, in x height x width)."""
        return self.scale * (self.up @ self.down.flatten(1))


@dataclass(frozen=True)
class ReadAdapter:
    """An adapter as it acts on one base model."""

    name: str
    changes: Mapping[str, Mapping[str, LayerChange]]
    """By the part's name in the pipeline (``unet``), then by the layer's."""
    warnings: tuple[str, ...]
    """A sentence for each kind of thing in the file that isn't used."""


def read_adapter(path: Path, modules: list[AdaptedModule]) -> ReadAdapter:
    """Read an adapter for a base model's parts. Changes nothing.

    Raises `InvalidAdapter` if it can't be used, doesn't fit, or isn't finite.
    """
    layout = read_adapter_layout(path)
    bases = {module.name: _layers_of(module) for module in modules}
    changes: dict[str, dict[str, LayerChange]] = {name: {} for name in bases}
    homeless = []
    try:
        with safe_open(path, framework="pt") as file:
            for layer in layout.layers:
                place = _find(layer, bases)
                if place is None:
                    homeless.append(layer.name)
                    continue
                part, name = place
                if name in changes[part]:
                    raise InvalidAdapter(
                        f"adapter {path.name}: layer {layer.name} is there twice, under names of "
                        "two programs",
                        remedy="Save the adapter again with each layer once.",
                    )
                tensors = {key: file.get_tensor(source) for key, source in layer.parts.items()}
                weight = bases[part][layer.flat_name][1]
                changes[part][name] = _change(layout, layer, tensors, weight)
    except (SafetensorError, OSError) as error:
        raise InvalidAdapter(
            f"adapter {path.name} can't be read: {str(error)[:200]}",
            remedy="Copy or download the file again.",
        ) from error
    total = len(layout.layers)
    if total - len(homeless) < total * _LEAST_SHARE:
        raise InvalidAdapter(
            f"adapter {path.name} doesn't fit this base model, which has "
            f"{_share(total - len(homeless), total)}; there is no {some_of(homeless)}"
            f"{_made_for(layout)}",
            remedy=_OTHER_BASE,
        )
    warnings = [*_warnings(path.name, layout, homeless), *_without_effect(path.name, changes)]
    return ReadAdapter(path.name, changes, tuple(warnings))


def put_adapter(read: ReadAdapter, modules: list[AdaptedModule], name: str) -> None:
    """Put an adapter beside the base model's layers under a name; it acts as the active one.

    Raises `InvalidAdapter` if its values don't fit into the precision of the base model.
    """
    for module in modules:
        if changes := read.changes[module.name]:
            prepared = _prepared(read.name, module, changes)
            module.module.add_adapter(_config(changes), adapter_name=name)
            for layer_name, (down, up) in prepared.items():
                layer = module.module.get_submodule(layer_name)
                for weights, value in ((layer.lora_A[name], down), (layer.lora_B[name], up)):
                    weights.weight = torch.nn.Parameter(
                        value.reshape(weights.weight.shape), requires_grad=False
                    )


def _prepared(
    name: str, module: AdaptedModule, changes: Mapping[str, LayerChange]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The matrices in the layers' own precision and place, checked before anything is changed."""
    weights = dict(_layers_of(module).values())
    prepared = {}
    for layer, change in changes.items():
        weight = weights[layer]
        down = change.down.to(device=weight.device, dtype=weight.dtype)
        up = change.up.to(device=weight.device, dtype=weight.dtype)
        if not (down.isfinite().all() and up.isfinite().all()):
            raise InvalidAdapter(
                f"adapter {name}: values of layer {layer} are too large for "
                f"{str(weight.dtype).removeprefix('torch.')}",
                remedy="Draw with precision bf16 or fp32.",
            )
        prepared[layer] = (down, up)
    return prepared


def _config(changes: Mapping[str, LayerChange]) -> LoraConfig:
    """peft's settings with each layer's own rank and alpha, under its whole name."""
    rank = Counter(change.rank for change in changes.values()).most_common(1)[0][0]
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(changes),
        rank_pattern={name: change.rank for name, change in changes.items() if change.rank != rank},
        alpha_pattern={
            name: change.scale * change.rank
            for name, change in changes.items()
            if change.scale * change.rank != rank
        },
        init_lora_weights=False,
    )


def _layers_of(module: AdaptedModule) -> dict[str, tuple[str, Tensor]]:
    """Full name and weight of each layer that can carry an adapter, by the name without points."""
    layers = {
        name.replace(".", "_").removeprefix("text_model_"): (name, weight)
        for name, weight in _weights(module.module)
    }
    for name, weight in list(layers.values()) if not module.is_text else ():
        if original := _original_name(module.module, name):
            layers[original.replace(".", "_")] = (name, weight)
    return layers


def _original_name(unet: torch.nn.Module, name: str) -> str | None:
    config: Any = getattr(unet, "config", None)
    layers = getattr(config, "layers_per_block", None)
    if not isinstance(layers, int):  # blocks of different lengths have no original names
        return None
    kinds = config.up_block_types
    attention = frozenset(n for n, kind in enumerate(kinds) if kind.startswith("CrossAttn"))
    return original_name(name, layers, attention)


def _weights(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    wrapped: tuple[str, ...] = ()
    for name, layer in module.named_modules():
        if isinstance(layer, BaseTunerLayer):
            wrapped += (f"{name}.",)
            base = layer.get_base_layer()
        elif not name.startswith(wrapped):
            base = layer
        else:
            continue
        if isinstance(base, torch.nn.Linear | torch.nn.Conv2d):
            yield name, base.weight


def _find(
    layer: AdapterLayer, bases: Mapping[str, Mapping[str, tuple[str, Tensor]]]
) -> tuple[str, str] | None:
    """The part of the base model and the full name of the layer that is meant."""
    for part, layers in bases.items():
        if layer.component in (part, "") and layer.flat_name in layers:
            return part, layers[layer.flat_name][0]
    return None


def _change(
    layout: AdapterLayout, layer: AdapterLayer, tensors: dict[str, Tensor], weight: Tensor
) -> LayerChange:
    """The change of one layer, in float32 on the CPU. Raises `InvalidAdapter`."""
    values = {part: tensor.to(torch.float32) for part, tensor in tensors.items()}
    for part, tensor in values.items():
        if not tensor.isfinite().all():
            raise InvalidAdapter(
                f"adapter {layout.file.path.name}: {layer.parts[part]} holds NaN or infinity",
                remedy="The training that made it has failed: use an earlier checkpoint of it.",
            )
    rank = layout.rank(layer)
    if "alpha" in values and rank is not None:
        scale = values["alpha"].item() / rank
    else:
        scale = layout.told_scale(layer, rank) if rank is not None else 1.0
    try:
        change = _computed(layer, values, weight.detach(), scale)
    except (RuntimeError, IndexError) as error:  # shapes don't multiply, or don't make the layer's
        raise _misfit(layout, layer, weight) from error
    if not _is_finite(change):
        raise InvalidAdapter(
            f"adapter {layout.file.path.name}: the change of layer {layer.name} isn't finite",
            remedy="The training that made it has failed: use an earlier checkpoint of it.",
        )
    return change


def _is_finite(change: LayerChange) -> bool:
    """Whether no sum that the layer computes leaves the range of float32."""
    largest = float(change.down.abs().max()) * float(change.up.abs().max())
    return abs(largest * change.scale * change.rank) < torch.finfo(torch.float32).max


def _computed(
    layer: AdapterLayer, values: Mapping[str, Tensor], weight: Tensor, scale: float
) -> LayerChange:
    outputs, inputs = weight.shape[0], weight.shape[1:]
    if layer.algorithm == "lora":
        down, up = values["down"], values["up"]
        if "mid" in values:  # a convolution in three: 1x1, then the kernel, then 1x1
            down = torch.einsum("pqkl,qi->pikl", values["mid"], down.flatten(1))
        rank = down.shape[0]
        pair = (down.reshape(rank, *inputs), up.reshape(outputs, rank))
        if up.shape[0] != outputs:
            raise RuntimeError("another number of outputs")
        change = LayerChange(*pair, scale, is_low_rank=True)
    else:
        delta = _delta(layer, values)
        if delta.shape[0] != outputs:
            raise RuntimeError("another number of outputs")
        change = _dense(scale * delta.reshape(weight.shape))
    if "magnitude" not in values:
        return change
    base = weight.to(device="cpu", dtype=torch.float32)
    merged = base + change.delta().reshape(weight.shape)
    return _dense(_decomposed(merged, values["magnitude"]) - base)


def _delta(layer: AdapterLayer, values: Mapping[str, Tensor]) -> Tensor:
    """The change of a layer as one matrix, without its scale."""
    if layer.algorithm == "full":
        return values["diff"]
    if layer.algorithm == "loha":
        return _product(values, "hada_w1", "hada_t1") * _product(values, "hada_w2", "hada_t2")
    one = values.get("lokr_w1")
    two = values.get("lokr_w2")
    one = _product(values, "lokr_w1", "lokr_t1") if one is None else one
    two = _product(values, "lokr_w2", "lokr_t2") if two is None else two
    if two.dim() > one.dim():
        one = one.reshape(*one.shape, *(1,) * (two.dim() - one.dim()))
    return torch.kron(one, two.contiguous())


def _product(values: Mapping[str, Tensor], name: str, core: str) -> Tensor:
    """A matrix from its two factors, or a kernel from two factors and Tucker's core."""
    first, second = values[f"{name}_a"], values[f"{name}_b"]
    if core in values:
        return torch.einsum("ijkl,jr,ip->prkl", values[core], second, first)
    return first @ second


def _decomposed(merged: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA: the merged weight's direction with the file's magnitudes, by output or by input."""
    by_output = magnitude.dim() == 1 or magnitude.shape[0] == merged.shape[0]
    axis = 0 if by_output else 1
    others = [one for one in range(merged.dim()) if one != axis]
    norm = torch.linalg.vector_norm(merged, dim=others, keepdim=True)
    return merged * (magnitude.reshape(norm.shape) / norm.clamp_min(1e-12))


def _dense(delta: Tensor) -> LayerChange:
    """A change of full rank, as a product with the smaller identity that is possible."""
    outputs, inputs = delta.shape[:2]
    if delta.dim() == 2 and inputs < outputs:
        return LayerChange(torch.eye(inputs), delta, 1.0, is_low_rank=False)
    return LayerChange(delta, torch.eye(outputs), 1.0, is_low_rank=False)


def _misfit(layout: AdapterLayout, layer: AdapterLayer, weight: Tensor) -> InvalidAdapter:
    shapes = {part: list(layout.file.tensors[key].shape) for part, key in layer.parts.items()}
    told = ", ".join(f"{part} {shape}" for part, shape in shapes.items() if part != "alpha")
    return InvalidAdapter(
        f"adapter {layout.file.path.name} doesn't fit this base model: layer {layer.name} has "
        f"{told}, the base model's weight there is {list(weight.shape)}{_made_for(layout)}",
        remedy=_OTHER_BASE,
    )


def _made_for(layout: AdapterLayout) -> str:
    family = made_for(layout.file.tensors)
    return f"; it was made for {family}" if family else ""


def _share(fitting: int, total: int) -> str:
    if not fitting and total == 1:
        return "no place for the adapter's only layer"
    return f"{f'only {fitting}' if fitting else 'none'} of the adapter's {counted(total, 'layer')}"


def _without_effect(name: str, changes: Mapping[str, Mapping[str, LayerChange]]) -> Iterator[str]:
    if not any(change.has_effect for layers in changes.values() for change in layers.values()):
        yield (
            f"adapter {name} has no effect: every layer's change is zero, by its alpha or its "
            "values; was it saved before its training began?"
        )


def _warnings(name: str, layout: AdapterLayout, homeless: list[str]) -> Iterator[str]:
    total = len(layout.layers)
    if homeless:
        yield (
            f"adapter {name}: {len(homeless)} of its {counted(total, 'layer')} "
            f"{'is' if len(homeless) == 1 else 'are'} not used, because the base model has no "
            f"such layer: {some_of(homeless)}"
        )
    if layout.unknown:
        yield (
            f"adapter {name}: {counted(len(layout.unknown), 'tensor')} of "
            f"{len(layout.file.tensors)} {'is' if len(layout.unknown) == 1 else 'are'} not used, "
            f"because nothing is known of such: {some_of(layout.unknown)}"
        )
    unsure = [
        layer
        for layer in layout.layers
        if "alpha" not in layer.parts and layout.is_peft(layer) and not layout.scales
    ]
    if unsure:
        yield (
            f"adapter {name}: peft keeps alpha in adapter_config.json, which isn't beside the "
            "file; alpha is taken to be equal to the rank"
        )
