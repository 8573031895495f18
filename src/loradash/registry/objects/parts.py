"""The rows that belong to a process, in objects that are written once: one row a line."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from cachetools import LRUCache
from pydantic import BaseModel

from loradash.errors import NotFound
from loradash.registry.objects.backend import Backend
from loradash.registry.objects.document import Chunk, PartGone, new_nonce, parsed
from loradash.storage import keys

CHUNK_ROWS = 500

Row = TypeVar("Row", bound=BaseModel)


class PartObjects(Generic[Row]):
    """Rows of one kind by the key of their object; those that were used last are remembered."""

    def __init__(self, backend: Backend, model: type[Row], most_cached: int) -> None:
        self._backend = backend
        self._model = model
        self._cache: LRUCache[str, tuple[Row, ...]] = LRUCache(most_cached)
        self._lock = threading.Lock()

    def write(self, process_id: str, rows: Sequence[Row]) -> str:
        """Store rows in a new object; return its key."""
        key = keys.process_part(process_id, new_nonce())
        self._backend.put(key, "\n".join(row.model_dump_json() for row in rows).encode())
        self._remember(key, tuple(rows))
        return key

    def read(self, key: str) -> tuple[Row, ...]:
        """Return an object's rows. Raises `PartGone`."""
        with self._lock:
            known: tuple[Row, ...] | None = self._cache.get(key)
        if known is not None:
            return known
        try:
            data = self._backend.get(key)
        except NotFound as error:
            raise PartGone(key) from error
        rows = tuple(parsed(self._model, line) for line in data.split(b"\n") if line)
        self._remember(key, rows)
        return rows

    def _remember(self, key: str, rows: tuple[Row, ...]) -> None:
        with self._lock:
            self._cache[key] = rows


class ChunkedRows(Generic[Row]):
    """Rows in order, some hundred in an object; only the last object is replaced by appending."""

    def __init__(
        self, objects: PartObjects[Row], number: Callable[[Row], int], chunk_rows: int = CHUNK_ROWS
    ) -> None:
        self._objects = objects
        self._number = number
        self._chunk_rows = chunk_rows

    def put(
        self, process_id: str, chunks: Sequence[Chunk], rows: Sequence[Row]
    ) -> tuple[Chunk, ...]:
        """Return the chunks with these rows among theirs, in place of those of the same number."""
        if not rows:
            return tuple(chunks)
        first = min(map(self._number, rows))
        kept = [chunk for chunk in chunks if chunk.last < first]
        if len(kept) == len(chunks) and kept and kept[-1].count < self._chunk_rows:
            kept.pop()
        merged = {
            self._number(row): row for chunk in chunks[len(kept) :] for row in self._of(chunk)
        }
        merged.update((self._number(row), row) for row in rows)
        return (*kept, *self._written(process_id, [merged[number] for number in sorted(merged)]))

    def until(self, process_id: str, chunks: Sequence[Chunk], last: int) -> tuple[Chunk, ...]:
        """Return the chunks without the rows after that number."""
        kept = [chunk for chunk in chunks if chunk.last <= last]
        cut = [row for chunk in chunks if chunk.first <= last < chunk.last
               for row in self._of(chunk) if self._number(row) <= last]  # fmt: skip
        return (*kept, *self._written(process_id, cut))

    def after(
        self, chunks: Sequence[Chunk], number: int, limit: int, *, newest: bool = False
    ) -> tuple[Row, ...]:
        """Return rows after a number, in order: the first ones, or the last if ``newest``."""
        wanted = [chunk for chunk in chunks if chunk.last > number]
        found: list[Row] = []
        for chunk in reversed(wanted) if newest else wanted:
            if len(found) >= limit:
                break
            rows = [row for row in self._of(chunk) if self._number(row) > number]
            found = [*rows, *found] if newest else [*found, *rows]
        return tuple(found[-limit:] if newest else found[:limit])

    def _of(self, chunk: Chunk) -> tuple[Row, ...]:
        return self._objects.read(chunk.key)

    def _written(self, process_id: str, rows: Sequence[Row]) -> Iterator[Chunk]:
        for start in range(0, len(rows), self._chunk_rows):
            some = rows[start : start + self._chunk_rows]
            yield Chunk(
                key=self._objects.write(process_id, some),
                first=self._number(some[0]),
                last=self._number(some[-1]),
                count=len(some),
            )
