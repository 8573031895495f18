"""What an owner that died has left halfway, put right by the next attempt."""

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from loradash.domain import process as changes
from loradash.domain.events import Done, Resumed, StepDone
from loradash.domain.ids import new_process_id
from loradash.domain.process import ProcessRecord
from loradash.registry.memory import MemoryRegistry
from loradash.registry.registry import Metric
from loradash.runtime.attempt import Attempt, Timing
from loradash.runtime.manifests import write_manifest
from loradash.runtime.results import NewArtifact, ResultKeeper
from loradash.runtime.supervisor import StopRequest
from loradash.storage import keys
from loradash.storage.memory import MemoryStore

TIMING = Timing(lease_s=60, cancel_grace_s=7, max_attempts=3)
FIRST = keys.attempt_mark(1, "first")
BEGAN = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture
def registry():
    return MemoryRegistry()


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def record(registry):
    """A training in its second attempt; the owner of the first has died."""
    one = ProcessRecord(
        id=new_process_id("training"), kind="training", name="cat", created_at=BEGAN,
        enqueued_at=BEGAN, updated_at=BEGAN,
    )  # fmt: skip
    registry.create(one)
    take(registry, one.id, "first", BEGAN)
    measured = [
        Metric(step=step, attempt=1, time=BEGAN, loss=step / 10, learning_rate=0.1)
        for step in (1, 2, 5)
    ]
    registry.append_metrics(one.id, "first", measured)
    registry.change(
        one.id, lambda now: changes.expired(now, now=BEGAN, max_attempts=9, owner_is_gone=True)
    )
    return take(registry, one.id, "second", BEGAN + timedelta(seconds=100))


def take(registry, process_id, token, now):
    return registry.change(
        process_id,
        lambda one: changes.taken(
            one, owner=token, token=token, now=now, lease_s=10**9, device="cpu"
        ),
    )


def test_steps_are_added_that_nobody_lived_to_write(registry, store, record):
    before = tuple(
        StepDone(
            step=step, total_steps=9, loss=step / 10, learning_rate=0.1,
            time_s=BEGAN.timestamp() + seconds,
        )
        for step, seconds in ((2, 20), (3, 30), (4, 130))
    )  # fmt: skip
    with Attempt(registry, store, record, StopRequest(), TIMING) as attempt:
        attempt.event(Resumed(step=4, path="x", steps=before))
        attempt.finish(Done())
    rows = registry.metrics(record.id)
    assert [(row.step, row.attempt, row.loss) for row in rows] == [
        (1, 1, 0.1), (2, 1, 0.2), (3, 1, 0.3), (4, 2, 0.4)
    ]  # fmt: skip
    assert rows[1].time == BEGAN
    assert rows[2].time == BEGAN + timedelta(seconds=30)


def test_objects_that_nobody_lists_go_and_the_manifest_is_true(registry, store, record, tmp_path):
    listed = tmp_path / "listed.png"
    listed.write_bytes(b"listed")
    with closing(ResultKeeper(registry, store, record.id, "second")) as keeper:
        keeper.now([NewArtifact("sample", listed, "listed.png")])
        write_manifest(store, record.id, FIRST, [])
        store.put(keys.old_manifest(record.id), b"of an earlier release")
        store.put(keys.result_config(record.id), b"config")
        store.put(keys.submitted_config(record.id, "0" * 16), b"of who came too late")
        store.put(keys.result(record.id, "checkpoints", FIRST, "step-5/state.safetensors"), b"x")
        store.put(f"results/{record.id}/checkpoints/step-5/state.safetensors", b"x")
        other = keys.result(new_process_id("generation"), "images", FIRST, "0.png")
        store.put(other, b"another process's")
        keeper.tidy_up()
    left = {info.key for info in store.list()}
    second = keys.attempt_mark(2, "second")
    sample = keys.result(record.id, "samples", second, "listed.png")
    manifest = keys.manifest(record.id, second)
    assert left == {other, sample, keys.result_config(record.id), manifest}
    files = json.loads(store.get(manifest))["files"]
    assert [entry["key"] for entry in files] == [sample]


def test_who_has_lost_the_lease_tidies_nothing(registry, store, record):
    unlisted = keys.result(record.id, "images", keys.attempt_mark(2, "second"), "0.png")
    store.put(unlisted, b"the owner's, who will list it in a moment")
    with closing(ResultKeeper(registry, store, record.id, "first")) as keeper:
        keeper.tidy_up()
    assert store.get(unlisted)
