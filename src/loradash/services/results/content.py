"""The bytes of a stored result in pieces."""

from collections.abc import Iterator

from loradash.errors import ResultsNotStored
from loradash.registry.registry import StoredArtifact
from loradash.services.results.pieces import exactly
from loradash.storage.store import ObjectStore


def content(
    store: ObjectStore, entry: StoredArtifact, start: int = 0, end: int | None = None
) -> Iterator[bytes]:
    """Yield a result's bytes from ``start`` up to, without, ``end``; as many as that are.

    Raises `ResultsNotStored` rather than end too soon or go on too long, and what the store raises.
    """
    size = (entry.size_bytes if end is None else end) - start
    return exactly(_read(store, entry, start, end), size, not_what_was_stored(entry))


def _read(
    store: ObjectStore, entry: StoredArtifact, start: int, end: int | None
) -> Iterator[bytes]:
    yield from store.read(entry.key, start, end)  # asked only when the first piece is wanted


def not_what_was_stored(entry: StoredArtifact) -> ResultsNotStored:
    """Return the error for an object that differs from what was put there."""
    return ResultsNotStored(
        f"object {entry.key} isn't what was stored", remedy="Delete it and make it again."
    )
