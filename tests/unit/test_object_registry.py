"""What only a registry in the object store can get wrong: several writers who share no lock."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from loradash.domain import process as changes
from loradash.domain.process import Status
from loradash.errors import (
    ConflictingState,
    LeaseLost,
    LoradashError,
    NotFound,
    PreconditionFailed,
    RegistryUnavailable,
    StoreUnavailable,
)
from loradash.registry.cursors import microseconds
from loradash.registry.objects import ObjectRegistry
from loradash.registry.objects.backend import Backend
from loradash.registry.objects.document import Document
from loradash.registry.objects.documents import DocumentCache
from loradash.storage import keys
from loradash.storage.memory import MemoryStore
from loradash.storage.store import Capabilities
from tests.clock import Clock
from tests.contract.test_registries import (
    all_pages,
    artifact,
    at,
    ids,
    in_threads,
    line,
    metric,
    new,
    renewing,
    running,
    taking,
    to_cancelled,
)

SETTLE_S = 0.1


class Watched(MemoryStore):
    """Counts requests; the next put of a key that holds some text can be told to act strangely."""

    def __init__(self, *, is_conditional=True):
        super().__init__(Capabilities(is_conditional, is_conditional))
        self.asked = Counter()
        self.text = None
        self.around = None

    def at_next_put(self, text, around):
        """Let ``around(put)`` do the next put of a key with this text in it."""
        self.text, self.around = text, around

    def put(self, key, data):
        self.asked["put"] += 1
        return self._strangely(key, lambda: super(Watched, self).put(key, data))

    def put_if(self, key, data, etag):
        self.asked["put_if"] += 1
        return self._strangely(key, lambda: super(Watched, self).put_if(key, data, etag))

    def get(self, key):
        self.asked["get"] += 1
        return super().get(key)

    def head(self, key):
        self.asked["head"] += 1
        return super().head(key)

    def list(self, prefix=""):
        self.asked["list"] += 1
        return super().list(prefix)

    def delete(self, key):
        self.asked["delete"] += 1
        super().delete(key)

    def keys(self, prefix=""):
        return [info.key for info in MemoryStore.list(self, prefix)]

    def _strangely(self, key, put):
        if self.text is None or self.text not in key:
            return put()
        around, self.text = self.around, None
        return around(put)


@pytest.fixture(params=["conditional", "unconditional"])
def store(request):
    return Watched(is_conditional=request.param == "conditional")


@pytest.fixture
def conditional():
    return Watched()


@pytest.fixture
def unconditional():
    return Watched(is_conditional=False)


def opened(store):
    return ObjectRegistry(store, settle_s=SETTLE_S)


def requests(store, work):
    store.asked.clear()
    work()
    return dict(store.asked)


def lapsing(now_s):
    return lambda record: changes.expired(record, now=at(now_s), max_attempts=9, owner_is_gone=True)


def cancelling(now_s):
    return lambda record: changes.cancel_requested(record, at(now_s))


# Several writers


def test_of_many_workers_on_two_machines_one_takes_a_process(store):
    registries = [opened(store), opened(store)]
    process_id = opened(store).create(new()).id

    def take(n):
        try:
            return registries[n % 2].change(process_id, taking(str(n))).lease.token
        except ConflictingState:
            return None

    winners = [token for token in in_threads(8, take) if token is not None]
    assert len(winners) == 1
    for registry in (*registries, opened(store)):
        assert registry.get(process_id).lease.token == winners[0]


def test_workers_on_two_machines_take_different_processes(store):
    registries = [opened(store), opened(store)]
    created = {registries[0].create(new(n)).id for n in range(4)}
    taken = in_threads(4, lambda n: registries[n % 2].take_next("training", taking(str(n))))
    assert set(ids(taken)) == created


def test_no_change_of_two_machines_is_lost(store):
    registries = [opened(store), opened(store)]
    process_id = running(registries[0]).id
    count = 20 if store.capabilities.conditional_replace else 3

    def add(record):
        return record.model_copy(update={"worked_s": record.worked_s + 1})

    def work(n):
        for _ in range(count):
            registries[n].change(process_id, add)

    in_threads(2, work)
    assert registries[0].get(process_id).worked_s == 2 * count


def test_one_machine_sees_at_once_what_another_has_changed(store):
    one, other = opened(store), opened(store)
    record = running(one)
    assert other.get(record.id) == record
    for n in (1, 2):
        for writer, reader in ((one, other), (other, one)):
            record = writer.change(record.id, renewing(n))
            assert reader.get(record.id) == record
            assert reader.page().records == (record,)
            assert reader.change(record.id, lambda record: record) == record
            writer.append_log(record.id, "token", [line("x")])
            assert len(reader.log(record.id)) == len(writer.log(record.id))


OLD_WRITES = {
    "renew": lambda registry, one: registry.change(one, renewing(33, token="old")),
    "forget": lambda registry, one: registry.forget_metrics(one, "old", 0),
    "metrics": lambda registry, one: registry.append_metrics(one, "old", [metric(2)]),
    "log": lambda registry, one: registry.append_log(one, "old", [line("no")]),
    "artifact": lambda registry, one: registry.put_artifacts("old", [artifact(one, "b")]),
}


@pytest.mark.parametrize(
    ("write", "text"),
    [
        *((write, "processes/") for write in OLD_WRITES),
        *((write, "process-data/") for write in ("metrics", "log", "artifact")),
    ],
)
def test_a_write_that_was_delayed_until_another_took_over_shows_nowhere(store, write, text):
    old, other = opened(store), opened(store)
    process_id = running(old, "old").id
    old.append_metrics(process_id, "old", [metric(1)])
    old.append_log(process_id, "old", [line("old")])
    old.put_artifacts("old", [artifact(process_id, "a")])
    seen = []

    def take_over(put):
        other.change(process_id, lapsing(31))
        seen.append(other.take_next("training", taking("new", 32)))
        return put()

    store.at_next_put(text, take_over)
    with pytest.raises(LeaseLost):
        OLD_WRITES[write](old, process_id)
    for registry in (old, other, opened(store)):
        assert registry.get(process_id) == seen[0]
        assert registry.metrics(process_id) == (metric(1),)
        assert [one.text for one in registry.log(process_id)] == ["old"]
        assert [one.key for one in registry.artifacts(process_id)] == ["a"]
        assert ids(registry.page().records) == [process_id]
        assert sum(registry.counts().values()) == 1
    assert len(store.keys("process-data")) == 3
    other.append_log(process_id, "new", [line("new")])
    assert [one.text for one in old.log(process_id)] == ["old", "new"]


# Lost answers and crashes


def test_a_swap_whose_answer_was_lost_is_found_to_be_done(conditional):
    registry = opened(conditional)
    process_id = running(registry).id

    def apply_and_refuse(put):
        put()
        raise PreconditionFailed("the second try finds the first")

    for n in range(3):
        conditional.at_next_put("processes/", apply_and_refuse)
        registry.append_log(process_id, "token", [line(str(n))])
    assert [one.text for one in registry.log(process_id)] == ["0", "1", "2"]
    conditional.at_next_put("processes/", apply_and_refuse)
    record = registry.create(new())
    assert registry.get(record.id) == record


def test_a_swap_whose_answer_was_lost_is_found_behind_the_next_one_too(conditional):
    registry, other = opened(conditional), opened(conditional)
    process_id = running(registry).id

    def apply_and_refuse(put):
        put()
        other.append_log(process_id, "token", [line("other")])
        raise PreconditionFailed("the second try finds another's")

    conditional.at_next_put("processes/", apply_and_refuse)
    registry.append_log(process_id, "token", [line("mine")])
    assert [one.text for one in registry.log(process_id)] == ["mine", "other"]


def test_after_a_write_that_may_or_may_not_be_done_the_truth_is_read(store):
    registry = opened(store)
    process_id = running(registry).id

    def apply_and_fail(put):
        put()
        raise StoreUnavailable("no answer", remedy="Wait.")

    store.at_next_put("processes/", apply_and_fail)
    with pytest.raises(RegistryUnavailable, match="no answer") as caught:
        registry.append_log(process_id, "token", [line("a")])
    assert caught.value.remedy == "Wait."
    assert isinstance(caught.value.__cause__, StoreUnavailable)
    registry.append_log(process_id, "token", [line("b")])
    assert [one.text for one in registry.log(process_id)] == ["a", "b"]


def test_a_crash_between_place_and_record_leaves_no_trace_in_lists(store):
    registry = opened(store)
    first = registry.create(new(0))
    record = new(1)
    store.put(keys.timeline_entry(microseconds(record.created_at), record.id), b"")
    last = registry.create(new(2))
    for limit in (1, 2, 3):
        pages = all_pages(registry, limit)
        assert [one for page in pages for one in ids(page.records)] == [last.id, first.id]
    with pytest.raises(NotFound):
        registry.get(record.id)
    assert sum(registry.counts().values()) == 2
    assert registry.create(record) == registry.get(record.id)
    assert ids(registry.page().records) == [last.id, record.id, first.id]


def test_an_id_that_is_created_again_at_another_time_is_listed_once(store):
    registry = opened(store)
    record = registry.create(new(5))
    for created_s in (1, 5, 9):
        with pytest.raises(ConflictingState):
            registry.create(record.model_copy(update={"created_at": at(created_s)}))
    assert registry.page().records == (record,)
    assert len(store.keys("timeline")) == 1


def test_who_dies_after_its_claim_is_passed_over(unconditional):
    registry, other = opened(unconditional), opened(unconditional)
    process_id = registry.create(new()).id
    unconditional.put(keys.process_claim(process_id, 1, "0"), b"")
    assert other.change(process_id, taking()).status is Status.RUNNING
    # Its document, should it ever come, counts for nothing.
    late = unconditional.get(keys.process_record(process_id))
    unconditional.put(keys.process_epoch_record(process_id, 1, "0"), late)
    assert registry.get(process_id).status is Status.RUNNING
    assert registry.counts()["training", Status.RUNNING] == 1


def test_nothing_is_left_of_epochs_that_are_over(unconditional):
    registries = [opened(unconditional), opened(unconditional)]
    process_id = registries[0].create(new()).id
    for n in range(4):
        registries[n % 2].change(process_id, taking(now_s=n * 100))
        registries[n % 2].change(process_id, lapsing(n * 100 + 31))
    assert len(unconditional.keys("processes")) == 3


def test_a_refused_change_leaves_no_claim(unconditional):
    registry, other = opened(unconditional), opened(unconditional)
    process_id = running(registry).id
    with pytest.raises(ConflictingState):
        other.change(process_id, taking("new"))
    with pytest.raises(LeaseLost):
        other.append_log(process_id, "new", [line("no")])
    assert unconditional.keys("processes") == [keys.process_record(process_id)]


# Cancelling from elsewhere


def test_the_owner_sees_that_another_asked_to_cancel(store):
    owner, other = opened(store), opened(store)
    process_id = running(owner).id
    asked = other.change(process_id, cancelling(9))
    assert asked.cancel_requested_at == at(9)
    for registry in (owner, other):
        assert registry.get(process_id) == asked
        assert registry.page().records == registry.page(statuses=[Status.RUNNING]).records
    assert owner.change(process_id, renewing(10)).cancel_requested_at == at(9)
    record = owner.change(process_id, to_cancelled)
    assert other.get(process_id) == record
    assert other.change(process_id, lambda one: changes.requeued(one, at(20))) == owner.get(
        process_id
    )
    record = owner.take_next("training", taking("again", 21))
    assert record.cancel_requested_at is None
    assert other.get(process_id) == record


def test_a_cancel_that_meets_a_release_ends_the_process(store):
    owner, other = opened(store), opened(store)
    process_id = running(owner).id

    def cancel_first(put):
        other.change(process_id, cancelling(9))
        return put()

    store.at_next_put("processes/", cancel_first)
    owner.change(process_id, lambda record: changes.released(record, "token", at(10)))
    for registry in (owner, other):
        assert registry.get(process_id).status is Status.CANCELLED


def test_asking_to_cancel_from_elsewhere_takes_no_time(unconditional):
    owner, other = opened(unconditional), ObjectRegistry(unconditional, settle_s=3600)
    process_id = running(owner).id
    assert other.change(process_id, cancelling(9)).cancel_requested_at == at(9)


# Parts


def test_a_long_log_is_kept_in_pieces_and_only_the_last_is_replaced(store):
    registry = opened(store)
    process_id = running(registry).id
    for start in range(0, 1300, 100):
        registry.append_log(process_id, "token", [line(str(start + n)) for n in range(100)])
        registry.append_metrics(process_id, "token", [metric(start + n + 1) for n in range(100)])
    assert len(store.keys("process-data")) == 6
    for reader in (registry, opened(store)):
        assert [int(one.text) for one in reader.log(process_id, limit=9999)] == list(range(1300))
        assert [one.number for one in reader.log(process_id, after=498, limit=4)] == [
            499, 500, 501, 502,
        ]  # fmt: skip
        assert [one.number for one in reader.log(process_id, newest=True, limit=400)] == list(
            range(901, 1301)
        )
        assert len(reader.metrics(process_id, after_step=700)) == 600
    registry.append_metrics(process_id, "token", [metric(450, 2), metric(1301, 2)])
    rows = registry.metrics(process_id, limit=9999)
    assert [row.step for row in rows] == [*range(1, 1302)]
    assert [row.step for row in rows if row.attempt == 2] == [450, 1301]
    registry.forget_metrics(process_id, "token", 520)
    assert [row.step for row in registry.metrics(process_id)] == list(range(1, 521))
    assert len(store.keys("process-data")) == 5


def test_who_reads_parts_while_they_are_replaced_reads_them_whole(store):
    registry, reader = opened(store), opened(store)
    process_id = running(registry).id
    stop = threading.Event()

    def write():
        while not stop.is_set():
            registry.append_log(process_id, "token", [line("x")])
            registry.put_artifacts("token", [artifact(process_id)])

    with ThreadPoolExecutor(1) as threads:
        writer = threads.submit(write)
        try:
            for _ in range(100):
                lines = reader.log(process_id, limit=100_000)
                assert [one.number for one in lines] == list(range(1, len(lines) + 1))
                assert len(reader.artifacts(process_id)) <= 1
                assert len(reader.newest_artifacts([])[0]) <= 1
        finally:
            stop.set()
        writer.result()


# What it costs


def test_a_page_reads_its_own_records(store):
    registry = opened(store)
    for n in range(200):
        registry.create(new(n))
    cursor = registry.page(limit=10).next_cursor
    reader = opened(store)
    for where in ("", cursor):
        asked = requests(store, lambda where=where: reader.page(limit=10, cursor=where))
        assert asked["get"] == 11


def test_only_what_has_changed_is_read_again(conditional):
    writer, registry = opened(conditional), opened(conditional)
    records = [writer.create(new(n)) for n in range(50)]
    assert requests(conditional, registry.counts) == {"list": 1, "get": 50}
    assert requests(conditional, registry.counts) == {"list": 1}
    assert requests(conditional, registry.pending) == {"list": 1}
    writer.change(records[7].id, taking())
    assert requests(conditional, registry.running) == {"list": 1, "get": 1}


class Weak(Watched):
    """Etags that a quick change doesn't change, by a clock that is a minute behind ours."""

    def __init__(self):
        super().__init__(is_conditional=False)

    def list(self, prefix=""):
        for info in super().list(prefix):
            yield info._replace(etag="same", modified_s=info.modified_s - 60)


def test_what_was_replaced_under_the_same_etag_is_read_whatever_the_stores_clock_says():
    store = Weak()
    writer, registry = opened(store), opened(store)
    record = writer.create(new())
    assert registry.counts()[record.kind, Status.PENDING] == 1
    writer.change(record.id, to_cancelled)
    assert registry.counts()[record.kind, Status.PENDING] == 0


def test_a_document_is_kept_once_its_etag_has_settled_by_our_own_clock(unconditional):
    clock = Clock()
    unconditional.put("a", Document.first(new()).data)
    info = unconditional.head("a")
    cache = DocumentCache(Backend(unconditional), clock)
    reads = []
    for _ in range(6):
        reads.append(requests(unconditional, lambda: cache.read(info, settled_s=3)).get("get", 0))
        clock.now_s += 1
    assert reads == [1, 1, 1, 1, 0, 0]
    info = info._replace(etag="another")
    assert requests(unconditional, lambda: cache.read(info)) == {"get": 1}
    assert requests(unconditional, lambda: cache.read(info)) == {}


def test_what_the_owner_writes_takes_few_requests(store):
    registry = opened(store)
    process_id = running(registry).id
    registry.append_log(process_id, "token", [line("x")])
    renewal = requests(store, lambda: registry.change(process_id, renewing(1)))
    append = requests(store, lambda: registry.append_log(process_id, "token", [line("x")]))
    if store.capabilities.conditional_replace:
        assert renewal == {"put_if": 1}
        assert append == {"put": 1, "put_if": 1, "delete": 1}
    else:
        assert renewal == {"list": 2, "put": 1}
        assert append == {"list": 2, "put": 2, "delete": 1}


def test_the_store_is_asked_what_it_can_do_at_the_first_call():
    class Away(MemoryStore):
        @property
        def capabilities(self):
            raise StoreUnavailable("away")

        @capabilities.setter
        def capabilities(self, _):
            pass

    registry = ObjectRegistry(Away())
    for _ in range(2):
        with pytest.raises(RegistryUnavailable, match="away"):
            registry.get(new().id)


# What can't be understood


def test_a_document_of_the_future_is_named(store):
    registry = opened(store)
    record = registry.create(new())
    key = keys.process_record(record.id)
    store.put(key, store.get(key).replace(b'"pending"', b'"asleep"'))
    for ask in (lambda: registry.get(record.id), opened(store).counts, opened(store).page):
        with pytest.raises(RegistryUnavailable, match="can't be read") as caught:
            ask()
        assert "newer" in caught.value.remedy


def test_a_document_that_is_cut_while_it_is_replaced_is_read_again(store):
    """As the JuiceFS gateway does: the new content, as long as the old one was."""
    registry = opened(store)
    record = registry.create(new())
    whole = store.get(keys.process_record(record.id))
    answers = [whole[:-1], whole[:-5]]
    store.get = lambda key: answers.pop() if answers else MemoryStore.get(store, key)
    assert registry.get(record.id) == record
    assert not answers


def test_a_part_that_somebody_deleted_is_named(store):
    registry = opened(store)
    process_id = running(registry).id
    registry.append_log(process_id, "token", [line("x")])
    for key in store.keys("process-data"):
        store.delete(key)
    with pytest.raises(LoradashError, match="isn't where") as caught:
        opened(store).log(process_id)
    assert "process-data" in caught.value.remedy


@pytest.mark.parametrize(
    "key",
    ["processes/x", "processes/x.json", "processes/train_01k9x3q4zt8m2v7c0hde", "processes/x/y/z"],
)
def test_other_objects_are_no_processes(store, key):
    registry = opened(store)
    record = registry.create(new())
    store.put(key, b"something")
    store.put("timeline/something", b"")
    assert sum(registry.counts().values()) == 1
    assert registry.page().records == registry.pending() == (record,)
