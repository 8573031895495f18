"""Copies of a dataset on this machine: fetched at once, verified, and put in place as a whole."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from loradash.domain.dataset_manifest import DatasetFile, DatasetManifest
from loradash.errors import NotFound
from loradash.storage.store import ObjectStore
from loradash.storage.transfer import CONCURRENCY, in_parallel


class Stale(Exception):  # never leaves the services
    """A file isn't what the manifest says: the dataset may just have been replaced."""


def is_copy(folder: Path, manifest: DatasetManifest) -> bool:
    """Whether a local folder holds exactly a dataset's files. A file without a hash can't match."""
    if not folder.is_dir():
        return False
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return there == {file.name for file in manifest.files} and all(
        file.sha256 and _is_file(folder / file.name, file) for file in manifest.files
    )


OnFetched = Callable[[int, int], None]
"""Called with how many files were fetched, and of how many. What it raises ends the fetching."""


def fetch(
    store: ObjectStore,
    manifest: DatasetManifest,
    target: Path,
    concurrency: int = CONCURRENCY,
    on_fetched: OnFetched = lambda _done, _total: None,
) -> Path:
    """Write all files beside ``target``, verify them, and put the folder in its place.

    Raises `Stale`; whatever is raised, ``target`` is as it was.
    """
    fetched: list[str] = []  # appending is atomic

    def one(file: DatasetFile) -> None:
        on_fetched(len(fetched), len(manifest.files))
        _fetch_file(store, file, partial / file.name)
        fetched.append(file.name)

    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    try:
        partial = beside / "new"
        partial.mkdir()
        outcomes = in_parallel(manifest.files, one, concurrency=concurrency)
        for _, problem in outcomes.failed:
            raise problem
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


def _fetch_file(store: ObjectStore, file: DatasetFile, path: Path) -> None:
    try:
        store.get_file(file.key, path)
    except NotFound as error:
        raise Stale(f"the file {file.name} is gone") from error
    if not _is_file(path, file):
        raise Stale(f"the file {file.name} isn't the one that was uploaded")


def _is_file(path: Path, file: DatasetFile) -> bool:
    if path.is_symlink() or path.stat().st_size != file.size_bytes:
        return False
    if not file.sha256:
        return True
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
