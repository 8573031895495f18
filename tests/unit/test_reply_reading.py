"""What a server says is read back into the views that its services have returned."""

import pytest

from loradash.cli.elsewhere import base_model_of
from loradash.errors import NotFound, ServerUnreachable
from loradash.executors.state import EndpointState, ExecutorState, LaneState, SlotState
from loradash.protocol import process_json, reply_reading, result_json
from loradash.protocol.dataset_json import datasets_reply
from loradash.storage.memory import MemoryStore

from .world import World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def without(reply, *fields):
    return {name: value for name, value in reply.items() if name not in fields}


def test_a_list_of_adapters_says_the_same_when_it_was_read_back(world):
    for name in ("cat", "cat", "dog"):
        world.trained(name=name)
    reply = world.ask("list_models", limit=2)
    assert len(reply["models"]) == 2
    page = reply_reading.models_of(reply)
    assert result_json.models_reply(page) == without(reply, "request_id")


def test_missing_adapters_are_read_back_too(world):
    process_id = world.trained().id
    (entry,) = world.registry.artifacts(process_id, ["lora"])
    assert isinstance(world.store, MemoryStore)
    world.store.delete(entry.key)
    page = reply_reading.models_of(world.ask("list_models"))
    assert (page.models, page.missing) == ((), (entry.key,))


def test_an_adapter_its_name_and_its_deletion_are_read_back(world):
    process_id = world.trained().id
    with world.client() as client:
        shown = client.get(f"/models/{process_id}").json()
        assert result_json.adapter_json(reply_reading.adapter_of(shown)) == shown
        renamed = client.patch(f"/models/{process_id}", json={"name": "dog"}).json()
        assert reply_reading.adapter_name_of(renamed).model_dump() == renamed
        deleted = client.delete(f"/models/{process_id}").json()
        assert result_json.deletion_reply(reply_reading.deletion_of(deleted)) == deleted


def test_a_list_of_datasets_is_read_back(world):
    world.services.dataset_editor.create("cats", trigger_word="sks")
    world.store.put("dataset/dogs/_training_info.json", b"{")
    reply = world.ask("list_dataset_folders")
    datasets = reply_reading.datasets_of(reply)
    assert [bool(one.problem) for one in datasets] == [False, True]
    assert datasets_reply(datasets, reply["prefix"]) == without(reply, "request_id")


@pytest.mark.parametrize(
    "executor",
    [
        ExecutorState(error="no answer"),
        ExecutorState(
            slots=(
                SlotState(
                    name="cuda:0",
                    lanes=(
                        LaneState(name="training", waiting_reason="Waiting for memory"),
                        LaneState(name="generation", process_id="gen_1"),
                    ),
                ),
            )
        ),
        ExecutorState(endpoint=EndpointState(id="ep1")),
        ExecutorState(
            endpoint=EndpointState(
                id="ep1", jobs={"inQueue": 1}, workers={"idle": 0}, waiting_reason="no worker"
            )
        ),
    ],
)
def test_the_queue_is_read_back(world, monkeypatch, executor):
    world.waiting(priority=3)
    monkeypatch.setattr(world.executor, "state", lambda: executor, raising=False)
    with world.client() as client:
        reply = client.get("/queue").json()
    assert reply_reading.queue_of(reply) == world.services.processes.queue()
    assert process_json.queue_json(reply_reading.queue_of(reply)) == reply


@pytest.mark.parametrize(
    "reply", [{}, {"models": 3}, {"models": [{}], "next_cursor": None}, {"models": [3]}]
)
def test_a_reply_of_another_form_says_that_the_releases_differ(reply):
    with pytest.raises(ServerUnreachable, match="another form"):
        reply_reading.models_of(reply)


def test_an_adapter_whose_base_model_is_unknown_needs_one_to_be_given(world):
    process_id = world.trained(base_model="").id
    world.registry.change(process_id, lambda one: one.model_copy(update={"summary": {}}))

    class Target:
        adapter = staticmethod(world.services.adapters.show)

    with pytest.raises(NotFound, match="no base model is known"):
        base_model_of(Target(), "cat")
