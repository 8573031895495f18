"""Stored results as one zip file that is made while it is sent.

Its size is known beforehand, and no more of it is in memory than one piece of one file. Nothing is
compressed: images and adapters don't get smaller.
"""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from zipstream import ZipStream  # type: ignore[import-untyped]

from loradash.registry.registry import StoredArtifact
from loradash.services.result_content import content
from loradash.storage.store import ObjectStore


class ResultZip:
    """A zip file of ``<process_id>/<file>``; it can be read once."""

    def __init__(self, store: ObjectStore, entries: Sequence[StoredArtifact]) -> None:
        self._zip = ZipStream(sized=True)
        for name, entry in zip(zip_names(entries), entries, strict=True):
            self._zip.add(content(store, entry), name, size=entry.size_bytes)

    @property
    def size_bytes(self) -> int:
        """How many bytes all pieces have together."""
        return len(self._zip)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the file in pieces. Raises what `content` raises."""
        yield from self._zip


def zip_names(entries: Sequence[StoredArtifact]) -> list[str]:
    """Return the entries' names in a zip file, different ones also where case doesn't count."""
    names: list[str] = []
    taken: set[str] = set()
    for entry in entries:
        path = PurePosixPath(entry.process_id) / PurePosixPath(entry.name).name
        name, number = str(path), 1
        while name.casefold() in taken:
            number += 1
            name = str(path.with_name(f"{path.stem} ({number}){path.suffix}"))
        taken.add(name.casefold())
        names.append(name)
    return names
