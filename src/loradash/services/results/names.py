"""What result files are called where they leave the store.

Many trainings carry one name, and the images of all generations do. Where two of one name stand
side by side, each gets the end of its process's id, so that they can be told apart.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

from loradash.registry.registry import StoredArtifact

_DIGITS = 6  # of the random part of an id


def plain_name(entry: StoredArtifact) -> str:
    """Return a file's own name."""
    return PurePosixPath(entry.name).name


def short_id(entry: StoredArtifact) -> str:
    """Return the end of the id of the process that a result belongs to."""
    return entry.process_id[-_DIGITS:]


def distinct_name(entry: StoredArtifact) -> str:
    """Return a file's name with the end of its process's id."""
    name = PurePosixPath(entry.name)
    return f"{name.stem}-{short_id(entry)}{name.suffix}"


def is_shared(entry: StoredArtifact, others: Sequence[StoredArtifact]) -> bool:
    """Whether a result of another process has the same name."""
    return any(
        one.process_id != entry.process_id and _folded(one) == _folded(entry) for one in others
    )


def file_names(entries: Sequence[StoredArtifact]) -> list[str]:
    """Return what files that stand side by side are called."""
    owners = Counter(name for name, _ in {(_folded(one), one.process_id) for one in entries})
    return [distinct_name(one) if owners[_folded(one)] > 1 else plain_name(one) for one in entries]


def _folded(entry: StoredArtifact) -> str:
    return plain_name(entry).casefold()
