"""The object store in memory: for tests, and the reference of what the port means."""

import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from loradash.errors import PreconditionFailed
from loradash.storage.store import (
    Capabilities,
    ObjectInfo,
    OnBytes,
    check_key,
    check_prefix,
    no_such_object,
)

CAPABILITIES = Capabilities(conditional_create=True, conditional_replace=True, bulk_delete=True)


class MemoryStore:
    """Objects in a dictionary; thread-safe."""

    def __init__(self, capabilities: Capabilities = CAPABILITIES) -> None:
        self.capabilities = capabilities
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    def put(self, key: str, data: bytes) -> ObjectInfo:
        """See `ObjectStore.put`."""
        with self._lock:
            self._objects[check_key(key)] = (bytes(data), time.time())
            return self._info(key)

    def put_if(self, key: str, data: bytes, etag: str | None) -> ObjectInfo:
        """See `ConditionalPut.put_if`."""
        with self._lock:
            check_key(key)
            current = self._info(key).etag if key in self._objects else None
            if current != etag:
                raise PreconditionFailed(
                    f"object {key!r} was changed by another writer", remedy="Read it again."
                )
            self._objects[key] = (bytes(data), time.time())
            return self._info(key)

    def put_file(self, key: str, path: Path, on_bytes: OnBytes | None = None) -> ObjectInfo:
        """See `ObjectStore.put_file`."""
        info = self.put(key, path.read_bytes())
        if on_bytes:
            on_bytes(info.size_bytes)
        return info

    def get(self, key: str) -> bytes:
        """See `ObjectStore.get`."""
        with self._lock:
            if check_key(key) not in self._objects:
                raise no_such_object(key)
            return self._objects[key][0]

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """See `ObjectStore.read`."""
        piece = self.get(key)[start:end]
        return iter([piece] if piece else [])

    def get_file(self, key: str, path: Path, on_bytes: OnBytes | None = None) -> ObjectInfo:
        """See `ObjectStore.get_file`."""
        data = self.get(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if on_bytes:
            on_bytes(len(data))
        return self.head(key)

    def head(self, key: str) -> ObjectInfo:
        """See `ObjectStore.head`."""
        with self._lock:
            if check_key(key) not in self._objects:
                raise no_such_object(key)
            return self._info(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        prefix = check_prefix(prefix)
        with self._lock:
            keys = sorted(self._objects)
            found = [self._info(key) for key in keys if not prefix or key.startswith(f"{prefix}/")]
        yield from found

    def folders(self, prefix: str) -> tuple[str, ...]:
        """See `ObjectStore.folders`."""
        start = f"{check_prefix(prefix)}/" if prefix else ""
        below = (info.key.removeprefix(start) for info in self.list(prefix))
        return tuple(sorted({key.partition("/")[0] for key in below if "/" in key}))

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        with self._lock:
            self._objects.pop(check_key(key), None)

    def delete_many(self, keys: Sequence[str]) -> None:
        """See `ObjectStore.delete_many`."""
        for key in keys:
            self.delete(key)

    def close(self) -> None:
        """See `ObjectStore.close`; there is nothing to let go of."""

    def _info(self, key: str) -> ObjectInfo:
        data, modified_s = self._objects[key]
        return ObjectInfo(key, len(data), modified_s, hashlib.sha256(data).hexdigest())
