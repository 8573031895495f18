"""An owner is frozen, another one takes over and finishes, and then the first one goes on.

``python -m tests.chaos.frozen --rounds 200`` does that at random moments, on a folder and on both
S3 servers, without torch: the owners are the real ones, their engine is played by a thread. What is
promised: record, list and all that is listed stay byte by byte, and what the late owner has put is
gone after a sweep. Exit code 0 only if that held.
"""

import argparse
import hashlib
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from loradash.domain import process as changes
from loradash.domain.events import CheckpointWritten, Done, SampleWritten, StepDone, Terminal
from loradash.domain.ids import new_process_id
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import ConflictingState
from loradash.registry.memory import MemoryRegistry
from loradash.registry.objects import ObjectRegistry
from loradash.runtime.attempt import Attempt, Timing
from loradash.runtime.manifests import latest_manifest, read_manifest, stored_manifests
from loradash.runtime.results import NewArtifact
from loradash.runtime.supervisor import StopRequest
from loradash.services.processes.running import Runner
from loradash.services.processes.submission import submit
from loradash.services.system.sweeper import Sweeper
from loradash.storage import keys
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore
from loradash.storage.s3.store import S3Store
from tests.contract.buckets import config_of
from tests.servers.juicefs import JuiceServer
from tests.servers.seaweedfs import SeaweedServer

TIMING = Timing(lease_s=600, cancel_grace_s=5, max_attempts=1000)
WRITES = frozenset(
    {"put", "put_file", "put_if", "delete", "delete_many"}
    | {"change", "put_artifacts", "drop_artifacts", "append_log", "append_metrics"}
)
_PATIENCE_S = 120.0


class Ice:
    """Freezes everything that goes through it before its n-th write, until it is thawed."""

    def __init__(self, write: int) -> None:
        self.is_frozen = threading.Event()
        self.thawed = threading.Event()
        self.writes = 0
        self._write = write
        self._lock = threading.Lock()

    def over(self, target: Any) -> "Frozen":
        return Frozen(target, self)

    def go_through(self, name: str) -> None:
        with self._lock:
            self.writes += name in WRITES
            if name in WRITES and self.writes == self._write:
                self.is_frozen.set()
        if self.is_frozen.is_set():
            assert self.thawed.wait(_PATIENCE_S)


class Frozen:
    """A store or a registry behind the ice."""

    def __init__(self, target: Any, ice: Ice) -> None:
        self._target = target
        self._ice = ice

    @property
    def capabilities(self) -> Any:
        return self._target.capabilities

    def put_if(self, key: str, data: bytes, etag: str | None) -> Any:
        """By name, since a store without it isn't conditional."""
        self._ice.go_through("put_if")
        return self._target.put_if(key, data, etag)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._ice.go_through(name)
            return found(*args, **kwargs)

        return call


class PlayedTraining:
    """What a training hands over, with other bytes for each owner, as on a GPU."""

    def __init__(self, folder: Path, owner: str) -> None:
        self._folder = folder
        self._owner = owner

    def work(self, attempt: Attempt) -> Terminal:
        keeper = attempt.keeper
        keeper.now([self._file("config", "config.yaml", b"seed: 1"), self._file("job", "job.json")])
        for step in (1, 2, 3):
            attempt.event(StepDone(step=step, total_steps=3, loss=0.5, learning_rate=0.1))
            folder = self._folder / f"checkpoints/step-{step:09d}"
            if step == 3:  # two are kept
                keeper.flush()
                old = self._folder / "checkpoints/step-000000001"
                for path in old.iterdir():
                    path.unlink()
                old.rmdir()
            folder.mkdir(parents=True)
            for part in ("adapter.safetensors", "state.safetensors"):
                (folder / part).write_bytes(self._bytes(f"{step} {part}"))
            attempt.event(CheckpointWritten(step=step, path=str(folder), size_bytes=9))
            sample = self._file("sample", f"{step}-0.png")
            attempt.event(
                SampleWritten(step=step, index=0, path=str(sample.path), prompt="x", seed=1)
            )
        keeper.flush()
        keeper.now([self._file("lora", "cat.safetensors"), self._file("log", "log.txt")])
        return Done(step=3)

    def _file(self, kind: Any, name: str, data: bytes = b"") -> NewArtifact:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data or self._bytes(name))
        return NewArtifact(kind, path, name)

    def _bytes(self, what: str) -> bytes:
        return f"{what} by {self._owner}".encode()


class Place(NamedTuple):
    """A store that several programs see, and how each gets its registry."""

    name: str
    store: Any
    registry: Callable[[Any], Any]


class Round(NamedTuple):
    """What came of one freezing."""

    was_frozen: bool
    was_taken_over: bool
    late_objects: int
    problems: tuple[str, ...]


def play(place: Place, write: int, folder: Path, *, thaw_after_s: float | None = None) -> Round:
    """Freeze an owner before its n-th write; thaw it when the other is done, or so much later."""
    ice = Ice(write)
    registry = place.registry(place.store)
    if isinstance(registry, ObjectRegistry):
        cold_store = ice.over(place.store)
        cold_registry = place.registry(cold_store)
    else:
        cold_store, cold_registry = ice.over(place.store), ice.over(registry)
    now = datetime.now(UTC)
    record = ProcessRecord(
        id=new_process_id("training"), kind="training", name="cat", created_at=now, enqueued_at=now,
        updated_at=now,
    )  # fmt: skip
    record = submit(registry, place.store, record, "seed: 1", may_exist=False)

    def run(store: Any, records: Any, owner: str) -> None:
        work = PlayedTraining(folder / record.id / owner, owner)
        runner = Runner(records, store, {"training": work, "generation": work}, TIMING)
        with suppress(ConflictingState):  # frozen before it took it, and it has ended meanwhile
            runner.run_here(record.id, lambda _: None, StopRequest())

    first = threading.Thread(target=run, args=(cold_store, cold_registry, "first"), daemon=True)
    first.start()
    while first.is_alive() and not ice.is_frozen.wait(0.01):
        pass
    if not ice.is_frozen.is_set():
        return Round(False, False, 0, tuple(_broken(place, registry, record.id)))
    after = registry.get(record.id)
    if after.status is not Status.COMPLETED:
        if after.status is Status.RUNNING:
            registry.change(record.id, _lost)
        timer = threading.Timer(thaw_after_s or 0, ice.thawed.set)
        if thaw_after_s is not None:
            timer.start()
        run(place.store, registry, "second")
        if thaw_after_s is not None:  # the first may even be the one that took it
            ice.thawed.set()
            first.join(_PATIENCE_S)
    before = _everything(place, registry, record.id)
    ice.thawed.set()
    first.join(_PATIENCE_S)
    assert not first.is_alive(), "the first owner doesn't end"
    problems = _changes(before, _everything(place, registry, record.id))
    late = len(_stored(place, record.id) - _named(place, registry, record.id))
    Sweeper(registry, place.store).sweep_process(record.id)
    problems += _changes(before, _everything(place, registry, record.id))
    problems += _broken(place, registry, record.id)
    return Round(True, after.status is not Status.COMPLETED, late, tuple(problems))


def _lost(record: ProcessRecord) -> ProcessRecord:
    now = datetime.now(UTC)
    return changes.expired(record, now=now, max_attempts=1000, owner_is_gone=True)


def _everything(place: Place, registry: Any, process_id: str) -> dict[str, Any]:
    """The record, and all that counts of it, byte by byte."""
    found: dict[str, Any] = {
        "record": registry.get(process_id),
        "artifacts": registry.artifacts(process_id),
        "metrics": registry.metrics(process_id),
        "log": registry.log(process_id),
        "manifest": sorted(one.key for one in read_manifest(place.store, process_id)),
    }
    for entry in found["artifacts"]:
        data = place.store.get(entry.key)
        found[entry.key] = (place.store.head(entry.key).etag, data)
    return found


def _changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    names = sorted(before.keys() | after.keys())
    return [f"{name} changed" for name in names if before.get(name) != after.get(name)]


def _stored(place: Place, process_id: str) -> set[str]:
    return {info.key for info in place.store.list(keys.results(process_id))}


def _named(place: Place, registry: Any, process_id: str) -> set[str]:
    latest = latest_manifest(stored_manifests(place.store, process_id))
    listed = {entry.key for entry in registry.artifacts(process_id)}
    return listed | {registry.get(process_id).config_key, latest.key if latest else ""} - {""}


def _broken(place: Place, registry: Any, process_id: str) -> list[str]:
    """What isn't as it should be once all have ended and the store was swept."""
    found = []
    record = registry.get(process_id)
    if record.status is not Status.COMPLETED:
        found.append(f"the process is {record.status}: {record.error}")
    artifacts = registry.artifacts(process_id)
    names = Counter((entry.kind, entry.name) for entry in artifacts)
    found += [f"{name} is listed {count} times" for name, count in names.items() if count > 1]
    if len(artifacts) != 11:
        found.append(f"{len(artifacts)} results are listed")
    for entry in artifacts:
        data = place.store.get(entry.key)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            found.append(f"{entry.key} isn't what was listed")
    listed = sorted(entry.key for entry in artifacts)
    if sorted(one.key for one in read_manifest(place.store, process_id)) != listed:
        found.append("the manifest lists something else")
    unnamed = _stored(place, process_id) - _named(place, registry, process_id)
    found += [f"{key} is listed nowhere" for key in sorted(unnamed)]
    return found


def unnamed_rows(place: Place) -> list[str]:
    """Rows that no record names, after a sweep."""
    registry = place.registry(place.store)
    Sweeper(registry, place.store).sweep()
    named: set[str] = set()
    page = registry.page(limit=1000)
    for record in page.records:
        named |= registry._load(record.id).parts.keys
    return [info.key for info in place.store.list("process-data") if info.key not in named]


def in_memory() -> Place:
    """A registry and a store of one program."""
    registry = MemoryRegistry()
    return Place("memory", MemoryStore(), lambda _: registry)


def folder_place(root: Path, *, shared: bool) -> Place:
    """A folder with the records in it; a shared one, such as a volume, writes on no condition."""
    store = LocalStore(root, shared=shared)
    name = "volume" if shared else "folder"
    return Place(name, store, lambda one: ObjectRegistry(one, settle_s=1.0))


@contextmanager
def places(root: Path) -> Iterator[list[Place]]:
    """A folder, and a bucket of each S3 server."""
    with ExitStack() as stack:
        found = [folder_place(root / "folder", shared=False)]
        for server in (SeaweedServer(), JuiceServer()):
            stack.enter_context(server)
            store = S3Store(config_of(server))
            stack.callback(store.close)
            found.append(
                Place(server.program, store, lambda one: ObjectRegistry(one, settle_s=1.0))
            )
        yield found


def rounds(
    place: Place, count: int, seed: int, folder: Path, at_once: int, most: int = 0
) -> list[Round]:
    """Play at random moments; every third time the first one wakes while the second still works."""
    chance = random.Random(seed)
    most = most or _writes_of_a_round(place, folder)
    wanted = [
        (chance.randint(1, most), chance.uniform(0, 1.0) if n % 3 == 2 else None)
        for n in range(count)
    ]
    with ThreadPoolExecutor(at_once) as threads:
        return list(
            threads.map(lambda one: play(place, one[0], folder, thaw_after_s=one[1]), wanted)
        )


def _writes_of_a_round(place: Place, folder: Path) -> int:
    """How many writes an owner does if nobody freezes it: the last ones may not be reached."""
    write = 64
    while write > 1 and not play(place, write, folder).was_frozen:
        write = write * 3 // 4
    return write


def main() -> int:
    """Play, and report."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.frozen", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="on each store")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=8)
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as name, places(Path(name)) as found:
        for place in found:
            began = time.monotonic()
            played = rounds(
                place, arguments.rounds, arguments.seed, Path(name) / "work", arguments.at_once
            )
            problems = [problem for one in played for problem in one.problems]
            problems += [f"{key} is named nowhere" for key in unnamed_rows(place)]
            failed = failed or bool(problems)
            print(
                f"{place.name}: {len(played)} rounds in {time.monotonic() - began:.0f} s, "
                f"{sum(one.was_frozen for one in played)} frozen, "
                f"{sum(one.was_taken_over for one in played)} taken over; objects of late owners "
                f"before the sweep: {sum(one.late_objects for one in played)}; "
                f"broken promises: {len(problems)}",
                flush=True,
            )
            for problem in problems[:20]:
                print(f"  {problem}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
