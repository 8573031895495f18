"""What a process produces, brought into the object store while it is produced.

A thread stores what is handed in, so that a slow store doesn't hold up the engine's events. A file
is listed, in the registry and in the manifest, only once it is stored; a checkpoint only once all
of its files are.
"""

import hashlib
import json
import queue
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog

from loradash.errors import (
    DiskFull,
    LeaseLost,
    LoradashError,
    NotFound,
    ResultsNotStored,
    TransferFailed,
)
from loradash.registry.registry import ArtifactKind, ProcessRegistry, StoredArtifact
from loradash.runtime.patience import AWAY
from loradash.storage import keys
from loradash.storage.disk import as_disk_full
from loradash.storage.existence import ExistenceCache
from loradash.storage.store import ObjectStore
from loradash.storage.transfer import in_parallel

log = structlog.get_logger("loradash.results")

_TRY_AGAIN_S = 5.0

_FOLDERS: dict[ArtifactKind, keys.ResultKind] = {
    "lora": "lora", "sample": "samples", "image": "images", "checkpoint": "checkpoints",
    "log": "logs", "metrics": "logs",
}  # fmt: skip


@dataclass(frozen=True)
class NewArtifact:
    """A file that is complete on disk."""

    kind: ArtifactKind
    path: Path
    name: str
    step: int | None = None
    index: int | None = None


class ResultKeeper:
    """Stores one process's artifacts on behalf of the owner of its lease.

    If the object store or the registry is away, what came meanwhile waits here, and arrives once
    they are back.
    """

    def __init__(
        self, registry: ProcessRegistry, store: ObjectStore, process_id: str, token: str
    ) -> None:
        self._registry = registry
        self._store = store
        self._known = ExistenceCache(store)
        self._is_away = False
        self._sent: dict[str, StoredArtifact] = {}  # perhaps not listed yet
        self._process_id = process_id
        self._token = token
        self._inbox: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._failed: list[tuple[Callable[[], None], Exception]] = []
        self._manifest_lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=f"results-{process_id}")
        self._thread.daemon = True
        self._thread.start()

    def later(self, artifact: NewArtifact) -> None:
        """Store a file in the background."""
        self._inbox.put(lambda: self.now([artifact]))

    def checkpoint_later(self, folder: Path, step: int) -> None:
        """Store a checkpoint's folder in the background; older ones go as they go on disk."""
        self._inbox.put(lambda: self._checkpoint(folder, step))

    def now(self, artifacts: list[NewArtifact]) -> None:
        """Store files, then list them. Raises what the store raises, and `LeaseLost`."""
        self._list(self._stored(artifacts))

    def tidy_up(self) -> None:
        """Put right what an earlier owner left halfway: unlisted objects, an old manifest.

        Call it before anything is stored. What can't be put right now does no harm; raises
        `RegistryUnavailable` and `StoreUnavailable`, as it may then be called again.
        """
        expected = {keys.result_config(self._process_id), keys.manifest(self._process_id)}
        try:
            expected.add(self._registry.get(self._process_id).owned_by(self._token).config_key)
            stored = [one.key for one in self._store.list(keys.results(self._process_id))]
            listed = {entry.key for entry in self._registry.artifacts(self._process_id)}
            self._delete([key for key in stored if key not in listed | expected])
            if listed:
                self.write_manifest()
        except AWAY:
            raise
        except (LoradashError, OSError) as error:
            log.warning("not_tidied_up", process_id=self._process_id, error=str(error))

    def flush(self) -> None:
        """Wait until everything that was handed in so far has been tried, what failed once more.

        Raises `StoreUnavailable` or `RegistryUnavailable` if something still waits for them,
        and `DiskFull`.
        """
        tried = threading.Event()

        def try_again() -> None:
            try:
                self._try_failed()
            finally:
                tried.set()

        self._inbox.put(try_again)
        while not tried.wait(0.1):
            if not self._thread.is_alive():
                return
        for _, error in list(self._failed):
            if isinstance(error, AWAY):
                raise error
        for _, error in list(self._failed):
            if full := as_disk_full(error, "Free space, then resume the process."):
                raise full from error

    def finish(self) -> None:
        """Wait until everything is stored, trying once more what failed.

        Raises `ResultsNotStored` or `DiskFull` for what still can't be stored, and `LeaseLost`;
        or, since it may then be called again, `RegistryUnavailable` and `StoreUnavailable`.
        """
        self.close()
        self._try_failed()
        errors = [error for _, error in self._failed]
        for error in errors:
            if isinstance(error, AWAY):
                raise error
        if errors:
            problems = [(str(error) or type(error).__name__).splitlines()[0] for error in errors]
            is_full = any(as_disk_full(error) for error in errors)
            raise (DiskFull if is_full else ResultsNotStored)(
                f"{len(problems)} results could not be stored", problems=problems,
                remedy="Free space, then resume the process." if is_full
                else "Make room or repair the object store, then resume the process.",
            )  # fmt: skip

    def close(self) -> None:
        """Work off what is queued and end the thread."""
        self._inbox.put(None)
        self._thread.join()

    def write_manifest(self) -> None:
        """Write the list of all stored files."""
        with self._manifest_lock:  # an older list must not replace a newer one
            listed = self._registry.artifacts(self._process_id)
            write_manifest(self._store, self._process_id, listed)

    def _work(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except LeaseLost:
                log.info("results_refused", process_id=self._process_id, reason="lease lost")

    def _next(self) -> Callable[[], None] | None:
        """Return what to do now: what came in, or what failed because the store was away."""
        was_away = any(isinstance(error, AWAY) for _, error in self._failed)
        try:
            work = self._inbox.get(timeout=_TRY_AGAIN_S if was_away else None)
        except queue.Empty:
            return self._try_failed
        return None if work is None else lambda: self._try(work)

    def _try(self, work: Callable[[], None]) -> None:
        """Work; what fails is kept to be tried again. Raises `LeaseLost`."""
        try:
            work()
            self._is_away = False
        except LeaseLost:
            raise
        except AWAY as error:
            if not self._is_away:  # told once, and not every few seconds
                log.warning("results_wait", process_id=self._process_id, error=error.message)
            self._is_away = True
            self._failed.append((work, error))
        except (LoradashError, OSError) as error:
            log.warning("result_not_stored", process_id=self._process_id, error=str(error))
            self._failed.append((work, error))
        except Exception as error:
            log.exception("result_not_stored", process_id=self._process_id)
            self._failed.append((work, error))

    def _try_failed(self) -> None:
        """Try again what failed, until the store turns out to be away; then others come first."""
        failed, self._failed = self._failed, []
        for number, (work, _) in enumerate(failed, 1):
            self._try(work)
            if self._failed and isinstance(self._failed[-1][1], AWAY):
                self._failed = failed[number:] + self._failed
                return

    def _stored(self, artifacts: list[NewArtifact]) -> list[StoredArtifact]:
        """Store files. What somebody else has stored since he took the process over is his."""
        self._registry.get(self._process_id).owned_by(self._token)
        listed = {entry.key: entry for entry in self._registry.artifacts(self._process_id)}

        def store(artifact: NewArtifact) -> StoredArtifact:
            key = _key(self._process_id, artifact)
            return self._store_one(artifact, listed.get(key) or self._sent.get(key))

        if len(artifacts) == 1:
            return [store(artifacts[0])]
        done = in_parallel(artifacts, store, tries=1)
        return list(done.or_raise("results", lambda artifact: artifact.name))

    def _list(self, stored: list[StoredArtifact]) -> None:
        for entry in stored:
            self._registry.put_artifact(self._token, entry)
        self.write_manifest()

    def _store_one(self, artifact: NewArtifact, before: StoredArtifact | None) -> StoredArtifact:
        """Store a file and see that it arrived; what is stored already isn't sent again."""
        key = _key(self._process_id, artifact)
        digest = sha256_of(artifact.path)
        size = artifact.path.stat().st_size
        if before and (before.sha256, before.size_bytes) == (digest, size):
            there = self._known.find(key)
            if there and there.size_bytes == size:
                return before
        self._known.forget(key)
        info = self._store.put_file(key, artifact.path)
        if info.size_bytes != size:
            raise ResultsNotStored(
                f"{key}: {info.size_bytes} of {size} bytes arrived", remedy="Try again."
            )
        self._known.note(info)
        self._sent[key] = StoredArtifact(
            process_id=self._process_id, key=key, kind=artifact.kind, name=artifact.name,
            size_bytes=size, sha256=digest, created_at=datetime.now(UTC), step=artifact.step,
            index=artifact.index,
        )  # fmt: skip
        return self._sent[key]

    def _checkpoint(self, folder: Path, step: int) -> None:
        artifacts = [
            NewArtifact("checkpoint", path, f"{folder.name}/{path.name}", step)
            for path in sorted(folder.glob("*"))
        ]

        def whole() -> bool:
            return bool(artifacts) and all(artifact.path.is_file() for artifact in artifacts)

        stored: list[StoredArtifact] = []
        try:
            stored = self._stored(artifacts)
        except (OSError, TransferFailed, *AWAY):
            if whole():
                raise
        if whole():
            self._list(stored)
        else:  # newer checkpoints have taken its place meanwhile
            listed = {entry.key for entry in self._registry.artifacts(self._process_id)}
            sent = {_key(self._process_id, artifact) for artifact in artifacts}
            self._delete(sorted(sent - listed))
        self._drop_pruned(folder.parent)

    def _drop_pruned(self, folder: Path) -> None:
        kept = {path.name for path in folder.iterdir()}
        old = [
            entry.key
            for entry in self._registry.artifacts(self._process_id, ["checkpoint"])
            if entry.name.partition("/")[0] not in kept
        ]
        if old:
            self._registry.drop_artifacts(self._process_id, old)
            self.write_manifest()
            self._delete(old)

    def _delete(self, gone: Sequence[str]) -> None:
        for key in gone:
            self._known.forget(key)
            self._sent.pop(key, None)
        self._store.delete_many(gone)


def write_manifest(store: ObjectStore, process_id: str, listed: Sequence[StoredArtifact]) -> None:
    """Write a process's list of results, so that nothing must be found by listing."""
    manifest = {
        "process_id": process_id,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": [
            entry.model_dump(include={"key", "kind", "size_bytes", "sha256"}) for entry in listed
        ],
    }
    store.put(keys.manifest(process_id), json.dumps(manifest, indent=1).encode())


def read_manifest(store: ObjectStore, process_id: str) -> list[StoredArtifact]:
    """Return what a process's manifest lists, without a registry; nothing if there is none."""
    try:
        manifest = json.loads(store.get(keys.manifest(process_id)))
        return [
            StoredArtifact(
                **entry, process_id=process_id, name=entry["key"].rpartition("/")[2],
                created_at=datetime.fromisoformat(manifest["created_at"]),
            )
            for entry in manifest["files"]
        ]  # fmt: skip
    except NotFound:
        return []
    except (ValueError, LookupError, TypeError) as error:
        raise ResultsNotStored(
            f"the list of the results of {process_id} is damaged",
            remedy="Give the key of the result itself.",
        ) from error


def restore_checkpoints(
    registry: ProcessRegistry, store: ObjectStore, process_id: str, folder: Path, count: int = 2
) -> int:
    """Bring the newest stored checkpoints back to disk; return how many came whole.

    Each appears by a rename after the hashes of all of its files were compared.
    """
    by_name: dict[str, list[StoredArtifact]] = {}
    for entry in registry.artifacts(process_id, ["checkpoint"]):
        by_name.setdefault(entry.name.partition("/")[0], []).append(entry)
    restored = 0
    for name in sorted(by_name, reverse=True):
        if restored == count:
            break
        target = folder / name
        if target.exists():
            continue
        partial = folder / f".{name}.restored"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            for entry in by_name[name]:
                fetch(store, entry, partial / Path(entry.name).name)
            partial.rename(target)
            restored += 1
        except (ResultsNotStored, NotFound) as error:
            log.warning("checkpoint_not_restored", process_id=process_id, error=str(error))
            shutil.rmtree(partial, ignore_errors=True)
    return restored


def fetch(store: ObjectStore, entry: StoredArtifact, path: Path) -> None:
    """Bring one artifact to disk. Raises `ResultsNotStored` if it isn't what was stored."""
    store.get_file(entry.key, path)
    if path.stat().st_size != entry.size_bytes or sha256_of(path) != entry.sha256:
        path.unlink()
        raise ResultsNotStored(
            f"object {entry.key} isn't what was stored", remedy="Delete it and make it again."
        )


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _key(process_id: str, artifact: NewArtifact) -> str:
    if artifact.kind == "config":
        return keys.result_config(process_id)
    if artifact.kind == "job":
        return keys.result_job(process_id)
    return keys.result(process_id, _FOLDERS[artifact.kind], artifact.name)
