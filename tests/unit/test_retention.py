"""Workspace files go only when nothing is lost by it."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from loradash.domain.process import Status
from loradash.engines.catalogue import Engines
from loradash.engines.diffusers.engine import DiffusersEngine
from loradash.engines.engine import Artifact, Checkpoint
from loradash.errors import DiskFull
from loradash.runtime.results import restore_checkpoints
from loradash.services.results.retention import Retention

from .published import real_key
from .world import World, logged, picture

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=8)
PARTS = ("adapter.safetensors", "state.safetensors", "checkpoint.json")


@pytest.fixture(autouse=True)
def log():
    with logged() as stream:
        yield stream


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def clean(world, *, days=7, now=LATER):
    retention = Retention(
        world.registry, world.store, world.workspace, Engines([world.engine]), days
    )
    return [one.process_id for one in retention.clean(now)]


def folders(world, process_id):
    return [path for path in world.workspace.folders_of(process_id) if path.exists()]


def stopped(world, ending="failed", steps=(10, 20), *, storing=True):
    """A training that has ended early, with checkpoints."""
    process_id = world.running(step=steps[-1]).id
    world.keep(process_id, "job", "job.json", b"{}")
    for step in steps:
        for part in PARTS:
            name = f"step-{step:09d}/{part}"
            if storing:
                world.keep(process_id, "checkpoint", name, f"{step} {part}".encode(), step=step)
            else:
                path = world.folder_of(process_id, "checkpoint") / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"x")
    return getattr(world, ending)(process_id).id


def test_a_training_that_ended_long_ago_and_is_stored_goes_and_its_results_stay(world):
    process_id = world.trained().id
    data = world.workspace.training_data(process_id) / "0"
    data.mkdir(parents=True)
    (data / "a.png").write_bytes(picture())
    objects = {info.key: info.etag for info in world.store.list()}
    artifacts = world.registry.artifacts(process_id)
    retention = Retention(world.registry, world.store, world.workspace, Engines([world.engine]), 7)
    (removed,) = retention.clean(LATER)
    assert removed.process_id == process_id
    assert removed.freed_bytes > len(picture())
    assert folders(world, process_id) == []
    assert {info.key: info.etag for info in world.store.list()} == objects
    assert world.registry.artifacts(process_id) == artifacts
    assert "data" in world.ask("download", process_id=process_id)
    assert clean(world) == []


def test_a_generation_goes_too(world):
    process_id = world.drawn(2).id
    assert clean(world) == [process_id]
    assert folders(world, process_id) == []


@pytest.mark.parametrize("age_days", [0, 6.99])
def test_what_ended_lately_stays(world, age_days):
    process_id = world.trained().id
    assert clean(world, now=NOW + timedelta(days=age_days)) == []
    assert folders(world, process_id)


def test_zero_days_keep_everything_for_ever(world):
    world.trained()
    assert clean(world, days=0, now=NOW + timedelta(days=10_000)) == []


def test_what_waits_or_runs_is_never_touched(world):
    old = timedelta(days=400)
    waiting, running = world.waiting(age=old).id, world.running(age=old).id
    resumed = stopped(world)
    world.services.processes.resume(resumed)
    for process_id in (waiting, running, resumed):
        folder = world.workspace.training(process_id)
        folder.mkdir(exist_ok=True)
        (folder / "job.json").write_text("{}")
    assert clean(world) == []
    for process_id in (waiting, running, resumed):
        assert (world.workspace.training(process_id) / "job.json").is_file()


@pytest.mark.parametrize("key", ["lora/cat.safetensors", "samples/step-000000010-0.png"])
def test_a_missing_object_keeps_the_files(world, key):
    process_id = world.trained().id
    world.store.delete(real_key(world.store, f"results/{process_id}/{key}"))
    assert clean(world) == []
    assert folders(world, process_id)


def test_an_object_of_another_size_keeps_the_files(world):
    process_id = world.trained().id
    key = real_key(world.store, f"results/{process_id}/lora/cat.safetensors")
    world.store.put(key, b"cut off")
    assert clean(world) == []
    assert folders(world, process_id)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("lora", "other.safetensors"),
        ("lora", "other.bin"),
        *(("sample", f"step-000000005-0.{suffix}") for suffix in ("png", "jpg", "webp")),
        *(("image", f"image_0001.{suffix}") for suffix in ("png", "jpg", "webp")),
    ],
)
def test_a_result_that_was_never_stored_keeps_the_files(world, kind, name):
    process_id = world.drawn().id if kind == "image" else world.trained().id
    path = world.folder_of(process_id, kind) / name
    path.write_bytes(b"not stored")
    assert clean(world) == []
    assert path.read_bytes() == b"not stored"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_samples_of_a_failed_training_that_were_never_stored_stay_in_any_format(world, suffix):
    process_id = stopped(world)
    path = world.folder_of(process_id, "sample") / f"step-000000010-0.{suffix}"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a picture")
    assert clean(world) == []
    assert path.read_bytes() == b"a picture"


class OtherLayout(DiffusersEngine):
    """An engine with a layout and formats of its own."""

    def artifacts(self, folder):
        return [Artifact("sample", path) for path in sorted(folder.glob("preview/*.tiff"))]

    def checkpoints(self, folder):
        found = sorted(folder.glob("saved/*/*.ckpt"))
        return [Checkpoint(path.parent, (path,)) for path in found]


@pytest.mark.parametrize("name", ["preview/1.tiff", "saved/5/state.ckpt"])
def test_the_engine_says_what_is_worth_keeping(world, name):
    process_id = stopped(world, storing=False, steps=(0,))
    path = world.workspace.training(process_id) / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    (world.workspace.training(process_id) / "samples").mkdir()
    (world.workspace.training(process_id) / "samples/1.png").write_bytes(b"another engine's")
    world.engine = OtherLayout(device="cpu", threads=1, offline=True)
    assert clean(world) == []
    path.unlink()
    assert clean(world) == [process_id]


@pytest.mark.parametrize("ending", ["failed", "cancelled"])
def test_a_checkpoint_that_was_never_stored_keeps_what_could_go_on(world, ending):
    process_id = stopped(world, ending, storing=False)
    assert clean(world) == []
    assert folders(world, process_id)


def test_a_part_of_the_newest_checkpoint_that_is_not_stored_keeps_the_files(world):
    process_id = stopped(world)
    folder = world.folder_of(process_id, "checkpoint") / "step-000000020"
    (folder / "more.safetensors").write_bytes(b"x")
    assert clean(world) == []


def test_the_checkpoints_of_a_completed_training_need_not_be_stored(world):
    process_id = world.trained().id
    (world.folder_of(process_id, "checkpoint") / "step-000000020").mkdir()
    (world.folder_of(process_id, "checkpoint") / "step-000000020/x").write_bytes(b"x")
    assert clean(world) == [process_id]


@pytest.mark.parametrize("ending", ["failed", "cancelled"])
def test_a_training_that_was_cleaned_can_still_go_on(world, ending):
    process_id = stopped(world, ending)
    assert clean(world) == [process_id]
    assert folders(world, process_id) == []
    kinds = [entry.kind for entry in world.registry.artifacts(process_id)]
    assert (kinds.count("checkpoint"), kinds.count("job")) == (6, 1)
    world.services.processes.resume(process_id)
    assert world.registry.get(process_id).status is Status.PENDING
    target = world.folder_of(process_id, "checkpoint")
    target.mkdir(parents=True)
    assert restore_checkpoints(world.registry, world.store, process_id, target) == 2
    assert (target / "step-000000020/checkpoint.json").read_bytes() == b"20 checkpoint.json"


def test_folders_of_processes_that_nobody_knows_stay(world):
    """A registry that was put elsewhere must not cost anybody his trainings."""
    folder = world.workspace.training("train_00000000000000000001")
    folder.mkdir()
    (world.workspace.root / "output/training/mine").mkdir()
    assert clean(world) == []
    assert folder.is_dir()


def test_what_a_crash_left_half_removed_is_no_obstacle(world):
    process_id = world.trained().id
    left = world.workspace.root / f"output/training/.{process_id}.removed"
    left.mkdir()
    (left / "x").write_bytes(b"x")
    assert clean(world) == [process_id]
    assert not left.exists()


def test_a_link_in_a_folder_is_removed_and_what_it_leads_to_stays(world, tmp_path):
    process_id = world.trained().id
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_bytes(b"mine")
    (world.workspace.training(process_id) / "link").symlink_to(tmp_path / "mine")
    assert clean(world) == [process_id]
    assert (tmp_path / "mine/file").read_bytes() == b"mine"


def test_a_folder_that_is_a_link_stays(world, tmp_path):
    process_id = world.trained().id
    folder = world.workspace.training(process_id)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert clean(world) == []
    assert (tmp_path / "elsewhere/lora/cat.safetensors").is_file()


def test_one_that_can_not_be_looked_at_does_not_keep_the_others(world, log, monkeypatch):
    broken, good = world.trained(name="broken").id, world.trained(name="good").id
    head = world.store.head

    def failing(key):
        if broken in key:
            raise DiskFull("the disk is broken", remedy="Repair it.")
        return head(key)

    monkeypatch.setattr(world.store, "head", failing)
    assert clean(world) == [good]
    assert folders(world, broken)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [one["process_id"] for one in lines if one["event"] == "not_cleaned"] == [broken]
