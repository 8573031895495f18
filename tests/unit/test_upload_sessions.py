"""Uploads whose files come one by one: what is asked for, what is refused, and what goes on."""

import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from loradash.domain import ids
from loradash.errors import (
    ConflictingState,
    InvalidDataset,
    InvalidRequest,
    LoradashError,
    NotFound,
    StoreUnavailable,
)
from loradash.protocol.requests import parse_request
from loradash.services.datasets import upload_sessions
from loradash.services.datasets.store import DatasetStore
from loradash.services.datasets.upload_checks import UploadLimits
from loradash.services.datasets.upload_sessions import UploadSessions
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore
from loradash.storage.store import Capabilities, SignedRequest

from .dataset_listing import names_of
from .test_stored_datasets import (
    FailingStore,
    files_of,
    names_in,
    numbered,
    picture,
    plain,
    request,
)

URL = "http://127.0.0.1:8000"
HOUR_S = 3600.0


@pytest.fixture(params=["memory", "local"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "objects")


@pytest.fixture
def datasets(store):
    return DatasetStore(store)


@pytest.fixture
def uploads(store, datasets):
    return UploadSessions(store, datasets)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "work" / "dataset"


def announced(files, *, hashed=True):
    return [
        {"filename": name, "size": len(data),
         **({"sha256": hashlib.sha256(data).hexdigest()} if hashed else {})}
        for name, data in files.items()
    ]  # fmt: skip


def announcement(files, folder="cats", *, hashed=True, **fields):
    return parse_request(
        {"type": "create_upload", "dataset_folder": folder,
         "files": announced(files, hashed=hashed), **fields}
    )  # fmt: skip


def send(store, plan, files, *names):
    """Put what is asked for, or only the files of these names, where the plan says."""
    for one in plan.files:
        if one.state == "send" and (not names or one.filename in names):
            store.put(one.key, files[one.filename])


def states(plan):
    return {one.filename: one.state for one in plan.files}


def uploaded(store, uploads, files, **fields):
    """Create, send and complete."""
    plan = uploads.create(announcement(files, **fields))
    send(store, plan, files)
    return uploads.complete(plan.dataset_folder, plan.upload_id)


def everything(store):
    return {key: store.get(key) for key in names_in(store, "")}


# The whole way


@pytest.mark.parametrize("hashed", [True, False])
def test_files_that_were_sent_one_by_one_become_a_dataset(store, datasets, uploads, target, hashed):
    files = {**numbered(1, 2), "1.txt": b"one", "2.txt": b""}
    plan = uploads.create(
        announcement(files, training_name="Cats", trigger_word="sks", hashed=hashed)
    )
    assert set(states(plan).values()) == {"send"}
    assert [one.filename for one in plan.files] == list(files)
    assert names_of(datasets) == ()
    send(store, plan, files)
    assert names_of(datasets) == ()
    result = uploads.complete("cats", plan.upload_id)
    assert (result.total_images, result.total_captions, result.unchanged_files) == (2, 2, 0)
    assert (result.training_name, result.trigger_word, result.dataset_folder) == (
        "Cats", "sks", "cats",
    )  # fmt: skip
    assert files_of(datasets, "cats", target) == files
    manifest = datasets.details.manifest("cats")
    assert manifest.version == plan.upload_id
    assert [(file.width, file.height) for file in manifest.of_type("image")] == [(8, 8)] * 2
    assert all(len(file.sha256) == 64 for file in manifest.files)


def test_the_reply_is_that_of_an_upload_at_once(store, uploads):
    files = {**numbered(1), "1.txt": b"one"}
    by_parts = uploaded(store, uploads, files, training_name="x", trigger_word="sks")
    at_once = DatasetStore(MemoryStore()).upload(
        request(files, training_name="x", trigger_word="sks")
    )
    without = {"uploaded_files": {"__all__": {"path", "uploaded_at"}}}
    assert by_parts.model_dump(exclude=without) == at_once.model_dump(exclude=without)


def test_an_upload_replaces_a_dataset_or_adds_to_it(store, datasets, uploads, target):
    uploaded(store, uploads, numbered(1, 2), trigger_word="sks")
    result = uploaded(store, uploads, {"1.txt": b"one"}, cleanup_existing=False)
    assert set(files_of(datasets, "cats", target)) == {"1.png", "2.png", "1.txt"}
    assert "now has 2 images and 1 caption." in result.detailed_message
    assert result.trigger_word == "sks"
    result = uploaded(store, uploads, numbered(3))
    assert files_of(datasets, "cats", target) == numbered(3)
    assert "replaced the dataset's 3 earlier files" in result.warnings[0]
    left = [key for key in names_in(store) if not key.endswith("/_upload.json")]
    assert len(left) == 2


def test_a_name_gives_the_folder_as_with_an_upload_at_once(uploads):
    assert uploads.create(
        announcement(numbered(1), "", training_name="My cats")
    ).dataset_folder == ("My-cats")
    made_up = uploads.create(announcement(numbered(1), "", training_name="")).dataset_folder
    assert made_up.startswith("training-")


def test_the_plan_has_the_names_that_files_get_in_the_order_of_the_announcement(uploads):
    files = [
        {"filename": "B.PNG", "size": 1},
        {"filename": "sub/a.png", "size": 1},
        {"filename": "e\u0301.txt", "size": 0},
    ]
    sent = parse_request({"type": "create_upload", "dataset_folder": "cats", "files": files})
    plan = uploads.create(sent)
    assert [one.filename for one in plan.files] == ["B.PNG", "sub/a.png", "\u00e9.txt"]
    assert all(one.key == f"dataset/cats/{plan.upload_id}/{one.filename}" for one in plan.files)


# Where files are sent


class SigningStore(MemoryStore):
    """Signs URLs, as far as anybody can tell who doesn't look at the signature."""

    def __init__(self):
        super().__init__(
            Capabilities(conditional_create=True, conditional_replace=True, presign=True)
        )
        self.signed = []

    def put_url(self, key, *, content_type, size_bytes, expires_s):
        self.signed.append((key, content_type, size_bytes, expires_s))
        headers = {"Content-Type": content_type, "Content-Length": str(size_bytes)}
        return SignedRequest("PUT", f"https://store.example/{key}?signed", headers)

    def get_url(self, key, *, filename, expires_s):
        raise AssertionError("nothing is read by URL")

    def post_form(self, key, *, content_type, max_bytes, expires_s):
        raise AssertionError("no forms are asked for")


def test_files_go_straight_to_a_store_that_signs_urls():
    store = SigningStore()
    uploads = UploadSessions(store, DatasetStore(store), url_expiry_s=900)
    files = {"a.png": picture(1), "a.txt": b"one"}
    plan = uploads.create(announcement(files), URL)
    for one in plan.files:
        assert (one.method, one.url) == ("PUT", f"https://store.example/{one.key}?signed")
        assert one.headers["Content-Length"] == str(len(files[one.filename]))
    assert store.signed == [
        (f"dataset/cats/{plan.upload_id}/a.png", "image/png", len(picture(1)), 900),
        (f"dataset/cats/{plan.upload_id}/a.txt", "text/plain", 3, 900),
    ]


def test_a_signed_url_is_not_good_for_longer_than_the_upload(monkeypatch):
    store = SigningStore()
    uploads = UploadSessions(store, DatasetStore(store), url_expiry_s=7 * 24 * 3600)
    made_s = time.time() - 19 * HOUR_S
    monkeypatch.setattr(upload_sessions, "new_upload_id", lambda: ids.new_upload_id(made_s))
    uploads.create(announcement(numbered(1)))
    ((_, _, _, expires_s),) = store.signed
    assert 0 < expires_s <= HOUR_S


def test_files_go_to_our_server_if_the_store_signs_nothing(store, uploads):
    files = {"a b#?.png": picture(1), "кот.txt": b"one"}
    plan = uploads.create(announcement(files), URL)
    base = f"{URL}/uploads/cats/{plan.upload_id}"
    assert [one.url for one in plan.files] == [
        f"{base}/a%20b%23%3F.png", f"{base}/%D0%BA%D0%BE%D1%82.txt",
    ]  # fmt: skip
    assert [one.headers for one in plan.files] == [
        {"Content-Type": "image/png"}, {"Content-Type": "text/plain"},
    ]  # fmt: skip


def test_without_a_server_there_is_no_url_and_a_key_instead(store, uploads):
    (one,) = uploads.create(announcement(numbered(1))).files
    assert one.url is None
    assert one.key.endswith("/1.png")


def test_a_plan_says_until_when_files_are_taken(uploads):
    plan = uploads.create(announcement(numbered(1)))
    left = plan.expires_at - datetime.now(UTC)
    assert timedelta(hours=19.9) < left < timedelta(hours=20)


# Going on


def test_an_interrupted_upload_is_continued_and_only_the_rest_is_asked_for(
    store, datasets, uploads, target
):
    files = {**numbered(1, 2, 3), "1.txt": b"one"}
    plan = uploads.create(announcement(files))
    send(store, plan, files, "1.png", "1.txt")
    again = UploadSessions(store, DatasetStore(store)).create(announcement(files))
    assert again.upload_id == plan.upload_id
    assert states(again) == {
        "1.png": "arrived", "2.png": "send", "3.png": "send", "1.txt": "arrived",
    }  # fmt: skip
    assert again.expires_at == plan.expires_at
    send(store, again, files)
    assert set(states(uploads.create(announcement(files))).values()) == {"arrived"}
    uploads.complete("cats", plan.upload_id)
    assert files_of(datasets, "cats", target) == files


@pytest.mark.parametrize(
    "fields",
    [
        {"folder": "dogs"},
        {"cleanup_existing": False},
        {"training_name": "other"},
        {"trigger_word": "other"},
        {"hashed": False},
        {"files": {**numbered(1, 2), "3.png": picture(3)}},
        {"files": {"1.png": picture(1), "2.png": picture(9)}},
        {"files": {"1.png": picture(1)}},
    ],
)
def test_another_upload_is_not_continued(store, uploads, fields):
    plan = uploads.create(announcement(numbered(1, 2)))
    send(store, plan, numbered(1, 2))
    files = fields.get("files", numbered(1, 2))
    others = {name: value for name, value in fields.items() if name != "files"}
    other = uploads.create(announcement(files, **others))
    assert other.upload_id != plan.upload_id
    assert set(states(other).values()) == {"send"}


def test_the_order_of_the_files_makes_no_other_upload(store, uploads):
    files = numbered(1, 2)
    plan = uploads.create(announcement(files))
    send(store, plan, files, "2.png")
    again = uploads.create(announcement(dict(reversed(files.items()))))
    assert again.upload_id == plan.upload_id
    assert [(one.filename, one.state) for one in again.files] == [
        ("2.png", "arrived"), ("1.png", "send"),
    ]  # fmt: skip


def test_a_file_that_arrived_in_part_is_asked_for_again(store, uploads):
    files = numbered(1, 2)
    plan = uploads.create(announcement(files))
    store.put(plan.files[0].key, files["1.png"][:-1])
    assert states(uploads.create(announcement(files))) == {"1.png": "send", "2.png": "send"}


def test_a_completed_upload_is_not_continued_but_needs_nothing(store, datasets, uploads, target):
    files = numbered(1, 2)
    uploaded(store, uploads, files)
    plan = uploads.create(announcement(files))
    assert states(plan) == {"1.png": "unchanged", "2.png": "unchanged"}
    assert {one.key for one in plan.files} == {
        file.key for file in datasets.details.manifest("cats").files
    }
    result = uploads.complete("cats", plan.upload_id)
    assert (result.unchanged_files, result.total_images) == (2, 2)
    assert files_of(datasets, "cats", target) == files


def test_an_upload_that_was_killed_in_the_middle_sends_only_the_rest(store, tmp_path):
    """200 files, by many threads, until the machine is gone; then the same once more."""
    files = {f"{n:03d}.png": picture(n, size=(9, 9)) for n in range(200)}
    dying = FailingStore(store, "put_file", 120, is_dead=True)
    lost = send_all(dying, files, tmp_path)
    assert len(lost) >= 80
    second = FailingStore(store, "", 0)
    assert send_all(second, files, tmp_path) == []
    sent = [key.rpartition("/")[2] for key in second.named("put_file")]
    assert sorted(sent) == sorted(lost)
    datasets = DatasetStore(store)
    uploads = UploadSessions(store, datasets)
    plan = uploads.create(announcement(files))
    uploads.complete("cats", plan.upload_id)
    assert files_of(datasets, "cats", tmp_path / "copy") == files


def send_all(store, files, folder):
    """Send what is asked for with 16 threads, as the command does; return what didn't arrive."""
    plan = UploadSessions(store, DatasetStore(store)).create(announcement(files))
    lost = []

    def one(entry):
        path = folder / entry.filename
        path.write_bytes(files[entry.filename])
        try:
            store.put_file(entry.key, path)
        except OSError:
            lost.append(entry.filename)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, [entry for entry in plan.files if entry.state == "send"]))
    return lost


# What the dataset holds already


def test_what_the_dataset_holds_is_not_asked_for(store, datasets, uploads, target):
    datasets.upload(request({**numbered(1, 2), "1.txt": b"one"}))
    files = {**numbered(1), "renamed.png": picture(2), "1.txt": b"another"}
    plan = uploads.create(announcement(files))
    assert states(plan) == {"1.png": "unchanged", "renamed.png": "unchanged", "1.txt": "send"}
    send(store, plan, files)
    result = uploads.complete("cats", plan.upload_id)
    assert result.unchanged_files == 2
    assert files_of(datasets, "cats", target) == files
    sizes = {file.name: file.width for file in datasets.details.manifest("cats").files}
    assert sizes == {"1.png": 8, "renamed.png": 8, "1.txt": None}


def test_a_file_without_a_hash_is_always_asked_for(store, datasets, uploads):
    datasets.upload(request(numbered(1)))
    assert states(uploads.create(announcement(numbered(1), hashed=False))) == {"1.png": "send"}


def test_without_conditional_writes_every_file_is_asked_for(store):
    store = plain(store)
    datasets = DatasetStore(store)
    datasets.upload(request(numbered(1)))
    uploads = UploadSessions(store, datasets)
    plan = uploads.create(announcement(numbered(1)))
    assert states(plan) == {"1.png": "send"}
    send(store, plan, numbered(1))
    assert uploads.complete("cats", plan.upload_id).unchanged_files == 0


@pytest.mark.parametrize("when", ["before", "while"])
def test_what_the_dataset_loses_meanwhile_is_asked_for_then(store, datasets, target, when):
    datasets.upload(request(numbered(1, 2)))
    rival = iter([request(numbered(3))])

    class Interrupted(FailingStore):
        def put_if(self, key, data, etag):
            if key.endswith("_training_info.json"):
                for upload in rival:
                    datasets.upload(upload)
            return super().put_if(key, data, etag)

    slow = Interrupted(store, "", 0)
    uploads = UploadSessions(slow, DatasetStore(slow))
    files = numbered(1, 4)
    plan = uploads.create(announcement(files))
    send(store, plan, files)
    if when == "before":
        datasets.upload(next(rival))
    with pytest.raises(InvalidRequest) as caught:
        uploads.complete("cats", plan.upload_id)
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == ["1.png"]
    assert files_of(datasets, "cats", target) == numbered(3)
    again = uploads.create(announcement(files))
    assert again.upload_id == plan.upload_id
    assert states(again) == {"1.png": "send", "4.png": "arrived"}
    send(store, again, files)
    uploads.complete("cats", plan.upload_id)
    assert files_of(datasets, "cats", target) == files


# What isn't completed


DAMAGE = [
    ("1.png", None, "wasn't received; send it"),
    ("1.png", picture(1)[:-1], "were announced; send it again"),
    ("1.png", picture(1) + b"x", "were announced; send it again"),
    ("1.png", bytes([*picture(1)[:-1], 7]), "its sha256 differs"),
    ("1.txt", b"ONE", "its sha256 differs"),
    ("1.txt", b"", "0 bytes arrived, but 3 were announced"),
]


@pytest.mark.parametrize(("name", "data", "words"), DAMAGE)
def test_a_file_that_is_not_what_was_announced_is_named_and_nothing_is_switched(
    store, datasets, uploads, target, name, data, words
):
    datasets.upload(request(numbered(9)))
    files = {**numbered(1, 2), "1.txt": b"one"}
    plan = uploads.create(announcement(files))
    send(store, plan, files)
    key = next(one.key for one in plan.files if one.filename == name)
    store.delete(key) if data is None else store.put(key, data)
    with pytest.raises(InvalidRequest, match="1 of 3 files") as caught:
        uploads.complete("cats", plan.upload_id)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name}: ")
    assert words in problem
    assert files_of(datasets, "cats", target) == numbered(9)
    again = uploads.create(announcement(files))
    assert again.upload_id == plan.upload_id
    assert [name for name, state in states(again).items() if state == "send"] == [name]
    send(store, again, files)
    uploads.complete("cats", plan.upload_id)
    assert files_of(datasets, "cats", target) == files


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("1.png", b"<svg/>", "not a jpg, png, webp, bmp, gif, tiff, avif or heic image"),
        ("1.png", picture(1)[:-30], "truncated"),
        ("1.png", b"", "not a jpg, png, webp, bmp, gif, tiff, avif or heic image"),
        ("2.txt", b"\xff", "not UTF-8"),
        ("2.txt", b"a\0", "NUL"),
        ("2.txt", b"x" * 64_001, "64,000 bytes"),
    ],
)
@pytest.mark.parametrize("hashed", [True, False])
def test_a_file_that_cannot_be_used_is_named_and_asked_for_again(
    store, datasets, uploads, name, data, words, hashed
):
    files = {**numbered(2), name: data}
    plan = uploads.create(announcement(files, hashed=hashed))
    send(store, plan, files)
    with pytest.raises(InvalidDataset, match="1 of 2 files") as caught:
        uploads.complete("cats", plan.upload_id)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name}: ")
    assert words in problem
    assert names_of(datasets) == ()
    assert states(uploads.create(announcement(files, hashed=hashed)))[name] == "send"


def test_all_bad_files_are_named_at_once(store, uploads):
    files = {"a.png": b"x", "c.png": picture(), "c.txt": b"\xff", "d.txt": b"ok", "e.txt": b"e"}
    plan = uploads.create(announcement(files))
    send(store, plan, files, "a.png", "c.png", "c.txt", "d.txt")
    with pytest.raises(InvalidRequest, match="3 of 5 files") as caught:
        uploads.complete("cats", plan.upload_id)
    assert sorted(text[:5] for text in caught.value.problems) == ["a.png", "c.txt", "e.txt"]


def test_a_store_that_does_not_answer_spoils_no_file(store, datasets, target):
    files = numbered(1, 2, 3)
    uploads = UploadSessions(store, datasets)
    plan = uploads.create(announcement(files))
    send(store, plan, files)
    failing = FailingStore(store, "read", 1, error=StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        UploadSessions(failing, DatasetStore(failing)).complete("cats", plan.upload_id)
    assert set(states(uploads.create(announcement(files))).values()) == {"arrived"}
    uploads.complete("cats", plan.upload_id)
    assert files_of(datasets, "cats", target) == files


def test_few_files_are_read_at_a_time_and_no_more_of_them_than_was_announced(store, datasets):
    files = numbered(*range(30))
    uploads = UploadSessions(store, datasets)
    plan = uploads.create(announcement(files))
    send(store, plan, files)
    reading, most, lock = [], [], threading.Lock()

    class Watched(FailingStore):
        def read(self, key, start=0, end=None):
            name = key.rpartition("/")[2]
            assert (start, end) == (0, len(files[name]) + 1)
            with lock:
                reading.append(key)
                most.append(len(reading))
            time.sleep(0.005)
            data = list(self.store.read(key, start, end))
            with lock:
                reading.remove(key)
            return iter(data)

    watched = Watched(store, "", 0)
    UploadSessions(watched, DatasetStore(watched)).complete("cats", plan.upload_id)
    assert len(most) == 30
    assert 1 < max(most) <= 4


def test_an_image_of_another_kind_than_its_name_says_is_told(store, uploads):
    result = uploaded(store, uploads, {"a.png": picture(1, "jpeg"), "a.txt": b"x"})
    assert result.warnings == ("a.png is really a jpeg image",)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (UploadLimits(max_files=2), "3 files; one upload may have 2"),
        (UploadLimits(max_file_bytes=50), "scale it down"),
        (UploadLimits(max_upload_bytes=100), "send it in parts"),
    ],
)
def test_limits_hold_before_anything_is_sent(store, limits, words):
    uploads = UploadSessions(store, DatasetStore(store, limits=limits))
    with pytest.raises(InvalidRequest, match=words):
        uploads.create(announcement(numbered(1, 2, 3)))
    assert names_in(store, "") == []


@pytest.mark.parametrize("size", [2**62, 2**63 - 1])
def test_sizes_that_lie_about_more_than_there_is_are_refused(store, uploads, size):
    files = [{"filename": "a.png", "size": size}, {"filename": "b.png", "size": size}]
    sent = parse_request({"type": "create_upload", "dataset_folder": "cats", "files": files})
    with pytest.raises(InvalidRequest):
        uploads.create(sent)
    assert names_in(store, "") == []


def test_a_damaged_dataset_can_be_replaced_by_an_upload_and_not_added_to(
    store, datasets, uploads, target
):
    store.put("dataset/cats/_training_info.json", b"{")
    with pytest.raises(InvalidDataset, match="damaged"):
        uploads.create(announcement(numbered(1), cleanup_existing=False))
    uploaded(store, uploads, numbered(1))
    assert files_of(datasets, "cats", target) == numbered(1)


# Twice, and at once


def test_completing_twice_is_answered_the_same(store, datasets, uploads):
    datasets.upload(request(numbered(1, 2)))
    plan = uploads.create(announcement(numbered(3)))
    send(store, plan, numbered(3))
    first = uploads.complete("cats", plan.upload_id)
    assert "replaced" in first.warnings[0]
    before = everything(store)
    assert uploads.complete("cats", plan.upload_id) == first
    assert UploadSessions(store, DatasetStore(store)).complete("cats", plan.upload_id) == first
    assert everything(store) == before


def test_completing_again_after_a_later_upload_does_not_bring_the_old_dataset_back(
    store, datasets, uploads, target
):
    plan = uploads.create(announcement(numbered(1)))
    send(store, plan, numbered(1))
    first = uploads.complete("cats", plan.upload_id)
    datasets.upload(request(numbered(2)))
    assert uploads.complete("cats", plan.upload_id) == first
    assert files_of(datasets, "cats", target) == numbered(2)


@pytest.mark.parametrize("changed", [False, True])
def test_a_completion_whose_answer_was_lost_is_not_done_again(store, datasets, target, changed):
    """The dataset was switched, but the program died before it could note that."""
    files = numbered(1, 2)
    dying = FailingStore(store, "put_if", 1, is_dead=True, after=True)
    uploads = UploadSessions(store, datasets)
    plan = uploads.create(announcement(files))
    send(store, plan, files)
    with pytest.raises(OSError, match="failed"):
        UploadSessions(dying, DatasetStore(dying)).complete("cats", plan.upload_id)
    assert files_of(datasets, "cats", target) == files
    wanted = files
    if changed:  # which deletes an object of the upload, so that it couldn't be completed again
        later = {"1.png": picture(9), "3.png": picture(3)}
        datasets.upload(request(later, cleanup_existing=False))
        wanted = {**files, **later}
    result = uploads.complete("cats", plan.upload_id)
    assert result.total_images == 2
    assert files_of(datasets, "cats", target) == wanted
    assert uploads.complete("cats", plan.upload_id) == result


def test_a_completion_that_was_killed_can_be_repeated(store, datasets, uploads, target):
    """It had said that it switches the dataset, and died before it did."""
    files = numbered(1, 2)
    dying = FailingStore(store, "put_if", 1, is_dead=True)
    plan = uploads.create(announcement(files))
    send(store, plan, files)
    with pytest.raises(OSError, match="failed"):
        UploadSessions(dying, DatasetStore(dying)).complete("cats", plan.upload_id)
    assert names_of(datasets) == ()
    with pytest.raises(ConflictingState):
        uploads.abort("cats", plan.upload_id)
    assert uploads.create(announcement(files)).upload_id == plan.upload_id
    uploads.complete("cats", plan.upload_id)
    assert files_of(datasets, "cats", target) == files


@pytest.mark.parametrize("is_plain", [False, True])
def test_all_who_complete_an_upload_at_once_get_the_same_reply(store, is_plain, target):
    store = plain(store) if is_plain else store
    datasets = DatasetStore(store)
    datasets.upload(request(numbered(7, 8)))
    uploads = UploadSessions(store, datasets)
    files = {**numbered(*range(6)), "1.txt": b"one"}
    plan = uploads.create(announcement(files))
    send(store, plan, files)
    start = threading.Barrier(5)

    def complete(_number):
        start.wait()
        return uploads.complete("cats", plan.upload_id)

    with ThreadPoolExecutor(5) as pool:
        replies = list(pool.map(complete, range(5)))
    if not is_plain:
        assert all(reply == replies[0] for reply in replies)
    assert all(reply.total_images == 6 for reply in replies)
    assert files_of(datasets, "cats", target) == files
    assert uploads.complete("cats", plan.upload_id).total_images == 6


def test_two_uploads_that_race_on_one_dataset_leave_one_of_them(store, tmp_path):
    datasets = DatasetStore(store)
    uploads = UploadSessions(store, datasets)
    start = threading.Barrier(2)

    def one(number):
        files = {**numbered(1, 2), f"{number}.txt": b"x"}
        plan = uploads.create(announcement(files))
        send(store, plan, files)
        start.wait()
        try:
            uploads.complete("cats", plan.upload_id)
        except InvalidRequest:  # it had counted on files that the other one has dropped
            return None
        return files

    for n in range(8):
        with ThreadPoolExecutor(2) as pool:
            done = [files for files in pool.map(one, (10, 20)) if files]
        assert files_of(datasets, "cats", tmp_path / f"copy-{n}") in done


def test_two_additions_that_race_lose_nothing(store, datasets, uploads, target):
    start = threading.Barrier(4)

    def one(number):
        files = numbered(number)
        plan = uploads.create(announcement(files, cleanup_existing=False))
        send(store, plan, files)
        start.wait()
        uploads.complete("cats", plan.upload_id)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(4)))
    assert files_of(datasets, "cats", target) == numbered(0, 1, 2, 3)


def test_the_same_upload_that_is_created_twice_at_once_can_be_completed(store, uploads, target):
    files = numbered(1)
    with ThreadPoolExecutor(4) as pool:
        plans = list(pool.map(lambda _: uploads.create(announcement(files)), range(4)))
    for plan in plans:
        send(store, plan, files)
    results = [uploads.complete("cats", plan.upload_id) for plan in plans]
    assert {result.total_images for result in results} == {1}
    assert files_of(DatasetStore(store), "cats", target) == files


# The end of an upload


def test_aborting_deletes_what_has_arrived_and_nothing_else(store, datasets, uploads):
    datasets.upload(request(numbered(1)))
    before = everything(store)
    files = numbered(1, 2, 3)
    plan = uploads.create(announcement(files))
    send(store, plan, files, "2.png")
    assert uploads.abort("cats", plan.upload_id) == 1
    assert everything(store) == before
    for call in (uploads.abort, uploads.complete):
        with pytest.raises(NotFound, match="no upload"):
            call("cats", plan.upload_id)
    assert uploads.create(announcement(files)).upload_id != plan.upload_id


def test_an_abort_that_was_interrupted_can_be_repeated_and_nothing_else(store, uploads):
    files = numbered(1, 2)
    plan = uploads.create(announcement(files))
    send(store, plan, files)
    failing = FailingStore(store, "delete_many", 0)
    with pytest.raises(OSError, match="failed"):
        UploadSessions(failing, DatasetStore(failing)).abort("cats", plan.upload_id)
    with pytest.raises(ConflictingState, match="was aborted"):
        uploads.complete("cats", plan.upload_id)
    assert uploads.create(announcement(files)).upload_id != plan.upload_id
    assert uploads.abort("cats", plan.upload_id) == 2


def test_a_completed_upload_can_not_be_aborted(store, datasets, uploads, target):
    plan = uploads.create(announcement(numbered(1)))
    send(store, plan, numbered(1))
    uploads.complete("cats", plan.upload_id)
    with pytest.raises(ConflictingState, match="was completed"):
        uploads.abort("cats", plan.upload_id)
    assert files_of(datasets, "cats", target) == numbered(1)


def test_an_abort_comes_too_late_or_in_time_and_never_in_between(store, tmp_path):
    datasets = DatasetStore(store)
    uploads = UploadSessions(store, datasets)
    start = threading.Barrier(2)

    def attempt(call, plan):
        start.wait()
        try:
            call("cats", plan.upload_id)
        except LoradashError:
            return False
        return True

    for n in range(12):
        files = numbered(n)
        plan = uploads.create(announcement(files))
        send(store, plan, files)
        with ThreadPoolExecutor(2) as pool:
            completed = pool.submit(attempt, uploads.complete, plan)
            aborted = pool.submit(attempt, uploads.abort, plan)
        if completed.result():
            assert not aborted.result()
            assert files_of(datasets, "cats", tmp_path / f"copy-{n}") == files
        else:
            assert "cats" not in names_of(datasets) or not any(
                plan.upload_id in file.key for file in datasets.details.manifest("cats").files
            )


@pytest.mark.parametrize("hours", [20.01, 23.5])
def test_an_upload_that_is_too_old_is_refused(store, uploads, monkeypatch, hours):
    made_s = time.time() - hours * HOUR_S
    monkeypatch.setattr(upload_sessions, "new_upload_id", lambda: ids.new_upload_id(made_s))
    files = numbered(1)
    plan = uploads.create(announcement(files))
    monkeypatch.undo()
    send(store, plan, files)
    with pytest.raises(ConflictingState, match="has expired"):
        uploads.complete("cats", plan.upload_id)
    with pytest.raises(ConflictingState, match="has expired"):
        uploads.expected("cats", plan.upload_id, "1.png")
    fresh = uploads.create(announcement(files))
    assert fresh.upload_id != plan.upload_id
    assert states(fresh) == {"1.png": "send"}
    assert uploads.abort("cats", plan.upload_id) == 1


def test_a_young_enough_upload_is_continued(store, uploads, monkeypatch):
    made_s = time.time() - 19.9 * HOUR_S
    monkeypatch.setattr(upload_sessions, "new_upload_id", lambda: ids.new_upload_id(made_s))
    plan = uploads.create(announcement(numbered(1)))
    monkeypatch.undo()
    send(store, plan, numbered(1))
    assert states(uploads.create(announcement(numbered(1)))) == {"1.png": "arrived"}
    uploads.complete("cats", plan.upload_id)


def test_abandoned_uploads_are_deleted_by_a_later_one(store, datasets, uploads, monkeypatch):
    made_s = time.time() - 25 * HOUR_S
    monkeypatch.setattr(upload_sessions, "new_upload_id", lambda: ids.new_upload_id(made_s))
    plan = uploads.create(announcement(numbered(1)))
    monkeypatch.undo()
    send(store, plan, numbered(1))
    young = uploads.create(announcement(numbered(2)))
    uploaded(store, uploads, numbered(3))
    left = names_in(store)
    assert not any(plan.upload_id in key for key in left)
    assert any(young.upload_id in key for key in left)


# What is in the store, whoever put it there


@pytest.mark.parametrize("change", ["not json", "another id", "another folder", "a bad name"])
def test_a_damaged_session_is_told(store, uploads, change):
    plan = uploads.create(announcement(numbered(1)))
    key = f"dataset/cats/{plan.upload_id}/_upload.json"
    document = json.loads(store.get(key))
    if change == "another id":
        document["upload_id"] = ids.new_upload_id()
    elif change == "another folder":
        document["folder"] = "dogs"
    elif change == "a bad name":
        document["files"][0]["filename"] = ".."
    store.put(key, b"{" if change == "not json" else json.dumps(document).encode())
    for call in (uploads.complete, uploads.abort):
        with pytest.raises(InvalidDataset, match="damaged"):
            call("cats", plan.upload_id)
    assert uploads.create(announcement(numbered(1))).upload_id != plan.upload_id


def test_no_file_of_an_upload_can_take_the_place_of_its_session(datasets):
    for name in ("_upload.json", "_UPLOAD.json", "/x/_upload.json"):
        with pytest.raises(InvalidRequest, match="uploads need themselves"):
            request({"a.png": picture(), name: b"{}"})
        with pytest.raises(InvalidRequest, match="uploads need themselves"):
            announcement({"a.png": picture(), name: b"{}"})


def test_an_upload_at_once_is_no_session(datasets, uploads):
    datasets.upload(request(numbered(1)))
    upload_id = datasets.details.manifest("cats").version
    for call in (uploads.complete, uploads.abort):
        with pytest.raises(NotFound, match="no upload"):
            call("cats", upload_id)
    assert datasets.details.for_training("cats").total_images == 1
