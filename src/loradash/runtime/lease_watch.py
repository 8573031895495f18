"""Whose owner is lost, as one program sees it: by watching leases with its own monotonic clock.

The clocks of two machines may be minutes apart, and either may be set at any time. So nobody
compares his clock with a time that another machine has written: a lease has run out when one
observer has seen it unchanged for its length. A new observer therefore watches for that long before
it takes anything over, except from owners that are known to be dead.

Only a series of successful looks, one soon after the other, counts. After an outage of the
registry, or after this program was frozen, the count starts again: the owner may have been cut off,
too, and gets the time to renew its lease. Otherwise whoever looks first after an outage would
take live work away.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import median
from typing import NamedTuple, TypeVar

from loradash.domain.process import Lease, ProcessRecord, Status
from loradash.errors import RegistryUnavailable
from loradash.runtime.owner import is_gone

Records = TypeVar("Records", bound=Iterable[ProcessRecord])

_GAPS_KEPT = 9
_USUAL_GAPS = 3


class _Sight(NamedTuple):
    """A lease as it was seen: unchanged at least from one time to the other."""

    lease: Lease
    since_s: float
    until_s: float


class LeaseWatch:
    """What one program has seen of leases. Thread-safe; whoever makes the looks is one thread.

    ``lease_s`` is the length of leases that don't say theirs; ``look_every_s`` how often whoever
    uses it looks, which short leases make more often; the clock tells seconds and is monotonic.
    """

    def __init__(
        self,
        lease_s: float,
        *,
        look_every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.look_every_s = min(look_every_s, lease_s / 4)
        self._lease_s = lease_s
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: Mapping[str, _Sight] = {}
        self._last_began_s: float | None = None
        self._gaps_s = deque([self.look_every_s] * _GAPS_KEPT, maxlen=_GAPS_KEPT)

    def look(self, read: Callable[[], Records]) -> Records:
        """Read all records that are to be watched, take note of their leases, and return them.

        A lease that isn't among them is forgotten. What ``read`` raises is raised; the count starts
        again then.
        """
        began_s = self._clock()
        try:
            records = read()
        except BaseException:
            self.start_again()
            raise
        ended_s = self._clock()
        with self._lock:
            # A read lies somewhere between its begin and its end, so what lies between two reads
            # may be as much as this, and is at least what counts below.
            gap_s = None if self._last_began_s is None else ended_s - self._last_began_s
            usual_s = median(self._gaps_s)
            if gap_s is not None and self._seen:
                self._gaps_s.append(gap_s)
            self._last_began_s = began_s
            self._seen = {
                lease.token: self._sight(lease, began_s, ended_s, gap_s, usual_s)
                for record in records
                if record.status is Status.RUNNING and (lease := record.lease)
            }
        return records

    def start_again(self) -> None:
        """Count from the next look on: the registry couldn't be read or written."""
        with self._lock:
            self._seen, self._last_began_s = {}, None

    @contextlib.contextmanager
    def starting_again(self) -> Iterator[None]:
        """Start to count again if a change fails that was to take a process over.

        An owner whom the same fault keeps from renewing its lease may need a moment afterwards.
        """
        try:
            yield
        except RegistryUnavailable:
            self.start_again()
            raise

    def has_run_out(self, lease: Lease) -> bool:
        """Whether this very lease, not renewed since, was seen unchanged for its length."""
        with self._lock:
            sight = self._seen.get(lease.token)
        if sight is None or sight.lease != lease:
            return False
        return sight.until_s - sight.since_s >= self.length_s(lease)

    def is_lost(self, record: ProcessRecord) -> bool:
        """Whether it stands as running though its owner is dead or has let its lease run out.

        Without any effect, and about the lease in that record: to be asked within a change of it,
        so that an owner who has renewed it meanwhile keeps it.
        """
        if record.status is not Status.RUNNING or record.lease is None:
            return False
        return is_gone(record.lease.owner) or self.has_run_out(record.lease)

    def length_s(self, lease: Lease) -> float:
        """For how long a lease has to be seen unchanged."""
        return self._lease_s if lease.length_s is None else lease.length_s

    def _sight(
        self, lease: Lease, began_s: float, ended_s: float, gap_s: float | None, usual_s: float
    ) -> _Sight:
        before = self._seen.get(lease.token)
        # Owners renew several times within a lease, so half of it is left for that after a gap;
        # one who always looks more seldom than this has to come to a verdict all the same.
        longest_s = max(self.length_s(lease) / 2, _USUAL_GAPS * usual_s)
        if before is None or before.lease != lease or gap_s is None or gap_s > longest_s:
            return _Sight(lease, ended_s, ended_s)
        return _Sight(lease, before.since_s, began_s)
