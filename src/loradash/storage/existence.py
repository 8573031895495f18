"""Which objects are there, remembered for a while, so that the same question isn't asked again.

What is there stays for minutes: our objects are only removed by whoever also forgets them. What
isn't there may come at any moment, so that is forgotten within seconds.
"""

import threading
import time
from collections.abc import Callable

from cachetools import TTLCache

from loradash.errors import NotFound
from loradash.storage.store import ObjectInfo, ObjectStore

PRESENT_S = 300.0
ABSENT_S = 2.0
MOST = 10_000


class ExistenceCache:
    """Answers by `ObjectStore.head`, of at most so many keys for so many seconds. Thread-safe."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        present_s: float = PRESENT_S,
        absent_s: float = ABSENT_S,
        most: int = MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._present: TTLCache[str, ObjectInfo] = TTLCache(most, present_s, clock)
        self._absent: TTLCache[str, bool] = TTLCache(most, absent_s, clock)
        self._lock = threading.Lock()

    def find(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, perhaps from before; None if it isn't there."""
        with self._lock:
            if (known := self._present.get(key)) is not None:
                return known
            if key in self._absent:
                return None
        try:
            info = self._store.head(key)
        except NotFound:
            with self._lock:
                self._absent[key] = True
            return None
        self.note(info)
        return info

    def note(self, info: ObjectInfo) -> None:
        """Remember an object that was just put."""
        with self._lock:
            self._present[info.key] = info
            self._absent.pop(info.key, None)

    def forget(self, key: str) -> None:
        """Ask again next time."""
        with self._lock:
            self._present.pop(key, None)
            self._absent.pop(key, None)
