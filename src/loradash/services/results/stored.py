"""Which stored results a request means: by key, by address, by process."""

from collections.abc import Iterable, Sequence

from loradash.domain.addresses import NO_ADDRESS, Address, is_address
from loradash.domain.artifacts import ADAPTER_KINDS, LISTED_KINDS, PICTURE_KINDS
from loradash.errors import InvalidKey, NotFound
from loradash.registry.registry import ProcessRegistry, StoredArtifact
from loradash.services.results.names import distinct_name, is_shared, plain_name
from loradash.services.results.views import FileView
from loradash.storage import keys
from loradash.storage.store import check_key

_NAMES_COMPARED = 200  # of the newest adapters, which are those that clients list


class StoredResults:
    """Finds results in the registry's lists, whose keys lie at ``address``; thread-safe."""

    def __init__(self, registry: ProcessRegistry, address: Address = NO_ADDRESS) -> None:
        self._registry = registry
        self._address = address

    def require(self, key: str, process_id: str = "") -> StoredArtifact:
        """Return what is listed under a key, of this process if one is named.

        Raises `NotFound`, `InvalidKey`.
        """
        check_key(key)
        owner = keys.process_of(key)
        if owner and process_id in ("", owner):
            for entry in self._registry.artifacts(owner):
                if key in (entry.key, keys.published(entry.key)):
                    return entry
        raise NotFound(f"there is no result {key[:200]!r}", remedy="`list_files` shows the keys.")

    def named(self, reference: str, process_id: str = "") -> StoredArtifact:
        """Return what a key or an address means, as `require` does."""
        return self.require(self.key_of(reference), process_id)

    def key_of(self, reference: str) -> str:
        """Return the key that a key or an address means. Raises `InvalidKey` for any other text."""
        key = self._address.key_of(reference)
        if not key and is_address(reference):
            raise InvalidKey(
                f"{reference[:200]!r} isn't in this server's store",
                remedy="Use a key that list_files shows.",
            )
        return check_key((key or reference).rstrip("/"))

    def wanted(
        self, references: Iterable[str], *, images: bool, loras: bool
    ) -> list[StoredArtifact]:
        """Return adapters, images, or both, of all that is named, each once.

        A reference is a process's id, a key or an address. Raises `NotFound`.
        """
        kinds = (ADAPTER_KINDS if loras else ()) + (PICTURE_KINDS if images else ())
        found: dict[str, StoredArtifact] = {}
        for reference in references:
            entries: Sequence[StoredArtifact]
            if "/" in reference:
                one = self.named(reference)
                entries = [one] if one.kind in kinds or one.kind not in LISTED_KINDS else []
            else:
                self._registry.get(reference)
                entries = self._registry.artifacts(reference, kinds) if kinds else ()
            found |= {entry.key: entry for entry in entries}
        return list(found.values())

    def saved_as(self, entry: StoredArtifact) -> str:
        """Return what a file is called that is saved: an adapter unlike all others of the list."""
        if entry.kind not in ADAPTER_KINDS:
            return plain_name(entry)
        others, _ = self._registry.newest_artifacts(ADAPTER_KINDS, limit=_NAMES_COMPARED, before="")
        return distinct_name(entry) if is_shared(entry, others) else plain_name(entry)

    def view(self, entry: StoredArtifact, filename: str) -> FileView:
        """Return a result as lists show it, called ``filename`` where it is saved."""
        return FileView(
            process_id=entry.process_id,
            kind=entry.kind,
            key=entry.key,
            address=self._address.shown(entry.key),
            name=plain_name(entry),
            filename=filename,
            size_bytes=entry.size_bytes,
            sha256=entry.sha256,
            created_at=entry.created_at,
        )
