"""Datasets as things that people look into and change: one place for every entry point.

Each change is one switch of the manifest (see `loradash.services.datasets.store`), so no reader
sees half of one, and what is written by two at once is either both or a refusal.
"""

import hashlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from loradash.datasets.captions import MAX_CAPTION_BYTES, decode_caption
from loradash.domain.dataset_files import Pairs
from loradash.domain.dataset_manifest import DatasetFile, DatasetManifest, Upload
from loradash.domain.dataset_names import composed, folder_from
from loradash.domain.ids import new_upload_id, upload_time_s
from loradash.domain.upload_fields import DatasetFolder, shown
from loradash.errors import ConflictingState, InvalidRequest, NotFound
from loradash.services.datasets.details import Caption
from loradash.services.datasets.manifests import ABANDONED_AFTER_S, Manifests
from loradash.services.datasets.reading import (
    caption_name,
    caption_version,
    named_image,
)
from loradash.services.datasets.statistics import DatasetFigures
from loradash.services.datasets.store import DatasetStore
from loradash.services.datasets.stored_images import StoredImages
from loradash.services.datasets.summary import DatasetSummary, summary_of
from loradash.services.datasets.upload_checks import SourceFile
from loradash.services.datasets.upload_results import UploadResult, with_left_out
from loradash.services.datasets.zip_in import extract
from loradash.services.datasets.zip_out import dataset_zip
from loradash.services.results.pieces import ZipPieces
from loradash.storage import keys
from loradash.storage.store import ObjectStore

if TYPE_CHECKING:
    from loradash.services.datasets.url_import import UrlImporter

IMPORTS_AT_ONCE = 2

_FOLDER: TypeAdapter[str] = TypeAdapter(DatasetFolder)


class DatasetEditor:
    """Changes the datasets of a store; thread-safe.

    ``details`` and ``figures`` look into them, ``images`` makes small pictures of theirs and keeps
    them in ``cache``.
    """

    def __init__(
        self,
        store: ObjectStore,
        datasets: DatasetStore,
        cache: Path,
        importer: "UrlImporter | None" = None,
    ) -> None:
        self._store = store
        self._datasets = datasets
        self._manifests = Manifests(store)
        self._reader = datasets.reader
        self._importer = importer
        self._imports = threading.BoundedSemaphore(IMPORTS_AT_ONCE)
        self.images = StoredImages(store, cache, datasets.limits.max_file_bytes)
        self.details = datasets.details
        self.figures = DatasetFigures(self._reader, self.images)

    # Whole datasets

    def create(
        self, folder: str, *, training_name: str = "", trigger_word: str = ""
    ) -> DatasetSummary:
        """Create a dataset without files. Raises `InvalidRequest`, `ConflictingState`."""
        _check_new_name(folder)

        def no_files(old: DatasetManifest) -> Sequence[DatasetFile]:
            if old.files or old.version or old.upload_date:
                raise ConflictingState(
                    f"dataset {folder!r} already exists",
                    remedy="Choose another name, or change the existing one.",
                )
            return ()

        upload = Upload(folder, new_upload_id(), False, training_name, trigger_word)
        self._datasets.switch(upload, (), no_files)
        return self.details.summary(folder)

    def describe(
        self,
        folder: str,
        *,
        training_name: str | None = None,
        trigger_word: str | None = None,
        if_version: str | None = None,
    ) -> DatasetSummary:
        """Change what is said of a dataset; None leaves it as it is.

        Raises `NotFound`, and `ConflictingState` if it has another version than that one.
        """
        version = new_upload_id()

        def change(old: DatasetManifest) -> DatasetManifest:
            _check_version(f"dataset {folder!r}", old.version, if_version)
            wanted = {"training_name": training_name, "trigger_word": trigger_word}
            changes = {
                name: value for name, value in wanted.items()
                if value is not None and value != getattr(old, name)
            }  # fmt: skip
            return old.model_copy(update={**changes, "version": version}) if changes else old

        return summary_of(folder, self._datasets.change(folder, change))

    def delete(self, folder: str) -> int:
        """Delete a dataset with all its files; return how many that were. Raises `NotFound`.

        What belongs to an upload that may still be going on stays; that upload makes a new dataset.
        A damaged dataset can be deleted too. An upload that is switched to at the very same moment
        may be deleted with it, since stores can't delete on a condition.
        """
        found = self._manifests.read(folder, damaged_is_empty=True)
        files = {file.key for file in found.manifest.files}
        manifest = keys.dataset_manifest(folder)
        doomed = {
            info.key for info in self._store.list(keys.dataset(folder))
            if info.key in files or not _is_of_a_new_upload(info.key)
        } - {manifest}  # fmt: skip
        if not found.is_there and not doomed:
            self._manifests.require(folder)  # says which one may be meant
        self._store.delete(manifest)  # from now on there is no dataset, whatever happens
        self._store.delete_many(sorted(doomed))
        return len(doomed)

    def zip(self, folder: str) -> ZipPieces:
        """Return a dataset as a zip file that is read from the store while it's iterated over.

        Raises `NotFound`, `InvalidDataset`.
        """
        return dataset_zip(self._store, folder, self._reader.manifest(folder))

    # Files

    def thumbnail(self, folder: str, name: str, pixels: int) -> bytes:
        """Return a WebP image of an image of a dataset, of at most so many pixels a side.

        Raises `NotFound`, `InvalidRequest` for another size than those that are made, and
        `InvalidDataset`.
        """
        image = named_image(self._reader.manifest(folder), folder, name)
        return self.images.thumbnail(image, pixels)

    def remove(self, folder: str, names: Sequence[str]) -> tuple[str, ...]:
        """Remove files, of images the captions too; return the names of all that were removed.

        All or none are removed. Raises `NotFound` that names each file that isn't there.
        """
        version = new_upload_id()
        gone: set[str] = set()

        def change(old: DatasetManifest) -> DatasetManifest:
            nonlocal gone
            gone = _with_captions(old, self._reader.pairs(old), folder, names)
            files = tuple(file for file in old.files if file.name not in gone)
            return old.model_copy(update={"files": files, "version": version})

        self._datasets.change(folder, change)
        return tuple(sorted(gone))

    def write_caption(
        self, folder: str, image: str, text: str, if_version: str | None = None
    ) -> Caption:
        """Set an image's caption.

        With ``if_version`` only if the caption has this version still ('' if there is none yet).
        Raises `NotFound`, `InvalidRequest` for a text that can't be a caption, `ConflictingState`.
        """
        manifest = self._reader.manifest(folder)
        named_image(manifest, folder, image)
        name = self._reader.pairs(manifest).caption_of[image] or caption_name(image)
        file, data = _caption_file(folder, name, text)
        version = new_upload_id()

        def change(old: DatasetManifest) -> DatasetManifest:
            named_image(old, folder, image)
            others = [one for one in old.files if one.name != file.name]
            before = next((one for one in old.files if one.name == file.name), None)
            there = caption_version(before) if before else ""
            _check_version(f"the caption of {image}", there, if_version)
            if there == file.sha256:
                return old
            return old.model_copy(update={"files": (*others, file), "version": version})

        change(manifest)  # may refuse, before anything is written
        self._store.put(file.key, data)
        try:
            self._datasets.change(folder, change)
        finally:
            self._datasets.discard(folder, [file.key])  # unless the dataset has it now
        return self.details.caption(folder, image)

    # Imports

    def import_zip(
        self,
        folder: str,
        path: Path,
        *,
        replace: bool = False,
        training_name: str = "",
        trigger_word: str = "",
    ) -> UploadResult:
        """Make the files of a zip file a dataset, or add them to it; all or nothing.

        Raises `InvalidRequest` and `InvalidDataset` before anything is stored, `TransferFailed`.
        """
        folder, original_name = self._place_of(folder)
        scratch = self._datasets.scratch
        with scratch.room() as room, scratch.folder() as place:
            found = extract(path, place, self._datasets.limits, room.grow)
            room.wrote(room.arriving.left_bytes)
            result = self._datasets.store_paths(
                folder, found.sources, replace=replace,
                training_name=training_name or original_name, trigger_word=trigger_word,
                original_name=original_name, room=room,
            )  # fmt: skip
        result = with_left_out(result, found.left_out)
        return result.model_copy(update={"warnings": (*found.notes, *result.warnings)})

    def import_url(self, folder: str, url: str, *, replace: bool = False) -> UploadResult:
        """Fetch a zip file or an image, and store it as `import_zip` does.

        Raises `ConflictingState` if too many are being fetched at the moment.
        """
        place_of_it, original_name = self._place_of(folder)
        if not self._imports.acquire(blocking=False):
            raise ConflictingState(
                f"{IMPORTS_AT_ONCE} imports are already running",
                remedy="Try again when they are done.",
            )
        from loradash.services.datasets.url_import import UrlImporter  # brings an HTTP client

        importer = self._importer or UrlImporter()
        try:
            scratch = self._datasets.scratch
            with scratch.room(arrives=True) as room, scratch.folder() as place:
                fetched = importer.fetch(
                    url, place / "fetched", self._datasets.limits.max_upload_bytes,
                    room=room.arriving,
                )  # fmt: skip
                if fetched.kind == "zip":
                    return self.import_zip(folder, fetched.path, replace=replace)
                source = SourceFile(fetched.name, fetched.path)
                return self._datasets.store_paths(
                    place_of_it, [source], replace=replace, training_name=original_name,
                    original_name=original_name,
                )  # fmt: skip
        finally:
            self._imports.release()

    def _place_of(self, name: str) -> tuple[str, str]:
        """Return the folder of a dataset, and the name of which it is made ('' for a folder's own).

        Refuses a name that a new dataset can't have. Others may be there already.
        """
        if self._manifests.read(name, damaged_is_empty=True).is_there:
            return name, ""
        name = composed(name)
        if name.isascii() or set(name) & set("/\\") or not folder_from(name):
            _check_new_name(name)
            return name, ""
        return self._datasets.folder_for(name), name


def _check_new_name(folder: str) -> None:
    try:
        _FOLDER.validate_python(folder)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InvalidRequest(
            f"name: {shown(folder)} {reason}", remedy="Choose another name for the dataset."
        ) from error


def _check_version(what: str, there: str, wanted: str | None) -> None:
    if wanted is not None and wanted != there:
        raise ConflictingState(
            f"if_version: {what} was changed meanwhile",
            remedy="Load it again and repeat your change.",
        )


def _is_of_a_new_upload(key: str) -> bool:
    """Whether an object may belong to an upload that is still going on."""
    made_s = upload_time_s(keys.dataset_of(key)[1].partition("/")[0])
    return made_s is not None and time.time() - made_s < ABANDONED_AFTER_S


def _with_captions(
    manifest: DatasetManifest, pairs: Pairs, folder: str, names: Sequence[str]
) -> set[str]:
    """Return files with the captions that no other image has. Raises `NotFound`."""
    there = {file.name for file in manifest.files}
    wanted = set(names)
    missing = [shown(name) for name in names if name not in there]
    if missing:
        raise NotFound(
            f"dataset {folder!r} has no file {', '.join(missing[:10])}; nothing was removed",
            remedy="Check the files' names.",
        )
    needed = {caption for image, caption in pairs.caption_of.items() if image not in wanted}
    captions = {caption for image, caption in pairs.caption_of.items() if image in wanted}
    return {*wanted, *(name for name in captions - needed if name is not None)}


def _caption_file(folder: str, name: str, text: str) -> tuple[DatasetFile, bytes]:
    """Return a caption as a new file, under a key of its own."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            "text: isn't Unicode text", remedy="Send the caption as UTF-8."
        ) from error
    if len(data) > MAX_CAPTION_BYTES:
        raise InvalidRequest(
            f"text: {len(data):,} bytes; a caption may have {MAX_CAPTION_BYTES:,}",
            remedy="Shorten the caption.",
        )
    try:
        decode_caption(data)  # what could not be read again isn't written
    except ValueError as error:
        raise InvalidRequest(f"text: {error}", remedy="Correct it.") from error
    file = DatasetFile(
        name=name,
        key=keys.dataset_file(folder, new_upload_id(), name),
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        file_type="caption",
    )
    return file, data
