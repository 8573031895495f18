"""Running a process that was taken: the one road from a lease to an end, whatever the kind."""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from secrets import token_hex
from typing import NamedTuple, Protocol

import structlog

from loradash.domain import process as changes
from loradash.domain.events import Event, ImageWritten, Stopped, Terminal
from loradash.domain.generation import GenerationRequest
from loradash.domain.kinds import KINDS, Kind
from loradash.domain.process import Lease, ProcessRecord, Status
from loradash.errors import ConflictingState, DiskFull, LoradashError
from loradash.registry.registry import ProcessRegistry
from loradash.runtime.attempt import Attempt, Timing, failure
from loradash.runtime.gpu import Slot
from loradash.runtime.lease_watch import LeaseWatch
from loradash.runtime.owner import this_owner
from loradash.runtime.patience import AWAY
from loradash.runtime.supervisor import StopRequest
from loradash.services.generation.service import GenerationService
from loradash.storage.disk import as_disk_full
from loradash.storage.store import ObjectStore
from loradash.telemetry.logging import bound

log = structlog.get_logger("loradash.running")

_LOOK_EVERY_S = 2.0


class Work(Protocol):
    """A use case that can do a process's work."""

    def work(self, attempt: Attempt) -> Terminal:
        """Do it, and return how it ended once the results are handed over."""
        ...


class Runner:
    """Takes processes for this program and runs them to their end."""

    def __init__(
        self,
        registry: ProcessRegistry,
        store: ObjectStore,
        works: Mapping[Kind, Work],
        timing: Timing,
        on_end: Callable[[ProcessRecord], None] = lambda _record: None,
        disk_is_low: Callable[[], bool] = lambda: False,
        *,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._registry = registry
        self._store = store
        self._works = works
        self._timing = timing
        self._on_end = on_end
        self.disk_is_low = disk_is_low
        self._clock = clock
        self._pause = pause

    def taking(self, device: str) -> Callable[[ProcessRecord], ProcessRecord]:
        """Return the change that makes a pending process ours."""
        token = token_hex(16)
        return lambda record: changes.taken(
            record, owner=this_owner(), token=token, now=datetime.now(UTC),
            lease_s=self._timing.lease_s, device=device,
        )  # fmt: skip

    def run_here(
        self,
        process_id: str,
        on_event: Callable[[Event], None],
        stop: StopRequest,
        say: Callable[[str], None] = lambda _text: None,
    ) -> Terminal:
        """Take one process, whether it waits, has failed, was cancelled or lost, and run it.

        Whether the owner of a running one is lost may have to be watched for as long as its lease
        lasts, which ``say`` announces. Raises `NotFound`, and `ConflictingState` if it is completed
        or another worker holds its lease.
        """
        take = self.taking("local")
        watch = self._watch_one(process_id, stop, say)

        def change(record: ProcessRecord) -> ProcessRecord:
            now = datetime.now(UTC)
            if record.status is Status.RUNNING and record.lease:
                if not watch.is_lost(record):
                    raise _in_use(record)
                record = changes.expired(record, now=now, max_attempts=1000, owner_is_gone=True)
            if record.status in (Status.FAILED, Status.CANCELLED):
                record = changes.requeued(record, now)
            return take(record)

        return self.run(self._registry.change(process_id, change), None, stop, on_event)

    def _watch_one(
        self, process_id: str, stop: StopRequest, say: Callable[[str], None]
    ) -> LeaseWatch:
        """Look at a process until it is known whether its owner is lost, if it has one."""
        watch = LeaseWatch(self._timing.lease_s, look_every_s=_LOOK_EVERY_S, clock=self._clock)
        first: Lease | None = None
        while True:
            (record,) = watch.look(lambda: (self._registry.get(process_id),))
            lease = record.lease if record.status is Status.RUNNING else None
            if lease is None or watch.is_lost(record):
                return watch
            if first is None:
                first = lease
                say(
                    f"waiting {watch.length_s(lease):.0f} s to see whether {record.id}'s worker "
                    f"({lease.owner}) is alive"
                )
            if lease != first or stop.count:
                raise _in_use(record)
            self._pause(watch.look_every_s)

    def run(
        self,
        record: ProcessRecord,
        slot: Slot | None,
        stop: StopRequest,
        on_event: Callable[[Event], None] | None = None,
    ) -> Terminal:
        """Run a taken process; return how it ended. Errors become its failure, all of them.

        Raises `RegistryUnavailable` if the end can't be written; see `Attempt.finish`.
        """
        environment = dict(slot.environment) if slot else {}
        with (
            bound(process_id=record.id, request_id=record.request_id),
            Attempt(
                self._registry, self._store, record, stop, self._timing,
                environment=environment, on_event=on_event, disk_is_low=self.disk_is_low,
            ) as attempt,
        ):  # fmt: skip
            log.info(
                "attempt_began", attempt=attempt.number, kind=record.kind, device=record.device
            )
            try:
                if attempt.number > 1:
                    attempt.patiently(attempt.keeper.tidy_up)
                ending = self._works[record.kind].work(attempt)
            except LoradashError as error:
                ending = _ending_of(error, attempt)
            except Exception as error:
                log.exception("process_failed", code=LoradashError.code)
                ending = failure(
                    as_disk_full(error, "Free space, and resume it.") or error, resumable=True
                )
            ending = attempt.finish(ending)
            log.info("attempt_ended", attempt=attempt.number, ending=ending.type, lost=attempt.lost)
        self._on_end(attempt.record)
        return ending


def _ending_of(error: LoradashError, attempt: Attempt) -> Terminal:
    """What an error of ours makes of an attempt."""
    if isinstance(error, AWAY) and attempt.stop.count:  # no failure: the outage wasn't waited for
        log.warning("outage_not_awaited", code=error.code, error=str(error))
        return Stopped(time_s=time.time())
    log.warning("process_failed", code=error.code, error=str(error))
    passes = isinstance(error, (*AWAY, DiskFull))
    return failure(error, resumable=passes or KINDS[attempt.record.kind].is_resumable)


class DrawnHere(NamedTuple):
    """A generation that this program ran: how it ended, and the images that are there."""

    process_id: str
    ending: Terminal
    images: tuple[ImageWritten, ...]


def generate_here(
    generation: GenerationService,
    runner: Runner,
    request: GenerationRequest,
    on_event: Callable[[Event], None],
    stop: StopRequest,
) -> DrawnHere:
    """Check, submit and run a generation in this program. Raises what the check raises."""
    images: list[ImageWritten] = []

    def keep(event: Event) -> None:
        if isinstance(event, ImageWritten):
            images.append(event)
        on_event(event)

    checked = generation.check(request)
    record = generation.submit(checked, taking=runner.taking("local"))
    ending = runner.run(record, None, stop, keep)
    return DrawnHere(record.id, ending, tuple(images))


def _in_use(record: ProcessRecord) -> ConflictingState:
    return ConflictingState(
        f"process {record.id} is being run by another program",
        remedy="Wait for it, or cancel it.",
    )


def take_over(
    registry: ProcessRegistry, process_id: str, max_attempts: int, watch: LeaseWatch
) -> ProcessRecord:
    """Queue a process again whose owner is lost; see `loradash.domain.process.expired`.

    It stays as it is if its lease was renewed, or if it was taken over, since the last poll.
    """

    def change(record: ProcessRecord) -> ProcessRecord:
        return changes.expired(
            record, now=datetime.now(UTC), max_attempts=max_attempts,
            owner_is_gone=watch.is_lost(record),
        )  # fmt: skip

    with watch.starting_again():
        return registry.change(process_id, change)
