"""Datasets as things: looked into, changed file by file, imported, and what is cached of them."""

import hashlib
import io
import random
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from PIL import Image, ImageDraw

from loradash.datasets.captions import MAX_CAPTION_BYTES
from loradash.datasets.folder import scan
from loradash.datasets.image_hash import MAX_DISTANCE, difference_hash, pairs_alike
from loradash.domain.dataset_manifest import DatasetFile, DatasetManifest, with_totals
from loradash.domain.ids import new_upload_id
from loradash.errors import (
    ConflictingState,
    InvalidDataset,
    InvalidKey,
    InvalidRequest,
    NotFound,
    StoreUnavailable,
)
from loradash.services.datasets import stored_images
from loradash.services.datasets.cache_folder import CacheFolder
from loradash.services.datasets.editing import IMPORTS_AT_ONCE, DatasetEditor
from loradash.services.datasets.scratch import Scratch
from loradash.services.datasets.store import DatasetStore
from loradash.services.datasets.upload_checks import SourceFile, UploadLimits
from loradash.services.datasets.url_import import Download
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore


class CountingStore(MemoryStore):
    """A memory store that remembers what was read, and can be away."""

    def __init__(self):
        super().__init__()
        self.reads = []
        self.is_away = False

    def get(self, key):
        self._note(key)
        return super().get(key)

    def read(self, key, start=0, end=None):
        self._note(key)
        return super().read(key, start, end)

    def _note(self, key):
        if self.is_away:
            raise StoreUnavailable("the store is away")
        self.reads.append(key)


@pytest.fixture(params=["memory", "local"])
def store(request, tmp_path):
    return CountingStore() if request.param == "memory" else LocalStore(tmp_path / "objects")


@pytest.fixture
def counting():
    return CountingStore()


def make_editor(store, tmp_path, **settings):
    datasets = DatasetStore(store, scratch=Scratch(tmp_path / "scratch"))
    return DatasetEditor(store, datasets, tmp_path / "cache", **settings)


@pytest.fixture
def editor(store, tmp_path):
    return make_editor(store, tmp_path)


def put(editor, files, folder="cats", *, replace=True, **fields):
    """Store files as a dataset."""
    with editor._datasets.scratch.folder() as place:
        sources = []
        for number, (name, data) in enumerate(files.items()):
            path = place / str(number)
            path.write_bytes(data)
            sources.append(SourceFile(name, path))
        return editor._datasets.store_paths(folder, sources, replace=replace, **fields)


def picture(number=0, size=(16, 12), kind="png"):
    buffer = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 40)).save(buffer, kind)
    return buffer.getvalue()


def drawing(seed, size=(200, 150)):
    """A picture with shapes, another one for each seed."""
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    for n in range(12):
        value = int(hashlib.sha256(f"{seed}/{n}".encode()).hexdigest(), 16)
        x, y = value % size[0], value // 1000 % size[1]
        w, h = 20 + value // 10**6 % 60, 20 + value // 10**9 % 60
        colour = (value // 10**12 % 256, value // 10**15 % 256, value // 10**18 % 256)
        pen.ellipse((x - w, y - h, x + w, y + h), fill=colour)
    return image


def encoded(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def names_in(store, prefix="dataset"):
    return sorted(info.key for info in store.list(prefix))


def names(editor, folder="cats"):
    return [file.name for file in editor.details.manifest(folder).files]


def all_pages(editor, folder="cats", **wanted):
    found, cursor = [], ""
    while True:
        page = editor.details.images(folder, cursor=cursor, **wanted)
        found += page.images
        if page.next_cursor is None:
            return found
        assert page.next_cursor > cursor
        cursor = page.next_cursor


# Pages


def test_a_page_tells_of_each_image_and_its_caption(editor):
    files = {
        "a.png": picture(1),
        "a.txt": "кот\n one".encode(),
        "b.jpg": picture(2, (8, 6), "jpeg"),
    }
    put(editor, files, trigger_word="sks", training_name="Cats")
    page = editor.details.images("cats")
    assert page.next_cursor is None
    assert page.dataset.model_dump(exclude={"upload_date", "version"}) == {
        "name": "cats", "training_name": "Cats", "trigger_word": "sks", "total_images": 2,
        "total_captions": 1, "size_bytes": sum(map(len, files.values())), "problem": "",
    }  # fmt: skip
    first, second = page.images
    assert (first.name, first.width, first.height) == ("a.png", 16, 12)
    assert first.size_bytes == len(files["a.png"])
    assert first.sha256 == hashlib.sha256(files["a.png"]).hexdigest()
    assert first.caption.text == "кот\n one"
    assert first.caption.name == "a.txt"
    assert first.caption.version == hashlib.sha256(files["a.txt"]).hexdigest()
    assert (second.name, second.caption.text, second.caption.version) == ("b.jpg", None, "")
    assert second.caption.name == "b.txt"


def test_sizes_are_those_of_the_upright_image(editor):
    exif = Image.Exif()
    exif[0x0112] = 6
    put(editor, {"a.jpg": encoded(drawing(1), "jpeg", exif=exif)})
    (entry,) = editor.details.images("cats").images
    assert (entry.width, entry.height) == (150, 200)


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 7])
def test_pages_together_hold_every_image_once(editor, limit):
    put(editor, {f"{n}.png": picture(n) for n in range(6)})
    assert [one.name for one in all_pages(editor, limit=limit)] == [f"{n}.png" for n in range(6)]


def test_pages_stay_right_while_images_come_and_go(editor):
    put(editor, {f"{n}.png": picture(n) for n in range(6)})
    page = editor.details.images("cats", limit=3)
    editor.remove("cats", ["2.png", "0.png"])
    put(editor, {"1a.png": picture(7), "9.png": picture(8)}, replace=False)
    rest = editor.details.images("cats", cursor=page.next_cursor)
    assert [one.name for one in rest.images] == ["3.png", "4.png", "5.png", "9.png"]


def large_dataset(store, count):
    """A dataset of so many images, as if it had been uploaded; every second one has a caption."""
    files = []
    for n in range(count):
        key = f"dataset/cats/{new_upload_id()}/{n:05d}.png"
        store.put(key, b"x")
        files.append(DatasetFile(name=f"{n:05d}.png", key=key, size_bytes=1, sha256=f"{n:064x}",
                                 file_type="image", width=64, height=64))  # fmt: skip
        if n % 2:
            data = f"picture {n}".encode()
            store.put(f"{key}.txt", data)
            files.append(DatasetFile(name=f"{n:05d}.txt", key=f"{key}.txt", size_bytes=len(data),
                                     sha256=hashlib.sha256(data).hexdigest(),
                                     file_type="caption"))  # fmt: skip
    manifest = with_totals(DatasetManifest(files=tuple(files), version=new_upload_id()))
    store.put("dataset/cats/_training_info.json", manifest.model_dump_json().encode())


def test_a_dataset_of_5000_files_pages_complete(counting, tmp_path):
    editor = make_editor(counting, tmp_path)
    large_dataset(counting, 3400)
    found = all_pages(editor, limit=100)
    assert editor.details.summary("cats").total_images == 3400
    assert len(editor.details.manifest("cats").files) == 5100
    assert [one.name for one in found] == [f"{n:05d}.png" for n in range(3400)]
    assert [one.caption.text for one in found[:4]] == [None, "picture 1", None, "picture 3"]
    manifests = [key for key in counting.reads if key.endswith("_training_info.json")]
    assert len(manifests) == 1  # for all of the pages


def test_one_page_reads_its_own_captions_only(counting, tmp_path):
    editor = make_editor(counting, tmp_path)
    large_dataset(counting, 300)
    counting.reads.clear()
    editor.details.images("cats", limit=10, cursor="00099.png")
    assert sorted({key.rpartition("/")[2] for key in counting.reads}) == [
        "00101.png.txt", "00103.png.txt", "00105.png.txt", "00107.png.txt", "00109.png.txt",
        "_training_info.json",
    ]  # fmt: skip


@pytest.mark.parametrize("limit", [1, 7, 500])
@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ({"text": "PICTURE 19"}, [19, 191, 193, 195, 197, 199]),
        ({"text": "0019"}, range(190, 200)),
        ({"without_caption": True}, range(0, 300, 2)),
        ({"without_caption": True, "text": "0019"}, range(190, 200, 2)),
        ({"text": "a dog"}, []),
    ],
)
def test_filters_find_all_that_fits_and_nothing_else(counting, tmp_path, limit, wanted, numbers):
    editor = make_editor(counting, tmp_path)
    large_dataset(counting, 300)
    found = all_pages(editor, limit=limit, **wanted)
    expected = {f"{n:05d}.png" for n in numbers}
    if wanted.get("text") == "0019":
        expected |= {"00019.png"} if not wanted.get("without_caption") else set()
    assert {one.name for one in found} == expected


def test_captions_that_cannot_be_read_say_so_and_the_others_are_shown(editor, store):
    put(editor, {"a.png": picture(1), "b.png": picture(2), "c.png": picture(3), "c.txt": b"c"})
    manifest = editor.details.manifest("cats")
    bad = {"a.txt": b"\xff", "b.txt": b"x" * (MAX_CAPTION_BYTES + 1)}
    added = []
    for name, data in bad.items():
        store.put(f"dataset/cats/x/{name}", data)
        added.append(DatasetFile(name=name, key=f"dataset/cats/x/{name}", size_bytes=len(data),
                                 file_type="caption"))  # fmt: skip
    editor._datasets.change(
        "cats", lambda old: old.model_copy(update={"files": (*manifest.files, *added)})
    )
    a, b, c = editor.details.images("cats").images
    assert a.caption.text is b.caption.text is None
    assert a.caption.problem == "not UTF-8 text (byte 0); save it with that encoding"
    assert b.caption.problem == "longer than the 64,000 bytes that a caption may have"
    assert (c.caption.text, c.caption.problem) == ("c", "")
    store.delete("dataset/cats/x/a.txt")
    assert editor.details.caption("cats", "a.png").problem == "its file is gone"


def test_a_store_that_is_away_is_told_and_not_shown_as_missing_captions(counting, tmp_path):
    editor = make_editor(counting, tmp_path)
    put(editor, {"a.png": picture(1), "a.txt": b"a"})
    editor.details.summary("cats")
    counting.is_away = True
    with pytest.raises(StoreUnavailable):
        editor.details.images("cats")


def test_a_caption_that_cannot_be_read_or_is_empty_is_one_nevertheless(editor, store):
    put(editor, {"a.png": picture(1), "a.txt": b"a", "b.png": picture(2), "b.txt": b""})
    store.delete(editor.details.manifest("cats").files[1].key)
    assert editor.details.images("cats", without_caption=True).images == ()


def test_what_another_program_keeps_there_is_read_again_each_time(editor, store):
    store.put("dataset/cats/_training_info.json", b'{"trigger_word": "sks"}')
    for n in range(3):
        store.put(f"dataset/cats/{n}.png", picture(n))
        store.put(f"dataset/cats/{n}.txt", f"text {n}".encode())
        page = editor.details.images("cats")
        assert [one.caption.text for one in page.images] == [f"text {m}" for m in range(n + 1)]
    assert page.dataset.trigger_word == "sks"


def test_a_dataset_that_was_put_there_by_other_means_is_shown_and_can_be_changed(editor, store):
    store.put("dataset/cats/sub/a.png", picture(1))
    store.put("dataset/cats/sub/a.txt", b"a")
    store.put("dataset/cats/b.png", picture(2))
    _, a = editor.details.images("cats").images
    assert (a.name, a.caption.text, a.width) == ("sub/a.png", "a", None)
    store.put("dataset/cats/c.png", picture(3))
    assert len(editor.details.images("cats").images) == 3
    editor.write_caption("cats", "sub/a.png", "new")
    editor.write_caption("cats", "b.png", "b")
    editor.remove("cats", ["c.png"])
    assert names(editor) == ["b.png", "b.txt", "sub/a.png", "sub/a.txt"]
    assert editor.details.caption("cats", "sub/a.png").text == "new"
    assert "dataset/cats/c.png" not in names_in(store)


def test_what_changed_is_seen_at_once_also_by_another_server(store, tmp_path):
    here, there = make_editor(store, tmp_path), make_editor(store, tmp_path)
    put(here, {"a.png": picture(1), "a.txt": b"one"})
    assert there.details.caption("cats", "a.png").text == "one"
    here.write_caption("cats", "a.png", "two")
    assert there.details.caption("cats", "a.png").text == "two"
    there.describe("cats", trigger_word="sks")
    assert here.details.summary("cats").trigger_word == "sks"
    here.delete("cats")
    with pytest.raises(NotFound):
        there.details.images("cats")


# Lists


def test_datasets_are_listed_by_pages_with_what_is_wrong(editor, store):
    for folder in ("cats", "dogs", "emus"):
        put(editor, {"a.png": picture(1)}, folder)
    store.put("dataset/bad/_training_info.json", b"{")
    store.put(f"dataset/coming/{new_upload_id()}/a.png", picture(1))
    found, cursor = [], ""
    while cursor is not None:
        page = editor.details.summaries(limit=2, cursor=cursor)
        found += page.datasets
        cursor = page.next_cursor
    assert [one.name for one in found] == ["bad", "cats", "dogs", "emus"]
    assert "damaged" in found[0].problem
    assert editor.details.summaries(limit=5).next_cursor is None
    assert [one.total_images for one in found] == [0, 1, 1, 1]


# Creating, describing, deleting


def test_a_dataset_can_be_created_empty_and_filled_afterwards(editor, tmp_path):
    made = editor.create("cats", training_name="My cats", trigger_word="sks")
    assert (made.name, made.training_name, made.trigger_word) == ("cats", "My cats", "sks")
    assert made.total_images == 0
    assert editor.details.images("cats").images == ()
    with pytest.raises(InvalidDataset, match="holds no image"):
        editor.details.for_training("cats")
    put(editor, {"a.png": picture(1)}, replace=False)
    assert editor.details.for_training("cats").trigger_word == "sks"


def test_a_dataset_that_is_there_is_not_created_again(editor, store):
    put(editor, {"a.png": picture(1)})
    before = {key: store.get(key) for key in names_in(store)}
    with pytest.raises(ConflictingState, match="already"):
        editor.create("cats")
    editor.create("dogs")
    with pytest.raises(ConflictingState, match="already"):
        editor.create("dogs")
    assert {key: store.get(key) for key in names_in(store, "dataset/cats")} == before


def test_one_of_many_who_create_a_dataset_at_once_does(store, tmp_path):
    editor = make_editor(store, tmp_path)

    def create(word):
        try:
            return editor.create("cats", trigger_word=word).trigger_word
        except ConflictingState:
            return None

    with ThreadPoolExecutor(8) as threads:
        made = [word for word in threads.map(create, "abcdefgh") if word]
    assert len(made) == 1
    assert editor.details.summary("cats").trigger_word == made[0]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "_x", "a/b", "../x", "a b", "кот", "x" * 151, "a\n"]
)
def test_names_that_no_new_dataset_may_have_are_refused(editor, store, name, tmp_path):
    with pytest.raises(InvalidRequest, match="name: "):
        editor.create(name)
    if name == "кот":  # what is imported gets a folder that is written with plain letters
        return
    with pytest.raises((InvalidRequest, InvalidKey)):
        editor.import_zip(name, zipped(tmp_path, {"a.png": picture(1)}))
    with pytest.raises((InvalidRequest, InvalidKey)):
        editor.import_url(name, "http://8.8.8.8/a.zip")
    assert names_in(store) == []


def test_trigger_word_and_name_are_changed_alone_or_together(editor):
    put(editor, {"a.png": picture(1)}, trigger_word="old", training_name="Old")
    assert editor.describe("cats", trigger_word="new").training_name == "Old"
    changed = editor.describe("cats", training_name="New")
    assert (changed.trigger_word, changed.training_name) == ("new", "New")
    assert editor.describe("cats", trigger_word="").trigger_word == ""
    assert names(editor) == ["a.png"]


def test_nothing_to_change_changes_no_version(editor):
    put(editor, {"a.png": picture(1)}, trigger_word="sks")
    version = editor.details.summary("cats").version
    assert editor.describe("cats", trigger_word="sks").version == version
    assert editor.describe("cats").version == version


def test_a_description_of_an_older_version_is_refused(editor):
    put(editor, {"a.png": picture(1)})
    version = editor.details.summary("cats").version
    newer = editor.describe("cats", trigger_word="one", if_version=version).version
    assert newer != version
    with pytest.raises(ConflictingState, match="if_version: dataset 'cats' was changed"):
        editor.describe("cats", trigger_word="two", if_version=version)
    assert editor.details.summary("cats").trigger_word == "one"


def test_a_deleted_dataset_leaves_nothing(editor, store):
    put(editor, {"a.png": picture(1), "a.txt": b"a"})
    put(editor, {"b.png": picture(2)}, replace=False)
    put(editor, {"a.png": picture(1)}, "cats2")
    assert editor.delete("cats") == 3
    assert names_in(store, "dataset/cats") == []
    with pytest.raises(NotFound, match="no dataset 'cats'"):
        editor.details.summary("cats")
    assert names(editor, "cats2") == ["a.png"]


def test_only_a_dataset_that_is_there_is_deleted(editor, store):
    put(editor, {"a.png": picture(1)})
    with pytest.raises(NotFound, match="did you mean 'cats'"):
        editor.delete("cat")
    with pytest.raises(InvalidKey):
        editor.delete("cats/..")
    with pytest.raises(InvalidKey):
        editor.delete("")
    assert names(editor) == ["a.png"]


def test_a_damaged_dataset_and_one_without_a_manifest_can_be_deleted(editor, store):
    store.put("dataset/bad/_training_info.json", b"{")
    store.put("dataset/bad/x/a.png", b"x")
    store.put("dataset/other/a.png", b"x")
    assert (editor.delete("bad"), editor.delete("other")) == (1, 1)
    assert names_in(store) == []


def test_an_upload_that_is_going_on_outlives_the_deleted_dataset(editor, store):
    put(editor, {"a.png": picture(1)})
    coming = f"dataset/cats/{new_upload_id()}/b.png"
    abandoned = f"dataset/cats/{new_upload_id(time.time() - 2 * 24 * 3600)}/c.png"
    store.put(coming, b"x")
    store.put(abandoned, b"x")
    editor.delete("cats")
    assert names_in(store) == [coming]
    with pytest.raises(NotFound):
        editor.delete("cats")
    assert names_in(store) == [coming]


def test_deleting_that_was_cut_off_is_gone_on_with(counting, tmp_path, monkeypatch):
    editor = make_editor(counting, tmp_path)
    counting.put("dataset/cats/a.png", b"x")
    put(editor, {"b.png": picture(1)}, replace=False)
    with monkeypatch.context() as broken:
        broken.setattr(counting, "delete_many", lambda keys: (_ for _ in ()).throw(OSError()))
        with pytest.raises(OSError):
            editor.delete("cats")
    editor.delete("cats")
    assert "dataset/cats/a.png" not in names_in(counting)


# Removing files


def test_an_image_is_removed_with_its_caption(editor, store):
    put(editor, {"a.png": picture(1), "a.txt": b"a", "b.png": picture(2), "b.txt": b"b"})
    assert editor.remove("cats", ["a.png"]) == ("a.png", "a.txt")
    assert names(editor) == ["b.png", "b.txt"]
    assert len(names_in(store)) == 3
    summary = editor.details.summary("cats")
    assert (summary.total_images, summary.total_captions) == (1, 1)


def test_a_caption_can_be_removed_alone(editor):
    put(editor, {"a.png": picture(1), "a.txt": b"a"})
    assert editor.remove("cats", ["a.txt"]) == ("a.txt",)
    assert editor.details.caption("cats", "a.png").text is None


def test_a_caption_that_another_image_has_too_stays_with_it(editor):
    put(editor, {"a.png": picture(1), "a.jpg": picture(2, kind="jpeg"), "a.txt": b"a"})
    assert editor.remove("cats", ["a.png"]) == ("a.png",)
    assert editor.remove("cats", ["a.jpg"]) == ("a.jpg", "a.txt")
    assert names(editor) == []


def test_all_files_are_removed_or_none(editor):
    put(editor, {"a.png": picture(1), "b.png": picture(2)})
    with pytest.raises(NotFound, match=r"no file 'c\.png', 'd\.png'; nothing was removed"):
        editor.remove("cats", ["a.png", "c.png", "d.png"])
    assert names(editor) == ["a.png", "b.png"]


def test_files_that_share_an_object_are_removed_one_by_one(editor):
    put(editor, {"a.png": picture(1)})
    put(editor, {"b.png": picture(1)}, replace=False)
    editor.remove("cats", ["a.png"])
    assert editor.details.content("cats", "b.png") == picture(1)


def test_those_who_remove_at_the_same_time_all_do(editor):
    put(editor, {f"{n}.png": picture(n) for n in range(8)})
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: editor.remove("cats", [f"{n}.png"]), range(8)))
    assert names(editor) == []


# Captions


@pytest.mark.parametrize(
    "text", ["a cat", "", "кот 😀", "two\nlines\r\n", " spaces ", "x" * 64_000]
)
def test_a_caption_is_read_as_it_was_written(editor, text, tmp_path):
    put(editor, {"a.png": picture(1)})
    written = editor.write_caption("cats", "a.png", text)
    assert (written.text, written.problem) == (text, "")
    assert editor.details.caption("cats", "a.png") == written
    editor._datasets.materialize("cats", tmp_path / "copy")
    assert scan(tmp_path / "copy").images[0].caption == " ".join(text.split())


def test_a_new_caption_replaces_the_old_one_and_its_object(editor, store):
    put(editor, {"a.png": picture(1), "a.txt": b"old", "b.png": picture(2), "b.txt": b"b"})
    before = names_in(store)
    editor.write_caption("cats", "a.png", "new")
    assert names(editor) == ["a.png", "a.txt", "b.png", "b.txt"]
    assert len(names_in(store)) == len(before)
    assert editor.details.caption("cats", "b.png").text == "b"


def test_the_same_caption_again_changes_nothing(editor, store):
    put(editor, {"a.png": picture(1), "a.txt": b"same"})
    before = {key: store.head(key).etag for key in names_in(store)}
    editor.write_caption("cats", "a.png", "same")
    assert {key: store.head(key).etag for key in names_in(store)} == before


@pytest.mark.parametrize(
    ("text", "reason"),
    [("x" * 64_001, "64,001 bytes"), ("я" * 32_001, "64,002 bytes"), ("a\0b", "NUL"),
     ("\ud800", "Unicode"), ("a \x1b[31mcat", "can't be in a caption")],
)  # fmt: skip
def test_texts_that_are_no_captions_are_refused(editor, store, text, reason):
    put(editor, {"a.png": picture(1)})
    before = names_in(store)
    with pytest.raises(InvalidRequest, match=f"text: .*{reason}"):
        editor.write_caption("cats", "a.png", text)
    assert names_in(store) == before


@pytest.mark.parametrize("image", ["b.png", "a.txt", "A.png", "../a.png", "", "x" * 5000])
def test_only_images_of_the_dataset_have_captions(editor, store, image):
    put(editor, {"a.png": picture(1), "a.txt": b"a"})
    before = names_in(store)
    with pytest.raises((NotFound, InvalidKey, InvalidRequest)):
        editor.write_caption("cats", image, "text")
    with pytest.raises(NotFound):
        editor.details.caption("cats", image)
    assert names_in(store) == before


def test_a_caption_that_was_changed_meanwhile_is_not_overwritten(editor, store):
    put(editor, {"a.png": picture(1), "b.png": picture(2)})
    first = editor.write_caption("cats", "a.png", "one", if_version="")
    with pytest.raises(ConflictingState, match="if_version"):
        editor.write_caption("cats", "a.png", "two", if_version="")
    editor.write_caption("cats", "b.png", "another image's doesn't matter")
    second = editor.write_caption("cats", "a.png", "two", if_version=first.version)
    with pytest.raises(ConflictingState, match="if_version"):
        editor.write_caption("cats", "a.png", "three", if_version=first.version)
    assert editor.details.caption("cats", "a.png") == second
    assert len(names_in(store)) == 5


def test_a_refused_caption_is_not_even_written(editor, store, monkeypatch):
    put(editor, {"a.png": picture(1), "a.txt": b"a"})

    def never(*_):
        raise AssertionError("something was written")

    for method in ("put", "put_if", "put_file"):
        monkeypatch.setattr(store, method, never)
    with pytest.raises(ConflictingState):
        editor.write_caption("cats", "a.png", "b", if_version="")


def test_of_many_who_write_one_version_one_does_and_nothing_is_left_of_the_others(editor, store):
    put(editor, {"a.png": picture(1)})

    def write(word):
        try:
            return editor.write_caption("cats", "a.png", word, if_version="").text
        except ConflictingState:
            return None

    with ThreadPoolExecutor(6) as threads:
        written = [word for word in threads.map(write, "abcdef") if word]
    assert len(written) == 1
    assert editor.details.caption("cats", "a.png").text == written[0]
    assert len(names_in(store)) == 3


def test_captions_of_many_images_are_written_at_once_without_losing_any(editor):
    put(editor, {f"{n}.png": picture(n) for n in range(8)})
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: editor.write_caption("cats", f"{n}.png", f"text {n}"), range(8)))
    captions = [one.caption.text for one in editor.details.images("cats").images]
    assert captions == [f"text {n}" for n in range(8)]


def test_a_caption_that_could_not_be_switched_to_leaves_nothing(editor, store, monkeypatch):
    put(editor, {"a.png": picture(1)})
    before = names_in(store)

    def fail(*_):
        raise StoreUnavailable("away")

    monkeypatch.setattr(editor._datasets, "change", fail)
    with pytest.raises(StoreUnavailable):
        editor.write_caption("cats", "a.png", "text")
    assert names_in(store) == before


# Numbers


def test_statistics_count_what_is_there_and_what_is_missing(editor):
    files = {
        "a.png": picture(1, (1024, 512)), "a.txt": b"sks cat, red Cat", "b.png": picture(2),
        "c.png": picture(3), "c.txt": b" \n", "lost.txt": b"a dog's cat", "notes.json": b"{}",
    }  # fmt: skip
    put(editor, files)
    found = editor.figures.statistics("cats", resolution=512, step=64)
    assert (found.total_files, found.other_files) == (7, 1)
    assert (found.dataset.total_images, found.dataset.total_captions) == (3, 3)
    assert found.image_bytes == sum(len(files[f"{n}.png"]) for n in "abc")
    assert found.dataset.size_bytes == sum(map(len, files.values()))
    assert found.missing_captions.model_dump() == {"count": 1, "names": ("b.png",)}
    assert found.captions_without_image.names == ("lost.txt",)
    assert found.empty_captions.names == ("c.txt",)
    assert found.unreadable_captions.count == 0
    assert [one.model_dump() for one in found.sizes] == [
        {"width": 16, "height": 12, "images": 2}, {"width": 1024, "height": 512, "images": 1},
    ]  # fmt: skip
    assert [one.model_dump() for one in found.buckets] == [
        {"width": 64, "height": 64, "images": 2}, {"width": 704, "height": 320, "images": 1},
    ]  # fmt: skip
    words = {one.word: one.captions for one in found.words}
    assert words == {"cat": 2, "red": 1, "sks": 1, "a": 1, "dog's": 1}
    assert found.words[0].word == "cat"


def test_statistics_of_much_list_some_and_count_all(counting, tmp_path):
    editor = make_editor(counting, tmp_path)
    large_dataset(counting, 600)
    found = editor.figures.statistics("cats")
    assert found.missing_captions.count == 300
    assert len(found.missing_captions.names) == 100


def test_statistics_of_nothing(editor):
    editor.create("cats")
    found = editor.figures.statistics("cats")
    assert (found.total_files, found.sizes, found.words) == (0, (), ())


def test_sizes_that_are_not_known_are_counted_as_such(editor, store):
    store.put("dataset/cats/a.png", picture(1))
    found = editor.figures.statistics("cats")
    assert (found.images_of_unknown_size, found.sizes) == (1, ())


# Doubles


def test_copies_and_images_that_look_alike_are_found(editor):
    cat, dog = drawing("cat"), drawing("dog")
    files = {
        "cat.png": encoded(cat), "cat2.png": encoded(cat), "dog.png": encoded(dog),
        "cat small.jpg": encoded(cat.resize((100, 75)), "jpeg"),
        "cat.webp": encoded(cat, "webp", quality=60),
        "cat grey.png": encoded(cat.convert("L")),
        "emu.png": encoded(drawing("emu")), "red.png": picture(1), "blue.png": picture(2),
    }  # fmt: skip
    put(editor, files)
    found = editor.figures.duplicates("cats")
    assert found.identical == (("cat.png", "cat2.png"),)
    (group,) = found.alike
    assert set(group.names) == {"cat.png", "cat small.jpg", "cat.webp", "cat grey.png"}
    assert 0 <= group.distance <= found.max_distance == MAX_DISTANCE
    assert found.unreadable == ()


def test_different_drawings_are_not_alike(editor):
    put(editor, {f"{n:02d}.png": encoded(drawing(n)) for n in range(40)})
    found = editor.figures.duplicates("cats")
    assert (found.identical, found.alike) == ((), ())


def test_an_image_that_is_mirrored_or_turned_is_another_one():
    image = drawing("cat")
    value = difference_hash(image)
    for changed in (image.transpose(0), image.transpose(1), image.rotate(90)):
        assert (value ^ difference_hash(changed)).bit_count() > MAX_DISTANCE


def test_the_difference_hash_compares_each_pixel_with_the_one_right_of_it():
    image = Image.new("L", (9, 8))
    image.putdata([column * 10 for _ in range(8) for column in range(9)])
    assert difference_hash(image) == 2**64 - 1
    image.putdata([100 - column * 10 for _ in range(8) for column in range(9)])
    assert difference_hash(image) == 0
    image.putpixel((8, 7), 255)
    assert difference_hash(image) == 1
    image.putpixel((1, 0), 255)
    assert difference_hash(image) == 2**63 + 1


def test_all_pairs_within_the_distance_are_found_and_no_others():
    base = 0x0123456789ABCDEF
    chance = random.Random(1)
    flips = [chance.sample(range(64), n) for n in range(MAX_DISTANCE + 4) for _ in range(20)]
    hashes = [base ^ sum(1 << bit for bit in bits) for bits in flips] + [~base & 2**64 - 1]
    expected = {
        (a, b): (hashes[a] ^ hashes[b]).bit_count()
        for a in range(len(hashes)) for b in range(a + 1, len(hashes))
        if (hashes[a] ^ hashes[b]).bit_count() <= MAX_DISTANCE
    }  # fmt: skip
    assert set(expected.values()) == set(range(MAX_DISTANCE + 1))
    found = list(pairs_alike(hashes))
    assert {(a, b): distance for a, b, distance in found} == expected
    assert len(found) == len(expected)


def test_plain_images_are_not_alike_for_having_nothing_in_them():
    assert list(pairs_alike([0, 0, 2**64 - 1, 2**64 - 1])) == []


def test_images_that_are_alike_through_others_are_one_group(editor, monkeypatch):
    put(editor, {f"{n}.png": picture(n) for n in range(4)})
    values = {"0": 0b1111, "1": 0b11111 << 20, "2": 0, "3": 2**40 - 1}
    monkeypatch.setattr(editor.images, "hash_of", lambda file: 2**63 + values[file.name[0]])
    (group,) = editor.figures.duplicates("cats").alike
    assert group.names == ("0.png", "1.png", "2.png")  # of which the first two differ in 9 bits
    assert group.distance == 5


def test_a_store_that_is_away_is_told_and_no_image_is_blamed(counting, tmp_path):
    editor = make_editor(counting, tmp_path)
    put(editor, {"a.png": picture(1)})
    editor.details.summary("cats")
    counting.is_away = True
    with pytest.raises(StoreUnavailable):
        editor.figures.duplicates("cats")


def test_images_that_cannot_be_read_are_named_and_the_others_are_compared(editor, store):
    cat = drawing("cat")
    put(editor, {"a.png": encoded(cat), "b.jpg": encoded(cat, "jpeg"), "c.png": picture(3)})
    key = editor.details._reader.manifest("cats").files[2].key
    store.put(key, b"broken")
    found = editor.figures.duplicates("cats")
    assert found.unreadable == ("c.png",)
    assert found.alike[0].names == ("a.png", "b.jpg")


def test_hashes_are_computed_once_for_each_file(counting, tmp_path):
    editor = make_editor(counting, tmp_path)
    put(editor, {f"{n}.png": encoded(drawing(n)) for n in range(3)})
    first = editor.figures.duplicates("cats")
    counting.reads.clear()
    again = make_editor(counting, tmp_path)
    assert again.figures.duplicates("cats") == first
    assert [key.rpartition("/")[2] for key in counting.reads] == ["_training_info.json"]


# Thumbnails


@pytest.mark.parametrize("pixels", [128, 256, 512])
def test_a_thumbnail_is_a_small_upright_webp(editor, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6
    put(editor, {"a.jpg": encoded(drawing(1, (800, 400)), "jpeg", exif=exif)})
    with Image.open(io.BytesIO(editor.thumbnail("cats", "a.jpg", pixels))) as image:
        assert (image.format, image.size) == ("WEBP", (pixels // 2, pixels))


def test_a_small_image_is_not_blown_up(editor):
    put(editor, {"a.png": picture(1, (16, 12))})
    with Image.open(io.BytesIO(editor.thumbnail("cats", "a.png", 128))) as image:
        assert image.size == (16, 12)


@pytest.mark.parametrize("pixels", [0, -1, 100, 129, 4096])
def test_other_sizes_are_refused(editor, pixels):
    put(editor, {"a.png": picture(1)})
    with pytest.raises(InvalidRequest, match=r"size: .*only 128, 256, 512"):
        editor.thumbnail("cats", "a.png", pixels)


def test_a_thumbnail_is_made_once_and_kept_under_its_hash(counting, tmp_path):
    editor = make_editor(counting, tmp_path)
    put(editor, {"a.png": picture(1), "b.png": picture(1)})
    first = editor.thumbnail("cats", "a.png", 128)
    sha256 = hashlib.sha256(picture(1)).hexdigest()
    (kept,) = (tmp_path / "cache" / "thumbnails").iterdir()
    assert kept.name == f"{sha256}-128.webp"
    counting.reads.clear()
    assert make_editor(counting, tmp_path).thumbnail("cats", "b.png", 128) == first
    assert [key.rpartition("/")[2] for key in counting.reads] == ["_training_info.json"]


def test_a_thumbnail_of_what_is_no_image_is_refused(editor, store):
    put(editor, {"a.png": picture(1), "a.txt": b"a"})
    with pytest.raises(NotFound, match="isn't an image"):
        editor.thumbnail("cats", "a.txt", 128)
    with pytest.raises(NotFound, match=r"no file 'b\.png'"):
        editor.thumbnail("cats", "b.png", 128)
    store.put("dataset/dogs/a.png", b"<html>")
    with pytest.raises(InvalidDataset, match=r"a\.png"):
        editor.thumbnail("dogs", "a.png", 128)


def test_an_image_of_which_the_hash_is_a_path_is_kept_elsewhere(editor, store, tmp_path):
    """Manifests may come from anybody who can write the store."""
    store.put("dataset/cats/a.png", picture(1))
    editor._datasets.change(
        "cats",
        lambda old: old.model_copy(
            update={"files": (old.files[0].model_copy(update={"sha256": "../../../x"}),)}
        ),
    )
    (tmp_path / "cache" / "thumbnails").mkdir(parents=True)
    (tmp_path.parent / "x-128.webp").write_bytes(b"a secret")
    assert b"secret" not in editor.thumbnail("cats", "a.png", 128)
    assert [path.parent for path in tmp_path.rglob("*.webp")] == [tmp_path / "cache" / "thumbnails"]


def test_an_image_that_is_larger_than_uploads_may_be_is_not_read_whole(store, tmp_path):
    limits = UploadLimits(max_file_bytes=1000)
    editor = DatasetEditor(store, DatasetStore(store, limits=limits), tmp_path / "cache")
    store.put("dataset/cats/a.png", picture(1) + bytes(2000))
    with pytest.raises(InvalidDataset, match="larger than"):
        editor.thumbnail("cats", "a.png", 128)


def test_few_images_are_decoded_at_a_time(editor, monkeypatch):
    put(editor, {f"{n}.png": picture(n) for n in range(12)})
    lock, now, most = threading.Lock(), 0, 0
    real = stored_images.open_small

    def slowly(data, name, side):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        try:
            return real(data, name, side)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr(stored_images, "open_small", slowly)
    with ThreadPoolExecutor(12) as threads:
        list(threads.map(lambda n: editor.thumbnail("cats", f"{n}.png", 128), range(12)))
    assert most == stored_images.DECODED_AT_ONCE


# The cache


def cached(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_cache_gives_back_what_was_put(tmp_path):
    cache = CacheFolder(tmp_path / "c", max_files=10, max_bytes=1000)
    assert cache.get("a") is None
    cache.put("a", b"1")
    assert (cache.get("a"), cache.get("b")) == (b"1", None)


@pytest.mark.parametrize("bounds", [{"max_files": 10, "max_bytes": 10**6},
                                    {"max_files": 10**6, "max_bytes": 1000}])  # fmt: skip
def test_a_cache_stays_in_its_bounds_and_keeps_what_was_used_last(tmp_path, bounds):
    folder = tmp_path / "c"
    cache = CacheFolder(folder, **bounds)
    cache.put("kept", bytes(100))
    for n in range(50):
        cache.put(f"{n:02d}", bytes(100))
        assert cache.get("kept")
        time.sleep(0.002)  # so that the times differ
        assert len(cached(folder)) <= 10
    assert "kept" in cached(folder)
    assert "49" in cached(folder)
    assert "00" not in cached(folder)


def test_a_cache_counts_what_another_program_left_there(tmp_path):
    first = CacheFolder(tmp_path / "c", max_files=100, max_bytes=10**6)
    for n in range(20):
        first.put(str(n), b"x")
    CacheFolder(tmp_path / "c", max_files=10, max_bytes=10**6).put("new", b"x")
    assert len(cached(tmp_path / "c")) <= 10


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(editor, tmp_path):
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    put(editor, {"a.png": picture(1)})
    assert editor.thumbnail("cats", "a.png", 128)


# Imports


def zipped(tmp_path, files):
    path = tmp_path / "sent.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_a_zip_file_becomes_a_dataset(editor, tmp_path):
    files = {"cats/a.png": picture(1), "cats/a.txt": b"a", "cats/readme.md": b"x"}
    result = editor.import_zip("cats", zipped(tmp_path, files), trigger_word="sks")
    assert names(editor) == ["a.png", "a.txt"]
    assert (result.total_images, result.trigger_word) == (1, "sks")
    assert result.warnings == ("1 file of another kind is left out: cats/readme.md",)
    assert not list((tmp_path / "scratch").iterdir())


def test_a_zip_file_is_added_or_replaces_all(editor, store, tmp_path):
    put(editor, {"a.png": picture(1)}, trigger_word="sks")
    editor.import_zip("cats", zipped(tmp_path, {"b.png": picture(2)}))
    assert names(editor) == ["a.png", "b.png"]
    assert editor.details.summary("cats").trigger_word == "sks"
    editor.import_zip("cats", zipped(tmp_path, {"c.png": picture(3)}), replace=True)
    assert names(editor) == ["c.png"]
    assert len(names_in(store)) == 2


def test_what_goes_out_as_a_zip_file_comes_in_again(editor, tmp_path):
    put(editor, {"a.png": picture(1), "a.txt": "кот".encode()})
    path = tmp_path / "out.zip"
    path.write_bytes(b"".join(editor.zip("cats")))
    editor.import_zip("copy", path)
    for name in ("a.png", "a.txt"):
        assert editor.details.content("copy", name) == editor.details.content("cats", name)


class Importer:
    """Stands where the network would be."""

    def __init__(self, data, kind, name=""):
        self.data, self.kind, self.name = data, kind, name
        self.release = threading.Event()
        self.release.set()
        self.running = threading.Semaphore(0)

    def fetch(self, url, path, max_bytes, room=None):
        self.running.release()
        assert self.release.wait(30)
        self.asked = SimpleNamespace(url=url, max_bytes=max_bytes)
        path.write_bytes(self.data)
        return Download(path, self.kind, self.name)


def test_a_zip_file_or_an_image_from_an_address_is_stored(store, tmp_path):
    importer = Importer(picture(1), "png", "cat.png")
    editor = make_editor(store, tmp_path, importer=importer)
    editor.import_url("cats", "https://x/cat")
    assert names(editor) == ["cat.png"]
    assert importer.asked.max_bytes == editor._datasets.limits.max_upload_bytes
    importer.data = zipped(tmp_path, {"a/b.png": picture(2)}).read_bytes()
    importer.kind = "zip"
    editor.import_url("cats", "https://x/cats.zip")
    assert names(editor) == ["b.png", "cat.png"]
    editor.import_url("cats", "https://x/cats.zip", replace=True)
    assert names(editor) == ["b.png"]
    assert not list((tmp_path / "scratch").iterdir())


def test_few_imports_go_on_at_a_time_and_the_next_is_told_so(store, tmp_path):
    importer = Importer(picture(1), "png", "cat.png")
    importer.release.clear()
    editor = make_editor(store, tmp_path, importer=importer)
    with ThreadPoolExecutor(IMPORTS_AT_ONCE) as threads:
        running = [
            threads.submit(editor.import_url, f"cats{n}", "https://x")
            for n in range(IMPORTS_AT_ONCE)
        ]
        for _ in running:
            assert importer.running.acquire(timeout=30)
        with pytest.raises(ConflictingState, match="imports are already running"):
            editor.import_url("cats", "https://x")
        importer.release.set()
        for one in running:
            one.result(30)
    editor.import_url("cats", "https://x")
    assert names(editor) == ["cat.png"]


def test_an_import_that_fails_makes_room_for_the_next(store, tmp_path):
    editor = make_editor(store, tmp_path, importer=Importer(b"BM", "bmp", "a.bmp"))
    for _ in range(IMPORTS_AT_ONCE + 1):
        with pytest.raises(InvalidDataset):
            editor.import_url("cats", "https://x")
    assert names_in(store) == []
