"""The object store as the registry uses it: what is wrong with it is the registry's failure."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from loradash.errors import LoradashError, RegistryUnavailable, StoreRefused, StoreUnavailable
from loradash.registry.objects.document import Damaged, Model, parsed
from loradash.storage.store import ConditionalPut, ObjectInfo, ObjectStore, conditional_put
from loradash.storage.transfer import in_parallel

_READS = 6
_BETWEEN_READS_S = 0.02

Item = TypeVar("Item")
Result = TypeVar("Result")


class Backend:
    """The verbs that a registry needs; each may raise `RegistryUnavailable`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @property
    def is_conditional(self) -> bool:
        """Whether the store can create and replace on a condition; the first look may probe it."""
        return self._conditional is not None

    def get(self, key: str) -> bytes:
        """Return an object's content. Raises `NotFound`."""
        with _translated():
            return self._store.get(key)

    def read(self, model: type[Model], key: str) -> Model:
        """Return what an object holds. Raises `NotFound`.

        A file system behind a gateway may cut an object that is being replaced to its old size, so
        what can't be understood is read again before it is called damaged.
        """
        for _ in range(_READS - 1):
            with contextlib.suppress(Damaged):
                return parsed(model, self.get(key))
            time.sleep(_BETWEEN_READS_S)
        return parsed(model, self.get(key))

    def head(self, key: str) -> ObjectInfo:
        """Return what is known of an object. Raises `NotFound`."""
        with _translated():
            return self._store.head(key)

    def put(self, key: str, data: bytes) -> None:
        """Store bytes under a key."""
        with _translated():
            self._store.put(key, data)

    def put_if(self, key: str, data: bytes, etag: str | None) -> ObjectInfo:
        """See `ConditionalPut.put_if`. Raises `PreconditionFailed`."""
        assert self._conditional is not None
        with _translated():
            return self._conditional.put_if(key, data, etag)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield all objects below a prefix, as they are wanted."""
        with _translated():
            yield from self._store.list(prefix)

    def discard(self, *keys: str) -> None:
        """Delete what nothing refers to any more. If that fails it only takes up room."""
        for key in keys:
            with contextlib.suppress(LoradashError, OSError):
                self._store.delete(key)

    def in_parallel(
        self, items: Sequence[Item], work: Callable[[Item], Result]
    ) -> tuple[Result, ...]:
        """Do the same with each item, some at a time, and return the results in their order."""
        outcomes = in_parallel(items, work, tries=1)
        for _, error in outcomes.failed:
            raise error
        return tuple(result for _, result in outcomes.done)

    @functools.cached_property
    def _conditional(self) -> ConditionalPut | None:
        with _translated():
            return conditional_put(self._store)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (StoreUnavailable, StoreRefused) as error:
        raise RegistryUnavailable(
            f"registry in the object store: {error.message}",
            remedy=error.remedy,
            problems=error.problems,
        ) from error
