"""The bytes of a dataset's file in pieces, for replies that say beforehand how many will come."""

from collections.abc import Iterator

from loradash.domain.dataset_manifest import DatasetFile
from loradash.errors import InvalidDataset
from loradash.storage.store import ObjectStore


def content(store: ObjectStore, file: DatasetFile) -> Iterator[bytes]:
    """Yield a file's bytes, exactly as many as the manifest says.

    Raises `InvalidDataset` rather than end too soon or go on too long, and what the store raises.
    """
    left = file.size_bytes
    for piece in store.read(file.key):
        left -= len(piece)
        if left < 0:
            break
        yield piece
    if left:
        raise InvalidDataset(
            f"the file {file.name} isn't what was uploaded", remedy="Upload the file again."
        )
