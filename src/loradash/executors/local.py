"""The local executor: this machine's GPUs, or its CPU, work off the queue in the registry.

A slot (one per GPU, one on a CPU) has two lanes, one for a training and one for generations, so
that a generation doesn't wait for hours behind a training where memory allows both. Before a
training starts, the idle pipeline of its slot is unloaded.

One thread looks into the queue, and it alone starts anything. Whatever takes time (the processes
themselves, a pipeline's end) has threads of its own, so that no slot waits for another one's.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import structlog

from loradash.domain.process import Kind, ProcessRecord, Status
from loradash.errors import LoradashError, RegistryUnavailable
from loradash.executors.server_lock import only_one
from loradash.executors.state import ExecutorState, LaneState, SlotState
from loradash.registry.registry import Change, ProcessQueue, ProcessRegistry
from loradash.runtime.gpu import Slot
from loradash.runtime.lease_watch import LeaseWatch
from loradash.runtime.orphans import ChildRecords
from loradash.runtime.supervisor import StopRequest

log = structlog.get_logger("loradash.executor")

_LOOK_EVERY_S = 1.0
SWEEP_EVERY_S = 5.0
"""How often its lease watch is meant to look."""

_LOCK_PATIENCE_S = 1.0  # whoever only asks for a server holds the lock for a moment
_END_S = 10.0  # for what was ended at once
_UNLOADING = "Waiting for the idle pipeline to free its memory"
_GPU_SHARE = 0.9
_RAM_SHARES: Mapping[Kind, float] = {"training": 0.25, "generation": 0.125}
_LANES: tuple[Kind, ...] = ("training", "generation")


class QueuedRegistry(ProcessRegistry, ProcessQueue, Protocol):
    """A registry that can order what waits."""


class Memory(Protocol):
    """What is known of a slot's memory, in MB; None where it can't be found out."""

    def free_mb(self, slot: Slot) -> float | None:
        """Free memory, whoever uses the rest."""
        ...

    def total_mb(self, slot: Slot) -> float | None:
        """All memory."""
        ...


@dataclass(frozen=True)
class MemoryNeeds:
    """Free memory in MB that must be there before a process starts."""

    training_mb: float
    generation_mb: float


@dataclass
class _Lane:
    """What runs in one lane of a slot, and why nothing does though something waits.

    The thread of what runs resets ``busy``, that of an unload sets ``unload_done``; everything else
    is changed by the executor's thread only.
    """

    slot: Slot
    kind: Kind
    process_id: str = ""
    stop: StopRequest = field(default_factory=StopRequest)
    thread: threading.Thread | None = None
    busy: bool = False
    waiting_reason: str = ""
    warm: bool = True
    """An idle pipeline may hold memory (in lanes for generations)."""
    unloading_for: Kind | None = None
    unload_done: bool = False

    def state(self) -> LaneState:
        """What is shown of it."""
        if self.busy:
            return LaneState(kind=self.kind, process_id=self.process_id)
        return LaneState(kind=self.kind, waiting_reason=self.waiting_reason)


class LocalExecutor:
    """Takes processes from the queue as slots get free. One per workspace at a time."""

    def __init__(  # noqa: PLR0913 - made in one place, by keyword
        self,
        registry: QueuedRegistry,
        slots: tuple[Slot, ...],
        memory: Memory,
        needs: MemoryNeeds,
        *,
        taking: Callable[[str], Change],
        run: Callable[[ProcessRecord, Slot, StopRequest], object],
        watch: LeaseWatch,
        take_over: Callable[[str], ProcessRecord],
        unload_pipeline: Callable[[str], None],
        children: ChildRecords,
        lock_path: Path,
        orphan_grace_s: float,
    ) -> None:
        self._registry = registry
        self._lanes = [_Lane(slot, kind) for slot in slots for kind in _LANES]
        self._memory = memory
        self._needs = needs
        self._taking = taking
        self._run = run
        self._watch = watch
        self._take_over = take_over
        self._unload_pipeline = unload_pipeline
        self._children = children
        self._lock_path = lock_path
        self._orphan_grace_s = orphan_grace_s
        self._lock_file: IO[str] | None = None
        self._wake = threading.Event()
        self._stopping = False
        self._stops_now = False
        self._error = ""
        self._next_sweep_s = 0.0
        self._thread = threading.Thread(target=self._work, name="executor", daemon=True)

    def start(self) -> None:
        """Reconcile with what an earlier server left, then begin to take processes.

        Engines without a parent are ended first: they may still be writing their last checkpoint.
        Raises `AlreadyRunning` if another server works in this workspace.
        """
        self._lock_file = only_one(self._lock_path, _LOCK_PATIENCE_S)
        try:
            for orphan in self._children.end_orphans(self._orphan_grace_s):
                log.warning("orphan_ended", **orphan._asdict())
            try:
                self._sweep(at_start=True)
            except RegistryUnavailable as error:  # the first look that succeeds makes up for it
                log.warning("queue_poll_failed", error=str(error))
                self._next_sweep_s = 0.0
            self._thread.start()
        except BaseException:
            self._lock_file.close()
            raise

    def stop(self, timeout_s: float) -> None:
        """Take nothing more, ask what runs for a checkpoint, and wait for it.

        What runs goes back into the queue and is continued by the next server.
        """
        self._stopping = True
        self._wake.set()
        self._ask_to_stop()
        deadline = time.monotonic() + timeout_s
        if self._thread.ident:
            self._thread.join(timeout_s)
        self._ask_to_stop()  # what was taken meanwhile
        _join(self._threads(), deadline)
        self._stops_now = True
        self._ask_to_stop()
        _join(self._threads(), time.monotonic() + _END_S)
        if self._lock_file:
            self._lock_file.close()

    def stop_now(self) -> None:
        """Take nothing more, and end what runs at once, without a checkpoint.

        To be called from a signal handler: no locks here, the interrupted code may hold them.
        """
        self._stopping = self._stops_now = True
        self._ask_to_stop()

    def _ask_to_stop(self) -> None:
        for lane in self._lanes:
            if lane.busy:
                if not lane.stop.count:
                    lane.stop("shutdown")
                if self._stops_now and lane.stop.count < 2:
                    lane.stop("shutdown")  # the second time ends it at once

    def _threads(self) -> list[threading.Thread]:
        return [lane.thread for lane in self._lanes if lane.thread]

    def submitted(self, process_id: str) -> None:
        """See `Executor.submitted`."""
        del process_id
        self._wake.set()

    def cancelled(self, record: ProcessRecord) -> None:
        """See `Executor.cancelled`: the owner sees the mark in the registry by itself."""

    def state(self) -> ExecutorState:
        """See `Executor.state`."""
        slots: dict[str, list[LaneState]] = {}
        for lane in self._lanes:
            slots.setdefault(lane.slot.name, []).append(lane.state())
        return ExecutorState(
            slots=tuple(SlotState(name=name, lanes=tuple(lanes)) for name, lanes in slots.items()),
            error=self._error,
        )

    def _work(self) -> None:
        while not self._stopping:
            problem = ""
            try:
                if time.monotonic() >= self._next_sweep_s:
                    self._sweep()
                self._fill_lanes()
            except LoradashError as error:
                problem = str(error)
                if problem != self._error:
                    log.warning("queue_poll_failed", error=problem)
            except Exception as error:  # the queue must go on, whatever one look into it has met
                problem = repr(error)
                if problem != self._error:
                    log.exception("queue_poll_failed")
            self._error = problem
            self._wake.wait(_LOOK_EVERY_S)
            self._wake.clear()

    def _fill_lanes(self) -> None:
        """Look once at each lane that is free now, the best places first.

        One that gets free meanwhile has to wait for the next look, where its slot's training comes
        first: generations without end must not keep it waiting.
        """
        for lane in self._lanes:
            if lane.unload_done:
                lane.warm, lane.unloading_for, lane.unload_done = False, None, False
        free = sorted((lane for lane in self._lanes if not lane.busy), key=self._rank)
        waiting = dict.fromkeys(_LANES, 0)
        if not self._registry.paused():
            for kind in _LANES:
                waiting[kind] = len(self._registry.pending(kind, limit=len(self._lanes)))
        for lane in free:
            lane.waiting_reason = self._obstacle(lane) if waiting[lane.kind] else ""
            if not waiting[lane.kind]:
                continue
            is_preparing = self._generations(lane).unloading_for == lane.kind
            if is_preparing or (not lane.waiting_reason and self._fill(lane)):
                waiting[lane.kind] -= 1  # other slots need not be prepared for it

    def _rank(self, lane: _Lane) -> tuple[bool, bool, bool]:
        """Idle slots first; there trainings first; and a warm pipeline where it is of use."""
        is_generation = lane.kind == "generation"
        warm = self._generations(lane).warm
        return self._other(lane).busy, is_generation, warm != is_generation

    def _fill(self, lane: _Lane) -> bool:
        """Whether something was there to be taken."""
        if self._stopping:
            return False
        record = self._registry.take_next(lane.kind, self._taking(lane.slot.name))
        if record is None:
            return False
        lane.process_id, lane.stop, lane.warm = record.id, StopRequest(), True
        lane.thread = threading.Thread(
            target=self._run_in, args=(lane, record), name=f"run-{record.id}", daemon=True
        )
        lane.busy = True
        try:
            lane.thread.start()
        except BaseException:
            lane.busy = False
            raise
        return True

    def _run_in(self, lane: _Lane, record: ProcessRecord) -> None:
        try:
            self._run(record, lane.slot, lane.stop)
        except Exception:  # its lease runs out, and it is taken up again
            log.exception("run_broke_off", process_id=record.id)
        finally:
            lane.busy = False
            self._wake.set()

    def _other(self, lane: _Lane) -> _Lane:
        return next(
            one for one in self._lanes if one.slot.name == lane.slot.name and one.kind != lane.kind
        )

    def _generations(self, lane: _Lane) -> _Lane:
        return lane if lane.kind == "generation" else self._other(lane)

    def _obstacle(self, lane: _Lane) -> str:
        """Why nothing may start in a free lane now; '' if something may."""
        other = self._other(lane)
        if self._generations(lane).unloading_for:
            return _UNLOADING
        if lane.kind == "generation" and not other.busy:
            return ""  # nothing else of ours is there; its own pipeline may hold the memory
        if lane.kind == "training" and not other.busy and other.warm:
            return self._start_unload(other, lane.kind)
        free = self._memory.free_mb(lane.slot)
        if free is None:
            return f"Waiting for {other.process_id}: free memory is unknown" if other.busy else ""
        need = self._need_mb(lane)
        if other.busy and not self._has_its_memory(other.process_id):
            need += self._need_mb(other)  # what was started just now hasn't taken all of it yet
        if free >= need:
            return ""
        if lane.kind == "generation" and lane.warm:
            return self._start_unload(lane, lane.kind)
        behind = f" ({other.process_id} is running)" if other.busy else ""
        return f"Waiting for memory: {free:.0f} MB free, {need:.0f} MB needed{behind}"

    def _need_mb(self, lane: _Lane) -> float:
        """Free memory that a process of this kind asks for, but no more than an idle slot has.

        Other programs have most of a small machine's RAM; a process that waited for it would wait
        for ever.
        """
        is_training = lane.kind == "training"
        need = self._needs.training_mb if is_training else self._needs.generation_mb
        total = self._memory.total_mb(lane.slot)
        if total is None:
            return need
        share = _RAM_SHARES[lane.kind] if lane.slot.gpu_index is None else _GPU_SHARE
        return min(need, share * total)

    def _start_unload(self, lane: _Lane, kind: Kind) -> str:
        """End the pipeline that is idle in this free lane; return why to wait meanwhile."""

        def unload_pipeline() -> None:
            try:
                self._unload_pipeline(lane.slot.name)
            except Exception:  # then its memory isn't free, which will show
                log.exception("pipeline_not_ended", slot=lane.slot.name)
            finally:
                lane.unload_done = True
                self._wake.set()

        thread = threading.Thread(target=unload_pipeline, name=f"end-{lane.slot.name}", daemon=True)
        lane.unloading_for = kind
        try:
            thread.start()
        except BaseException:
            lane.unloading_for = None
            raise
        return _UNLOADING

    def _has_its_memory(self, process_id: str) -> bool:
        try:
            phase = self._registry.get(process_id).progress.phase
        except LoradashError:
            return False
        return phase in ("training", "sampling", "saving", "generating")

    def _sweep(self, at_start: bool = False) -> None:
        """Queue again what has lost its owner, so that somebody is responsible for it."""
        self._next_sweep_s = time.monotonic() + self._watch.look_every_s
        ours = {lane.process_id for lane in self._lanes if lane.busy}
        for record in self._watch.look(self._registry.running):
            if record.id in ours or not self._watch.is_lost(record):  # ours are renewed in a moment
                continue
            taken_over = self._take_over(record.id)
            if taken_over.status is not Status.RUNNING:
                log.warning(
                    "owner_lost", process_id=record.id, status=str(taken_over.status),
                    at_start=at_start,
                )  # fmt: skip


def _join(threads: Iterable[threading.Thread], deadline: float) -> None:
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
