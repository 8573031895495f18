"""Names of a UNet's layers in the original code of Stable Diffusion, which many adapters use.

``input_blocks``, ``middle_block`` and ``output_blocks`` are numbered lists there; diffusers groups
them by resolution. Source: CompVis ``ldm/modules/diffusionmodules/openaimodel.py``; sd-scripts
names the layers of SDXL's adapters by it.
"""

import re

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_IN_BLOCK = re.compile(
    r"(?P<side>down|up)_blocks\.(?P<block>\d+)\."
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)\.(?P<rest>.+)"
)
_IN_MIDDLE = re.compile(r"mid_block\.(?P<kind>resnets|attentions)\.(?P<layer>\d+)\.(?P<rest>.+)")


def original_name(name: str, layers_per_block: int, attention_blocks: frozenset[int]) -> str | None:
    """Return what the original code calls a layer of diffusers' UNet; None if it has no such.

    ``attention_blocks`` are the numbers of those ``up_blocks`` that hold attention.
    """
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    if found := _IN_MIDDLE.fullmatch(name):
        place = 2 * int(found["layer"]) + (found["kind"] == "attentions")
        return _joined(f"middle_block.{place}", found["kind"], found["rest"])
    if not (found := _IN_BLOCK.fullmatch(name)):
        return None
    block, layer, kind = int(found["block"]), int(found["layer"]), found["kind"]
    down = found["side"] == "down"
    first = block * (layers_per_block + 1) + (1 if down else 0)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers_per_block}.0.op"
    if kind == "upsamplers":
        place = 2 if block in attention_blocks else 1
        return f"output_blocks.{first + layers_per_block}.{place}.{found['rest']}"
    side = "input_blocks" if down else "output_blocks"
    place = 1 if kind == "attentions" else 0
    return _joined(f"{side}.{first + layer}.{place}", kind, found["rest"])


def _joined(place: str, kind: str, rest: str) -> str | None:
    if kind == "attentions":
        return f"{place}.{rest}"
    return f"{place}.{_RESNET[rest]}" if rest in _RESNET else None
