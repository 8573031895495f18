"""LoRA files of made-up weights: safetensors, written and read with the standard library.

A file is eight bytes with the length of its header, the header in JSON, and the tensors. One layer
has two matrices and its alpha, under the names that kohya's scripts give them.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
_SIDE = 32
_FORMATS = {"fp32": ("F32", 4), "fp16": ("F16", 2), "bf16": ("BF16", 2)}
_CODES = {"F32": "f", "F16": "e"}
_MOST_HEADER_BYTES = 100 * 2**20
_BLOCK_BYTES = 2**20


class NotAnAdapter(ValueError):
    """A file that isn't a whole LoRA of finite weights."""


def write_adapter(
    path: Path, state: bytes, rank: int, alpha: float, dtype: str, metadata: Mapping[str, str]
) -> None:
    """Write the adapter that belongs to a training's state, flushed to disk."""
    kind, width = _FORMATS[dtype]
    shapes: dict[str, tuple[int, ...]] = {
        f"{LAYER}.alpha": (),
        f"{LAYER}.lora_down.weight": (rank, _SIDE),
        f"{LAYER}.lora_up.weight": (_SIDE, rank),
    }
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    data = b""
    for name, shape in shapes.items():
        count = math.prod(shape)
        values = [alpha] if not shape else list(_weights(state, name, count))
        block = _packed(values, kind)
        assert len(block) == count * width
        place = [len(data), len(data) + len(block)]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": place}
        data += block
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)
        file.flush()
        os.fsync(file.fileno())


def read_header(path: Path) -> dict[str, str]:
    """Return a file's metadata. Raises `NotAnAdapter`, and `OSError` as the system does."""
    return _header(path)[0]


def check_values(path: Path) -> dict[str, str]:
    """As `read_header`, after reading all values. Raises `NotAnAdapter`."""
    metadata, tensors, start = _header(path)
    with path.open("rb") as file:
        for name, (kind, begin, end) in tensors.items():
            file.seek(start + begin)
            left = end - begin
            while left:
                block = file.read(min(left, _BLOCK_BYTES))
                left -= len(block)
                if not all(map(math.isfinite, _unpacked(block, kind))):
                    raise NotAnAdapter(f"{name} holds NaN or infinity")
    return metadata


def rank_and_alpha(path: Path) -> tuple[int, float]:
    """Return what a file of this engine was made with. Raises `NotAnAdapter`."""
    metadata = read_header(path)
    try:
        return int(metadata["loradash.rank"]), float(metadata["loradash.alpha"])
    except (KeyError, ValueError) as error:
        raise NotAnAdapter("it doesn't say its rank and alpha") from error


_Tensor = tuple[str, int, int]


def _header(path: Path) -> tuple[dict[str, str], dict[str, _Tensor], int]:
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if not 2 <= length <= min(size - 8, _MOST_HEADER_BYTES):
            raise NotAnAdapter("it is no safetensors file, or was cut off")
        text = file.read(length)
    try:
        header = json.loads(text)
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        tensors = {
            str(name): (str(one["dtype"]), int(one["data_offsets"][0]), int(one["data_offsets"][1]))
            for name, one in header.items()
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise NotAnAdapter("its header can't be read") from error
    if not any("lora" in name for name in tensors):
        raise NotAnAdapter("it has no LoRA layers")
    ends = [end for _, _, end in tensors.values()]
    if max(ends) != size - 8 - length or any(not 0 <= a <= b for _, a, b in tensors.values()):
        raise NotAnAdapter("it isn't whole")
    return metadata, tensors, 8 + length


def _weights(state: bytes, name: str, count: int) -> Iterator[float]:
    """Return numbers between -0.01 and 0.01 that depend on nothing but the state and the name."""
    for number in range(count):
        if number % 8 == 0:
            block = hashlib.sha256(state + f"/{name}/{number}".encode()).digest()
        (whole,) = struct.unpack_from("<I", block, number % 8 * 4)
        yield (whole / 2**31 - 1) * 0.01


def _packed(values: list[float], kind: str) -> bytes:
    if kind == "BF16":  # the upper half of a float
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{_CODES[kind]}", *values)


def _unpacked(block: bytes, kind: str) -> tuple[float, ...]:
    if kind == "BF16":
        pairs = (block[at : at + 2] for at in range(0, len(block), 2))
        return tuple(struct.unpack("<f", b"\0\0" + pair)[0] for pair in pairs)
    if kind not in _CODES:
        return ()  # whole numbers are always finite
    code = _CODES[kind]
    return struct.unpack(f"<{len(block) // struct.calcsize(code)}{code}", block)
