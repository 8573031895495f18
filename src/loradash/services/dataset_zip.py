"""A stored dataset as one zip file that is made while it is sent.

Its size is known beforehand, and no more of it is in memory than one piece of one file. Nothing is
compressed: images don't get smaller.
"""

from collections.abc import Iterator

from zipstream import ZipStream  # type: ignore[import-untyped]

from loradash.domain.dataset_manifest import DatasetManifest
from loradash.services.dataset_content import content
from loradash.storage.store import ObjectStore


class DatasetZip:
    """A zip file of ``<dataset>/<file>``; it can be read once.

    Keys in a store have no ``..``, no backslashes and no control characters, and so neither have
    the names in it.
    """

    def __init__(self, store: ObjectStore, folder: str, manifest: DatasetManifest) -> None:
        self._zip = ZipStream(sized=True)
        for file in manifest.files:
            self._zip.add(content(store, file), f"{folder}/{file.name}", size=file.size_bytes)

    @property
    def size_bytes(self) -> int:
        """How many bytes all pieces have together."""
        return len(self._zip)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the file in pieces. Raises what `content` raises."""
        yield from self._zip
