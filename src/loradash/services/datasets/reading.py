"""Manifests and captions of stored datasets, read once and kept while they stay the same.

A page of thumbnails is a hundred requests, and each needs the manifest, which may have thousands of
files. So it's only read again when its object has another etag; captions are known by their hash.
"""

import threading
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from cachetools import LRUCache

from loradash.datasets.captions import MAX_CAPTION_BYTES, decode_caption
from loradash.domain.dataset_files import CAPTION_SUFFIX, Pairs, paired
from loradash.domain.dataset_manifest import DatasetFile, DatasetManifest
from loradash.domain.schema import nearest
from loradash.errors import NotFound
from loradash.services.datasets.manifests import Manifests
from loradash.storage import keys
from loradash.storage.store import ObjectStore
from loradash.storage.transfer import CONCURRENCY, in_parallel

_MANIFESTS_KEPT = 16
_CAPTION_BYTES_KEPT = 16 * 2**20
_ENTRY_BYTES = 200  # what a kept caption takes besides its text


class CaptionText(NamedTuple):
    """What a caption file holds; ``text`` is None where it can't be read, and then why."""

    text: str | None
    problem: str = ""


class DatasetReader:
    """Reads manifests and captions, and keeps what it has read; thread-safe."""

    def __init__(self, store: ObjectStore, manifests: Manifests) -> None:
        self._store = store
        self.manifests = manifests
        self._kept: LRUCache[str, tuple[str, DatasetManifest]] = LRUCache(_MANIFESTS_KEPT)
        self._pairs: LRUCache[str, tuple[DatasetManifest, Pairs]] = LRUCache(_MANIFESTS_KEPT)
        self._texts: LRUCache[str, CaptionText] = LRUCache(
            _CAPTION_BYTES_KEPT, getsizeof=lambda one: len(one.text or "") + _ENTRY_BYTES
        )
        self._lock = threading.Lock()

    def manifest(self, folder: str) -> DatasetManifest:
        """Return what a dataset consists of. Raises `NotFound`, `InvalidDataset`, `InvalidKey`."""
        try:
            etag = self._store.head(keys.dataset_manifest(folder)).etag
        except NotFound:  # no dataset, or one that was put there by other means
            return self.manifests.require(folder)
        with self._lock:
            kept = self._kept.get(folder)
        if kept and kept[0] == etag:
            return kept[1]
        manifest = self.manifests.require(folder)  # after the etag, so never older than it
        if manifest.version:  # else it may be a listing, which changes without this object
            with self._lock:
                self._kept[folder] = etag, manifest
        return manifest

    def pairs(self, manifest: DatasetManifest) -> Pairs:
        """Return which caption belongs to which image; kept for the newest manifests."""
        version = manifest.version
        with self._lock:
            kept = self._pairs.get(version) if version else None
        if kept and kept[0] is manifest:
            return kept[1]
        images = [file.name for file in manifest.of_type("image")]
        pairs = paired(images, [file.name for file in manifest.of_type("caption")])
        if version:
            with self._lock:
                self._pairs[version] = manifest, pairs
        return pairs

    def texts(self, files: Sequence[DatasetFile]) -> dict[str, CaptionText]:
        """Return what caption files hold, by name. Raises what the store raises."""
        outcomes = in_parallel(files, self._text, concurrency=CONCURRENCY)
        for _, problem in outcomes.failed:
            raise problem
        return {file.name: text for file, text in outcomes.done}

    def _text(self, file: DatasetFile) -> CaptionText:
        if not file.sha256:
            return self._read(file)
        with self._lock:
            kept = self._texts.get(file.sha256)
        if kept:
            return kept
        text = self._read(file)
        if not text.problem:
            with self._lock:
                self._texts[file.sha256] = text
        return text

    def _read(self, file: DatasetFile) -> CaptionText:
        try:
            data = b"".join(self._store.read(file.key, 0, MAX_CAPTION_BYTES + 1))
        except NotFound:
            return CaptionText(None, "its file is gone")
        try:
            return CaptionText(decode_caption(data))
        except ValueError as error:
            return CaptionText(None, str(error))


def named(manifest: DatasetManifest, folder: str, name: str) -> DatasetFile:
    """Return a file of a dataset. Raises `NotFound` that names the nearest one."""
    for file in manifest.files:
        if file.name == name:
            return file
    raise NotFound(
        f"dataset {folder!r} has no file {name[:200]!r}"
        f"{nearest(name[:200], [file.name for file in manifest.files])}",
        remedy="Check the file's name.",
    )


def named_image(manifest: DatasetManifest, folder: str, name: str) -> DatasetFile:
    """Return an image of a dataset. Raises `NotFound`, also for a file that is no image."""
    file = named(manifest, folder, name)
    if file.file_type != "image":
        raise NotFound(
            f"dataset {folder!r}: {name} isn't an image",
            remedy="Name the image that the caption belongs to.",
        )
    return file


def caption_name(image: str) -> str:
    """Return the name of the caption that an image without one gets."""
    return str(PurePosixPath(image).with_suffix(CAPTION_SUFFIX))


def caption_version(file: DatasetFile) -> str:
    """Return what changes when a caption does."""
    return file.sha256 or file.key


def images_of(manifest: DatasetManifest) -> list[DatasetFile]:
    """Return the images by name."""
    return sorted(manifest.of_type("image"), key=lambda file: file.name)
