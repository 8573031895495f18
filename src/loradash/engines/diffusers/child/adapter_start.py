"""Starting a training from an adapter: at step 0 it acts exactly as the file does."""

from collections.abc import Iterator
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from loradash.domain.sizes import counted
from loradash.engines.diffusers.adapters.layers import some_of
from loradash.engines.diffusers.child.adapter_reading import LayerChange, read_adapter
from loradash.engines.diffusers.child.architecture import AdaptedModule
from loradash.engines.diffusers.child.lora import ADAPTER_NAME
from loradash.errors import InvalidAdapter


def start_from_adapter(
    path: Path, trained: list[AdaptedModule], everything: list[AdaptedModule]
) -> list[str]:
    """Put an adapter's weights into the LoRAs of ``trained``, which must be in place.

    The file's alpha is kept by folding it into the weights: the training has one of its own.
    Returns what the user should know. Raises `InvalidAdapter` if a layer of the file isn't
    trained, since it would be lost, or has another rank; ``everything`` is the base model's parts.
    """
    read = read_adapter(path, everything)
    places = {
        (module.name, name): layer
        for module in trained
        for name, layer in module.module.named_modules()
        if isinstance(layer, BaseTunerLayer) and ADAPTER_NAME in layer.lora_A
    }
    changes = {
        (part, name): change
        for part, layers in read.changes.items()
        for name, change in layers.items()
    }
    if lost := [".".join(key) for key in changes if key not in places]:
        raise InvalidAdapter(
            f"adapter {read.name}: {counted(len(lost), 'layer')} of {len(changes)} "
            f"{'is' if len(lost) == 1 else 'are'} not trained with these settings and would be "
            f"lost: {some_of(lost)}",
            remedy="See train.train_unet, train.train_text_encoder, network.conv, "
            "network.target_modules and network.network_kwargs.",
        )
    for key, change in changes.items():
        _require_rank(read.name, ".".join(key), change, places[key].r[ADAPTER_NAME])
    for key, change in changes.items():
        _start(places[key], change)
    return [*read.warnings, *_fresh(read.name, [key for key in places if key not in changes])]


def _start(layer: BaseTunerLayer, change: LayerChange) -> None:
    down, up = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
    factor = change.scale / layer.scaling[ADAPTER_NAME]
    if not change.down.any() and not (change.up * factor).any():
        return  # with zeros in both it could never learn; a fresh layer changes as little
    with torch.no_grad():
        down.copy_(change.down.reshape(down.shape))
        up.copy_((change.up * factor).reshape(up.shape))


def _require_rank(name: str, layer: str, change: LayerChange, rank: int) -> None:
    if not change.is_low_rank or change.rank != rank:
        raise InvalidAdapter(
            f"adapter {name}: layer {layer} has rank {change.rank}, this training has {rank}",
            remedy="Set network.linear (and network.conv, for convolutions) to the file's rank.",
        )


def _fresh(name: str, layers: list[tuple[str, str]]) -> Iterator[str]:
    if layers:
        yield (
            f"adapter {name}: {counted(len(layers), 'layer')} that "
            f"{'is' if len(layers) == 1 else 'are'} trained {'is' if len(layers) == 1 else 'are'} "
            f"not in it and {'starts' if len(layers) == 1 else 'start'} anew: "
            f"{some_of(['.'.join(key) for key in layers])}"
        )
