"""Workspace files of processes that ended long ago, removed where nothing is lost by it.

What the object store holds, verified, needn't lie in the workspace as well. Anything that isn't
there, such as a checkpoint that could not be stored, keeps its folder. Objects are never deleted.
"""

import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import structlog

from loradash.domain.artifacts import LISTED_KINDS
from loradash.domain.kinds import GENERATION, TRAINING, Kind
from loradash.domain.process import ProcessRecord, Status
from loradash.engines.catalogue import Engines
from loradash.errors import AlreadyRunning, LoradashError
from loradash.registry.registry import ProcessRegistry
from loradash.runtime.folder_lock import LOCK_FILE, folder_lock
from loradash.runtime.workspace import Workspace
from loradash.storage.existence import ExistenceCache
from loradash.storage.store import ObjectStore

log = structlog.get_logger("loradash.retention")

_ENDED = (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


class Removed(NamedTuple):
    """The folders of one process that are gone, and what they took."""

    process_id: str
    freed_bytes: int


class Retention:
    """Cleans the workspace; safe to call at any time."""

    def __init__(
        self,
        registry: ProcessRegistry,
        store: ObjectStore,
        workspace: Workspace,
        engines: Engines,
        days: float,
    ) -> None:
        self._registry = registry
        self._known = ExistenceCache(store)
        self._workspace = workspace
        self._engines = engines
        self._days = days
        self._wanted: Mapping[Kind, Callable[[ProcessRecord], set[tuple[str, str]]]] = {
            TRAINING.name: self._trained,
            GENERATION.name: self._images,
        }

    def clean(self, now: datetime | None = None) -> list[Removed]:
        """Remove what is old enough and safely stored; return what was removed."""
        if not self._days:
            return []
        before = (now or datetime.now(UTC)) - timedelta(days=self._days)
        removed = []
        for process_id in self._workspace.process_ids():
            try:
                if self._is_old(process_id, before):
                    removed += self._clean_one(process_id, before)
            except AlreadyRunning:
                continue  # it was resumed just now
            except (LoradashError, OSError) as error:
                log.warning("not_cleaned", process_id=process_id, error=str(error))
        return removed

    def _is_old(self, process_id: str, before: datetime) -> bool:
        record = self._registry.get(process_id)
        return record.status in _ENDED and record.ended_at is not None and record.ended_at < before

    def _clean_one(self, process_id: str, before: datetime) -> list[Removed]:
        """Remove the folders under a lock, so that no attempt begins in them."""
        record = self._registry.get(process_id)
        with folder_lock(self._workspace.process(process_id)):
            if not self._is_old(process_id, before) or not self._is_stored(record):
                return []
            return [self._remove(process_id)]

    def _is_stored(self, record: ProcessRecord) -> bool:
        """Whether all that the folders hold and anybody could want is in the object store."""
        stored = self._registry.artifacts(record.id)
        for entry in stored:
            there = self._known.find(entry.key)
            if there is None or there.size_bytes != entry.size_bytes:
                return False
        names = {(entry.kind, entry.name) for entry in stored}
        if record.kind not in self._wanted:
            return self._files(record) <= {name for _, name in names}
        return self._wanted[record.kind](record) <= names

    def _files(self, record: ProcessRecord) -> set[str]:
        """All files of a kind of work that doesn't say which of them matter."""
        folder = self._workspace.process(record.id)
        files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_FILE)
        return {path.relative_to(folder).as_posix() for path in files}

    def _images(self, record: ProcessRecord) -> set[tuple[str, str]]:
        engine = self._engines.generator(record.engine.name)
        drawn = engine.images(self._workspace.generation(record.id))
        return {("image", path.name) for path in drawn}

    def _trained(self, record: ProcessRecord) -> set[tuple[str, str]]:
        engine = self._engines.trainer(record.engine.name)
        folder = self._workspace.training(record.id)
        wanted: set[tuple[str, str]] = {
            (one.kind, one.path.name)
            for one in engine.artifacts(folder)
            if one.kind in LISTED_KINDS
        }
        if record.status is not Status.COMPLETED:
            # Of a training that may go on, the newest checkpoint must be safe.
            wanted |= {
                ("checkpoint", f"{newest.folder.name}/{path.relative_to(newest.folder).as_posix()}")
                for newest in engine.checkpoints(folder)[-1:]
                for path in newest.files
            }
        return wanted

    def _remove(self, process_id: str) -> Removed:
        freed = 0
        for folder in self._workspace.folders_of(process_id):
            if folder.is_dir():
                freed += _size(folder)
                # Out of the way by one rename, so that a crash leaves no half-empty folder.
                gone = folder.with_name(f".{folder.name}.removed")
                shutil.rmtree(gone, ignore_errors=True)
                folder.rename(gone)
                shutil.rmtree(gone)
        log.info("workspace_cleaned", process_id=process_id, freed_bytes=freed)
        return Removed(process_id, freed)


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
