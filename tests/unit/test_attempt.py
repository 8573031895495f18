"""One attempt with the registry and the object store that it writes to."""

import errno
import hashlib
import json
import threading
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loradash.domain import process as changes
from loradash.domain.events import (
    CheckpointWritten,
    Done,
    Failed,
    ImageWritten,
    PhaseChanged,
    Resumed,
    SampleWritten,
    StepDone,
    Stopped,
    Warned,
)
from loradash.domain.ids import new_process_id
from loradash.domain.process import ProcessRecord, Progress, Status
from loradash.errors import (
    DiskFull,
    InvalidConfig,
    LeaseLost,
    RegistryUnavailable,
    StoreUnavailable,
)
from loradash.registry.announcing import announcing
from loradash.registry.memory import MemoryRegistry
from loradash.registry.registry import Metric
from loradash.registry.sql import SqlRegistry
from loradash.runtime import attempt as attempt_module
from loradash.runtime import patience as patience_module
from loradash.runtime.attempt import Attempt, Timing, failure
from loradash.runtime.results import NewArtifact, ResultKeeper, restore_checkpoints
from loradash.runtime.supervisor import StopRequest
from loradash.storage import keys
from loradash.storage.memory import MemoryStore
from tests.unit.published import content, real_key
from tests.unit.waits import never, until

TICK_S = attempt_module.TICK_S
TIMING = Timing(lease_s=60, cancel_grace_s=7, max_attempts=3, store_patience_s=60)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(attempt_module, "TICK_S", 0.02)
    monkeypatch.setattr(patience_module, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(patience_module, "_LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr(patience_module, "_POLL_S", 0.005)


class Flaky:
    """A registry, or a store, some methods of which can be made to fail."""

    def __init__(self, inner):
        self._inner = inner
        self.error = None
        self.broken = ()  # names of methods; none stand for all
        self.left = -1  # failures until it works again; -1 is no limit
        self.failures = 0
        self.calls = []

    def breaks(self, error, *names, times=-1):
        self.error, self.broken, self.left = error, names, times

    def heals(self):
        self.error = None

    def __getattr__(self, name):
        method = getattr(self._inner, name)

        def call(*arguments, **options):
            self.calls.append((name, *arguments))
            if self.error and self.left and (not self.broken or name in self.broken):
                self.left -= 1
                self.failures += 1
                raise self.error
            return method(*arguments, **options)

        return call


@pytest.fixture
def registry():
    return Flaky(MemoryRegistry())


@pytest.fixture
def store():
    return Flaky(MemoryStore())


def new_record(registry, kind="training", token="token", timing=TIMING, **fields):
    """A process that an owner has just taken."""
    now = datetime.now(UTC)
    record = ProcessRecord(
        id=new_process_id(kind), kind=kind, name="cat",
        created_at=now, enqueued_at=now, updated_at=now, **fields,
    )  # fmt: skip
    registry.create(record)
    return take(registry, record.id, token, timing)


def take(registry, process_id, token, timing=TIMING):
    return registry.change(
        process_id,
        lambda one: changes.taken(
            one, owner=f"owner of {token}", token=token, now=datetime.now(UTC),
            lease_s=timing.lease_s, device="cpu",
        ),
    )  # fmt: skip


def take_over(registry, process_id, token="other"):
    """What happens to an owner that seemed to be gone."""
    registry.change(
        process_id,
        lambda one: changes.expired(
            one, now=datetime.now(UTC), max_attempts=9, owner_is_gone=True
        ),
    )  # fmt: skip
    return take(registry, process_id, token)


@pytest.fixture
def begin(registry, store):
    """Begin an attempt of a new process, or of one that was taken."""

    @contextmanager
    def open_attempt(record=None, timing=TIMING, **options):
        record = record or new_record(registry, timing=timing)
        with Attempt(registry, store, record, StopRequest(), timing, **options) as attempt:
            yield attempt

    return open_attempt


def step(number, total=100, loss=0.5):
    return StepDone(step=number, total_steps=total, loss=loss, learning_rate=1e-4, grad_norm=1.0,
                    steps_per_s=2.0, eta_s=50.0)  # fmt: skip


def steps_of(registry, process_id):
    return [row.step for row in registry.metrics(process_id)]


def texts(registry, process_id, source=None):
    return [line.text for line in registry.log(process_id) if source in (None, line.source)]


def names(registry, process_id, *kinds):
    return [entry.name for entry in registry.artifacts(process_id, kinds)]


def manifest(store, process_id):
    document = json.loads(content(store, f"results/{process_id}/manifest.json"))
    return [entry["key"] for entry in document["files"]]


def keys_of(store, process_id, kind):
    return [info.key for info in store.list(f"{keys.results(process_id)}/{kind}")]


def image(folder, name="0.png", index=0):
    path = folder / name
    path.write_bytes(name.encode())
    return ImageWritten(index=index, path=str(path), prompt="cat", seed=1, duration_s=0.1)


def checkpoint(folder, number, content=""):
    """Write a checkpoint as the engine does, and return its event."""
    path = folder / f"step-{number:09d}"
    path.mkdir(parents=True)
    for name in ("adapter.safetensors", "checkpoint.json", "state.safetensors"):
        (path / name).write_text(f"{name} {number} {content}")
    return CheckpointWritten(step=number, path=str(path), size_bytes=10)


def remove(folder, number):
    path = folder / f"step-{number:09d}"
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


# What an engine tells


def test_events_become_record_measurements_log_and_results(begin, registry, store, tmp_path):
    sample_path = tmp_path / "step-000000002-0.png"
    sample_path.write_bytes(b"picture")
    engine_log = tmp_path / "log.txt"
    engine_log.write_text("from an earlier attempt\n")
    with begin() as attempt:
        attempt.follow_log(engine_log)
        with engine_log.open("a") as file:
            file.write("Loading pipeline\nhalf a li")
        attempt.event(PhaseChanged(phase="caching", detail="images", done=3, total=9))
        attempt.event(PhaseChanged(phase="training"))
        attempt.event(step(1))
        attempt.event(step(2, loss=0.25))
        attempt.event(
            SampleWritten(step=2, index=0, path=str(sample_path), prompt="cat", seed=1)
        )  # fmt: skip
        attempt.event(Warned(code="odd", message="this is odd"))
        until(lambda: registry.get(attempt.id).progress.step == 2)
        progress = registry.get(attempt.id).progress
        ending = attempt.finish(Done(step=2))
    assert (progress.phase, progress.total_steps, progress.loss) == ("training", 100, 0.25)
    assert (progress.learning_rate, progress.steps_per_s, progress.eta_s) == (1e-4, 2.0, 50.0)
    rows = registry.metrics(attempt.id)
    assert [(row.step, row.loss, row.attempt) for row in rows] == [(1, 0.5, 1), (2, 0.25, 1)]
    assert texts(registry, attempt.id, "engine") == ["Loading pipeline", "half a li"]
    assert texts(registry, attempt.id, "loradash") == [
        "caching images",
        "sample at step 2: step-000000002-0.png",
        "warning: this is odd",
        "completed",
    ]
    (entry,) = registry.artifacts(attempt.id)
    assert (entry.kind, entry.name, entry.step, entry.index) == ("sample", sample_path.name, 2, 0)
    assert entry.sha256 == hashlib.sha256(b"picture").hexdigest()
    assert store.get(entry.key) == b"picture"
    assert manifest(store, attempt.id) == [entry.key]
    assert ending == Done(step=2)
    record = registry.get(attempt.id)
    assert record == attempt.record
    assert (record.status, record.output_prefix) == (Status.COMPLETED, keys.results(attempt.id))
    assert record.lease is None


def test_warnings_stay_in_the_record_each_once(registry, begin):
    record = new_record(registry, warnings=("from its submission",))
    with begin(record) as attempt:
        for message in ("this is odd", "from its submission", "this is odd", "that too"):
            attempt.event(Warned(code="odd", message=message))
        until(lambda: len(registry.get(record.id).warnings) == 3)
        attempt.finish(Stopped(time_s=1.0))
    record = registry.get(record.id)
    assert record.warnings == ("from its submission", "this is odd", "that too")


def test_a_warning_survives_a_registry_that_was_away(registry, begin):
    with begin() as attempt:
        registry.breaks(RegistryUnavailable("away"))
        attempt.event(Warned(code="odd", message="this is odd"))
        until(lambda: registry.failures > 2)
        registry.heals()
        until(lambda: registry.get(attempt.id).warnings == ("this is odd",))
        attempt.finish(Stopped(time_s=1.0))


def test_an_attempt_is_told_to_a_database_in_the_same_way(tmp_path):
    with closing(SqlRegistry(f"sqlite:///{tmp_path}/registry.sqlite3")) as registry:
        record = new_record(registry)
        store = MemoryStore()
        with Attempt(registry, store, record, StopRequest(), TIMING) as attempt:
            attempt.event(PhaseChanged(phase="training"))
            for number in range(1, 51):
                attempt.event(step(number))
            attempt.event(checkpoint(tmp_path, 50))
            until(lambda: registry.get(attempt.id).progress.step == 50)
            attempt.finish(failure(InvalidConfig("caf\udce9.png is odd", problems=["\ud800"])))
        assert steps_of(registry, attempt.id) == list(range(1, 51))
        assert len(registry.artifacts(attempt.id, ["checkpoint"])) == 3
        found = registry.get(attempt.id)
        assert found.status is Status.FAILED
        assert found.error.message == r"caf\udce9.png is odd"
        assert found.error.problems == (r"\ud800",)
        assert texts(registry, attempt.id)[-1] == r"failed (config_invalid): caf\udce9.png is odd"


def test_images_are_counted_by_the_phase_that_tells_them(begin, registry, tmp_path):
    with begin(new_record(registry, "generation")) as attempt:
        attempt.event(PhaseChanged(phase="generating", done=1, total=4))
        attempt.event(image(tmp_path))
        until(lambda: registry.get(attempt.id).progress.step == 1)
        assert registry.get(attempt.id).progress.total_steps == 4
        attempt.finish(Done())
    assert names(registry, attempt.id, "image") == ["0.png"]
    assert registry.get(attempt.id).progress.step == 4


def test_every_event_is_handed_on(begin, tmp_path):
    seen = []
    events = [
        PhaseChanged(phase="training"), step(1), Resumed(step=3, path="x"),
        Warned(code="a", message="b"), image(tmp_path), checkpoint(tmp_path, 1),
    ]  # fmt: skip
    with begin(on_event=seen.append) as attempt:
        for event in events:
            attempt.event(event)
        attempt.finish(Done())
    assert seen == events


def test_a_step_is_in_the_record_within_a_second(begin, registry, monkeypatch):
    monkeypatch.setattr(attempt_module, "TICK_S", TICK_S)
    with begin() as attempt:
        attempt.event(step(1))
        until(lambda: registry.get(attempt.id).progress.step == 1, timeout_s=5)
    assert TICK_S <= 0.5


def test_a_change_of_the_phase_is_told_at_once(begin, registry, monkeypatch):
    monkeypatch.setattr(attempt_module, "TICK_S", 600)
    with begin() as attempt:
        attempt.event(step(1))
        attempt.event(PhaseChanged(phase="sampling"))
        until(lambda: registry.get(attempt.id).progress.phase == "sampling")
        assert registry.get(attempt.id).progress.step == 1


@pytest.mark.parametrize("report_interval_s", [0.0, 60.0])
def test_the_lease_is_renewed_while_nothing_happens(begin, registry, report_interval_s):
    timing = TIMING._replace(lease_s=2.0, report_interval_s=report_interval_s)
    record = new_record(registry, timing=timing)
    with begin(record, timing=timing):
        until(
            lambda: (
                registry.get(record.id).lease.expires_at
                > record.lease.expires_at + timedelta(seconds=1)
            ),
            timeout_s=10,
        )
        assert registry.get(record.id).lease.expires_at > datetime.now(UTC)
        assert registry.get(record.id).updated_at == record.updated_at


def test_a_quiet_attempt_does_not_write_all_the_time(begin, registry):
    with begin():
        registry.calls.clear()
        time.sleep(0.3)
        assert {call[0] for call in registry.calls} == {"get"}


# Going on after an earlier attempt


def lost_attempt(registry, last_step=8):
    """A process of which an attempt was lost after some steps, taken again."""
    record = new_record(registry, token="first")
    rows = [
        Metric(step=n, attempt=1, time=record.created_at, loss=9, learning_rate=1)
        for n in range(1, last_step + 1)
    ]
    registry.append_metrics(record.id, "first", rows)
    progress = Progress(step=last_step, total_steps=100, loss=9)
    registry.change(
        record.id,
        lambda one: changes.renewed(
            one, "first", now=datetime.now(UTC), lease_s=60, progress=progress
        ),
    )  # fmt: skip
    return take_over(registry, record.id, "token")


def test_a_resumed_training_goes_back_to_its_checkpoint(begin, registry):
    with begin(lost_attempt(registry)) as attempt:
        attempt.event(Resumed(step=5, path="checkpoints/step-5"))
        until(lambda: steps_of(registry, attempt.id) == [1, 2, 3, 4, 5])
        assert registry.get(attempt.id).progress.step == 5
        assert registry.get(attempt.id).attempt.from_step == 5
        attempt.event(step(6))
        until(lambda: steps_of(registry, attempt.id) == [1, 2, 3, 4, 5, 6])
        attempt.finish(Done())
    assert [row.attempt for row in registry.metrics(attempt.id)] == [1] * 5 + [2]
    assert "continuing after step 5" in texts(registry, attempt.id)


def test_a_training_that_begins_anew_takes_back_what_a_lost_attempt_had_told(begin, registry):
    with begin(lost_attempt(registry)) as attempt:
        assert registry.get(attempt.id).progress.step == 8
        attempt.event(step(1))
        until(lambda: steps_of(registry, attempt.id) == [1])
        until(lambda: registry.get(attempt.id).progress.step == 1)
        assert registry.get(attempt.id).attempt.from_step == 0
        attempt.finish(Failed(code="out_of_memory", message="full"))
    assert [row.attempt for row in registry.metrics(attempt.id)] == [2]


def test_a_first_step_that_comes_while_the_writer_begins_is_not_taken_back(begin, registry):
    class Before:
        """A lock before which something happens the first time."""

        def __init__(self, lock, what):
            self.lock, self.what = lock, [what]

        def __enter__(self):
            if self.what and threading.current_thread() is not threading.main_thread():
                self.what.pop()()
            self.lock.acquire()

        def __exit__(self, *_):
            self.lock.release()

    with begin(lost_attempt(registry)) as attempt:
        attempt._lock = Before(attempt._lock, lambda: attempt.event(step(1)))
        until(lambda: not attempt._lock.what)
        until(lambda: steps_of(registry, attempt.id) == [1])
        attempt.finish(Stopped())
    assert steps_of(registry, attempt.id) == [1]
    assert registry.get(attempt.id).attempt.to_step == 1


# Being asked to stop


def test_a_cancel_in_the_registry_is_heard(begin, registry):
    with begin() as attempt:
        registry.change(attempt.id, lambda one: changes.cancel_requested(one, datetime.now(UTC)))
        until(lambda: attempt.stop.count)
        assert (attempt.stop.reason, attempt.stop.grace_s) == ("cancel", 7)
        never(lambda: attempt.stop.count > 1)
        attempt.finish(Stopped(step=3))
    record = registry.get(attempt.id)
    assert (record.status, record.attempt.ending) == (Status.CANCELLED, "cancelled")
    assert texts(registry, attempt.id) == ["cancel requested", "stopped at step 3"]


def test_a_cancel_by_this_program_is_received_without_waiting_for_the_next_poll(store):
    timing = TIMING._replace(poll_interval_s=3600)
    registry = announcing(MemoryRegistry())
    record = new_record(registry, timing=timing)
    stop = StopRequest()
    with Attempt(registry, store, record, stop, timing) as attempt:
        registry.change(attempt.id, lambda one: changes.cancel_requested(one, datetime.now(UTC)))
        until(lambda: stop.count)
        assert stop.reason == "cancel"
        attempt.finish(Stopped(time_s=1, step=3))
    assert registry._subscribers == ()


def test_a_cancel_does_not_hurry_what_stops_already(begin, registry):
    with begin() as attempt:
        attempt.stop("shutdown")
        registry.change(attempt.id, lambda one: changes.cancel_requested(one, datetime.now(UTC)))
        never(lambda: attempt.stop.count > 1)
        attempt.finish(Stopped())
    assert registry.get(attempt.id).status is Status.CANCELLED


@pytest.mark.parametrize(
    ("reason", "status", "ending"),
    [
        ("cancel", Status.CANCELLED, "cancelled"),
        ("shutdown", Status.PENDING, "released"),
        ("", Status.PENDING, "lost"),
    ],
)
def test_what_a_stop_means_depends_on_who_asked(begin, registry, reason, status, ending):
    with begin() as attempt:
        attempt.event(step(4))
        if reason:
            attempt.stop(reason)
        attempt.finish(Stopped(step=4))
    record = registry.get(attempt.id)
    assert (record.status, record.attempt.ending, record.lease) == (status, ending, None)
    assert record.attempt.to_step == 4
    assert texts(registry, attempt.id)[-1] == "stopped at step 4"


def test_a_process_that_is_stopped_by_nobody_again_and_again_is_given_up(begin, registry):
    record = new_record(registry)
    for number in range(1, TIMING.max_attempts + 1):
        with begin(record) as attempt:
            attempt.finish(Stopped())
        if number < TIMING.max_attempts:
            assert registry.get(record.id).status is Status.PENDING
            record = take(registry, record.id, f"token {number}")
    assert registry.get(record.id).error.code == "worker_lost"


def test_a_failure_stands_in_the_record_as_it_was_told(begin, registry):
    problems = tuple(f"image {number}" for number in range(60))
    ending = Failed(code="dataset_invalid", message="60 images are bad", remedy="Repair them.",
                    problems=problems, resumable=True)  # fmt: skip
    with begin() as attempt:
        assert attempt.finish(ending) == ending
    record = registry.get(attempt.id)
    assert (record.status, record.attempt.ending) == (Status.FAILED, "failed")
    assert record.error.model_dump() == {
        "code": "dataset_invalid", "message": "60 images are bad", "remedy": "Repair them.",
        "problems": problems[:50], "resumable": True,
    }  # fmt: skip
    assert texts(registry, attempt.id) == ["failed (dataset_invalid): 60 images are bad"]


def test_done_is_done_even_if_a_cancel_came_meanwhile(begin, registry):
    with begin() as attempt:
        registry.change(attempt.id, lambda one: changes.cancel_requested(one, datetime.now(UTC)))
        until(lambda: attempt.stop.count)
        attempt.finish(Done())
    assert registry.get(attempt.id).status is Status.COMPLETED


# Losing the lease


def test_who_has_lost_the_lease_ends_the_work_at_once(begin, registry):
    with begin() as attempt:
        take_over(registry, attempt.id)
        until(lambda: attempt.lost)
        assert attempt.stop.count >= 2
        assert attempt.stop.reason == "lease_lost"


def test_the_lease_outweighs_an_earlier_wish(begin, registry):
    with begin() as attempt:
        attempt.stop("cancel", 60)
        take_over(registry, attempt.id)
        until(lambda: attempt.stop.count >= 2)
        assert attempt.lost


def test_a_failures_texts_are_recorded_without_secrets(begin, registry):
    with begin() as attempt:
        attempt.say("asking hf_abcdefghijABCDEFGHIJ0123456789abcd")
        attempt.finish(
            Failed(code="x", message="refused: password=geheim", remedy="Not {'api_key': 'geheim'}",
                   problems=("Basic dXNlcjpwYXNz",))
        )  # fmt: skip
    record = registry.get(attempt.id)
    shown = f"{record.error} {texts(registry, attempt.id)}"
    assert "***" in record.error.message
    assert not [secret for secret in ("geheim", "dXNl", "abcdefghij") if secret in shown]


def everything(registry, store, process_id):
    return (
        registry.get(process_id), registry.metrics(process_id), registry.log(process_id),
        registry.artifacts(process_id), {info.key: info.etag for info in store.list()},
    )  # fmt: skip


@pytest.mark.parametrize("heard", [True, False])
@pytest.mark.parametrize("ending", [Done(), Stopped(), Failed(code="x", message="y")])
def test_who_has_lost_the_lease_writes_nothing_any_more(
    begin, registry, store, tmp_path, monkeypatch, ending, heard
):
    if not heard:  # it happens just before the end
        monkeypatch.setattr(attempt_module, "TICK_S", 600)
    with begin() as attempt:
        attempt.event(step(1))
        attempt.event(checkpoint(tmp_path / "old", 5))
        attempt.say("all is well")
        until(lambda: names(registry, attempt.id))
        until(lambda: texts(registry, attempt.id))
        time.sleep(0.05)
        take_over(registry, attempt.id)
        with keeper_of(registry, store, attempt.id) as keeper:
            path = tmp_path / "0.png"
            path.write_bytes(b"what the other has made")
            keeper.now([NewArtifact("image", path, "0.png", index=0)])
        if heard:
            until(lambda: attempt.lost)
        before = everything(registry, store, attempt.id)
        attempt.event(step(6))
        attempt.event(Resumed(step=0, path="x"))
        attempt.event(image(tmp_path))
        attempt.event(checkpoint(tmp_path / "new", 6))
        attempt.event(PhaseChanged(phase="sampling"))
        attempt.finish(ending)
        assert attempt.lost
        assert attempt.stop.count >= 2
    assert everything(registry, store, attempt.id) == before
    assert attempt.record.attempt_count == 1


@contextmanager
def keeper_of(registry, store, process_id, token="other"):
    keeper = ResultKeeper(registry, store, process_id, token)
    yield keeper
    keeper.close()


# A registry, or a store, that fails


def test_nothing_is_lost_while_the_registry_can_not_be_reached(begin, registry, store, tmp_path):
    with begin(lost_attempt(registry)) as attempt:
        attempt.event(Resumed(step=2, path="x"))
        attempt.event(step(3))
        until(lambda: registry.get(attempt.id).progress.step == 3)
        registry.breaks(RegistryUnavailable("the disk is gone"))
        attempt.follow_log(tmp_path / "log.txt")
        (tmp_path / "log.txt").write_text("one\ntwo\n")
        for number in range(4, 10):
            attempt.event(step(number))
            attempt.event(image(tmp_path, f"{number}.png", number))
            time.sleep(0.03)
        attempt.event(checkpoint(tmp_path, 9))
        seen = registry.failures
        until(lambda: registry.failures > seen + 3)
        registry.heals()
        until(lambda: registry.get(attempt.id).progress.step == 9)
        assert not attempt.stop.count
        assert attempt.finish(Done()) == Done()
    assert steps_of(registry, attempt.id) == list(range(1, 10))
    assert texts(registry, attempt.id, "engine") == ["one", "two"]
    assert [text for text in texts(registry, attempt.id) if "image" in text] == [
        f"image {number}.png (seed 1, 0.1 s)" for number in range(4, 10)
    ]
    assert len(names(registry, attempt.id, "image")) == 6
    assert len(names(registry, attempt.id, "checkpoint")) == 3
    assert len(manifest(store, attempt.id)) == 9
    assert registry.get(attempt.id).status is Status.COMPLETED


@pytest.mark.parametrize("method", ["change", "append_metrics", "append_log", "forget_metrics"])
def test_a_write_that_fails_once_is_repeated_and_nothing_is_there_twice(begin, registry, method):
    with begin(lost_attempt(registry)) as attempt:
        registry.breaks(RegistryUnavailable("busy"), method, times=1)
        attempt.event(Resumed(step=2, path="x"))
        attempt.event(step(3))
        attempt.say("hello")
        until(lambda: registry.failures == 1)
        attempt.event(step(4))
        attempt.say("again")
        attempt.finish(Stopped())
    assert steps_of(registry, attempt.id) == [1, 2, 3, 4]
    assert texts(registry, attempt.id) == ["continuing after step 2", "hello", "again", "stopped"]


def test_an_unreachable_registry_is_told_once_and_not_every_second(begin, registry, monkeypatch):
    told = []
    monkeypatch.setattr(attempt_module, "log", Recorder(told))
    with begin() as attempt:
        registry.breaks(RegistryUnavailable("gone"))
        until(lambda: registry.failures > 5)
        assert told == ["registry_unreachable"]
        registry.heals()
        attempt.event(step(1))
        until(lambda: steps_of(registry, attempt.id) == [1])
        before = registry.failures
        registry.breaks(RegistryUnavailable("gone"))
        until(lambda: registry.failures > before + 2)
        registry.heals()
        assert told == ["registry_unreachable"] * 2


class Recorder:
    """A logger that keeps the names of events."""

    def __init__(self, told):
        self._told = told

    def __getattr__(self, level):
        return lambda event, **fields: self._told.append(event)


def test_what_a_registry_can_not_take_at_all_does_not_cost_the_lease(begin, registry):
    timing = TIMING._replace(lease_s=2.0)
    record = new_record(registry, timing=timing)
    with begin(record, timing=timing) as attempt:
        registry.breaks(ValueError("not a text"), "append_log", times=1)
        attempt.say("odd")
        until(lambda: registry.failures == 1)
        until(lambda: registry.get(record.id).lease.expires_at > record.lease.expires_at)
        attempt.say("well")
        attempt.finish(Done())
    assert texts(registry, attempt.id) == ["well", "completed"]


def test_the_end_is_written_once_the_registry_is_there_again(begin, registry):
    with begin() as attempt:
        registry.breaks(RegistryUnavailable("busy"), times=4)
        attempt.finish(Done())
    assert registry.get(attempt.id).status is Status.COMPLETED
    assert texts(registry, attempt.id) == ["completed"]


def test_an_end_that_can_not_be_written_is_raised_and_the_lease_runs_out(begin, registry):
    with begin(timing=TIMING._replace(store_patience_s=0.2)) as attempt:
        registry.breaks(RegistryUnavailable("gone"))
        with pytest.raises(RegistryUnavailable):
            attempt.finish(Done())
        registry.heals()
    assert registry.get(attempt.id).status is Status.RUNNING
    assert registry.get(attempt.id).status is Status.RUNNING
    assert registry.get(attempt.id).lease.expires_at < datetime.now(UTC) + timedelta(seconds=61)


def test_results_wait_for_a_registry_that_is_away_at_the_end(begin, registry, store, tmp_path):
    with begin() as attempt:
        registry.breaks(RegistryUnavailable("busy"), "put_artifacts", times=4)
        attempt.event(image(tmp_path))
        assert attempt.finish(Done()) == Done()
    assert names(registry, attempt.id) == ["0.png"]
    assert len(manifest(store, attempt.id)) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [(DiskFull("no room"), "disk_full"), (OSError(errno.EDQUOT, "quota"), "disk_full"),
     (OSError(), "results_not_stored"), (ValueError("odd"), "results_not_stored")],
)  # fmt: skip
def test_done_without_its_results_is_a_failure(begin, registry, store, tmp_path, error, code):
    with begin() as attempt:
        store.breaks(error, "put_file")
        attempt.event(image(tmp_path, "0.png"))
        attempt.event(image(tmp_path, "1.png"))
        ending = attempt.finish(Done())
        failures = store.failures
    assert (ending.type, ending.code, ending.resumable) == ("failed", code, True)
    assert "2 results" in ending.message
    assert len(ending.problems) == 2
    assert failures == 4
    assert registry.get(attempt.id).error.code == code
    assert names(registry, attempt.id) == []


@pytest.mark.parametrize("error", [DiskFull("no room"), OSError("odd"), ValueError("odd")])
def test_what_could_not_be_stored_is_tried_once_more_at_the_end(
    begin, registry, store, tmp_path, error
):
    with begin() as attempt:
        store.breaks(error, "put_file", times=1)
        attempt.event(image(tmp_path, "0.png"))
        attempt.event(image(tmp_path, "1.png"))
        until(lambda: names(registry, attempt.id) == ["1.png"])
        assert attempt.finish(Done()) == Done()
    assert names(registry, attempt.id) == ["0.png", "1.png"]
    assert len(manifest(store, attempt.id)) == 2


def test_who_waits_for_the_results_gives_those_that_failed_a_second_try(
    begin, registry, store, tmp_path
):
    with begin() as attempt:
        store.breaks(DiskFull("no room"), "put_file", times=1)
        attempt.event(image(tmp_path))
        attempt.keeper.flush()
        assert names(registry, attempt.id) == ["0.png"]


def test_a_failure_stays_what_it_is_if_its_results_can_not_be_stored(
    begin, registry, store, tmp_path
):
    with begin() as attempt:
        store.breaks(DiskFull("no room"), "put_file")
        attempt.event(image(tmp_path))
        attempt.finish(Failed(code="out_of_memory", message="full"))
    assert registry.get(attempt.id).error.code == "out_of_memory"
    assert texts(registry, attempt.id)[-2].startswith("warning: 1 result could not be stored")


def test_a_file_that_arrived_in_part_is_not_listed(begin, registry, store, tmp_path, monkeypatch):
    put_file = store._inner.put_file
    monkeypatch.setattr(
        store._inner, "put_file", lambda key, path: put_file(key, path)._replace(size_bytes=1)
    )
    with begin() as attempt:
        attempt.event(image(tmp_path))
        assert attempt.finish(Done()).code == "results_not_stored"
    assert names(registry, attempt.id) == []


def test_the_end_waits_until_all_results_are_stored(begin, registry, store, tmp_path):
    put_file = store._inner.put_file

    def slowly(key, path):
        time.sleep(0.3)
        return put_file(key, path)

    store._inner.put_file = slowly
    with begin() as attempt:
        attempt.event(image(tmp_path, "0.png"))
        attempt.event(image(tmp_path, "1.png"))
        ended = threading.Thread(target=attempt.finish, args=(Done(),))
        ended.start()
        until(lambda: "0.png" in names(registry, attempt.id))
        assert registry.get(attempt.id).status is Status.RUNNING
        ended.join()
    assert registry.get(attempt.id).status is Status.COMPLETED
    assert names(registry, attempt.id) == ["0.png", "1.png"]


def test_the_lease_holds_while_the_results_are_stored(begin, registry, store, tmp_path):
    timing = TIMING._replace(lease_s=2.0)
    put_file, go_on = store._inner.put_file, threading.Event()
    store._inner.put_file = lambda key, path: go_on.wait(20) and put_file(key, path)
    record = new_record(registry, timing=timing)
    with begin(record, timing=timing) as attempt:
        attempt.event(image(tmp_path))
        ended = threading.Thread(target=attempt.finish, args=(Done(),))
        ended.start()
        until(lambda: registry.get(record.id).lease.expires_at > record.lease.expires_at)
        go_on.set()
        ended.join()
    assert registry.get(record.id).status is Status.COMPLETED


def test_what_comes_after_the_end_does_no_harm(begin, registry, store, tmp_path):
    with begin() as attempt:
        attempt.event(step(1))
        attempt.finish(Done())
        before = everything(registry, store, attempt.id)
        attempt.event(step(2))
        attempt.event(PhaseChanged(phase="saving"))
        attempt.event(image(tmp_path))
        attempt.event(checkpoint(tmp_path, 2))
    assert everything(registry, store, attempt.id) == before


def test_an_attempt_without_an_end_leaves_the_record_to_its_lease(begin, registry):
    with pytest.raises(KeyboardInterrupt), begin() as attempt:
        attempt.event(step(1))
        raise KeyboardInterrupt
    assert registry.get(attempt.id).status is Status.RUNNING
    assert steps_of(registry, attempt.id) == [1]
    assert not [t for t in threading.enumerate() if attempt.id in t.name]


# Checkpoints


def test_a_checkpoint_is_listed_only_once_all_of_its_files_are_stored(
    begin, registry, store, tmp_path
):
    with begin() as attempt:
        store.breaks(DiskFull("no room"), "put_file", times=1)
        put_file, listed = store._inner.put_file, []

        def watched(key, path):
            listed.append(names(registry, attempt.id))
            return put_file(key, path)

        store._inner.put_file = watched
        attempt.event(checkpoint(tmp_path, 5))
        until(lambda: store.failures)
        assert attempt.finish(Done()) == Done()
    assert listed == [[]] * 3
    assert sorted(names(registry, attempt.id)) == [
        f"step-000000005/{name}"
        for name in ("adapter.safetensors", "checkpoint.json", "state.safetensors")
    ]


def test_checkpoints_that_went_on_disk_go_from_registry_manifest_and_store(
    begin, registry, store, tmp_path
):
    with begin() as attempt:
        attempt.event(checkpoint(tmp_path, 5))
        attempt.event(checkpoint(tmp_path, 6))
        attempt.event(image(tmp_path))
        until(lambda: len(names(registry, attempt.id)) == 7)
        until(lambda: len(manifest(store, attempt.id)) == 7)
        remove(tmp_path, 5)
        delete, seen = store._inner.delete, []

        def watched(key):
            seen.append((key, names(registry, attempt.id), manifest(store, attempt.id)))
            delete(key)

        store._inner.delete = watched
        attempt.event(checkpoint(tmp_path, 7))
        attempt.finish(Done())
    assert len(seen) == 3
    for key, listed, in_manifest in seen:  # before it is deleted, nobody is told of it any more
        assert "step-000000005" in key
        assert not [name for name in listed if "step-000000005" in name]
        assert not [one for one in in_manifest if "step-000000005" in one]
    assert len(names(registry, attempt.id, "checkpoint")) == 6
    assert names(registry, attempt.id, "image") == ["0.png"]
    assert len(keys_of(store, attempt.id, "checkpoints")) == 6
    assert len(manifest(store, attempt.id)) == 7


def test_a_checkpoint_that_goes_while_it_is_stored_leaves_nothing(begin, registry, store, tmp_path):
    put_file = store._inner.put_file

    def too_late(key, path):
        info = put_file(key, path)
        if path.exists() and "step-000000005" in key:
            remove(tmp_path, 5)
        return info

    with begin() as attempt:
        store._inner.put_file = too_late
        attempt.event(checkpoint(tmp_path, 5))
        attempt.keeper.flush()
        assert names(registry, attempt.id) == []
        assert keys_of(store, attempt.id, "checkpoints") == []
        attempt.event(checkpoint(tmp_path, 6))
        assert attempt.finish(Done()) == Done()
    assert len(names(registry, attempt.id)) == len(keys_of(store, attempt.id, "checkpoints")) == 3


def test_a_store_that_has_lost_its_folder_has_not_stored_the_checkpoint(begin, store, tmp_path):
    with begin() as attempt:
        store.breaks(FileNotFoundError("the mount is gone"), "put_file")
        attempt.event(checkpoint(tmp_path, 5))
        assert attempt.finish(Done()).code == "results_not_stored"


@pytest.fixture
def stored_checkpoints(begin, registry, store, tmp_path):
    """Checkpoints of steps 5, 6 and 7 in the store, of a machine that is gone."""
    with begin() as attempt:
        for number in (5, 6, 7):
            attempt.event(checkpoint(tmp_path / "elsewhere", number))
        attempt.keeper.flush()
        assert len(names(registry, attempt.id)) == 9
    return attempt.id


def restored(registry, store, process_id, folder):
    folder.mkdir(exist_ok=True)
    count = restore_checkpoints(registry, store, process_id, folder)
    return count, sorted(path.name for path in folder.iterdir())


def test_the_newest_two_checkpoints_come_back_whole(stored_checkpoints, registry, store, tmp_path):
    here = tmp_path / "here"
    count, found = restored(registry, store, stored_checkpoints, here)
    assert (count, found) == (2, ["step-000000006", "step-000000007"])
    for name in ("adapter.safetensors", "checkpoint.json", "state.safetensors"):
        original = tmp_path / "elsewhere" / "step-000000007" / name
        assert (here / "step-000000007" / name).read_bytes() == original.read_bytes()


@pytest.mark.parametrize("damage", ["changed", "shorter", "gone"])
def test_in_place_of_a_damaged_checkpoint_the_one_before_comes_back(
    stored_checkpoints, registry, store, tmp_path, damage
):
    name = "checkpoints/step-000000007/state.safetensors"
    key = real_key(store, f"results/{stored_checkpoints}/{name}")
    data = bytearray(store.get(key))
    if damage == "gone":
        store.delete(key)
    elif damage == "shorter":
        store.put(key, bytes(data[:-1]))
    else:
        data[0] ^= 1
        store.put(key, bytes(data))
    count, found = restored(registry, store, stored_checkpoints, tmp_path / "here")
    assert (count, found) == (2, ["step-000000005", "step-000000006"])


def test_a_store_that_can_not_be_read_now_is_no_reason_to_begin_anew(
    stored_checkpoints, registry, store, tmp_path
):
    store.breaks(OSError("the mount is gone"), "get_file")
    with pytest.raises(OSError, match="mount"):
        restored(registry, store, stored_checkpoints, tmp_path / "here")
    store.heals()
    count, found = restored(registry, store, stored_checkpoints, tmp_path / "here")
    assert (count, [name for name in found if name[0] != "."]) == (
        2, ["step-000000006", "step-000000007"]
    )  # fmt: skip


def test_what_is_whole_on_disk_is_not_fetched_again(stored_checkpoints, registry, store, tmp_path):
    here = tmp_path / "here"
    assert restored(registry, store, stored_checkpoints, here)[0] == 2
    store.breaks(OSError("the mount is gone"), "get_file")
    assert restored(registry, store, stored_checkpoints, here)[0] == 0


@pytest.mark.parametrize("damage", ["changed", "shorter", "gone"])
def test_a_checkpoint_that_is_damaged_on_disk_is_replaced(
    stored_checkpoints, registry, store, tmp_path, damage
):
    here = tmp_path / "here"
    restored(registry, store, stored_checkpoints, here)
    path = here / "step-000000007" / "state.safetensors"
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "shorter":
        path.write_bytes(whole[:-1])
    else:
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert restored(registry, store, stored_checkpoints, here)[0] == 1
    assert path.read_bytes() == whole


def test_newer_ones_that_another_machine_stored_are_fetched_and_what_is_newer_here_stays(
    stored_checkpoints, registry, store, tmp_path
):
    here = tmp_path / "here"
    for step in (2, 9):
        (here / f"step-00000000{step}").mkdir(parents=True)
    count, found = restored(registry, store, stored_checkpoints, here)
    assert (count, found) == (2, [f"step-00000000{step}" for step in (2, 6, 7, 9)])


def test_half_of_a_checkpoint_is_brought_anew(stored_checkpoints, registry, store, tmp_path):
    here = tmp_path / "here"
    half = here / ".step-000000006.restored" / "old"
    half.parent.mkdir(parents=True)
    half.write_text("half")
    assert restored(registry, store, stored_checkpoints, here)[0] == 2
    assert not (here / "step-000000006" / "old").exists()
    assert Path(here / "step-000000006" / "state.safetensors").is_file()


def test_without_checkpoints_nothing_is_restored(begin, registry, store, tmp_path):
    with begin() as attempt:
        assert restored(registry, store, attempt.id, tmp_path / "here") == (0, [])


def test_a_keeper_without_the_lease_says_so(registry, store, tmp_path):
    record = new_record(registry)
    image(tmp_path)
    with keeper_of(registry, store, record.id, "wrong") as keeper:
        with pytest.raises(LeaseLost):
            keeper.now([NewArtifact("image", tmp_path / "0.png", "0.png")])
        assert list(store.list()) == []


AWAY = StoreUnavailable("object store doesn't answer")


def test_what_came_while_the_store_was_away_arrives_once_it_is_back(
    begin, registry, store, tmp_path, monkeypatch
):
    """While the work goes on, and without anybody asking for it."""
    monkeypatch.setattr("loradash.runtime.results._TRY_AGAIN_S", 0.05)
    with begin() as attempt:
        store.breaks(AWAY)
        attempt.event(image(tmp_path, "0.png"))
        attempt.event(image(tmp_path, "1.png"))
        attempt.event(checkpoint(tmp_path, 5))
        attempt.event(step(6))
        until(lambda: steps_of(registry, attempt.id) == [6])
        until(lambda: store.failures > 3)
        assert names(registry, attempt.id) == []
        store.heals()
        until(lambda: len(names(registry, attempt.id)) == 5)
        assert sorted(manifest(store, attempt.id)) == sorted(
            entry.key for entry in registry.artifacts(attempt.id)
        )
        assert attempt.finish(Done()) == Done()
    assert registry.get(attempt.id).status is Status.COMPLETED


def test_the_end_waits_for_a_store_that_is_away_and_says_so(
    begin, registry, store, tmp_path, monkeypatch
):
    monkeypatch.setattr(patience_module, "_LONGEST_PAUSE_S", 0.3)
    with begin(timing=TIMING._replace(store_patience_s=30)) as attempt:
        store.breaks(AWAY, "put_file")
        attempt.event(image(tmp_path))
        ending = []
        thread = threading.Thread(target=lambda: ending.append(attempt.finish(Done())))
        thread.start()
        until(lambda: "object store" in registry.get(attempt.id).progress.detail)
        assert registry.get(attempt.id).status is Status.RUNNING
        store.heals()
        thread.join()
    assert ending == [Done()]
    assert names(registry, attempt.id) == ["0.png"]
    assert registry.get(attempt.id).status is Status.COMPLETED


def test_patience_with_a_store_ends_and_the_failure_can_be_resumed(
    begin, registry, store, tmp_path
):
    with begin(timing=TIMING._replace(store_patience_s=0.2)) as attempt:
        store.breaks(AWAY, "put_file")
        attempt.event(image(tmp_path))
        ending = attempt.finish(Done())
    assert (ending.code, ending.resumable) == ("store_unavailable", True)
    assert registry.get(attempt.id).status is Status.FAILED


def test_who_was_asked_to_stop_does_not_wait_for_the_store(begin, registry, store, tmp_path):
    with begin(timing=TIMING._replace(store_patience_s=600)) as attempt:
        store.breaks(AWAY, "put_file")
        attempt.event(image(tmp_path))
        attempt.stop("cancel")
        began = time.monotonic()
        attempt.finish(Stopped())
        assert time.monotonic() - began < 20
    assert registry.get(attempt.id).status is Status.CANCELLED


def test_what_is_stored_already_is_not_sent_again(begin, registry, store, tmp_path):
    with begin() as attempt:
        attempt.event(image(tmp_path, "0.png"))
        attempt.keeper.flush()
        store.calls.clear()
        path = tmp_path / "0.png"
        attempt.keeper.now([NewArtifact("image", path, path.name, None, 0)])
        assert "put_file" not in [call[0] for call in store.calls]
        path.write_bytes(b"another content")
        attempt.keeper.now([NewArtifact("image", path, path.name, None, 0)])
        assert "put_file" in [call[0] for call in store.calls]
        attempt.finish(Done())
    (entry,) = registry.artifacts(attempt.id)
    assert store.get(entry.key) == b"another content"


def test_what_vanished_from_the_store_is_sent_again(begin, registry, store, tmp_path):
    record = new_record(registry)
    with begin(record) as attempt:
        attempt.event(image(tmp_path, "0.png"))
        attempt.keeper.flush()
        attempt.stop("shutdown")
        attempt.finish(Stopped())
    (entry,) = registry.artifacts(record.id)
    store.delete(entry.key)
    path = tmp_path / "0.png"
    with begin(take(registry, record.id, "second")) as attempt:
        attempt.keeper.now([NewArtifact("image", path, path.name, None, 0)])
        attempt.finish(Done())
    (sent,) = registry.artifacts(record.id)
    assert sent.key != entry.key
    assert store.get(sent.key) == path.read_bytes()


def test_a_disk_that_is_nearly_full_stops_the_work_and_it_can_be_resumed(begin, registry):
    is_low = threading.Event()
    with begin(disk_is_low=is_low.is_set) as attempt:
        attempt.event(step(3))
        until(lambda: steps_of(registry, attempt.id) == [3])
        assert not attempt.stop.count
        attempt._looked_at_disk_s = 0.0
        is_low.set()
        until(lambda: attempt.stop.count)
        assert attempt.stop.grace_s is None  # time for a checkpoint, as usual
        ending = attempt.finish(Stopped(step=3))
    assert (ending.code, ending.resumable) == ("disk_full", True)
    record = registry.get(attempt.id)
    assert (record.status, record.error.code, record.error.resumable) == (
        Status.FAILED, "disk_full", True,
    )  # fmt: skip
    assert any("disk is nearly full" in text for text in texts(registry, attempt.id))
