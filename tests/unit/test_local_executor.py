"""The queue of one machine, with processes that do nothing but wait to be let go."""

import dataclasses
import fcntl
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from secrets import token_hex

import pytest
import structlog

from loradash.domain import process as changes
from loradash.domain.ids import new_process_id
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import AlreadyRunning, LoradashError, RegistryUnavailable
from loradash.executors import local
from loradash.executors.local import LocalExecutor, MemoryNeeds
from loradash.executors.server_lock import server_is_running
from loradash.executors.state import ExecutorState, LaneState, SlotState
from loradash.registry.memory import MemoryRegistry
from loradash.runtime.gpu import Slot
from loradash.runtime.lease_watch import LeaseWatch
from loradash.runtime.orphans import ChildRecords, Orphan
from loradash.runtime.owner import this_owner
from loradash.services.processes.running import take_over
from tests.unit.waits import never, until

CUDA_0 = Slot("cuda:0", 0, {"CUDA_VISIBLE_DEVICES": "GPU-0"})
CUDA_1 = Slot("cuda:1", 1, {"CUDA_VISIBLE_DEVICES": "GPU-1"})
NEEDS = MemoryNeeds({"training": 10_000, "generation": 5_000})
LEASE_S = 60.0
SWEEP_EVERY_S = 0.05


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(local, "_LOCK_PATIENCE_S", 0.1)
    monkeypatch.setattr(local, "_END_S", 1.0)


class Memory:
    """As much free memory as the test says; None is unknown."""

    def __init__(self, free_mb=100_000.0, total_mb=100_000.0):
        self.free, self.total = free_mb, total_mb

    def free_mb(self, slot):
        return self.free() if callable(self.free) else self.free

    def total_mb(self, slot):
        return self.total


class Flaky(MemoryRegistry):
    """A registry that raises as long as it is told to."""

    error = None
    looks = 0

    def pending(self, kind=None, *, limit=100):
        self.looks += 1
        if self.error:
            raise self.error
        return super().pending(kind, limit=limit)


class Machine:
    """An executor whose processes run until they are let go or asked to stop."""

    def __init__(
        self, root, slots=(CUDA_0,), memory=None, needs=NEEDS, registry=None, poll_interval_s=0.02
    ):
        self.root = root
        self.registry = registry or Flaky()
        self.memory = memory or Memory()
        self.running = {}  # by process id: where it runs
        self.order = []  # what was begun
        self.unload_done = []  # each slot that was told to, and what ran there
        self.unload_blocks = threading.Event()
        self.unload_blocks.set()
        self.orphans = []
        self.stubborn = False
        self.error = None
        self.let_go = {}
        self.stops = {}
        self.watch = LeaseWatch(LEASE_S, look_every_s=SWEEP_EVERY_S)
        self.executor = LocalExecutor(
            self.registry, slots, self.memory, needs,
            taking=self.taking, run=self.run, watch=self.watch, take_over=self.take_over,
            unload_pipeline=self.unload_pipeline,
            children=self, lock_path=root / "run" / "server.lock", orphan_grace_s=3,
            poll_interval_s=poll_interval_s,
        )  # fmt: skip

    # What the executor is given

    def taking(self, device):
        token = token_hex(4)
        return lambda record: changes.taken(
            record, owner=this_owner(), token=token, now=datetime.now(UTC), lease_s=LEASE_S,
            device=device,
        )  # fmt: skip

    def run(self, record, slot, stop):
        self.stops[record.id] = stop
        self.order.append(record.id)
        self.running[record.id] = slot.name
        let_go = self.let_go.setdefault(record.id, threading.Event())
        try:
            while not let_go.is_set():
                if stop.count > (1 if self.stubborn else 0):
                    return self.change(record, changes.released, now=datetime.now(UTC))
                time.sleep(0.005)
            if self.error:
                raise self.error
            return self.change(record, changes.completed, now=datetime.now(UTC), output_prefix="x")
        finally:
            del self.running[record.id]

    def take_over(self, process_id):
        return take_over(self.registry, process_id, 3, self.watch)

    def unload_pipeline(self, name):
        inside = [one for one, where in self.running.items() if where == name]
        self.unload_done.append((name, inside))
        assert self.unload_blocks.wait(20)

    def end_orphans(self, grace_s):
        assert grace_s == 3
        return self.orphans

    # What the tests do

    def add(self, kind="training", **fields):
        now = datetime.now(UTC)
        record = ProcessRecord(
            id=new_process_id(kind), kind=kind, name="cat",
            created_at=now, updated_at=now, **{"enqueued_at": now, **fields},
        )  # fmt: skip
        self.registry.create(record)
        self.executor.submitted(record.id)
        return record.id

    def change(self, record, change, **options):
        token = record.lease.token
        return self.registry.change(record.id, lambda one: change(one, token, **options))

    def phase(self, process_id, phase):
        """The process tells how far it is."""
        self.registry.change(
            process_id,
            lambda one: one.model_copy(
                update={"progress": one.progress.model_copy(update={"phase": phase})}
            ),
        )  # fmt: skip

    def release(self, process_id):
        self.let_go.setdefault(process_id, threading.Event()).set()

    def until_running(self, *process_ids):
        until(lambda: set(self.running) == set(process_ids))

    def status(self, process_id):
        return self.registry.get(process_id).status

    def lane(self, kind="training", slot=0):
        lanes = self.executor.state().slots[slot].lanes
        return next(lane for lane in lanes if lane.name == kind)

    def waiting_reason(self, kind="training", slot=0):
        return self.lane(kind, slot).waiting_reason

    def looked(self, times=3):
        """Wait until the executor has looked into the queue some times more."""
        seen = self.registry.looks
        until(lambda: self.registry.looks > seen + 2 * times)


@pytest.fixture
def make(tmp_path):
    made = []

    def make_machine(*, start=True, **options):
        machine = Machine(tmp_path, **options)
        made.append(machine)
        if start:
            machine.executor.start()
        return machine

    yield make_machine
    for machine in made:
        machine.stubborn = False
        machine.unload_blocks.set()
        machine.executor.stop(10)


@pytest.fixture
def machine(make):
    return make()


# What runs where


def test_what_waits_is_taken_and_run(machine):
    process_id = machine.add()
    machine.until_running(process_id)
    record = machine.registry.get(process_id)
    assert (record.status, record.device) == (Status.RUNNING, "cuda:0")
    lanes = (LaneState(name="training", process_id=process_id), LaneState(name="generation"))
    slot = SlotState(name="cuda:0", lanes=lanes)
    assert machine.executor.state() == ExecutorState(slots=(slot,))
    machine.release(process_id)
    until(lambda: machine.status(process_id) is Status.COMPLETED)
    until(lambda: machine.lane().process_id is None)


def test_a_slot_trains_one_at_a_time_and_then_the_next(machine):
    first, second = machine.add(), machine.add()
    machine.until_running(first)
    never(lambda: len(machine.running) > 1)
    assert machine.status(second) is Status.PENDING
    machine.release(first)
    machine.until_running(second)


def test_the_next_one_starts_at_once(make):
    machine = make(poll_interval_s=600)
    ids = [machine.add("generation") for _ in range(5)]
    for process_id in ids:
        machine.until_running(process_id)
        machine.release(process_id)
    training = machine.add()
    machine.until_running(training)


def test_what_nobody_has_told_of_is_found(machine):
    machine.executor.submitted = lambda process_id: None
    machine.until_running(machine.add())


def test_slots_work_at_the_same_time(make):
    machine = make(slots=(CUDA_0, CUDA_1))
    first, second, third = machine.add(), machine.add(), machine.add()
    machine.until_running(first, second)
    assert sorted(machine.running.values()) == ["cuda:0", "cuda:1"]
    machine.release(second)
    machine.until_running(first, third)


def test_the_order_is_by_priority_then_by_age(make):
    machine = make(start=False)
    now = datetime.now(UTC)
    late = machine.add(enqueued_at=now)
    early = machine.add(enqueued_at=now - timedelta(hours=1))
    urgent = machine.add(priority=5)
    machine.executor.start()
    for process_id in (urgent, early, late):
        machine.until_running(process_id)
        machine.release(process_id)
    until(lambda: not machine.running)
    assert machine.order == [urgent, early, late]


def test_a_paused_queue_starts_nothing_until_it_goes_on(machine):
    first = machine.add()
    machine.until_running(first)
    machine.registry.pause(True)
    second, drawn = machine.add(), machine.add("generation")
    machine.release(first)
    until(lambda: not machine.running)
    never(lambda: machine.running)
    assert machine.waiting_reason() == machine.waiting_reason("generation") == ""
    machine.registry.pause(False)
    machine.executor.submitted("")
    machine.until_running(second, drawn)


def test_what_was_cancelled_while_it_waited_is_not_started(machine):
    first, second, third = (machine.add() for _ in range(3))
    machine.until_running(first)
    machine.registry.change(
        second, lambda one: changes.cancel_requested(one, datetime.now(UTC))
    )  # fmt: skip
    machine.release(first)
    machine.until_running(third)


# Trainings and generations beside each other


def test_a_generation_runs_beside_a_training_if_memory_allows(machine):
    training = machine.add()
    machine.until_running(training)
    drawn = machine.add("generation")
    machine.until_running(training, drawn)


def test_a_generation_waits_for_memory_says_so_and_then_starts(make):
    machine = make(memory=Memory(free_mb=20_000))
    training = machine.add()
    machine.until_running(training)
    machine.phase(training, "training")
    machine.memory.free = 4_000
    drawn = machine.add("generation")
    until(lambda: machine.waiting_reason("generation").startswith("Waiting for memory"))
    assert machine.waiting_reason("generation") == (
        f"Waiting for memory: 4000 MB free, 5000 MB needed ({training} is running)"
    )  # fmt: skip
    never(lambda: drawn in machine.running)
    machine.memory.free = 6_000
    machine.until_running(training, drawn)
    assert machine.waiting_reason("generation") == ""


def test_a_generation_waits_until_a_training_is_over_that_takes_all_memory(make):
    machine = make(memory=Memory(free_mb=20_000))
    training = machine.add()
    machine.until_running(training)
    machine.phase(training, "training")
    machine.memory.free = 100
    drawn = machine.add("generation")
    machine.looked()
    machine.release(training)
    machine.until_running(drawn)  # whatever the memory: nothing else of ours holds it


@pytest.mark.parametrize("phase", ["starting", "loading", "caching"])
def test_what_was_started_just_now_may_still_take_its_memory(make, phase):
    machine = make(memory=Memory(free_mb=14_000))
    training = machine.add()
    machine.until_running(training)
    machine.phase(training, phase)
    drawn = machine.add("generation")
    until(
        lambda: machine.waiting_reason("generation").startswith(
            "Waiting for memory: 14000 MB free, 15000 MB"
        )
    )
    machine.phase(training, "training")
    machine.until_running(training, drawn)


def test_two_that_can_not_fit_a_small_gpu_together_are_not_tried(make):
    """As long as the training has taken nothing yet, nearly all memory is free."""
    machine = make(memory=Memory(free_mb=11_500, total_mb=12_000))
    training = machine.add()
    machine.until_running(training)
    drawn = machine.add("generation")
    until(
        lambda: machine.waiting_reason("generation").startswith(
            "Waiting for memory: 11500 MB free, 15000 MB"
        )
    )
    never(lambda: drawn in machine.running)


def test_on_a_gpu_that_is_smaller_than_asked_for_a_process_is_tried_if_it_is_empty(make):
    machine = make(memory=Memory(free_mb=6_000, total_mb=8_000))
    training = machine.add()
    until(lambda: machine.waiting_reason().startswith("Waiting for memory: 6000 MB free, 7200 MB"))
    machine.memory.free = 7_500
    machine.until_running(training)


def test_a_small_machine_without_gpu_trains_beside_what_else_it_does(make):
    machine = make(slots=(Slot("cpu"),), memory=Memory(free_mb=900, total_mb=8_000))
    training = machine.add()
    until(lambda: machine.waiting_reason().startswith("Waiting for memory: 900 MB free, 2000 MB"))
    machine.memory.free = 3_100
    machine.until_running(training)
    machine.phase(training, "training")
    machine.memory.free = 900
    drawn = machine.add("generation")
    until(
        lambda: machine.waiting_reason("generation").startswith(
            "Waiting for memory: 900 MB free, 1000 MB"
        )
    )
    machine.memory.free = 1_100
    machine.until_running(training, drawn)


def test_a_training_waits_for_memory_that_other_programs_hold(make):
    machine = make(memory=Memory(free_mb=9_000))
    training = machine.add()
    until(lambda: machine.waiting_reason() == "Waiting for memory: 9000 MB free, 10000 MB needed")
    never(lambda: machine.running)
    machine.memory.free = 11_000
    machine.until_running(training)


def test_where_memory_is_unknown_only_one_runs_at_a_time(make):
    machine = make(memory=Memory(free_mb=None, total_mb=None))
    training = machine.add()
    machine.until_running(training)
    machine.add("generation")
    until(
        lambda: (
            machine.waiting_reason("generation")
            == f"Waiting for {training}: free memory is unknown"
        )
    )
    never(lambda: len(machine.running) > 1)


def test_a_free_slot_comes_before_one_where_something_runs(make):
    machine = make(slots=(CUDA_0, CUDA_1))
    training = machine.add()
    machine.until_running(training)
    drawn = machine.add("generation")
    machine.until_running(training, drawn)
    assert machine.running[drawn] != machine.running[training]


def test_a_training_too_goes_where_nothing_runs(make):
    machine = make(slots=(CUDA_0, CUDA_1))
    drawn = machine.add("generation")
    machine.until_running(drawn)
    training = machine.add()
    machine.until_running(drawn, training)
    assert machine.running[drawn] != machine.running[training]


def test_a_training_that_waits_beside_a_generation_comes_before_the_next_one(make):
    machine = make()
    first, *others = [machine.add("generation") for _ in range(20)]
    machine.until_running(first)
    machine.phase(first, "generating")
    for process_id in others:
        machine.release(process_id)

    def free_mb():
        if not machine.running:
            return 11_000
        machine.release(first)  # it ends just after the training was found to have no room
        until(lambda: machine.lane("generation").process_id is None)
        return 9_000

    machine.memory.free = free_mb
    training = machine.add()
    until(lambda: training in machine.order)
    assert machine.order == [first, training]


def test_a_training_that_waits_says_behind_what(make):
    machine = make(memory=Memory(free_mb=9_000))
    drawn = machine.add("generation")
    machine.until_running(drawn)
    machine.phase(drawn, "generating")
    machine.add()
    until(
        lambda: (
            machine.waiting_reason()
            == f"Waiting for memory: 9000 MB free, 10000 MB needed ({drawn} is running)"
        )
    )
    assert machine.unload_done == []


# The warm pipeline


def test_an_idle_pipeline_gives_way_before_a_training_starts(make):
    machine = make()
    drawn = machine.add("generation")
    machine.until_running(drawn)
    assert machine.unload_done == []
    machine.release(drawn)
    until(lambda: not machine.running)
    machine.unload_blocks.clear()
    training = machine.add()
    until(lambda: machine.unload_done == [("cuda:0", [])])
    until(lambda: "pipeline" in machine.waiting_reason())
    assert machine.status(training) is Status.PENDING  # no lease runs meanwhile
    machine.unload_blocks.set()
    machine.until_running(training)


def test_the_memory_that_the_pipeline_held_counts_for_the_training(make):
    machine = make(memory=Memory(free_mb=3_000))

    def freeing(name):
        machine.memory.free = 12_000

    machine.executor._unload_pipeline = freeing
    machine.until_running(machine.add())


def test_no_generation_starts_while_its_pipeline_gives_way_to_a_training(make):
    machine = make()
    machine.unload_blocks.clear()
    training = machine.add()
    until(lambda: machine.unload_done)
    drawn = machine.add("generation")
    until(lambda: "pipeline" in machine.waiting_reason("generation"))
    never(lambda: machine.running)
    machine.unload_blocks.set()
    machine.until_running(training, drawn)


def test_a_pipeline_that_draws_does_not_give_way(make):
    machine = make()
    drawn = machine.add("generation")
    machine.until_running(drawn)
    machine.phase(drawn, "generating")
    training = machine.add()
    machine.until_running(drawn, training)
    assert machine.unload_done == []


def test_a_pipeline_gives_way_once_and_not_every_second(make):
    machine = make(memory=Memory(free_mb=9_000))
    machine.add()
    until(lambda: machine.waiting_reason().startswith("Waiting for memory"))
    machine.looked()
    assert len(machine.unload_done) == 1


def test_a_pipeline_that_stands_in_its_own_generations_way_is_ended(make):
    """It was kept warm beside a training, and a generation must not wait for its idle time."""
    machine = make()
    training = machine.add()
    machine.until_running(training)
    machine.phase(training, "training")
    drawn = machine.add("generation")
    machine.until_running(training, drawn)
    machine.release(drawn)
    machine.until_running(training)
    machine.memory.free = 4_000
    before = len(machine.unload_done)
    again = machine.add("generation")
    until(lambda: len(machine.unload_done) == before + 1)
    machine.memory.free = 9_000
    machine.until_running(training, again)


def test_a_pipeline_that_does_not_end_holds_up_its_own_slot_only(make):
    machine = make(slots=(CUDA_0, CUDA_1))
    machine.unload_blocks.clear()
    machine.add()
    until(lambda: machine.unload_done)
    stuck = machine.unload_done[0][0]
    drawn = machine.add("generation")
    machine.until_running(drawn)
    assert machine.running[drawn] != stuck


def test_one_training_ends_one_pipeline(make):
    machine = make(slots=(CUDA_0, CUDA_1))
    machine.until_running(machine.add())
    machine.looked()
    assert len(machine.unload_done) == 1


def test_a_training_goes_where_no_pipeline_is_warm_and_a_generation_where_one_is(make):
    machine = make(slots=(CUDA_0, CUDA_1))
    first = machine.add()
    machine.until_running(first)
    cold = machine.running[first]
    machine.release(first)
    until(lambda: not machine.running)
    drawn = machine.add("generation")
    machine.until_running(drawn)
    assert machine.running[drawn] != cold
    machine.release(drawn)
    until(lambda: not machine.running)
    second = machine.add()
    machine.until_running(second)
    assert machine.running[second] == cold
    assert len(machine.unload_done) == 1


def test_a_pipeline_that_can_not_be_ended_does_not_stop_the_queue(make):
    machine = make()
    machine.executor._unload_pipeline = lambda name: 1 / 0
    with structlog.testing.capture_logs():
        machine.until_running(machine.add())


# Stopping


def test_stopping_asks_what_runs_and_waits_for_it(machine):
    training, drawn, waiting = machine.add(), machine.add("generation"), machine.add()
    machine.until_running(training, drawn)
    machine.executor.stop(20)
    assert machine.running == {}
    for process_id in (training, drawn):
        stop = machine.stops[process_id]
        assert (stop.count, stop.reason, stop.grace_s) == (1, "shutdown", None)
        assert machine.registry.get(process_id).attempt.ending == "released"
    assert machine.status(waiting) is Status.PENDING


def test_nothing_is_taken_after_the_stop(machine):
    machine.executor.stop(20)
    machine.add()
    machine.add("generation")
    never(lambda: machine.order)


def test_what_does_not_stop_in_time_is_ended(machine):
    machine.stubborn = True
    training = machine.add()
    machine.until_running(training)
    machine.executor.stop(0.2)
    assert machine.stops[training].count == 2
    assert machine.running == {}


def test_the_stop_of_several_that_hang_takes_no_longer_than_of_one(make):
    machine = make(slots=(CUDA_0, CUDA_1))
    machine.executor._run = lambda record, slot, stop: hang.wait(20)
    hang = threading.Event()
    for kind in ("training", "generation") * 2:
        machine.add(kind)
    until(lambda: sum(lane.busy for lane in machine.executor._lanes) == 4)
    began_s = time.monotonic()
    machine.executor.stop(0.2)
    assert time.monotonic() - began_s < 3.5  # one after the other: 0.2 + 4 * 1
    hang.set()


def test_a_stop_lets_a_cancelled_process_write_its_checkpoint(machine):
    training = machine.add()
    machine.until_running(training)
    machine.stubborn = True
    machine.stops[training]("cancel", 5)
    stopping = threading.Thread(target=machine.executor.stop, args=(20,))
    stopping.start()
    never(lambda: machine.stops[training].count > 1)
    assert machine.stops[training].reason == "cancel"
    machine.release(training)
    stopping.join()


def test_a_look_that_takes_long_does_not_keep_the_stop_from_what_runs(machine):
    training = machine.add()
    machine.until_running(training)
    blocked, go_on = threading.Event(), threading.Event()

    def pending(kind=None, *, limit=100):
        blocked.set()
        go_on.wait(20)
        return ()

    machine.registry.pending = pending
    assert blocked.wait(20)
    stopping = threading.Thread(target=machine.executor.stop, args=(20,))
    stopping.start()
    until(lambda: not machine.running)
    go_on.set()
    stopping.join()


def test_what_was_being_taken_while_the_stop_began_is_asked_too(machine):
    blocked, go_on = threading.Event(), threading.Event()
    take_next = machine.registry.take_next

    def slowly(*arguments, **options):
        blocked.set()
        go_on.wait(20)
        return take_next(*arguments, **options)

    machine.registry.take_next = slowly
    process_id = machine.add("generation")
    assert blocked.wait(20)
    stopping = threading.Thread(target=machine.executor.stop, args=(20,))
    stopping.start()
    time.sleep(0.05)
    go_on.set()
    stopping.join(20)
    assert not stopping.is_alive()
    assert machine.stops[process_id].count == 1
    assert machine.registry.get(process_id).attempt.ending == "released"


def test_hurry_ends_what_runs_at_once_and_takes_nothing_more(machine):
    machine.stubborn = True
    training, waiting = machine.add(), machine.add()
    machine.until_running(training)
    machine.executor.stop_now()
    until(lambda: not machine.running)
    never(lambda: machine.running)
    assert machine.order == [training]
    assert machine.status(waiting) is Status.PENDING


def test_hurry_while_the_stop_waits_ends_the_waiting(machine):
    machine.stubborn = True
    training = machine.add()
    machine.until_running(training)
    stopping = threading.Thread(target=machine.executor.stop, args=(600,))
    stopping.start()
    until(lambda: machine.stops[training].count)
    never(lambda: not machine.running)
    machine.executor.stop_now()
    stopping.join(20)
    assert not stopping.is_alive()
    assert machine.stops[training].count == 2


# What goes wrong


def test_an_error_that_nobody_expected_does_not_end_its_lane(machine):
    machine.error = ZeroDivisionError("odd")
    first, second = machine.add(), machine.add()
    machine.until_running(first)
    with structlog.testing.capture_logs() as logged:
        machine.release(first)
        machine.until_running(second)
    assert [(one["event"], one["process_id"]) for one in logged if "process_id" in one] == [
        ("run_broke_off", first)
    ]
    assert machine.status(first) is Status.RUNNING  # until its lease runs out


@pytest.mark.parametrize("error", [RegistryUnavailable("busy"), ValueError("odd")])
def test_the_queue_goes_on_when_the_registry_is_there_again(machine, error):
    with structlog.testing.capture_logs() as logged:
        machine.registry.error = error
        process_id = machine.add()
        machine.looked(5)
        machine.registry.error = None
        machine.until_running(process_id)
    assert Counter(one["event"] for one in logged)["queue_poll_failed"] == 1


def test_a_server_starts_though_its_registry_is_away(make, monkeypatch):
    machine = make(start=False)
    away = [True]
    running = machine.registry.running

    def look():
        if away:
            raise RegistryUnavailable("away")
        return running()

    monkeypatch.setattr(machine.registry, "running", look)
    machine.executor.start()
    process_id = machine.add()
    away.clear()
    machine.until_running(process_id)


def test_a_second_trouble_is_told_again(machine):
    with structlog.testing.capture_logs() as logged:
        for _ in range(2):
            machine.registry.error = RegistryUnavailable("busy")
            machine.looked()
            machine.registry.error = None
            machine.looked()
    assert Counter(one["event"] for one in logged)["queue_poll_failed"] == 2


def test_a_thread_that_can_not_be_started_leaves_its_lane_usable(machine, monkeypatch):
    start = threading.Thread.start
    failed = []

    def refuse(thread):
        if (what := thread.name[:4]) in ("run-", "end-") and what not in failed:
            failed.append(what)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with structlog.testing.capture_logs():
        first, second = machine.add(), machine.add()
        machine.until_running(second)
    assert failed == ["end-", "run-"]
    assert machine.status(first) is Status.RUNNING  # until its lease runs out
    assert machine.lane().process_id == second


# What others have left


def owner_that_is_gone():
    code = "from loradash.runtime.owner import this_owner; print(this_owner())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def taken_by(machine, owner, lease_s):
    process_id = machine.add()
    machine.registry.change(
        process_id,
        lambda one: changes.taken(
            one, owner=owner, token="theirs", now=datetime.now(UTC), lease_s=lease_s, device="x"
        ),
    )  # fmt: skip
    return process_id


def test_a_process_whose_lease_has_run_out_is_continued(make):
    machine = make(start=False)
    process_id = taken_by(machine, "elsewhere/1/1.00", lease_s=0.5)
    machine.executor.start()
    assert machine.status(process_id) is Status.RUNNING
    machine.until_running(process_id)
    record = machine.registry.get(process_id)
    assert [note.ending for note in record.attempts] == ["lost", ""]
    assert record.lease.owner == this_owner()


def test_a_process_whose_owner_is_gone_is_continued_at_once(make):
    machine = make(start=False)
    process_id = taken_by(machine, owner_that_is_gone(), lease_s=3600)
    machine.executor.start()
    machine.until_running(process_id)


def test_an_owner_that_goes_later_is_found_too(machine):
    process_id = taken_by(machine, owner_that_is_gone(), lease_s=3600)
    machine.until_running(process_id)


def test_who_works_elsewhere_within_his_lease_is_left_alone(make):
    machine = make(start=False)
    theirs = taken_by(machine, "elsewhere/1/1.00", lease_s=3600)
    before = machine.registry.get(theirs)
    machine.executor.start()
    machine.looked()
    assert machine.registry.get(theirs) == before


def test_what_runs_here_is_not_taken_over_by_ourselves(machine):
    """After this machine has slept, the look into the queue may come before the renewal."""
    training = machine.add()
    machine.until_running(training)
    machine.registry.change(
        training,
        lambda one: one.model_copy(
            update={
                "lease": one.lease.model_copy(
                    update={"length_s": 0.0, "renewals": one.lease.renewals + 1}
                )
            }
        ),
    )  # fmt: skip
    never(lambda: machine.status(training) is not Status.RUNNING)


def test_what_broke_off_here_is_continued_once_its_lease_has_run_out(machine, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "LEASE_S", 0.3)
    machine.error = ZeroDivisionError("odd")
    training = machine.add()
    machine.until_running(training)
    with structlog.testing.capture_logs():
        machine.release(training)
        until(lambda: machine.order == [training] * 2)


def test_many_that_are_lost_are_all_found(make):
    machine = make(start=False)
    owner = owner_that_is_gone()
    ids = [taken_by(machine, owner, lease_s=3600) for _ in range(205)]
    machine.registry.pause(True)
    machine.executor.start()
    assert {machine.status(process_id) for process_id in ids} == {Status.PENDING}


def test_engines_without_a_server_are_ended_before_anything_starts(make):
    machine = make(start=False)
    machine.orphans = [Orphan(77, "train_x", "terminated")]
    machine.add()
    with structlog.testing.capture_logs() as logged:
        machine.executor.start()
    assert logged[0]["event"] == "orphan_ended"
    assert (logged[0]["pid"], logged[0]["ending"]) == (77, "terminated")


def test_two_servers_do_not_work_in_one_workspace(make):
    first = make()
    second = make(start=False)
    with pytest.raises(AlreadyRunning, match="run"):
        second.executor.start()
    lock = second.root / "run" / "server.lock"
    assert server_is_running(lock)
    first.executor.stop(10)
    assert not server_is_running(lock)
    second.executor.start()
    second.until_running(second.add())


def test_a_question_for_a_server_does_not_keep_one_from_starting(make, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_LOCK_PATIENCE_S", 20)
    machine = make(start=False)
    lock = tmp_path / "run" / "server.lock"
    lock.parent.mkdir()
    asking = lock.open("a")
    fcntl.flock(asking, fcntl.LOCK_EX)
    threading.Timer(0.2, asking.close).start()
    machine.executor.start()


def test_a_start_that_fails_can_be_tried_again(make):
    machine = make(start=False)
    machine.end_orphans = partial(raise_error, LoradashError("no"))
    with pytest.raises(LoradashError):
        machine.executor.start()
    del machine.end_orphans
    machine.executor.start()
    machine.until_running(machine.add())


def raise_error(error, *_):
    raise error


def test_the_real_records_of_children_fit(tmp_path, make):
    machine = make(start=False)
    machine.executor._children = ChildRecords(tmp_path / "run")
    machine.executor.start()
    machine.until_running(machine.add())


def test_nothing_of_a_slot_is_hidden_from_its_process(make):
    seen = []
    machine = make()
    run = machine.run
    machine.executor._run = lambda record, slot, stop: (seen.append(slot), run(record, slot, stop))
    machine.until_running(machine.add())
    assert [dataclasses.asdict(slot) for slot in seen] == [dataclasses.asdict(CUDA_0)]


class Counting(Flaky):
    """Counts how often it is asked for what waits."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def pending(self, kind=None, *, limit=100):
        self.asked.append(kind)
        return super().pending(kind, limit=limit)

    def paused(self):
        self.asked.append("paused")
        return super().paused()


def test_one_look_at_the_queue_serves_all_lanes_and_costs_nothing_more_while_it_is_empty(make):
    machine = make(start=False, registry=Counting())
    machine.executor._fill_lanes()
    assert machine.registry.asked == [None]


def test_a_queue_in_which_something_waits_is_asked_whether_it_is_paused(make):
    machine = make(start=False, registry=Counting())
    machine.add("training")
    machine.executor._fill_lanes()
    assert machine.registry.asked == [None, "paused"]


def test_a_long_queue_of_one_lane_hides_nothing_of_another(make, monkeypatch):
    monkeypatch.setattr(local, "_QUEUE_PAGE", 4)
    machine = make(start=False, registry=Counting())
    for _ in range(6):
        machine.add("training", priority=5)
    generation = machine.add("generation")
    machine.executor.start()
    until(lambda: generation in machine.order)


def test_the_queue_is_not_asked_while_every_lane_is_busy(make):
    machine = make(registry=Counting())
    machine.until_running(machine.add("training"), machine.add("generation"))
    until(lambda: all(lane.busy for lane in machine.executor._lanes))
    machine.executor._fill_lanes()  # the thread may have been in the middle of a look
    machine.registry.asked.clear()
    machine.executor._fill_lanes()
    assert machine.registry.asked == []
