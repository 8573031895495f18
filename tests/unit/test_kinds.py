"""Kinds of work are one table: a new one needs an entry, a service, and an ability of an engine."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytest

from loradash.domain import process as changes
from loradash.domain.events import Done
from loradash.domain.ids import is_process_id, new_process_id
from loradash.domain.kinds import (
    GENERATION,
    GENERATION_LANE,
    KINDS,
    TRAINING_LANE,
    KindOfWork,
    kind_of_id,
    kind_started_by,
)
from loradash.domain.process import ProcessRecord, Status
from loradash.engines.catalogue import Engines
from loradash.executors.local import SWEEP_EVERY_S, LocalExecutor, MemoryNeeds
from loradash.protocol.requests import makes_process
from loradash.registry.memory import MemoryRegistry
from loradash.registry.objects import ObjectRegistry
from loradash.registry.registry import StoredArtifact
from loradash.registry.sql import SqlRegistry
from loradash.runtime.attempt import Timing
from loradash.runtime.gpu import Slot
from loradash.runtime.lease_watch import LeaseWatch
from loradash.runtime.results import NewArtifact
from loradash.services.processes.running import Runner
from loradash.services.results.retention import Retention
from loradash.services.system.sweeper import Sweeper
from loradash.storage.memory import MemoryStore
from tests.unit.waits import until
from tests.unit.world import TOKEN, World, adapter

CAPTION = replace(
    GENERATION,
    name="caption",
    id_prefix="cap",
    request_types=("caption",),
    folder="output/captions",
    uses_pipeline=False,
    main_artifact="log",
    doing="captioning",
)


@runtime_checkable
class WritesCaptions(Protocol):
    """The ability of an engine that the new kind of work needs."""

    def caption(self, image: Path) -> str: ...


class Captioner:
    """An engine with that ability."""

    def caption(self, image: Path) -> str:
        return f"a picture called {image.stem}"


class Captioning:
    """The new kind's service: what `Runner` needs to do its work."""

    def __init__(self, engine: WritesCaptions, folder: Path) -> None:
        self.engine = engine
        self.folder = folder
        self.goes_on = threading.Event()

    def work(self, attempt: Any) -> Done:
        attempt.show("generating", "captions")
        assert self.goes_on.wait(20)
        path = self.folder / "captions.txt"
        path.write_text(self.engine.caption(Path("red_cat.png")))
        attempt.keeper.now([NewArtifact("log", path, path.name)])
        return Done(time_s=time.time())


class Plenty:
    """A slot with memory for everything."""

    def free_mb(self, slot: Slot) -> float:
        return 10_000.0

    def total_mb(self, slot: Slot) -> float:
        return 10_000.0


class NoChildren:
    def end_orphans(self, grace_s: float) -> list[Any]:
        return []


def executor_of(
    world: World, runner: Runner, unload_pipeline: Callable[[str], None] = lambda name: None
) -> LocalExecutor:
    return LocalExecutor(
        world.registry, (Slot("cpu", None, {}),), Plenty(),
        MemoryNeeds(dict.fromkeys(KINDS, 100.0)), taking=runner.taking, run=runner.run,
        watch=LeaseWatch(30, look_every_s=SWEEP_EVERY_S), take_over=world.registry.get,
        unload_pipeline=unload_pipeline, children=NoChildren(),  # type: ignore[arg-type]
        lock_path=world.root / "server.lock", orphan_grace_s=1,
    )  # fmt: skip


@pytest.fixture
def caption(monkeypatch: pytest.MonkeyPatch) -> KindOfWork:
    monkeypatch.setitem(KINDS, "caption", CAPTION)
    return CAPTION


def waiting(priority: int = 0) -> ProcessRecord:
    now = datetime.now(UTC)
    return ProcessRecord(
        id=new_process_id("caption"), kind="caption", name="my cats", created_at=now,
        enqueued_at=now, updated_at=now, priority=priority, summary={"dataset": "cats"},
    )  # fmt: skip


def test_a_new_kind_of_work_needs_an_entry_a_service_and_an_ability(
    caption: KindOfWork, tmp_path: Path
) -> None:
    world = World(tmp_path)
    engine = Captioner()
    assert isinstance(engine, WritesCaptions)
    service = Captioning(engine, tmp_path)
    timing = Timing(lease_s=30, cancel_grace_s=1, max_attempts=3)
    runner = Runner(world.registry, world.store, {"caption": service}, timing)  # type: ignore[dict-item]
    executor = executor_of(world, runner)
    first, second = waiting(), waiting()
    for record in (first, second):
        world.registry.create(record)
    executor.start()
    try:
        until(lambda: world.registry.get(first.id).status is Status.RUNNING)
        lanes = {lane.name: lane.process_id for lane in executor.state().slots[0].lanes}
        assert lanes == {TRAINING_LANE.name: None, GENERATION_LANE.name: first.id}
        listed = world.ask("processes", kind="caption")["processes"]
        assert [(one["type"], one["status"]) for one in listed] == [
            ("caption", "pending"), ("caption", "running"),
        ]  # fmt: skip
        assert listed[0]["config"] == {"name": "my cats", "dataset": "cats"}
        assert world.ask("cancel", process_id=second.id)["process_status"] == "cancelled"
        service.goes_on.set()
        until(lambda: world.registry.get(first.id).status.is_end)
    finally:
        service.goes_on.set()
        executor.stop(5)
    assert world.registry.get(first.id).status is Status.COMPLETED
    shown = world.ask("process_status", process_id=first.id)
    assert [(one["kind"], one["name"]) for one in shown["artifacts"]] == [("log", "captions.txt")]
    reply = world.ask("download", process_id=first.id)
    assert reply["filename"].endswith("captions.txt"), reply
    assert world.ask("delete_results", process_id=first.id)["deleted"] >= 1
    assert world.registry.counts()["caption", Status.CANCELLED] == 1


def test_kinds_of_one_lane_share_its_queue_by_priority(caption: KindOfWork, tmp_path: Path) -> None:
    world = World(tmp_path)
    order: list[str] = []

    class Noting:
        def work(self, attempt: Any) -> Done:
            order.append(attempt.record.kind)
            return Done(time_s=time.time())

    work = Noting()
    timing = Timing(lease_s=30, cancel_grace_s=1, max_attempts=3)
    works = {"caption": work, "generation": work}
    runner = Runner(world.registry, world.store, works, timing)  # type: ignore[arg-type]
    executor = executor_of(world, runner)
    world.waiting("generation")
    world.registry.create(waiting(priority=5))
    world.waiting("generation")
    executor.start()
    try:
        until(lambda: len(order) == 3)
    finally:
        executor.stop(5)
    assert order == ["caption", "generation", "generation"]


@pytest.mark.parametrize("uses_pipeline", [False, True])
def test_the_idle_pipeline_is_unloaded_only_for_work_that_does_not_use_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, uses_pipeline: bool
) -> None:
    monkeypatch.setitem(KINDS, "caption", replace(CAPTION, uses_pipeline=uses_pipeline))
    world = World(tmp_path)
    happened: list[str] = []

    class Noting:
        def work(self, attempt: Any) -> Done:
            happened.append(attempt.record.kind)
            return Done(time_s=time.time())

    timing = Timing(lease_s=30, cancel_grace_s=1, max_attempts=3)
    runner = Runner(
        world.registry, world.store, {"caption": Noting(), "generation": Noting()}, timing
    )  # type: ignore[dict-item]
    executor = executor_of(world, runner, lambda name: happened.append("unload"))
    world.waiting("generation")
    executor.start()
    try:
        until(lambda: happened == ["generation"])
        for _ in range(2):
            world.registry.create(waiting())
        executor.submitted("")
        until(lambda: happened.count("caption") == 2)
    finally:
        executor.stop(5)
    unloads = [] if uses_pipeline else ["unload"]
    assert happened == ["generation", *unloads, "caption", "caption"]


def test_what_a_new_kind_has_not_stored_keeps_its_folder(
    caption: KindOfWork, tmp_path: Path
) -> None:
    world = World(tmp_path)
    long_ago = datetime.now(UTC) - timedelta(days=30)
    record = world.registry.create(waiting())
    world.started(record.id)
    world.keep(record.id, "log", "captions.txt", b"a red cat")
    folder = world.workspace.process(record.id)
    folder.mkdir(parents=True)
    (folder / "captions.txt").write_text("a red cat")
    (folder / "unsent.txt").write_text("a blue cat")
    world.completed(record.id, at=long_ago)
    retention = Retention(world.registry, world.store, world.workspace, Engines([world.engine]), 7)
    assert retention.clean() == []
    assert (folder / "unsent.txt").is_file()
    (folder / "unsent.txt").unlink()
    assert [one.process_id for one in retention.clean()] == [record.id]
    assert not folder.exists()


@pytest.mark.parametrize(("request_type", "kind"), [
    ("train", "training"), ("train_with_yaml", "training"), ("generate", "generation"),
    ("health", None), (["train"], None), (None, None),
])  # fmt: skip
def test_a_request_starts_the_kind_that_names_it(request_type: Any, kind: str | None) -> None:
    found = kind_started_by(request_type)
    assert (found.name if found else None) == kind
    assert makes_process({"type": request_type}) is (kind is not None)


def test_every_entry_says_something_of_its_own() -> None:
    for field in ("name", "id_prefix", "folder"):
        values = [getattr(kind, field) for kind in KINDS.values()]
        assert len(set(values)) == len(values)
    for kind in KINDS.values():
        assert kind_of_id(new_process_id(kind.name)) is kind
        assert is_process_id(new_process_id(kind.name))


@pytest.mark.parametrize("place", ["sql", "objects"])
def test_an_older_program_reads_what_it_knows_beside_a_newer_ones_kind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    store = MemoryStore()

    def open_registry() -> Any:
        if place == "objects":
            return ObjectRegistry(store)
        return SqlRegistry(f"sqlite:///{tmp_path}/registry.sqlite3")

    with monkeypatch.context() as newer:
        newer.setitem(KINDS, "caption", CAPTION)
        registry = open_registry()
        registry.create(waiting())
        running = registry.create(waiting())
        registry.change(
            running.id,
            lambda record: changes.taken(
                record, owner="b/1", token="t", now=datetime.now(UTC), lease_s=60, device="cpu"
            ),
        )
        registry.close()
    assert not is_process_id(running.id)
    older = open_registry()
    now = datetime.now(UTC)
    known = older.create(
        ProcessRecord(
            id=new_process_id("training"), kind="training", name="cat", created_at=now,
            enqueued_at=now, updated_at=now,
        )
    )  # fmt: skip
    assert [one.id for one in older.page().records] == [known.id]
    assert [one.id for one in older.pending()] == [known.id]
    assert older.running() == ()
    assert sum(older.counts().values()) == 1
    assert older.positions([known.id]) == {known.id: 1}
    older.close()


@pytest.mark.parametrize("place", ["memory", "sql", "objects"])
def test_artifacts_of_a_newer_release_are_shown_and_stay(place: str, tmp_path: Path) -> None:
    registry: Any = {
        "memory": MemoryRegistry,
        "sql": lambda: SqlRegistry(f"sqlite:///{tmp_path}/registry.sqlite3"),
        "objects": lambda: ObjectRegistry(MemoryStore()),
    }[place]()
    world = World(tmp_path, registry=registry)
    record = world.running()
    newer = StoredArtifact(
        process_id=record.id, key=f"results/{record.id}/videos/a1-0123456789/cat.mp4", kind="video",
        name="cat.mp4", size_bytes=3, sha256="0" * 64, created_at=datetime.now(UTC),
    )  # fmt: skip
    world.store.put(newer.key, b"mp4")
    registry.put_artifacts(TOKEN, [newer])
    world.keep(record.id, "lora", "cat.safetensors", adapter())  # lists anew what is there
    world.completed(record.id)
    assert Sweeper(registry, world.store).sweep().results == 0
    assert world.store.get(newer.key) == b"mp4"
    shown = world.ask("process_status", process_id=record.id)["artifacts"]
    assert sorted(one["kind"] for one in shown) == ["lora", "video"]
    assert world.ask("list_files")["total_files"] == 1
    assert len(world.ask("list_files", path=f"results/{record.id}")["lora_files"]) == 1
    bulk = world.ask("bulk_download", process_ids=[record.id])
    assert "error" not in bulk
    assert world.ask("delete_results", process_id=record.id, result_type="lora")["deleted"] == 1
    assert [one.kind for one in registry.artifacts(record.id)] == ["video"]
    assert "error" not in world.ask("delete_results", process_id=record.id)
    assert registry.artifacts(record.id) == ()
    assert list(world.store.list(f"results/{record.id}/videos")) == []
    registry.close()
