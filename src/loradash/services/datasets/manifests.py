"""Manifests in the object store: read, listed, and replaced by one conditional write.

    dataset/<folder>/_training_info.json        the manifest
    dataset/<folder>/<upload id>/<file>         never written twice

Folders that another program has filled, without such a manifest, are read by listing them.
"""

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from pydantic import ValidationError

from loradash.domain.dataset_files import file_type, sorted_out
from loradash.domain.dataset_manifest import DatasetFile, DatasetManifest, with_totals
from loradash.domain.ids import upload_time_s
from loradash.domain.schema import nearest
from loradash.errors import (
    ConflictingState,
    InvalidDataset,
    InvalidKey,
    LoradashError,
    NotFound,
    PreconditionFailed,
)
from loradash.storage import keys
from loradash.storage.store import ObjectInfo, ObjectStore, check_key, conditional_put
from loradash.storage.transfer import CONCURRENCY, in_parallel

ABANDONED_AFTER_S = 24 * 3600.0  # no upload takes that long
_SWAP_ATTEMPTS = 100

Change = Callable[[DatasetManifest], DatasetManifest]


class Found(NamedTuple):
    """What is in a folder. ``is_there`` is False for a folder that is no dataset."""

    manifest: DatasetManifest
    is_there: bool


class Swap(NamedTuple):
    """A manifest that took another one's place; ``is_clean`` if nothing of that one is left."""

    old_files: tuple[DatasetFile, ...]
    manifest: DatasetManifest
    is_clean: bool = True


class Manifests:
    """The manifests of all datasets in an object store; thread-safe."""

    def __init__(self, store: ObjectStore, concurrency: int = CONCURRENCY) -> None:
        self._store = store
        self._concurrency = concurrency
        self._lock = threading.Lock()

    def read(self, folder: str, *, damaged_is_empty: bool = False) -> Found:
        """Return what a folder holds, by its manifest or else by a listing of its objects.

        Raises `InvalidDataset` for a damaged manifest, unless that one is going to be replaced.
        """
        try:
            data = self._store.get(keys.dataset_manifest(folder))
        except NotFound:
            manifest = self._listed(folder, "")
            return Found(manifest, bool(manifest.files))
        try:
            document = json.loads(data)
            if isinstance(document, dict) and "files" not in document:  # another program's
                word = document.get("trigger_word")
                return Found(self._listed(folder, word if isinstance(word, str) else ""), True)
            manifest = DatasetManifest.model_validate(document)
            _check(folder, manifest)
        except (ValueError, ValidationError, RecursionError, InvalidKey) as error:
            if damaged_is_empty:
                return Found(DatasetManifest(files=()), True)
            raise InvalidDataset(
                f"dataset {folder!r}: its {keys.DATASET_MANIFEST} is damaged "
                f"({type(error).__name__})",
                remedy="Upload the dataset again, with all its files.",
            ) from error
        return Found(manifest, True)

    def require(self, folder: str) -> DatasetManifest:
        """Return a dataset's manifest. Raises `NotFound` that names the nearest dataset."""
        found = self.read(folder)
        if not found.is_there:
            raise self._missing(folder)
        return found.manifest

    def folders(self) -> list[str]:
        """Return the names of all folders that can be datasets; some may hold none (yet)."""
        return [name for name in self._store.folders(keys.datasets()) if _is_legal(name)]

    def all(self) -> dict[str, DatasetManifest | InvalidDataset]:
        """Return each dataset's manifest, by name; for a damaged one, what is wrong with it."""

        def entry(folder: str) -> Found | InvalidDataset:
            try:
                return self.read(folder)
            except InvalidDataset as error:
                return error

        outcomes = in_parallel(self.folders(), entry, concurrency=self._concurrency)
        for _, problem in outcomes.failed:
            raise problem
        found = {
            folder: one.manifest if isinstance(one, Found) else one
            for folder, one in outcomes.done
            if not isinstance(one, Found) or one.is_there
        }
        return dict(sorted(found.items()))

    def swap(
        self,
        folder: str,
        change: Change,
        *,
        must_exist: bool = False,
        damaged_is_empty: bool = False,
    ) -> Swap:
        """Replace a manifest by what ``change`` makes of it, and delete what it no longer names.

        If another writer was faster, ``change`` is called again with what is there then; so it must
        not do anything itself. What it raises leaves the dataset as it was. A change that changes
        nothing isn't written. Raises `NotFound`, `InvalidDataset`, `ConflictingState`.
        """
        for _ in range(_SWAP_ATTEMPTS):
            with contextlib.suppress(PreconditionFailed), self._alone():
                etag = self._etag(folder)  # asked first: never newer than the content
                old = self.read(folder, damaged_is_empty=damaged_is_empty)
                if must_exist and not old.is_there:
                    raise self._missing(folder)
                new = with_totals(change(old.manifest))
                _check(folder, new)
                if new != old.manifest:
                    self._write(folder, new, etag)
                is_clean = self._delete_replaced(old.manifest, new)
                return Swap(old.manifest.files, new, is_clean)
            time.sleep(random.uniform(0, 0.05))  # several writers at once, none goes first
        raise ConflictingState(
            f"dataset {folder!r} is being changed by several programs at once",
            remedy="Try again when the others are done.",
        )

    def discard(self, folder: str, unwanted: Sequence[str]) -> None:
        """Delete objects of a failed upload, as far as that is possible and right.

        A manifest may have been written although the write was reported as failed.
        """
        with contextlib.suppress(LoradashError, OSError):
            named = {file.key for file in self.read(folder, damaged_is_empty=True).manifest.files}
            self._store.delete_many([key for key in unwanted if key not in named])

    def delete_abandoned(self, folder: str, manifest: DatasetManifest) -> bool:
        """Delete uploads that never became part of a dataset; return whether all were deleted.

        Those of the last day stay: they may be about to become part of it.
        """
        used = {file.key for file in manifest.files}
        try:
            old = [name for name in self._store.folders(keys.dataset(folder)) if _is_old(name)]
            for name in old:
                listed = list(self._store.list(f"{keys.dataset(folder)}/{name}"))
                self._store.delete_many([info.key for info in listed if info.key not in used])
        except (LoradashError, OSError):
            return False
        return True

    def _etag(self, folder: str) -> str | None:
        try:
            return self._store.head(keys.dataset_manifest(folder)).etag
        except NotFound:
            return None

    def _write(self, folder: str, manifest: DatasetManifest, etag: str | None) -> None:
        key = keys.dataset_manifest(folder)
        data = manifest.model_dump_json(indent=1).encode()
        store = conditional_put(self._store)
        if store:
            store.put_if(key, data, etag)
        else:
            self._store.put(key, data)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Without conditional writes, at least the writers of this program take turns."""
        if conditional_put(self._store):
            yield
        else:
            with self._lock:
                yield

    def _delete_replaced(self, old: DatasetManifest, new: DatasetManifest) -> bool:
        named = {file.key for file in new.files}
        dropped = {file.key for file in old.files} - named
        try:
            self._store.delete_many(sorted(dropped))
        except (LoradashError, OSError):
            return False
        return True

    def _listed(self, folder: str, trigger_word: str) -> DatasetManifest:
        placed = list(_placed(self._store.list(keys.dataset(folder))))
        taken = frozenset(sorted_out(name for name, _ in placed).taken)
        newest = max((info.modified_s for _, info in placed), default=None)
        return with_totals(
            DatasetManifest(
                files=tuple(
                    DatasetFile(
                        name=name,
                        key=info.key,
                        size_bytes=info.size_bytes,
                        file_type=file_type(name) if name in taken else "other",
                    )
                    for name, info in placed
                ),
                training_name=folder,
                trigger_word=trigger_word,
                upload_date=None if newest is None else datetime.fromtimestamp(newest, UTC),
            )
        )

    def _missing(self, folder: str) -> NotFound:
        return NotFound(
            f"there is no dataset {folder!r}{nearest(folder, tuple(self.all()))}",
            remedy="Upload it first, or give the name of one that list_dataset_folders shows.",
        )


def _placed(infos: Iterator[ObjectInfo]) -> Iterator[tuple[str, ObjectInfo]]:
    """Yield the files that another program has put into a folder, with their names."""
    for info in infos:
        _, name = keys.dataset_of(info.key)
        parts = name.split("/")
        hidden = any(part.startswith(".") or not part for part in parts)
        if not hidden and name != keys.DATASET_MANIFEST and upload_time_s(parts[0]) is None:
            yield name, info


def _is_legal(folder: str) -> bool:
    """Whether the name of a folder in the store can be that of a dataset."""
    try:
        keys.dataset(folder)
    except InvalidKey:
        return False
    return True


def _is_old(upload_id: str) -> bool:
    made_s = upload_time_s(upload_id)
    return made_s is not None and time.time() - made_s > ABANDONED_AFTER_S


def _check(folder: str, manifest: DatasetManifest) -> None:
    """Refuse a manifest that leads out of its folder, here or in the store."""
    for file in manifest.files:
        keys.dataset_file(folder, "any", file.name)
        check_key(file.key)
        if keys.dataset_of(file.key)[0] != folder:
            raise ValueError("a file of another dataset")
