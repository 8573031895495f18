"""Whose owner is lost: seen on one clock, over a series of looks, whatever other clocks say."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from loradash.domain import process as changes
from loradash.domain.ids import new_process_id
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import RegistryUnavailable
from loradash.registry.memory import MemoryRegistry
from loradash.runtime.lease_watch import LeaseWatch
from loradash.services.processes.running import take_over
from tests.clock import Clock

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LOOK_S = 2.0
OFFSETS_S = [-600, -120, -30, -2, 0, 2, 25, 120, 600]


class Owner:
    """A worker with a wall clock of its own, that renews its lease as `Attempt` does."""

    def __init__(self, registry, lease_s, ahead_s=0.0):
        self.registry = registry
        self.lease_s = lease_s
        self.ahead_s = ahead_s
        self.renewed_s = None
        self.is_frozen = self.is_lost = False
        self.id = registry.create(
            ProcessRecord(
                id=new_process_id("training"), kind="training", name="cat", created_at=NOW,
                enqueued_at=NOW, updated_at=NOW,
            )
        ).id  # fmt: skip

    def now(self, true_s):
        return NOW + timedelta(seconds=true_s + self.ahead_s)

    def work(self, true_s):
        if self.is_frozen or self.is_lost:
            return
        if self.renewed_s is None:
            self.registry.change(
                self.id,
                lambda one: changes.taken(
                    one, owner="elsewhere/1/1.00", token="its", now=self.now(true_s),
                    lease_s=self.lease_s, device="cpu",
                ),
            )  # fmt: skip
        elif true_s - self.renewed_s <= self.lease_s / 4:
            return
        else:
            try:
                self.registry.change(
                    self.id,
                    lambda one: changes.renewed(
                        one, "its", now=self.now(true_s), lease_s=self.lease_s
                    ),
                )
            except RegistryUnavailable:
                return
            except changes.LeaseLost:
                self.is_lost = True
                return
        self.renewed_s = true_s


class Away(MemoryRegistry):
    """A registry that is away at times, by a clock."""

    is_away = False

    def running(self):
        if self.is_away:
            raise RegistryUnavailable("away")
        return super().running()

    def change(self, process_id, change):
        if self.is_away:
            raise RegistryUnavailable("away")
        return super().change(process_id, change)


class Observer:
    """Whoever sweeps: looks every now and then, and takes over what is lost."""

    def __init__(self, registry, lease_s, *, starts_s=0.0):
        self.registry = registry
        self.clock = Clock()
        self.watch = LeaseWatch(lease_s, look_every_s=LOOK_S, clock=self.clock)
        self.next_s = starts_s
        self.is_frozen = False
        self.took = []

    def work(self, true_s):
        if self.is_frozen or true_s < self.next_s:
            return
        self.next_s = true_s + self.watch.look_every_s
        try:
            for record in self.watch.look(self.registry.running):
                if self.watch.is_lost(record):
                    taken = take_over(self.registry, record.id, 9, self.watch)
                    if taken.status is not Status.RUNNING:
                        self.took.append(true_s)
        except RegistryUnavailable:
            pass


def play(registry, owner, observers, until_s, events=(), step_s=0.25):
    """Let true time pass; ``events`` are (time, what happens then)."""
    events = sorted(events, key=lambda event: event[0])
    true_s = 0.0
    while true_s <= until_s:
        while events and events[0][0] <= true_s:
            events.pop(0)[1]()
        owner.work(true_s)
        for observer in observers:
            observer.work(true_s)
            observer.clock.now_s += step_s
        true_s += step_s


def setting(thing, **fields):
    return lambda: [setattr(thing, name, value) for name, value in fields.items()]


@pytest.fixture
def registry():
    return Away()


@pytest.mark.parametrize("ahead_s", OFFSETS_S)
@pytest.mark.parametrize("lease_s", [3, 30])
def test_a_live_owner_keeps_its_lease_however_wrong_its_clock_is(registry, lease_s, ahead_s):
    owner, observer = Owner(registry, lease_s, ahead_s), Observer(registry, lease_s)
    play(registry, owner, [observer], 10 * lease_s)
    assert observer.took == []
    assert registry.get(owner.id).lease.renewals > 20


@pytest.mark.parametrize("ahead_s", OFFSETS_S)
@pytest.mark.parametrize("lease_s", [3, 30])
def test_a_dead_owner_is_found_within_moments_of_its_lease(registry, lease_s, ahead_s):
    owner, observer = Owner(registry, lease_s, ahead_s), Observer(registry, lease_s)
    play(registry, owner, [observer], 200, [(50, setting(owner, is_frozen=True))])
    (took_s,) = observer.took
    assert took_s >= owner.renewed_s + lease_s
    assert took_s <= owner.renewed_s + lease_s + 3 * observer.watch.look_every_s + 0.5


@pytest.mark.parametrize("step_s", [-600, -31, 31, 600])
def test_a_clock_that_is_set_during_a_run_changes_nothing(registry, step_s):
    owner, observer = Owner(registry, 30), Observer(registry, 30)
    events = [(t, setting(owner, ahead_s=step_s * (n % 2))) for n, t in enumerate((40, 80, 120))]
    play(registry, owner, [observer], 200, events)
    assert observer.took == []


@pytest.mark.parametrize("outage_s", [10, 29, 31, 45, 60, 90, 600])
@pytest.mark.parametrize("begins_s", [50.0, 52.25, 55.5, 57.25])
def test_after_an_outage_of_the_registry_nothing_is_taken_away(registry, outage_s, begins_s):
    """Longer than the lease, and the observer looks first when it is over."""
    owner, observer = Owner(registry, 30), Observer(registry, 30)
    events = [
        (begins_s, setting(registry, is_away=True)),
        (begins_s, setting(owner, is_frozen=True)),
        (begins_s + outage_s, setting(registry, is_away=False)),
        (begins_s + outage_s, setting(observer, next_s=0.0)),
        (begins_s + outage_s + 10, setting(owner, is_frozen=False)),  # its next try
    ]
    play(registry, owner, [observer], begins_s + outage_s + 100, events)
    assert observer.took == []
    assert not owner.is_lost


def test_an_owner_that_dies_in_an_outage_is_found_a_lease_after_it(registry):
    owner, observer = Owner(registry, 30), Observer(registry, 30)
    events = [
        (50, setting(registry, is_away=True)),
        (60, setting(owner, is_frozen=True)),
        (150, setting(registry, is_away=False)),
    ]
    play(registry, owner, [observer], 300, events)
    (took_s,) = observer.took
    assert 180 <= took_s <= 190


@pytest.mark.parametrize("frozen_s", [10, 20, 31, 60, 600])
@pytest.mark.parametrize("begins_s", [50.0, 52.25, 55.5, 57.25])
def test_an_observer_that_was_frozen_takes_nothing_away_as_it_wakes(registry, frozen_s, begins_s):
    """SIGSTOP, or a paused virtual machine; the owner is cut off for just as long."""
    owner, observer = Owner(registry, 30), Observer(registry, 30)
    both = [setting(owner, is_frozen=True), setting(observer, is_frozen=True)]
    woken = [
        (begins_s + frozen_s, setting(observer, is_frozen=False)),
        (begins_s + frozen_s + 7, setting(owner, is_frozen=False)),
    ]
    play(
        registry, owner, [observer], begins_s + frozen_s + 100,
        [*((begins_s, freeze) for freeze in both), *woken],
    )  # fmt: skip
    assert observer.took == []
    assert not owner.is_lost


@pytest.mark.parametrize("asleep_s", [10, 600])
def test_a_sleep_in_which_the_observers_clock_stands_still_changes_nothing(registry, asleep_s):
    """As with the monotonic clock of a laptop that was suspended; its worker slept, too."""
    owner, observer = Owner(registry, 30), Observer(registry, 30)
    play(registry, owner, [observer], 50)
    owner.ahead_s += asleep_s
    play(registry, owner, [observer], 100)
    assert observer.took == []


def test_an_owner_that_sleeps_longer_than_its_lease_finds_that_it_is_lost(registry):
    owner, observer = Owner(registry, 30), Observer(registry, 30)
    events = [(50, setting(owner, is_frozen=True)), (120, setting(owner, is_frozen=False))]
    play(registry, owner, [observer], 200, events)
    assert (len(observer.took), owner.is_lost) == (1, True)


def test_an_owner_that_sleeps_long_while_nobody_looks_goes_on(registry):
    owner, observer = Owner(registry, 30), Observer(registry, 30, starts_s=115)
    events = [(50, setting(owner, is_frozen=True)), (120, setting(owner, is_frozen=False))]
    play(registry, owner, [observer], 300, events)
    assert (observer.took, owner.is_lost) == ([], False)


def test_a_new_observer_watches_for_a_whole_lease(registry):
    owner, observer = Owner(registry, 30), Observer(registry, 30, starts_s=100)
    play(registry, owner, [observer], 200, [(10, setting(owner, is_frozen=True))])
    (took_s,) = observer.took
    assert 130 <= took_s <= 136


def test_of_several_observers_one_takes_a_process(registry):
    owner = Owner(registry, 30)
    observers = [Observer(registry, 30, starts_s=n / 4) for n in range(4)]
    play(registry, owner, observers, 200, [(50, setting(owner, is_frozen=True))])
    assert sorted(len(one.took) for one in observers) == [0, 0, 0, 1]
    assert registry.get(owner.id).attempt.ending == "lost"


def test_an_observer_that_is_always_slow_finds_a_dead_owner_all_the_same(registry):
    """More seldom than half a lease: then these gaps are its usual ones."""
    owner, observer = Owner(registry, 3), Observer(registry, 3)
    observer.watch.look_every_s = 10.0
    play(registry, owner, [observer], 300, [(100, setting(owner, is_frozen=True))])
    assert len(observer.took) == 1


@pytest.mark.parametrize("hung_s", [20, 31, 120])
def test_a_look_that_hung_counts_as_none(registry, hung_s):
    """It ended well, but who knows what its owner couldn't do meanwhile."""
    owner = Owner(registry, 30)
    owner.work(0)
    clock = Clock()
    watch = LeaseWatch(30, look_every_s=LOOK_S, clock=clock)
    watch.look(registry.running)

    def hang():
        clock.now_s += hung_s
        return registry.running()

    clock.now_s = 8
    watch.look(hang)
    for _ in range(14):
        clock.now_s += 2
        (record,) = watch.look(registry.running)
        assert not watch.is_lost(record)
    clock.now_s += 4
    watch.look(registry.running)
    assert watch.is_lost(record)


@pytest.mark.parametrize("length_s", [None, 30, 60])
def test_a_lease_is_as_long_as_its_owner_promised(registry, length_s):
    """An older loradash didn't say; then as long as here."""
    owner = Owner(registry, 1)
    owner.work(0)

    def change(record):
        return record.model_copy(
            update={"lease": record.lease.model_copy(update={"length_s": length_s})}
        )

    registry.change(owner.id, change)
    clock = Clock()
    watch = LeaseWatch(30, look_every_s=LOOK_S, clock=clock)
    while not watch.is_lost(watch.look(registry.running)[0]):
        clock.now_s += 2
    assert clock.now_s == (length_s or 30)


def test_an_older_worker_renews_by_its_time_alone(registry):
    owner = Owner(registry, 30)
    owner.work(0)
    clock = Clock()
    watch = LeaseWatch(30, look_every_s=LOOK_S, clock=clock)
    for n in range(100):
        clock.now_s += 2

        def change(record, n=n):
            lease = record.lease.model_copy(
                update={"length_s": None, "renewals": 0, "expires_at": NOW + timedelta(seconds=n)}
            )
            return record.model_copy(update={"lease": lease})

        if n % 4 == 0:
            registry.change(owner.id, change)
        assert not watch.is_lost(watch.look(registry.running)[0])


def test_what_is_not_running_is_not_lost(registry):
    owner = Owner(registry, 30)
    watch = LeaseWatch(30, look_every_s=LOOK_S)
    assert not watch.is_lost(registry.get(owner.id))


def test_an_owner_that_died_here_need_not_be_watched(registry):
    code = "from loradash.runtime.owner import this_owner; print(this_owner())"
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    owner = Owner(registry, 3600)
    record = registry.change(
        owner.id,
        lambda one: changes.taken(
            one, owner=dead.stdout.strip(), token="its", now=NOW, lease_s=3600, device="cpu"
        ),
    )
    assert LeaseWatch(30, look_every_s=LOOK_S).is_lost(record)
