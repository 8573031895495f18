"""What is in the datasets: all of them in short, and the images of one with their captions.

Everything comes in pages that a cursor continues. A cursor is a name, so a page stays right when
something before it is added or removed.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict

from loradash.domain.dataset_files import IMAGE_KINDS
from loradash.domain.dataset_manifest import DatasetFile, DatasetManifest
from loradash.errors import InvalidDataset, NotFound
from loradash.services.datasets.reading import (
    DatasetReader,
    caption_name,
    caption_version,
    images_of,
    named,
    named_image,
)
from loradash.services.datasets.summary import DatasetSummary, summary_of
from loradash.storage.store import ObjectStore
from loradash.storage.transfer import in_parallel

MAX_PAGE = 500
_SEARCHED_AT_ONCE = 64


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class SummaryPage(_Model):
    """Some of the datasets by name; ``next_cursor`` is None after the last ones."""

    datasets: tuple[DatasetSummary, ...]
    next_cursor: str | None


class Caption(_Model):
    """The caption of an image; ``text`` is None if there is none, or it can't be read.

    ``version`` changes with the caption and is '' without one.
    """

    image: str
    name: str
    text: str | None = None
    version: str = ""
    problem: str = ""


class ImageEntry(_Model):
    """An image with its caption. Sizes in pixels, upright; None where they aren't known."""

    name: str
    size_bytes: int
    sha256: str
    width: int | None
    height: int | None
    caption: Caption


class ImagePage(_Model):
    """Some of a dataset's images by name; ``next_cursor`` is None after the last ones.

    With a filter a page may hold fewer images than asked for, or none, and not be the last.
    """

    dataset: DatasetSummary
    images: tuple[ImageEntry, ...]
    next_cursor: str | None


class DatasetDetails:
    """Looks into the datasets of a store; thread-safe."""

    def __init__(self, store: ObjectStore, reader: DatasetReader) -> None:
        self._store = store
        self._reader = reader

    # Datasets

    def manifest(self, folder: str) -> DatasetManifest:
        """Return what a dataset consists of. Raises `NotFound`, `InvalidDataset`, `InvalidKey`."""
        return self._reader.manifest(folder)

    def for_training(self, folder: str) -> DatasetManifest:
        """Return what a dataset consists of, if it holds an image. Raises as `manifest` does."""
        manifest = self.manifest(folder)
        if not manifest.total_images:
            raise InvalidDataset(
                f"dataset {folder!r} holds no image",
                remedy=f"Upload {IMAGE_KINDS} images, each with a .txt caption.",
            )
        return manifest

    def all(self) -> tuple[DatasetSummary, ...]:
        """Return all datasets by name; one that is damaged has a problem and fails no list."""
        return tuple(
            summary_of(folder, found)
            if isinstance(found, DatasetManifest)
            else DatasetSummary(name=folder, problem=found.message)
            for folder, found in self._reader.manifests.all().items()
        )

    def summary(self, folder: str) -> DatasetSummary:
        """Return a dataset in short. Raises `NotFound`, `InvalidDataset`, `InvalidKey`."""
        return summary_of(folder, self._reader.manifest(folder))

    def summaries(self, limit: int = 100, cursor: str = "") -> SummaryPage:
        """Return datasets by name, after the one that the cursor names."""
        names = sorted(name for name in self._reader.manifests.folders() if name > cursor)
        outcomes = in_parallel(names[:limit], self._summary_or_none)
        for _, problem in outcomes.failed:
            raise problem
        found = [one for _, one in outcomes.done if one]
        more = len(names) > limit
        return SummaryPage(datasets=tuple(found), next_cursor=names[limit - 1] if more else None)

    def _summary_or_none(self, folder: str) -> DatasetSummary | None:
        try:
            return self.summary(folder)
        except NotFound:  # only an upload that isn't completed
            return None
        except InvalidDataset as error:
            return DatasetSummary(name=folder, problem=error.message)

    # Files

    def file(self, folder: str, name: str) -> DatasetFile:
        """Return a file whose object is there and of the right size.

        Raises `NotFound`, and `InvalidDataset` if the object isn't what was uploaded.
        """
        for _ in range(2):  # the second time if the dataset was changed meanwhile
            file = named(self.manifest(folder), folder, name)
            try:
                if self._store.head(file.key).size_bytes == file.size_bytes:
                    return file
            except NotFound:
                continue
        raise _damaged(folder, name)

    def content(self, folder: str, name: str) -> bytes:
        """Return what is in a file, verified by its hash. Raises as `file` does."""
        for _ in range(2):  # the second time if the dataset was replaced meanwhile
            file = named(self.manifest(folder), folder, name)
            with contextlib.suppress(NotFound):
                data = self._store.get(file.key)
                if file.sha256 in ("", hashlib.sha256(data).hexdigest()):
                    return data
        raise _damaged(folder, name)

    # Images and captions

    def caption(self, folder: str, image: str) -> Caption:
        """Return an image's caption. Raises `NotFound` if there is no such image."""
        manifest = self._reader.manifest(folder)
        named_image(manifest, folder, image)
        return self._captions_of(manifest, [image])[0]

    def images(
        self,
        folder: str,
        *,
        limit: int = 100,
        cursor: str = "",
        text: str = "",
        without_caption: bool = False,
    ) -> ImagePage:
        """Return images by name, after the one that the cursor names.

        With ``text`` only those whose name or caption holds it, in any letter case.
        """
        manifest = self._reader.manifest(folder)
        waiting = [file for file in images_of(manifest) if file.name > cursor]
        found: list[ImageEntry] = []
        at_once = max(limit, _SEARCHED_AT_ONCE) if text or without_caption else limit
        next_cursor = ""
        for start in range(0, len(waiting), at_once):
            for entry in self._entries(manifest, waiting[start : start + at_once]):
                if len(found) == limit:
                    break
                next_cursor = entry.name
                if _is_wanted(entry, text.casefold(), without_caption):
                    found.append(entry)
            if len(found) == limit:
                break
        is_end = not waiting or next_cursor == waiting[-1].name
        return ImagePage(
            dataset=summary_of(folder, manifest),
            images=tuple(found),
            next_cursor=None if is_end else next_cursor,
        )

    def _entries(
        self, manifest: DatasetManifest, files: Sequence[DatasetFile]
    ) -> Iterator[ImageEntry]:
        captions = self._captions_of(manifest, [file.name for file in files])
        for file, caption in zip(files, captions, strict=True):
            yield ImageEntry(
                name=file.name,
                size_bytes=file.size_bytes,
                sha256=file.sha256,
                width=file.width,
                height=file.height,
                caption=caption,
            )

    def _captions_of(self, manifest: DatasetManifest, images: Sequence[str]) -> list[Caption]:
        files = {file.name: file for file in manifest.of_type("caption")}
        caption_of = self._reader.pairs(manifest).caption_of
        there = {name for image in images if (name := caption_of[image]) is not None}
        texts = self._reader.texts([files[name] for name in sorted(there)])
        captions = []
        for image in images:
            name = caption_of[image] or caption_name(image)
            if name in there:
                text, problem = texts[name]
                version = caption_version(files[name])
                captions.append(
                    Caption(image=image, name=name, text=text, version=version, problem=problem)
                )
            else:
                captions.append(Caption(image=image, name=name))
        return captions


def _damaged(folder: str, name: str) -> InvalidDataset:
    return InvalidDataset(
        f"dataset {folder!r}: the file {name} is gone or damaged",
        remedy="Upload the file again.",
    )


def _is_wanted(entry: ImageEntry, text: str, without_caption: bool) -> bool:
    if without_caption and entry.caption.version:
        return False
    return text in entry.name.casefold() or text in (entry.caption.text or "").casefold()
