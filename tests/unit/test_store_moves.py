"""A workspace whose settings name another object store than before."""

import json

import pytest

from loradash.cli.app import app
from loradash.errors import StoreUnavailable
from loradash.protocol.result_json import files_reply, models_reply
from loradash.services.results.results import make_results
from loradash.services.system.doctor import left_behind
from loradash.services.system.store_copy import copy_objects
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore
from tests.servers.s3_fake import FakeS3

from .world import World


@pytest.fixture
def folder(tmp_path):
    return LocalStore(tmp_path / "objects")


@pytest.fixture
def world(tmp_path, folder):
    return World(tmp_path, store=folder)


def in_another_store(world, store):
    return make_results(world.registry, store, world.workspace, 2**20)


def test_a_list_offers_only_what_the_store_has(world, folder):
    first, second = (world.trained(name=name).id for name in ("one", "two"))
    there = in_another_store(world, folder).lists.models(10, "")
    assert [one.file.process_id for one in there.models] == [second, first]
    assert "note" not in models_reply(there)
    bucket = MemoryStore()
    moved = in_another_store(world, bucket)
    listed_models, listed_files = moved.lists.models(10, ""), moved.lists.files("", 10, "")
    for listed in (models_reply(listed_models), files_reply(listed_files)):
        assert not listed.get("models")
        assert not listed.get("lora_files")
        assert "loradash storage copy" in listed["note"]
        assert listed["missing"]
    copy_objects(folder, bucket, concurrency=2)
    copied = in_another_store(world, bucket).lists.models(10, "")
    assert [one.file.process_id for one in copied.models] == [second, first]


def test_while_the_store_is_away_all_is_listed(world, monkeypatch):
    world.trained(name="one")

    class Away(MemoryStore):
        def head(self, key):
            raise StoreUnavailable("away")

    assert len(in_another_store(world, Away()).lists.models(10, "").models) == 1


def test_a_copy_replaces_nothing_and_can_be_repeated(folder):
    target = MemoryStore()
    folder.put("results/a/lora/x", b"1")
    folder.put("results/a/lora/y", b"2")
    folder.put("dataset/a/_training_info.json", b"{}")
    folder.put("processes/a.json", b"a record")
    target.put("results/a/lora/x", b"another")
    told = []
    report = copy_objects(folder, target, concurrency=2, on_progress=lambda *n: told.append(n))
    assert (report.copied, report.copied_bytes, report.there) == (2, 3, 0)
    assert report.problems == ("results/a/lora/x: another object has this key already",)
    assert target.get("results/a/lora/x") == b"another"
    assert told[-1] == (3, 3)
    assert "processes/a.json" not in [info.key for info in target.list()]
    again = copy_objects(folder, target, concurrency=2)
    assert (again.copied, again.there) == (0, 2)


def test_a_datasets_manifest_comes_when_its_files_are_there(folder):
    order = []

    class Target(MemoryStore):
        def put_file(self, key, path, on_bytes=None):
            order.append(key)
            return super().put_file(key, path, on_bytes)

    folder.put("dataset/a/_training_info.json", b"{}")
    folder.put("dataset/a/upload/x.png", b"x")
    folder.put("dataset/b/upload/y.png", b"y")
    copy_objects(folder, Target(), concurrency=1)
    assert order[-1] == "dataset/a/_training_info.json"


def test_what_was_left_in_the_folder_is_said(folder):
    bucket = MemoryStore()
    assert left_behind(folder, bucket) == 0
    folder.put("results/a/lora/x", b"1")
    folder.put("dataset/a/_training_info.json", b"{}")
    assert left_behind(folder, bucket) == 2
    copy_objects(folder, bucket, concurrency=2)
    assert left_behind(folder, bucket) == 0


def test_the_command_copies_into_the_bucket_of_the_settings(folder, tmp_path, monkeypatch, capsys):
    folder.put("results/a/lora/x", b"1")
    with FakeS3() as server:
        for name, value in {
            "S3_BUCKET": server.bucket, "S3_ENDPOINT_URL": server.endpoint_url,
            "S3_PREFIX": "p", "AWS_ACCESS_KEY_ID": server.access_key_id,
            "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
            "LORADASH_OBJECTS_PATH": str(tmp_path / "objects"),
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as ended:
            app(["storage", "copy", "--json"])
        assert ended.value.code == 0
        assert server.objects["p/results/a/lora/x"].content == b"1"
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["copied"] == 1
