"""The header of an adapter file: hashes of its tensors, and one order whoever writes it."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

HASHES = {
    "modelspec.hash_sha256": f"0x{0:064}",
    "sshs_model_hash": f"{0:064}",
    "sshs_legacy_hash": f"{0:08}",
}
"""Metadata that `finish_header` fills in; it must be there when the file is written."""

_LEGACY_START = 0x100000
_LEGACY_BYTES = 0x10000
_ALIGNMENT = 8


def finish_header(path: Path) -> None:
    """Fill in the hashes of the tensors, and give the metadata the order of their names, in place.

    safetensors writes metadata in another order in each process, so that the same adapter would
    have another hash after each attempt.
    """
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        metadata: dict[str, str] = header.pop("__metadata__")
        whole = hashlib.file_digest(file, "sha256").hexdigest()
        metadata |= {
            "modelspec.hash_sha256": f"0x{whole}",
            "sshs_model_hash": whole,
            "sshs_legacy_hash": _legacy_hash(file, 8 + length, metadata, header),
        }
        text = _header_text(metadata, header)
        if len(text) != length:
            raise AssertionError(f"{path.name}: the header takes {len(text)}, not {length} bytes")
        file.seek(8)
        file.write(text)


def _legacy_hash(
    file: BinaryIO, tensors_start: int, metadata: dict[str, str], layout: dict[str, Any]
) -> str:
    """Return the hash by which A1111's first extension for LoRAs knew a file, as sd-scripts does.

    SHA-256 of 64 KiB after the first MiB, shortened; of a file that would hold no other metadata
    than ``ss_``, since the rest may be edited.
    """
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    text = _header_text(kept, layout)
    start = struct.pack("<Q", len(text)) + text
    block = start[_LEGACY_START : _LEGACY_START + _LEGACY_BYTES]
    file.seek(tensors_start + max(0, _LEGACY_START - len(start)))
    block += file.read(_LEGACY_BYTES - len(block))
    return hashlib.sha256(block).hexdigest()[:8]


def _header_text(metadata: dict[str, str], layout: dict[str, Any]) -> bytes:
    """Write a header as safetensors does, with the metadata in the order of their names."""
    header = {"__metadata__": dict(sorted(metadata.items())), **layout}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return text.ljust(-(-len(text) // _ALIGNMENT) * _ALIGNMENT)
