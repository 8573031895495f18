"""What every registry's change feed must do, whichever registry it is."""

import threading
from contextlib import closing

import pytest
from sqlalchemy import update

from loradash.domain import process as changes
from loradash.errors import RegistryUnavailable
from loradash.registry.announcing import announcing
from loradash.registry.change_feed import Announcing, ChangeFeed, Part
from loradash.registry.change_rows import note_change
from loradash.registry.memory import MemoryRegistry
from loradash.registry.objects import ObjectRegistry, feed
from loradash.registry.postgres_registry import PostgresRegistry
from loradash.registry.registry import Sweepable
from loradash.registry.sql import SqlRegistry
from loradash.registry.tables import process_changes
from loradash.services.changes.hub import ChangeHub
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore
from tests.clock import Clock

from .test_registries import (
    MOVES,
    SERVERS,
    artifact,
    at,
    emptied,
    in_threads,
    line,
    make_store,
    metric,
    new,
    running,
)


@pytest.fixture(scope="session")
def on_postgres(postgres):
    """Two programs' registries in one database, for all tests: tables take long to create."""
    url = postgres.new_schema()
    with closing(PostgresRegistry(url)) as one, closing(PostgresRegistry(url)) as other:
        yield one, other


@pytest.fixture(params=["memory", "sqlite", "postgres", "objects", "shared", *SERVERS])
def programs(request, tmp_path):
    """Two registries as two programs have them: they see the same processes."""
    if request.param == "memory":
        with closing(MemoryRegistry()) as one:
            yield one, one
    elif request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/registry.sqlite3"
        with closing(SqlRegistry(url)) as one, closing(SqlRegistry(url)) as other:
            yield one, other
    elif request.param == "postgres":
        one, other = request.getfixturevalue("on_postgres")
        yield emptied(one), other
    else:
        with closing(make_store(request.param, request, tmp_path)) as store:
            yield tuple(ObjectRegistry(store, settle_s=0.2) for _ in range(2))


def begun(registry):
    return registry.changes_since().cursor


def all_changes(registry, cursor, limit=500):
    """Read to the last page; return the parts by process, and the next cursor."""
    found = {}
    while True:
        page = registry.changes_since(cursor, limit=limit)
        assert not page.must_reload
        for process_id, parts in page.changes:
            found[process_id] = found.get(process_id, frozenset()) | parts
        cursor = page.cursor
        if page.is_last:
            return found, cursor


def test_it_is_an_ability_of_the_registry(programs):
    assert all(isinstance(one, ChangeFeed) for one in programs)
    assert all(0 < one.poll_interval_s <= 2 for one in programs)


def test_without_a_cursor_everything_has_to_be_read(programs):
    mine, other = programs
    running(other)
    page = mine.changes_since()
    assert page.must_reload
    assert page.is_last
    assert page.changes == ()
    assert all_changes(mine, page.cursor)[0] == {}


def test_each_write_of_another_program_is_reported_with_its_part(programs):
    mine, other = programs
    cursor = begun(mine)
    process_id = other.create(new()).id
    found, cursor = all_changes(mine, cursor)
    assert Part.RECORD in found[process_id]
    other.change(process_id, MOVES["running"])
    picture = artifact(process_id)
    writes = {
        Part.RECORD: lambda: other.change(process_id, lambda one: renamed(one, "dogs")),
        Part.METRICS: lambda: other.append_metrics(process_id, "token", [metric(1), metric(2)]),
        Part.LOG: lambda: other.append_log(process_id, "token", [line("x")]),
        Part.ARTIFACTS: lambda: other.put_artifacts("token", [picture]),
    }
    found, cursor = all_changes(mine, cursor)
    assert Part.RECORD in found[process_id]
    for part, write in writes.items():
        write()
        found, cursor = all_changes(mine, cursor)
        assert found.keys() == {process_id}
        assert part in found[process_id]
    other.forget_metrics(process_id, "token", 1)
    found, cursor = all_changes(mine, cursor)
    assert Part.METRICS in found[process_id]
    other.drop_artifacts(process_id, [picture.key])
    found, cursor = all_changes(mine, cursor)
    assert Part.ARTIFACTS in found[process_id]


def renamed(record, name):
    return record.model_copy(update={"name": name})


def test_what_is_taken_from_the_queue_is_reported(programs):
    mine, other = programs
    record = other.create(new())
    cursor = begun(mine)
    assert other.take_next("training", MOVES["running"]).id == record.id
    assert all_changes(mine, cursor)[0].keys() == {record.id}


def test_a_page_holds_no_more_than_was_asked_for_and_the_next_ones_the_rest(programs):
    mine, other = programs
    cursor = begun(mine)
    created = {other.create(new(n)).id for n in range(7)}
    first = mine.changes_since(cursor, limit=3)
    assert len(first.changes) == 3
    assert not first.is_last
    rest, cursor = all_changes(mine, first.cursor, limit=3)
    assert {one.process_id for one in first.changes} | rest.keys() == created
    assert len(rest) == 4


def test_two_readers_get_the_same_changes(programs):
    mine, other = programs
    first = second = begun(mine)
    process_id = other.create(new()).id
    assert all_changes(mine, first)[0].keys() == {process_id}
    assert all_changes(mine, second)[0].keys() == {process_id}


@pytest.mark.parametrize("cursor", ["x", "-", "9:1,", "9" * 18, "9" * 40, "\0", "{epoch}-999999"])
def test_a_cursor_that_cannot_be_continued_makes_its_reader_reload(programs, cursor):
    mine, _ = programs
    present = begun(mine)
    page = mine.changes_since(cursor.format(epoch=present.partition("-")[0]))
    assert page.must_reload
    assert all_changes(mine, page.cursor)[0] == {}


def test_a_reader_sees_the_final_state_of_each_of_eight_writers_processes(programs):
    mine, other = programs
    turns = 40 if isinstance(mine, MemoryRegistry) else 10
    cursor = begun(mine)
    seen, done = {}, threading.Event()

    def read():
        nonlocal cursor
        while True:
            is_final = done.is_set()
            found, cursor = all_changes(mine, cursor, limit=5)
            seen.update({one: mine.get(one) for one in found})
            if is_final:
                return

    def write(n):
        record = other.create(new(n))
        for turn in range(turns):
            record = other.change(record.id, lambda one, n=turn: renamed(one, f"turn {n}"))
        return record

    reader = threading.Thread(target=read)
    reader.start()
    written = in_threads(8, write)
    done.set()
    reader.join()
    assert seen == {record.id: record for record in written}


# PostgreSQL, whose transactions end in another order than they begin


def noting(registry, process_id):
    """Begin a transaction that changes a process; return what commits it."""
    connection = registry._database.engine.connect()
    note_change(connection, process_id, Part.LOG)  # begins one

    def commit():
        connection.commit()
        connection.close()

    return commit


def test_a_slow_transaction_hides_neither_its_own_change_nor_those_of_others(on_postgres):
    mine, other = on_postgres
    slow, quick = (other.create(new(n)).id for n in range(2))
    cursor = begun(mine)
    commit = noting(other, slow)
    for n in range(3):  # each is found once, though an earlier number is still missing
        other.change(quick, lambda one, n=n: renamed(one, f"turn {n}"))
        found, cursor = all_changes(mine, cursor)
        assert found == {quick: {Part.RECORD}}
    assert all_changes(mine, cursor)[0] == {}
    commit()
    found, cursor = all_changes(mine, cursor)
    assert found == {slow: {Part.LOG}}
    assert all_changes(mine, cursor)[0] == {}


def test_pages_go_on_while_a_slow_transaction_is_open(on_postgres):
    mine, other = on_postgres
    slow, *others = (other.create(new(n)).id for n in range(8))
    cursor = begun(mine)
    commit = noting(other, slow)
    for process_id in others:
        other.change(process_id, lambda one: renamed(one, "dogs"))
    found, cursor = all_changes(mine, cursor, limit=2)
    assert found.keys() == set(others)
    commit()
    assert all_changes(mine, cursor, limit=2)[0].keys() == {slow}


def test_several_processes_of_one_transaction_are_on_one_page(on_postgres):
    mine, other = on_postgres
    created = [other.create(new(n)).id for n in range(5)]
    cursor = begun(mine)
    with other._database.engine.begin() as connection:
        for process_id in created:
            note_change(connection, process_id, Part.RECORD)
    found, _ = all_changes(mine, cursor, limit=2)
    assert found.keys() == set(created)


def test_numbers_that_a_restored_dump_has_brought_are_no_changes(on_postgres):
    mine, other = on_postgres
    restored = other.create(new()).id
    with other._database.engine.begin() as connection:
        of_another_server = update(process_changes).values(changed=10**15)
        connection.execute(of_another_server.where(process_changes.c.process_id == restored))
    cursor = begun(mine)
    assert all_changes(mine, cursor)[0] == {}
    other.change(restored, lambda one: renamed(one, "dogs"))
    assert all_changes(mine, cursor)[0].keys() == {restored}


def test_a_hub_is_woken_by_a_cancel_on_another_server(on_postgres, monkeypatch):
    mine, other = on_postgres
    monkeypatch.setattr(PostgresRegistry, "poll_interval_s", 60)
    record = running(other)
    hub = ChangeHub(mine)
    with hub.listen() as listener:
        assert listener.next(10).must_reload
        while mine._listener._connection is None:  # the first wait has connected
            threading.Event().wait(0.01)
        other.change(record.id, lambda one: changes.cancel_requested(one, at(9)))
        assert listener.next(10).changes == ((record.id, {Part.RECORD}),)
    hub.stop()


# A bucket


class CountedStore(MemoryStore):
    """Counts the objects that lists yield, and fails at one of them once, if told so."""

    listed = 0
    fails_at = None

    def list(self, prefix=""):
        for info in super().list(prefix):
            if self.fails_at == self.listed:
                self.fails_at = None
                raise RegistryUnavailable("the list broke off", remedy="Try again.")
            self.listed += 1
            yield info


@pytest.fixture
def many(monkeypatch):
    """A bucket with more records than a poll lists, and its registry as another program has it."""
    monkeypatch.setattr(feed, "_LISTED", 10)
    monkeypatch.setattr(feed, "_NEWEST", 3)
    monkeypatch.setattr(feed, "_RECENT", 2)
    store = CountedStore()
    other = ObjectRegistry(store)
    created = [other.create(new(n)).id for n in range(35)]
    return store, other, created


def test_a_poll_of_a_large_bucket_lists_no_more_than_a_page_and_the_newest(many):
    store, _, _ = many
    mine = ObjectRegistry(store)
    cursor = begun(mine)
    for _ in range(8):
        store.listed = 0
        cursor = mine.changes_since(cursor).cursor
        assert store.listed <= 10 + 4


def test_a_new_process_in_a_large_bucket_is_found_by_the_next_poll(many):
    store, other, _ = many
    mine = ObjectRegistry(store)
    _, cursor = all_changes(mine, begun(mine))
    for n in range(5):
        created = other.create(new(100 + n)).id
        found, cursor = all_changes(mine, cursor)
        assert created in found


def test_what_has_changed_last_in_a_large_bucket_is_found_by_each_poll(many):
    store, other, created = many
    mine = ObjectRegistry(store)
    cursor = begun(mine)
    other.change(created[-1], lambda one: renamed(one, "turn 0"))
    found = {}
    while not found:
        found, cursor = all_changes(mine, cursor)
    for n in range(6):
        other.change(created[-1], lambda one, n=n: renamed(one, f"again {n}"))
        found, cursor = all_changes(mine, cursor)
        assert found.keys() == {created[-1]}


def test_any_change_in_a_large_bucket_is_found_within_as_many_polls_as_it_has_pages(many):
    store, other, created = many
    mine = ObjectRegistry(store)
    cursor = begun(mine)
    wanted = set(created[::9])
    for process_id in wanted:
        other.change(process_id, lambda one: renamed(one, "dogs"))
    seen = set()
    for _ in range(2 * 4):
        found, cursor = all_changes(mine, cursor)
        seen |= found.keys()
    assert seen == wanted


def test_a_list_that_breaks_off_loses_no_change(many):
    store, other, created = many
    mine = ObjectRegistry(store)
    cursor = begun(mine)
    for process_id in created[:10]:
        other.change(process_id, lambda one: renamed(one, "dogs"))
    store.fails_at = store.listed + 5
    with pytest.raises(RegistryUnavailable):
        mine.changes_since(cursor)
    assert set(created[:5]) <= all_changes(mine, cursor)[0].keys()


def test_a_change_is_reported_again_where_an_etag_may_hide_the_next_one(tmp_path):
    clock = Clock()
    registry = ObjectRegistry(LocalStore(tmp_path / "objects", shared=True), settle_s=0.2)
    registry._feed = feed.ObjectFeed(registry._backend, registry._timeline, clock)
    cursor = begun(registry)
    process_id = registry.create(new()).id
    found, cursor = all_changes(registry, cursor)
    assert found.keys() == {process_id}
    assert all_changes(registry, cursor)[0] == {}
    clock.sleep(feed._WEAK_ETAG_S)
    found, cursor = all_changes(registry, cursor)
    assert found.keys() == {process_id}
    clock.sleep(feed._WEAK_ETAG_S)
    assert all_changes(registry, cursor)[0] == {}


# Announcements


def test_each_write_is_announced_once_it_can_be_read():
    registry = announcing(MemoryRegistry())
    assert isinstance(registry, Announcing)
    assert not isinstance(registry, Sweepable)
    heard = []

    def hear(announcement):
        process_id, parts = announcement.change
        heard.append((*parts, announcement.record, registry.get(process_id).name))

    end = registry.subscribe(hear)
    record = registry.create(new())
    record = registry.take_next("training", MOVES["running"])
    renamed_record = registry.change(record.id, lambda one: renamed(one, "dogs"))
    registry.append_metrics(record.id, "token", [metric(1)])
    registry.append_log(record.id, "token", [line("x")])
    registry.put_artifacts("token", [artifact(record.id)])
    registry.drop_artifacts(record.id, ["results/a.png"])
    registry.forget_metrics(record.id, "token", 0)
    end()
    registry.append_log(record.id, "token", [line("y")])
    assert heard == [
        (Part.RECORD, None, "cats"),
        (Part.RECORD, record, "cats"),
        (Part.RECORD, renamed_record, "dogs"),
        (Part.METRICS, None, "dogs"),
        (Part.LOG, None, "dogs"),
        (Part.ARTIFACTS, None, "dogs"),
        (Part.ARTIFACTS, None, "dogs"),
        (Part.METRICS, None, "dogs"),
    ]


def test_a_refused_write_is_not_announced_and_one_without_an_answer_is(monkeypatch):
    inner = MemoryRegistry()
    registry = announcing(inner)
    heard = []
    registry.subscribe(heard.append)
    process_id = registry.create(new()).id

    def refuse(_):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        registry.change(process_id, refuse)
    assert len(heard) == 1

    def lose(*_):
        raise RegistryUnavailable("no answer", remedy="Wait.")

    monkeypatch.setattr(inner, "change", lose)
    monkeypatch.setattr(inner, "append_log", lose)
    with pytest.raises(RegistryUnavailable):
        registry.change(process_id, refuse)
    with pytest.raises(RegistryUnavailable):
        registry.append_log(process_id, "token", [line("x")])
    assert len(heard) == 3


def test_a_subscriber_that_fails_does_not_fail_the_write():
    registry = announcing(MemoryRegistry())
    heard = []

    def fail(_):
        raise ValueError("no")

    registry.subscribe(fail)
    registry.subscribe(heard.append)
    assert registry.create(new())
    assert len(heard) == 1


def test_a_registry_that_can_sweep_still_can():
    registry = announcing(ObjectRegistry(MemoryStore()))
    assert isinstance(registry, Sweepable)
    assert registry.sweep() == 0
