"""Looking into a dataset's images: thumbnails, and hashes by which duplicates are found.

What comes out is kept in the workspace under the hash of the image's file. A decoded image may take
a hundred times its file's memory, so only few are looked at here at a time.
"""

import hashlib
import io
import re
import threading
from collections.abc import Callable
from pathlib import Path

from loradash.datasets.image_hash import difference_hash
from loradash.datasets.images import open_small
from loradash.domain.dataset_manifest import DatasetFile
from loradash.domain.sizes import size_text
from loradash.errors import InvalidDataset, InvalidRequest
from loradash.services.datasets.cache_folder import CacheFolder
from loradash.storage.store import ObjectStore

THUMBNAIL_SIZES = (128, 256, 512)
"""Longest sides in pixels. Only these are made, so that clients can't fill the disk with others."""

DECODED_AT_ONCE = 2
_QUALITY = 80
_HASHED_SIDE = 256  # a hash sees 9 x 8 pixels
_HASH = re.compile(rb"[0-9a-f]{16}")


class StoredImages:
    """Thumbnails and hashes of stored images; thread-safe."""

    def __init__(
        self,
        store: ObjectStore,
        cache: Path,
        max_file_bytes: int,
        *,
        max_thumbnails: int = 20_000,
        max_thumbnail_bytes: int = 512 * 2**20,
        max_hashes: int = 100_000,
    ) -> None:
        self._store = store
        self._max_file_bytes = max_file_bytes
        self._thumbnails = CacheFolder(
            cache / "thumbnails", max_files=max_thumbnails, max_bytes=max_thumbnail_bytes
        )
        self._hashes = CacheFolder(
            cache / "image-hashes", max_files=max_hashes, max_bytes=max_hashes * 64
        )
        self._turns = threading.BoundedSemaphore(DECODED_AT_ONCE)

    def thumbnail(self, file: DatasetFile, pixels: int) -> bytes:
        """Return an image, upright, as WebP of at most so many pixels a side; one of the sizes.

        Raises `InvalidRequest` for another size, `InvalidDataset` if the image can't be read, and
        what the store raises.
        """
        if pixels not in THUMBNAIL_SIZES:
            raise InvalidRequest(
                f"size: {pixels} pixels; only {', '.join(map(str, THUMBNAIL_SIZES))} are made",
                remedy="Ask for one of these, and let the page scale it.",
            )
        return self._cached(
            self._thumbnails, file, f"-{pixels}.webp", lambda data: _scaled(data, file.name, pixels)
        )

    def hash_of(self, file: DatasetFile) -> int:
        """Return an image's difference hash. Raises as `thumbnail` does."""

        def make(data: bytes) -> bytes:
            return b"%016x" % difference_hash(open_small(data, file.name, _HASHED_SIDE))

        text = self._cached(self._hashes, file, ".dhash", make)
        return int(text, 16) if _HASH.fullmatch(text) else int(make(self._data(file)), 16)

    def sha256_of(self, file: DatasetFile) -> str:
        """Return the hash of a file, read for it where the manifest has none."""
        return file.sha256 or hashlib.sha256(self._data(file)).hexdigest()

    def _cached(
        self, cache: CacheFolder, file: DatasetFile, ending: str, make: Callable[[bytes], bytes]
    ) -> bytes:
        if _is_sha256(file.sha256) and (kept := cache.get(f"{file.sha256}{ending}")):
            return kept
        with self._turns:
            data = self._data(file)
            name = f"{hashlib.sha256(data).hexdigest()}{ending}"
            if kept := cache.get(name):  # of a file whose hash wasn't known
                return kept
            made = make(data)
        cache.put(name, made)
        return made

    def _data(self, file: DatasetFile) -> bytes:
        """Read a file whole, unless it's larger than uploads may be: others may have put it."""
        limit = self._max_file_bytes
        data = b"".join(self._store.read(file.key, 0, limit + 1)) if file.size_bytes else b""
        if len(data) > limit:
            raise InvalidDataset(
                f"{file.name}: larger than {size_text(limit)}", remedy="Scale the image down."
            )
        return data


def _is_sha256(text: str) -> bool:
    """Whether a hash can be a part of a file's name: manifests may come from anywhere."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def _scaled(data: bytes, name: str, pixels: int) -> bytes:
    image = open_small(data, name, pixels)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY)
    return buffer.getvalue()
