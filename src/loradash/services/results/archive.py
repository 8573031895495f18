"""Stored results as one zip file of ``<process_id>/<file>``."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from loradash.registry.registry import StoredArtifact
from loradash.services.results.content import content
from loradash.services.results.pieces import ZipEntry, ZipPieces
from loradash.storage.store import ObjectStore


def result_zip(store: ObjectStore, entries: Sequence[StoredArtifact]) -> ZipPieces:
    """Return the zip file of these results."""
    return ZipPieces(
        ZipEntry(name, entry.size_bytes, content(store, entry))
        for name, entry in zip(zip_names(entries), entries, strict=True)
    )


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
