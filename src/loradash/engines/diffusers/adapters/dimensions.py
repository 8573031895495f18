"""Rank and alpha of an adapter file, as a training that starts from it has to have them."""

import struct
from collections import Counter
from collections.abc import Iterable

from loradash.engines.diffusers.adapters.layers import AdapterLayer, AdapterLayout
from loradash.engines.diffusers.adapters.tensor_files import StoredTensor, TensorFile

_FORMATS = {"F64": "<d", "F32": "<f", "F16": "<e"}


def network_settings(layout: AdapterLayout) -> dict[str, float]:
    """Return ``linear``, ``linear_alpha``, ``conv`` and ``conv_alpha`` of a LoRA's layers.

    Those of convolutions only where there are any larger than one pixel. The rank is the greatest
    one of a kind of layers; of alphas, the most common one of the layers with that rank. Layers
    whose change isn't of the form of a LoRA say nothing.
    """
    layers = [layer for layer in layout.layers if layer.algorithm == "lora"]
    convolutions = [layer for layer in layers if _is_convolution(layout.file, layer)]
    linear = [layer for layer in layers if layer not in convolutions]
    settings: dict[str, float] = {}
    for key, some in (("linear", linear), ("conv", convolutions)):
        if found := _dimensions(layout, some):
            settings[key], settings[f"{key}_alpha"] = found
    return settings


def _dimensions(layout: AdapterLayout, layers: Iterable[AdapterLayer]) -> tuple[int, float] | None:
    alphas: dict[int, Counter[float]] = {}
    for layer in layers:
        if (rank := layout.rank(layer)) is not None:
            alphas.setdefault(rank, Counter())[_alpha(layout, layer, rank)] += 1
    if not alphas:
        return None
    rank = max(alphas)
    return rank, alphas[rank].most_common(1)[0][0]


def _alpha(layout: AdapterLayout, layer: AdapterLayer, rank: int) -> float:
    key = layer.parts.get("alpha")
    if key is not None and (value := _number(layout.file, layout.file.tensors[key])) is not None:
        return value
    return layout.told_scale(layer, rank) * rank


def _number(file: TensorFile, tensor: StoredTensor) -> float | None:
    """The one number of a tensor; None for a type that isn't read here."""
    with file.path.open("rb") as stream:
        stream.seek(tensor.begin)
        data = stream.read(tensor.end - tensor.begin)
    if tensor.dtype == "BF16":
        return float(struct.unpack("<f", b"\0\0" + data[:2])[0])
    if code := _FORMATS.get(tensor.dtype):
        return float(struct.unpack(code, data[: struct.calcsize(code)])[0])
    return None


def _is_convolution(file: TensorFile, layer: AdapterLayer) -> bool:
    shape = file.tensors[layer.parts["down"]].shape
    return len(shape) == 4 and shape[2:] != (1, 1)
