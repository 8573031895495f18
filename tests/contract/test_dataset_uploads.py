"""Datasets in real object stores: sent by signed URLs, sent by us, and fetched again."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from loradash.cli.backend import HttpBackend
from loradash.errors import InvalidRequest, TransferFailed
from loradash.protocol.requests import parse_request
from loradash.services.datasets.store import DatasetStore
from loradash.services.datasets.upload_checks import SourceFile
from loradash.services.datasets.upload_sessions import UploadSessions
from loradash.storage.s3.store import S3Store
from loradash.storage.store import conditional_put, presigned_urls
from tests.unit.world import picture

from .test_object_stores import make_store


@pytest.fixture(params=["memory", "local", "shared", "seaweedfs", "juicefs"])
def store(request, tmp_path):
    store = make_store(request.param, request, tmp_path)
    yield store
    if isinstance(store, S3Store):
        store.close()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for n in range(12):
        (folder / f"{n:02d} ü#.png").write_bytes(picture(n, size=(40, 30)))
        (folder / f"{n:02d} ü#.txt").write_text(f"picture {n}" if n else "")
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def announcement(folder):
    files = [
        {"filename": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in sorted(content(folder).items())
    ]
    return parse_request({"type": "create_upload", "dataset_folder": "cats", "files": files})


def send(store, plan, folder, names):
    """Send files as a client does: to the URL if there is one, else into the store."""
    with HttpBackend("http://unused") as backend:

        def one(entry):
            path = folder / entry.filename
            if entry.url:
                backend.send(entry, path, lambda _bytes: None)
            else:
                store.put_file(entry.key, path)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, [entry for entry in plan.files if entry.filename in names]))


def test_files_that_are_sent_one_by_one_become_a_dataset(store, folder, tmp_path):
    datasets = DatasetStore(store)
    uploads = UploadSessions(store, datasets)
    plan = uploads.create(announcement(folder))
    assert all(bool(entry.url) is bool(presigned_urls(store)) for entry in plan.files)
    names = sorted(content(folder))
    send(store, plan, folder, names[:10])
    with pytest.raises(InvalidRequest, match="14 of 24 files"):
        uploads.complete("cats", plan.upload_id)
    again = uploads.create(announcement(folder))
    assert again.upload_id == plan.upload_id
    waiting = [entry.filename for entry in again.files if entry.state == "send"]
    assert sorted(waiting) == names[10:]
    send(store, again, folder, waiting)
    result = uploads.complete("cats", plan.upload_id)
    assert (result.total_images, result.total_captions) == (12, 12)
    assert uploads.complete("cats", plan.upload_id) == result
    copy = datasets.materialize("cats", tmp_path / "copy")
    assert content(copy) == content(folder)
    assert [entry.name for entry in datasets.details.all()] == ["cats"]


def test_what_is_already_there_is_only_named_again_where_that_is_safe(store, folder, tmp_path):
    datasets = DatasetStore(store)
    sources = [SourceFile(path.name, path) for path in folder.iterdir()]
    datasets.store_paths("cats", sources, replace=True)
    result = datasets.store_paths("cats", sources, replace=True)
    assert result.unchanged_files == (24 if conditional_put(store) else 0)
    copy = datasets.materialize("cats", tmp_path / "copy")
    assert content(copy) == content(folder)
    assert len(list(store.list("dataset/cats"))) == 25


@pytest.mark.parametrize("store", ["seaweedfs", "juicefs"], indirect=True)
def test_a_signed_url_takes_no_other_file(store, folder):
    uploads = UploadSessions(store, DatasetStore(store))
    plan = uploads.create(announcement(folder))
    entry = plan.files[0]
    (folder / "longer.png").write_bytes((folder / entry.filename).read_bytes() + b"x")
    with HttpBackend("http://unused") as backend, pytest.raises(TransferFailed, match="403"):
        backend.send(entry, folder / "longer.png", lambda _bytes: None)
    assert uploads.create(announcement_without(folder, "longer.png")).files[0].state == "send"


def announcement_without(folder, name):
    (folder / name).unlink()
    return announcement(folder)
