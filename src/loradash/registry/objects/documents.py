"""The documents of all processes, whichever way the store lets several writers agree."""

import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Protocol

from cachetools import LRUCache

from loradash.registry.objects.backend import Backend
from loradash.registry.objects.document import Document, Edit
from loradash.storage import keys
from loradash.storage.store import ObjectInfo

MOST_CACHED = 10_000
MOST_HELD = 1_000
TRIES = 100

Listing = Mapping[str, Sequence[ObjectInfo]]


class Documents(Protocol):
    """Documents by process id. Thread-safe."""

    def create(self, document: Document, *, contested: bool) -> None:
        """Add a document. Raises `ConflictingState` if the process exists."""
        ...

    def load(self, process_id: str) -> Document:
        """Return the newest version. Raises `NotFound`."""
        ...

    def update(self, process_id: str, edit: Edit) -> Document:
        """Replace a document, as one atomic step; return the new one. Raises `NotFound`."""
        ...

    def listed(self, process_id: str, infos: Sequence[ObjectInfo]) -> Document:
        """Return a process's version at the time of a listing, or a newer one."""
        ...


class Locks:
    """A lock for each process: threads of one program needn't race through the store."""

    def __init__(self) -> None:
        self._locks: weakref.WeakValueDictionary[str, _Lock] = weakref.WeakValueDictionary()
        self._guard = threading.Lock()

    def of(self, process_id: str) -> "_Lock":
        """Return the lock of a process, for a ``with`` block."""
        with self._guard:
            return self._locks.setdefault(process_id, _Lock())


class _Lock:
    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class DocumentCache:
    """The documents that were read last, for those who know the present etag. Thread-safe."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._documents: LRUCache[str, tuple[str, Document]] = LRUCache(MOST_CACHED)
        self._lock = threading.Lock()

    def read(self, info: ObjectInfo, *, keep: bool = True) -> Document:
        """Return the document in an object, or a newer one. Raises `NotFound`."""
        with self._lock:
            known = self._documents.get(info.key)
        if known and known[0] == info.etag:
            return known[1]
        document = self._backend.read(Document, info.key)
        if keep:
            with self._lock:
                self._documents[info.key] = (info.etag, document)
        return document


def list_documents(backend: Backend) -> Listing:
    """Return what belongs to the record of each process that there is."""
    found: dict[str, list[ObjectInfo]] = {}
    created = set()
    for info in backend.list(keys.processes()):
        process_id, rest = keys.recorded_process(info.key)
        if process_id:
            found.setdefault(process_id, []).append(info)
            if not rest:
                created.add(process_id)
    return {process_id: infos for process_id, infos in found.items() if process_id in created}
