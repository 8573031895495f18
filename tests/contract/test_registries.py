"""What every registry must do, whichever it is."""

import base64
import itertools
import random
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import make_url

from loradash.domain import process as changes
from loradash.domain.ids import new_process_id
from loradash.domain.process import (
    TRANSITIONS,
    Problem,
    ProcessRecord,
    Progress,
    Status,
)
from loradash.errors import (
    ConflictingState,
    InvalidRequest,
    InvalidSettings,
    LeaseLost,
    LoradashError,
    NotFound,
    RegistryUnavailable,
)
from loradash.registry import tables
from loradash.registry.database import Database
from loradash.registry.memory import MemoryRegistry
from loradash.registry.objects import ObjectRegistry
from loradash.registry.registry import MAX_PLACES, LogLine, Metric, NewLine, StoredArtifact
from loradash.registry.sql import SqlRegistry
from loradash.registry.sqlite import SqliteDialect
from loradash.runtime.lease_watch import LeaseWatch
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore
from loradash.storage.s3.store import S3Store
from tests.clock import Clock

from .buckets import config_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PROBLEM = Problem(code="out_of_memory", message="the memory ran out", problems=("a", "b"))
KINDS = ("training", "generation")
UNKNOWN_IDS = ["train_00000000000000000000", "", "x", "../x", "a\0b", "\ud800", "x' OR 'x'='x"]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/registry.sqlite3"


SERVERS = ("seaweedfs", "juicefs")


def make_store(kind, request, tmp_path):
    if kind == "objects":
        return MemoryStore()
    if kind == "shared":
        return LocalStore(tmp_path / "objects", shared=True)
    return S3Store(config_of(request.getfixturevalue(kind), prefix="some/where"))


@pytest.fixture(scope="session")
def postgres_registry(postgres):
    """One for all tests: creating tables takes longer than most of them."""
    with closing(SqlRegistry(postgres.new_schema())) as registry:
        yield registry


def emptied(registry):
    """Return a registry in a database without its processes, and with an open queue."""

    def empty(connection):
        for table in reversed(tables.metadata.sorted_tables):
            if table is not tables.state and table is not tables.counts:
                connection.execute(table.delete())
        connection.execute(tables.counts.update().values(count=0))

    registry._database.write(empty)
    registry.pause(False)
    return registry


@pytest.fixture(params=["memory", "sqlite", "postgres", "objects", "shared", *SERVERS])
def registry(request, url, tmp_path):
    is_server = request.param in ("postgres", *SERVERS)
    if is_server and request.node.get_closest_marker("many_processes"):
        pytest.skip("more processes than a real server is asked to create in a test")
    if request.param == "postgres":
        yield emptied(request.getfixturevalue("postgres_registry"))
        return
    if request.param in ("memory", "sqlite"):
        with closing(MemoryRegistry() if request.param == "memory" else SqlRegistry(url)) as made:
            yield made
        return
    with closing(make_store(request.param, request, tmp_path)) as store:
        yield ObjectRegistry(store, settle_s=0.2)


def at(seconds):
    return NOW + timedelta(seconds=seconds)


def new(created_s=0.0, kind="training", **fields):
    created_at = at(created_s)
    fields = {"enqueued_at": created_at, "name": "cats"} | fields
    return ProcessRecord(
        id=new_process_id(kind, created_at.timestamp()), kind=kind,
        created_at=created_at, updated_at=created_at, **fields,
    )  # fmt: skip


def taking(token="token", now_s=0.0, lease_s=30.0):
    return lambda record: changes.taken(
        record,
        owner=f"worker of {token}",
        token=token,
        now=at(now_s),
        lease_s=lease_s,
        device="cpu",
    )


def renewing(now_s, progress=None, token="token"):
    return lambda record: changes.renewed(
        record, token, now=at(now_s), lease_s=30, progress=progress
    )


def running(registry, token="token", **fields):
    return registry.change(registry.create(new(**fields)).id, taking(token))


def in_status(registry, status, kind="training"):
    """Bring a new process into a status by way of the changes that lead there."""
    record = registry.create(new(kind=kind))
    for change in {
        Status.PENDING: [],
        Status.RUNNING: [taking()],
        Status.COMPLETED: [taking(), MOVES[Status.COMPLETED]],
        Status.FAILED: [taking(), MOVES[Status.FAILED]],
        Status.CANCELLED: [MOVES[Status.CANCELLED]],
    }[status]:
        record = registry.change(record.id, change)
    return record


def to_pending(record):
    if record.status is Status.RUNNING:
        return changes.released(record, "token", at(9))
    return changes.requeued(record, at(9))


def to_failed(record):
    if record.status is Status.PENDING:
        return changes.given_up(record, PROBLEM, at(9))
    return changes.failed(record, "token", PROBLEM, at(9))


def to_cancelled(record):
    if record.status is Status.RUNNING:
        return changes.cancelled(record, "token", at(9))
    return changes.cancel_requested(record, at(9))


MOVES = {
    Status.PENDING: to_pending,
    Status.RUNNING: taking(now_s=9),
    Status.COMPLETED: lambda record: changes.completed(
        record, "token", now=at(9), output_prefix="results/x"
    ),
    Status.FAILED: to_failed,
    Status.CANCELLED: to_cancelled,
}


def metric(step, attempt=1, loss=0.5):
    return Metric(step=step, attempt=attempt, time=at(step), loss=loss, learning_rate=1e-4)


def line(text, attempt=1):
    return NewLine(attempt, NOW, "engine", text)


def artifact(process_id, key="results/a.png", kind="sample", created_s=0.0, **fields):
    fields = {"name": "a.png", "size_bytes": 7, "sha256": "0" * 64} | fields
    return StoredArtifact(
        process_id=process_id, key=key, kind=kind, created_at=at(created_s), **fields
    )


def all_pages(registry, limit, **filters):
    pages = [registry.page(limit=limit, **filters)]
    while cursor := pages[-1].next_cursor:
        pages.append(registry.page(limit=limit, cursor=cursor, **filters))
    return pages


def ids(records):
    return [record.id for record in records]


def recount(registry):
    found = dict.fromkeys(itertools.product(KINDS, Status), 0)
    for page in all_pages(registry, 100):
        for record in page.records:
            found[record.kind, record.status] += 1
    return found


def in_threads(count, work):
    """Run ``work(n)`` in that many threads which start together; return the results."""
    barrier = threading.Barrier(count)

    def run(n):
        barrier.wait()
        return work(n)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


# Records


def test_a_record_comes_back_as_it_was_created(registry):
    record = new(
        0.123456, "generation", name="Größe 猫 🐈 \0", priority=-3, request_id="r",
        summary={"adapters": ["a", "b"], "weight": 0.1, "none": None, "deep": {"x": [1, 2.5]}},
    )  # fmt: skip
    assert registry.create(record) == record
    assert registry.get(record.id) == record


def test_times_keep_their_microseconds_and_their_zone(registry):
    record = running(registry, created_s=0.000001)
    back = registry.get(record.id)
    assert back == record
    assert back.created_at.microsecond == 1
    assert back.created_at.utcoffset() == back.lease.expires_at.utcoffset() == timedelta(0)


def test_a_record_with_all_that_can_be_known_survives(registry):
    record = running(registry)
    progress = Progress(phase="training", step=3, total_steps=9, loss=0.1 + 0.2, eta_s=1.5)
    assert registry.change(record.id, renewing(1, progress)) == registry.get(record.id)
    record = registry.change(record.id, MOVES[Status.FAILED])
    assert registry.get(record.id) == record
    assert record.error == PROBLEM


def test_an_id_is_given_once(registry):
    record = registry.create(new())
    with pytest.raises(ConflictingState, match=record.id) as caught:
        registry.create(record.model_copy(update={"name": "dogs"}))
    assert caught.value.remedy
    assert registry.get(record.id) == record
    assert registry.counts()["training", Status.PENDING] == 1


@pytest.mark.any_store
@pytest.mark.parametrize("unknown", UNKNOWN_IDS)
def test_an_unknown_process_is_not_found_by_any_method(registry, unknown):
    called = []
    for ask in (
        lambda: registry.get(unknown),
        lambda: registry.change(unknown, called.append),
        lambda: registry.append_metrics(unknown, "token", [metric(1)]),
        lambda: registry.forget_metrics(unknown, "token", 0),
        lambda: registry.metrics(unknown),
        lambda: registry.append_log(unknown, "token", [line("x")]),
        lambda: registry.log(unknown),
        lambda: registry.log(unknown, newest=True),
        lambda: registry.drop_artifacts(unknown, ["x"]),
        lambda: registry.artifacts(unknown),
    ):
        with pytest.raises(NotFound) as caught:
            ask()
        assert caught.value.remedy
    assert called == []


def test_an_artifact_of_an_unknown_process_is_refused(registry):
    with pytest.raises(NotFound):
        registry.put_artifacts("token", [artifact(UNKNOWN_IDS[0])])
    assert registry.newest_artifacts(["sample"]) == ((), "")


def test_a_change_replaces_the_record(registry):
    record = running(registry)
    assert registry.get(record.id) == record
    assert record.status is Status.RUNNING


def test_a_change_that_raises_writes_nothing(registry):
    record = registry.create(new())

    def change(_):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        registry.change(record.id, change)
    assert registry.get(record.id) == record
    registry.change(record.id, taking())  # and the registry goes on working
    assert registry.get(record.id).status is Status.RUNNING


def test_a_change_to_an_equal_record_returns_it(registry):
    record = registry.create(new())
    assert registry.change(record.id, lambda record: record.model_copy()) == record
    assert registry.get(record.id) == record


@pytest.mark.any_store
@pytest.mark.parametrize(("source", "target"), list(itertools.product(Status, Status)))
def test_the_table_of_transitions_holds(registry, source, target):
    before = in_status(registry, source)
    counts = registry.counts()
    if target in TRANSITIONS[source]:
        assert registry.change(before.id, MOVES[target]).status is target
        assert registry.get(before.id).status is target
    elif source is target is Status.CANCELLED:  # asking twice is no mistake
        assert registry.change(before.id, MOVES[target]) == before
    else:
        with pytest.raises((ConflictingState, LeaseLost)) as caught:
            registry.change(before.id, MOVES[target])
        assert caught.value.remedy
        assert registry.get(before.id) == before
        assert registry.counts() == counts
    assert registry.counts() == recount(registry)


# Leases


def test_what_runs_is_listed_with_its_lease_as_it_is_now(registry):
    assert registry.running() == ()
    first, second = (running(registry, str(n), created_s=n) for n in range(2))
    ended = running(registry)
    registry.change(ended.id, MOVES[Status.COMPLETED])
    registry.create(new())
    assert registry.running() == tuple(sorted((first, second), key=lambda one: one.id))
    renewed = registry.change(second.id, renewing(0, token="1"))
    assert renewed.lease != second.lease  # by the same clock at the same time, too
    assert next(one for one in registry.running() if one.id == second.id) == renewed
    registry.change(first.id, lambda record: changes.released(record, "0", at(9)))
    assert registry.running() == (renewed,)


def test_a_lease_that_is_not_renewed_runs_out_for_whoever_watches_it(registry):
    clock = Clock()
    watch = LeaseWatch(30, look_every_s=5, clock=clock)
    dead, alive = running(registry, "dead"), running(registry, "alive")
    for n in range(7):
        clock.now_s = 5.0 * n
        registry.change(alive.id, renewing(5 * n, token="alive"))
        seen = watch.look(registry.running)
    assert [record.id for record in seen if watch.is_lost(record)] == [dead.id]


def lapse(registry, process_id, now_s, max_attempts=3):
    return registry.change(
        process_id,
        lambda record: changes.expired(
            record, now=at(now_s), max_attempts=max_attempts, owner_is_gone=True
        ),
    )


def test_expired_lease_is_taken_over(registry):
    record = running(registry, "old")
    assert lapse(registry, record.id, 31).status is Status.PENDING
    assert registry.running() == ()
    record = registry.take_next("training", taking("new", 32))
    assert (record.lease.token, record.attempt_count) == ("new", 2)
    assert [note.ending for note in record.attempts] == ["lost", ""]


def test_an_old_owner_can_write_nothing_any_more(registry):
    record = running(registry, "old")
    registry.append_metrics(record.id, "old", [metric(1)])
    registry.append_log(record.id, "old", [line("old")])
    registry.put_artifacts("old", [artifact(record.id)])
    lapse(registry, record.id, 31)
    record = registry.take_next("training", taking("new", 32))
    for write in (
        lambda: registry.append_metrics(record.id, "old", [metric(1, loss=9)]),
        lambda: registry.forget_metrics(record.id, "old", 0),
        lambda: registry.append_log(record.id, "old", [line("no")]),
        lambda: registry.put_artifacts("old", [artifact(record.id, "results/b.png")]),
        lambda: registry.change(record.id, renewing(33, token="old")),
        lambda: registry.change(
            record.id,
            lambda record: changes.completed(record, "old", now=at(33), output_prefix="x"),
        ),
        lambda: registry.change(
            record.id, lambda record: changes.failed(record, "old", PROBLEM, at(33))
        ),
    ):
        with pytest.raises(LeaseLost) as caught:
            write()
        assert caught.value.remedy
    assert registry.get(record.id) == record
    assert registry.metrics(record.id) == (metric(1),)
    assert [one.text for one in registry.log(record.id)] == ["old"]
    assert [one.key for one in registry.artifacts(record.id)] == ["results/a.png"]


@pytest.mark.any_store
@pytest.mark.parametrize("status", [status for status in Status if status is not Status.RUNNING])
def test_nobody_appends_to_a_process_that_does_not_run(registry, status):
    record = in_status(registry, status)
    for write in (
        lambda: registry.append_metrics(record.id, "token", []),
        lambda: registry.append_log(record.id, "token", [line("no")]),
        lambda: registry.put_artifacts("token", [artifact(record.id)]),
    ):
        with pytest.raises(LeaseLost):
            write()


def test_a_process_that_keeps_killing_its_workers_is_given_up(registry):
    process_id = registry.create(new()).id
    for n in range(3):
        assert registry.take_next("training", taking(now_s=n * 60)).id == process_id
        record = lapse(registry, process_id, n * 60 + 31)
    assert (record.status, record.error.code) == (Status.FAILED, "worker_lost")
    assert registry.take_next("training", taking()) is None
    record = registry.change(process_id, lambda record: changes.requeued(record, at(300)))
    assert (record.status, record.error, record.fruitless_attempts) == (Status.PENDING, None, 0)
    assert ids(registry.pending("training")) == [process_id]


def test_progress_resets_the_count_of_lost_attempts(registry):
    process_id = registry.create(new()).id
    for n in range(5):
        registry.take_next("training", taking(now_s=n * 60))
        registry.change(process_id, renewing(n * 60, Progress(step=n + 1)))
        record = lapse(registry, process_id, n * 60 + 31)
    assert (record.status, record.attempt_count) == (Status.PENDING, 5)


@pytest.mark.any_store
@pytest.mark.parametrize(
    ("status", "is_gone", "expected"),
    [
        (Status.PENDING, False, Status.CANCELLED),
        (Status.RUNNING, False, Status.RUNNING),
        (Status.RUNNING, True, Status.CANCELLED),  # its worker is lost
        (Status.CANCELLED, False, Status.CANCELLED),
        (Status.COMPLETED, True, None),
        (Status.FAILED, True, None),
    ],
)
def test_cancelling_ends_what_waits_asks_what_runs_and_refuses_what_has_ended(
    registry, status, is_gone, expected
):
    before = in_status(registry, status)

    def cancel(record):
        return changes.cancel_requested(record, at(9), owner_is_gone=is_gone)

    if expected is None:
        with pytest.raises(ConflictingState):
            registry.change(before.id, cancel)
        assert registry.get(before.id) == before
    else:
        record = registry.change(before.id, cancel)
        assert record.status is expected
        assert record.cancel_requested_at is not None
        assert registry.get(before.id) == record


# Pages


def test_an_empty_registry_has_one_empty_page(registry):
    assert registry.page() == ((), "")
    assert registry.counts() == dict.fromkeys(itertools.product(KINDS, Status), 0)


def test_pages_hold_every_process_once_the_newest_first(registry):
    records = [registry.create(new(n // 3, KINDS[n % 2])) for n in range(50)]
    expected = ids(sorted(records, key=lambda one: (one.created_at, one.id), reverse=True))
    for limit in (1, 7, 49, 50, 51):
        pages = all_pages(registry, limit)
        assert [one for page in pages for one in ids(page.records)] == expected
        assert all(len(page.records) == limit for page in pages[:-1])
        assert pages[-1].records


def test_processes_that_were_created_at_once_are_paged_too(registry):
    records = [registry.create(new()) for _ in range(20)]
    pages = all_pages(registry, 3)
    found = [one for page in pages for one in ids(page.records)]
    assert found == sorted(ids(records), reverse=True)


@pytest.mark.any_store
@pytest.mark.parametrize("kind", [None, *KINDS])
@pytest.mark.parametrize(
    "statuses", [(), (Status.PENDING,), (Status.RUNNING, Status.CANCELLED), tuple(Status)]
)
def test_pages_can_be_filtered(registry, kind, statuses):
    dice = random.Random(0)
    for n in range(40):
        record = registry.create(new(n % 7, dice.choice(KINDS)))
        for change in dice.choice([[], [taking()], [taking(), to_cancelled], [to_cancelled]]):
            record = registry.change(record.id, change)
    everything = [record for page in all_pages(registry, 100) for record in page.records]
    expected = [
        record.id
        for record in everything
        if kind in (None, record.kind) and (not statuses or record.status in statuses)
    ]
    pages = all_pages(registry, 4, kind=kind, statuses=statuses)
    assert [one for page in pages for one in ids(page.records)] == expected
    assert expected


def test_pages_stay_complete_and_without_doubles_while_processes_are_added(registry):
    old = [registry.create(new(n)) for n in range(10)]
    seen, cursor = [], ""
    for n in itertools.count():
        page = registry.page(limit=3, cursor=cursor)
        seen += ids(page.records)
        registry.create(new(100 + n))  # newer than all: on no later page
        cursor = page.next_cursor
        if not cursor:
            break
    assert seen == ids(reversed(old))


def test_a_cursor_stays_good_when_its_process_changes(registry):
    records = [registry.create(new(n)) for n in range(4)]
    cursor = registry.page(limit=2, statuses=[Status.PENDING]).next_cursor
    registry.change(records[2].id, taking())
    page = registry.page(limit=2, statuses=[Status.PENDING], cursor=cursor)
    assert ids(page.records) == [records[1].id, records[0].id]


def encoded(text):
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


GOOD_PLACE = "1764025936123456/train_01k9x3q4zt8m2v7c0hde"
HOSTILE_CURSORS = [
    "x",
    " ",
    "\0",
    "\ud800",
    "ä",
    "=",
    "====",
    "' OR 1=1 --",
    "a" * 100_000,
    GOOD_PLACE,
    encoded("1764025936123456"),
    encoded("9" * 19 + "/train_01k9x3q4zt8m2v7c0hde"),
    encoded("9" * 5000 + "/train_01k9x3q4zt8m2v7c0hde"),
    encoded("01764025936123456/train_01k9x3q4zt8m2v7c0hde"),
    encoded("-0/train_01k9x3q4zt8m2v7c0hde"),
    encoded("١٢٣/train_01k9x3q4zt8m2v7c0hde"),
    encoded("1.5/train_01k9x3q4zt8m2v7c0hde"),
    encoded("nan/train_01k9x3q4zt8m2v7c0hde"),
    encoded("1/train_01k9x3q4zt8m2v7c0hde\n"),
    encoded("1/TRAIN_01k9x3q4zt8m2v7c0hde"),
    encoded("1/train_01k9x3q4zt8m2v7c0hde/"),
    encoded("1/train_01k9x3q4zt8m2v7c0hde/a\0b"),
    encoded(GOOD_PLACE) + "=",
    encoded(GOOD_PLACE) + "\n",
    base64.urlsafe_b64encode(b"\xff\xfe\xfd").decode(),
]


@pytest.mark.any_store
@pytest.mark.parametrize("cursor", HOSTILE_CURSORS, ids=lambda cursor: ascii(cursor)[:30])
def test_cursors_that_are_not_ours_are_refused(registry, cursor):
    for ask in (
        lambda: registry.page(cursor=cursor),
        lambda: registry.newest_artifacts(["lora"], before=cursor),
    ):
        with pytest.raises(InvalidRequest) as caught:
            ask()
        assert caught.value.remedy


def test_a_cursor_of_another_list_is_refused(registry):
    record = running(registry)
    registry.create(new())
    for n in range(2):
        registry.put_artifacts("token", [artifact(record.id, f"results/{n}")])
    of_processes = registry.page(limit=1).next_cursor
    of_artifacts = registry.newest_artifacts(["sample"], limit=1)[1]
    with pytest.raises(InvalidRequest):
        registry.page(cursor=of_artifacts)
    with pytest.raises(InvalidRequest):
        registry.newest_artifacts(["sample"], before=of_processes)


def test_a_cursor_of_a_process_that_never_was_is_a_place_like_any_other(registry):
    registry.create(new())
    assert registry.page(cursor=encoded(GOOD_PLACE)) == ((), "")


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.any_store) for seed in range(1, 6))]
)
def test_counts_always_equal_a_recount(registry, seed):
    dice = random.Random(seed)
    known = []
    moves = [
        *MOVES.values(),
        lambda record: changes.expired(
            record, now=at(1000), max_attempts=2, owner_is_gone=dice.random() < 0.5
        ),
        lambda record: changes.cancel_requested(
            record, at(1000), owner_is_gone=dice.random() < 0.5
        ),
        lambda record: changes.reprioritized(record, dice.randint(-10, 10), NOW),
    ]
    for step in range(120):
        try:
            if not known or dice.random() < 0.2:
                known.append(registry.create(new(step, dice.choice(KINDS))).id)
            elif dice.random() < 0.3:
                registry.take_next(dice.choice(KINDS), taking())
            else:
                registry.change(dice.choice(known), dice.choice(moves))
        except LoradashError as error:
            assert isinstance(error, ConflictingState | LeaseLost)
        if step % 10 == 0:
            assert registry.counts() == recount(registry)
    assert registry.counts() == recount(registry)
    assert sum(registry.counts().values()) == len(known)


# The queue


def test_the_queue_goes_by_priority_then_entry_then_id(registry):
    first, second = sorted([new(7), new(7)], key=lambda record: record.id)
    late_but_urgent = new(9, priority=2)
    early = new(3)
    unimportant = new(0, priority=-1)
    for record in (unimportant, second, late_but_urgent, first, early):
        registry.create(record)
    expected = ids([late_but_urgent, early, first, second, unimportant])
    assert ids(registry.pending("training")) == expected
    assert ids(registry.pending("training", limit=2)) == expected[:2]
    assert registry.positions(expected) == {one: n for n, one in enumerate(expected, start=1)}
    taken = [registry.take_next("training", taking()) for _ in range(5)]
    assert ids(taken) == expected
    assert registry.take_next("training", taking()) is None


def test_a_queue_of_all_kinds_has_the_same_order(registry):
    records = [registry.create(new(n % 4, KINDS[n % 2], priority=n % 3)) for n in range(12)]
    records.sort(key=lambda one: (-one.priority, one.enqueued_at, one.id))
    assert ids(registry.pending()) == ids(records)


@pytest.mark.many_processes
def test_positions_end_after_the_first_thousand(registry):
    queue = [registry.create(new(n)).id for n in range(MAX_PLACES + 2)]
    drawn = registry.create(new(0.5, "generation")).id
    asked = [queue[0], *queue[-3:], drawn]
    assert registry.positions(asked) == {queue[0]: 1, queue[-3]: MAX_PLACES, drawn: 1}


def test_each_kind_has_positions_of_its_own(registry):
    trainings = [registry.create(new(n)).id for n in range(3)]
    generations = [registry.create(new(n, "generation")).id for n in range(2)]
    registry.change(trainings[0], taking())
    asked = [trainings[0], trainings[2], *generations, UNKNOWN_IDS[0]]
    assert registry.positions(asked) == {trainings[2]: 2, generations[0]: 1, generations[1]: 2}
    assert registry.positions([]) == {}


def test_a_worker_takes_only_its_kind(registry):
    registry.create(new())
    assert registry.take_next("generation", taking()) is None
    assert registry.take_next("training", taking()).kind == "training"


def test_excluded_processes_are_passed_over(registry):
    first, second, third = (registry.create(new(n)).id for n in range(3))
    exclude = [second, first, "\ud800", UNKNOWN_IDS[0]]
    assert registry.take_next("training", taking(), exclude=exclude).id == third
    assert registry.take_next("training", taking(), exclude=exclude) is None
    assert registry.take_next("training", taking(), exclude=[second]).id == first


def test_a_process_whose_taking_fails_keeps_its_place(registry):
    first, second = (registry.create(new(n)).id for n in range(2))

    def fail(record):
        raise ConflictingState("no")

    with pytest.raises(ConflictingState):
        registry.take_next("training", fail)
    assert ids(registry.pending()) == [first, second]


def test_a_new_priority_moves_a_process_in_the_queue(registry):
    first, second = (registry.create(new(n)).id for n in range(2))
    registry.change(second, lambda record: changes.reprioritized(record, 5, at(9)))
    assert registry.positions([first, second]) == {second: 1, first: 2}


def test_a_resumed_process_waits_at_the_end_and_a_released_one_at_its_old_place(registry):
    cancelled, released, other = (registry.create(new(n)).id for n in range(3))
    registry.change(cancelled, to_cancelled)
    registry.change(cancelled, to_pending)
    registry.change(released, taking())
    registry.change(released, to_pending)
    assert ids(registry.pending()) == [released, other, cancelled]


def test_nothing_is_taken_while_the_queue_is_paused(registry):
    record = registry.create(new())
    assert registry.paused() is False
    for _ in range(2):
        registry.pause(True)
        assert registry.paused() is True
        assert registry.take_next("training", taking()) is None
    assert ids(registry.pending()) == [record.id]
    registry.pause(False)
    assert registry.paused() is False
    assert registry.take_next("training", taking()).id == record.id


# Threads


def test_of_many_workers_no_two_take_the_same_process(registry):
    created = {registry.create(new(n)).id for n in range(40)}

    def work(n):
        taken = []
        while record := registry.take_next("training", taking(f"worker {n}")):
            taken.append(record.id)
        return taken

    taken = [one for part in in_threads(8, work) for one in part]
    assert len(taken) == 40
    assert set(taken) == created
    assert registry.counts()["training", Status.RUNNING] == 40


def test_no_change_is_lost(registry):
    process_id = running(registry).id

    def add(record):
        step = record.progress.step + 1
        return record.model_copy(update={"progress": Progress(step=step)})

    def work(_):
        for _ in range(25):
            registry.change(process_id, add)

    in_threads(6, work)
    assert registry.get(process_id).progress.step == 150


def test_of_two_ends_at_once_only_one_happens(registry):
    for n in range(10):
        process_id = running(registry, created_s=n).id

        def work(n, process_id=process_id):
            end = [Status.COMPLETED, Status.FAILED][n]
            try:
                return registry.change(process_id, MOVES[end]).status
            except LeaseLost:
                return None

        ends = in_threads(2, work)
        assert ends.count(None) == 1
        assert registry.get(process_id).status in ends


def test_log_lines_of_several_threads_are_numbered_without_gaps(registry):
    process_id = running(registry).id

    def work(n):
        for k in range(10):
            registry.append_log(process_id, "token", [line(f"{n} {k} {part}") for part in "ab"])

    in_threads(5, work)
    lines = registry.log(process_id)
    assert [one.number for one in lines] == list(range(1, 101))
    assert len({one.text for one in lines}) == 100
    for first, second in zip(lines[::2], lines[1::2], strict=True):  # each call's stay together
        assert first.text[:-1] == second.text[:-1]


def test_readers_see_whole_changes(registry):
    """Each change moves one process; a reader never counts too many or too few."""
    process_id = registry.create(new()).id
    stop = threading.Event()

    def write():
        while not stop.is_set():
            registry.change(process_id, taking())
            registry.change(process_id, to_pending)

    with ThreadPoolExecutor(1) as threads:
        writer = threads.submit(write)
        try:
            for _ in range(100):
                assert sum(registry.counts().values()) == 1
                assert ids(registry.page().records) == [process_id]
        finally:
            stop.set()
        writer.result()


# Metrics, log lines and artifacts


def test_metrics_come_back_by_step(registry):
    process_id = running(registry).id
    full = metric(3).model_copy(update={"grad_norm": 0.1 + 0.2, "steps_per_s": 1.5})
    registry.append_metrics(process_id, "token", [full, metric(1)])
    registry.append_metrics(process_id, "token", [metric(2)])
    registry.append_metrics(process_id, "token", [])
    assert registry.metrics(process_id) == (metric(1), metric(2), full)
    assert registry.metrics(process_id, after_step=1, limit=1) == (metric(2),)
    assert registry.metrics(process_id, after_step=3) == ()


@pytest.mark.any_store
@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf"), 1e-320, 0.1 + 0.2])
def test_any_loss_can_be_kept(registry, loss):
    process_id = running(registry).id
    registry.append_metrics(process_id, "token", [metric(1, loss=loss)])
    assert repr(registry.metrics(process_id)[0].loss) == repr(loss)


def test_a_later_attempt_replaces_the_metrics_of_its_steps(registry):
    process_id = running(registry).id
    registry.append_metrics(process_id, "token", [metric(n) for n in (1, 2, 3)])
    registry.append_metrics(process_id, "token", [metric(2, 2, 0.1), metric(2, 2, 0.2)])
    assert registry.metrics(process_id) == (metric(1), metric(2, 2, 0.2), metric(3))


def test_metrics_after_a_step_can_be_forgotten(registry):
    process_id, other = running(registry).id, running(registry).id
    for one in (process_id, other):
        registry.append_metrics(one, "token", [metric(n) for n in range(1, 6)])
    registry.forget_metrics(process_id, "token", 3)
    assert [row.step for row in registry.metrics(process_id)] == [1, 2, 3]
    assert len(registry.metrics(other)) == 5
    registry.forget_metrics(process_id, "token", 0)
    assert registry.metrics(process_id) == ()


def test_log_lines_are_numbered_from_one(registry):
    process_id, other = running(registry).id, running(registry).id
    registry.append_log(process_id, "token", [line("a"), line("b\0 🐈\n")])
    registry.append_log(other, "token", [line("x")])
    registry.append_log(process_id, "token", [])
    registry.append_log(process_id, "token", [NewLine(2, at(5), "loradash", "")])
    assert registry.log(process_id) == (
        LogLine(number=1, attempt=1, time=NOW, source="engine", text="a"),
        LogLine(number=2, attempt=1, time=NOW, source="engine", text="b\0 🐈\n"),
        LogLine(number=3, attempt=2, time=at(5), source="loradash", text=""),
    )
    assert [one.number for one in registry.log(other)] == [1]


@pytest.mark.any_store
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, list(range(1, 11))),
        ({"limit": 3}, [1, 2, 3]),
        ({"after": 7}, [8, 9, 10]),
        ({"after": 7, "limit": 2}, [8, 9]),
        ({"after": 10}, []),
        ({"after": 99, "newest": True}, []),
        ({"newest": True, "limit": 3}, [8, 9, 10]),
        ({"newest": True, "limit": 3, "after": 8}, [9, 10]),
        ({"newest": True}, list(range(1, 11))),
    ],
)
def test_a_part_of_a_log_can_be_read(registry, options, expected):
    process_id = running(registry).id
    registry.append_log(process_id, "token", [line(str(n)) for n in range(1, 11)])
    lines = registry.log(process_id, **options)
    assert [one.number for one in lines] == expected
    assert [one.text for one in lines] == [str(number) for number in expected]


def test_nothing_comes_after_a_number_that_no_database_can_hold(registry):
    process_id = running(registry).id
    registry.append_log(process_id, "token", [line("a")])
    registry.append_metrics(process_id, "token", [metric(1)])
    assert registry.log(process_id, after=10**30) == ()
    assert registry.metrics(process_id, after_step=10**30) == ()


def test_a_process_without_anything_has_nothing(registry):
    process_id = registry.create(new()).id
    assert registry.metrics(process_id) == registry.log(process_id) == ()
    assert registry.artifacts(process_id) == ()


def test_artifacts_come_back_by_key_and_kind(registry):
    process_id, other = running(registry).id, running(registry).id
    lora = artifact(process_id, "results/lora/a.safetensors", "lora", step=9, index=2)
    sample = artifact(process_id, "results/Größe 猫.png", size_bytes=2**40)
    for one in (sample, lora, artifact(other)):
        registry.put_artifacts("token", [one])
    assert registry.artifacts(process_id) == (sample, lora)
    assert registry.artifacts(process_id, ["lora"]) == (lora,)
    assert registry.artifacts(process_id, ["lora", "sample"]) == (sample, lora)
    assert registry.artifacts(process_id, ["log"]) == ()


def test_an_artifact_replaces_the_one_with_its_key(registry):
    process_id = running(registry).id
    registry.put_artifacts("token", [artifact(process_id)])
    newer = artifact(process_id, kind="image", created_s=5, sha256="1" * 64)
    registry.put_artifacts("token", [newer])
    assert registry.artifacts(process_id) == (newer,)
    assert registry.newest_artifacts(["sample"]) == ((), "")
    assert registry.newest_artifacts(["image"]) == ((newer,), "")


def test_artifacts_can_be_dropped_and_missing_ones_are_ignored(registry):
    process_id, other = running(registry).id, running(registry).id
    for one in (process_id, other):
        for key in "abc":
            registry.put_artifacts("token", [artifact(one, key)])
    registry.drop_artifacts(process_id, ["a", "missing", "c", "\0", "b\0", "\ud800"])
    registry.put_artifacts("token", [artifact(other, "d")], replaces=["d", "\0", "\ud800"])
    registry.drop_artifacts(other, ["d"])
    registry.drop_artifacts(process_id, [])
    assert [one.key for one in registry.artifacts(process_id)] == ["b"]
    assert len(registry.artifacts(other)) == 3


def test_the_newest_artifacts_of_all_processes_are_paged(registry):
    processes = [running(registry, created_s=n).id for n in range(3)]
    put = [
        artifact(processes[n % 3], f"results/{n} ä", ["lora", "image", "sample"][n % 3], n // 5)
        for n in range(30)
    ]
    for one in random.Random(0).sample(put, len(put)):
        registry.put_artifacts("token", [one])
    for kinds in (["lora"], ["image", "lora"], []):
        expected = sorted(
            (one for one in put if not kinds or one.kind in kinds),
            key=lambda one: (one.created_at, one.process_id, one.key),
            reverse=True,
        )
        found, cursor = registry.newest_artifacts(kinds, limit=4)
        pages = [found]
        while cursor:
            found, cursor = registry.newest_artifacts(kinds, limit=4, before=cursor)
            pages.append(found)
        assert [one for page in pages for one in page] == expected
        assert all(len(page) == 4 for page in pages[:-1])
        assert pages[-1]


WRITER = """
import sys
from loradash.registry.sql import SqlRegistry
registry = SqlRegistry(sys.argv[1])
def add(record):
    return record.model_copy(update={"worked_s": record.worked_s + 1})
print("ready", flush=True)
for _ in range(100):
    registry.change(sys.argv[2], add)
"""


class TestSqlRegistry:
    """What only a registry in a database can get wrong."""

    @pytest.fixture
    def registry(self, url):
        with closing(SqlRegistry(url)) as registry:
            yield registry

    def test_everything_survives_reopening(self, registry, url):
        record = running(registry)
        registry.append_metrics(record.id, "token", [metric(1)])
        registry.append_log(record.id, "token", [line("a")])
        registry.put_artifacts("token", [artifact(record.id)])
        registry.pause(True)
        registry.close()
        with closing(SqlRegistry(url)) as again:
            assert again.paused() is True
            assert again.get(record.id) == record
            assert again.metrics(record.id) == (metric(1),)
            assert [one.text for one in again.log(record.id)] == ["a"]
            assert again.artifacts(record.id) == (artifact(record.id),)
            assert again.counts() == recount(again)

    @pytest.mark.parametrize("unknown", ["kind = 'generation'", "status = 'cancelled'", "true"])
    def test_what_the_loradash_that_made_the_file_did_not_know_is_counted(
        self, registry, url, unknown
    ):
        for status, kind in itertools.product(Status, KINDS):
            in_status(registry, status, kind)
        with sqlite3.connect(make_url(url).database) as file:
            file.execute(f"DELETE FROM process_counts WHERE {unknown}")
        with closing(SqlRegistry(url)) as again:
            assert again.counts() == recount(again)
            record = again.create(new(kind="generation"))
            again.change(record.id, lambda one: changes.cancel_requested(one, NOW))
            assert again.counts() == recount(again)

    def test_what_was_not_counted_when_the_file_was_opened_is_counted_with_its_first_change(
        self, registry, url
    ):
        records = [registry.create(new(n, "generation")) for n in range(3)]
        with sqlite3.connect(make_url(url).database) as file:
            file.execute("DELETE FROM process_counts WHERE kind = 'generation'")
        for record in records:
            registry.change(record.id, lambda one: changes.cancel_requested(one, NOW))
            registry.create(new(kind="generation"))
            found = recount(registry)
            of_kind = {
                key: count for key, count in registry.counts().items() if key[0] == "generation"
            }
            changed = {("generation", Status.PENDING), ("generation", Status.CANCELLED)}
            assert of_kind.keys() >= changed
            assert of_kind == {key: found[key] for key in of_kind}

    def test_kinds_and_statuses_of_a_newer_loradash_are_left_out_of_the_counts(self, registry, url):
        with sqlite3.connect(make_url(url).database) as file:
            file.execute("INSERT INTO process_counts VALUES ('upscaling', 'parked', 3)")
        assert registry.counts() == recount(registry)

    def test_a_queue_can_be_paused_though_nothing_said_whether_it_is(self, registry, url):
        with sqlite3.connect(make_url(url).database) as file:
            file.execute("DELETE FROM registry_state WHERE name = 'queue_paused'")
        assert registry.paused() is False
        registry.pause(True)
        assert registry.paused() is True

    def test_two_registries_of_one_file_see_each_others_writes(self, registry, url):
        with closing(SqlRegistry(url)) as other:
            record = registry.create(new())
            assert other.get(record.id) == record
            other.pause(True)
            assert registry.paused() is True
            other.pause(False)
            assert other.take_next("training", taking()).id == record.id
            assert registry.take_next("training", taking()) is None

    def test_another_program_writes_at_the_same_time(self, registry, url):
        process_id = running(registry).id
        program = subprocess.Popen(
            [sys.executable, "-c", WRITER, url, process_id], stdout=subprocess.PIPE, text=True
        )
        assert program.stdout.readline() == "ready\n"
        for _ in range(100):
            registry.change(
                process_id,
                lambda record: record.model_copy(update={"worked_s": record.worked_s + 1}),
            )
        program.communicate(timeout=60)
        assert program.returncode == 0
        assert registry.get(process_id).worked_s == 200

    def test_many_may_create_the_file_at_once(self, tmp_path):
        for n in range(10):
            url = f"sqlite:///{tmp_path}/new/folder/{n}.sqlite3"

            def start(_, url=url):
                with closing(SqlRegistry(url)) as registry:
                    return registry.create(new()).id

            created = in_threads(6, start)
            with closing(SqlRegistry(url)) as registry:
                assert set(ids(registry.page().records)) == set(created)
                assert registry.counts() == recount(registry)

    def test_a_full_disk_is_told_with_its_remedy(self, tmp_path):
        url = f"sqlite:///{tmp_path}/full.sqlite3"

        def write_more(connection):
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
            connection.exec_driver_sql("CREATE TABLE more (content TEXT)")
            connection.exec_driver_sql("INSERT INTO more VALUES (zeroblob(1000000))")

        with (
            closing(Database(url, 1)) as database,
            pytest.raises(RegistryUnavailable, match="full") as caught,
        ):
            database.write(write_more)
        assert "free some space" in caught.value.remedy

    def test_the_file_is_for_its_user_alone(self, registry, tmp_path):
        registry.create(new())
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        assert modes["registry.sqlite3"] == 0o600
        assert set(modes.values()) == {0o600}

    def test_what_was_written_survives_a_power_cut_and_belongs_to_something(self, registry, url):
        engine = SqliteDialect().open_engine(make_url(url), wait_s=1)
        with engine.connect() as connection:
            pragmas = ["journal_mode", "synchronous", "foreign_keys"]
            values = [connection.exec_driver_sql(f"PRAGMA {one}").scalar() for one in pragmas]
        engine.dispose()
        assert values == ["wal", 2, 1]

    def test_a_change_to_an_equal_record_writes_nothing(self, registry, url):
        record = registry.create(new())
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            before = file.execute("PRAGMA data_version").fetchone()
            registry.change(record.id, lambda record: record.model_copy())
            assert file.execute("PRAGMA data_version").fetchone() == before
            registry.change(record.id, taking())
            assert file.execute("PRAGMA data_version").fetchone() != before

    def test_reads_do_not_wait_for_writers_and_writers_wait_only_so_long(self, registry, url):
        record = registry.create(new())
        with (
            closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file,
            closing(SqlRegistry(url, wait_s=0.1)) as impatient,
        ):
            file.execute("BEGIN IMMEDIATE")
            assert impatient.get(record.id) == record
            assert impatient.page().records == (record,)
            with pytest.raises(RegistryUnavailable, match="locked") as caught:
                impatient.pause(True)
            assert "program" in caught.value.remedy
            with ThreadPoolExecutor(1) as threads:
                patient = threads.submit(registry.pause, True)
                assert not patient.done()
                file.rollback()
                patient.result(timeout=20)
            impatient.pause(False)
            assert registry.paused() is False

    @pytest.mark.parametrize("path", ["file", "folder", "file/registry.sqlite3"])
    def test_a_place_where_no_registry_can_be_is_named(self, tmp_path, path):
        (tmp_path / "folder").mkdir()
        (tmp_path / "file").write_text("This is something else.\n" * 100)
        with pytest.raises(RegistryUnavailable, match=path) as caught:
            SqlRegistry(f"sqlite:///{tmp_path}/{path}")
        assert caught.value.remedy
        assert caught.value.__cause__
        assert (tmp_path / "file").read_text() == "This is something else.\n" * 100

    @pytest.mark.parametrize(
        "bad",
        [
            "",
            "registry.sqlite3",
            "sqlite://",
            "sqlite:///:memory:",
            "sqlite:///file:x?mode=memory&uri=true",
            "sqlite://host/registry.sqlite3",
            "sqlite:///registry.sqlite3?timeout=x",
            "mysql://user:secret@host/loradash",
            "nonsense://x",
        ],
    )
    def test_a_url_that_names_no_file_is_refused_without_showing_passwords(self, bad):
        with pytest.raises(InvalidSettings) as caught:
            SqlRegistry(bad)
        assert caught.value.remedy
        assert "secret" not in str(caught.value)

    def test_a_database_of_another_program_is_refused_and_left_alone(self, url):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            file.execute("CREATE TABLE processes (pid INTEGER)")
            with pytest.raises(RegistryUnavailable, match="processes"):
                SqlRegistry(url)
            names = file.execute("SELECT name FROM sqlite_master").fetchall()
        assert names == [("processes",)]

    def test_a_damaged_file_is_named(self, registry, tmp_path):
        for n in range(200):
            registry.create(new(n))
        registry.close()
        path = tmp_path / "registry.sqlite3"
        data = bytearray(path.read_bytes())
        data[4096 * 2 :] = b"\xff" * (len(data) - 4096 * 2)
        path.write_bytes(data)
        with pytest.raises(RegistryUnavailable) as caught:
            for page in all_pages(SqlRegistry(f"sqlite:///{path}"), 50):
                assert page
        assert "backup" in caught.value.remedy

    def test_a_document_of_the_future_is_named(self, registry, url):
        record = registry.create(new())
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            file.execute("UPDATE processes SET document = replace(document, 'pending', 'asleep')")
            file.commit()
        with pytest.raises(RegistryUnavailable, match="ProcessRecord") as caught:
            registry.get(record.id)
        assert "newer" in caught.value.remedy

    @pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
    def test_a_full_disk_is_named(self):
        with pytest.raises(RegistryUnavailable, match="full") as caught:
            SqlRegistry("sqlite:////dev/full")
        assert "free" in caught.value.remedy.lower()

    def test_a_database_error_shows_no_record(self, registry, url):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            file.execute("DROP TABLE processes")
        with pytest.raises(RegistryUnavailable, match="no such table") as caught:
            registry.create(new(name="a private wish"))
        assert "private" not in f"{caught.value} {caught.value.__cause__}"

    def test_a_write_that_fails_halfway_leaves_nothing(self, registry, url):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            file.execute("DROP TABLE process_counts")
        with pytest.raises(RegistryUnavailable, match="process_counts"):
            registry.create(new())
        assert registry.page().records == ()
