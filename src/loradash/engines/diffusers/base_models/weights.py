"""What a weights file holds, told from its header alone, and what else may lie under its name.

The format is safetensors': 8 bytes with the length of a JSON header, the header with each tensor's
type, shape and byte range, the tensors (huggingface/safetensors, ``README.md``).
"""

import json
import math
import struct
from typing import Any, NamedTuple

from loradash.engines.diffusers.base_models.model_files import ModelFiles

_LOOK_BYTES = 512
_MAX_HEADER_BYTES = 100_000_000
_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8,
    "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
_AGAIN = "download it again"


class Tensor(NamedTuple):
    """Type, in safetensors' terms, and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]


class NotWeights(Exception):
    """A file that isn't a whole safetensors file; the text says what it is and what to do."""

    def __init__(self, reason: str, remedy: str = _AGAIN) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


def read_header(files: ModelFiles, name: str) -> dict[str, Tensor]:
    """Return the tensors that a safetensors file says it holds, after checking that it is whole.

    Raises `NotWeights` for anything else, by what it looks like, and `OSError`.
    """
    size = files.size(name)
    look = files.start(name, _LOOK_BYTES)
    _refuse_others(size, look)
    (length,) = struct.unpack("<Q", look[:8])
    if length > min(_MAX_HEADER_BYTES, 2**40):
        raise NotWeights("isn't a .safetensors file: its first bytes are no length of a header")
    if 8 + length > size:
        raise NotWeights(f"is cut off within its header, after {size:,} bytes")
    header = look if 8 + length <= len(look) else files.start(name, 8 + length)
    try:
        entries = json.loads(header[8 : 8 + length])
        entries.pop("__metadata__", None)
        tensors = {key: _tensor(key, entry) for key, entry in entries.items()}
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except NotWeights:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise NotWeights(
            f"isn't a .safetensors file: its header can't be read ({error})"
        ) from error
    if size < 8 + length + end:
        raise NotWeights(f"is cut off: {size:,} of {8 + length + end:,} bytes are there")
    if size > 8 + length + end:
        raise NotWeights(f"has {size:,} bytes where its header tells of {8 + length + end:,}")
    if not tensors:
        raise NotWeights("holds no tensor")
    return tensors


def _tensor(key: str, entry: dict[str, Any]) -> Tensor:
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(dtype, str) and isinstance(shape, list)):
        raise TypeError(f"{key}: no type or shape")
    tensor = Tensor(dtype, tuple(int(side) for side in shape))
    item_bytes = _ITEM_BYTES.get(dtype)
    if item_bytes is not None and math.prod(tensor.shape) * item_bytes != end - begin:
        raise ValueError(f"{key}: {end - begin} bytes for a {dtype} of shape {list(tensor.shape)}")
    return tensor


def _refuse_others(size: int, look: bytes) -> None:
    """Raise `NotWeights` for a file that is known by its first bytes."""
    if look[5:9] == b"\0\0\0{":
        return  # a length and the beginning of a header; its low bytes may look like anything
    text = look.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if size == 0:
        raise NotWeights("is empty")
    if text.startswith(b"version https://git-lfs"):
        raise NotWeights(
            "is a Git LFS pointer of some lines, not the weights",
            "run `git lfs pull` in its folder, or download the file itself",
        )
    if text.startswith(b"<"):
        raise NotWeights(
            "is a web page (HTML), not weights", "download it again, logged in where that's asked"
        )
    if look.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise NotWeights(
            "is a pickle (.ckpt, .pt or .bin) under another name, which can run code when it is "
            "read",
            "use the model's own .safetensors file; renaming isn't enough",
        )
    if look.startswith(b"GGUF"):
        raise NotWeights(
            "is a GGUF file: quantised weights that can't be trained", "use the .safetensors file"
        )
    if text.startswith((b"{", b"[")) and size < _LOOK_BYTES:
        raise NotWeights("is JSON text, such as an error message, not weights")
    if size < 8:
        raise NotWeights(f"is cut off after {size} bytes")
