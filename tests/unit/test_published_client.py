"""Replies as the published dashboard client reads them: it shows and saves the right thing."""

import base64
from datetime import timedelta

import pytest

from loradash.domain import process as changes
from loradash.domain.addresses import Address
from loradash.storage import keys as store_keys

from .world import URL, World, adapter, logged, picture


@pytest.fixture(autouse=True)
def log():
    with logged() as stream:
        yield stream


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_an_image_is_downloaded_by_the_process_id_that_its_list_entry_has(world):
    trained, drawn, one = world.trained().id, world.drawn(3).id, world.drawn(1).id
    images = world.ask("list_files")["image_files"]
    assert {image["made_by"] for image in images} == {trained, drawn, one}
    assert len(images) == 5
    for image in images:
        reply = world.ask("download", process_id=image["process_id"])
        assert reply["type"] == "file_data"
        assert base64.b64decode(reply["data"]) == world.store.get(image["s3_key"])
        assert reply["content_type"] == "image/png"


def test_an_image_is_downloaded_by_its_address_too(tmp_path):
    world = World(tmp_path)
    world.services.results.stored._address = Address("b", "p/q")
    drawn = world.drawn(2).id
    address = f"s3://b/p/q/results/{drawn}/images/image_0001.png"
    reply = world.ask("download", process_id=address)
    assert base64.b64decode(reply["data"]) == picture(1)
    (item,) = world.ask("bulk_download", process_ids=[address])["download_items"]
    assert store_keys.published(item["key"]) == f"results/{drawn}/images/image_0001.png"
    assert "isn't in this server" in world.ask("download", process_id="s3://c/x")["error"]


def test_a_key_beside_another_files_key_is_refused(world):
    drawn = world.drawn(2).id
    first, second = (f"results/{drawn}/images/image_000{n}.png" for n in (0, 1))
    assert "data" in world.ask("download", process_id=first, s3_key=first)
    assert "not the same" in world.ask("download", process_id=first, s3_key=second)["error"]


def test_bulk_takes_ids_and_keys_each_file_once_and_previews(world):
    trained, drawn = world.trained().id, world.drawn(3).id
    keys = [one["process_id"] for one in world.ask("list_files")["image_files"]]
    reply = world.ask("bulk_download", process_ids=[trained, *keys, trained, *keys * 30])
    assert reply["total_files"] == 5
    assert {item["process_id"] for item in reply["download_items"]} == {trained, drawn}
    some = world.ask("bulk_download", process_ids=[*keys, trained], include_images=False)
    assert [item["type"] for item in some["download_items"]] == ["lora"]
    only = world.ask("bulk_download", process_ids=keys[:1], include_loras=False)
    with world.client() as client:
        (item,) = only["download_items"]
        response = client.get(item["url"])
        assert response.content == world.store.get(keys[0])
        assert response.headers["content-disposition"].startswith("attachment;")
        shown = client.get(f"{URL}/files/{keys[0]}")
        assert shown.headers["content-disposition"].startswith("inline;")
        archive = client.get(world.ask("bulk_download", process_ids=keys)["zip_url"])
        assert archive.status_code == 200


def test_adapters_of_one_name_can_be_told_apart(world):
    first, second, other = world.trained().id, world.trained().id, world.trained(name="dog").id
    names = {first: f"cat-{first[-6:]}", second: f"cat-{second[-6:]}", other: "dog"}
    models = world.ask("list_models")["models"]
    shown = {one: f"cat ({one[-6:]})" for one in (first, second)}
    assert {one["process_id"]: one["name"] for one in models} == {**shown, other: "dog"}
    files = {process_id: f"{name}.safetensors" for process_id, name in names.items()}
    assert {one["process_id"]: one["filename"] for one in models} == files
    listed = world.ask("list_files")["lora_files"]
    assert {one["process_id"]: one["filename"] for one in listed} == files
    bulk = world.ask("bulk_download", process_ids=[*names], include_images=False)
    assert {one["process_id"]: one["filename"] for one in bulk["download_items"]} == files
    with world.client() as client:
        for item in bulk["download_items"]:
            named = client.get(item["url"]).headers["content-disposition"]
            assert files[item["process_id"]] in named
    for process_id, name in files.items():
        assert world.ask("download", process_id=process_id)["filename"] == name
        key = f"results/{process_id}/lora/{'dog' if process_id == other else 'cat'}.safetensors"
        assert world.ask("download_file", file_path=key)["filename"] == name


def test_times_are_whole_seconds_and_a_cpu_is_no_gpu(world):
    running = world.running(step=3)
    world.registry.change(
        running.id,
        lambda one: one.model_copy(
            update={"progress": one.progress.model_copy(update={"eta_s": 12.34})}
        ),
    )
    (shown,) = world.ask("processes")["processes"]
    assert type(shown["elapsed_time"]) is int
    assert (shown["eta"], type(shown["eta"])) == (13, int)
    assert (shown["gpu_id"], shown["device"]) == (None, "cpu")
    taken = world.waiting()
    world.registry.change(
        taken.id,
        lambda one: changes.taken(
            one, owner="host/1", token="t", now=one.created_at, lease_s=60, device="0"
        ),
    )
    assert world.ask("process_status", process_id=taken.id)["gpu_id"] == "0"


def test_the_list_shows_what_is_active_first_and_what_is_completed(world):
    old = timedelta(days=2)
    running = world.running(age=old).id
    waiting = [world.waiting(age=old - timedelta(seconds=n)).id for n in range(3)]
    completed = world.trained(age=old).id
    ended = [world.failed(world.running(age=timedelta(seconds=300 - n)).id).id for n in range(220)]
    reply = world.ask("processes")
    shown = [one["id"] for one in reply["processes"]]
    assert len(shown) == len(set(shown)) == 200
    assert shown[:4] == [running, *reversed(waiting)]
    assert completed in shown
    assert shown[4:199] == ended[:24:-1]
    rest = world.ask("processes", cursor=reply["next_cursor"])["processes"]
    assert {*shown, *(one["id"] for one in rest)} >= {running, *waiting, completed, *ended}
    plain = world.ask("processes", limit=3)
    assert [one["id"] for one in plain["processes"]] == ended[:-4:-1]


def test_many_images_do_not_hide_the_adapters(world):
    trained = world.trained(age=timedelta(days=1)).id
    world.drawn(201)
    reply = world.ask("list_files")
    assert [one["process_id"] for one in reply["lora_files"]] == [trained]
    assert world.ask("list_files", limit=200)["lora_files"] == []


def test_what_is_too_large_for_a_client_that_follows_no_link_says_what_to_do(tmp_path):
    world = World(tmp_path, max_inline_bytes=50)
    results, trained = world.services.results, world.trained().id
    assert results.downloads.of_process(trained, None, URL).url
    with pytest.raises(Exception, match="too much for one reply") as caught:
        results.downloads.of_process(trained, None, URL, links=False)
    assert "bulk download" in caught.value.remedy
    assert results.downloads.bulk([trained], images=True, loras=True, base_url=URL).zip_url
    assert len(adapter()) > 50
