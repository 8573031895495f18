"""Providers and gateways as they are: each does one thing wrong, and either it works all the same,
or the first look says what is wrong and which setting to change. None is taken for an outage."""

import hashlib
import random

import pytest

from loradash.errors import NotFound, StoreRefused
from loradash.services.system.doctor import examine
from loradash.settings import Settings
from loradash.storage.s3.config import S3Config
from loradash.storage.s3.store import S3Store
from tests.servers.rclone import RcloneServer
from tests.servers.s3_fake import RIGHT_REGION, FakeS3

from .buckets import QUICK, config_of

MIB = 2**20

WORKING = [
    "", "range_ignored", "missing_is_403_listed", "no_token", "no_token_v1", "plus_is_plus",
    "always_encoded", "opaque_etags", "lost_completion", "wants_md5", "no_metadata",
]  # fmt: skip
NOTED = {"range_ignored": "ranges", "missing_is_403_listed": "missing objects",
         "no_token": "listing", "no_token_v1": "listing", "opaque_etags": "md5_etag"}  # fmt: skip
REFUSED = [
    ("missing_is_403", "s3:ListBucket"),
    ("cut_off", "S3_ENDPOINT_URL"),
    ("wrong_region", f"S3_REGION={RIGHT_REGION}"),
    ("moved_301", f"S3_REGION={RIGHT_REGION}"),
    ("moved_307", "S3_ENDPOINT_URL"),
    ("to_https", "S3_ENDPOINT_URL=https://127.0.0.1:"),
    ("web_page", "S3_ENDPOINT_URL"),
]


@pytest.fixture
def fakes():
    """Start fakes with these faults; give the server and a store in it."""
    started = []

    def start(*faults, path="", **options):
        server = FakeS3(*[fault for fault in faults if fault], path=path)
        server.__enter__()
        started.append(server)
        store = S3Store(config(server, **options))
        started.append(store)
        return server, store

    yield start
    for one in reversed(started):
        one.close() if isinstance(one, S3Store) else one.__exit__()


def config(server, *, endpoint="", **options):
    return S3Config(
        **{
            "bucket": server.bucket,
            "access_key_id": server.access_key_id,
            "secret_access_key": server.secret_access_key,
            "endpoint_url": endpoint.format(url=server.endpoint_url, bucket=server.bucket)
            or server.endpoint_url,
            "policy": QUICK,
            "timeout_s": 10,
            "prefix": "some/where",
            "part_bytes": MIB,
            **options,
        }
    )


def use(store, folder, large=3 * MIB + 5):
    """Every verb, with what providers differ in: ranges, parts, pages, odd names, missing ones."""
    content = random.Random(1).randbytes(large)
    (folder / "source").write_bytes(content)
    store.put_file("a/large", folder / "source")
    moved = []
    store.get_file("a/large", folder / "target", moved.append)
    assert (folder / "target").read_bytes() == content
    assert sum(moved) == len(content)
    for start, end in [(0, 7), (MIB + 1, 2 * MIB), (large - 5, None), (large, large + 9)]:
        assert b"".join(store.read("a/large", start, end)) == content[start:end]
    for read in (store.get, store.head, lambda key: list(store.read(key))):
        with pytest.raises(NotFound):
            read("a/missing")
    names = [f"many/{number:02d} a+b %20&<é>" for number in range(7)]
    for name in names:
        store.put(name, name.encode())
    assert [info.key for info in store.list("many")] == names
    assert {info.key for info in store.list()} == {"a/large", *names}
    assert {"a", "many"} <= set(store.folders("")) <= {"a", "many", ".loradash-probe"}
    assert [store.get(name).decode() for name in names] == names
    store.delete_many(names)
    assert [info.key for info in store.list()] == ["a/large"]


@pytest.mark.parametrize("fault", WORKING)
def test_what_differs_does_no_harm(fakes, tmp_path, fault):
    server, store = fakes(fault)
    server.max_keys = 3
    notes = store.examine().notes
    if fault in NOTED:
        assert [note for note in notes if note.startswith(f"{NOTED[fault]}: ")]
    else:
        assert {note.partition(":")[0] for note in notes} == {"presign", "post_policy"}
    use(store, tmp_path)
    assert store.state.failures == 0


def test_all_of_1003_objects_are_listed_where_pages_do_not_say_how_to_go_on(fakes):
    server, store = fakes("no_token")
    for number in range(1003):
        store._requests.send("PUT", f"a/{number:04d}", body=b"")
    assert len(list(store.list("a"))) == 1003
    for number in range(1003):
        server.objects[f"some/where/b/{number:04d}/x"] = server.objects["some/where/a/0000"]
    assert len(store.folders("b")) == 1003


@pytest.mark.parametrize(("fault", "setting"), REFUSED)
def test_what_can_not_work_is_said_at_once_with_the_setting(fakes, monkeypatch, fault, setting):
    monkeypatch.setattr("loradash.storage.s3.probe._LIST_WAIT_S", 0.01)
    server, store = fakes(fault)
    with pytest.raises(StoreRefused) as caught:
        store.examine()
    assert setting in caught.value.remedy
    assert store.state.state == "closed"
    assert store.state.failures == 0, "what is answered is no outage"
    if fault != "cut_off":
        other = S3Store(config(server))
        for ask in (
            lambda: list(other.list()),
            lambda: other.head("a"),
            lambda: other.get("a"),
            lambda: other.put("b", b"x") if fault != "missing_is_403" else other.get("c"),
        ):
            with pytest.raises(StoreRefused) as caught:
                ask()
            assert "S3_" in caught.value.remedy
        assert other.state.failures == 0
        other.close()


@pytest.mark.parametrize("fault", [fault for fault, _ in REFUSED])
def test_doctor_says_what_is_wrong(fakes, monkeypatch, tmp_path, fault):
    (finding,) = doctors_words(*fakes(fault), monkeypatch=monkeypatch, tmp_path=tmp_path)
    assert (finding.subject, finding.verdict) == ("object store", "bad")
    assert "S3_" in finding.remedy


@pytest.mark.parametrize("fault", NOTED)
def test_doctor_says_what_differs(fakes, monkeypatch, tmp_path, fault):
    first, *others = doctors_words(*fakes(fault), monkeypatch=monkeypatch, tmp_path=tmp_path)
    assert first.verdict == "ok"
    (told,) = [one for one in others if one.subject == f"  {NOTED[fault]}"]
    assert told.verdict == "off"
    assert told.detail


def doctors_words(server, store, monkeypatch, tmp_path):
    monkeypatch.setattr("loradash.storage.s3.probe._LIST_WAIT_S", 0.01)
    monkeypatch.setattr(
        "loradash.services.system.doctor._devices", lambda: None
    )  # torch takes seconds
    settings = Settings(S3_BUCKET=server.bucket, LORADASH_OBJECTS_PATH=tmp_path / "none")
    found = [one for one in examine(settings, store) if one]
    start = [one.subject for one in found].index("object store")
    end = [one.subject for one in found].index("registry")
    return found[start:end]


# Addresses


def test_an_address_may_have_a_path(fakes, tmp_path):
    """As Supabase's: /storage/v1/s3. The path is signed, too."""
    _, store = fakes(path="/storage/v1/s3")
    store.examine()
    use(store, tmp_path)


@pytest.mark.parametrize("path", ["", "/storage/v1/s3"])
def test_a_bucket_in_the_address_is_said_with_the_right_address(fakes, path):
    server, store = fakes(path=path, endpoint="{url}/{bucket}/")
    for ask in (store.examine, lambda: store.put("a", b"x"), lambda: store.get("a")):
        with pytest.raises(StoreRefused) as caught:
            ask()
        assert caught.value.remedy.endswith(f"S3_ENDPOINT_URL={server.endpoint_url}.")
    assert server.objects == {}
    assert store.state.failures == 0


def test_a_bucket_that_the_address_ends_with_by_chance_is_no_fault(fakes, tmp_path):
    _, store = fakes(path="/storage/the-bucket")
    use(store, tmp_path)


# Uploads in parts


@pytest.mark.parametrize("faults", [["opaque_etags"], []])
def test_an_upload_whose_end_got_lost_is_there(fakes, tmp_path, faults):
    """Whatever its etag says: by a mark of its own, and its size."""
    server, store = fakes("lost_completion", *faults)
    (tmp_path / "a").write_bytes(random.Random(2).randbytes(2 * MIB))
    assert store.put_file("a", tmp_path / "a").size_bytes == 2 * MIB
    assert "lost_completion" not in server.faults
    assert store.get("a") == (tmp_path / "a").read_bytes()


def test_another_object_is_not_taken_for_an_upload_whose_end_got_lost(fakes, tmp_path):
    server, store = fakes("opaque_etags")
    (tmp_path / "a").write_bytes(random.Random(2).randbytes(2 * MIB))
    store.put_file("a", tmp_path / "a")
    before = server.objects["some/where/a"]
    upload_id = store.begin_upload("a", content_type="a/b")
    store._requests.put_part("a", upload_id, 1, iter([b"x"]), 1, hashlib.md5(b"x").digest())
    server.faults.add("lost_upload")
    with pytest.raises(NotFound):
        store.finish_upload("a", upload_id, ['"x"'])
    assert server.objects["some/where/a"] == before


# A real one


def test_rclones_server_is_used_as_it_is(tmp_path):
    """It answers a Range with the whole object, and ignores conditions."""
    with RcloneServer() as server:
        store = S3Store(config_of(server, prefix="some/where", part_bytes=5 * MIB))
        notes = {note.partition(":")[0] for note in store.examine().notes}
        assert {"ranges", "conditional_create", "conditional_replace"} <= notes
        use(store, tmp_path, 11 * MIB)
        store.close()
