"""What a stored .safetensors file says of itself, read from its first bytes alone."""

import json
import struct
from typing import Any

from loradash.errors import InvalidAdapter
from loradash.registry.registry import StoredArtifact
from loradash.storage.store import ObjectStore

_MAX_HEADER_BYTES = 32 * 2**20
_START_BYTES = 2**16  # most headers fit, so that one request is enough


def read_header(store: ObjectStore, entry: StoredArtifact) -> dict[str, Any]:
    """Return the header's JSON: a tensor's type, shape and place by name, and ``__metadata__``.

    Raises `InvalidAdapter` if it isn't one, and what the store raises.
    """
    start = b"".join(store.read(entry.key, 0, min(_START_BYTES, entry.size_bytes)))
    try:
        (length,) = struct.unpack("<Q", start[:8])
        if length > min(_MAX_HEADER_BYTES, entry.size_bytes - 8):
            raise ValueError("its header is longer than the file")
        text = start[8 : 8 + length]
        if len(text) < length:
            text += b"".join(store.read(entry.key, len(start), 8 + length))
        header = json.loads(text)
        if not isinstance(header, dict):
            raise TypeError("its header is no mapping")
    except (ValueError, TypeError, RecursionError, struct.error) as error:
        raise InvalidAdapter(
            f"the stored file {entry.name} isn't a .safetensors file: {error}",
            remedy="Train it again, or delete it.",
        ) from error
    return header
