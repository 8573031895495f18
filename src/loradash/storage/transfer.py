"""Many files at once, into the object store and out of it: bounded, counted, failures by name.

Threads, because the store's verbs wait for a network; with 16 of them a hundred small files take
about a tenth of the time that they take one after another. A file that fails is tried once more at
the end, when whatever was in its way may be over; the others go on meanwhile.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from loradash.errors import LoradashError, StoreUnavailable, TransferFailed
from loradash.storage.store import ObjectInfo, ObjectStore, OnBytes

CONCURRENCY = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


class Transfer(NamedTuple):
    """One file and its object. ``size_bytes`` is what progress is reckoned with."""

    key: str
    path: Path
    size_bytes: int


class TransferProgress(NamedTuple):
    """How far a batch is: the file that has just moved, and the sums over all files."""

    key: str
    key_bytes: int
    key_total_bytes: int
    done_files: int
    total_files: int
    done_bytes: int
    total_bytes: int


OnProgress = Callable[[TransferProgress], None]


@dataclass(frozen=True)
class Outcomes(Generic[Item, Result]):
    """What became of each item of a batch, in the order of the items."""

    done: tuple[tuple[Item, Result], ...]
    failed: tuple[tuple[Item, Exception], ...]

    def or_raise(
        self, what: str, name: Callable[[Item], str], *, remedy: str = ""
    ) -> tuple[Result, ...]:
        """Return all results, or raise an error that names each item that failed.

        It is `StoreUnavailable` if the store was away for one of them, their own error if all of
        them have the same, and else `TransferFailed`.
        """
        if self.failed:
            errors = [error for _, error in self.failed]
            raise _common_kind(errors)(
                f"{what}: {len(self.failed)} of {len(self.failed) + len(self.done)} files failed",
                problems=[f"{name(item)}: {_first_line(error)}" for item, error in self.failed],
                remedy=remedy
                or getattr(errors[0], "remedy", "")
                or "Repeat it: what has arrived isn't sent again.",
            ) from errors[0]
        return tuple(result for _, result in self.done)


def in_parallel(
    items: Sequence[Item],
    work: Callable[[Item], Result],
    *,
    concurrency: int = CONCURRENCY,
    tries: int = 2,
) -> Outcomes[Item, Result]:
    """Do the same with each item, so many at a time; what fails is tried again at the end.

    `LoradashError` and `OSError` are an item's failure; anything else is a bug and is raised.
    """
    results: dict[int, Result] = {}
    errors: dict[int, Exception] = {}

    def one(number: int) -> None:
        try:
            results[number] = work(items[number])
        except (LoradashError, OSError) as error:
            errors[number] = error

    waiting: Sequence[int] = range(len(items))
    for _ in range(tries):
        if not waiting:
            break
        errors.clear()
        with ThreadPoolExecutor(min(concurrency, len(waiting)), "transfer") as threads:
            list(threads.map(one, waiting))
        waiting = sorted(errors)
    return Outcomes(
        tuple((items[number], results[number]) for number in sorted(results)),
        tuple((items[number], errors[number]) for number in sorted(errors)),
    )


def put_files(
    store: ObjectStore,
    files: Sequence[Transfer],
    *,
    concurrency: int = CONCURRENCY,
    on_progress: OnProgress | None = None,
) -> Outcomes[Transfer, ObjectInfo]:
    """Upload files; each is verified by the store before it counts as done."""
    return _moved(files, store.put_file, concurrency, on_progress)


def get_files(
    store: ObjectStore,
    files: Sequence[Transfer],
    *,
    concurrency: int = CONCURRENCY,
    on_progress: OnProgress | None = None,
) -> Outcomes[Transfer, ObjectInfo]:
    """Download files; each appears whole or not at all."""
    return _moved(files, store.get_file, concurrency, on_progress)


def _moved(
    files: Sequence[Transfer],
    move: Callable[[str, Path, OnBytes], ObjectInfo],
    concurrency: int,
    on_progress: OnProgress | None,
) -> Outcomes[Transfer, ObjectInfo]:
    counter = _Counter(files, on_progress)

    def one(file: Transfer) -> ObjectInfo:
        with counter.of(file) as count:
            return move(file.key, file.path, count)

    return in_parallel(files, one, concurrency=concurrency)


class _Counter:
    """Adds up what all threads move. Only whole files count as done."""

    def __init__(self, files: Sequence[Transfer], on_progress: OnProgress | None) -> None:
        self._total_files = len(files)
        self._total_bytes = sum(file.size_bytes for file in files)
        self._done_files = 0
        self._done_bytes = 0
        self._on_progress = on_progress
        self._lock = threading.Lock()

    def of(self, file: Transfer) -> "_FileCount":
        return _FileCount(self, file)

    def add(self, file: Transfer, more_bytes: int, file_bytes: int, *, is_done: bool) -> None:
        with self._lock:
            self._done_bytes += more_bytes
            self._done_files += is_done
            progress = TransferProgress(
                file.key, file_bytes, file.size_bytes, self._done_files, self._total_files,
                self._done_bytes, self._total_bytes,
            )  # fmt: skip
            if self._on_progress:  # under the lock, so that what is told never goes back
                self._on_progress(progress)


class _FileCount:
    """Counts one try of one file; a try that fails takes its bytes back."""

    def __init__(self, counter: _Counter, file: Transfer) -> None:
        self._counter = counter
        self._file = file
        self._bytes = 0
        self._lock = threading.Lock()

    def __enter__(self) -> OnBytes:
        return self._count

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._counter.add(self._file, 0, self._bytes, is_done=True)
        else:
            self._counter.add(self._file, -self._bytes, 0, is_done=False)

    def _count(self, more_bytes: int) -> None:
        with self._lock:  # parts of one file come from several threads
            self._bytes += more_bytes
            self._counter.add(self._file, more_bytes, self._bytes, is_done=False)


def _common_kind(errors: Sequence[Exception]) -> type[LoradashError]:
    if any(isinstance(error, StoreUnavailable) for error in errors):
        return StoreUnavailable
    kinds = {type(error) for error in errors}
    kind = kinds.pop()
    return kind if not kinds and issubclass(kind, LoradashError) else TransferFailed


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
