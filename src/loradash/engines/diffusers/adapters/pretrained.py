"""Whether a training can start from an adapter: told from its header, before anything is loaded."""

from collections.abc import Iterator
from pathlib import Path

from loradash.domain.sizes import counted
from loradash.domain.training_config import TrainingProcess
from loradash.engines.diffusers.adapters.layers import (
    AdapterLayer,
    AdapterLayout,
    read_adapter_layout,
    some_of,
)
from loradash.errors import InvalidAdapter

_MAKES = {"loha": "LoHa", "lokr": "LoKr", "full": "full differences"}


def check_pretrained(path: Path, process: TrainingProcess) -> None:
    """Raise `InvalidAdapter` if not all of an adapter can be trained further as the config says.

    What isn't trained would be lost: the first preview has to show what the file itself draws.
    """
    layout = read_adapter_layout(path, values=True)
    if problems := list(_problems(layout, process)):
        raise InvalidAdapter(
            f"network.pretrained_lora_path: the training can't start from {path.name}",
            problems=problems,
            remedy="Change these settings, or start without it.",
        )


def _problems(layout: AdapterLayout, process: TrainingProcess) -> Iterator[str]:
    makes = sorted({_make(layer) for layer in layout.layers} - {"LoRA"})
    if makes:
        yield f"it is {' and '.join(makes)}; only a LoRA can be trained further"
        return
    train, network = process.train, process.network
    text = [layer.name for layer in layout.layers if is_text(layer)]
    if text and not train.train_text_encoder:
        yield (
            f"{counted(len(text), 'layer')} of the text encoder would be lost ({some_of(text)}): "
            "set train.train_text_encoder to true"
        )
    denoiser = [layer for layer in layout.layers if not is_text(layer)]
    if denoiser and not train.train_unet:
        yield f"{counted(len(denoiser), 'layer')} of the UNet would be lost: set train.train_unet"
    convolutions = [layer for layer in layout.layers if _has_kernel(layout, layer)]
    conv = network.conv or network.linear
    if convolutions and not network.conv:
        conv = _rank(layout, convolutions[0])
        yield (
            f"{counted(len(convolutions), 'convolution')} would be lost "
            f"({some_of([layer.name for layer in convolutions])}): set network.conv to {conv}"
        )
    for key, wanted, layers in (
        ("network.linear", network.linear, [x for x in layout.layers if x not in convolutions]),
        ("network.conv", conv, convolutions),
    ):
        ranks = sorted({_rank(layout, layer) for layer in layers} - {wanted})
        if len(ranks) == 1 and all(_rank(layout, layer) == ranks[0] for layer in layers):
            yield f"its rank is {ranks[0]}, {key} is {wanted}: set {key} to {ranks[0]}"
        elif ranks:
            yield (
                f"the ranks of its layers differ ({', '.join(map(str, ranks[:5]))} besides "
                f"{key}: {wanted}), and all that is trained has one: it can't be trained further"
            )


def is_text(layer: AdapterLayer) -> bool:
    """Whether a layer belongs to a text encoder, also where the file doesn't say."""
    unsaid = not layer.component and layer.flat_name.startswith("encoder_layers_")
    return layer.component.startswith("text_encoder") or unsaid


def _make(layer: AdapterLayer) -> str:
    if "magnitude" in layer.parts:
        return "DoRA"
    return _MAKES.get(layer.algorithm, "LoRA")


def _rank(layout: AdapterLayout, layer: AdapterLayer) -> int:
    return layout.rank(layer) or 0


def _has_kernel(layout: AdapterLayout, layer: AdapterLayer) -> bool:
    key = layer.parts.get("mid") or layer.parts["down"]
    return any(side > 1 for side in layout.file.tensors[key].shape[2:])
