"""What a listing tells of a process's record where nothing is written on condition."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Self

from pydantic import AwareDatetime, BaseModel

from loradash.domain.process import ProcessRecord, Status
from loradash.storage import keys
from loradash.storage.store import ObjectInfo

_NAME = re.compile(r"([0-9]{8})-([0-9a-z]+)\.(json|claim)")


class Epoch(NamedTuple):
    """The right to write a process's record, until another program wins a later one."""

    number: int
    nonce: str = ""

    def record_key(self, process_id: str) -> str:
        """The key of the record's versions of this epoch; the first has its creator's."""
        if self.number == 0:
            return keys.process_record(process_id)
        return keys.process_epoch_record(process_id, self.number, self.nonce)

    def claim_key(self, process_id: str) -> str:
        """The key of the claim to this epoch."""
        return keys.process_claim(process_id, self.number, self.nonce)


FIRST = Epoch(0)


@dataclass
class Standing:
    """The epochs that were claimed, those that have a record, and whether a mark is there."""

    claims: dict[Epoch, ObjectInfo] = field(default_factory=dict)
    records: dict[Epoch, ObjectInfo] = field(default_factory=dict)
    mark: ObjectInfo | None = None

    @classmethod
    def of(cls, infos: Sequence[ObjectInfo]) -> Self:
        """Return what some objects of a process mean."""
        standing = cls()
        for info in infos:
            _, rest = keys.recorded_process(info.key)
            if rest == "cancel":
                standing.mark = info
            elif not rest:
                standing.records[FIRST] = info
            elif match := _NAME.fullmatch(rest):
                found = standing.records if match[3] == "json" else standing.claims
                found[Epoch(int(match[1]), match[2])] = info
        return standing

    @property
    def epoch(self) -> Epoch:
        """The latest epoch that has a record: that one counts."""
        number = max((epoch.number for epoch in self.records), default=0)
        rivals = [epoch for epoch in self.records if epoch.number == number]
        return min(rivals, key=self._order, default=FIRST)

    @property
    def claimed(self) -> int:
        """The number of the latest epoch that was claimed or won."""
        return max((epoch.number for epoch in (*self.claims, *self.records)), default=0)

    def is_written_by(self, epoch: Epoch) -> bool:
        """Whether the winner of that epoch is still the one who writes."""
        return self.epoch == epoch and self.claimed == epoch.number

    def before(self, mine: Epoch) -> list[ObjectInfo]:
        """Return the claims to the same epoch that win over this one."""
        return [
            info
            for epoch, info in self.claims.items()
            if epoch.number == mine.number and self._order(epoch) < self._order(mine)
        ]

    def outdated(self, present: Epoch) -> list[str]:
        """Return the keys of what belongs to earlier epochs, except the very first record."""
        return [
            info.key
            for found in (self.claims, self.records)
            for epoch, info in found.items()
            if 0 < epoch.number < present.number
        ]

    def _order(self, epoch: Epoch) -> tuple[float, str]:
        claim = self.claims.get(epoch)
        return claim.modified_s if claim else float("inf"), epoch.nonce


class CancelMark(BaseModel):
    """The request that an attempt ends."""

    attempt: int
    cancel_requested_at: AwareDatetime
    updated_at: AwareDatetime

    @classmethod
    def between(cls, old: ProcessRecord, new: ProcessRecord) -> Self | None:
        """Return the mark that makes one record the other, or None if it takes more than one."""
        if old.status is not Status.RUNNING or new.cancel_requested_at is None:
            return None
        changes: dict[str, datetime] = {
            "cancel_requested_at": new.cancel_requested_at,
            "updated_at": new.updated_at,
        }
        if old.model_copy(update=changes) != new:
            return None
        return cls(attempt=old.attempt_count, **changes)

    def is_for(self, record: ProcessRecord) -> bool:
        """Whether that attempt is the one that runs."""
        return record.status is Status.RUNNING and record.attempt_count == self.attempt

    def on(self, record: ProcessRecord) -> ProcessRecord:
        """Return the record with the request in it, if it is for it."""
        if not self.is_for(record):
            return record
        return record.model_copy(
            update={
                "cancel_requested_at": record.cancel_requested_at or self.cancel_requested_at,
                "updated_at": max(record.updated_at, self.updated_at),
            }
        )
