"""Objects of one store brought into another one, under the same keys: from a folder to a bucket.

What is there already is never replaced. What others refer to comes first: a dataset's files before
its manifest. It may be repeated, and then copies what is missing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from loradash.errors import LoradashError, NotFound
from loradash.storage.keys import DATASET_MANIFEST
from loradash.storage.local import LocalStore
from loradash.storage.store import ObjectInfo, ObjectStore, Remote
from loradash.storage.transfer import in_parallel

PREFIXES = ("dataset", "results")
_COMPARED_BYTES = 2**20
_PIECE = 256


@dataclass(frozen=True)
class CopyReport:
    """What became of the objects; ``problems`` has a line for each that isn't as in the source."""

    copied: int
    copied_bytes: int
    there: int
    problems: tuple[str, ...]


def copy_objects(
    source: LocalStore,
    target: ObjectStore,
    *,
    concurrency: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> CopyReport:
    """Copy datasets and results; each is verified on arrival.

    ``on_progress`` is told how many objects are done, and how many there are. Raises `StoreRefused`
    and `StoreUnavailable` if the target can't be used at all.
    """
    if isinstance(target, Remote):
        target.examine()
    everything = [info for prefix in PREFIXES for info in source.list(prefix)]
    is_manifest = [info.key.endswith(DATASET_MANIFEST) for info in everything]
    last = [info for info, manifest in zip(everything, is_manifest, strict=True) if manifest]
    first = [info for info, manifest in zip(everything, is_manifest, strict=True) if not manifest]
    copied = copied_bytes = there = done = 0
    problems: list[str] = []

    def one(info: ObjectInfo) -> str:
        return _copy(source, target, info)

    for group in (first, last):
        for start in range(0, len(group), _PIECE):
            piece = group[start : start + _PIECE]
            outcomes = in_parallel(piece, one, concurrency=concurrency)
            for info, outcome in outcomes.done:
                copied += outcome == "copied"
                copied_bytes += info.size_bytes if outcome == "copied" else 0
                there += outcome == "there"
                if outcome == "differs":
                    problems.append(f"{info.key}: another object has this key already")
            for info, error in outcomes.failed:
                problems.append(f"{info.key}: {_first_line(error)}")
            done += len(piece)
            if on_progress:
                on_progress(done, len(everything))
    return CopyReport(copied, copied_bytes, there, tuple(problems))


def _copy(source: LocalStore, target: ObjectStore, info: ObjectInfo) -> str:
    try:
        found = target.head(info.key)
    except NotFound:
        target.put_file(info.key, source.path_of(info.key))
        return "copied"
    is_same = found.size_bytes == info.size_bytes and (
        info.size_bytes > _COMPARED_BYTES or target.get(info.key) == source.get(info.key)
    )
    return "there" if is_same else "differs"


def _first_line(error: Exception) -> str:
    text = error.message if isinstance(error, LoradashError) else str(error)
    return (text or type(error).__name__).partition("\n")[0]
