"""The hub: what listeners get, and when nobody asks the registry."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from loradash.errors import RegistryUnavailable
from loradash.registry.announcing import announcing
from loradash.registry.change_feed import ChangeLog, Part, ProcessChange
from loradash.registry.memory import MemoryRegistry
from loradash.services.changes.hub import ChangeHub
from loradash.services.changes.listener import Listener
from tests.contract.test_registries import new

WAIT_S = 10.0  # far longer than anything takes


class Feed(MemoryRegistry):
    """A registry that counts polls, and can be away."""

    poll_interval_s = 0.005
    is_away = False

    def __init__(self):
        super().__init__()
        self.polls = 0
        self.polled = threading.Condition()

    def changes_since(self, cursor="", *, limit=500):
        with self.polled:
            self.polls += 1
            self.polled.notify_all()
        if self.is_away:
            raise RegistryUnavailable("away", remedy="Wait.")
        return super().changes_since(cursor, limit=limit)

    def wait_for_polls(self, count):
        with self.polled:
            wanted = self.polls + count
            assert self.polled.wait_for(lambda: self.polls >= wanted, WAIT_S)


@pytest.fixture
def feed():
    return Feed()


@pytest.fixture
def hub(feed):
    hub = ChangeHub(feed)
    yield hub
    hub.stop()


def settled(hub, **options):
    """Return a listener that has got what it has to read at the beginning."""
    listener = hub.listen(**options)
    assert listener.next(WAIT_S).must_reload
    return listener


def change(n=0, *parts):
    return ProcessChange(f"train_{n:020}", frozenset(parts or (Part.RECORD,)))


def test_a_write_of_another_program_wakes_a_listener(hub, feed):
    listener = settled(hub)
    record = feed.create(new())
    update = listener.next(WAIT_S)
    assert update.changes == ((record.id, {Part.RECORD}),)
    assert not update.must_reload


def test_a_write_of_this_program_wakes_listeners_without_a_poll(feed):
    feed.poll_interval_s = 3600
    registry = announcing(feed)
    hub = ChangeHub(feed, registry)
    listeners = [settled(hub), hub.listen()]
    record = registry.create(new())
    for listener in listeners:
        assert listener.next(WAIT_S).changes == ((record.id, {Part.RECORD}),)
    hub.stop()
    assert feed.polls == 1


class NotifiedFeed(Feed):
    """A registry that is notified of what other programs change."""

    poll_interval_s = 3600

    def __init__(self):
        super().__init__()
        self.notified = threading.Event()

    def wait_for_change(self, timeout_s):
        return self.notified.wait(timeout_s)


def test_a_notification_makes_the_hub_poll_at_once():
    feed = NotifiedFeed()
    hub = ChangeHub(feed)
    listener = settled(hub)
    record = feed.create(new())
    feed.notified.set()
    assert listener.next(WAIT_S).changes[0].process_id == record.id
    hub.stop()


def test_nothing_is_polled_while_nobody_listens(hub, feed):
    assert feed.polls == 0
    with settled(hub):
        feed.wait_for_polls(3)
    assert hub.state.listeners == 0
    polls = feed.polls
    assert not threading.Event().wait(20 * feed.poll_interval_s)
    assert feed.polls <= polls + 1  # one may have been under way


def test_whoever_comes_back_with_its_cursor_gets_what_has_changed_meanwhile(hub, feed):
    with settled(hub) as listener:
        cursor = listener.cursor
    record = feed.create(new())  # while nobody listens
    update = hub.listen(cursor).next(WAIT_S)
    assert update.changes == ((record.id, {Part.RECORD}),)
    assert not update.must_reload


def test_whoever_comes_back_while_others_listen_gets_it_from_the_history(hub, feed):
    first = settled(hub)
    cursor = first.cursor
    record = feed.create(new())
    assert first.next(WAIT_S).changes
    feed.poll_interval_s = 3600
    assert hub.listen(cursor).next(WAIT_S).changes[0].process_id == record.id


@pytest.mark.parametrize("cursor", ["x", "0-0", "abc-1"])
def test_a_cursor_of_another_server_makes_a_listener_reload(hub, cursor):
    settled(hub)
    assert hub.listen(cursor).next(WAIT_S).must_reload


def test_a_listener_to_some_processes_gets_no_others(hub, feed):
    wanted = feed.create(new())
    listener = settled(hub, process_ids=[wanted.id])
    everything = hub.listen()
    other = feed.create(new())
    assert everything.next(WAIT_S).changes[0].process_id == other.id
    feed.change(wanted.id, lambda one: one.model_copy(update={"name": "dogs"}))
    assert listener.next(WAIT_S).changes == ((wanted.id, {Part.RECORD}),)


def test_an_outage_is_reported_and_afterwards_everything_is_read_again(hub, feed):
    listener = settled(hub)
    feed.is_away = True
    assert listener.next(WAIT_S).is_stale
    late = hub.listen()
    assert late.next(WAIT_S).is_stale
    assert hub.state.is_stale
    feed.wait_for_polls(3)
    assert listener.next(0) is None  # told once
    feed.is_away = False
    for one in (listener, late):
        update = one.next(WAIT_S)
        assert update.must_reload
        assert not update.is_stale
    record = feed.create(new())
    assert listener.next(WAIT_S).changes[0].process_id == record.id


def test_a_hub_outlives_an_error_of_the_feed_that_nobody_expected(hub, feed, monkeypatch):
    listener = settled(hub)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryRegistry, "changes_since", lambda *_, **__: 1 / 0)
        assert listener.next(WAIT_S).is_stale
    assert listener.next(WAIT_S).must_reload


def test_all_listeners_end_at_once_when_the_hub_stops(hub):
    listener, other = settled(hub), hub.listen()
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(list, one) for one in (listener, other)]
        hub.stop()
        assert [one.result(WAIT_S) for one in waiting] == [[], []]
    assert listener.has_ended
    assert hub.listen().has_ended


def test_a_listener_in_an_event_loop_holds_no_thread_and_ends_with_the_hub(hub, feed):
    async def main():
        listener = hub.listen()
        assert (await listener.next_async(WAIT_S)).must_reload
        assert await listener.next_async(0.01) is None
        updates = []

        async def read():
            async for update in listener:
                updates.append(update)  # noqa: PERF401 - the test looks at it meanwhile

        reading = asyncio.create_task(read())
        record = await asyncio.to_thread(feed.create, new())
        while not updates:
            await asyncio.sleep(0.001)
        await asyncio.to_thread(hub.stop)
        await asyncio.wait_for(reading, WAIT_S)
        assert updates[0].changes[0].process_id == record.id

    asyncio.run(main())


def test_a_slow_listener_gets_each_process_once_with_all_its_parts():
    listener = Listener("c0", on_close=lambda _: None)
    listener.deliver([change(1), change(2)], "c2")
    listener.deliver([change(1, Part.LOG)], "c3")
    update = listener.next(0)
    assert update.changes == (change(1, Part.RECORD, Part.LOG), change(2))
    assert update.cursor == listener.cursor == "c3"
    assert listener.next(0) is None


def test_a_listener_that_is_too_far_behind_is_told_to_reload():
    listener = Listener("c0", on_close=lambda _: None, most_pending=3)
    listener.deliver([change(n) for n in range(4)], "c4")
    listener.deliver([change(5)], "c5")
    update = listener.next(0)
    assert update.must_reload
    assert update.changes == ()
    assert update.cursor == "c5"
    listener.deliver([change(6)], "c6")
    assert listener.next(0).changes == (change(6),)


def test_a_change_log_drops_the_oldest_and_tells_whoever_needs_them_to_reload():
    log = ChangeLog(most=2)
    start = log.cursor
    first = log.add([change(1)])
    log.add([change(2), change(3)])
    assert log.since(start).must_reload
    assert log.since(first).changes == (change(2), change(3))
    log.add([change(2, Part.LOG)])
    assert log.since(first).changes == (change(3), change(2, Part.RECORD, Part.LOG))


def test_a_log_tells_only_the_parts_that_have_changed_since():
    log = ChangeLog()
    cursor = log.add([change(1)])
    log.add([change(1, Part.METRICS)])
    assert log.since(cursor).changes == (change(1, Part.METRICS),)


def test_expired_cursors_must_reload_and_the_new_one_need_not():
    log = ChangeLog()
    old = log.add([change(1)])
    new_cursor = log.expire_cursors()
    assert log.since(old).must_reload
    assert log.since(new_cursor).changes == ()
    assert not log.since(new_cursor).must_reload
