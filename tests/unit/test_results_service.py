"""Results are what the registry lists: listing, fetching and deleting them."""

import base64
import io
import json
import zipfile

import pytest

from loradash.domain.process import Status
from loradash.errors import (
    ConflictingState,
    DiskFull,
    InvalidKey,
    InvalidRequest,
    LoradashError,
    NotFound,
)
from loradash.registry.sql import SqlRegistry
from loradash.services.results import link_below
from loradash.storage import keys
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore

from .world import MISSING, URL, World, adapter, picture

LINK = link_below(URL)
NO_LINK = link_below("")


@pytest.fixture(params=["memory", "disk"])
def world(request, tmp_path):
    if request.param == "memory":
        yield World(tmp_path)
        return
    registry = SqlRegistry(f"sqlite:///{tmp_path}/registry.sqlite3")
    yield World(tmp_path, registry=registry, store=LocalStore(tmp_path / "objects"))
    registry.close()


@pytest.fixture
def results(world):
    return world.services.results


def names(found):
    return [one["filename"] for one in found]


def stored(world, process_id):
    return {info.key.removeprefix(f"results/{process_id}/")
            for info in world.store.list(keys.results(process_id))}  # fmt: skip


def manifest(world, process_id):
    document = json.loads(world.store.get(keys.manifest(process_id)))
    return {entry["key"].removeprefix(f"results/{process_id}/") for entry in document["files"]}


# Listing


def test_models_are_those_that_are_stored_the_newest_first(world, results):
    ids = [world.trained(name=name).id for name in ("one", "two", "three")]
    world.drawn()
    world.failed(world.running().id)
    first = results.models(2, "")
    assert names(first["models"]) == ["three.safetensors", "two.safetensors"]
    rest = results.models(2, first["next_cursor"])
    assert names(rest["models"]) == ["one.safetensors"]
    assert rest["next_cursor"] is None
    assert rest["models"][0]["process_id"] == ids[0]


def test_a_file_that_only_lies_about_is_no_result(world, results):
    process_id = world.trained().id
    folder = world.workspace.training(process_id) / "lora"
    (folder / "leftover.safetensors").write_bytes(adapter())
    world.store.put(f"results/{process_id}/lora/other.safetensors", adapter())
    assert names(results.models(10, "")["models"]) == ["cat.safetensors"]
    assert names(results.files("", 10, "")["lora_files"]) == ["cat.safetensors"]


def test_two_trainings_of_one_dataset_and_name_keep_their_results_apart(world, results):
    first, second = world.trained().id, world.trained().id
    found = results.models(10, "")["models"]
    assert {one["process_id"] for one in found} == {first, second}
    assert len({one["s3_key"] for one in found}) == 2


def test_files_are_filtered_by_their_path(world, results):
    trained, drawn = world.trained().id, world.drawn(3).id

    def found(path):
        reply = results.files(path, 100, "")
        listed = [*reply["lora_files"], *reply["image_files"]]
        assert reply["total_files"] == len(listed)
        return sorted(names(listed))

    sample, lora = "step-000000010-0.png", "cat.safetensors"
    images = [f"image_{n:04d}.png" for n in range(3)]
    everything = sorted([lora, sample, *images])
    assert found("") == found("results") == found("results/") == everything
    assert found(f"results/{trained}") == found(f"results/{trained}/") == sorted([lora, sample])
    assert found(f"results/{drawn}") == found(f"results/{drawn}/images") == images
    assert found(f"results/{trained}/lora") == found(f"results/{trained}/lora/{lora}") == [lora]
    assert found(f"results/{trained}/samples") == [sample]
    assert found(f"results/{trained}/lor") == found(f"results/{trained}/images") == []
    assert found("dataset") == []


def test_each_file_says_what_it_is(world, results):
    trained, drawn = world.trained().id, world.drawn().id
    kinds = {
        (one["process_id"], one["type"], one["result_type"])
        for part in ("lora_files", "image_files")
        for one in results.files("", 100, "")[part]
    }
    assert kinds == {
        (trained, "lora", "lora"), (trained, "image", "samples"), (drawn, "image", "images"),
    }  # fmt: skip


@pytest.mark.parametrize("of_one_process", [True, False])
def test_files_come_by_pages_each_once(world, results, of_one_process):
    process_id = world.drawn(7).id
    path = f"results/{process_id}" if of_one_process else ""
    found, cursor, sizes = [], "", []
    for _ in range(5):
        page = results.files(path, 3, cursor)
        sizes.append(page["total_files"])
        found += names(page["image_files"])
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sizes == [3, 3, 1]
    assert sorted(found) == [f"image_{n:04d}.png" for n in range(7)]


@pytest.mark.parametrize("path", ["", "process"])
def test_a_cursor_that_is_not_ours_is_refused(world, results, path):
    path = f"results/{world.drawn().id}" if path else ""
    for call in (lambda: results.files(path, 3, "x"), lambda: results.models(3, "x")):
        with pytest.raises(InvalidRequest, match="cursor"):
            call()


@pytest.mark.parametrize(
    "path", ["../x", "/etc", "results/../x", "s3://other/results", "a//b", ".", "results/.."]
)
def test_a_path_that_no_result_can_have_is_refused(world, results, path):
    world.trained()
    with pytest.raises(InvalidKey):
        results.files(path, 10, "")


def test_the_files_of_a_process_that_never_was_are_not_found(results):
    with pytest.raises(NotFound):
        results.files(f"results/{MISSING}", 10, "")


# Downloading


def test_the_result_of_a_training_is_its_adapter(world, results):
    process_id = world.trained().id
    reply = results.download(process_id, None, LINK)
    assert (reply["filename"], reply["content_type"]) == (
        "cat.safetensors", "application/octet-stream",
    )  # fmt: skip
    assert base64.b64decode(reply["data"]) == adapter()


def test_one_image_is_a_file_and_several_are_a_zip(world, results):
    reply = results.download(world.drawn(1).id, None, LINK)
    assert (reply["filename"], reply["content_type"]) == ("image_0000.png", "image/png")
    assert base64.b64decode(reply["data"]) == picture(0)

    process_id = world.drawn(3).id
    reply = results.download(process_id, None, LINK)
    assert (reply["filename"], reply["content_type"]) == (f"{process_id}.zip", "application/zip")
    data = base64.b64decode(reply["data"])
    assert reply["size"] == len(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"image_{n:04d}.png": picture(n) for n in range(3)
        }


def test_what_is_not_completed_has_no_main_result_yet(world, results):
    waiting, running = world.waiting().id, world.running().id
    failed, cancelled = world.failed(world.running().id).id, world.cancelled(world.running().id).id
    for process_id in (waiting, running, failed, cancelled):
        with pytest.raises(ConflictingState, match="no results to download yet"):
            results.download(process_id, None, LINK)
    world.keep(running, "sample", "step-1.png", picture())
    key = f"results/{running}/samples/step-1.png"
    assert results.download(running, key, LINK)["filename"] == "step-1.png"


def test_an_unknown_process_is_not_found(results):
    with pytest.raises(NotFound, match="no process"):
        results.download(MISSING, None, LINK)


def test_a_deleted_result_is_told_as_such(world, results):
    process_id = world.trained().id
    results.delete([process_id], "lora")
    with pytest.raises(NotFound, match="were deleted"):
        results.download(process_id, None, LINK)


def test_a_file_of_another_process_can_not_be_had_by_its_key(world, results):
    mine, other = world.trained().id, world.drawn().id
    with pytest.raises(NotFound, match="no result"):
        results.download(mine, f"results/{other}/images/image_0000.png", LINK)


@pytest.mark.parametrize("way", ["download", "by_key", "by_path"])
def test_what_is_too_large_for_a_reply_is_a_link(tmp_path, way):
    world = World(tmp_path, max_inline_bytes=50)
    results = world.services.results
    process_id = world.trained().id
    key = f"results/{process_id}/lora/cat.safetensors"
    ask = {
        "download": lambda url: results.download(process_id, None, url),
        "by_key": lambda url: results.by_key(key, url),
        "by_path": lambda url: results.by_path(key, url),
    }[way]
    assert ask(LINK) == {
        "type": "url", "url": f"{URL}/files/{key}", "filename": "cat.safetensors",
        "size": len(adapter()), "s3_key": key,
    }  # fmt: skip
    with pytest.raises(InvalidRequest, match="too many for one reply"):
        ask(NO_LINK)


def test_images_that_are_too_large_for_one_zip_are_told(tmp_path):
    world = World(tmp_path, max_inline_bytes=2 * len(picture(0)) - 1)
    process_id = world.drawn(2).id
    with pytest.raises(InvalidRequest, match="too large for one reply") as caught:
        world.services.results.download(process_id, None, LINK)
    assert "bulk_download" in caught.value.remedy


def test_a_result_whose_object_is_gone_is_not_found(world, results):
    process_id = world.trained().id
    key = f"results/{process_id}/lora/cat.safetensors"
    world.store.delete(key)
    for call in (
        lambda: results.download(process_id, None, LINK),
        lambda: results.by_key(key, LINK),
        lambda: results.by_path(key, LINK),
    ):
        with pytest.raises(NotFound):
            call()


def test_what_is_listed_by_key_are_all_kinds_of_results_and_nothing_else(world, results):
    process_id = world.trained().id
    kept = [entry.key for entry in world.registry.artifacts(process_id)]
    assert len(kept) == 9
    for key in kept:
        assert results.by_key(key, LINK)["s3_key"] == key
    for key in (f"results/{process_id}/manifest.json", f"results/{process_id}", "dataset/cats/x"):
        with pytest.raises(NotFound):
            results.by_key(key, LINK)
    for key in ("../x", "/etc/passwd", f"results/{process_id}/../x", "s3://x/y", "a\0"):
        with pytest.raises(InvalidKey):
            results.by_key(key, LINK)


def test_bulk_links_lead_to_what_was_asked_for(world, results):
    trained, drawn, failed = world.trained().id, world.drawn(2).id, world.failed(world.running().id)

    def kinds(**wanted):
        reply = results.bulk([trained, drawn, failed.id], url=LINK, **wanted)
        return sorted(item["type"] for item in reply["download_items"])

    assert kinds(images=True, loras=True) == ["image", "image", "lora"]
    assert kinds(images=True, loras=False) == ["image", "image"]
    assert kinds(images=False, loras=True) == ["lora"]
    assert kinds(images=False, loras=False) == []
    with pytest.raises(NotFound):
        results.bulk([trained, MISSING], images=True, loras=True, url=LINK)


# Files of the workspace


def test_files_that_processes_made_or_use_can_be_read_by_their_path(world, results):
    process_id = world.trained().id
    files = [
        world.workspace.training(process_id) / "lora/cat.safetensors",
        world.workspace.lora(process_id) / "x.safetensors",
        world.workspace.training_data(process_id) / "0/a.png",
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"content")
        reply = results.by_path(str(file), LINK)
        assert (reply["filename"], base64.b64decode(reply["data"])) == (file.name, b"content")


def test_a_workspace_below_a_hidden_folder_can_be_read_too(tmp_path):
    world = World(tmp_path / ".local" / "share")
    process_id = world.trained().id
    file = world.workspace.training(process_id) / "lora/cat.safetensors"
    assert world.services.results.by_path(str(file), LINK)["filename"] == "cat.safetensors"


def test_a_workspace_behind_a_link_can_be_read_by_both_names(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    world = World(tmp_path / "link")
    process_id = world.trained().id
    file = world.workspace.training(process_id) / "lora/cat.safetensors"
    for path in (file, file.resolve()):
        assert world.services.results.by_path(str(path), LINK)["filename"] == "cat.safetensors"


@pytest.mark.parametrize(
    "path",
    [
        "registry.sqlite3", "config.env", "logs/app.log", "logs/errors.log", "run/x.json",
        "configs/training/x.yaml", "models/base/model.safetensors", "output/.hidden",
        "output/.hidden-folder/file", "output/link", "output/link-folder/file", "output/circle",
        "output", "output/training", "output/nothing", "output/../registry.sqlite3",
        "output/../../ws2/output/file", "../ws2/output/file", "../ws2/file", "../secret.txt",
        "output-of-mine/file", "outputs/file", "training_data2/file",
    ],
)  # fmt: skip
def test_other_files_of_the_machine_can_not_be_read(tmp_path, path):
    world = World(tmp_path)
    root = world.workspace.root
    for name in (
        "registry.sqlite3", "config.env", "logs/app.log", "logs/errors.log", "run/x.json",
        "configs/training/x.yaml", "models/base/model.safetensors", "output/.hidden",
        "output/.hidden-folder/file", "../ws2/output/file", "../ws2/file", "../secret.txt",
        "../secrets/file", "output-of-mine/file", "outputs/file", "training_data2/file",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("secret")
    (root / "output/link").symlink_to(root / "registry.sqlite3")
    (root / "output/link-folder").symlink_to(tmp_path / "secrets")
    (root / "output/circle").symlink_to(root / "output/circle")
    with pytest.raises(NotFound, match="there is no result"):
        world.services.results.by_path(f"{root}/{path}", LINK)


def test_a_file_that_is_too_large_for_a_reply_is_told(tmp_path):
    world = World(tmp_path, max_inline_bytes=10)
    file = world.workspace.root / "output/file"
    file.write_bytes(b"x" * 11)
    with pytest.raises(InvalidRequest, match="larger than 10 bytes"):
        world.services.results.by_path(str(file), LINK)


# Deleting


KINDS = {
    "lora": {"lora/cat.safetensors"},
    "samples": {"samples/step-000000010-0.png"},
    "images": set(),
    "checkpoints": {
        f"checkpoints/step-000000010/{name}"
        for name in ("adapter.safetensors", "state.safetensors", "checkpoint.json")
    },
    "logs": {"logs/log.txt", "logs/events.jsonl"},
}


@pytest.mark.parametrize("result_type", [*KINDS, "all"])
def test_only_what_was_named_is_deleted(world, results, result_type):
    process_id, other, drawn = world.trained().id, world.trained().id, world.drawn(2).id
    others = [(one, stored(world, one)) for one in (other, drawn)]
    before = stored(world, process_id)
    reply = results.delete([process_id], result_type)
    gone = before - stored(world, process_id)
    if result_type == "all":
        assert stored(world, process_id) == set()
        assert reply["deleted"] == 9
    else:
        assert gone == KINDS[result_type]
        assert reply["deleted"] == len(gone)
        assert manifest(world, process_id) == stored(world, process_id) - {"manifest.json"}
    assert [(one, stored(world, one)) for one in (other, drawn)] == others
    assert world.registry.get(process_id).status is Status.COMPLETED
    listed = {entry.key for entry in world.registry.artifacts(process_id)}
    assert listed == {info.key for info in world.store.list(keys.results(process_id))
                      if not info.key.endswith("manifest.json")}  # fmt: skip


def test_images_of_a_generation_are_deleted_by_their_type(world, results):
    process_id = world.drawn(2).id
    assert results.delete([process_id], "samples")["deleted"] == 0
    assert results.delete([process_id], "images")["deleted"] == 2
    assert results.delete([process_id], "images")["deleted"] == 0


@pytest.mark.parametrize("name", ["images", "samples", "lora", "logs"])
def test_a_training_that_is_named_like_a_type_keeps_its_adapter(world, results, name):
    """A search for '/images/' anywhere in the keys would find the adapter of 'images'."""
    process_id = world.trained(name=name).id
    results.delete([process_id], "images")
    assert f"lora/{name}.safetensors" in stored(world, process_id)


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_nothing_is_deleted_if_one_of_the_processes_has_not_ended(world, results, state):
    ended = world.trained().id
    busy = getattr(world, state)().id
    before = world.everything()
    with pytest.raises(ConflictingState, match=busy):
        results.delete([ended, busy], "all")
    with pytest.raises(NotFound):
        results.delete([ended, MISSING], "all")
    assert world.everything() == before


class UndeletingStore(MemoryStore):
    """A store whose disk fails in the middle of a deletion."""

    def delete(self, key):
        raise DiskFull(f"{key} can't be deleted", remedy="Repair the disk.")


def test_what_is_being_deleted_is_not_listed_any_more_whatever_happens(tmp_path):
    """Registry and manifest forget a file first, so no list ever names an object that is gone."""
    world = World(tmp_path, store=UndeletingStore())
    process_id = world.trained().id
    with pytest.raises(LoradashError):
        world.services.results.delete([process_id], "lora")
    assert world.services.results.models(10, "")["models"] == []
    assert "lora/cat.safetensors" not in manifest(world, process_id)
    assert "lora/cat.safetensors" in stored(world, process_id)


def test_a_deleted_adapter_can_not_be_used_any_more(world, results):
    process_id = world.trained().id
    results.delete([process_id], "lora")
    reply = world.ask("generate", prompt="x", lora=process_id)
    assert "no finished adapter" in reply["error"]


@pytest.mark.parametrize(
    ("result_type", "places"),
    [
        ("lora", ("lora/",)),
        ("samples", ("samples/",)),
        ("checkpoints", ("checkpoints/",)),
        ("logs", ("log.txt", "events.jsonl")),
        ("all", ("",)),
    ],
)
def test_copies_in_the_workspace_are_deleted_too(world, results, result_type, places):
    process_id, other = world.trained().id, world.trained("other").id

    def copies(owner):
        folder = world.workspace.training(owner)
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    before, others = copies(process_id), copies(other)
    gone = {name for name in before if name.startswith(places)}
    assert gone
    results.delete([process_id], result_type)
    assert copies(process_id) == before - gone
    assert copies(other) == others
