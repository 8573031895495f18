"""What nobody lists goes, and nothing else, however late its writer comes."""

from datetime import UTC, datetime

import pytest

from loradash.domain import process as changes
from loradash.domain.ids import new_process_id
from loradash.registry.memory import MemoryRegistry
from loradash.registry.objects import ObjectRegistry
from loradash.registry.objects.document import Edit
from loradash.registry.registry import as_it_is
from loradash.runtime.results import NewArtifact, ResultKeeper
from loradash.services.system.sweeper import Sweeper
from loradash.storage import keys
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore

from .world import TOKEN, World


@pytest.fixture(params=["memory", "objects", "volume"])
def world(request, tmp_path):
    if request.param == "memory":
        return World(tmp_path, registry=MemoryRegistry(), store=MemoryStore())
    store = LocalStore(tmp_path / "objects", shared=request.param == "volume")
    return World(tmp_path, registry=ObjectRegistry(store, settle_s=0.05), store=store)


@pytest.fixture
def sweeper(world):
    return Sweeper(world.registry, world.store)


def objects(world):
    return {info.key for info in world.store.list("results")}


def put(world, key):
    world.store.put(key, b"nobody lists it")
    return key


def retaken(world, process_id, token="another"):
    """Another owner has it now."""
    now = datetime.now(UTC)

    def change(record):
        record = changes.expired(record, now=now, max_attempts=9, owner_is_gone=True)
        return changes.taken(record, owner="b", token=token, now=now, lease_s=600, device="cpu")

    return world.registry.change(process_id, change)


def test_what_a_late_owner_has_put_goes_and_all_that_is_listed_stays(world, sweeper):
    process_id = world.running(step=10).id
    for number in range(3):
        world.keep(process_id, "sample", f"{number}.png", b"x")
    before = objects(world)
    late = keys.attempt_mark(1, TOKEN)
    retaken(world, process_id)
    assert sweeper.sweep().results == 0
    put(world, keys.result(process_id, "checkpoints", late, "step-000000010/state.safetensors"))
    put(world, keys.result(process_id, "samples", f"{late}.2", "0.png"))
    put(world, keys.submitted_config(process_id, "0" * 16))
    assert sweeper.sweep().results == 3
    assert objects(world) == before
    assert sweeper.sweep().results == 0


def test_what_the_owner_has_put_and_not_listed_yet_stays(world, sweeper):
    process_id = world.running().id
    mine = put(world, keys.result(process_id, "lora", keys.attempt_mark(1, TOKEN), "a"))
    again = put(world, keys.result(process_id, "lora", f"{keys.attempt_mark(1, TOKEN)}.2", "a"))
    manifest = put(world, keys.manifest(process_id, keys.attempt_mark(1, TOKEN)))
    sweeper.sweep()
    assert {mine, again, manifest} <= objects(world)
    world.failed(process_id)
    assert sweeper.sweep().results == 3


@pytest.mark.parametrize("moment", ["after the list", "before the delete"])
def test_what_an_owner_lists_at_this_very_moment_stays(world, moment):
    """Between the sweep's looks another owner takes over, puts and lists."""
    process_id = world.running().id
    late = put(world, keys.result(process_id, "lora", keys.attempt_mark(1, TOKEN), "late"))
    path = world.root / "new"
    path.write_bytes(b"the new owner's")

    class Meanwhile:
        """The store, in which a new owner is quick once all has been listed."""

        def list(self, prefix):
            infos = list(world.store.list(prefix))
            if moment == "after the list":
                take_and_list()
            return infos

        def delete_many(self, gone):
            if moment == "before the delete":
                take_and_list()
            world.store.delete_many(gone)

    def take_and_list():
        retaken(world, process_id)
        keeper = ResultKeeper(world.registry, world.store, process_id, "another")
        keeper.now([NewArtifact("lora", path, "new")])
        keeper.close()

    if moment == "before the delete":  # else there is nothing that could be deleted
        retaken(world, process_id, "second")
    Sweeper(world.registry, Meanwhile()).sweep_process(process_id)
    (entry,) = world.registry.artifacts(process_id, ["lora"])
    assert world.store.get(entry.key) == b"the new owner's"
    assert late not in objects(world)


def test_objects_of_earlier_releases_and_of_unknown_processes_stay(world, sweeper):
    process_id = world.trained().id
    stay = {
        put(world, f"results/{process_id}/lora/old.safetensors"),
        put(world, keys.result(new_process_id("training"), "lora", keys.attempt_mark(1, "x"), "a")),
        put(world, "results/notes.txt"),
    }
    sweeper.sweep()
    assert stay <= objects(world)


def test_only_the_manifest_that_counts_stays(world, sweeper):
    process_id = world.trained().id
    (mine,) = (key for key in objects(world) if keys.is_manifest(key))
    put(world, keys.manifest(process_id, keys.attempt_mark(0, "an earlier one")))
    assert sweeper.sweep().results == 1
    world.services.results.deletion.delete([process_id], "samples")
    (edited,) = (key for key in objects(world) if keys.is_manifest(key))
    assert edited != mine
    put(world, mine)
    assert sweeper.sweep().results == 1
    assert [key for key in objects(world) if keys.is_manifest(key)] == [edited]
    world.services.results.deletion.delete([process_id], "all")
    assert objects(world) == set()
    put(world, mine)
    assert sweeper.sweep().results == 1
    assert objects(world) == set()


def test_what_was_found_clean_is_looked_at_again_once_others_are_there(world, sweeper):
    process_id = world.trained().id
    sweeper.sweep()
    asked = []
    get = world.registry.get
    sweeper._registry = type(
        "Asked", (), {
            "get": lambda _, one: asked.append(one) or get(one),
            "artifacts": lambda _, one: world.registry.artifacts(one),
        },
    )()  # fmt: skip
    sweeper.sweep()
    assert asked == []
    put(world, keys.result(process_id, "lora", keys.attempt_mark(1, "x"), "a"))
    assert sweeper.sweep().results == 1
    assert asked == [process_id]


@pytest.mark.parametrize("shared", [False, True])
def test_rows_that_no_record_names_go_and_who_was_about_to_name_them_can_not(tmp_path, shared):
    store = LocalStore(tmp_path / "objects", shared=shared)
    world = World(tmp_path, registry=ObjectRegistry(store, settle_s=0.05), store=store)
    process_id = world.running().id
    world.said(process_id, "one")
    world.measured(process_id, 1, 2)
    world.keep(process_id, "sample", "0.png", b"x")
    store.put(keys.process_part(process_id, "0" * 20), b"{}")
    sweeper = Sweeper(world.registry, store)
    assert sweeper.sweep().rows == 0  # its owner may be about to name it
    world.failed(process_id)

    # Somebody has written rows, and falls asleep before he writes the record that names them.
    sleeper = ObjectRegistry(store, settle_s=0.05)
    (entry,) = world.registry.artifacts(process_id)
    swept = []
    write = sleeper._artifact_objects.write

    def asleep(one, rows):
        key = write(one, rows)
        if not swept:
            swept.append(sweeper.sweep().rows)
        return key

    sleeper._artifact_objects.write = asleep
    edit = Edit(as_it_is, lambda parts: sleeper._with_artifacts(process_id, parts, [entry]))
    sleeper._update(process_id, edit)
    assert swept == [2]
    fresh = ObjectRegistry(store)
    assert fresh.artifacts(process_id) == (entry,)
    assert [line.text for line in fresh.log(process_id)] == ["one"]
    assert [row.step for row in fresh.metrics(process_id)] == [1, 2]
    named = fresh._load(process_id).parts.keys
    sweeper.sweep()
    assert {info.key for info in store.list("process-data")} == named


def test_the_sweep_of_rows_leaves_other_registries_alone(tmp_path):
    store = MemoryStore()
    registry = ObjectRegistry(store)
    other = keys.process_part(new_process_id("training"), "0" * 20)
    store.put(other, b"{}")
    store.put("process-data/x", b"{}")
    assert registry.sweep() == 0
    assert {info.key for info in store.list("process-data")} == {other, "process-data/x"}
