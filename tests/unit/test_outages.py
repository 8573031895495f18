"""The bucket is away, with everything in it, records too: no training fails, and none runs twice.

A worker as it is, from the SDK's event to the reply, over a bucket that answers nothing for a while
at every moment of a training, in each of the ways in which that shows. Short times stand for long
ones; `tests.chaos.outages` takes the long ones, over a real S3 server.
"""

import asyncio
import threading
import time
from datetime import UTC, datetime

import pytest

from loradash.domain import process as changes
from loradash.domain.events import CheckpointWritten, Done, StepDone, Stopped
from loradash.domain.ids import new_process_id
from loradash.domain.process import ProcessRecord, Progress, Status
from loradash.errors import InvalidConfig, LoradashError, StoreUnavailable
from loradash.executors.local import MemoryNeeds
from loradash.protocol.requests import process_of_job
from loradash.registry.objects import ObjectRegistry
from loradash.runtime import attempt as attempt_module
from loradash.runtime import patience as patience_module
from loradash.runtime import results as results_module
from loradash.runtime.attempt import Timing
from loradash.runtime.gpu import Slot
from loradash.runtime.lease_watch import LeaseWatch
from loradash.runtime.patience import AWAY, Patience
from loradash.runtime.results import NewArtifact
from loradash.runtime.supervisor import StopRequest
from loradash.services.processes.running import Runner
from loradash.services.processes.submission import stored_config, submit
from loradash.storage.memory import MemoryStore
from loradash.worker import work as work_module
from loradash.worker.handler import Handler
from loradash.worker.ownership import Ownership
from loradash.worker.work import JobStopped, Worker
from tests.unit.waits import until

KINDS = ("refused", "503", "hang", "answer lost")
MOMENTS = ("delivery", "take", "start", "middle", "checkpoint", "end", "last word")
TIMING = Timing(
    lease_s=60, cancel_grace_s=1, max_attempts=3, store_patience_s=60, stop_grace_s=0.3
)  # fmt: skip
STEPS = 6


class Bucket(MemoryStore):
    """A bucket that may be away. ``kind`` is how that shows; '' while it is there."""

    def __init__(self):
        super().__init__()
        self.kind = ""
        self.failures = 0
        self.begins_with = None
        """What is put when the outage shall begin: a piece of the object."""

    def goes_away(self, kind):
        self.kind = kind

    def comes_back(self):
        self.kind = ""

    def put(self, key, data):
        return self._ask(lambda: super(Bucket, self).put(key, data), data)

    def put_if(self, key, data, etag):
        return self._ask(lambda: super(Bucket, self).put_if(key, data, etag), data)

    def get(self, key):
        return self._ask(lambda: super(Bucket, self).get(key))

    def head(self, key):
        return self._ask(lambda: super(Bucket, self).head(key))

    def list(self, prefix=""):
        return self._ask(lambda: super(Bucket, self).list(prefix))

    def delete(self, key):
        return self._ask(lambda: super(Bucket, self).delete(key))

    def _ask(self, work, data=b""):
        if self.begins_with and self.begins_with[0] in data:
            _, self.kind = self.begins_with
            self.begins_with = None
        if not (kind := self.kind):
            return work()
        self.failures += 1
        if kind == "answer lost" and data:
            work()
        if kind == "503":
            time.sleep(0.01)
        deadline = time.monotonic() + 0.15
        while kind == "hang" and self.kind and time.monotonic() < deadline:
            time.sleep(0.005)
        raise StoreUnavailable(f"no answer ({kind})")


class Training:
    """An engine's work; ``at`` says what happens when it gets to a moment."""

    def __init__(self, store, folder):
        self._store = store
        self._folder = folder
        self.at = {}
        self.attempts = 0
        self.lasts = False
        self.began = threading.Event()

    def work(self, attempt):
        self.attempts += 1
        self.began.set()
        self._reach("start")
        attempt.patiently(lambda: stored_config(self._store, attempt.record))
        for step in range(1, STEPS + 1):
            attempt.event(StepDone(step=step, total_steps=STEPS, loss=1 / step, learning_rate=1))
            if step == 2:
                attempt.event(self._checkpoint(step))
            if step == 3:
                self._reach("middle")
            if step == 4:
                self._reach("checkpoint")
                attempt.event(self._checkpoint(step))
        while self.lasts and not attempt.stop.count:
            time.sleep(0.005)
        if attempt.stop.count:
            return Stopped()
        self._reach("end")
        path = self._folder / "cat.safetensors"
        path.write_bytes(b"weights")
        try:
            attempt.patiently(lambda: attempt.keeper.now([NewArtifact("lora", path, path.name)]))
        except AWAY:
            if attempt.stop.count:
                return Stopped()
            raise
        self._reach("last word")
        return Done()

    def _reach(self, moment):
        if act := self.at.pop(moment, None):
            act()

    def _checkpoint(self, step):
        folder = self._folder / f"step-{step:09d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter.safetensors").write_bytes(b"%d" % step)
        return CheckpointWritten(step=step, path=str(folder), size_bytes=1)


class Dispatcher:
    """Submits trainings, having looked into the bucket for their datasets."""

    def __init__(self, registry, store):
        self._registry = registry
        self._store = store
        self.checks = 0

    def answer(self, data, *, request_id="", idempotency_key="", waits=False):
        self.checks += 1
        try:
            if "config" not in data:
                raise InvalidConfig("config: missing")
            self._store.list("dataset")
            now = datetime.now(UTC)
            record = ProcessRecord(
                id=process_of_job(data, request_id), kind="training", name="cat", created_at=now,
                enqueued_at=now, updated_at=now, progress=Progress(total_steps=STEPS),
            )  # fmt: skip
            submit(self._registry, self._store, record, data["config"], may_exist=True)
        except LoradashError as error:
            if waits and isinstance(error, AWAY):
                raise
            return {"error": str(error)}
        return {"process_id": record.id, "request_id": request_id, "status": "started"}


class NoMemory:
    def free_mb(self, slot):
        return None

    def total_mb(self, slot):
        return None


def watching():
    return LeaseWatch(TIMING.lease_s, look_every_s=0.02)


class World:
    def __init__(self, folder, timing=TIMING):
        self.store = Bucket()
        self.registry = ObjectRegistry(self.store)
        self.engine = Training(self.store, folder)
        self.dispatcher = Dispatcher(self.registry, self.store)
        runner = Runner(self.registry, self.store, {"training": self.engine}, timing)
        self.worker = Worker(
            self.dispatcher, self.registry, Ownership(self.registry, runner.taking, 3, watching),
            runner, Slot("cpu", None, {}), NoMemory(), MemoryNeeds(dict.fromkeys(KINDS, 0)),
            lambda name: None,
            stop_grace_s=timing.stop_grace_s, patience_s=timing.store_patience_s,
        )  # fmt: skip

    def handle(self, job=None, then=None):
        """Handle a job as the SDK does; ``then`` runs meanwhile, and may have it cancelled."""

        async def tell(_job, _progress):
            return None

        async def main():
            handler = Handler(
                self.worker,
                tell,
                lambda process_id: {"process_id": process_id},
                progress_interval_s=60,
            )
            task = asyncio.ensure_future(handler(job or JOB))
            if then and await asyncio.to_thread(then) == "cancel":
                task.cancel()
            return await task

        return asyncio.run(main())

    def outage(self, kind, failures=4):
        """Begin an outage that ends, in a thread, after some requests have failed."""
        self.store.goes_away(kind)
        self.ends_after(failures)

    def ends_after(self, failures=4):
        seen = self.store.failures

        def end():
            until(lambda: self.store.failures >= seen + failures)
            self.store.comes_back()

        threading.Thread(target=end, daemon=True).start()


JOB = {"id": "job-1", "input": {"type": "train", "config": "steps: 6"}}
PROCESS_ID = process_of_job(JOB["input"], JOB["id"])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(work_module, "POLL_INTERVAL_S", 0.02)
    monkeypatch.setattr(attempt_module, "TICK_S", 0.02)
    monkeypatch.setattr(results_module, "_TRY_AGAIN_S", 0.02)
    for name in ("_FIRST_PAUSE_S", "_LONGEST_PAUSE_S", "_POLL_S"):
        monkeypatch.setattr(patience_module, name, 0.01)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def is_whole(world):
    """Once completed, at the first attempt, with all that belongs to it."""
    record = world.registry.get(PROCESS_ID)
    artifacts = world.registry.artifacts(PROCESS_ID)
    return (
        record.status is Status.COMPLETED
        and [note.ending for note in record.attempts] == ["completed"]
        and [row.step for row in world.registry.metrics(PROCESS_ID)] == [1, 2, 3, 4, 5, 6]
        and {entry.name for entry in artifacts}
        == {
            "step-000000002/adapter.safetensors", "step-000000004/adapter.safetensors",
            "cat.safetensors",
        }
        and all(world.store.get(entry.key) for entry in artifacts)
        and world.engine.attempts == 1
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_outage_costs_nothing_whenever_it_comes(world, moment, kind):
    if moment == "delivery":
        world.outage(kind)
    elif moment == "take":
        world.store.begins_with = (b'"running"', kind)
        world.ends_after()
    elif moment == "last word":
        world.store.begins_with = (b'"completed"', kind)
        world.ends_after()
    else:
        world.engine.at[moment] = lambda: world.outage(kind)
    reply = world.handle()
    assert (reply["status"], reply["process_status"]) == ("completed", "completed")
    assert world.store.failures >= 4
    assert is_whole(world)


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_comes_again_during_an_outage_is_answered_once_it_is_over(world, kind):
    """Not failed by a check that can't be made: what was submitted before was checked then."""
    first = world.handle()
    checks = world.dispatcher.checks
    world.outage(kind)
    assert world.handle() == first
    assert world.dispatcher.checks == checks
    assert is_whole(world)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moment", ["delivery", "middle"])
def test_a_cancel_during_an_outage_is_written_once_it_is_over(world, moment, kind):
    world.engine.lasts = True
    if moment == "delivery":
        world.store.goes_away(kind)
    else:
        world.engine.at["middle"] = lambda: world.store.goes_away(kind)

    def cancel():
        until(lambda: world.store.failures >= 2)
        world.ends_after()
        return "cancel"

    with pytest.raises(asyncio.CancelledError):
        world.handle(then=cancel)
    records = world.registry.page().records
    assert [record.status for record in records] in ([], [Status.CANCELLED])
    assert moment == "delivery" or records
    assert world.engine.attempts == (moment == "middle")


def test_what_is_wrong_with_the_request_is_said_at_once(world):
    reply = world.handle({"id": "job-1", "input": {"type": "train"}})
    assert reply == {"error": "config: missing"}


@pytest.mark.parametrize("moment", ["delivery", "take", "start", "end", "last word"])
def test_an_outage_longer_than_the_patience_gives_the_job_back(tmp_path, moment):
    """No reply: whoever gets the job next goes on, and no record stands as ended that hasn't."""
    world = World(tmp_path, TIMING._replace(store_patience_s=0.2))
    if moment == "delivery":
        world.store.goes_away("refused")
    elif moment in ("take", "last word"):
        text = {"take": b'"running"', "last word": b'"completed"'}[moment]
        world.store.begins_with = (text, "refused")
    else:
        world.engine.at[moment] = lambda: world.store.goes_away("refused")
    with pytest.raises(asyncio.CancelledError):
        world.handle()
    world.store.comes_back()
    if moment != "delivery":
        left = world.registry.get(PROCESS_ID)
        if left.status is Status.RUNNING:  # as it looks to whoever sees the lease run out
            world.registry.change(
                PROCESS_ID,
                lambda one: changes.expired(
                    one, now=datetime.now(UTC), max_attempts=3, owner_is_gone=True
                ),
            )
        else:
            assert left.status is Status.PENDING
    assert world.handle()["status"] == "completed"
    found = world.registry.get(PROCESS_ID)
    assert (found.status, found.attempts[-1].ending) == (Status.COMPLETED, "completed")


@pytest.mark.parametrize("moment", ["delivery", "start", "end", "last word"])
def test_a_worker_that_is_stopped_waits_no_longer_than_its_grace(world, moment):
    if moment == "delivery":
        world.store.goes_away("refused")
    elif moment == "last word":
        world.store.begins_with = (b'"completed"', "refused")
    else:
        world.engine.at[moment] = lambda: world.store.goes_away("refused")

    def stop():
        until(lambda: world.store.failures >= 3)
        world.worker.stop()

    began_s = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        world.handle(then=stop)
    assert time.monotonic() - began_s < 20  # and not the 60 s of its patience
    world.store.comes_back()
    records = world.registry.page().records
    assert {record.status for record in records} <= {Status.PENDING, Status.RUNNING}


def test_what_is_done_is_stored_by_a_stopped_worker_if_the_bucket_returns_in_time(tmp_path):
    world = World(tmp_path, TIMING._replace(stop_grace_s=60))
    world.engine.at["end"] = lambda: world.store.goes_away("refused")

    def stop():
        until(lambda: world.store.failures >= 3)
        world.worker.stop()
        world.ends_after()

    assert world.handle(then=stop)["status"] == "completed"
    assert is_whole(world)


# The patience itself, on a clock that is wound


class Clock:
    def __init__(self, monkeypatch):
        self.now_s = 100.0
        monkeypatch.setattr(patience_module.time, "monotonic", lambda: self.now_s)
        monkeypatch.setattr(patience_module.time, "sleep", self._sleep)
        monkeypatch.setattr(patience_module, "_FIRST_PAUSE_S", 0.5)
        monkeypatch.setattr(patience_module, "_LONGEST_PAUSE_S", 5.0)
        monkeypatch.setattr(patience_module, "_POLL_S", 0.05)
        self.back_s = 0.0
        self.at = []

    def _sleep(self, seconds):
        self.now_s += seconds
        while self.at and self.at[0][0] <= self.now_s:
            self.at.pop(0)[1]()


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def away():
    raise StoreUnavailable("away")


def test_store_and_registry_share_one_clock_that_a_success_stops(clock):
    patience = Patience(3600, StopRequest())
    for _ in range(2):
        began_s = clock.now_s
        clock.back_s = began_s + 3000
        assert patience(lambda: away() if clock.now_s < clock.back_s else "done") == "done"
        assert clock.now_s - began_s < 3010
    began_s = clock.now_s
    for error in AWAY:

        def fail(error=error):
            raise error("away")

        with pytest.raises(error):
            patience(fail)
    assert 3600 <= clock.now_s - began_s < 3610


@pytest.mark.parametrize(
    ("reason", "insist", "longest_s"),
    [
        ("shutdown", False, 30), ("shutdown", True, 30), ("cancel", False, 30),
        ("cancel", True, 3600), ("job_ended", True, 3600), ("disk_full", False, 3600),
        ("lease_lost", True, 0), ("", True, 30),
    ],
)  # fmt: skip
def test_who_is_asked_to_stop_waits_for_what_he_owes_only(clock, reason, insist, longest_s):
    stop = StopRequest()
    patience = Patience(3600, stop, 30)
    clock.at = [(clock.now_s + 10, lambda: stop(reason))]
    began_s = clock.now_s
    with pytest.raises(StoreUnavailable):
        patience(away, insist=insist)
    assert longest_s <= clock.now_s - began_s < longest_s + 16


def test_a_second_request_to_stop_ends_the_waiting_at_once(clock):
    stop = StopRequest()
    patience = Patience(3600, stop, 30)
    clock.at = [(clock.now_s + 10, lambda: stop("cancel")), (clock.now_s + 20, stop)]
    began_s = clock.now_s
    with pytest.raises(StoreUnavailable):
        patience(away, insist=True)
    assert clock.now_s - began_s < 25


def test_a_worker_without_patience_gives_back_what_it_can_not_look_up(tmp_path):
    world = World(tmp_path, TIMING._replace(store_patience_s=0))
    world.store.goes_away("refused")
    with pytest.raises(JobStopped):
        world.worker.run(new_process_id("training"), StopRequest())
