"""Which listed results the object store really holds.

Records outlive a store: settings may name another one, or another program deletes objects. A list
must not offer what can't be downloaded. While the store is unavailable or slow, everything is
listed.
"""

from collections.abc import Sequence

from loradash.errors import StoreUnavailable
from loradash.registry.registry import StoredArtifact
from loradash.resilience.call_timeout import CallWithTimeout
from loradash.storage.existence import ExistenceCache
from loradash.storage.store import ObjectStore, Remote
from loradash.storage.transfer import in_parallel

_ANSWERS_S = 5.0


class Presence:
    """Looks for objects, and remembers for a while which are there."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known = ExistenceCache(store)

    def split(
        self, entries: Sequence[StoredArtifact]
    ) -> tuple[list[StoredArtifact], list[StoredArtifact]]:
        """Return the entries whose objects are there, or may be, and those that are missing."""
        is_away = isinstance(self._store, Remote) and self._store.state.state != "closed"
        if not entries or is_away:
            return list(entries), []
        look: CallWithTimeout[set[str]] = CallWithTimeout(
            lambda: self._missing(entries), "look-for-results"
        )
        try:
            missing = look.result(_ANSWERS_S)
        except (StoreUnavailable, TimeoutError):
            return list(entries), []
        return (
            [entry for entry in entries if entry.key not in missing],
            [entry for entry in entries if entry.key in missing],
        )

    def _missing(self, entries: Sequence[StoredArtifact]) -> set[str]:
        keys = [entry.key for entry in entries]
        found = in_parallel(keys, self._known.find, tries=1)
        return {key for key, info in found.done if info is None}
