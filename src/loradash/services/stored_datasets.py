"""Datasets in the object store: replaced as a whole, added to in parts, fetched for a training.

The files of an upload lie below an id of their own, and a dataset is what its manifest names. So an
upload is invisible until one write of the manifest, and the dataset before it is whole until then:

    dataset/<folder>/_training_info.json        the manifest
    dataset/<folder>/<upload id>/<file>         never written twice

Folders that somebody filled by other means, without such a manifest, are read by listing them.
"""

import contextlib
import errno
import hashlib
import json
import random
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from loradash.domain.dataset_manifest import DatasetFile, DatasetManifest, file_type
from loradash.domain.ids import new_upload_id, upload_time_s
from loradash.domain.requests import UploadRequest
from loradash.domain.schema import nearest
from loradash.domain.sizes import size_text
from loradash.errors import (
    ConflictingState,
    DiskFull,
    InvalidDataset,
    InvalidKey,
    LoradashError,
    NotFound,
    PreconditionFailed,
)
from loradash.services.dataset_uploads import (
    CheckedFile,
    FileCounts,
    StoredFile,
    UploadResult,
    UploadStatistics,
    check_files,
    completeness_warnings,
    content_type,
    decoded,
    name_list,
)
from loradash.storage import keys
from loradash.storage.store import ConditionalPut, ObjectInfo, ObjectStore, check_key

_SWITCH_ATTEMPTS = 100
_ABANDONED_AFTER_S = 24 * 3600.0  # no upload takes that long


class StoredDataset(BaseModel):
    """One entry of the list of datasets; ``problem`` says why it can't be read, if so."""

    model_config = ConfigDict(frozen=True)

    name: str
    total_images: int = 0
    total_captions: int = 0
    size_bytes: int = 0
    trigger_word: str = ""
    upload_date: datetime | None = None
    problem: str = ""


class _Current(NamedTuple):
    """A folder's manifest as it stands: None if there is none of ours, and its object's etag."""

    manifest: DatasetManifest | None
    etag: str | None
    trigger_word: str = ""
    problem: str = ""


class _Switch(NamedTuple):
    """A manifest that was replaced, and the files that it named."""

    old_files: tuple[DatasetFile, ...]
    manifest: DatasetManifest


class _Stale(Exception):  # never leaves this module
    """A file isn't what the manifest says: the dataset may just have been replaced."""


class DatasetStore:
    """Datasets below ``dataset/`` of an object store that lies at ``address``."""

    def __init__(self, store: ObjectStore, address: keys.Address = keys.NOWHERE) -> None:
        self._store = store
        self._address = address
        self._lock = threading.Lock()

    @property
    def prefix(self) -> str:
        """Where all datasets lie: ``s3://bucket/.../dataset``, or the key's beginning alone."""
        return self._address.shown(keys.datasets())

    def upload(self, request: UploadRequest) -> UploadResult:
        """Store all files of an upload as one dataset, or add them to it; all or nothing.

        Raises `InvalidRequest` or `InvalidDataset` before anything is written. If storing fails,
        the dataset is as it was.
        """
        checked = check_files(request.files)
        folder = request.dataset_folder or f"training-{time.time_ns() // 1_000_000}"
        upload_id = new_upload_id()
        files = [
            DatasetFile(
                name=file.name,
                key=keys.dataset_file(folder, upload_id, file.name),
                size_bytes=file.size_bytes,
                sha256=file.sha256,
                file_type=file.file_type,
            )
            for file in checked
        ]
        try:
            for uploaded, file in zip(request.files, files, strict=True):
                self._store.put(file.key, decoded(uploaded))
            switch = self._switch(folder, request, upload_id, files)
        except BaseException:
            self._discard(folder, files)
            raise
        warnings = [*_replacement_warnings(request, switch, files), *_warnings_of(checked)]
        warnings += completeness_warnings(switch.manifest.files)
        if not self._delete_unreferenced(folder, switch):
            warnings.append("some replaced files couldn't be deleted; a later upload does it")
        return self._result(folder, files, switch.manifest, warnings)

    def list(self) -> tuple[StoredDataset, ...]:
        """Return all datasets by name; one that is damaged says so instead of failing the list."""
        listed = self._listed()
        return tuple(self._entry(folder, listed[folder]) for folder in sorted(listed))

    def folders(self) -> tuple[str, ...]:
        """Return the names of all datasets, from one listing."""
        return tuple(sorted(self._listed()))

    def require(self, folder: str) -> StoredDataset:
        """Return a dataset that a training can use. Raises `NotFound` or `InvalidDataset`."""
        return _summary(folder, self._usable(folder))

    def materialize(self, folder: str, target: Path) -> Path:
        """Make ``target`` a folder with exactly the files of a dataset, verified; return it.

        The folder appears whole; one that is there and equal is kept. A dataset that is replaced
        meanwhile is read once more. Raises `NotFound`, `InvalidDataset` or `DiskFull`.
        """
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise InvalidDataset(f"{target} isn't a folder", remedy="Remove it, and retry.")
        manifest = self._usable(folder)
        if _matches(target, manifest):
            return target
        try:
            try:
                return self._fetch(manifest, target)
            except _Stale:
                return self._fetch(self._usable(folder), target)
        except _Stale as error:
            raise InvalidDataset(
                f"dataset {folder!r}: {error}",
                remedy="Upload the dataset again, or retry if it is being replaced.",
            ) from error
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise DiskFull(
                    f"dataset {folder!r} doesn't fit on the disk of {target.parent}",
                    remedy="Free space and retry.",
                ) from error
            raise

    def resolve(self, reference: str) -> str | None:
        """Return the dataset meant by a config's ``folder_path``; None for a local path.

        Datasets are ``name``, ``dataset/name`` or ``s3://<our bucket>/<prefix>dataset/name``.
        Raises `InvalidDataset` for anything else.
        """
        if reference.startswith(("/", "~")) and "\0" not in reference:
            return None
        path = reference
        if reference.lower().startswith("s3://"):
            path = self._path_in_bucket(reference)
        name = path.removeprefix(f"{keys.datasets()}/").removesuffix("/")
        try:
            keys.dataset(name)
        except InvalidKey as error:
            raise InvalidDataset(
                f"folder_path {reference[:200]!r} doesn't name a dataset",
                remedy="Give a dataset's name (see list_dataset_folders), dataset/<name>, or the "
                "full path of a folder on the machine that trains.",
            ) from error
        return name

    def _path_in_bucket(self, reference: str) -> str:
        bucket = reference[len("s3://") :].partition("/")[0]
        ours = self._address.bucket
        if not ours or bucket != ours:
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

    # Reading

    def _current(self, folder: str) -> _Current:
        """Read a folder's manifest. Its etag is never newer than its content."""
        key = keys.dataset_manifest(folder)
        try:
            etag = self._store.head(key).etag
            data = self._store.get(key)
        except NotFound:
            return _Current(None, None)
        try:
            document = json.loads(data)
            if isinstance(document, dict) and "files" not in document:  # another program's
                word = document.get("trigger_word")
                return _Current(None, etag, trigger_word=word if isinstance(word, str) else "")
            manifest = DatasetManifest.model_validate(document)
            _check_manifest(folder, manifest)
        except (ValueError, ValidationError, RecursionError, InvalidKey) as error:
            problem = f"dataset {folder!r}: its {keys.DATASET_MANIFEST} is damaged"
            return _Current(None, etag, problem=f"{problem} ({type(error).__name__})")
        return _Current(manifest, etag)

    def _contents(
        self, folder: str, current: _Current, infos: Iterable[ObjectInfo] | None = None
    ) -> DatasetManifest:
        """Return what is in a folder, from its manifest or else from a listing of its objects."""
        if current.problem:
            raise InvalidDataset(
                current.problem, remedy="Upload the dataset again, with all its files."
            )
        if current.manifest is not None:
            return current.manifest
        infos = list(self._store.list(keys.dataset(folder)) if infos is None else infos)
        placed = list(_placed(infos))
        files = tuple(
            DatasetFile(
                name=name, key=info.key, size_bytes=info.size_bytes, file_type=file_type(name)
            )
            for name, info in placed
        )
        newest = max((info.modified_s for _, info in placed), default=None)
        return _with_totals(
            DatasetManifest(
                files=files,
                training_name=folder,
                trigger_word=current.trigger_word,
                upload_date=None if newest is None else datetime.fromtimestamp(newest, UTC),
            )
        )

    def _usable(self, folder: str) -> DatasetManifest:
        manifest = self._contents(folder, self._current(folder))
        if not manifest.files:
            hint = nearest(folder, self.folders())
            raise NotFound(
                f"there is no dataset {folder!r}{hint}",
                remedy="Upload it first, or give the name of one that list_dataset_folders shows.",
            )
        if not manifest.total_images:
            raise InvalidDataset(
                f"dataset {folder!r} holds no image",
                remedy="Upload jpg, png, webp or bmp images, each with a .txt caption.",
            )
        return manifest

    def _listed(self) -> dict[str, Sequence[ObjectInfo]]:
        """Return the objects of each folder that is a dataset, and not an unfinished upload."""
        found = defaultdict(list)
        for info in self._store.list(keys.datasets()):
            folder, name = keys.dataset_of(info.key)
            if folder and name:
                found[folder].append(info)
        return {
            folder: infos
            for folder, infos in found.items()
            if any(info.key == keys.dataset_manifest(folder) for info in infos)
            or any(True for _ in _placed(infos))
        }

    def _entry(self, folder: str, infos: Sequence[ObjectInfo]) -> StoredDataset:
        has_manifest = any(info.key == keys.dataset_manifest(folder) for info in infos)
        current = self._current(folder) if has_manifest else _Current(None, None)
        try:
            return _summary(folder, self._contents(folder, current, infos))
        except InvalidDataset as error:
            return StoredDataset(name=folder, problem=error.message)

    def _fetch(self, manifest: DatasetManifest, target: Path) -> Path:
        """Write all files beside ``target``, verify them, and put the folder in its place."""
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        try:
            partial = beside / "new"
            partial.mkdir()
            for file in manifest.files:
                self._fetch_file(file, partial / file.name)
            if target.exists():
                target.rename(beside / "old")
            partial.rename(target)
        except BaseException:
            if (beside / "old").exists() and not target.exists():
                (beside / "old").rename(target)
            raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return target

    def _fetch_file(self, file: DatasetFile, path: Path) -> None:
        try:
            self._store.get_file(file.key, path)
        except NotFound as error:
            raise _Stale(f"the file {file.name} is gone") from error
        if not _is_file(path, file):
            raise _Stale(f"the file {file.name} isn't the one that was uploaded")

    # Writing

    def _switch(
        self, folder: str, request: UploadRequest, upload_id: str, files: Sequence[DatasetFile]
    ) -> _Switch:
        """Replace the manifest, unless it was changed since it was read; then start over."""
        for _ in range(_SWITCH_ATTEMPTS):
            with contextlib.suppress(PreconditionFailed), self._alone():
                current = self._current(folder)
                old = self._before(folder, current, request.cleanup_existing)
                manifest = _manifest_after(old, request, folder, upload_id, files)
                self._write(folder, manifest, current.etag)
                return _Switch(old.files, manifest)
            time.sleep(random.uniform(0, 0.05))  # several uploads at once, none goes first
        raise ConflictingState(
            f"dataset {folder!r} is being changed by many uploads at once",
            remedy="Upload these files again when the others are done.",
        )

    def _before(self, folder: str, current: _Current, is_replaced: bool) -> DatasetManifest:
        """Return the dataset before an upload; a damaged one can be replaced, not added to."""
        if current.problem and is_replaced:
            return DatasetManifest(files=())
        return self._contents(folder, current)

    def _write(self, folder: str, manifest: DatasetManifest, etag: str | None) -> None:
        key = keys.dataset_manifest(folder)
        data = manifest.model_dump_json(indent=1).encode()
        if isinstance(self._store, ConditionalPut):
            self._store.put_if(key, data, etag)
        else:
            self._store.put(key, data)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Without conditional writes, at least the uploads of this program take turns."""
        if isinstance(self._store, ConditionalPut):
            yield
        else:
            with self._lock:
                yield

    def _discard(self, folder: str, files: Sequence[DatasetFile]) -> None:
        """Delete the files of a failed upload, as far as that is possible and right.

        A manifest may have been written although the write was reported as failed.
        """
        with contextlib.suppress(LoradashError, OSError):
            manifest = self._current(folder).manifest
            used = {file.key for file in manifest.files} if manifest else set()
            for file in files:
                if file.key not in used:
                    self._store.delete(file.key)

    def _delete_unreferenced(self, folder: str, switch: _Switch) -> bool:
        """Delete what the old manifest named and the new doesn't, and uploads that were abandoned.

        Files of other uploads stay: they may be about to become part of the dataset.
        """
        used = {file.key for file in switch.manifest.files}
        try:
            for file in switch.old_files:
                if file.key not in used:
                    self._store.delete(file.key)
            for info in list(self._store.list(keys.dataset(folder))):
                if info.key not in used and _is_abandoned(info.key):
                    self._store.delete(info.key)
        except (LoradashError, OSError):
            return False
        return True

    def _result(
        self,
        folder: str,
        files: Sequence[DatasetFile],
        manifest: DatasetManifest,
        warnings: Sequence[str],
    ) -> UploadResult:
        types = [file.file_type for file in files]
        counts = FileCounts(
            images=types.count("image"),
            captions=types.count("caption"),
            other=types.count("other"),
        )
        total = sum(file.size_bytes for file in files)
        uploaded_at = manifest.upload_date or datetime.now(UTC)
        message = (
            f"Stored {counts.images} images and {counts.captions} captions as dataset {folder!r}"
        )
        return UploadResult(
            uploaded_files=tuple(
                StoredFile(
                    filename=file.name,
                    size=file.size_bytes,
                    size_formatted=size_text(file.size_bytes),
                    content_type=content_type(file.name),
                    file_type=file.file_type,
                    uploaded_at=uploaded_at,
                    path=self._address.shown(file.key),
                    folder=folder,
                )
                for file in files
            ),
            s3_path=self._address.shown(keys.dataset(folder)),
            training_folder=folder,
            dataset_folder=folder,
            training_name=manifest.training_name,
            trigger_word=manifest.trigger_word,
            total_images=counts.images,
            total_captions=counts.captions,
            total_size=total,
            total_size_formatted=size_text(total),
            file_types_summary=counts,
            message=message,
            detailed_message=(
                f"{message} ({size_text(total)}). The dataset now has {manifest.total_images} "
                f"images and {manifest.total_captions} captions. Use it in a training with "
                f"folder_path: {folder}"
            ),
            warnings=tuple(warnings),
            statistics=UploadStatistics(
                total_files_attempted=len(files),
                succeeded=len(files),
                average_file_size=total // len(files),
            ),
        )


def _placed(infos: Iterable[ObjectInfo]) -> Iterator[tuple[str, ObjectInfo]]:
    """Yield the files that somebody put into a folder by other means, with their names."""
    for info in infos:
        _, name = keys.dataset_of(info.key)
        parts = name.split("/")
        hidden = any(part.startswith(".") or not part for part in parts)
        if not hidden and name != keys.DATASET_MANIFEST and upload_time_s(parts[0]) is None:
            yield name, info


def _is_abandoned(key: str) -> bool:
    _, name = keys.dataset_of(key)
    made_s = upload_time_s(name.split("/")[0])
    return made_s is not None and time.time() - made_s > _ABANDONED_AFTER_S


def _check_manifest(folder: str, manifest: DatasetManifest) -> None:
    """Refuse a manifest that leads out of its folder, here or in the store."""
    for file in manifest.files:
        keys.dataset_file(folder, "any", file.name)
        check_key(file.key)
        if keys.dataset_of(file.key)[0] != folder:
            raise ValueError("a file of another dataset")


def _with_totals(manifest: DatasetManifest) -> DatasetManifest:
    return manifest.model_copy(
        update={
            "files": tuple(sorted(manifest.files, key=lambda file: file.name)),
            "total_images": len(manifest.of_type("image")),
            "total_captions": len(manifest.of_type("caption")),
        }
    )


def _manifest_after(
    old: DatasetManifest,
    request: UploadRequest,
    folder: str,
    upload_id: str,
    files: Sequence[DatasetFile],
) -> DatasetManifest:
    kept: Sequence[DatasetFile] = ()
    name, word = request.training_name, request.trigger_word
    if not request.cleanup_existing:
        new = {file.name.casefold() for file in files}
        kept = [file for file in old.files if file.name.casefold() not in new]
        name, word = name or old.training_name, word or old.trigger_word
    return _with_totals(
        DatasetManifest(
            training_name=name or folder,
            trigger_word=word,
            upload_date=datetime.now(UTC),
            files=(*kept, *files),
            version=upload_id,
        )
    )


def _replacement_warnings(
    request: UploadRequest, switch: _Switch, files: Sequence[DatasetFile]
) -> list[str]:
    kept = {file.key for file in switch.manifest.files} - {file.key for file in files}
    replaced = [file.name for file in switch.old_files if file.key not in kept]
    if not replaced:
        return []
    count = f"{len(replaced)} earlier file{'' if len(replaced) == 1 else 's'}"
    if request.cleanup_existing:
        hint = "send cleanup_existing: false with the later parts when uploading in several parts"
        return [f"replaced the dataset's {count}; {hint}"]
    return [f"replaced {count} of the same name: {name_list(replaced)}"]


def _warnings_of(checked: Sequence[CheckedFile]) -> list[str]:
    return [file.warning for file in checked if file.warning]


def _summary(folder: str, manifest: DatasetManifest) -> StoredDataset:
    return StoredDataset(
        name=folder,
        total_images=manifest.total_images,
        total_captions=manifest.total_captions,
        size_bytes=manifest.size_bytes,
        trigger_word=manifest.trigger_word,
        upload_date=manifest.upload_date,
    )


def _matches(folder: Path, manifest: DatasetManifest) -> bool:
    """Whether a local folder holds exactly a dataset's files. A file without a hash can't match."""
    if not folder.is_dir():
        return False
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return there == {file.name for file in manifest.files} and all(
        file.sha256 and _is_file(folder / file.name, file) for file in manifest.files
    )


def _is_file(path: Path, file: DatasetFile) -> bool:
    if path.is_symlink() or path.stat().st_size != file.size_bytes:
        return False
    if not file.sha256:
        return True
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
