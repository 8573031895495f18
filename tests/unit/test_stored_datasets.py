import base64
import io
import json
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from loradash.datasets.captions import MAX_CAPTION_BYTES
from loradash.datasets.folder import scan
from loradash.domain.addresses import Address
from loradash.domain.dataset_manifest import DatasetFile, DatasetManifest
from loradash.domain.ids import new_upload_id
from loradash.domain.sizes import size_text
from loradash.errors import (
    ConflictingState,
    DiskFull,
    Interrupted,
    InvalidDataset,
    InvalidKey,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    TransferFailed,
)
from loradash.protocol.requests import parse_request
from loradash.services.datasets import manifests as dataset_manifests
from loradash.services.datasets import store as stored_datasets
from loradash.services.datasets import upload_checks as dataset_uploads
from loradash.services.datasets.scratch import Scratch
from loradash.services.datasets.store import DatasetStore
from loradash.services.datasets.upload_checks import SourceFile, UploadLimits
from loradash.settings import Settings
from loradash.storage import keys
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore
from loradash.storage.store import Capabilities

from .dataset_listing import names_of


@pytest.fixture(params=["memory", "local"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "objects")


@pytest.fixture
def datasets(store):
    return DatasetStore(store)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "work" / "dataset"


def picture(colour=0, kind="png", size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (colour, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def encoded(data):
    return base64.b64encode(data).decode()


def request(files, folder="cats", **fields):
    """An upload of files: names with their bytes, or with a mapping of what is sent."""
    sent = [
        {"filename": name, **(data if isinstance(data, dict) else {"content": encoded(data)})}
        for name, data in files.items()
    ]
    return parse_request(
        {"type": "upload_training_data", "dataset_folder": folder, "files": sent, **fields}
    )


def numbered(*numbers):
    return {f"{n}.png": picture(n) for n in numbers}


def names_in(store, prefix="dataset"):
    return [info.key for info in store.list(prefix)]


def files_of(datasets, folder, target):
    """What a training would see of a dataset."""
    datasets.materialize(folder, target)
    return {
        path.relative_to(target).as_posix(): path.read_bytes()
        for path in target.rglob("*")
        if path.is_file()
    }


class FailingStore:
    """Passes everything on until ``allowed`` calls of ``method`` were made; then that fails.

    If ``is_dead``, nothing works any more from then on, as if the machine were gone. ``after``
    makes the failing call take effect, as when only its answer is lost. ``any put`` is every way of
    writing. Calls are counted under a lock, since files are moved by several threads.
    """

    def __init__(self, store, method, allowed, *, is_dead=False, after=False, error=OSError):
        self.store, self.method, self.allowed = store, method, allowed
        self.is_dead, self.after, self.error = is_dead, after, error
        self.has_failed = False
        self.lock = threading.Lock()
        self.calls = []

    @property
    def capabilities(self):
        return self.store.capabilities

    def _call(self, name, *arguments):
        self.calls.append((name, arguments[0]))
        if self.has_failed and self.is_dead:
            raise self.error("the network is gone")
        if name == self.method or (self.method == "any put" and name.startswith("put")):
            with self.lock:
                self.allowed -= 1
                fails = self.allowed < 0
            if fails:
                self.has_failed = True
                if self.after:
                    getattr(self.store, name)(*arguments)
                raise self.error(f"{name} failed")
        return getattr(self.store, name)(*arguments)

    def put(self, key, data):
        return self._call("put", key, data)

    def put_if(self, key, data, etag):
        return self._call("put_if", key, data, etag)

    def put_file(self, key, path, on_bytes=None):
        return self._call("put_file", key, path, on_bytes)

    def get(self, key):
        return self._call("get", key)

    def read(self, key, start=0, end=None):
        return self._call("read", key, start, end)

    def get_file(self, key, path, on_bytes=None):
        return self._call("get_file", key, path, on_bytes)

    def head(self, key):
        return self._call("head", key)

    def list(self, prefix=""):
        return iter(list(self._call("list", prefix)))

    def folders(self, prefix):
        return self._call("folders", prefix)

    def delete(self, key):
        return self._call("delete", key)

    def delete_many(self, keys):
        return self._call("delete_many", keys)

    def named(self, name):
        """The first argument of each call of a method."""
        return [argument for method, argument in self.calls if method == name]


def plain(store):
    """A store like the given one, but without conditional writes."""
    if isinstance(store, MemoryStore):
        return MemoryStore(Capabilities())
    return LocalStore(store._root, shared=True)


# Uploading


def test_an_upload_becomes_a_dataset_that_can_be_trained_on(store, datasets, target):
    files = {"a.png": picture(1), "a.txt": "sks кот".encode(), "b.jpg": picture(2, "jpeg")}
    datasets.upload(request(files, trigger_word="sks"))
    assert files_of(datasets, "cats", target) == files
    report = scan(target)
    assert [image.relative_path for image in report.images] == ["a.png", "b.jpg"]
    assert report.images[0].caption == "sks кот"


def test_the_reply_tells_all_that_clients_read(store):
    a, caption, notes = picture(1), b"x", b"{}"
    result = DatasetStore(store, Address("ours", "lora")).upload(
        request(
            {"a.png": a, "a.txt": caption, "notes.json": notes},
            training_name="My Cats",
            trigger_word="sks",
        )
    )
    total = len(a) + 3
    assert (result.total_images, result.total_captions) == (1, 1)
    assert result.file_types_summary.model_dump() == {"images": 1, "captions": 1, "other": 1}
    assert (result.total_size, result.total_size_formatted) == (total, size_text(total))
    assert result.training_folder == result.dataset_folder == "cats"
    assert result.s3_path == "s3://ours/lora/dataset/cats"
    assert (result.training_name, result.trigger_word) == ("My Cats", "sks")
    assert result.warnings == ("1 file that no training uses: notes.json",)
    assert result.statistics.model_dump() == {
        "total_files_attempted": 3, "succeeded": 3, "failed": 0, "success_rate": 100.0,
        "average_file_size": total // 3,
    }  # fmt: skip
    first = result.uploaded_files[0]
    assert first.model_dump(exclude={"uploaded_at", "path"}) == {
        "filename": "a.png", "size": len(a), "size_formatted": size_text(len(a)),
        "content_type": "image/png", "file_type": "image", "folder": "cats",
    }  # fmt: skip
    assert abs(first.uploaded_at - datetime.now(UTC)) < timedelta(minutes=1)
    key = first.path.removeprefix("s3://ours/lora/")
    assert store.get(key) == a
    assert [file.file_type for file in result.uploaded_files] == ["image", "caption", "other"]
    assert [file.content_type for file in result.uploaded_files][1:] == [
        "text/plain", "application/json",
    ]  # fmt: skip
    assert "1 image and 1 caption as" in result.message
    assert result.detailed_message.endswith("folder_path: cats")
    json.loads(result.model_dump_json())


def test_the_manifest_is_what_makes_the_files_a_dataset(store, datasets):
    result = datasets.upload(request({"a.png": picture(), "a.txt": b"x"}, trigger_word="sks"))
    manifest = json.loads(store.get("dataset/cats/_training_info.json"))
    assert (manifest["total_images"], manifest["total_captions"]) == (1, 1)
    assert (manifest["training_name"], manifest["trigger_word"]) == ("cats", "sks")
    assert datetime.fromisoformat(manifest["upload_date"]).tzinfo
    assert [file["name"] for file in manifest["files"]] == ["a.png", "a.txt"]
    image = manifest["files"][0]
    assert image["key"] == f"dataset/cats/{manifest['version']}/a.png"
    assert image["key"] == result.uploaded_files[0].path
    assert (image["width"], image["height"]) == (8, 8)
    assert (manifest["files"][1]["width"], manifest["files"][1]["height"]) == (None, None)
    assert set(image) == {
        "name", "key", "size_bytes", "sha256", "file_type", "width", "height",
    }  # fmt: skip
    assert len(names_in(store)) == 3


def test_an_upload_without_any_name_gets_a_folder_of_its_own(datasets):
    sent = request({"a.png": picture()}, folder=None, training_name="")
    result = datasets.upload(sent)
    assert re.fullmatch(r"training-\d{13}", result.dataset_folder)
    assert result.training_name == result.dataset_folder
    assert names_of(datasets) == (result.dataset_folder,)


def test_a_new_upload_replaces_the_dataset_and_leaves_nothing_of_it(store, datasets, target):
    datasets.upload(request({**numbered(1, 2), "1.txt": b"x"}, trigger_word="old"))
    result = datasets.upload(request({**numbered(3), "3.txt": b"x"}))
    assert set(files_of(datasets, "cats", target)) == {"3.png", "3.txt"}
    assert len(names_in(store)) == 3
    (warning,) = result.warnings
    assert "replaced the dataset's 3 earlier files" in warning
    assert "cleanup_existing: false" in warning
    assert datasets.details.for_training("cats").trigger_word == ""


def test_an_upload_may_add_to_a_dataset(store, datasets, target):
    datasets.upload(request(numbered(1, 2), trigger_word="sks", training_name="Cats"))
    result = datasets.upload(request({"1.txt": b"one"}, cleanup_existing=False))
    assert set(files_of(datasets, "cats", target)) == {"1.png", "2.png", "1.txt"}
    assert (result.total_images, result.total_captions) == (0, 1)
    assert "now has 2 images and 1 caption." in result.detailed_message
    assert (result.training_name, result.trigger_word) == ("Cats", "sks")
    assert result.warnings == ("1 image without a caption: 2.png",)
    again = request(numbered(3), cleanup_existing=False, trigger_word="new", training_name="New")
    result = datasets.upload(again)
    assert (result.training_name, result.trigger_word) == ("New", "new")
    assert len(names_in(store)) == 5


def test_an_added_file_replaces_the_one_of_its_name(store, datasets, target):
    datasets.upload(request({**numbered(1), "2.png": picture(2)}))
    added = {"2.png": picture(9)}
    result = datasets.upload(request(added, cleanup_existing=False))
    assert files_of(datasets, "cats", target) == {"1.png": picture(1), **added}
    assert "replaced 1 earlier file of the same name: 2.png" in result.warnings
    assert len(names_in(store)) == 3


def test_an_upload_may_add_to_nothing(datasets):
    datasets.upload(request(numbered(1), cleanup_existing=False))
    assert datasets.details.for_training("cats").total_images == 1


def test_datasets_with_similar_names_are_apart(store, datasets, target):
    datasets.upload(request(numbered(1), folder="cat"))
    datasets.upload(request(numbered(2), folder="cats"))
    datasets.upload(request(numbered(3), folder="cat"))
    assert set(files_of(datasets, "cats", target)) == {"2.png"}
    assert names_of(datasets) == ("cat", "cats")


def test_warnings_tell_what_is_incomplete_or_doubled(datasets):
    files = {**numbered(1, 2), "3.png": picture(1), "1.txt": b"x", "lost.txt": b"x"}
    result = datasets.upload(request(files))
    assert result.warnings == (
        "2 images without a caption: 2.png, 3.png",
        "1 caption without an image: lost.txt",
        "identical images: 1.png, 3.png",
    )


def test_warnings_stay_short_in_a_large_dataset(datasets):
    files = {f"{n}-{m}.png": picture(n) for n in range(13) for m in range(2)}
    warnings = datasets.upload(request(files)).warnings
    assert warnings[0].endswith("and 16 more")
    assert len(warnings) == 12
    assert warnings[-1] == "3 more groups of identical images"


@pytest.mark.parametrize(
    ("name", "kind", "warning"),
    [
        ("a.png", "png", None),
        ("a.jpg", "jpeg", None),
        ("a.jpeg", "jpeg", None),
        ("a.webp", "webp", None),
        ("a.bmp", "bmp", None),
        ("a.png", "jpeg", "a.png is really a jpeg image"),
        ("a.jpg", "webp", "a.jpg is really a webp image"),
        ("a.bmp", "png", "a.bmp is really a png image"),
    ],
)
def test_an_image_that_is_of_another_kind_than_its_name_says_is_told(datasets, name, kind, warning):
    result = datasets.upload(request({name: picture(1, kind), "a.txt": b"x"}))
    assert result.warnings == (() if warning is None else (warning,))


# What isn't stored


def sent(data, **fields):
    return {"content": data if isinstance(data, str) else encoded(data), **fields}


PNG = encoded(picture())
LONG = next(text for n in range(3, 9) if (text := encoded(picture(1, "bmp", (9, n)))).endswith("="))

BAD_FILES = [
    ("a.png", sent("!!!!"), "isn't base64"),
    ("a.png", sent(PNG.replace("=", "") + "A"), "isn't base64"),
    ("a.png", sent(LONG.rstrip("=")), "isn't base64"),
    ("a.png", sent(LONG + "="), "isn't base64"),
    ("a.png", sent(LONG + LONG), "isn't base64"),
    ("a.png", sent(f"{PNG[:9]}\0{PNG[9:]}"), "isn't base64"),
    ("a.png", sent(f"{PNG[:9]}\x0b{PNG[9:]}"), "isn't base64"),
    ("a.png", sent(f"{PNG[:9]}-_{PNG[11:]}"), "isn't base64"),
    ("a.png", sent(f"data:image/png;base64,{PNG}"), "data: URL"),
    ("a.png", sent(f" \nDATA:,{PNG}"), "data: URL"),
    ("a.png", sent(picture(), size=1), "but its size says 1;"),
    ("a.txt", sent(b"abc", size=4), "3 bytes arrived"),
    ("a.png", sent(b""), "not a jpg, png, webp, bmp, gif, tiff, avif or heic image"),
    ("a.png", sent(b"<svg/>"), "not a jpg, png, webp, bmp, gif, tiff, avif or heic image"),
    ("a.png", sent(picture()[:-30]), "a.png: "),
    ("a.png", sent(picture(1, "tga")), "not a jpg, png, webp, bmp, gif, tiff, avif or heic image"),
    ("a.png", sent(picture(1, "ico")), "not a jpg, png, webp, bmp, gif, tiff, avif or heic image"),
    ("ok.txt", sent(b"\xff\xfea"), "not UTF-16"),
    ("ok.txt", sent("кот".encode("cp1251")), "not UTF-8"),
    ("ok.txt", sent(b"a\0b\0"), "NUL"),
    ("ok.txt", sent(b"x" * (MAX_CAPTION_BYTES + 1)), "longer than the 64,000 bytes"),
]


@pytest.mark.parametrize(("name", "file", "words"), BAD_FILES)
def test_a_bad_file_is_named_and_nothing_is_stored(store, datasets, name, file, words):
    others = {"ok.png": picture(), "ok.txt": b"x"}
    with pytest.raises((InvalidRequest, InvalidDataset)) as caught:
        datasets.upload(request({**others, name: file}))
    (problem,) = caught.value.problems
    assert problem.startswith(f"{name}: ")
    assert words in problem
    assert len(problem) < 300
    assert caught.value.remedy
    assert names_in(store, "") == []


def test_all_bad_files_are_named_at_once(store, datasets):
    files = {"a.png": b"x", "d.png": picture(), "c.txt": sent("?"), "d.txt": b"\xff"}
    with pytest.raises(InvalidRequest, match="3 of 4 files") as caught:
        datasets.upload(request(files))
    assert sorted(problem[:5] for problem in caught.value.problems) == ["a.png", "c.txt", "d.txt"]
    with pytest.raises(InvalidDataset, match="1 of 2 files"):
        datasets.upload(request({"a.png": b"x", "b.png": picture()}))
    assert names_in(store, "") == []


def test_a_bad_upload_leaves_the_dataset_as_it_was(store, datasets):
    datasets.upload(request(numbered(1)))
    before = {key: store.get(key) for key in names_in(store)}
    with pytest.raises(InvalidDataset):
        datasets.upload(request({"a.png": b"x"}))
    assert {key: store.get(key) for key in names_in(store)} == before


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(PNG[n : n + 20] for n in range(0, len(PNG), 20)) + "\n",
        "\r\n".join(PNG[n : n + 20] for n in range(0, len(PNG), 20)),
        f"  {PNG}\t",
    ],
)
def test_encoders_may_wrap_their_lines(datasets, target, content):
    datasets.upload(request({"a.png": sent(content, size=len(picture()))}))
    assert files_of(datasets, "cats", target) == {"a.png": picture()}


def test_a_size_of_zero_or_none_says_nothing(datasets):
    datasets.upload(request({"a.png": sent(PNG, size=0), "b.png": sent(PNG, size=None)}))


@pytest.mark.parametrize("text", [b"", b"\xef\xbb\xbfcat", b"x" * MAX_CAPTION_BYTES])
def test_captions_may_be_empty_long_or_begin_with_a_mark(datasets, text):
    datasets.upload(request({"a.png": picture(), "a.txt": text}))


def test_the_size_of_a_file_is_bounded(store):
    data = picture(1, "bmp", (20, 20))
    for limit, folder in ((len(data), "cats"), (len(data) - 1, "dogs")):
        datasets = DatasetStore(store, limits=UploadLimits(max_file_bytes=limit))
        if folder == "cats":
            datasets.upload(request({"a.bmp": data}))
            continue
        with pytest.raises(InvalidRequest, match="scale it down"):
            datasets.upload(request({"a.bmp": data}, folder="dogs"))
    assert [one.name for one in datasets.details.all()] == ["cats"]


def test_the_size_of_an_upload_is_bounded(store):
    files = numbered(1, 2, 3)
    total = sum(map(len, files.values()))
    DatasetStore(store, limits=UploadLimits(max_upload_bytes=total)).upload(request(files))
    datasets = DatasetStore(store, limits=UploadLimits(max_upload_bytes=total - 1))
    with pytest.raises(InvalidRequest, match="send it in parts") as caught:
        datasets.upload(request(files, folder="dogs"))
    assert caught.value.problems[0].startswith("3.png: ")
    assert [one.name for one in datasets.details.all()] == ["cats"]


def test_the_number_of_files_is_bounded(store):
    datasets = DatasetStore(store, limits=UploadLimits(max_files=2))
    datasets.upload(request(numbered(1, 2)))
    with pytest.raises(InvalidRequest, match="3 files; one upload may have 2"):
        datasets.upload(request(numbered(1, 2, 3), folder="dogs"))
    assert [one.name for one in datasets.details.all()] == ["cats"]


def test_the_documented_limits():
    assert UploadLimits() == UploadLimits(100 * 2**20, 500 * 2**20, 1000)
    settings = Settings(_env_file=None)
    assert (settings.max_file_mb, settings.max_upload_mb, settings.max_upload_files) == (
        100, 500, 1000,
    )  # fmt: skip


def test_only_one_file_is_decoded_at_a_time(datasets, monkeypatch):
    alive = []
    original = dataset_uploads.decoded

    class Watched(bytes):
        def __new__(cls, data):
            alive.append(1)
            return super().__new__(cls, data)

        def __del__(self):
            alive.pop()

    most = []

    def watched(file, max_bytes):
        data = Watched(original(file, max_bytes))
        most.append(len(alive))
        return data

    monkeypatch.setattr(dataset_uploads, "decoded", watched)
    files = {f"{n}.txt": b"x" for n in range(8)}
    datasets.upload(request({"a.png": picture(), **files}))
    assert len(most) == 9
    assert max(most) <= 2  # the last one lives until the next has been decoded


def test_few_files_are_read_at_a_time(datasets, tmp_path, monkeypatch):
    reading, most, lock = [], [], threading.Lock()
    original = dataset_uploads.check_file

    def watched(name, data):
        with lock:
            reading.append(name)
            most.append(len(reading))
        time.sleep(0.005)
        try:
            return original(name, data)
        finally:
            with lock:
                reading.remove(name)

    monkeypatch.setattr(dataset_uploads, "check_file", watched)
    datasets.upload(request(numbered(*range(40))))
    assert 1 < max(most) <= 4


def test_nothing_of_a_request_stays_on_the_disk(store, tmp_path):
    root = tmp_path / "scratch"
    datasets = DatasetStore(store, scratch=Scratch(root))
    datasets.upload(request(numbered(1, 2)))
    with pytest.raises(InvalidDataset):
        datasets.upload(request({"a.png": b"x"}))
    assert list(root.iterdir()) == []


def test_what_a_killed_program_left_on_the_disk_is_removed_later(tmp_path):
    root = tmp_path / "scratch"
    scratch = Scratch(root)
    now = time.time()
    with scratch.folder() as held:
        (root / "loradash-old").mkdir()
        (root / "loradash-old" / "0").write_bytes(b"x")
        os.utime(root / "loradash-old", (now - 100, now - 100))
        (root / "mine").mkdir()
        os.utime(root / "mine", (now - 100, now - 100))
        assert scratch.remove_left_over(now - 50) == 1
        assert sorted(path.name for path in root.iterdir()) == sorted([held.name, "mine"])
    assert Scratch(tmp_path / "none").remove_left_over(now) == 0


# Files of this machine


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, data in {"A.PNG": picture(1), "A.txt": b"one", "b.png": picture(2)}.items():
        (folder / name).write_bytes(data)
    return folder


def sources_in(folder):
    return [SourceFile(path.name, path) for path in sorted(folder.iterdir())]


def test_local_files_become_a_dataset(store, folder, target):
    datasets = DatasetStore(store)
    result = datasets.store_paths(
        "cats", sources_in(folder), replace=True, training_name="Cats", trigger_word="sks"
    )
    assert set(files_of(datasets, "cats", target)) == {"A.PNG", "A.txt", "b.png"}
    assert (result.total_images, result.training_name, result.trigger_word) == (2, "Cats", "sks")
    assert result.unchanged_files == 0
    (folder / "c.png").write_bytes(picture(3))
    more = [SourceFile("c.png", folder / "c.png")]
    assert datasets.store_paths("cats", more, replace=False).total_images == 1
    assert len(files_of(datasets, "cats", target)) == 4


def test_progress_counts_the_files_and_bytes_that_are_sent(store, folder):
    seen = []
    DatasetStore(store).store_paths(
        "cats", sources_in(folder), replace=True, on_progress=seen.append
    )
    last = seen[-1]
    total = sum(path.stat().st_size for path in folder.iterdir())
    assert (last.done_files, last.total_files) == (3, 3)
    assert (last.done_bytes, last.total_bytes) == (total, total)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.png", b"x", "not a jpg"),
        ("good.txt", b"\xff", "not UTF-8"),
        ("a.txt", None, "there is no such file"),
        ("..", picture(), "has no name"),
        ("a\n.png", picture(), "control character"),
        ("_upload.json", b"{}", "uploads need themselves"),
        ("_UPLOAD.JSON", b"{}", "uploads need themselves"),
        ("x" * 300 + ".png", picture(), "200 bytes"),
    ],
)
def test_a_bad_local_file_is_named_and_nothing_is_stored(store, tmp_path, name, data, words):
    good, bad = tmp_path / "good.png", tmp_path / "bad"
    good.write_bytes(picture())
    if data is not None:
        bad.write_bytes(data)
    sources = [SourceFile("good.png", good), SourceFile(name, bad)]
    with pytest.raises((InvalidRequest, InvalidDataset)) as caught:
        DatasetStore(store).store_paths("cats", sources, replace=True)
    (problem,) = caught.value.problems
    assert words in problem
    assert len(problem) < 400
    assert names_in(store, "") == []


@pytest.mark.parametrize(
    ("names", "replace", "words"),
    [
        (["a.png", "./a.png"], False, "is there twice"),
        (["a.txt"], True, "no image"),
        ([], True, "no files"),
    ],
)
def test_local_files_that_make_no_upload_are_refused(store, folder, names, replace, words):
    sources = [SourceFile(name, folder / "b.png") for name in names]
    with pytest.raises(InvalidRequest, match=words):
        DatasetStore(store).store_paths("cats", sources, replace=replace)
    assert names_in(store, "") == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "../a"])
def test_local_files_can_not_be_stored_elsewhere(store, folder, name):
    with pytest.raises(InvalidKey):
        DatasetStore(store).store_paths(name, sources_in(folder), replace=True)
    assert names_in(store, "") == []


def test_limits_hold_for_local_files(store, folder):
    sources = sources_in(folder)
    size = (folder / "b.png").stat().st_size
    for limits, words in [
        (UploadLimits(max_files=2), "3 files; one upload may have 2"),
        (UploadLimits(max_file_bytes=size - 1), "scale it down"),
        (UploadLimits(max_upload_bytes=size), "send it in parts"),
    ]:
        with pytest.raises(InvalidRequest, match=words):
            DatasetStore(store, limits=limits).store_paths("cats", sources, replace=True)
    assert names_in(store, "") == []


def test_a_local_file_that_is_written_meanwhile_is_not_stored_as_something_else(store, folder):
    class Busy(FailingStore):
        def put_file(self, key, path, on_bytes=None):
            if path.name == "b.png":
                path.write_bytes(picture(77) + b"more")
            return self.store.put_file(key, path, on_bytes)

    with pytest.raises(InvalidDataset, match=r"b\.png changed while being read"):
        DatasetStore(Busy(store, "", 0)).store_paths("cats", sources_in(folder), replace=True)
    assert names_in(store, "") == []


# What the dataset holds already


def keys_by_name(datasets, folder="cats"):
    return {file.name: file.key for file in datasets.details.manifest(folder).files}


def puts_of(store, work):
    """Do something with a dataset store; return the names of the files that were sent by it."""
    watched = FailingStore(store, "", 0)
    result = work(DatasetStore(watched))
    return result, sorted(key.rpartition("/")[2] for key in watched.named("put_file"))


def test_an_unchanged_file_is_not_sent_again(store, datasets, target):
    files = {**numbered(1, 2), "1.txt": b"one"}
    datasets.upload(request(files))
    before = keys_by_name(datasets)
    new = {**files, "1.txt": b"another", **numbered(3)}
    result, sent = puts_of(store, lambda other: other.upload(request(new)))
    assert sent == ["1.txt", "3.png"]
    assert (result.unchanged_files, result.total_images) == (2, 3)
    assert len(result.uploaded_files) == 4
    after = keys_by_name(datasets)
    assert {name: key for name, key in after.items() if before.get(name) == key} == {
        name: before[name] for name in ("1.png", "2.png")
    }
    assert files_of(datasets, "cats", target) == new
    assert names_in(store) == sorted([*after.values(), "dataset/cats/_training_info.json"])


def test_an_upload_of_nothing_new_sends_only_the_manifest(store, datasets, target):
    files = {**numbered(1), "1.txt": b"one"}
    datasets.upload(request(files, trigger_word="old"))
    result, sent = puts_of(store, lambda other: other.upload(request(files, trigger_word="new")))
    assert (sent, result.unchanged_files, result.warnings) == ([], 2, ())
    assert datasets.details.for_training("cats").trigger_word == "new"
    assert files_of(datasets, "cats", target) == files


def test_a_renamed_file_is_not_sent_again(store, datasets, target):
    datasets.upload(request({"old.png": picture(1), "old.txt": b"one"}))
    new = {"new.png": picture(1), "copy.png": picture(1), "new.txt": b"one"}
    result, sent = puts_of(store, lambda other: other.upload(request(new)))
    assert (sent, result.unchanged_files) == ([], 3)
    assert files_of(datasets, "cats", target) == new
    assert "replaced the dataset's 2 earlier files" in result.warnings[0]
    datasets.upload(request({"copy.png": picture(9)}, cleanup_existing=False))
    assert files_of(datasets, "cats", target) == {**new, "copy.png": picture(9)}


def test_a_file_that_becomes_one_of_another_type_is_sent_again(store, datasets):
    datasets.upload(request({"a.png": picture(1), "notes.json": b"{}"}))
    new = {"a.png": picture(1), "a.txt": b"{}"}
    result, sent = puts_of(store, lambda other: other.upload(request(new)))
    assert (sent, result.unchanged_files) == (["a.txt"], 1)


def test_local_files_that_are_unchanged_are_not_sent_again(store, folder, target):
    datasets = DatasetStore(store)
    datasets.store_paths("cats", sources_in(folder), replace=True)
    (folder / "b.png").write_bytes(picture(5))
    result, sent = puts_of(
        store, lambda other: other.store_paths("cats", sources_in(folder), replace=True)
    )
    assert (sent, result.unchanged_files) == (["b.png"], 2)
    assert files_of(datasets, "cats", target)["b.png"] == picture(5)


def test_files_of_another_dataset_are_sent(store, datasets):
    datasets.upload(request(numbered(1), folder="dogs"))
    result, sent = puts_of(store, lambda other: other.upload(request(numbered(1))))
    assert (sent, result.unchanged_files) == (["1.png"], 0)


def test_without_conditional_writes_every_file_is_sent(store, target):
    store = plain(store)
    datasets = DatasetStore(store)
    datasets.upload(request(numbered(1)))
    result, sent = puts_of(store, lambda other: other.upload(request(numbered(1))))
    assert (sent, result.unchanged_files) == (["1.png"], 0)
    assert files_of(datasets, "cats", target) == numbered(1)
    assert len(names_in(store)) == 2


def test_files_of_a_placed_dataset_are_sent(store, datasets, target):
    store.put("dataset/cats/1.png", picture(1))
    result, sent = puts_of(store, lambda other: other.upload(request(numbered(1))))
    assert (sent, result.unchanged_files) == (["1.png"], 0)
    assert files_of(datasets, "cats", target) == numbered(1)


@pytest.mark.parametrize("additive", [False, True])
def test_what_the_dataset_loses_in_the_last_moment_is_sent_after_all(
    store, datasets, target, additive
):
    datasets.upload(request(numbered(1, 2)))
    rival = iter([request(numbered(3))])

    class Interrupted(FailingStore):
        def put_if(self, key, data, etag):
            for upload in rival:
                DatasetStore(store).upload(upload)
            return super().put_if(key, data, etag)

    slow = Interrupted(store, "", 0)
    result = DatasetStore(slow).upload(request(numbered(1, 4), cleanup_existing=not additive))
    sent = [key.rpartition("/")[2] for key in slow.named("put_file")]
    assert sent == ["4.png", "1.png"]
    assert result.unchanged_files == 0
    wanted = numbered(1, 3, 4) if additive else numbered(1, 4)
    assert files_of(datasets, "cats", target) == wanted
    assert names_in(store) == sorted(
        [*keys_by_name(datasets).values(), "dataset/cats/_training_info.json"]
    )


def test_uploads_that_race_on_one_dataset_always_leave_a_whole_one(store, tmp_path):
    """Each refers to what the others are deleting; the last one's files must all be there."""
    datasets = DatasetStore(store)
    start = threading.Barrier(4)

    def writer(number):
        for n in range(6):
            start.wait()
            datasets.upload(request({**numbered(1, 2), f"{number}.txt": b"%d" % n}))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(writer, range(4)))
    files = files_of(datasets, "cats", tmp_path / "copy")
    (name,) = set(files) - {"1.png", "2.png"}
    assert files == {**numbered(1, 2), name: b"5"}
    assert names_in(store) == sorted(
        [*keys_by_name(datasets).values(), "dataset/cats/_training_info.json"]
    )


# Sizes of images


def turned(orientation, size=(12, 8)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "jpeg", exif=exif)
    return buffer.getvalue()


def test_the_manifest_knows_how_large_an_image_is_upright(datasets):
    files = {"flat.png": picture(1, size=(12, 8)), "turned.jpg": turned(6), "over.jpg": turned(3)}
    datasets.upload(request(files))
    sizes = {
        file.name: (file.width, file.height) for file in datasets.details.manifest("cats").files
    }
    assert sizes == {"flat.png": (12, 8), "turned.jpg": (8, 12), "over.jpg": (12, 8)}


# When storing fails


@pytest.mark.parametrize("is_dead", [False, True])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, PreconditionFailed])
@pytest.mark.parametrize("allowed", range(4))
@pytest.mark.parametrize("additive", [False, True])
def test_a_failure_at_any_write_leaves_the_old_dataset(
    store, target, allowed, additive, is_dead, error, monkeypatch
):
    monkeypatch.setattr(dataset_manifests, "_SWAP_ATTEMPTS", 3)
    healthy = DatasetStore(store)
    healthy.upload(request({**numbered(1, 2), "1.txt": b"old"}))
    before = {key: store.get(key) for key in names_in(store)}
    failing = FailingStore(store, "any put", allowed, is_dead=is_dead, error=error)
    new = request({"1.png": picture(11), "3.png": picture(3), "1.txt": b"new"},
                  cleanup_existing=not additive)  # fmt: skip
    with pytest.raises((error, ConflictingState, TransferFailed)):
        DatasetStore(failing).upload(new)
    after = {key: store.get(key) for key in names_in(store)}
    assert before.items() <= after.items()
    if not is_dead:
        assert after == before
    assert set(files_of(healthy, "cats", target)) == {"1.png", "2.png", "1.txt"}
    assert healthy.details.all()[0].total_images == 2
    healthy.upload(new)
    assert files_of(healthy, "cats", target)["1.txt"] == b"new"


def test_a_first_upload_that_failed_is_no_dataset(store, datasets):
    failing = FailingStore(store, "any put", 1, is_dead=True)
    with pytest.raises(TransferFailed, match="1 of 2 files") as caught:
        DatasetStore(failing).upload(request(numbered(1, 2)))
    assert re.match(r"[12]\.png: ", caught.value.problems[0])
    assert names_in(store) != []
    assert names_of(datasets) == ()
    assert datasets.details.all() == ()
    with pytest.raises(NotFound):
        datasets.details.for_training("cats")


def test_a_switch_whose_answer_was_lost_keeps_its_files(store, target):
    failing = FailingStore(store, "put_if", 0, after=True)
    with pytest.raises(OSError, match="failed"):
        DatasetStore(failing).upload(request(numbered(1)))
    assert set(files_of(DatasetStore(store), "cats", target)) == {"1.png"}


def test_files_that_cannot_be_deleted_are_a_warning(store, datasets, target):
    datasets.upload(request(numbered(1)))
    failing = FailingStore(store, "delete_many", 0)
    result = DatasetStore(failing).upload(request(numbered(2)))
    assert "couldn't be deleted" in result.warnings[-1]
    assert set(files_of(datasets, "cats", target)) == {"2.png"}


def test_abandoned_uploads_are_cleared_by_a_later_one(store, datasets):
    now = time.time()
    old = keys.dataset_file("cats", new_upload_id(now - 25 * 3600), "a.png")
    young = keys.dataset_file("cats", new_upload_id(now - 23 * 3600), "a.png")
    other = keys.dataset_file("dogs", new_upload_id(now - 25 * 3600), "a.png")
    for key in (old, young, other):
        store.put(key, b"x")
    datasets.upload(request(numbered(1)))
    left = names_in(store)
    assert old not in left
    assert young in left
    assert other in left


def test_files_of_an_old_version_that_are_still_in_use_are_no_waste(
    store, datasets, target, monkeypatch
):
    old = new_upload_id(time.time() - 48 * 3600)
    monkeypatch.setattr(stored_datasets, "new_upload_id", lambda: old)
    datasets.upload(request(numbered(1)))
    monkeypatch.undo()
    datasets.upload(request(numbered(2), cleanup_existing=False))
    assert set(files_of(datasets, "cats", target)) == {"1.png", "2.png"}


# Changing the manifest alone


def without(name):
    return lambda old: old.model_copy(
        update={"files": tuple(file for file in old.files if file.name != name)}
    )


def test_a_change_is_one_write_and_deletes_what_is_no_longer_named(store, datasets, target):
    datasets.upload(request({**numbered(1, 2), "1.txt": b"x"}))
    gone = next(
        file.key for file in datasets.details.manifest("cats").files if file.name == "2.png"
    )
    after = datasets.change("cats", without("2.png"))
    assert (after.total_images, after.total_captions) == (1, 1)
    assert datasets.details.manifest("cats") == after
    assert gone not in names_in(store)
    assert set(files_of(datasets, "cats", target)) == {"1.png", "1.txt"}


def test_an_object_that_another_file_shares_stays(store, datasets, target):
    datasets.upload(request({"1.png": picture(1)}))

    def doubled(old):
        (one,) = old.files
        return old.model_copy(update={"files": (one, one.model_copy(update={"name": "2.png"}))})

    assert datasets.change("cats", doubled).total_images == 2
    datasets.change("cats", without("1.png"))
    assert files_of(datasets, "cats", target) == {"2.png": picture(1)}
    datasets.change("cats", without("2.png"))
    assert names_in(store) == ["dataset/cats/_training_info.json"]


def test_a_change_starts_over_if_somebody_was_faster(store, datasets):
    datasets.upload(request(numbered(1, 2)))
    seen = []

    def change(old):
        seen.append([file.name for file in old.files])
        if len(seen) == 1:
            datasets.upload(request(numbered(3), cleanup_existing=False))
        return without("1.png")(old)

    after = datasets.change("cats", change)
    assert seen == [["1.png", "2.png"], ["1.png", "2.png", "3.png"]]
    assert [file.name for file in after.files] == ["2.png", "3.png"]


@pytest.mark.parametrize("is_plain", [False, True])
def test_parallel_changes_lose_nothing(store, is_plain):
    datasets = DatasetStore(plain(store) if is_plain else store)
    datasets.upload(request(numbered(*range(24))))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: datasets.change("cats", without(f"{n}.png")), range(0, 24, 2)))
    assert {file.name for file in datasets.details.manifest("cats").files} == {
        f"{n}.png" for n in range(1, 24, 2)
    }


def test_a_change_that_changes_nothing_writes_nothing(store, datasets):
    datasets.upload(request(numbered(1)))
    watched = FailingStore(store, "any put", 0)
    before = datasets.details.manifest("cats")
    assert DatasetStore(watched).change("cats", lambda old: old) == before


def test_what_a_change_raises_leaves_the_dataset_as_it_was(store, datasets):
    datasets.upload(request(numbered(1)))
    before = {key: store.get(key) for key in names_in(store)}

    def refuse(old):
        raise InvalidDataset("no")

    with pytest.raises(InvalidDataset, match="no"):
        datasets.change("cats", refuse)
    assert {key: store.get(key) for key in names_in(store)} == before


@pytest.mark.parametrize("key", ["dataset/dogs/v/a.png", "results/x", "dataset/cats/../dogs/a"])
def test_a_change_can_not_name_objects_of_others(store, datasets, key):
    datasets.upload(request(numbered(1)))
    before = {key: store.get(key) for key in names_in(store)}

    def steal(old):
        (one,) = old.files
        return old.model_copy(update={"files": (one.model_copy(update={"key": key}),)})

    with pytest.raises((ValueError, InvalidKey)):
        datasets.change("cats", steal)
    assert {key: store.get(key) for key in names_in(store)} == before


def test_there_is_nothing_to_change_in_a_missing_dataset(store, datasets):
    datasets.upload(request(numbered(1), folder="cats"))
    for call in (
        lambda: datasets.change("cat", lambda old: old),
        lambda: datasets.details.manifest("cat"),
        lambda: datasets.details.content("cat", "a.png"),
    ):
        with pytest.raises(NotFound, match="did you mean 'cats'"):
            call()
    assert [one.name for one in datasets.details.all()] == ["cats"]


def test_a_change_is_done_even_if_what_it_dropped_cannot_be_deleted(store, datasets):
    datasets.upload(request(numbered(1, 2)))
    failing = DatasetStore(FailingStore(store, "delete_many", 0))
    failing.change("cats", without("1.png"))
    assert datasets.details.for_training("cats").total_images == 1


def test_a_dataset_whose_files_were_all_taken_out_is_still_there(datasets):
    datasets.upload(request(numbered(1)))
    datasets.change("cats", without("1.png"))
    assert datasets.details.manifest("cats").files == ()
    assert [one.name for one in datasets.details.all()] == ["cats"]
    with pytest.raises(InvalidDataset, match="holds no image"):
        datasets.details.for_training("cats")


def test_a_file_is_read_by_its_name(store, datasets):
    datasets.upload(request({**numbered(1), "1.txt": b"one"}))
    assert datasets.details.content("cats", "1.txt") == b"one"
    with pytest.raises(NotFound, match=r"did you mean '1\.txt'"):
        datasets.details.content("cats", "2.txt")
    (caption,) = datasets.details.manifest("cats").of_type("caption")
    store.put(caption.key, b"two")
    with pytest.raises(InvalidDataset, match="gone or damaged"):
        datasets.details.content("cats", "1.txt")
    store.delete(caption.key)
    with pytest.raises(InvalidDataset, match="gone or damaged"):
        datasets.details.content("cats", "1.txt")


def test_a_manifest_of_an_older_version_knows_no_sizes_of_images(store, datasets, target):
    datasets.upload(request(numbered(1)))
    key = "dataset/cats/_training_info.json"
    document = json.loads(store.get(key))
    for name in ("width", "height"):
        del document["files"][0][name]
    store.put(key, json.dumps(document).encode())
    (file,) = datasets.details.manifest("cats").files
    assert (file.width, file.height) == (None, None)
    assert files_of(datasets, "cats", target) == numbered(1)


# Several at once


@pytest.mark.parametrize("is_plain", [False, True])
def test_parallel_parts_of_an_upload_lose_nothing(store, is_plain, target):
    store = plain(store) if is_plain else store
    datasets = DatasetStore(store)
    start = threading.Barrier(6)

    def part(number):
        start.wait()
        for n in range(3):
            one = numbered(10 * number + n)
            datasets.upload(request(one, cleanup_existing=False))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(part, range(6)))
    wanted = {f"{10 * number + n}.png" for number in range(6) for n in range(3)}
    assert set(files_of(datasets, "cats", target)) == wanted
    assert datasets.details.for_training("cats").total_images == 18
    assert len(names_in(store)) == 19


def test_an_addition_starts_over_if_the_dataset_was_replaced_meanwhile(store, datasets, target):
    datasets.upload(request(numbered(1)))
    rival = iter([request(numbered(2))])

    class Interrupted(FailingStore):
        def put_if(self, key, data, etag):
            for upload in rival:
                DatasetStore(store).upload(upload)
            return self.store.put_if(key, data, etag)

    slow = DatasetStore(Interrupted(store, "", 0))
    slow.upload(request(numbered(3), cleanup_existing=False))
    assert set(files_of(datasets, "cats", target)) == {"2.png", "3.png"}
    assert len(names_in(store)) == 3


def test_a_replacement_clears_what_was_added_while_it_uploaded(store, datasets):
    datasets.upload(request(numbered(1)))
    rival = iter([request(numbered(2), cleanup_existing=False)])

    class Interrupted(FailingStore):
        def put_if(self, key, data, etag):
            for upload in rival:
                DatasetStore(store).upload(upload)
            return self.store.put_if(key, data, etag)

    DatasetStore(Interrupted(store, "", 0)).upload(request(numbered(3)))
    assert len(names_in(store)) == 2


def test_a_replacement_spares_an_upload_that_is_under_way(store, datasets, target):
    datasets.upload(request(numbered(1)))
    rival = iter([request(numbered(2))])

    class Interrupted(FailingStore):
        def put_file(self, key, path, on_bytes=None):
            info = self.store.put_file(key, path, on_bytes)
            for upload in rival:
                DatasetStore(store).upload(upload)
            return info

    slow = DatasetStore(Interrupted(store, "", 0))
    slow.upload(request(numbered(3, 4), cleanup_existing=False))
    assert set(files_of(datasets, "cats", target)) == {"2.png", "3.png", "4.png"}


def test_endless_rivalry_ends_with_an_error(store, monkeypatch):
    monkeypatch.setattr(dataset_manifests, "_SWAP_ATTEMPTS", 3)
    failing = FailingStore(store, "put_if", 0, error=PreconditionFailed)
    with pytest.raises(ConflictingState):
        DatasetStore(failing).upload(request(numbered(1)))
    assert names_in(store) == []


def test_readers_see_the_old_dataset_or_the_new_one_and_never_a_mixture(store, tmp_path):
    datasets = DatasetStore(store)
    versions = [numbered(n, n + 1) for n in range(0, 20, 2)]
    datasets.upload(request(versions[0]))
    done = threading.Event()

    def write():
        try:
            for files in versions[1:]:
                datasets.upload(request(files))
                time.sleep(0.02)
        finally:
            done.set()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        seen, count = set(), 0
        while not done.is_set() or not count:
            count += 1
            try:
                files = files_of(datasets, "cats", tmp_path / f"read-{count}")
            except InvalidDataset:  # replaced twice while it was read
                continue
            assert files in versions
            seen.add(min(files))
        writer.result()
    assert seen


# Reading


def test_a_dataset_that_is_replaced_while_it_is_read_is_read_again(store, datasets, target):
    datasets.upload(request(numbered(1, 2)))
    rival = iter([request(numbered(3, 4))])

    class Interrupted(FailingStore):
        def get_file(self, key, path, on_bytes=None):
            for upload in rival:
                DatasetStore(store).upload(upload)
            return self.store.get_file(key, path, on_bytes)

    slow = DatasetStore(Interrupted(store, "", 0))
    assert set(files_of(slow, "cats", target)) == {"3.png", "4.png"}
    assert [path.name for path in target.parent.iterdir()] == ["dataset"]


def test_a_dataset_of_which_a_file_is_gone_is_refused(store, datasets, target):
    result = datasets.upload(request(numbered(1, 2)))
    store.delete(result.uploaded_files[1].path)
    with pytest.raises(InvalidDataset, match=r"2\.png is gone") as caught:
        datasets.materialize("cats", target)
    assert caught.value.remedy
    assert not target.exists()
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("damage", [b"", picture(9), "same length"])
def test_a_file_that_was_changed_in_the_store_is_refused(store, datasets, target, damage):
    result = datasets.upload(request(numbered(1, 2)))
    key = result.uploaded_files[0].path
    whole = store.get(key)
    store.put(key, damage if isinstance(damage, bytes) else bytes([*whole[:-1], whole[-1] ^ 1]))
    with pytest.raises(InvalidDataset, match=r"1\.png isn't the one"):
        datasets.materialize("cats", target)
    assert not target.exists()


def test_fetching_tells_how_far_it_is(store, datasets, target):
    datasets.upload(request(numbered(*range(20))))
    told = []
    datasets.materialize("cats", target, lambda *numbers: told.append(numbers))
    assert len(told) == 20
    assert {total for _, total in told} == {20}
    assert 0 <= min(done for done, _ in told) <= max(done for done, _ in told) < 20


def test_fetching_can_be_ended_from_outside_and_leaves_nothing(store, datasets, target):
    datasets.upload(request(numbered(1, 2, 3)))

    def stop(_done, _total):
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        datasets.materialize("cats", target, stop)
    assert not target.exists()
    assert list(target.parent.iterdir()) == []


def test_a_folder_that_is_already_right_is_kept(store, datasets, target):
    datasets.upload(request(numbered(1, 2)))
    assert datasets.materialize("cats", target) == target
    before = {path: path.stat().st_ino for path in target.iterdir()}
    unreadable = FailingStore(store, "get_file", 0)
    assert DatasetStore(unreadable).materialize("cats", target) == target
    assert {path: path.stat().st_ino for path in target.iterdir()} == before


@pytest.mark.parametrize("change", ["content", "missing", "more", "hidden", "link", "size"])
def test_a_folder_that_differs_is_made_anew(store, datasets, target, change, tmp_path):
    datasets.upload(request(numbered(1, 2)))
    datasets.materialize("cats", target)
    one = target / "1.png"
    whole = one.read_bytes()
    if change == "content":
        one.write_bytes(bytes([*whole[:-1], whole[-1] ^ 1]))
    elif change == "size":
        one.write_bytes(whole + b"\0")
    elif change == "missing":
        one.unlink()
    elif change == "link":
        (tmp_path / "elsewhere.png").write_bytes(whole)
        one.unlink()
        one.symlink_to(tmp_path / "elsewhere.png")
    else:
        (target / ("x.png" if change == "more" else ".x")).write_bytes(b"x")
    assert files_of(datasets, "cats", target) == numbered(1, 2)
    assert not one.is_symlink()
    assert [path.name for path in target.parent.iterdir()] == ["dataset"]


def test_a_folder_that_cannot_be_replaced_stays_as_it_was(store, datasets, target):
    datasets.upload(request(numbered(1, 2)))
    datasets.materialize("cats", target)
    (target / "1.png").write_bytes(b"x")
    with pytest.raises(OSError, match="failed"):
        DatasetStore(FailingStore(store, "get_file", 1)).materialize("cats", target)
    assert (target / "1.png").read_bytes() == b"x"
    assert (target / "2.png").exists()
    assert [path.name for path in target.parent.iterdir()] == ["dataset"]


def test_a_folder_comes_back_if_the_new_one_cannot_take_its_place(datasets, target, monkeypatch):
    datasets.upload(request(numbered(1, 2)))
    datasets.materialize("cats", target)
    (target / "1.png").write_bytes(b"x")
    rename = Path.rename

    def fail(path, other):
        if path.name == "new":
            raise OSError("no rename today")
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="today"):
        datasets.materialize("cats", target)
    assert (target / "1.png").read_bytes() == b"x"
    assert [path.name for path in target.parent.iterdir()] == ["dataset"]


def test_a_full_disk_is_told_as_such(store, datasets, target):
    datasets.upload(request(numbered(1)))
    failing = FailingStore(store, "get_file", 0, error=lambda text: OSError(28, text))
    with pytest.raises(DiskFull):
        DatasetStore(failing).materialize("cats", target)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_a_target_that_is_no_folder_is_refused(datasets, tmp_path, kind):
    datasets.upload(request(numbered(1)))
    target = tmp_path / "target"
    if kind == "file":
        target.write_text("x")
    else:
        target.symlink_to(tmp_path if kind == "link" else tmp_path / "nowhere")
    with pytest.raises(InvalidDataset, match="isn't a folder"):
        datasets.materialize("cats", target)
    assert target.is_symlink() or target.read_text() == "x"


def test_a_missing_dataset_is_answered_with_the_nearest(datasets, target):
    datasets.upload(request(numbered(1), folder="cats"))
    datasets.upload(request(numbered(1), folder="houses"))
    for call in (datasets.details.for_training, lambda name: datasets.materialize(name, target)):
        with pytest.raises(NotFound, match="did you mean 'cats'"):
            call("cat")
    with pytest.raises(NotFound) as caught:
        datasets.details.for_training("zzz")
    assert "did you mean" not in str(caught.value)


def test_a_dataset_without_images_is_refused(datasets):
    datasets.upload(request({"a.txt": b"x"}, cleanup_existing=False))
    with pytest.raises(InvalidDataset, match="holds no image"):
        datasets.details.for_training("cats")


def test_the_list_tells_what_is_there(datasets):
    assert datasets.details.all() == ()
    datasets.upload(request({**numbered(1), "1.txt": b"abc"}, folder="b", trigger_word="sks"))
    datasets.upload(request(numbered(1, 2), folder="a"))
    a, b = datasets.details.all()
    assert (a.name, a.total_images, a.total_captions, a.trigger_word) == ("a", 2, 0, "")
    assert (b.name, b.total_images, b.total_captions, b.trigger_word) == ("b", 1, 1, "sks")
    assert b.size_bytes == len(picture(1)) + 3
    assert abs(b.upload_date - datetime.now(UTC)) < timedelta(minutes=1)
    assert datasets.details.summary("b") == b


def test_a_list_lists_no_files_of_datasets(store, datasets):
    for name in ("a", "b", "c"):
        datasets.upload(request(numbered(1, 2), folder=name))
    store.put("dataset/placed/a.png", picture())
    watched = FailingStore(store, "", 0)
    assert [entry.name for entry in DatasetStore(watched).details.all()] == [
        "a",
        "b",
        "c",
        "placed",
    ]
    assert watched.named("list") == ["dataset/placed"]


def test_a_list_is_complete_however_large_its_datasets_are():
    store = MemoryStore()
    files = [
        DatasetFile(
            name=f"{n:04d}.png", key=f"dataset/big/upload_x/{n:04d}.png", size_bytes=1,
            sha256=f"{n:064x}", file_type="image",
        )
        for n in range(5000)
    ]  # fmt: skip
    for file in files:
        store.put(file.key, b"x")
        store.put(file.key.replace("big", "placed").replace("upload_x/", ""), b"x")
    manifest = DatasetManifest(files=tuple(files), total_images=5000)
    store.put("dataset/big/_training_info.json", manifest.model_dump_json().encode())
    for n in range(300):
        store.put(f"dataset/small-{n}/a.png", b"x")
    listed = {entry.name: entry for entry in DatasetStore(store).details.all()}
    assert len(listed) == 302
    assert listed["big"].total_images == listed["placed"].total_images == 5000
    assert names_of(DatasetStore(store)) == tuple(sorted(listed))


def test_a_list_that_the_store_can_not_give_is_an_error_and_not_a_shorter_list(store, datasets):
    for name in ("a", "b"):
        datasets.upload(request(numbered(1), folder=name))
    with pytest.raises(OSError, match="get failed"):
        DatasetStore(FailingStore(store, "get", 1)).details.all()


def test_folders_with_names_that_no_dataset_has_are_left_out(datasets, monkeypatch):
    store = MemoryStore()
    store.put("dataset/cats/a.png", picture())
    monkeypatch.setattr(store, "folders", lambda prefix: ["", "a\\b", "cats", ".."])
    assert names_of(DatasetStore(store)) == ("cats",)


def test_many_files_are_fetched_at_the_same_time(store, datasets, target):
    datasets.upload(request(numbered(*range(40))))
    at_once, most, lock = [], [], threading.Lock()

    class Slow(FailingStore):
        def get_file(self, key, path, on_bytes=None):
            with lock:
                at_once.append(key)
                most.append(len(at_once))
            time.sleep(0.01)
            info = self.store.get_file(key, path, on_bytes)
            with lock:
                at_once.remove(key)
            return info

    assert files_of(DatasetStore(Slow(store, "", 0)), "cats", target) == numbered(*range(40))
    assert 4 < max(most) <= 16


# Datasets that somebody else put there


@pytest.fixture
def placed(store):
    for name, data in {
        "a.png": picture(1), "a.txt": b"x", "sub/b.png": picture(2), ".DS_Store": b"x",
        ".hidden/c.png": picture(3),
    }.items():  # fmt: skip
        store.put(f"dataset/placed/{name}", data)
    store.put("dataset/stray.png", picture())
    return store


def test_a_folder_without_manifest_is_read_by_listing(placed, datasets, target):
    (entry,) = datasets.details.all()
    assert (entry.name, entry.total_images, entry.total_captions) == ("placed", 2, 1)
    assert entry.size_bytes == len(picture(1)) + 1 + len(picture(2))
    assert abs(entry.upload_date - datetime.now(UTC)) < timedelta(minutes=1)
    assert datasets.details.summary("placed") == entry
    assert set(files_of(datasets, "placed", target)) == {"a.png", "a.txt", "sub/b.png"}


def test_a_changed_folder_without_manifest_is_fetched_again(placed, datasets, target):
    datasets.materialize("placed", target)
    other = bytes([*picture(1)[:-1], 0])
    placed.put("dataset/placed/a.png", other)
    assert files_of(datasets, "placed", target)["a.png"] == other


def test_another_programs_manifest_gives_the_trigger_word(placed, datasets, target):
    info = {"training_name": "x", "trigger_word": "sks", "total_images": 77, "s3_path": "s3://x"}
    placed.put("dataset/placed/_training_info.json", json.dumps(info).encode())
    entry = datasets.details.summary("placed")
    assert (entry.trigger_word, entry.total_images) == ("sks", 2)
    assert datasets.details.all() == (entry,)
    assert set(files_of(datasets, "placed", target)) == {"a.png", "a.txt", "sub/b.png"}
    placed.put("dataset/placed/_training_info.json", b'{"trigger_word": 3}')
    assert datasets.details.for_training("placed").trigger_word == ""


def test_an_upload_can_add_to_a_placed_dataset(placed, datasets, target):
    datasets.upload(request({"b.png": picture(9)}, folder="placed", cleanup_existing=False))
    files = files_of(datasets, "placed", target)
    assert set(files) == {"a.png", "a.txt", "sub/b.png", "b.png"}
    assert files_of(datasets, "placed", target) == files


def test_an_upload_can_replace_a_placed_dataset(placed, datasets, target):
    placed.put("dataset/placed/_training_info.json", b'{"trigger_word": "x"}')
    result = datasets.upload(request(numbered(5), folder="placed"))
    assert "replaced the dataset's 3 earlier files" in result.warnings[0]
    assert set(files_of(datasets, "placed", target)) == {"5.png"}
    assert "dataset/placed/a.png" not in names_in(placed)


def test_markers_of_folders_are_no_files(datasets, target, monkeypatch):
    marker = SimpleNamespace(key="dataset/cats/", size_bytes=0, modified_s=0.0, etag="")
    real = SimpleNamespace(key="dataset/cats/sub/", size_bytes=0, modified_s=0.0, etag="")
    store = MemoryStore()
    monkeypatch.setattr(store, "list", lambda prefix="": iter([marker, real]))
    assert DatasetStore(store).details.all() == ()


def naming(name, key):
    """A manifest with one file."""
    file = {"name": name, "key": key, "size_bytes": 1, "file_type": "image"}
    return json.dumps({"files": [file]}).encode()


@pytest.mark.parametrize(
    "manifest",
    [
        b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"files": 3}', b'{"files": [{"name": "a"}]}',
        naming("../a.png", "dataset/cats/v/a.png"), naming("/a.png", "dataset/cats/v/a.png"),
        naming("a.png", "dataset/dogs/v/a.png"), naming("a.png", "results/x/lora/a"),
        naming("a.png", "dataset/cats/../dogs/a.png"),
    ],
    ids=range(12),
)  # fmt: skip
def test_a_damaged_manifest_is_told_and_can_be_replaced(store, datasets, target, manifest):
    datasets.upload(request(numbered(7), folder="dogs"))
    store.put("dataset/cats/_training_info.json", manifest)
    entry = datasets.details.all()[0]
    assert entry.name == "cats"
    assert "damaged" in entry.problem
    for call in (datasets.details.for_training, lambda name: datasets.materialize(name, target)):
        with pytest.raises(InvalidDataset, match="damaged"):
            call("cats")
    with pytest.raises(InvalidDataset, match="damaged"):
        datasets.upload(request(numbered(1), cleanup_existing=False))
    assert datasets.details.for_training("dogs").total_images == 1
    datasets.upload(request(numbered(1)))
    assert set(files_of(datasets, "cats", target)) == {"1.png"}


# References


@pytest.fixture
def in_bucket(store):
    return DatasetStore(store, Address("ours", "lora"))


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("foo", "foo"),
        ("foo/", "foo"),
        ("dataset/foo", "foo"),
        ("dataset/foo/", "foo"),
        ("dataset", "dataset"),
        ("my cats (1)", "my cats (1)"),
        ("s3://ours/lora/dataset/foo", "foo"),
        ("S3://ours/lora/dataset/foo/", "foo"),
        ("/data/foo", None),
        ("/data/../foo", None),
        ("~/foo", None),
        ("~", None),
    ],
)
def test_a_reference_names_a_dataset_or_a_local_folder(in_bucket, reference, name):
    assert in_bucket.resolve(reference) == name


@pytest.mark.parametrize(
    "reference",
    [
        "", ".", "..", "./foo", "../foo", "foo/..", "dataset/", "dataset/..", "dataset/../foo",
        "dataset/a/../b", "a/b", "dataset/a/b", "a//b", "foo//", "a\\b", "..\\a", "C:\\a",
        "a\0", "/a\0", "a\n", "\ud800", "x" * 201, "https://x/dataset/foo", "file:///foo",
        "s3://", "s3://ours", "s3://ours/", "s3://ours/lora", "s3://ours/lora/dataset",
        "s3://ours/lora/dataset/", "s3://ours/dataset/foo", "s3://ours/lora/dataset/a/b",
        "s3://ours/lora/dataset/..", "s3://ours/lora/results/foo", "s3://ours/loradataset/foo",
        "s3://theirs/lora/dataset/foo", "s3:///lora/dataset/foo", "s3://ours/lora//dataset/foo",
        "s3://ours/lora/dataset//foo", "s3://ours/lora/dataset/foo\\x", "s3://OURS/lora/dataset/a",
    ],
)  # fmt: skip
def test_other_references_are_refused(in_bucket, reference):
    with pytest.raises(InvalidDataset, match="folder_path") as caught:
        in_bucket.resolve(reference)
    assert caught.value.remedy
    assert len(str(caught.value)) < 700


def test_without_a_bucket_no_address_of_one_is_ours(datasets):
    for reference in ("s3://x/dataset/foo", "s3:///dataset/foo"):
        with pytest.raises(InvalidDataset, match="another bucket"):
            datasets.resolve(reference)
    assert datasets.resolve("dataset/foo") == "foo"


def test_without_a_prefix_datasets_are_at_the_top_of_the_bucket(store):
    datasets = DatasetStore(store, Address("ours"))
    result = datasets.upload(request(numbered(1)))
    assert datasets.resolve(result.s3_path) == "cats"
    assert result.s3_path == "s3://ours/dataset/cats"
    assert datasets.prefix == "s3://ours/dataset"


def test_what_an_upload_replies_can_be_used_as_a_reference(store, in_bucket):
    for datasets in (in_bucket, DatasetStore(store)):
        result = datasets.upload(request(numbered(1)))
        assert (
            datasets.resolve(result.s3_path) == datasets.resolve(result.training_folder) == "cats"
        )
    assert in_bucket.prefix == "s3://ours/lora/dataset"
    assert datasets.prefix == "dataset"
