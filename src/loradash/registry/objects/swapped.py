"""Documents in a store that writes on a condition: each write is a compare-and-swap."""

import random
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from cachetools import LRUCache

from loradash.errors import NotFound, PreconditionFailed, RegistryUnavailable
from loradash.registry.objects.backend import Backend
from loradash.registry.objects.document import Document, Edit, PartGone
from loradash.registry.objects.documents import MOST_HELD, TRIES, DocumentCache, Locks
from loradash.registry.registry import no_such_process, process_exists
from loradash.storage import keys
from loradash.storage.store import ObjectInfo

_ANCESTORS = 16
_LONGEST_WAIT_S = 0.5


class _Version(NamedTuple):
    document: Document
    etag: str


class SwappedDocuments:
    """One object for each process, which is replaced only if it is the one that was read.

    Whoever wrote last keeps what it wrote, and tries the next write without reading first.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._cache = DocumentCache(backend)
        self._held: LRUCache[str, _Version] = LRUCache(MOST_HELD)
        self._guard = threading.Lock()
        self._locks = Locks()

    def create(self, document: Document, *, contested: bool) -> None:
        """See `Documents.create`."""
        del contested  # of two only one succeeds in any case
        process_id = document.record.id
        try:
            info = self._backend.put_if(keys.process_record(process_id), document.data, None)
        except PreconditionFailed as error:
            if self.load(process_id).descends_from(document.nonce):
                return  # ours, and only the answer got lost
            raise process_exists(process_id) from error
        self._hold(process_id, _Version(document, info.etag))

    def load(self, process_id: str) -> Document:
        """See `Documents.load`."""
        try:
            return self._backend.read(Document, keys.process_record(process_id))
        except NotFound as error:
            raise no_such_process(process_id) from error

    def update(self, process_id: str, edit: Edit) -> Document:
        """See `Documents.update`."""
        with self._locks.of(process_id):
            version = self._release(process_id)
            is_fresh = False
            for turn in range(TRIES):
                if version is None:
                    version, is_fresh = self._fetch(process_id), True
                try:
                    new = edit.of(version.document, version.document.with_ancestor(_ANCESTORS))
                except PartGone:
                    version = None
                    continue
                except Exception:
                    if is_fresh:
                        raise
                    version = None  # it may be allowed by now
                    continue
                if new is not None:
                    if self._swap(process_id, version, new):
                        return new
                    _wait(turn)
                elif is_fresh:
                    self._hold(process_id, version)
                    return version.document
                version = None
        raise RegistryUnavailable(
            f"process {process_id} is being changed by too many other programs",
            remedy="Try again, with fewer workers.",
        )

    def listed(self, process_id: str, infos: Sequence[ObjectInfo]) -> Document:
        """See `Documents.listed`."""
        key = keys.process_record(process_id)
        return self._cache.read(next(info for info in infos if info.key == key))

    def _swap(self, process_id: str, old: _Version, new: Document) -> bool:
        """Write a version in place of another; False if that isn't there any more."""
        written = new.parts.keys - old.document.parts.keys
        try:
            info = self._backend.put_if(keys.process_record(process_id), new.data, old.etag)
        except PreconditionFailed:
            # A try of the store may have been applied and its answer lost.
            if not self.load(process_id).descends_from(new.nonce):
                self._backend.discard(*written)
                return False
        else:
            self._hold(process_id, _Version(new, info.etag))
        self._backend.discard(*old.document.parts.keys - new.parts.keys)
        return True

    def _fetch(self, process_id: str) -> _Version:
        try:
            # In this order a write between the two makes the swap fail, and no other harm.
            etag = self._backend.head(keys.process_record(process_id)).etag
        except NotFound as error:
            raise no_such_process(process_id) from error
        return _Version(self.load(process_id), etag)

    def _hold(self, process_id: str, version: _Version) -> None:
        with self._guard:
            self._held[process_id] = version

    def _release(self, process_id: str) -> _Version | None:
        """Take what is held; a write that fails halfway must not find it again."""
        with self._guard:
            version: _Version | None = self._held.pop(process_id, None)
        return version


def _wait(turn: int) -> None:
    time.sleep(random.uniform(0, min(_LONGEST_WAIT_S, 0.005 * 2 ** min(turn, 10))))
