"""Results are what the registry lists: listing, fetching and deleting them."""

import contextlib
import io
import itertools
import json
import threading
import zipfile

import pytest

from loradash.domain.addresses import Address
from loradash.domain.process import Status
from loradash.errors import (
    ConflictingState,
    DiskFull,
    InvalidKey,
    InvalidRequest,
    NotFound,
    ResultsNotStored,
    StoreUnavailable,
)
from loradash.registry.sql import SqlRegistry
from loradash.services.results.results import make_results
from loradash.services.results.views import Download
from loradash.storage import keys
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore

from . import published
from .world import MISSING, URL, World, adapter, picture


def make_store(kind, tmp_path):
    return MemoryStore() if kind == "memory" else LocalStore(tmp_path / "objects")


@pytest.fixture(params=["memory", "local"])
def store(request, tmp_path):
    """Each kind of object store; what these tests show holds for all of them."""
    return make_store(request.param, tmp_path)


@pytest.fixture
def world(store, tmp_path):
    if isinstance(store, MemoryStore):
        yield World(tmp_path, store=store)
        return
    registry = SqlRegistry(f"sqlite:///{tmp_path}/registry.sqlite3")
    yield World(tmp_path, registry=registry, store=store)
    registry.close()


@pytest.fixture
def results(world):
    return world.services.results


def names(found):
    return [one.filename for one in found]


def names_of(page):
    return names(model.file for model in page.models)


def stored(world, process_id):
    prefix = f"results/{process_id}/"
    return {name.removeprefix(prefix) for name in published.names(world.store, prefix[:-1])}


def real(world, name):
    return published.real_key(world.store, name)


def manifest(world, process_id):
    prefix = f"results/{process_id}/"
    document = json.loads(published.content(world.store, f"{prefix}manifest.json"))
    return {keys.published(one["key"]).removeprefix(prefix) for one in document["files"]}


# Listing


def test_models_are_those_that_are_stored_the_newest_first(world, results):
    ids = [world.trained(name=name).id for name in ("one", "two", "three")]
    world.drawn()
    world.failed(world.running().id)
    first = results.lists.models(2, "")
    assert names_of(first) == ["three.safetensors", "two.safetensors"]
    rest = results.lists.models(2, first.next_cursor)
    assert names_of(rest) == ["one.safetensors"]
    assert rest.next_cursor is None
    assert rest.models[0].file.process_id == ids[0]


def test_a_file_that_only_lies_about_is_no_result(world, results):
    process_id = world.trained().id
    folder = world.workspace.training(process_id) / "lora"
    (folder / "leftover.safetensors").write_bytes(adapter())
    world.store.put(f"results/{process_id}/lora/other.safetensors", adapter())
    assert names_of(results.lists.models(10, "")) == ["cat.safetensors"]
    assert names(results.lists.files("", 10, "").adapters) == ["cat.safetensors"]


def test_two_trainings_of_one_dataset_and_name_keep_their_results_apart(world, results):
    first, second = world.trained().id, world.trained().id
    found = [model.file for model in results.lists.models(10, "").models]
    assert {one.process_id for one in found} == {first, second}
    assert len({one.key for one in found}) == 2


def test_files_are_filtered_by_their_path(world, results):
    trained, drawn = world.trained().id, world.drawn(3).id

    def found(path):
        reply = results.lists.files(path, 100, "")
        listed = [*reply.adapters, *reply.images]
        assert len(reply.files) == len(listed)
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


def test_each_file_says_what_it_is(world):
    trained, drawn = world.trained().id, world.drawn().id
    kinds = {
        (one["made_by"], one["type"], one["result_type"])
        for part in ("lora_files", "image_files")
        for one in world.ask("list_files")[part]
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
        page = results.lists.files(path, 3, cursor)
        sizes.append(len(page.files))
        found += names(page.images)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sizes == [3, 3, 1]
    assert sorted(found) == [f"image_{n:04d}.png" for n in range(7)]


@pytest.mark.parametrize("path", ["", "process"])
def test_a_cursor_that_is_not_ours_is_refused(world, results, path):
    path = f"results/{world.drawn().id}" if path else ""
    for call in (lambda: results.lists.files(path, 3, "x"), lambda: results.lists.models(3, "x")):
        with pytest.raises(InvalidRequest, match="cursor"):
            call()


@pytest.mark.parametrize(
    "path", ["../x", "/etc", "results/../x", "s3://other/results", "a//b", ".", "results/.."]
)
def test_a_path_that_no_result_can_have_is_refused(world, results, path):
    world.trained()
    with pytest.raises(InvalidKey):
        results.lists.files(path, 10, "")


def at(world, address, **settings):
    """The same results, of a store that others know by this address."""
    return make_results(
        world.registry, world.store, world.workspace, 2**20, address=address, **settings
    )


def test_results_in_a_bucket_can_be_had_by_the_address_that_lists_show(world):
    results = at(world, Address("ours", "some/where"))
    process_id = world.trained().id
    (entry,) = results.lists.files("", 10, "").adapters
    key = real(world, f"results/{process_id}/lora/cat.safetensors")
    assert (entry.address, entry.key) == (f"s3://ours/some/where/{key}", key)
    assert results.lists.models(10, "").models[0].file.address == entry.address
    for path in (entry.address, entry.address.replace("s3:", "S3:")):
        assert results.downloads.by_path(path, URL).key == key
        assert results.downloads.by_key(path, URL).key == key
        assert results.downloads.of_process(process_id, path, URL).key == key
        assert names(results.lists.files(path, 10, "").adapters) == ["cat.safetensors"]
    below = f"s3://ours/some/where/results/{process_id}/"
    assert names(results.lists.files(below, 10, "").adapters) == ["cat.safetensors"]


@pytest.mark.parametrize(
    "start",
    ["s3://theirs/some/where/", "s3://ours/", "s3://ours/some/where-else/", "S3://theirs/",
     "s3://ours/some/", "s3:///some/where/", "s3://"],
)  # fmt: skip
def test_what_lies_outside_of_our_bucket_and_prefix_is_refused(world, start):
    results = at(world, Address("ours", "some/where"))
    process_id = world.trained().id
    path = f"{start}results/{process_id}/lora/cat.safetensors"
    for call in (
        lambda: results.lists.files(path, 10, ""),
        lambda: results.downloads.by_key(path, URL),
        lambda: results.downloads.by_path(path, URL),
        lambda: results.downloads.of_process(process_id, path, URL),
    ):
        with pytest.raises(InvalidKey, match="isn't in this server's store") as caught:
            call()
        assert "list_files" in caught.value.remedy


def test_the_files_of_a_process_that_never_was_are_not_found(results):
    with pytest.raises(NotFound):
        results.lists.files(f"results/{MISSING}", 10, "")


# Downloading


def test_the_result_of_a_training_is_its_adapter(world, results):
    process_id = world.trained().id
    reply = results.downloads.of_process(process_id, None, URL)
    assert (reply.filename, reply.data) == ("cat.safetensors", adapter())


def test_one_image_is_a_file_and_several_are_a_zip(world, results):
    reply = results.downloads.of_process(world.drawn(1).id, None, URL)
    assert (reply.filename, reply.data) == ("image_0000.png", picture(0))

    process_id = world.drawn(3).id
    reply = results.downloads.of_process(process_id, None, URL)
    assert (reply.filename, reply.size_bytes) == (f"{process_id}.zip", len(reply.data))
    with zipfile.ZipFile(io.BytesIO(reply.data)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"image_{n:04d}.png": picture(n) for n in range(3)
        }


def test_what_is_not_completed_has_no_main_result_yet(world, results):
    waiting, running = world.waiting().id, world.running().id
    failed, cancelled = world.failed(world.running().id).id, world.cancelled(world.running().id).id
    for process_id in (waiting, running, failed, cancelled):
        with pytest.raises(ConflictingState, match="no results to download yet"):
            results.downloads.of_process(process_id, None, URL)
    world.keep(running, "sample", "step-1.png", picture())
    key = real(world, f"results/{running}/samples/step-1.png")
    assert results.downloads.of_process(running, key, URL).filename == "step-1.png"


def test_an_unknown_process_is_not_found(results):
    with pytest.raises(NotFound, match="no process"):
        results.downloads.of_process(MISSING, None, URL)


def test_a_deleted_result_is_told_as_such(world, results):
    process_id = world.trained().id
    results.deletion.delete([process_id], "lora")
    with pytest.raises(NotFound, match="were deleted"):
        results.downloads.of_process(process_id, None, URL)


def test_a_file_of_another_process_can_not_be_had_by_its_key(world, results):
    mine, other = world.trained().id, world.drawn().id
    with pytest.raises(NotFound, match="no result"):
        results.downloads.of_process(mine, f"results/{other}/images/image_0000.png", URL)


@pytest.mark.parametrize("way", ["download", "by_key", "by_path"])
def test_what_is_too_large_for_a_reply_is_a_link(tmp_path, way):
    world = World(tmp_path, max_inline_bytes=50)
    results = world.services.results
    process_id = world.trained().id
    key = real(world, f"results/{process_id}/lora/cat.safetensors")
    ask = {
        "download": lambda base_url: results.downloads.of_process(process_id, None, base_url),
        "by_key": lambda base_url: results.downloads.by_key(key, base_url),
        "by_path": lambda base_url: results.downloads.by_path(key, base_url),
    }[way]
    assert ask(URL) == Download(
        url=f"{URL}/files/{key}?download=1", filename="cat.safetensors",
        size_bytes=len(adapter()), key=key,
    )  # fmt: skip
    with pytest.raises(InvalidRequest, match="too much for one reply"):
        ask("")


def test_images_that_are_too_large_for_one_reply_are_a_link_to_one_zip(tmp_path):
    world = World(tmp_path, max_inline_bytes=2 * len(picture(0)) - 1)
    results = world.services.results
    process_id = world.drawn(2).id
    reply = results.downloads.of_process(process_id, None, URL)
    data = b"".join(results.downloads.archive([process_id], images=True, loras=False))
    assert reply == Download(
        filename=f"{process_id}.zip", size_bytes=len(data),
        url=f"{URL}/download/zip?process_id={process_id}&images=true&loras=false",
    )  # fmt: skip
    with pytest.raises(InvalidRequest, match="too much for one reply") as caught:
        results.downloads.of_process(process_id, None, "")
    assert "bulk_download" in caught.value.remedy


class SilentStore(MemoryStore):
    """A store that doesn't say what it can do."""

    def __init__(self):
        self._objects, self._lock = {}, threading.Lock()

    @property
    def capabilities(self):
        raise StoreUnavailable("it isn't there", remedy="Wait.")

    def get_url(self, key, *, filename, expires_s):
        raise AssertionError("nobody can know that it signs")

    put_url = post_form = get_url


def test_what_fits_into_a_reply_needs_no_answer_of_what_the_store_can_do(tmp_path):
    world = World(tmp_path, store=SilentStore())
    results = world.services.results
    trained, drawn = world.trained().id, world.drawn(2).id
    key = real(world, f"results/{trained}/lora/cat.safetensors")
    for base_url in (URL, ""):
        assert results.downloads.of_process(trained, None, base_url).data
        assert results.downloads.of_process(drawn, None, base_url).data
        assert results.downloads.by_key(key, base_url).data
    with pytest.raises(StoreUnavailable):
        results.downloads.bulk([trained], images=True, loras=True, base_url="")


def test_an_object_that_is_not_what_was_stored_is_not_delivered(world, results):
    trained, drawn = world.trained().id, world.drawn(2).id
    key = real(world, f"results/{trained}/lora/cat.safetensors")
    data = world.store.get(key)
    world.store.put(key, data[:-1] + b"x")
    world.store.put(real(world, f"results/{drawn}/images/image_0001.png"), picture(7))
    for call in (
        lambda: results.downloads.by_key(key, URL),
        lambda: results.downloads.of_process(trained, None, URL),
        lambda: results.downloads.of_process(drawn, None, URL),
    ):
        with pytest.raises(ResultsNotStored, match="isn't what was stored"):
            call()


def test_a_result_whose_object_is_gone_is_not_found(world, results):
    process_id = world.trained().id
    key = real(world, f"results/{process_id}/lora/cat.safetensors")
    world.store.delete(key)
    for call in (
        lambda: results.downloads.of_process(process_id, None, URL),
        lambda: results.downloads.by_key(key, URL),
        lambda: results.downloads.by_path(key, URL),
    ):
        with pytest.raises(NotFound):
            call()


def test_what_is_listed_by_key_are_all_kinds_of_results_and_nothing_else(world, results):
    process_id = world.trained().id
    kept = [entry.key for entry in world.registry.artifacts(process_id)]
    assert len(kept) == 9
    for key in kept:
        assert results.downloads.by_key(key, URL).key == key
    for key in (f"results/{process_id}/manifest.json", f"results/{process_id}", "dataset/cats/x"):
        with pytest.raises(NotFound):
            results.downloads.by_key(key, URL)
    for key in ("../x", "/etc/passwd", f"results/{process_id}/../x", "s3://x/y", "a\0"):
        with pytest.raises(InvalidKey):
            results.downloads.by_key(key, URL)


def test_bulk_links_lead_to_what_was_asked_for(world, results):
    trained, drawn, failed = world.trained().id, world.drawn(2).id, world.failed(world.running().id)

    def kinds(**wanted):
        reply = results.downloads.bulk([trained, drawn, failed.id], base_url=URL, **wanted)
        return sorted(item.file.kind for item in reply.items)

    assert kinds(images=True, loras=True) == ["image", "image", "lora", "sample"]
    assert kinds(images=True, loras=False) == ["image", "image", "sample"]
    assert kinds(images=False, loras=True) == ["lora"]
    assert kinds(images=False, loras=False) == []
    with pytest.raises(NotFound):
        results.downloads.bulk([trained, MISSING], images=True, loras=True, base_url=URL)


def test_a_bulk_download_has_one_link_for_all_if_there_are_several_files(world, results):
    trained, drawn = world.trained().id, world.drawn(2).id

    def zip_url(*process_ids, base_url=URL, **wanted):
        wanted = {"images": True, "loras": True, **wanted}
        return results.downloads.bulk(process_ids, base_url=base_url, **wanted).zip_url

    ids = f"process_id={trained}&process_id={drawn}"
    assert zip_url(trained, drawn) == f"{URL}/download/zip?{ids}&images=true&loras=true"
    assert zip_url(trained, drawn, loras=False) == (
        f"{URL}/download/zip?{ids}&images=true&loras=false"
    )
    assert zip_url(trained, drawn, base_url="") is None
    assert zip_url(trained, images=False) is None
    assert zip_url(trained, drawn, images=False) is None


# One zip file of many results


def unzipped(archive):
    pieces = list(archive)
    with zipfile.ZipFile(io.BytesIO(b"".join(pieces))) as file:
        assert file.testzip() is None
        names = file.namelist()
        assert len(set(names)) == len(names)
        return {name: file.read(name) for name in names}


def test_an_archive_has_the_results_of_all_processes_and_the_size_that_it_says(world, results):
    trained, other, drawn = world.trained().id, world.trained().id, world.drawn(2).id
    ids = [trained, other, drawn]

    def names(**wanted):
        archive = results.downloads.archive(ids, **wanted)
        size = archive.size_bytes
        data = b"".join(archive)
        assert len(data) == size
        return set(unzipped([data]))

    loras = {f"{one}/cat.safetensors" for one in (trained, other)}
    images = {f"{drawn}/image_{n:04d}.png" for n in range(2)}
    images |= {f"{one}/step-000000010-0.png" for one in (trained, other)}
    assert names(images=True, loras=True) == loras | images
    assert names(images=True, loras=False) == images
    assert names(images=False, loras=True) == loras
    content = unzipped(results.downloads.archive(ids, images=True, loras=True))
    assert content[f"{trained}/cat.safetensors"] == adapter()
    assert content[f"{drawn}/image_0001.png"] == picture(1)


def test_a_process_that_is_named_twice_is_once_in_an_archive(world, results):
    drawn = world.drawn(2).id
    content = unzipped(results.downloads.archive([drawn, drawn], images=True, loras=True))
    assert set(content) == {f"{drawn}/image_{n:04d}.png" for n in range(2)}


def test_files_of_one_name_have_different_names_in_an_archive(world, results):
    process_id = world.running("generation", "image").id
    for folder, number in (("a", 1), ("b", 2), ("C", 3)):
        name = "IMAGE.png" if folder == "C" else "image.png"
        world.keep(process_id, "image", f"{folder}/{name}", picture(number))
    world.completed(process_id)
    content = unzipped(results.downloads.archive([process_id], images=True, loras=True))
    assert sorted(content.values()) == sorted(picture(n) for n in (1, 2, 3))
    assert len({name.lower() for name in content}) == 3
    assert all(name.startswith(f"{process_id}/") and name.endswith(".png") for name in content)


def test_an_archive_of_nothing_is_not_found(world, results):
    waiting, trained = world.waiting().id, world.trained().id
    for ids, wanted in (
        ([waiting], {"images": True, "loras": True}),
        ([trained], {"images": False, "loras": False}),
        ([trained, MISSING], {"images": True, "loras": True}),
    ):
        with pytest.raises(NotFound):
            results.downloads.archive(ids, **wanted)


def test_what_an_archive_could_not_contain_is_told_before_it_begins(world, results):
    drawn = world.drawn(3).id
    gone, other = (real(world, f"results/{drawn}/images/image_000{n}.png") for n in (0, 2))
    world.store.delete(gone)
    world.store.put(other, b"shorter")
    with pytest.raises(NotFound, match="2 of 3 files") as caught:
        results.downloads.archive([drawn], images=True, loras=True)
    assert caught.value.problems == (gone, other)


def test_an_object_that_goes_on_too_long_breaks_an_archive_at_its_size(tmp_path):
    class LongStore(MemoryStore):
        def read(self, key, start=0, end=None):
            return itertools.repeat(picture(0), 1000)

    world = World(tmp_path, store=LongStore())
    archive = world.services.results.downloads.archive([world.drawn(1).id], images=True, loras=True)
    sent = 0
    with pytest.raises(ResultsNotStored):
        for piece in archive:
            sent += len(piece)
    assert sent < archive.size_bytes


def test_an_object_that_changes_while_an_archive_is_made_breaks_it(world, results):
    drawn = world.drawn(2).id
    for data in (picture(1)[:-1], picture(1) + b"more"):
        archive = results.downloads.archive([drawn], images=True, loras=True)
        world.store.put(real(world, f"results/{drawn}/images/image_0001.png"), data)
        with pytest.raises(ResultsNotStored, match="isn't what was stored"):
            list(archive)
        world.store.put(real(world, f"results/{drawn}/images/image_0001.png"), picture(1))


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
        reply = results.downloads.by_path(str(file), URL)
        assert (reply.filename, reply.data) == (file.name, b"content")


def test_a_workspace_below_a_hidden_folder_can_be_read_too(tmp_path):
    world = World(tmp_path / ".local" / "share")
    process_id = world.trained().id
    file = world.workspace.training(process_id) / "lora/cat.safetensors"
    assert world.services.results.downloads.by_path(str(file), URL).filename == "cat.safetensors"


def test_a_workspace_behind_a_link_can_be_read_by_both_names(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    world = World(tmp_path / "link")
    process_id = world.trained().id
    file = world.workspace.training(process_id) / "lora/cat.safetensors"
    for path in (file, file.resolve()):
        download = world.services.results.downloads.by_path(str(path), URL)
        assert download.filename == "cat.safetensors"


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
        world.services.results.downloads.by_path(f"{root}/{path}", URL)


def test_a_file_that_is_too_large_for_a_reply_is_told(tmp_path):
    world = World(tmp_path, max_inline_bytes=10)
    file = world.workspace.root / "output/file"
    file.write_bytes(b"x" * 11)
    with pytest.raises(InvalidRequest, match="larger than 10 bytes"):
        world.services.results.downloads.by_path(str(file), URL)


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
    reply = results.deletion.delete([process_id], result_type)
    gone = before - stored(world, process_id)
    if result_type == "all":
        assert stored(world, process_id) == set()
        assert reply.deleted == 9
    else:
        assert gone == KINDS[result_type]
        assert reply.deleted == len(gone)
        assert manifest(world, process_id) == stored(world, process_id) - {"manifest.json"}
    assert [(one, stored(world, one)) for one in (other, drawn)] == others
    assert world.registry.get(process_id).status is Status.COMPLETED
    listed = {entry.key for entry in world.registry.artifacts(process_id)}
    assert listed == {info.key for info in world.store.list(keys.results(process_id))
                      if not info.key.endswith("manifest.json")}  # fmt: skip


def test_images_of_a_generation_are_deleted_by_their_type(world, results):
    process_id = world.drawn(2).id
    assert results.deletion.delete([process_id], "samples").deleted == 0
    assert results.deletion.delete([process_id], "images").deleted == 2
    assert results.deletion.delete([process_id], "images").deleted == 0


@pytest.mark.parametrize("name", ["images", "samples", "lora", "logs"])
def test_a_training_that_is_named_like_a_type_keeps_its_adapter(world, results, name):
    """A search for '/images/' anywhere in the keys would find the adapter of 'images'."""
    process_id = world.trained(name=name).id
    results.deletion.delete([process_id], "images")
    assert f"lora/{name}.safetensors" in stored(world, process_id)


@pytest.mark.parametrize("state", ["waiting", "running"])
def test_nothing_is_deleted_if_one_of_the_processes_has_not_ended(world, results, state):
    ended = world.trained().id
    busy = getattr(world, state)().id
    before = world.everything()
    with pytest.raises(ConflictingState, match=busy):
        results.deletion.delete([ended, busy], "all")
    with pytest.raises(NotFound):
        results.deletion.delete([ended, MISSING], "all")
    assert world.everything() == before


@contextlib.contextmanager
def undeletable(store, monkeypatch, *kept):
    """Let deletions of these objects fail, as a disk or a network would; of all if none is named"""
    delete = store.delete

    def failing(key):
        if not kept or key in kept:
            raise DiskFull(f"{key} can't be deleted", remedy="Repair the disk.")
        delete(key)

    def failing_many(names):
        errors = []
        for key in names:
            try:
                failing(key)
            except DiskFull as error:
                errors.append(error)
        if errors:
            raise errors[0]

    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", failing)
        patch.setattr(store, "delete_many", failing_many)
        yield


def test_what_is_being_deleted_is_not_listed_any_more_whatever_happens(world, results, monkeypatch):
    """Registry and manifest forget a file first, so no list ever names an object that is gone."""
    process_id = world.trained().id
    with undeletable(world.store, monkeypatch), pytest.raises(DiskFull):
        results.deletion.delete([process_id], "lora")
    assert results.lists.models(10, "").models == ()
    assert "lora/cat.safetensors" not in manifest(world, process_id)
    assert "lora/cat.safetensors" in stored(world, process_id)


@pytest.mark.parametrize(
    ("result_type", "kept"),
    [
        *((name, sorted(files)[-1]) for name, files in KINDS.items() if files),
        *(("all", name) for name in ("lora/cat.safetensors", "config.yaml", "job.json")),
    ],
)
def test_the_same_deletion_again_deletes_what_a_failing_store_has_kept(
    world, results, monkeypatch, result_type, kept
):
    process_id, other = world.trained().id, world.trained().id
    others = stored(world, other)
    before = stored(world, process_id)
    gone = before if result_type == "all" else KINDS[result_type]
    key = real(world, f"results/{process_id}/{kept}")
    with undeletable(world.store, monkeypatch, key), pytest.raises(DiskFull):
        results.deletion.delete([process_id], result_type)
    assert stored(world, process_id) == before - gone | {kept}
    size = world.store.head(key).size_bytes
    reply = results.deletion.delete([process_id], result_type)
    assert (reply.deleted, reply.freed_bytes) == (1, size)
    assert stored(world, process_id) == before - gone
    assert results.deletion.delete([process_id], result_type).deleted == 0
    assert stored(world, other) == others


def test_a_deletion_whose_manifest_could_not_be_written_is_finished_by_the_next(
    world, results, monkeypatch
):
    process_id = world.trained().id
    before = stored(world, process_id)

    def failing(key, data):
        raise DiskFull(f"{key} can't be written", remedy="Repair the disk.")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "put", failing)
        with pytest.raises(DiskFull):
            results.deletion.delete([process_id], "lora")
    assert stored(world, process_id) == before
    assert "lora/cat.safetensors" in manifest(world, process_id)
    assert results.deletion.delete([process_id], "lora").deleted == 1
    assert stored(world, process_id) == before - {"lora/cat.safetensors"}
    assert manifest(world, process_id) == stored(world, process_id) - {"manifest.json"}


def test_deleting_takes_what_no_list_names_of_the_type_that_was_named(world, results):
    process_id = world.trained().id
    for name in ("lora/old.safetensors", "samples/old.png", "lora2/x", "other.json"):
        world.store.put(f"results/{process_id}/{name}", b"left over")
    before = stored(world, process_id)
    assert results.deletion.delete([process_id], "lora").deleted == 2
    gone = {"lora/cat.safetensors", "lora/old.safetensors"}
    assert stored(world, process_id) == before - gone
    results.deletion.delete([process_id], "all")
    assert stored(world, process_id) == set()


def test_a_deletion_of_what_is_gone_already_makes_the_lists_right(world, results):
    process_id = world.trained().id
    world.store.delete(real(world, f"results/{process_id}/lora/cat.safetensors"))
    assert results.deletion.delete([process_id], "lora").deleted == 0
    assert results.lists.models(10, "").models == ()
    assert manifest(world, process_id) == stored(world, process_id) - {"manifest.json"}


def test_a_process_that_is_resumed_meanwhile_keeps_its_objects(world, results, monkeypatch):
    """Its next attempt stores objects before it lists them."""
    process_id = world.running().id
    world.keep(process_id, "lora", "cat.safetensors", adapter())
    world.keep(process_id, "sample", "step-1.png", picture())
    world.failed(process_id)
    before = stored(world, process_id)
    put = world.store.put

    def resuming(key, data):
        world.services.processes.resume(process_id)
        return put(key, data)

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "put", resuming)
        with pytest.raises(ConflictingState, match="pending"):
            results.deletion.delete([process_id], "lora")
    assert stored(world, process_id) == before


def test_looking_deletes_nothing(world, results):
    process_id = world.trained().id
    world.store.put(f"results/{process_id}/lora/old.safetensors", b"left over")
    before = stored(world, process_id)
    results.lists.files("", 10, "")
    results.downloads.of_process(process_id, None, URL)
    list(results.downloads.archive([process_id], images=True, loras=True))
    results.downloads.bulk([process_id], images=True, loras=True, base_url=URL)
    assert stored(world, process_id) == before


def test_objects_go_by_one_call_for_many(world, results, monkeypatch):
    process_id = world.drawn(5).id
    calls = []
    delete_many = world.store.delete_many
    monkeypatch.setattr(
        world.store, "delete_many", lambda names: (calls.append(list(names)), delete_many(names))
    )
    results.deletion.delete([process_id], "images")
    (keys_of_call,) = calls
    assert sorted(map(keys.published, keys_of_call)) == [
        f"results/{process_id}/images/image_{n:04d}.png" for n in range(5)
    ]


def test_a_deleted_adapter_can_not_be_used_any_more(world, results):
    process_id = world.trained().id
    results.deletion.delete([process_id], "lora")
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
    results.deletion.delete([process_id], result_type)
    assert copies(process_id) == before - gone
    assert copies(other) == others
