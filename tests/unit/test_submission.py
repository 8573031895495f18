"""What is submitted twice under one key is one process."""

import base64
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from loradash.domain.ids import (
    is_process_id,
    key_of_client,
    key_of_job,
    new_process_id,
    process_id_of,
)
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import ConflictingState
from loradash.registry.memory import MemoryRegistry
from loradash.services.processes.submission import stored_config, submit
from loradash.storage import keys
from loradash.storage.memory import MemoryStore
from tests.unit.world import TRAINING, World
from tests.unit.world import picture as a_picture


def new(process_id="", **fields):
    now = datetime.now(UTC)
    return ProcessRecord(
        id=process_id or new_process_id("training"), kind="training", name="cat", created_at=now,
        enqueued_at=now, updated_at=now, **fields,
    )  # fmt: skip


def test_a_key_has_one_id_for_each_kind():
    assert process_id_of("training", "a") == process_id_of("training", "a")
    ids = {
        process_id_of(kind, key) for kind in ("training", "generation") for key in ("a", "b", "ä")
    }
    assert len(ids) == 6
    assert all(is_process_id(one) for one in ids)


def test_no_key_of_a_client_is_another_clients_or_a_jobs():
    texts = ["a", "job/a", "job/job/a", "client/a", "client/job/a", "client/client/a", "job/", ""]
    clients = [key_of_client(text) for text in texts]
    jobs = [key_of_job(text) for text in texts]
    ids = {process_id_of("training", key) for key in (*clients, *jobs)}
    assert len(ids) == 2 * len(texts)


def test_a_common_key_has_the_id_that_it_has_always_had():
    assert process_id_of("training", key_of_client("monday")) == "train_n26wa18r2rex65pe36rq"
    assert process_id_of("generation", key_of_job("a")) == "gen_qw006641bdxcy0h7sz36"


def test_what_is_sent_again_is_what_is_there_and_its_config_stays():
    registry, store = MemoryRegistry(), MemoryStore()
    first = submit(registry, store, new("train_01k9x3q4zt8m2v7c0hde"), "first", may_exist=True)
    again = submit(registry, store, new(first.id), "second", may_exist=True)
    assert again == first
    assert stored_config(store, first) == "first"
    assert [info.key for info in store.list()] == [first.config_key]


def test_an_id_that_is_not_made_of_a_key_is_never_used_twice():
    registry, store = MemoryRegistry(), MemoryStore()
    record = submit(registry, store, new(), "first", may_exist=False)
    with pytest.raises(ConflictingState):
        submit(registry, store, new(record.id), "second", may_exist=False)


def test_many_at_once_make_one():
    registry, store = MemoryRegistry(), MemoryStore()
    process_id = process_id_of("training", "key")
    with ThreadPoolExecutor(8) as threads:
        made = threads.map(
            lambda _: submit(registry, store, new(process_id), "config", may_exist=True), range(32)
        )
        assert {record.id for record in made} == {process_id}
    assert len(registry.page().records) == 1


class OvertakenStore(MemoryStore):
    """A store in which somebody else is faster: he is done before the first put begins."""

    other = None

    def put(self, key, data):
        if other := self.other:
            self.other = None
            other()
        return super().put(key, data)


def test_the_config_of_who_comes_too_late_replaces_nothing_and_is_deleted():
    registry, store = MemoryRegistry(), OvertakenStore()
    process_id = process_id_of("training", "key")
    store.other = lambda: submit(
        registry, store, new(process_id, summary={"seed": 1}), "seed: 1", may_exist=True
    )
    record = submit(
        registry, store, new(process_id, summary={"seed": 2}), "seed: 2", may_exist=True
    )
    assert record.summary["seed"] == 1
    assert stored_config(store, record) == "seed: 1"
    assert [info.key for info in store.list()] == [record.config_key]


def test_a_config_where_an_earlier_release_put_it_is_found():
    registry, store = MemoryRegistry(), MemoryStore()
    record = registry.create(new())
    store.put(keys.result_config(record.id), "name: Größe".encode())
    assert stored_config(store, record) == "name: Größe"


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    picture = base64.b64encode(a_picture()).decode()
    files = [{"filename": "a.png", "content": picture}]
    assert "error" not in world.ask("upload_training_data", dataset_folder="cats", files=files)
    return world


def test_a_request_with_a_key_is_one_process_however_often_it_is_sent(world):
    ids = {
        world.ask("train", config=TRAINING, idempotency_key="monday")["process_id"]
        for _ in range(3)
    }
    other = world.ask("train", config=TRAINING, idempotency_key="tuesday")["process_id"]
    plain = {world.ask("train", config=TRAINING)["process_id"] for _ in range(2)}
    assert len(ids) == 1
    assert len(ids | {other} | plain) == 4


def test_an_ended_process_is_what_its_key_stands_for(world):
    process_id = world.ask("train", config=TRAINING, idempotency_key="monday")["process_id"]
    world.ask("cancel", process_id=process_id)
    again = world.ask("train", config=TRAINING, idempotency_key="monday")
    assert again["process_id"] == process_id
    assert world.registry.get(process_id).status is Status.CANCELLED


def test_a_clients_key_never_meets_a_job_of_the_queue(world):
    job = {"type": "train", "config": TRAINING}
    made = world.dispatcher.answer(job, request_id="1", idempotency_key=key_of_job("1"))
    taken = world.ask("train", config=TRAINING, idempotency_key="job/1")
    assert made["process_id"] != taken["process_id"]
