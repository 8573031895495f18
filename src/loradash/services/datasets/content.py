"""The bytes of a dataset's file in pieces."""

from collections.abc import Iterator

from loradash.domain.dataset_manifest import DatasetFile
from loradash.errors import InvalidDataset
from loradash.services.results.pieces import exactly
from loradash.storage.store import ObjectStore


def content(store: ObjectStore, file: DatasetFile) -> Iterator[bytes]:
    """Yield a file's bytes, exactly as many as the manifest says.

    Raises `InvalidDataset` rather than end too soon or go on too long, and what the store raises.
    """
    wrong = InvalidDataset(
        f"the file {file.name} isn't what was uploaded", remedy="Upload the file again."
    )
    return exactly(_read(store, file), file.size_bytes, wrong)


def _read(store: ObjectStore, file: DatasetFile) -> Iterator[bytes]:
    yield from store.read(file.key)  # asked only when the first piece is wanted
