"""Results deleted: lists first, then objects, then copies in the workspace; records stay."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from loradash.domain.artifacts import ResultType, kinds_of
from loradash.domain.kinds import TRAINING
from loradash.domain.process import ProcessRecord
from loradash.engines.catalogue import Engines
from loradash.errors import ConflictingState, EngineUnavailable, NotFound
from loradash.registry.registry import ProcessRegistry
from loradash.runtime.manifests import edit_manifest
from loradash.runtime.workspace import Workspace
from loradash.services.adapters.uses import require_unused
from loradash.services.results.views import DeletionReport
from loradash.storage import keys
from loradash.storage.store import ObjectInfo, ObjectStore


class ResultDeletion:
    """Deletes results of processes that have ended; thread-safe.

    The ``engines`` know which files in the workspace are copies of results.
    """

    def __init__(
        self,
        registry: ProcessRegistry,
        store: ObjectStore,
        workspace: Workspace,
        engines: Engines | None = None,
    ) -> None:
        self._registry = registry
        self._store = store
        self._workspace = workspace
        self._engines = engines

    def delete(self, process_ids: Sequence[str], result_type: ResultType) -> DeletionReport:
        """Delete results of one type, or all, of these processes.

        Lists and manifest forget a file before its object is deleted. If the store fails meanwhile,
        the same request again deletes the rest: every object of this type that no list names.
        Raises `NotFound` and `ConflictingState` before anything is deleted, also for what a process
        that waits or runs needs.
        """
        for process_id in process_ids:
            _require_ended(self._registry.get(process_id))
            require_unused(self._registry, process_id, result_type)
        deleted: list[ObjectInfo] = []
        for process_id in process_ids:
            deleted += self._delete_of(process_id, result_type)
        return DeletionReport(
            result_type=result_type,
            deleted=len(deleted),
            freed_bytes=sum(info.size_bytes for info in deleted),
        )

    def delete_adapter(self, process_id: str) -> DeletionReport:
        """Delete a training's adapter. Raises `NotFound` if it has none, and `ConflictingState`."""
        if not self._registry.artifacts(process_id, ["lora"]):
            self._registry.get(process_id)
            raise NotFound(
                f"process {process_id} has no trained LoRA",
                remedy="`loradash adapters list` shows those that exist.",
            )
        return self.delete([process_id], "lora")

    def _delete_of(self, process_id: str, result_type: ResultType) -> list[ObjectInfo]:
        """Delete one process's results; return the objects that were deleted."""
        # All of them includes those that a newer loradash has stored.
        kinds = () if result_type == "all" else kinds_of(result_type)
        listed = self._registry.artifacts(process_id, kinds)
        self._registry.drop_artifacts(
            process_id, [entry.key for entry in listed], guard=_require_ended
        )
        unlisted = self._unlisted(process_id, result_type)
        if listed or unlisted:
            self._rewrite_manifest(process_id)
        _require_ended(self._registry.get(process_id))  # a resumed one lists what it has stored
        self._store.delete_many([info.key for info in unlisted])
        self._delete_copies(process_id, result_type)
        return unlisted

    def _unlisted(self, process_id: str, result_type: ResultType) -> list[ObjectInfo]:
        """Objects of a type that no list names (any more)."""
        prefix = keys.results(process_id)
        if result_type != "all":
            prefix = f"{prefix}/{result_type}"
        named = {entry.key for entry in self._registry.artifacts(process_id)}
        return [
            info
            for info in self._store.list(prefix)
            if info.key not in named and not keys.is_manifest(info.key)
        ]

    def _rewrite_manifest(self, process_id: str) -> None:
        record = self._registry.get(process_id)
        edit_manifest(self._store, record, lambda: self._registry.artifacts(process_id))

    def _delete_copies(self, process_id: str, result_type: ResultType) -> None:
        """Remove what the workspace still holds of the deleted results."""
        for path in (
            *self._engines_files(process_id, result_type),
            *self._workspace.result_folders(process_id, result_type),
        ):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _engines_files(self, process_id: str, result_type: ResultType) -> list[Path]:
        record = self._registry.get(process_id)
        if self._engines is None or record.kind != TRAINING.name:
            return []
        try:
            engine = self._engines.trainer(record.engine.name)
        except EngineUnavailable:  # only the engine knows; they stay until their folder is removed
            return []
        folder = self._workspace.training(process_id)
        kinds = kinds_of(result_type)
        found = [one.path for one in engine.artifacts(folder) if one.kind in kinds]
        if "checkpoint" in kinds:
            found += [one.folder for one in engine.checkpoints(folder)]
        return found


def _require_ended(record: ProcessRecord) -> ProcessRecord:
    if not record.status.is_end:
        raise ConflictingState(
            f"process {record.id} is {record.status}, so its results can't be deleted",
            remedy="Cancel it first.",
        )
    return record
