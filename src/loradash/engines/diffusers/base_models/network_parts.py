"""Which parts a network must have by its config, to notice weights that lack some of them.

Parts, not single tensors: a block that is there with one tensor counts. Loading compares the rest.
The names are diffusers' and transformers' for `UNet2DConditionModel`, `AutoencoderKL` and
`CLIPTextModel`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from loradash.engines.diffusers.base_models.parts import PartKind

_MIDDLE = "UNetMidBlock2DCrossAttn"


def missing_parts(kind: PartKind, config: Mapping[str, Any], tensors: Iterable[str]) -> list[str]:
    """Return the blocks that the config describes and of which no tensor is there."""
    wanted = _DESCRIBED[kind]
    there: set[str] = set()
    for key in tensors:
        pieces = key.removeprefix("text_model.").split(".")
        there.update(".".join(pieces[:length]) for length in range(1, len(pieces)))
    try:
        return [name for name in wanted(config) if name not in there]
    except (TypeError, ValueError, LookupError):
        return []  # a config of a form that we don't know; loading will tell


def _unet(config: Mapping[str, Any]) -> Iterator[str]:
    down, up = config["down_block_types"], config["up_block_types"]
    layers = _per_block(config.get("layers_per_block", 2), len(down))
    yield from ("conv_in", "time_embedding.linear_1", "time_embedding.linear_2")
    for number, kind in enumerate(down):
        yield from _block(f"down_blocks.{number}", kind, layers[number])
        if number < len(down) - 1:
            yield f"down_blocks.{number}.downsamplers.0"
    if config.get("mid_block_type", _MIDDLE) == _MIDDLE:
        yield from ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
    for number, kind in enumerate(up):
        yield from _block(f"up_blocks.{number}", kind, layers[-1 - number] + 1)
        if number < len(up) - 1:
            yield f"up_blocks.{number}.upsamplers.0"
    yield from ("conv_norm_out", "conv_out")


def _block(name: str, kind: str, layers: int) -> Iterator[str]:
    for layer in range(layers):
        yield f"{name}.resnets.{layer}"
        if kind.startswith("CrossAttn"):
            yield f"{name}.attentions.{layer}"


def _vae(config: Mapping[str, Any]) -> Iterator[str]:
    levels, layers = len(config["block_out_channels"]), int(config.get("layers_per_block", 1))
    for side, blocks, count in (
        ("encoder", "down_blocks", layers), ("decoder", "up_blocks", layers + 1)
    ):  # fmt: skip
        yield f"{side}.conv_in"
        for level in range(levels):
            yield from (f"{side}.{blocks}.{level}.resnets.{layer}" for layer in range(count))
        yield from (f"{side}.mid_block.resnets.0", f"{side}.conv_norm_out", f"{side}.conv_out")
    if config.get("use_quant_conv", True):
        yield "quant_conv"
    if config.get("use_post_quant_conv", True):
        yield "post_quant_conv"


def _text_encoder(config: Mapping[str, Any]) -> Iterator[str]:
    yield from ("embeddings.token_embedding", "embeddings.position_embedding")
    yield from (f"encoder.layers.{layer}" for layer in range(int(config["num_hidden_layers"])))
    yield "final_layer_norm"
    if config.get("architectures") == ["CLIPTextModelWithProjection"]:
        yield "text_projection"


def _per_block(layers: Any, blocks: int) -> list[int]:
    return list(layers) if isinstance(layers, list) else [int(layers)] * blocks


_DESCRIBED: Mapping[PartKind, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "unet": _unet, "autoencoder": _vae, "clip": _text_encoder,
}  # fmt: skip
