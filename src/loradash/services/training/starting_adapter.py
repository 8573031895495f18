"""The adapter that a training starts from: found, verified, and kept beside its job.

A user names a file, or a stored adapter by id, key or name; the record keeps the hash of what was
meant. The first attempt brings that file into the training's folder and into the object store, so
that every later attempt has it, on any machine, whatever becomes of the original.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

from loradash.domain.addresses import Address
from loradash.domain.process import Origin, ProcessRecord
from loradash.domain.training_config import NetworkSection
from loradash.engines.catalogue import Engines
from loradash.errors import InvalidAdapter, NotFound
from loradash.registry.registry import ProcessRegistry, StoredArtifact
from loradash.runtime.results import fetch, sha256_of
from loradash.runtime.workspace import Workspace
from loradash.services.adapters.files import AdapterFiles, adapter_file
from loradash.services.adapters.stored import StoredAdapters
from loradash.services.path_policy import PathPolicy
from loradash.services.results.names import plain_name
from loradash.storage.store import ObjectStore

START_FILE = "start.safetensors"
"""The adapter beside the job that begins with it; its job names it by this name."""

ADAPTER_KEY = "network.pretrained_lora_path"
"""Where a config names the adapter that it starts from."""


class Start(NamedTuple):
    """An adapter to start from, as it was found."""

    path: Path
    """Its verified file on this machine."""
    reference: str
    """What the config names it by from now on."""
    origin: Origin


class StartingAdapters:
    """Finds adapters to start from, and brings them to where a training runs."""

    def __init__(
        self,
        engines: Engines,
        registry: ProcessRegistry,
        store: ObjectStore,
        workspace: Workspace,
        address: Address,
    ) -> None:
        self._engines = engines
        self._registry = registry
        self._store = store
        self._stored = StoredAdapters(registry, store, address)
        self._files = AdapterFiles(store, workspace, engines.adapters_in)

    def find(self, engine: str, reference: str, path_policy: PathPolicy) -> Start:
        """Return the adapter that a config names, fetched if it isn't here; ``engine`` can use it.

        Raises `InvalidAdapter`, `NotFound`, and `ResultsNotStored` for an object that isn't what
        was stored.
        """
        entry = self._stored.find(reference)
        if entry is None:
            path_policy.check(reference, InvalidAdapter, ADAPTER_KEY)
            path = adapter_file(reference, ADAPTER_KEY)
            self._engines.trainer(engine).adapter_metadata(path)
            origin = Origin(kind="adapter", name=path.name, sha256=sha256_of(path))
            return Start(path, str(path), origin)
        path = self._files.path_of(entry)
        self._engines.trainer(engine).adapter_metadata(path)
        origin = Origin(
            kind="adapter", process_id=entry.process_id, step=self._steps_of(entry),
            name=plain_name(entry), sha256=entry.sha256,
        )  # fmt: skip
        return Start(path, self._stored.lasting(reference, entry), origin)

    def settings(self, engine: str, network: NetworkSection, path: Path) -> dict[str, float]:
        """Return rank and alpha that a config leaves open, by their keys, as the adapter has them.

        Rank and alpha of convolutions count as left open where the config says nothing of them.
        """
        starter = self._engines.starter(engine)
        if starter is None:
            return {}
        given = network.model_fields_set
        own = starter.network_of(path)
        return {f"network.{key}": value for key, value in own.items() if key not in given}

    def bring(self, record: ProcessRecord, reference: str, folder: Path) -> Path | None:
        """Return the adapter in the training's folder, brought there if it isn't; None without one.

        Raises `InvalidAdapter` if what the config names isn't what was meant when it was submitted.
        """
        origin = record.origin
        if origin is None:
            return None
        target = folder / START_FILE
        owner = origin.process_id if origin.kind == "extends" else record.id
        kept = self._kept(record.id) or self._kept(owner)
        wanted = kept.sha256 if kept else origin.sha256
        if target.is_file() and wanted in (sha256_of(target), ""):
            return target
        if kept:
            fetch(self._store, kept, target)
            return target
        if origin.kind == "extends":
            return None  # an earlier release made it; the checkpoint holds all that counts
        self._copy(reference, origin, target)
        return target

    def _copy(self, reference: str, origin: Origin, target: Path) -> None:
        entry = self._stored.find(reference)
        path = adapter_file(reference, ADAPTER_KEY) if entry is None else self._files.path_of(entry)
        partial = target.with_name(f".{target.name}.partial")
        try:
            shutil.copyfile(path, partial)
            if sha256_of(partial) != origin.sha256:
                raise InvalidAdapter(
                    f"{ADAPTER_KEY}: {reference} has changed since the training was submitted",
                    remedy="Restore it, or start a new training.",
                )
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _kept(self, process_id: str) -> StoredArtifact | None:
        """The copy that a training has stored."""
        found = self._registry.artifacts(process_id, ["config"])
        return next((entry for entry in found if entry.name == START_FILE), None)

    def _steps_of(self, entry: StoredArtifact) -> int:
        if entry.step is not None:
            return entry.step
        try:
            return self._registry.get(entry.process_id).progress.step
        except NotFound:  # the store knows it, and the registry doesn't
            return 0
