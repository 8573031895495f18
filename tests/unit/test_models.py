"""Trained LoRAs as things: their shown name, and their end."""

import pytest

from .world import World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def client(world):
    return world.client()


def shown(world):
    return world.ask("list_models")["models"]


def test_a_rename_changes_the_shown_name_and_no_file(world, client):
    process_id = world.trained("cat").id
    before = shown(world)[0]
    reply = client.patch(f"/models/{process_id}", json={"name": "my cat 2"})
    assert reply.json() == {"process_id": process_id, "name": "my cat 2"}
    after = shown(world)[0]
    assert after["name"] == "my cat 2"
    assert {key for key in after if after[key] != before[key]} == {"name"}
    assert world.ask("process_status", process_id=process_id)["name"] == "my cat 2"


@pytest.mark.parametrize("name", ["", "../x", "a/b", " a", "a\nb", "x" * 101])
def test_a_name_that_is_none_is_refused(world, client, name):
    process_id = world.trained("cat").id
    reply = client.patch(f"/models/{process_id}", json={"name": name})
    assert reply.status_code in (400, 422)
    assert shown(world)[0]["name"] == "cat"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"name": 5}, "name: must be text (got 5)"),
        ({}, "name: missing; send it"),
        ([], "must be a mapping of keys to values"),
        (None, "missing; send it"),
    ],
)
def test_a_body_that_is_none_is_told_by_field_in_our_words(world, client, body, said):
    reply = client.patch(f"/models/{world.trained('cat').id}", json=body)
    assert reply.status_code == 400
    assert said in reply.json()["error"]
    assert "Input should" not in reply.json()["error"]
    assert "send the request again" in reply.json()["error"]


def test_a_deleted_model_is_gone_with_its_file_and_its_record_stays(world, client):
    process_id, other = world.trained("cat").id, world.trained("dog").id
    assert client.delete(f"/models/{process_id}").json()["deleted"] == 1
    assert [one["process_id"] for one in shown(world)] == [other]
    assert world.ask("process_status", process_id=process_id)["status"] == "completed"
    again = client.delete(f"/models/{process_id}")
    assert again.status_code == 404
    assert "no trained LoRA" in again.json()["error"]


def test_an_unknown_process_has_no_model(client):
    assert client.delete("/models/train_01k9x3q4zt8m2v7c0hde").status_code == 404
    renamed = client.patch("/models/train_01k9x3q4zt8m2v7c0hde", json={"name": "a"})
    assert renamed.status_code == 404


def test_health_can_be_asked_by_head(client):
    head, get = client.head("/health"), client.get("/health")
    assert head.status_code == get.status_code
    assert head.content == b""
