"""Files of tensors (.safetensors) looked into without torch: names, shapes, and whether all counts.

The format: 8 bytes of header length, a JSON header that gives each tensor's type, shape and place,
then the tensors without gaps. Whatever else has been given the ending is recognised by its first
bytes and named: a pointer of Git LFS, a web page, a pickle.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MAX_HEADER_BYTES = 100_000_000
_BLOCK_BYTES = 1 << 22
_START_BYTES = 512

BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "C64": 64,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits a value, by the format's names of types."""

_COPY = "Copy or download the file again, and compare its size with the original's."
_CONVERT = "Save it as .safetensors with the program that made it."
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs",
        "this is a pointer of Git LFS, not the file itself",
        "Fetch the file with `git lfs pull`, or download it from its page.",
    ),
    (b"GGUF", "this is a GGUF file", "Use the .safetensors file of the same weights."),
    (b"PK\x03\x04", "this is a zip file, or weights saved with torch.save", _CONVERT),
    (b"\x80\x02", "this is a pickle, which can run code when it is read", _CONVERT),
    (b"\x80\x03", "this is a pickle, which can run code when it is read", _CONVERT),
    (b"\x80\x04", "this is a pickle, which can run code when it is read", _CONVERT),
    (b"\x80\x05", "this is a pickle, which can run code when it is read", _CONVERT),
    (b"\x1f\x8b", "this is a gzip file", "Unpack it."),
    (b"7z\xbc\xaf", "this is a 7z archive", "Unpack it."),
    (b"Rar!", "this is a rar archive", "Unpack it."),
    (b"\x89PNG", "this is a PNG image", "Give the file of the weights."),
    (b"\xff\xd8\xff", "this is a JPEG image", "Give the file of the weights."),
    (b"\x89HDF", "this is an HDF5 file", _CONVERT),
)
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<body", b"<script")
_PAGE_REMEDY = (
    "The download led to a page, often because it asks for a login: download the file itself."
)


class NotTensors(ValueError):
    """A file isn't a whole file of tensors; the text says what it is, ``remedy`` what to do."""

    def __init__(self, text: str, remedy: str = _COPY) -> None:
        super().__init__(text)
        self.remedy = remedy


@dataclass(frozen=True)
class StoredTensor:
    """Type, shape and place of a tensor in its file; bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def is_float(self) -> bool:
        """Whether its values are real numbers with a fraction."""
        return self.dtype.startswith(("F", "BF"))

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class TensorFile:
    """The header of a file of tensors, verified against the file's size."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


def read_tensor_file(path: Path) -> TensorFile:
    """Read and check the header. Raises `NotTensors`, and `OSError` as the system does."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_START_BYTES)
        if what := _other_kind(start, size):
            raise NotTensors(*what)
        (length,) = struct.unpack("<Q", start[:8])
        if length > min(_MAX_HEADER_BYTES, size - 8):
            raise NotTensors(_cut_or_foreign(start, size))
        file.seek(8)
        text = file.read(length)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", None) or {}
        tensors = {str(key): _tensor(value, 8 + length) for key, value in header.items()}
        if not all(isinstance(value, str) for value in dict(metadata).values()):
            raise ValueError("its metadata isn't text")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise NotTensors(f"its header can't be read ({str(error)[:200]})") from error
    _check_places(tensors, 8 + length, size)
    return TensorFile(path, tensors, metadata)


def not_finite(file: TensorFile) -> list[str]:
    """Return the names of the tensors that hold NaN or infinity, reading block by block.

    Raises `OSError`. Whole numbers are always finite.
    """
    found = []
    with file.path.open("rb") as stream:
        for name, tensor in file.tensors.items():
            blocks = _blocks(stream, tensor)
            if any(_has_infinite(block, tensor.dtype) for block in blocks):
                found.append(name)
    return found


def _other_kind(start: bytes, size: int) -> tuple[str, str] | None:
    if not size:
        return "the file is empty", _COPY
    if start[5:9] == b"\0\0\0{":
        return None  # a length and a header, whatever the length's low bytes look like
    for beginning, what, remedy in _BEGINNINGS:
        if start.startswith(beginning):
            return what, remedy
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_PAGES):
        return "this is a web page, not the file itself", _PAGE_REMEDY
    if text.startswith((b'{"', b"[", b"{\n")) and start[8:9] != b"{":
        return "this is a JSON text, perhaps the answer of a server that refused it", _PAGE_REMEDY
    if size < 8:
        return f"the file has only {size} byte{'s' if size != 1 else ''}", _COPY
    return None


def _cut_or_foreign(start: bytes, size: int) -> str:
    if start[8:10] in (b'{"', b"{ ", b"{}", b"{\n"):
        return f"the file ends within its header, after {size} bytes"
    return "not a .safetensors file, whatever its name says"


def _tensor(entry: Any, offset: int) -> StoredTensor:
    dtype, shape = entry["dtype"], entry["shape"]
    begin, end = entry["data_offsets"]
    if dtype not in BITS:
        raise ValueError(f"unknown type {str(dtype)[:40]}")
    if not all(type(one) is int and one >= 0 for one in (*shape, begin, end)):
        raise ValueError("a shape or place isn't a whole number")
    if (end - begin) * 8 != math.prod(shape) * BITS[dtype]:
        raise ValueError("a tensor's shape doesn't agree with its size")
    return StoredTensor(dtype, tuple(shape), offset + begin, offset + end)


def _check_places(tensors: Mapping[str, StoredTensor], start: int, size: int) -> None:
    end = start
    for tensor in sorted(tensors.values(), key=lambda one: (one.begin, one.end)):
        if tensor.begin != end:
            raise NotTensors("its header can't be read (the tensors overlap or leave gaps)")
        end = tensor.end
    if size < end:
        raise NotTensors(f"the file is cut off: it has {size} of {end} bytes")
    if size > end:
        raise NotTensors(f"the file has {size} bytes, its header says {end}")


def _blocks(stream: Any, tensor: StoredTensor) -> Iterator[bytes]:
    if not tensor.is_float and tensor.dtype != "C64":
        return
    stream.seek(tensor.begin)
    left = tensor.end - tensor.begin
    while left > 0:
        block = stream.read(min(left, _BLOCK_BYTES))
        if not block:
            raise OSError(f"{tensor.end - tensor.begin} bytes expected, {left} are missing")
        left -= len(block)
        yield block


def _bytes_between(first: int, last: int) -> bytes:
    """All values of the highest byte from ``first`` to ``last``, of both signs."""
    return bytes([*range(first, last + 1), *range(first | 0x80, (last | 0x80) + 1)])


# NaN and infinity have all bits of the exponent set. Where these are in the highest byte, that
# byte tells; where they reach into the next one, the pair does.
_BY_HIGHEST: Mapping[str, tuple[int, bytes]] = {
    "F16": (2, _bytes_between(0x7C, 0x7F)),
    "F8_E5M2": (1, _bytes_between(0x7C, 0x7F)),
    "F8_E4M3": (1, b"\x7f\xff"),
    "F8_E4M3FNUZ": (1, b"\x80"),
    "F8_E5M2FNUZ": (1, b"\x80"),
    "F8_E8M0": (1, b"\xff"),
}
_BY_TWO: Mapping[str, tuple[int, int]] = {
    "BF16": (2, 0x80), "F32": (4, 0x80), "C64": (4, 0x80), "F64": (8, 0xF0),
}  # fmt: skip


def _has_infinite(block: bytes, dtype: str) -> bool:
    if dtype in _BY_HIGHEST:
        width, values = _BY_HIGHEST[dtype]
        highest = block[width - 1 :: width]
        return len(highest.translate(None, values)) != len(highest)
    if dtype in _BY_TWO:
        width, least = _BY_TWO[dtype]
        highest = block[width - 1 :: width]
        if len(highest.translate(None, b"\x7f\xff")) == len(highest):
            return False
        pairs = zip(highest, block[width - 2 :: width], strict=True)
        return any(high in b"\x7f\xff" and next_ >= least for high, next_ in pairs)
    return False
