"""More steps for a finished training: another process that goes on where that one ended.

A completed record isn't changed, and neither are its results. The new process has a record, a
config and results of its own, and names in its record what it goes on from. Its first attempt takes
over the job (base model's and dataset's hashes, number of threads) and the last checkpoint from the
object store, so it may run on any machine.
"""

from pathlib import Path
from typing import NamedTuple

from loradash.domain.ids import is_process_id
from loradash.domain.kinds import TRAINING
from loradash.domain.process import Origin, ProcessRecord, Status
from loradash.domain.sizes import counted
from loradash.domain.training_config import TrainingConfig
from loradash.domain.training_text import parse_training_text, training_text
from loradash.engines.catalogue import Engines
from loradash.engines.engine import ExtendsTrainings
from loradash.errors import (
    ConflictingState,
    InvalidCheckpoint,
    InvalidConfig,
    InvalidRequest,
    NotFound,
    ResultsNotStored,
)
from loradash.registry.registry import ProcessRegistry, StoredArtifact
from loradash.runtime.results import fetch, restore_checkpoints
from loradash.services.adapters.stored import StoredAdapters
from loradash.services.processes.submission import stored_config
from loradash.storage.store import ObjectStore

_MAX_NAME = 100


class Extension(NamedTuple):
    """A training that goes on: its config, what it goes on from, and what the user should know."""

    config: TrainingConfig
    origin: Origin
    warnings: tuple[str, ...]


class Extensions:
    """Plans extensions, and brings what they go on from to the machine that runs them."""

    def __init__(self, engines: Engines, registry: ProcessRegistry, store: ObjectStore) -> None:
        self._engines = engines
        self._registry = registry
        self._store = store

    def plan(self, reference: str, steps: int, name: str = "") -> Extension:
        """Return what it takes to bring a completed training to ``steps`` steps in all.

        ``steps`` count as in its config. Writes nothing. Raises `NotFound`, `ConflictingState` for
        one that isn't completed, `InvalidConfig` for a number of steps that isn't more, and
        `InvalidCheckpoint` if what it would go on from is gone.
        """
        process_id = reference
        if not is_process_id(reference):
            process_id = StoredAdapters(self._registry, self._store).require(reference).process_id
        record = self._registry.get(process_id)
        engine = self._extending_engine(record)
        text = stored_config(self._store, record)
        before = parse_training_text(text)
        done = before.process.train.updates
        overrides = {
            "train.steps": steps,
            "name": name or _longer_name(record.name, before, steps),
            "engine": record.engine.name,
        }
        config = parse_training_text(training_text(before), overrides)
        if config.process.train.updates <= done:
            raise InvalidConfig(
                f"steps: {process_id} has {counted(before.process.train.steps, 'step')} already, "
                f"and {steps} in all {'is' if steps == 1 else 'are'} not more",
                remedy=f"Give the steps in all, more than {before.process.train.steps}.",
            )
        self._require_checkpoint(record)
        origin = Origin(kind="extends", process_id=process_id, step=done)
        return Extension(config, origin, engine.extension_warnings(before, config))

    def write_job(
        self, record: ProcessRecord, config: TrainingConfig, data: tuple[str, ...], folder: Path
    ) -> None:
        """Write the job of an extension from that of the training that it goes on from.

        ``data`` are the folders of its datasets, as the job in ``folder`` is to name them.
        Raises `InvalidCheckpoint` if that is gone.
        """
        assert record.origin
        before = record.origin.process_id
        engine = self._extending_engine(self._registry.get(before))
        path = folder / ".job-before.json"
        try:
            (entry,) = self._registry.artifacts(before, ["job"])
            fetch(self._store, entry, path)
            engine.write_extended_job(record.id, config, path, data, folder, record.created_at)
        except (ValueError, NotFound, ResultsNotStored) as error:
            raise _gone(before, "its job is") from error
        finally:
            path.unlink(missing_ok=True)

    def restore(self, origin: Origin, folder: Path) -> int:
        """Bring the checkpoint to go on from to disk; return how many came. `InvalidCheckpoint`."""
        count = restore_checkpoints(self._registry, self._store, origin.process_id, folder)
        if not count:
            raise _gone(origin.process_id, "its checkpoints are")
        return count

    def _extending_engine(self, record: ProcessRecord) -> ExtendsTrainings:
        if record.kind != TRAINING.name:
            raise InvalidRequest(
                f"{record.id} is a generation", remedy="Give the id of a completed training."
            )
        if record.status is not Status.COMPLETED:
            remedy = "Wait until it is completed, or cancel it and start another one."
            if record.status.is_end:
                remedy = f"Let it go on to its end first: `loradash train --resume {record.id}`."
            raise ConflictingState(
                f"training {record.id} is {record.status}, and only completed ones are extended",
                remedy=remedy,
            )
        return self._engines.extender(record.engine.name, record.id)

    def _require_checkpoint(self, record: ProcessRecord) -> None:
        """Raise `InvalidCheckpoint` unless a whole checkpoint and the job are in the store."""
        jobs = self._registry.artifacts(record.id, ["job"])
        if not jobs or not self._are_there(jobs):
            raise _gone(record.id, "its job is")
        by_folder: dict[str, list[StoredArtifact]] = {}
        for entry in self._registry.artifacts(record.id, ["checkpoint"]):
            by_folder.setdefault(entry.name.partition("/")[0], []).append(entry)
        if not any(self._are_there(by_folder[name]) for name in sorted(by_folder, reverse=True)):
            raise _gone(record.id, "its checkpoints are")

    def _are_there(self, entries: "tuple[StoredArtifact, ...] | list[StoredArtifact]") -> bool:
        try:
            return all(
                self._store.head(entry.key).size_bytes == entry.size_bytes for entry in entries
            )
        except NotFound:
            return False


def _longer_name(name: str, config: TrainingConfig, steps: int) -> str:
    """The name of the extended adapter: with the number of steps, so that both can be named."""
    longer = f"{name.removesuffix(f'-{config.process.train.steps}')}-{steps}"
    return longer if len(longer) <= _MAX_NAME else config.name


def _gone(process_id: str, what: str) -> InvalidCheckpoint:
    return InvalidCheckpoint(
        f"training {process_id} can't be extended: {what} not in the object store any more, or not "
        "as stored",
        remedy="Start another training from its adapter: `loradash train --from-adapter "
        f"{process_id} ...` (the optimizer begins anew then).",
    )
