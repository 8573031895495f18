"""Which stored adapter a user means: by process id, by a result's key or address, or by name."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from loradash.domain.addresses import NO_ADDRESS, Address, is_address
from loradash.domain.artifacts import ArtifactKind
from loradash.domain.ids import is_process_id
from loradash.domain.kinds import TRAINING
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import InvalidAdapter, NotFound
from loradash.registry.registry import ProcessRegistry, StoredArtifact
from loradash.runtime.manifests import read_manifest
from loradash.storage import keys
from loradash.storage.store import ObjectStore

NEWEST = 1000
"""Of so many trainings the names are known; an older one needs its id."""

_PAGE = 200


class StoredAdapters:
    """Finds adapters among the results; thread-safe."""

    def __init__(
        self, registry: ProcessRegistry, store: ObjectStore, address: Address = NO_ADDRESS
    ) -> None:
        self._registry = registry
        self._store = store
        self._address = address

    def find(self, reference: str) -> StoredArtifact | None:
        """Return the adapter among the results that is meant; None if it can only be a path.

        A file of this machine comes before an adapter of its name. Raises `NotFound` for what can
        only be a result and isn't there, and `InvalidAdapter` for a name of several.
        """
        if is_process_id(reference):
            found = self._artifacts_of(reference, ["lora"])
            if not found:
                raise NotFound(
                    f"training {reference} has no finished adapter",
                    remedy=f"See its state with `loradash processes {reference}`.",
                )
            return found[0]
        key = self._address.key_of(reference)
        if process_id := keys.process_of(key):
            return self._by_key(reference, process_id, key)
        if is_address(reference):
            raise NotFound(
                f"adapter {reference[:200]} isn't a result in this server's store",
                remedy="Use a key that list_models or list_files shows.",
            )
        return self._by_name(reference)

    def require(self, reference: str) -> StoredArtifact:
        """As `find`, for what must be a result. Raises `NotFound` and `InvalidAdapter`."""
        if found := self.find(reference):
            return found
        raise NotFound(
            f"there is no trained LoRA {reference[:200]!r}",
            remedy="`loradash adapters list` shows their ids and names.",
        )

    def lasting(self, reference: str, found: StoredArtifact) -> str:
        """Return a reference that always means this one: names can be given to another."""
        by_key = keys.process_of(self._address.key_of(reference))
        return reference if by_key or is_process_id(reference) else found.process_id

    def named(self, name: str) -> Iterator[ProcessRecord]:
        """Yield the trainings whose adapter is shown with a name, in any letter case."""
        seen, cursor = 0, ""
        while seen < NEWEST:
            page = self._registry.page(
                kind=TRAINING.name, statuses=[Status.COMPLETED], limit=_PAGE, cursor=cursor
            )
            for record in page.records:
                is_named = record.name.casefold() == name.casefold()
                if is_named and self._registry.artifacts(record.id, ["lora"]):
                    yield record
            seen, cursor = seen + len(page.records), page.next_cursor
            if not cursor:
                return

    def _by_key(self, reference: str, process_id: str, key: str) -> StoredArtifact:
        for entry in self._artifacts_of(process_id, ["lora", "checkpoint"]):
            is_it = key in (entry.key, keys.published(entry.key))
            if is_it and entry.name.endswith(".safetensors"):
                return entry
        raise NotFound(
            f"there is no adapter {reference}",
            remedy="`loradash adapters list` shows those that exist.",
        )

    def _by_name(self, name: str) -> StoredArtifact | None:
        if not _may_be_name(name):
            return None
        found = list(self.named(name))
        if len(found) > 1:
            raise InvalidAdapter(
                f"{len(found)} trained LoRAs are called {name!r}",
                problems=[f"{one.id}, of {one.created_at:%Y-%m-%d %H:%M} UTC" for one in found],
                remedy="Give the id of one, or rename one: `loradash adapters rename`.",
            )
        return self._registry.artifacts(found[0].id, ["lora"])[0] if found else None

    def _artifacts_of(
        self, process_id: str, kinds: Sequence[ArtifactKind]
    ) -> Sequence[StoredArtifact]:
        """What the registry lists, or the store's own list of a process that it doesn't know."""
        try:
            return self._registry.artifacts(process_id, kinds)
        except NotFound:
            return [one for one in read_manifest(self._store, process_id) if one.kind in kinds]


def _may_be_name(text: str) -> bool:
    """Whether a text can be a name: it isn't a path, and no file of this machine is called so."""
    if not text or len(text) > 100 or "/" in text or text.startswith((".", "~")):
        return False
    try:
        return not Path(text).exists()
    except (OSError, ValueError):
        return False
