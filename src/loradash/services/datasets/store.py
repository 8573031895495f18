"""Datasets in the object store: replaced as a whole, added to in parts, fetched for a training.

The files of an upload lie below an id of their own, and a dataset is what its manifest names. So an
upload is invisible until one write of the manifest, and the dataset before it is whole until then.
A file that the dataset holds already isn't stored again: the new manifest names its object.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog

from loradash.domain.addresses import NO_ADDRESS, Address, is_address
from loradash.domain.dataset_files import LeftOut, merged
from loradash.domain.dataset_manifest import (
    Content,
    DatasetFile,
    DatasetManifest,
    Upload,
    after_upload,
    by_content,
)
from loradash.domain.dataset_names import composed, folder_from, folders_of, owner_of
from loradash.domain.dataset_references import parse_dataset_reference
from loradash.domain.dataset_uploads import AnnouncedDataset, FilesUpload
from loradash.domain.ids import new_upload_id
from loradash.errors import (
    ConflictingState,
    DiskFull,
    InvalidDataset,
    InvalidKey,
)
from loradash.services.datasets.copies import OnFetched, Stale, fetch, is_copy
from loradash.services.datasets.details import DatasetDetails
from loradash.services.datasets.manifests import Change, Manifests
from loradash.services.datasets.reading import DatasetReader
from loradash.services.datasets.scratch import SYSTEMS_SCRATCH, Scratch, UploadRoom
from loradash.services.datasets.upload_checks import (
    DEFAULT_LIMITS,
    CheckedSource,
    SourceFile,
    UploadLimits,
    check_sources,
    check_warnings,
    decode_files,
    most_bytes,
    named_sources,
    refuse,
    selected,
    stamp_of,
    without_lost,
)
from loradash.services.datasets.upload_results import UploadResult, is_of_upload, upload_result
from loradash.storage import keys
from loradash.storage.disk import as_disk_full
from loradash.storage.store import ObjectStore, conditional_put
from loradash.storage.transfer import CONCURRENCY, OnProgress, Transfer, TransferProgress, put_files

log = structlog.get_logger("loradash.datasets")

FilesOf = Callable[[DatasetManifest], Sequence[DatasetFile]]


class _NotStored(Exception):  # never leaves this module
    """Files of an upload that the dataset doesn't hold, so that they must be sent."""

    def __init__(self, sources: Sequence[CheckedSource]) -> None:
        super().__init__()
        self.sources = sources


class _FolderTaken(ConflictingState):
    """A folder became another name's dataset while files were sent to it."""


class DatasetStore:
    """Datasets below ``dataset/`` of an object store that lies at ``address``.

    What arrives in a request waits in ``scratch`` until it is stored. ``details`` reads datasets.
    """

    def __init__(
        self,
        store: ObjectStore,
        address: Address = NO_ADDRESS,
        limits: UploadLimits = DEFAULT_LIMITS,
        *,
        scratch: Scratch = SYSTEMS_SCRATCH,
        concurrency: int = CONCURRENCY,
    ) -> None:
        self._store = store
        self._address = address
        self._concurrency = concurrency
        self._manifests = Manifests(store, concurrency)
        self.reader = DatasetReader(store, self._manifests)
        self.details = DatasetDetails(store, self.reader)
        self.limits = limits
        self.scratch = scratch

    @property
    def prefix(self) -> str:
        """Where all datasets lie: ``s3://bucket/.../dataset``, or the key's beginning alone."""
        return self._address.shown(keys.datasets())

    # Writing

    def upload(self, request: FilesUpload) -> UploadResult:
        """Store all files of an upload as one dataset, or add them to it; all or nothing.

        Raises `InvalidRequest` or `InvalidDataset` before anything is written. If storing fails,
        the dataset is as it was.
        """
        most = min(most_bytes(request.files), self.limits.max_upload_bytes)
        with self.scratch.room(most) as room, self.scratch.folder() as scratch:
            found = selected([file.filename for file in request.files])
            taken = frozenset(found.taken)
            files = [file for file in request.files if file.filename in taken]
            sources, damaged = decode_files(files, scratch, self.limits)
            room.wrote(most)
            checked, unusable = check_sources(sources)
            problems, lost = without_lost(
                found.taken, [*damaged, *unusable], self._kept_images(request)
            )
            refuse(problems, len(files))
            left_out = merged(found.left_out, lost)
            while True:
                folder, original_name = self.place_of(request)
                upload = Upload(
                    folder=folder,
                    upload_id=new_upload_id(),
                    replace=request.cleanup_existing,
                    training_name=request.training_name,
                    trigger_word=request.trigger_word,
                    original_name=original_name,
                )
                try:
                    return self._store_checked(upload, checked, room, left_out=left_out)
                except _FolderTaken:  # at this moment, so that another one is found now
                    log.info("dataset_folder_taken", folder=folder)

    def store_paths(
        self,
        folder: str,
        sources: Sequence[SourceFile],
        *,
        replace: bool,
        training_name: str = "",
        trigger_word: str = "",
        original_name: str = "",
        on_progress: OnProgress | None = None,
        room: UploadRoom | None = None,
    ) -> UploadResult:
        """Store files of this machine as one dataset, or add them to it, as `upload` does.

        ``room`` is what is kept for them, if it is. The names are checked as those of an upload
        are. Raises `InvalidRequest`, `InvalidDataset`, `InvalidKey`,
        `DiskFull`, `TransferFailed`.
        """
        keys.dataset(folder)
        upload = Upload(
            folder, new_upload_id(), replace, training_name, trigger_word, original_name
        )
        named, left_out = named_sources(sources, self.limits, is_replacement=replace)
        checked, unusable = check_sources(named)
        problems, lost = without_lost(
            [source.name for source in named], unusable, images_kept(self.before(upload), upload)
        )
        refuse(problems, len(sources))
        left_out = merged(left_out, lost)
        size_bytes = 0 if room else sum(one.file.content.size_bytes for one in checked)
        with self.scratch.room(size_bytes, arrives=False) as own:
            return self._store_checked(upload, checked, room or own, on_progress, left_out)

    def change(self, folder: str, change: Change) -> DatasetManifest:
        """Replace a dataset's manifest by what ``change`` makes of it; return the new one.

        ``change`` is called again if another writer was faster, so it must only compute; what it
        raises leaves everything as it was. Files in it must have their objects already. Objects
        that only the old manifest named are deleted afterwards. Raises `NotFound`,
        `InvalidDataset`, `ConflictingState`.
        """
        return self._manifests.swap(folder, change, must_exist=True).manifest

    def switch(
        self,
        upload: Upload,
        names: Collection[str],
        files_of: FilesOf,
        warnings: Sequence[str] = (),
        left_out: Sequence[LeftOut] = (),
    ) -> UploadResult:
        """Make an upload's files the dataset or a part of it, by one write; return the reply.

        ``files_of`` says what the files are, given the dataset that they replace or join, and may
        be called several times. An upload of which the dataset holds anything has been switched to
        before, and isn't once more.
        """
        files: Sequence[DatasetFile] = ()

        def change(old: DatasetManifest) -> DatasetManifest:
            nonlocal files
            if is_part(upload, old):
                files = [file for file in old.files if file.name in names]
                return old
            _check_owner(upload, old)
            files = files_of(old)
            return after_upload(old, upload, files, datetime.now(UTC))

        swap = self._manifests.swap(upload.folder, change, damaged_is_empty=upload.replace)
        is_clean = self._manifests.delete_abandoned(upload.folder, swap.manifest)
        swap = swap._replace(is_clean=swap.is_clean and is_clean)
        return upload_result(upload, files, swap, self._address, warnings, left_out)

    def held(self, manifest: DatasetManifest) -> Mapping[Content, DatasetFile]:
        """Return the files of a dataset to which another upload may refer, by their content.

        None are where writes have no conditions: the object could be deleted at the same time.
        """
        return by_content(manifest) if conditional_put(self._store) else {}

    def discard(self, folder: str, unwanted: Sequence[str]) -> None:
        """Delete objects of an upload unless the dataset has them, as far as that is possible."""
        self._manifests.discard(folder, unwanted)

    # Names

    def place_of(self, request: FilesUpload | AnnouncedDataset) -> tuple[str, str]:
        """Return the folder of an upload, and the name of which it is made ('' if it was given)."""
        if request.dataset_folder:
            return request.dataset_folder, ""
        name = composed(request.training_name)
        if not request.cleanup_existing and name == folder_from(name) and self._owner(name):
            return name, ""  # files are added to the dataset that lists show by this folder
        return (self.folder_for(name), name) if name else (new_folder(), "")

    def _kept_images(self, request: FilesUpload) -> list[str]:
        if request.cleanup_existing:
            return []
        upload = Upload(self.place_of(request)[0], "", replace=False)
        return images_kept(self.before(upload), upload)

    def folder_for(self, name: str) -> str:
        """Return the folder of the dataset of this name, or a free one that it may have."""
        plain, marked = folders_of(name)
        if marked != plain and self._owner(marked) == name:
            return marked
        return plain if self._owner(plain) in ("", name) else marked

    def known_as(self, name: str) -> str:
        """Return the folder of a dataset by its folder or its original name; else ``name``."""
        name = composed(name)
        plain, marked = folders_of(name)
        is_plain = plain == name
        if marked != plain and self._owner(marked) == name:
            return marked
        if is_plain or self._owner(name):
            return name
        if self._owner(plain) == name:
            return plain
        for folder, found in self._manifests.all().items():
            if isinstance(found, DatasetManifest) and composed(found.training_name) == name:
                return folder
        return name

    def _owner(self, folder: str) -> str:
        """Return the name that a folder's dataset belongs to; '' if there is none."""
        found = self._manifests.read(folder, damaged_is_empty=True)
        return owner_of(folder, found.manifest) if found.is_there else ""

    # Reading

    def before(self, upload: Upload) -> DatasetManifest:
        """Return what an upload replaces or joins: no files if there is no such dataset.

        Raises `InvalidDataset` for a damaged one, which can only be replaced.
        """
        found = self._manifests.read(upload.folder, damaged_is_empty=upload.replace)
        return found.manifest

    def materialize(
        self, folder: str, target: Path, on_fetched: OnFetched = lambda _done, _total: None
    ) -> Path:
        """Make ``target`` a folder with exactly the files of a dataset, verified; return it.

        The folder appears whole; one that is there and equal is kept. A dataset that is replaced
        meanwhile is read once more. Raises `NotFound`, `InvalidDataset` or `DiskFull`.
        """
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise InvalidDataset(f"{target} isn't a folder", remedy="Remove it, and retry.")
        manifest = self.details.for_training(folder)
        if is_copy(target, manifest):
            return target
        try:
            try:
                return fetch(self._store, manifest, target, self._concurrency, on_fetched)
            except Stale:
                manifest = self.details.for_training(folder)
                return fetch(self._store, manifest, target, self._concurrency, on_fetched)
        except Stale as error:
            raise InvalidDataset(
                f"dataset {folder!r}: {error}",
                remedy="Upload the dataset again, or retry if it is being replaced.",
            ) from error
        except OSError as error:
            if full := as_disk_full(error):
                raise DiskFull(
                    f"dataset {folder!r} doesn't fit: {full.message}", remedy=full.remedy
                ) from error
            raise

    # References

    def resolve(self, reference: str) -> str | None:
        """Return the dataset meant by a config's ``folder_path``; None for a local path.

        Datasets are ``name``, ``dataset/name`` or ``s3://<our bucket>/<prefix>dataset/name``, where
        the name is that of the folder or the one that it was made of; ``dataset:`` may stand before
        it, and ``folder:`` before a local path. Raises `InvalidDataset` for anything else.
        """
        kind, path = parse_dataset_reference(reference)
        if kind == "folder":
            if path.startswith(("/", "~")) and "\0" not in path:
                return None
            raise _no_dataset(reference)
        if is_address(path):
            path = self._path_in_bucket(path)
        name = path.removeprefix(f"{keys.datasets()}/").removesuffix("/")
        try:
            keys.dataset(name)
        except InvalidKey as error:
            raise _no_dataset(reference) from error
        return self.known_as(name)

    def _path_in_bucket(self, reference: str) -> str:
        if not self._address.has(reference):
            ours = self._address.bucket
            ours = f"in {ours!r}" if ours else "on a disk, not in a bucket"
            raise InvalidDataset(
                f"folder_path {reference[:200]!r} is in another bucket; datasets are {ours}",
                remedy="Upload the dataset and give its name as folder_path.",
            )
        key = self._address.key_of(reference)
        if not key.startswith(f"{keys.datasets()}/"):
            raise InvalidDataset(
                f"folder_path {reference[:200]!r} isn't below {self.prefix}",
                remedy="Give a dataset's name as folder_path (see list_dataset_folders).",
            )
        return key

    def _store_checked(
        self,
        upload: Upload,
        checked: Sequence[CheckedSource],
        room: UploadRoom,
        on_progress: OnProgress | None = None,
        left_out: Sequence[LeftOut] = (),
    ) -> UploadResult:
        """Send what the dataset doesn't hold yet, and switch to the upload.

        Whether it still holds the rest is looked at again with the manifest that is replaced.
        """
        sent: dict[str, str] = {}

        def files_of(old: DatasetManifest) -> list[DatasetFile]:
            held = self.held(old)
            missing = [
                one for one in checked
                if one.file.name not in sent and one.file.content not in held
            ]  # fmt: skip
            if missing:
                raise _NotStored(missing)
            return [
                one.file.at(sent.get(one.file.name) or held[one.file.content].key)
                for one in checked
            ]

        names = {one.file.name for one in checked}
        warnings = check_warnings(one.file for one in checked)
        try:
            while True:
                try:
                    return self.switch(upload, names, files_of, warnings, left_out)
                except _NotStored as more:
                    self._send(upload, more.sources, sent, room, on_progress)
        except BaseException:
            self.discard(upload.folder, list(sent.values()))
            raise

    def _send(
        self,
        upload: Upload,
        sources: Sequence[CheckedSource],
        sent: dict[str, str],
        room: UploadRoom,
        on_progress: OnProgress | None,
    ) -> None:
        stored_bytes = 0

        def report(progress: TransferProgress) -> None:
            nonlocal stored_bytes
            room.stored(progress.done_bytes - stored_bytes)
            stored_bytes = max(stored_bytes, progress.done_bytes)
            if on_progress:
                on_progress(progress)

        transfers = []
        for one in sources:
            key = keys.dataset_file(upload.folder, upload.upload_id, one.file.name)
            sent[one.file.name] = key
            transfers.append(Transfer(key, one.path, one.file.content.size_bytes))
        outcomes = put_files(
            self._store, transfers, concurrency=self._concurrency, on_progress=report
        )
        outcomes.or_raise(
            f"dataset {upload.folder!r}",
            lambda transfer: transfer.key.rpartition("/")[2],
            remedy="Upload again; the dataset is as it was.",
        )
        written = [one.file.name for one in sources if stamp_of(one.path) != one.stamp]
        if written:
            raise InvalidDataset(
                f"dataset {upload.folder!r}: {', '.join(written[:10])} changed while being read",
                remedy="Upload again when nothing writes the files.",
            )


def _no_dataset(reference: str) -> InvalidDataset:
    return InvalidDataset(
        f"folder_path {reference[:200]!r} doesn't name a dataset",
        remedy="Give a dataset's name (see list_dataset_folders), dataset/<name>, or the full path "
        "of a folder on the machine that trains.",
    )


def _check_owner(upload: Upload, old: DatasetManifest) -> None:
    """Raise `_FolderTaken` if an upload's folder holds the dataset of another name."""
    is_there = bool(old.files or old.version or old.upload_date)
    owner = owner_of(upload.folder, old)
    if upload.original_name and is_there and owner != upload.original_name:
        raise _FolderTaken(
            f"the folder {upload.folder!r} is now that of another dataset, {owner!r}",
            remedy="Create the upload again.",
        )


def images_kept(manifest: DatasetManifest, upload: Upload) -> list[str]:
    """Return the images of a dataset that an upload adds to; none if it replaces it."""
    return [] if upload.replace else [file.name for file in manifest.of_type("image")]


def new_folder() -> str:
    """Return the name of a dataset for which a request has none that can be used."""
    return f"training-{time.time_ns() // 1_000_000}"


def is_part(upload: Upload, manifest: DatasetManifest) -> bool:
    """Whether a dataset has been switched to an upload, even if it was changed since."""
    return manifest.version == upload.upload_id or any(
        is_of_upload(file.key, upload) for file in manifest.files
    )
