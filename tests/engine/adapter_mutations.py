"""Adapter files as they come after accidents: names, shapes, types, metadata and bytes changed.

One seed is one file. `outcome` says what reading it led to and fails for whatever is neither whole
use, nor use with a word about the rest, nor a refusal with a reason and a remedy.
"""

import json
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor

from loradash.engines.diffusers.adapters.layers import read_adapter_layout
from loradash.engines.diffusers.child.adapter_reading import put_adapter, read_adapter
from loradash.engines.diffusers.child.architecture import AdaptedModule
from loradash.errors import InvalidAdapter
from tests.engine.foreign_adapters import KINDS, ForeignAdapter, make

Tensors = dict[str, Tensor]
_DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.int8, torch.uint8, torch.int64, torch.bool,
]  # fmt: skip
_ENDINGS = [
    ".alpha", ".lora_up.weight", ".lora_down.weight", ".lora_mid.weight", ".dora_scale", ".diff",
    ".hada_w1_a", ".lokr_w1", ".lokr_w2_a", ".lora_A.weight", ".lora_B.default.weight", ".scale",
    ".lora_up.bias", ".on_input", ".diff_b", ".processor.to_q_lora.up.weight", "",
]  # fmt: skip
_VALUES = [float("nan"), float("inf"), -float("inf"), 1e30, 65504.0, 0.0]
_SETTINGS = [
    "{", "[]", "null", "5", '{"unet.r": 4}', '{"unet.lora_alpha": "x"}', "[" * 5000,
    '{"unet.lora_alpha": 1e400}', '{"unet.lora_alpha": 2, "unet.alpha_pattern": {"(a+)+$": 3}}',
    '{"unet.lora_alpha": 2, "unet.alpha_pattern": 5}', '{"unet.lora_alpha": 8}',
]  # fmt: skip


def write(seed: int, pipeline: Any, path: Path) -> str:
    """Write the file of a seed; return which accidents it had, for a message."""
    source = random.Random(seed)
    kind = source.choice(list(KINDS))
    made = _made(kind, pipeline)
    tensors, metadata = dict(made.tensors), dict(made.metadata or {})
    accidents = source.choices(list(_CHANGES), k=source.choice((0, 1, 1, 2, 3)))
    for name in accidents:
        if tensors:
            _CHANGES[name](source, tensors)
    if source.random() < 0.2:
        accidents.append("settings")
        metadata["lora_adapter_metadata"] = source.choice(_SETTINGS)
    if source.random() < 0.3:  # another kind in the same file
        other = source.choice(list(KINDS))
        accidents.append(f"with {other}")
        keys = source.sample(sorted(_made(other, pipeline).tensors), 1)
        tensors |= {key: _made(other, pipeline).tensors[key] for key in keys}
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path, metadata)
    if source.random() < 0.3:
        name = source.choice(list(_BYTES))
        accidents.append(name)
        path.write_bytes(_BYTES[name](source, path.read_bytes()))
    return f"seed {seed}: {kind}, {', '.join(accidents) or 'whole'}"


def outcome(path: Path, modules: list[AdaptedModule]) -> str:
    """``refused``, ``used`` or ``partly used``; whatever else happens is raised."""
    try:
        read = read_adapter(path, modules)
        read_adapter_layout(path, values=True)
    except InvalidAdapter as error:
        assert error.message.startswith("adapter ")
        assert error.remedy
        return "refused"
    put_adapter(read, modules, "fuzz")
    acting = {
        (module.name, name): layer
        for module in modules
        for name, layer in module.module.named_modules()
        if isinstance(layer, BaseTunerLayer) and "fuzz" in layer.lora_A
    }
    changes = {
        (part, name): one for part, all_ in read.changes.items() for name, one in all_.items()
    }
    assert set(acting) == set(changes)
    for place, change in changes.items():
        delta = acting[place].get_delta_weight("fuzz").flatten(1)
        assert delta.isfinite().all()
        expected = change.delta()
        assert (delta - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))
    layout = read_adapter_layout(path)
    parts = sum(len(layer.parts) for layer in layout.layers)
    assert parts + len(layout.unknown) == len(layout.file.tensors)
    is_whole = len(changes) == len(layout.layers) and not layout.unknown
    assert is_whole or read.warnings
    return "partly used" if read.warnings else "used"


@lru_cache
def _made(kind: str, pipeline: Any) -> ForeignAdapter:
    return make(kind, pipeline)


def _rename(source: random.Random, tensors: Tensors) -> None:
    key = source.choice(sorted(tensors))
    place = source.randrange(len(key))
    new = (
        key[:place] + source.choice(["", "x", ".", "_", "é", "9", "lora_te2_", "\n"]) + key[place:]
    )
    tensors[new] = tensors.pop(key)


def _rename_layers(source: random.Random, tensors: Tensors) -> None:
    old, new = source.choice(
        [("attn1", "bttn1"), ("to_q", "to_z"), ("unet", "net"), ("_", "."), (".", "_"),
         ("lora_", "lory_"), ("down_blocks", "input_blocks"), ("text_model", "model")]
    )  # fmt: skip
    for key in sorted(tensors):
        if old in key and source.random() < 0.9:
            tensors[key.replace(old, new)] = tensors.pop(key)


def _drop(source: random.Random, tensors: Tensors) -> None:
    for key in source.sample(sorted(tensors), min(len(tensors), source.choice((1, 2, 30)))):
        del tensors[key]


def _ending(source: random.Random, tensors: Tensors) -> None:
    key = source.choice(sorted(tensors))
    stem = key.split(".lora_")[0].split(".hada")[0].split(".lokr")[0].removesuffix(".alpha")
    tensors[stem + source.choice(_ENDINGS)] = tensors[key].clone()


def _shape(source: random.Random, tensors: Tensors) -> None:
    key = source.choice(sorted(tensors))
    value = tensors[key]
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda one: one.flatten(), lambda one: one.unsqueeze(0), lambda one: one[..., :1],
        lambda one: one.transpose(0, -1), lambda one: one[:0], lambda one: one[1:],
        lambda one: torch.cat([one, one]), lambda one: one.reshape(*one.shape, 1, 1),
        lambda one: one.sum(),
    ]  # fmt: skip
    way = source.choice(ways)
    tensors[key] = (way(value.float()) if value.dim() else value.repeat(3)).clone()


def _dtype(source: random.Random, tensors: Tensors) -> None:
    dtype = source.choice(_DTYPES)
    for key in source.sample(sorted(tensors), source.choice((1, len(tensors)))):
        tensors[key] = tensors[key].float().to(dtype)


def _value(source: random.Random, tensors: Tensors) -> None:
    key = source.choice(sorted(tensors))
    value = tensors[key].float().clone()
    if value.numel():
        value.view(-1)[source.randrange(value.numel())] = source.choice(_VALUES)
    tensors[key] = value.to(tensors[key].dtype)


def _alphas(source: random.Random, tensors: Tensors) -> None:
    for key in sorted(tensors):
        if key.endswith(".alpha"):
            tensors[key] = torch.tensor(source.choice([0.0, -1.0, 4.0, 1e30, 128.0]))


def _header_byte(source: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    changed[source.randrange(min(len(data), 400))] = source.randrange(256)
    return bytes(changed)


def _header_text(source: random.Random, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header, _ = json.JSONDecoder().raw_decode(data[8 : 8 + length].decode())
    if not header:
        return data
    key = source.choice(sorted(header))
    header[key] = source.choice([None, 5, [], {}, {"dtype": "F32"}, {"a": 5}, header[key]])
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


_CHANGES: dict[str, Callable[[random.Random, Tensors], None]] = {
    "a name changed": _rename, "names changed": _rename_layers, "tensors lost": _drop,
    "a part added": _ending, "a shape changed": _shape, "types changed": _dtype,
    "a value changed": _value, "alphas changed": _alphas,
}  # fmt: skip
_BYTES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "cut off": lambda source, data: data[: source.randrange(len(data))],
    "cut off by a byte": lambda source, data: data[:-1],
    "bytes added": lambda source, data: data + b"\n",
    "a byte of the header changed": _header_byte,
    "an entry of the header changed": _header_text,
    "replaced": lambda source, data: source.choice(
        [b"", b"<html>", b"version https://git-lfs.github.com/spec/v1", b"PK\3\4" + data, data[8:]]
    ),
}
