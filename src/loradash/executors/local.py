"""The local executor: this machine's GPUs, or its CPU, work off the queue in the registry.

A slot (one per GPU, one on a CPU) has two lanes, one for a training and one for generations and
other short work, so that a generation doesn't wait for hours behind a training where memory allows
both. Before work starts that doesn't use the slot's warm pipeline, such as a training, that is
unloaded. Which lane a kind of work runs in, whether it uses the pipeline, and what memory it needs,
is said in `loradash.domain.kinds`.

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

from loradash.domain.kinds import KINDS, LANES, Kind, Lane, kinds_in
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import LoradashError, RegistryUnavailable
from loradash.executors.server_lock import only_one
from loradash.executors.state import ExecutorState, LaneState, SlotState
from loradash.registry.registry import Change, ProcessQueue, ProcessRegistry
from loradash.runtime.gpu import Slot
from loradash.runtime.lease_watch import LeaseWatch
from loradash.runtime.orphans import ChildRecords
from loradash.runtime.supervisor import StopRequest

log = structlog.get_logger("loradash.executor")

POLL_INTERVAL_S = 1.0
_QUEUE_PAGE = 100
SWEEP_EVERY_S = 5.0
"""How often its lease watch is meant to look."""

_LOCK_PATIENCE_S = 1.0  # whoever only asks for a server holds the lock for a moment
_END_S = 10.0  # for what was ended at once
_UNLOADING = "Waiting for the idle pipeline to free its memory"
_GPU_SHARE = 0.9


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
    """Free memory in MB that must be there before a process starts, by its kind."""

    by_kind_mb: Mapping[Kind, float]

    def of(self, kind: Kind, total_mb: float | None, *, is_cpu: bool) -> float:
        """Return what a process of this kind asks for, but no more than an idle slot has.

        Other programs have most of a small machine's RAM; a process that waited for it would wait
        for ever.
        """
        need = self.by_kind_mb[kind]
        if total_mb is None:
            return need
        return min(need, (KINDS[kind].ram_share if is_cpu else _GPU_SHARE) * total_mb)


@dataclass
class _Lane:
    """What runs in one lane of a slot, and why nothing does though something waits.

    The thread of what runs resets ``busy``, that of an unload sets ``unload_done``; everything else
    is changed by the executor's thread only.
    """

    slot: Slot
    rules: Lane
    next_kind: Kind
    """Of what runs here or else waits first; before anything did, any of the lane's kinds."""
    process_id: str = ""
    stop: StopRequest = field(default_factory=StopRequest)
    thread: threading.Thread | None = None
    busy: bool = False
    waiting_reason: str = ""
    warm: bool = True
    """An idle pipeline may hold memory (in lanes for generations)."""
    unloading_for: Lane | None = None
    unload_done: bool = False

    def state(self) -> LaneState:
        """What is shown of it."""
        if self.busy:
            return LaneState(name=self.rules.name, process_id=self.process_id)
        return LaneState(name=self.rules.name, waiting_reason=self.waiting_reason)


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
        poll_interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        """Poll the queue every ``poll_interval_s``, for what other servers have submitted."""
        self._registry = registry
        self._lanes = [
            _Lane(slot, rules, kinds_in(rules)[0].name) for slot in slots for rules in LANES
        ]
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
        self._poll_interval_s = poll_interval_s
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
            self._wake.wait(self._poll_interval_s)
            self._wake.clear()

    def _fill_lanes(self) -> None:
        """Look once at each lane that is free now, the best places first.

        One that gets free meanwhile has to wait for the next look, where its slot's training comes
        first: generations without end must not keep it waiting.
        """
        for lane in self._lanes:
            if lane.unload_done:
                lane.warm, lane.unloading_for, lane.unload_done = False, None, False
        free = [lane for lane in self._lanes if not lane.busy]
        if not free:
            return
        waiting = self._waiting()
        if any(waiting.values()) and self._registry.paused():
            waiting = {rules: [] for rules in LANES}
        for lane in free:
            if queue := waiting[lane.rules]:
                lane.next_kind = queue[0].kind
        for lane in sorted(free, key=self._rank):
            queue = waiting[lane.rules]
            lane.waiting_reason = ""
            if not queue:
                continue
            lane.next_kind = queue[0].kind
            lane.waiting_reason = self._obstacle(lane)
            is_preparing = self._with_pipeline(lane).unloading_for == lane.rules
            if is_preparing or (not lane.waiting_reason and self._fill(lane)):
                del queue[0]  # other slots need not be prepared for it

    def _waiting(self) -> dict[Lane, list[ProcessRecord]]:
        """What waits for each lane, in order, as far as all slots could take it.

        In a bucket each question to the queue lists all records, so there is one for all lanes, and
        another one only where the first of the queue are all of other lanes.
        """
        limit = len(self._lanes)
        first = self._registry.pending(limit=_QUEUE_PAGE)
        found: dict[Lane, list[ProcessRecord]] = {rules: [] for rules in LANES}
        for record in first:
            found[KINDS[record.kind].lane].append(record)
        for rules in LANES if len(first) == _QUEUE_PAGE else ():
            if len(found[rules]) < limit:
                found[rules] = self._waiting_in(rules, limit)
        return {rules: queue[:limit] for rules, queue in found.items()}

    def _waiting_in(self, rules: Lane, limit: int) -> list[ProcessRecord]:
        found = [
            record
            for kind in kinds_in(rules)
            for record in self._registry.pending(kind.name, limit=limit)
        ]
        return sorted(found, key=lambda one: (-one.priority, one.enqueued_at, one.id))

    def _rank(self, lane: _Lane) -> tuple[bool, int, bool]:
        """Idle slots first; there trainings first; and a warm pipeline where it is of use."""
        is_wrong = self._with_pipeline(lane).warm != KINDS[lane.next_kind].uses_pipeline
        return self._other(lane).busy, lane.rules.first, is_wrong

    def _fill(self, lane: _Lane) -> bool:
        """Whether something was there to be taken."""
        if self._stopping:
            return False
        record = self._registry.take_next(lane.next_kind, self._taking(lane.slot.name))
        if record is None:
            return False
        lane.process_id, lane.stop = record.id, StopRequest()
        lane.warm = lane.warm or KINDS[record.kind].uses_pipeline
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
            one
            for one in self._lanes
            if one.slot.name == lane.slot.name and one.rules != lane.rules
        )

    def _with_pipeline(self, lane: _Lane) -> _Lane:
        """The lane of the same slot that keeps a pipeline."""
        return lane if lane.rules.keeps_pipeline else self._other(lane)

    def _obstacle(self, lane: _Lane) -> str:
        """Why nothing may start in a free lane now; '' if something may."""
        other, pipeline = self._other(lane), self._with_pipeline(lane)
        uses_pipeline = KINDS[lane.next_kind].uses_pipeline
        if pipeline.unloading_for:
            return _UNLOADING
        if uses_pipeline and not other.busy:
            return ""  # nothing else of ours is there; its own pipeline may hold the memory
        if not uses_pipeline and not pipeline.busy and pipeline.warm:
            return self._start_unload(pipeline, lane.rules)
        free = self._memory.free_mb(lane.slot)
        if free is None:
            return f"Waiting for {other.process_id}: free memory is unknown" if other.busy else ""
        need = self._need_mb(lane)
        if other.busy and not self._has_its_memory(other):
            need += self._need_mb(other)  # what was started just now hasn't taken all of it yet
        if free >= need:
            return ""
        if lane.rules.keeps_pipeline and lane.warm:
            return self._start_unload(lane, lane.rules)
        behind = f" ({other.process_id} is running)" if other.busy else ""
        return f"Waiting for memory: {free:.0f} MB free, {need:.0f} MB needed{behind}"

    def _need_mb(self, lane: _Lane) -> float:
        """Free memory that the next process, or the one that runs, in a lane asks for."""
        total = self._memory.total_mb(lane.slot)
        return self._needs.of(lane.next_kind, total, is_cpu=lane.slot.gpu_index is None)

    def _start_unload(self, lane: _Lane, rules: Lane) -> str:
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
        lane.unloading_for = rules
        try:
            thread.start()
        except BaseException:
            lane.unloading_for = None
            raise
        return _UNLOADING

    def _has_its_memory(self, lane: _Lane) -> bool:
        try:
            phase = self._registry.get(lane.process_id).progress.phase
        except LoradashError:
            return False
        return phase in KINDS[lane.next_kind].working_phases

    def _sweep(self, at_start: bool = False) -> None:
        """Queue again what has lost its owner, so that it doesn't stand as running without one."""
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
