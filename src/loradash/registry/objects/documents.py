"""The documents of all processes, whichever way the store lets several writers agree."""

import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

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


class _Known(NamedTuple):
    """What is known of an object: since when it has this etag, and its document if it's sure."""

    etag: str
    since_s: float
    document: Document | None


class DocumentCache:
    """The documents that were read last, for those who know the present etag. Thread-safe.

    The clock is monotonic; when an object was changed stands in a list by another one's.
    """

    def __init__(self, backend: Backend, clock: Callable[[], float] = time.monotonic) -> None:
        self._backend = backend
        self._clock = clock
        self._known: LRUCache[str, _Known] = LRUCache(MOST_CACHED)
        self._lock = threading.Lock()

    def read(self, info: ObjectInfo, *, settled_s: float = 0.0) -> Document:
        """Return the document in an object, or a newer one. Raises `NotFound`.

        It is kept if it is read when the object has had this etag for ``settled_s``: so long after
        it was listed with it, a write gives it another one.
        """
        now_s = self._clock()
        with self._lock:
            known: _Known | None = self._known.get(info.key)
        if known is None or known.etag != info.etag:
            known = _Known(info.etag, now_s, None)
        if known.document is not None:
            return known.document
        document = self._backend.read(Document, info.key)
        if now_s - known.since_s >= settled_s:
            known = known._replace(document=document)
        with self._lock:
            self._known[info.key] = known
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
