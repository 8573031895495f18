"""Uploads leave the space that trainings and the registry need, however many come at once."""

import base64
import io
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from loradash.errors import DiskFull
from loradash.services.datasets import url_import
from loradash.services.datasets.editing import DatasetEditor
from loradash.services.datasets.scratch import Scratch
from loradash.services.datasets.upload_checks import SourceFile
from loradash.storage import disk as disk_module
from loradash.storage.disk import DiskGuard
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore

from .waits import until
from .world import World, picture

KEEP = 10_000
PICTURE = picture(1)
JSON_FILES = [{"filename": "a.png", "content": base64.b64encode(PICTURE).decode()}]


@pytest.fixture
def disk(monkeypatch):
    class Disk:
        free = 10**9

    disk = Disk()
    monkeypatch.setattr(disk_module, "free_bytes", lambda _folder: disk.free)
    return disk


def make(tmp_path, store, objects):
    world = World(tmp_path, store=store)
    guard = DiskGuard(KEEP)
    world.datasets.scratch = Scratch(tmp_path / "scratch", guard, objects)
    world.guard = guard
    return world


@pytest.fixture
def world(tmp_path, disk):
    objects = tmp_path / "objects"
    return make(tmp_path, LocalStore(objects), objects)


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", PICTURE)
    return buffer.getvalue()


def by_json(world, client):
    reply = world.ask("upload_training_data", dataset_folder="cats", files=JSON_FILES)
    return 507 if "error" in reply else 200, reply.get("error", "")


def by_zip(world, client):
    headers = {"content-type": "application/zip"}
    reply = client.post("/datasets/cats/zip", content=zipped(), headers=headers)
    return reply.status_code, reply.json().get("error", "")


def by_zip_in_chunks(world, client):
    headers = {"content-type": "application/zip"}
    data = zipped()
    pieces = (data[n : n + 100] for n in range(0, len(data), 100))
    reply = client.post("/datasets/cats/zip", content=pieces, headers=headers)
    return reply.status_code, reply.json().get("error", "")


def by_plan(world, client):
    files = [{"filename": "a.png", "size": len(PICTURE)}]
    plan = world.ask("create_upload", dataset_folder="cats", cleanup_existing=False, files=files)
    if "error" in plan:
        return 507, plan["error"]
    reply = client.put(urlsplit(plan["files"][0]["url"]).path, content=PICTURE)
    return reply.status_code, reply.json().get("error", "")


WAYS = [by_json, by_zip, by_zip_in_chunks, by_plan]


def left_behind(world, tmp_path):
    scratch = tmp_path / "scratch"
    return [*world.store.list(), *(scratch.rglob("*") if scratch.is_dir() else ())]


@pytest.mark.parametrize("way", WAYS)
def test_an_upload_that_does_not_fit_is_refused_before_anything_is_written(
    world, disk, tmp_path, way
):
    disk.free = KEEP + len(PICTURE) // 2
    with world.client() as client:
        status, text = way(world, client)
    assert status == 507
    assert "LORADASH_MIN_FREE_DISK_MB" in text
    assert left_behind(world, tmp_path) == []
    world.guard.require(tmp_path, len(PICTURE) // 2)  # nothing is kept for it any more


@pytest.mark.parametrize("way", WAYS)
def test_an_upload_that_fits_is_stored_and_its_room_given_back(world, disk, tmp_path, way):
    disk.free = KEEP + 4 * len(zipped())
    with world.client() as client:
        assert way(world, client) == (200, "")
    world.guard.require(tmp_path, 4 * len(zipped()))


@pytest.mark.parametrize("way", [by_json, by_plan])
def test_room_is_needed_where_it_arrives_and_where_it_is_stored(world, disk, way):
    """Both lie on one disk here."""
    disk.free = KEEP + len(PICTURE) + len(PICTURE) // 2
    with world.client() as client:
        assert way(world, client)[0] == 507


@pytest.mark.parametrize("way", [by_json, by_zip])
def test_a_bucket_needs_room_only_where_it_arrives(disk, tmp_path, way):
    world = make(tmp_path, MemoryStore(), None)
    disk.free = KEEP + len(PICTURE) + len(zipped()) + 10
    with world.client() as client:
        assert way(world, client)[0] == 200


@pytest.mark.parametrize("way", WAYS)
def test_what_other_uploads_have_announced_counts(world, disk, tmp_path, way):
    disk.free = KEEP + 10**6
    with world.client() as client, world.datasets.scratch.room(500_000):
        status, text = way(world, client)
        assert status == 507
        assert "under way" in text


def test_of_many_at_once_only_those_come_through_that_fit(world, disk, tmp_path, monkeypatch):
    """Each would fit alone; all of them would take what must stay free."""
    size = len(PICTURE)
    disk.free = KEEP + 5 * size  # two, each in two places
    arrived = threading.Semaphore(0)
    go_on = threading.Event()
    real = world.store.put_file

    def put_file(*arguments, **named):
        arrived.release()
        assert go_on.wait(30)
        return real(*arguments, **named)

    monkeypatch.setattr(world.store, "put_file", put_file)
    monkeypatch.setattr(disk_module.Room, "wrote", lambda *_: None)  # this disk's free space stands

    def upload(number):
        return world.ask("upload_training_data", dataset_folder=f"cats{number}", files=JSON_FILES)

    with ThreadPoolExecutor(6) as threads:
        replies = [threads.submit(upload, number) for number in range(6)]
        assert arrived.acquire(timeout=30)
        assert arrived.acquire(timeout=30)
        until(lambda: sum(one.done() for one in replies) == 4)
        go_on.set()
    texts = [reply.result().get("error", "") for reply in replies]
    assert sorted(bool(text) for text in texts) == [False, False, True, True, True, True]
    assert all("LORADASH_MIN_FREE_DISK_MB" in text for text in texts if text)


def test_files_of_this_machine_need_room_in_the_store_only(world, disk, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PICTURE)
    sources = [SourceFile("a.png", path)]
    disk.free = KEEP + len(PICTURE) - 1
    with pytest.raises(DiskFull):
        world.datasets.store_paths("cats", sources, replace=False)
    disk.free = KEEP + len(PICTURE)
    assert world.datasets.store_paths("cats", sources, replace=False).total_images == 1


class Response:
    """What a server sends, of a length that it announces or doesn't."""

    def __init__(self, data, announced):
        self.status = 200
        self.headers = [(b"content-length", str(len(data)).encode())] if announced else []
        self.data = data

    def iter_stream(self):
        for n in range(0, len(self.data), 100):
            yield self.data[n : n + 100]


@pytest.mark.parametrize("announced", [True, False])
def test_an_import_keeps_room_as_it_is_announced_or_comes(world, disk, tmp_path, announced):
    data = bytes(10_000)

    def receive():
        with world.datasets.scratch.room() as room:
            url_import._receive(Response(data, announced), tmp_path / "x", 10**6, room.arriving)
            assert room.arriving.left_bytes == 0

    disk.free = KEEP + 10_000
    receive()
    disk.free = KEEP + 99
    with pytest.raises(DiskFull):
        receive()
    assert (tmp_path / "x").stat().st_size in ((10_000,) if announced else (0,))


def test_an_imported_file_that_does_not_fit_is_told_as_such(world, disk, tmp_path):
    class Importer:
        def fetch(self, url, path, max_bytes, room=None):
            room.announce(10**6)

    editor = DatasetEditor(world.store, world.datasets, tmp_path / "cache", importer=Importer())
    world.services = replace(world.services, dataset_editor=editor)
    disk.free = KEEP + 10**5
    with world.client() as client:
        reply = client.post("/datasets/cats/import", json={"url": "https://cats.example/a.zip"})
    assert reply.status_code == 507
    assert "LORADASH_MIN_FREE_DISK_MB" in reply.json()["error"]
