"""Who works on the process that a job names: this worker, another one, or none any more.

A queue that delivers at least once may deliver a job twice, to two workers at once, or again after
its worker was lost. The lease decides; a job only ever asks for it. Whether a lease has run out is
seen by polling for a while: see `loradash.runtime.lease_watch`.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from loradash.domain import process as changes
from loradash.domain.process import ProcessRecord, Status
from loradash.registry.registry import Change, ProcessRegistry
from loradash.runtime.lease_watch import LeaseWatch


class Answer(NamedTuple):
    """What became of asking for a process: its record now, and whether it is ours."""

    record: ProcessRecord
    is_ours: bool


class Ownership:
    """Asks for processes on behalf of this worker."""

    def __init__(
        self,
        registry: ProcessRegistry,
        taking: Callable[[str], Change],
        max_attempts: int,
        watching: Callable[[], LeaseWatch],
    ) -> None:
        self._registry = registry
        self._taking = taking
        self._max_attempts = max_attempts
        self._watching = watching

    def asking(self, process_id: str, device: str) -> Callable[[], Answer]:
        """Return what takes a process if it waits, or if its owner is lost.

        It is to be called again and again: that is how it sees whether another worker's lease
        expires. What an earlier call has taken without an answer, because the registry was away
        just then, is ours. It isn't ours if it has ended, if another worker holds the lease, or if
        it was given up now because its workers were lost too often. Raises `NotFound` and
        `RegistryUnavailable`.
        """
        watch = self._watching()
        take = self._taking(device)
        tokens: set[str] = set()

        def change(record: ProcessRecord) -> ProcessRecord:
            if record.lease is not None and record.lease.token in tokens:
                return record
            record = changes.expired(
                record, now=datetime.now(UTC), max_attempts=self._max_attempts,
                owner_is_gone=watch.is_lost(record),
            )  # fmt: skip
            if record.status is not Status.PENDING:
                return record
            record = take(record)
            assert record.lease is not None
            tokens.add(record.lease.token)
            return record

        def ask() -> Answer:
            (record,) = watch.look(lambda: (self._registry.get(process_id),))
            if record.status is Status.PENDING or watch.is_lost(record):
                with watch.starting_again():
                    record = self._registry.change(process_id, change)
            return Answer(record, record.lease is not None and record.lease.token in tokens)

        return ask
