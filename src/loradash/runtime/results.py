"""What a process produces, brought into the object store while it is produced.

A thread stores what is handed in, so that a slow store doesn't hold up the engine's events. A file
is listed, in the registry and in the manifest, only once it is stored; a checkpoint only once all
of its files are.

Between looking at the lease and the end of a put lies any pause: the owner may be frozen and
another one may have taken over. So no two puts have the same key: it holds a mark of the attempt's
own, and a number where an attempt puts the same file twice. What is listed can't be replaced by
anybody then, and only the owner of the lease lists. What nobody lists is swept: see
`loradash.runtime.leftovers`.
"""

import hashlib
import queue
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import structlog

from loradash.domain.artifacts import ARTIFACTS, ArtifactKind
from loradash.domain.process import ProcessRecord
from loradash.domain.sizes import counted
from loradash.errors import (
    DiskFull,
    LeaseLost,
    LoradashError,
    NotFound,
    ResultsNotStored,
    TransferFailed,
)
from loradash.registry.registry import ProcessRegistry, StoredArtifact
from loradash.runtime.leftovers import leftovers
from loradash.runtime.manifests import write_manifest
from loradash.runtime.patience import AWAY
from loradash.runtime.submitted_config import config_key
from loradash.storage import keys
from loradash.storage.disk import as_disk_full
from loradash.storage.existence import ExistenceCache
from loradash.storage.store import ObjectStore
from loradash.storage.transfer import in_parallel

log = structlog.get_logger("loradash.results")

_TRY_AGAIN_S = 5.0


@dataclass(frozen=True)
class NewArtifact:
    """A file that is complete on disk."""

    kind: ArtifactKind
    path: Path
    name: str
    step: int | None = None
    index: int | None = None

    @property
    def identity(self) -> "_Identity":
        """What of a process's results it is: of these one is listed."""
        return self.kind, self.name


_Identity = tuple[str, str]


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
        self._sent: dict[_Identity, StoredArtifact] = {}  # perhaps not listed yet
        self._puts: Counter[_Identity] = Counter()
        self._unlisted: set[str] = set()  # keys under which something may be that isn't listed
        self._storing = threading.RLock()
        self._mark = ""
        self._config_key = ""
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
        with self._storing:
            self._list(self._stored(artifacts))

    def tidy_up(self) -> None:
        """Put right what an earlier owner left halfway: unlisted objects, an old manifest.

        Call it before anything is stored. What can't be put right now does no harm; raises
        `RegistryUnavailable` and `StoreUnavailable`, as it may then be called again.
        """
        try:
            self._own()
            if self._registry.artifacts(self._process_id):
                self.write_manifest()
            # In this order: what was there while the lease was ours isn't a later owner's.
            stored = list(self._store.list(keys.results(self._process_id)))
            record = self._own()
            listed = {entry.key for entry in self._registry.artifacts(self._process_id)}
            self._delete(leftovers(record, listed, stored, old_layout=True))
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
        try:
            self._try_failed()
        except LeaseLost:
            self._drop_unlisted()
            raise
        errors = [error for _, error in self._failed]
        for error in errors:
            if isinstance(error, AWAY):
                raise error
        if errors:
            problems = [(str(error) or type(error).__name__).splitlines()[0] for error in errors]
            is_full = any(as_disk_full(error) for error in errors)
            raise (DiskFull if is_full else ResultsNotStored)(
                f"{counted(len(problems), 'result')} could not be stored", problems=problems,
                remedy="Free space, then resume the process." if is_full
                else "Make room or repair the object store, then resume the process.",
            )  # fmt: skip
        self._drop_unlisted()

    def close(self) -> None:
        """Work off what is queued and end the thread."""
        self._inbox.put(None)
        self._thread.join()

    def write_manifest(self) -> None:
        """Write the list of all stored files."""
        with self._manifest_lock:  # an older list must not replace a newer one
            self._mark or self._own()
            listed = self._registry.artifacts(self._process_id)
            write_manifest(self._store, self._process_id, self._mark, listed)

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
        """Store files that aren't there yet."""
        self._own()
        listed = self._listed()

        def store(artifact: NewArtifact) -> StoredArtifact:
            before = listed.get(artifact.identity)
            return self._store_one(artifact, before, self._sent.get(artifact.identity))

        if len(artifacts) == 1:
            return [store(artifacts[0])]
        done = in_parallel(artifacts, store, tries=1)
        return list(done.or_raise("results", lambda artifact: artifact.name))

    def _list(self, stored: list[StoredArtifact]) -> None:
        """List all of these, in place of those that earlier attempts have listed, at once."""
        listed = self._listed()
        new = [entry for entry in stored if listed.get((entry.kind, entry.name)) != entry]
        before = [listed.get((entry.kind, entry.name)) for entry in new]
        kept = {entry.key for entry in new}
        replaced = [entry.key for entry in before if entry and entry.key not in kept]
        if new:
            self._registry.put_artifacts(self._token, new, replaces=replaced)
            self._unlisted.difference_update(entry.key for entry in new)
        self.write_manifest()
        self._delete(replaced)

    def _listed(self) -> dict[_Identity, StoredArtifact]:
        entries = self._registry.artifacts(self._process_id)
        return {(entry.kind, entry.name): entry for entry in entries}

    def _own(self) -> ProcessRecord:
        """Return the record. Raises `LeaseLost` if it isn't ours any more."""
        record = self._registry.get(self._process_id).owned_by(self._token)
        self._mark = keys.attempt_mark(record.attempt_count, self._token)
        self._config_key = config_key(record)
        return record

    def _store_one(self, artifact: NewArtifact, *before: StoredArtifact | None) -> StoredArtifact:
        """Store a file and see that it arrived; what is stored already isn't sent again."""
        digest = sha256_of(artifact.path)
        size = artifact.path.stat().st_size
        for one in before:
            if one and (one.sha256, one.size_bytes) == (digest, size):
                there = self._known.find(one.key)
                if there and there.size_bytes == size:
                    return one
        if artifact.kind == "config" and self._is_submitted(artifact):
            return self._note(artifact, self._config_key, digest, size)
        key = self._new_key(artifact)
        info = self._store.put_file(key, artifact.path)
        if info.size_bytes != size:
            raise ResultsNotStored(
                f"{key}: {info.size_bytes} of {size} bytes arrived", remedy="Try again."
            )
        self._known.note(info)
        return self._note(artifact, key, digest, size)

    def _note(
        self, artifact: NewArtifact, key: str, digest: str, size_bytes: int
    ) -> StoredArtifact:
        self._sent[artifact.identity] = StoredArtifact(
            process_id=self._process_id, key=key, kind=artifact.kind, name=artifact.name,
            size_bytes=size_bytes, sha256=digest, created_at=datetime.now(UTC), step=artifact.step,
            index=artifact.index,
        )  # fmt: skip
        return self._sent[artifact.identity]

    def _is_submitted(self, artifact: NewArtifact) -> bool:
        """Whether the config is the object that was submitted, which nobody writes again."""
        try:
            return self._store.get(self._config_key) == artifact.path.read_bytes()
        except NotFound:
            return False

    def _new_key(self, artifact: NewArtifact) -> str:
        """A key that was never used: what was put before may be listed, or may still arrive."""
        self._puts[artifact.identity] += 1
        count = self._puts[artifact.identity]
        mark = self._mark if count == 1 else f"{self._mark}.{count}"
        key = keys.result(self._process_id, ARTIFACTS[artifact.kind].folder, mark, artifact.name)
        self._unlisted.add(key)
        return key

    def _drop_unlisted(self) -> None:
        """Delete what was put and is listed nowhere, once nothing is under way any more."""
        try:
            if self._unlisted:  # an answer of the registry may have got lost
                listed = {entry.key for entry in self._registry.artifacts(self._process_id)}
                self._delete(sorted(self._unlisted - listed))
        except (LoradashError, OSError) as error:  # it's swept later
            log.warning("unlisted_not_deleted", process_id=self._process_id, error=str(error))

    def _checkpoint(self, folder: Path, step: int) -> None:
        with self._storing:
            self._keep_checkpoint(folder, step)

    def _keep_checkpoint(self, folder: Path, step: int) -> None:
        artifacts = [
            NewArtifact(
                "checkpoint", path, f"{folder.name}/{path.relative_to(folder).as_posix()}", step
            )
            for path in sorted(folder.rglob("*"))
            if path.is_file()
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
            for artifact in artifacts:
                self._sent.pop(artifact.identity, None)
            part = f"/{folder.name}/"
            self._delete(sorted(key for key in self._unlisted if part in key))
        self._drop_pruned(folder.parent)

    def _drop_pruned(self, folder: Path) -> None:
        kept = {path.name for path in folder.iterdir()}
        old = [
            entry.key
            for entry in self._registry.artifacts(self._process_id, ["checkpoint"])
            if entry.name.partition("/")[0] not in kept
        ]
        if old:
            self._registry.drop_artifacts(
                self._process_id, old, guard=lambda record: record.owned_by(self._token)
            )
            self.write_manifest()
            self._delete(old)

    def _delete(self, gone: Sequence[str]) -> None:
        for key in gone:
            self._known.forget(key)
        if gone:
            self._store.delete_many(gone)
            self._unlisted.difference_update(gone)


def restore_checkpoints(
    registry: ProcessRegistry, store: ObjectStore, process_id: str, folder: Path, count: int = 2
) -> int:
    """See that the newest stored checkpoints are on disk, whole; return how many were fetched.

    One that is there but isn't what was stored is damaged, or of an attempt that another one has
    overtaken, and is replaced. Each appears by a rename after the hashes of all of its files were
    compared; of one that isn't whole in the store, the next older one takes the place.
    """
    by_name: dict[str, list[StoredArtifact]] = {}
    for entry in registry.artifacts(process_id, ["checkpoint"]):
        by_name.setdefault(entry.name.partition("/")[0], []).append(entry)
    whole = fetched = 0
    for name in sorted(by_name, key=lambda one: (by_name[one][0].step or 0, one), reverse=True):
        if whole == count:
            break
        target = folder / name
        if _is_whole(target, by_name[name]):
            whole += 1
            continue
        partial = folder / f".{name}.restored"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            for entry in by_name[name]:
                path = _place(partial, entry)
                path.parent.mkdir(parents=True, exist_ok=True)
                fetch(store, entry, path)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            whole += 1
            fetched += 1
        except (ResultsNotStored, NotFound) as error:
            log.warning("checkpoint_not_restored", process_id=process_id, error=str(error))
            shutil.rmtree(partial, ignore_errors=True)
    return fetched


def _place(folder: Path, entry: StoredArtifact) -> Path:
    """Where a file of a checkpoint belongs in its folder. Raises `ResultsNotStored`."""
    *_, name = entry.name.partition("/")
    if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
        raise ResultsNotStored(f"{entry.name[:200]!r} isn't a file of a checkpoint")
    return folder / name


def _is_whole(folder: Path, entries: Sequence[StoredArtifact]) -> bool:
    """Whether a checkpoint's files on disk are what was stored."""
    paths = {_place(folder, entry): entry for entry in entries}
    return all(
        path.is_file() and path.stat().st_size == entry.size_bytes for path, entry in paths.items()
    ) and all(sha256_of(path) == entry.sha256 for path, entry in paths.items())


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
