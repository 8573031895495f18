"""Files of stored adapters on this machine: where they were trained, or fetched from the store.

A fetched file lies under its own hash, so what a path holds never changes: two generations may
fetch the same adapter at once, and one that is running keeps the version that it began with.
"""

import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from loradash.errors import InvalidAdapter, NotFound
from loradash.paths import local_path
from loradash.registry.registry import StoredArtifact
from loradash.runtime.results import fetch, sha256_of
from loradash.runtime.workspace import Workspace
from loradash.storage.store import ObjectStore

MAX_REMEMBERED = 256
_SUFFIX = ".safetensors"
_SETTLED_NS = 2 * 10**9


class AdapterFiles:
    """Finds and fetches files of adapters; thread-safe."""

    def __init__(
        self,
        store: ObjectStore,
        workspace: Workspace,
        adapters_in: Callable[[Path], Iterable[Path]],
    ) -> None:
        """``adapters_in`` returns which files of a training's folder are finished adapters."""
        self._adapters_in = adapters_in
        self._store = store
        self._workspace = workspace
        self._hashes = FileHashes()

    def path_of(self, entry: StoredArtifact) -> Path:
        """Return a file with exactly what was stored, fetched if there is none.

        Raises `ResultsNotStored` if the object isn't what was stored, and what the store raises.
        """
        here = self._adapters_in(self._workspace.training(entry.process_id))
        trained = [path for path in here if path.name == entry.name]
        folder = self._workspace.lora(entry.process_id) / entry.sha256[:16]
        fetched = folder / PurePosixPath(entry.name).name
        for path in (*trained, fetched):
            if self._hashes.of(path, entry.size_bytes) == entry.sha256:
                return path
        self._fetch(entry, fetched)
        return fetched

    def _fetch(self, entry: StoredArtifact, path: Path) -> None:
        """Fetch beside the place where it belongs; it appears there verified, by a rename."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent.parent) as folder:
            partial = Path(folder) / path.name
            fetch(self._store, entry, partial)
            partial.replace(path)


def adapter_file(reference: str, what: str = "adapter") -> Path:
    """Return the file that a path names. Raises `InvalidAdapter` and `NotFound`."""
    path = local_path(reference, InvalidAdapter, what).absolute()
    shown = f"{what} {reference[:200]}"
    if path.is_dir():
        raise InvalidAdapter(f"{shown} is a folder", remedy="Give the .safetensors file in it.")
    if not path.is_file():
        raise NotFound(f"{shown} doesn't exist", remedy=_instead_of(path))
    if path.suffix.lower() != _SUFFIX:
        raise InvalidAdapter(
            f"{shown}: only .safetensors files are read",
            remedy="Other formats can run code when they are read; convert the file.",
        )
    return path


def _instead_of(path: Path) -> str:
    """What to give instead of a file that isn't there."""
    before, colon, weight = path.name.rpartition(":")
    if colon and path.with_name(before).is_file():
        return f"Give {before} as the path, and {weight!r} as its weight."
    if path.name and path.with_name(f"{path.name}{_SUFFIX}").is_file():
        return f"Give it with its ending: {path.name}{_SUFFIX}."
    return "Give a .safetensors file, or the id or name of a training."


class _Facts(NamedTuple):
    """What changes when a file is written to or replaced."""

    size_bytes: int
    modified_ns: int
    inode: int


class FileHashes:
    """Hashes of files, remembered as long as the files look the same; thread-safe.

    Adapters can have hundreds of megabytes and are asked for with each generation.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[Path, tuple[_Facts, str]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, path: Path, size_bytes: int) -> str:
        """Return a file's SHA-256 in hex; '' if there is none of this size."""
        try:
            facts = _facts(path)
            if facts.size_bytes != size_bytes:
                return ""
            with self._lock:
                known = self._known.get(path)
            if known and known[0] == facts:
                return known[1]
            digest = sha256_of(path)
            self._remember(path, facts, digest)  # if it was written to meanwhile, its facts tell
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return ""
        return digest

    def _remember(self, path: Path, facts: _Facts, digest: str) -> None:
        """Remember a hash, unless the next write could still come within the clock's same tick."""
        if time.time_ns() - facts.modified_ns < _SETTLED_NS:
            return
        with self._lock:
            self._known[path] = (facts, digest)
            self._known.move_to_end(path)
            if len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)


def _facts(path: Path) -> _Facts:
    facts = path.stat()
    return _Facts(facts.st_size, facts.st_mtime_ns, facts.st_ino)
