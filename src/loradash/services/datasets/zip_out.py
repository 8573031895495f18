"""A stored dataset as one zip file of ``<dataset>/<file>``."""

from loradash.domain.dataset_manifest import DatasetManifest
from loradash.services.datasets.content import content
from loradash.services.results.pieces import ZipEntry, ZipPieces
from loradash.storage.store import ObjectStore


def dataset_zip(store: ObjectStore, folder: str, manifest: DatasetManifest) -> ZipPieces:
    """Return the zip file of a dataset.

    Keys in a store have no ``..``, no backslashes and no control characters, and so neither have
    the names in it.
    """
    return ZipPieces(
        ZipEntry(f"{folder}/{file.name}", file.size_bytes, content(store, file))
        for file in manifest.files
    )
