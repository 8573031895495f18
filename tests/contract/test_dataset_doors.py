"""The same files through every door: equal images, captions, left-out files and refusals.

The doors are a folder that is trained on, the upload command, a request with all files, files that
are announced and sent one by one over HTTP, a zip file, and an import from a web address. What
comes out of a door is what a training would see of it, and what the user is told.
"""

import base64
import io
import zipfile
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
from PIL import Image

from loradash.cli.dataset_upload import files_to_upload, upload_files
from loradash.datasets.folder import require_usable, scan
from loradash.domain.dataset_findings import findings
from loradash.errors import InvalidDataset, InvalidRequest, LoradashError
from loradash.services.datasets.editing import DatasetEditor
from loradash.services.datasets.url_import import Download
from tests.unit.world import URL, World

HEIC = (Path(__file__).parents[1] / "data" / "half.heic").read_bytes()


def image(kind="png", number=0, **options):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (number * 40 % 256, 90, 30)).save(buffer, kind, **options)
    return buffer.getvalue()


def animation(kind):
    frames = [Image.new("RGB", (12, 8), colour) for colour in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


PNG = image()
ONE = {"a.png": PNG, "a.txt": b"a cat"}


class Outcome(NamedTuple):
    """What a training sees, or else which files are refused."""

    captions: Mapping = MappingProxyType({})
    left_out: Mapping = MappingProxyType({})
    refused: tuple = ()


def taken(captions=None, /, **left_out):
    return Outcome(captions or {"a.png": "a cat"}, left_out)


def refused(*names):
    return Outcome(refused=names)


def one(data, name="a.txt"):
    return {"a.png": PNG, name: data}


INPUTS = {
    # endings of images, in any letter case
    "png": (ONE, taken()),
    "PNG": ({"A.PNG": PNG, "A.txt": b"x"}, taken({"A.PNG": "x"})),
    "jpg": ({"a.jpg": image("jpeg"), "a.txt": b"x"}, taken({"a.jpg": "x"})),
    "JPEG": ({"a.JPEG": image("jpeg"), "a.txt": b"x"}, taken({"a.JPEG": "x"})),
    "jpe": ({"a.jpe": image("jpeg"), "a.txt": b"x"}, taken({"a.jpe": "x"})),
    "Jfif": ({"a.Jfif": image("jpeg"), "a.txt": b"x"}, taken({"a.Jfif": "x"})),
    "webp": ({"a.webp": image("webp"), "a.txt": b"x"}, taken({"a.webp": "x"})),
    "bmp": ({"a.bmp": image("bmp"), "a.txt": b"x"}, taken({"a.bmp": "x"})),
    "gif": ({"a.gif": image("gif"), "a.txt": b"x"}, taken({"a.gif": "x"})),
    "tif": ({"a.tif": image("tiff"), "a.txt": b"x"}, taken({"a.tif": "x"})),
    "TIFF": ({"a.TIFF": image("tiff"), "a.txt": b"x"}, taken({"a.TIFF": "x"})),
    "avif": ({"a.avif": image("avif"), "a.txt": b"x"}, taken({"a.avif": "x"})),
    "heic": ({"a.heic": HEIC, "a.txt": b"x"}, taken({"a.heic": "x"})),
    "HEIF": ({"a.HEIF": HEIC, "a.txt": b"x"}, taken({"a.HEIF": "x"})),
    "another kind than named": ({"a.png": image("gif")}, taken({"a.png": None})),
    "animated gif": ({"a.gif": animation("gif")}, taken({"a.gif": None})),
    "animated png": ({"a.apng": animation("png")}, taken({"a.apng": None})),
    "several pages": ({"a.tiff": animation("tiff")}, taken({"a.tiff": None})),
    "no image format that is read": (
        {**ONE, "b.jxl": b"x", "c.psd": b"x", "d.CR2": b"x", "e.tga": image("tga")},
        taken(image_format=("b.jxl", "c.psd", "d.CR2", "e.tga")),
    ),
    "damaged png": ({**ONE, "b.png": PNG[:30]}, refused("b.png")),
    "damaged heic": ({**ONE, "b.heic": HEIC[:99]}, refused("b.heic")),
    "empty image": ({**ONE, "b.jpg": b""}, refused("b.jpg")),
    "a page named png": ({**ONE, "b.png": b"<html>"}, refused("b.png")),
    "several bad ones": ({**ONE, "b.png": b"x", "c.gif": b"y"}, refused("b.png", "c.gif")),
    # which caption belongs to which image
    "no caption": ({"a.png": PNG}, taken({"a.png": None})),
    "TXT": (one(b"x", "a.TXT"), taken({"a.png": "x"})),
    "A.PNG with a.txt": ({"A.PNG": PNG, "a.txt": b"x"}, taken({"A.PNG": "x"})),
    "a.png with A.TXT": (one(b"x", "A.TXT"), taken({"a.png": "x"})),
    "caption": (one(b"x", "a.caption"), taken({"a.png": "x"})),
    "CAPTION": (one(b"x", "A.CAPTION"), taken({"a.png": "x"})),
    "txt before caption": (
        {**ONE, "a.caption": b"no"}, taken(unused_caption=("a.caption",)),
    ),
    "the whole name and txt": (one(b"x", "a.png.txt"), taken({"a.png": "x"})),
    "txt before the whole name": (
        {**ONE, "a.png.txt": b"no"}, taken(unused_caption=("a.png.txt",)),
    ),
    "a.txt and A.TXT": ({**ONE, "A.TXT": b"no"}, taken(unused_caption=("A.TXT",))),
    "dots": ({"a.b.c.png": PNG, "a.b.c.txt": b"x"}, taken({"a.b.c.png": "x"})),
    "A.jpg and a.jpg": (
        {"A.jpg": image("jpeg"), "a.jpg": image("jpeg", 2), "A.txt": b"A", "a.txt": b"a"},
        taken({"A.jpg": "A", "a.jpg": "a"}),
    ),
    "A.jpg and a.jpg, one caption": (
        {"A.jpg": image("jpeg"), "a.jpg": image("jpeg", 2), "a.txt": b"a"},
        taken({"A.jpg": None, "a.jpg": "a"}),
    ),
    "one caption for two": (
        {**ONE, "a.jpg": image("jpeg")}, taken({"a.jpg": "a cat", "a.png": "a cat"}),
    ),
    "accents in one letter": (
        {"\u00e9.png": PNG, "\u00e9.txt": b"x"}, taken({"\u00e9.png": "x"}),
    ),
    "other scripts": (
        {"\u732b (1).png": PNG, "\u732b (1).txt": b"x"}, taken({"\u732b (1).png": "x"}),
    ),
    "brackets": ({"[sks] a.png": PNG, "[sks] a.txt": b"x"}, taken({"[sks] a.png": "x"})),
    "caption without an image": ({**ONE, "lost.txt": b"x"}, taken()),
    "captions in json": (
        {**ONE, "a.json": b"{}", "metadata.jsonl": b"{}"},
        taken(other_kind=("a.json", "metadata.jsonl")),
    ),
    # what captions hold
    "utf-8 mark": (one(b"\xef\xbb\xbfa cat"), taken()),
    "utf-16 with a mark": (one("a cat".encode("utf-16")), taken()),
    "big utf-16 with a mark": (one(b"\xfe\xff" + "a cat".encode("utf-16-be")), taken()),
    "utf-16 without a mark": (one("a cat".encode("utf-16-le")), refused("a.txt")),
    "half a letter of utf-16": (one(b"\xff\xfea"), refused("a.txt")),
    "NUL": (one(b"a\0cat"), refused("a.txt")),
    "latin-1": (one("s\u00fc\u00df".encode("latin-1")), refused("a.txt")),
    "cp1251": (one("\u043a\u043e\u0442".encode("cp1251")), refused("a.txt")),
    "shift-jis": (one("\u732b".encode("shift-jis")), refused("a.txt")),
    "escape sequence": (one(b"a \x1b[31mcat"), refused("a.txt")),
    "too long": (one(b"x" * 64_001), refused("a.txt")),
    "as long as may be": (one(b"x" * 64_000), taken({"a.png": "x" * 64_000})),
    "empty caption": (one(b""), taken({"a.png": ""})),
    "white space": (one(b" \r\n\t"), taken({"a.png": ""})),
    "several lines": (one(b"a\r\n  cat\n"), taken()),
    "a readme that can't be read": (
        {**ONE, "readme.txt": b"\xff\xff"}, taken(unreadable_caption=("readme.txt",)),
    ),
    # folders
    "sub-folders": (
        {**ONE, "x/a.png": image(number=1), "x/a.txt": b"x", "x/y/b.png": image(number=2)},
        taken({"a.png": "a cat", "x/a.png": "x", "x/y/b.png": None}),
    ),
    "caption in another folder": (
        {"a.png": PNG, "x/a.txt": b"x", "x/b.png": image(number=1)},
        taken({"a.png": None, "x/b.png": None}),
    ),
    "controls": ({**ONE, "_controls/a.png": PNG}, taken(helper_folder=("_controls/",))),
    "caches": (
        {**ONE, "_latent_cache/a.png": PNG, "x/_t_e_cache/a.png": PNG, "x/b.png": PNG},
        taken(
            {"a.png": "a cat", "x/b.png": None}, helper_folder=("_latent_cache/", "x/_t_e_cache/")
        ),
    ),
    "@eaDir": (
        {**ONE, "@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg": PNG, "@eaDir/b/x.jpg": PNG},
        taken(helper_folder=("@eaDir/",)),
    ),
    "#recycle and lost+found": (
        {**ONE, "#recycle/a.png": PNG, "lost+found/b.png": PNG},
        taken(helper_folder=("#recycle/", "lost+found/")),
    ),
    "__MACOSX": (
        {**ONE, "__MACOSX/._a.png": b"x", "._a.png": b"x"},
        taken(system_file=("._a.png", "__MACOSX/")),
    ),
    "Thumbs.db": (
        {**ONE, "Thumbs.db": b"x", "desktop.ini": b"x", ".DS_Store": b"x"},
        taken(system_file=(".DS_Store", "Thumbs.db", "desktop.ini")),
    ),
    "hidden": (
        {**ONE, ".b.png": PNG, ".thumbnails/a.png": PNG, ".ipynb_checkpoints/a.png": PNG},
        taken(hidden=(".b.png", ".ipynb_checkpoints/", ".thumbnails/")),
    ),
    "masks": ({**ONE, "a-masklabel.png": PNG}, taken(helper_file=("a-masklabel.png",))),
    "other kinds": (
        {**ONE, "a.npz": b"x", "b.mp4": b"x", "run.exe": b"x", "c": b"x"},
        taken(other_kind=("a.npz", "b.mp4", "c", "run.exe")),
    ),
    "archives": (
        {**ONE, "b.zip": b"PK", "c.tar.gz": b"x"}, taken(archive=("b.zip", "c.tar.gz")),
    ),
    "a configuration": ({**ONE, "train.yaml": b"x: 1"}, taken(other_kind=("train.yaml",))),
    "identical images": ({**ONE, "b.png": PNG}, taken({"a.png": "a cat", "b.png": None})),
    # nothing
    "captions only": ({"a.txt": b"x"}, refused()),
    "no files that are taken": ({"a.psd": b"x", "b.md": b"x"}, refused()),
    "only what other programs keep": ({"_controls/a.png": PNG, ".b.png": PNG}, refused()),
}  # fmt: skip


def test_there_are_enough_inputs():
    assert len(INPUTS) >= 60


class Doors:
    """Each door takes files and returns what came of them."""

    def __init__(self, root):
        self.world = World(root)
        self.root = root
        self._numbers = count()
        self.client = self.world.client().__enter__()

    # The doors

    def folder(self, files):
        report = scan(self._written(files))
        require_usable(report)
        return report, (), [*(finding.text for finding in findings(report))]

    def command(self, files):
        folder, name = self._written(files), self._name()
        reply = upload_files(self, files_to_upload(folder), name=name, trigger_word="", add=False)
        return self._stored(reply)

    def request(self, files):
        sent = [
            {"filename": name, "content": base64.b64encode(data).decode(), "size": len(data)}
            for name, data in files.items()
        ]
        return self._stored(
            self.ask(type="upload_training_data", dataset_folder=self._name(), files=sent)
        )

    def upload(self, files):
        announced = [{"filename": name, "size": len(data)} for name, data in files.items()]
        plan = self.ask(type="create_upload", dataset_folder=self._name(), files=announced)
        assert [entry["filename"] for entry in plan["files"]] == list(files)
        for entry in plan["files"]:
            if entry["state"] == "send":
                reply = self.client.put(entry["url"], content=files[entry["filename"]])
                assert reply.status_code == 200, reply.text
            else:
                assert (entry["state"], entry["url"]) == ("left_out", None)
        ids = {name: plan[name] for name in ("dataset_folder", "upload_id")}
        return self._stored(self.ask(type="complete_upload", **ids))

    def zip(self, files):
        reply = self.client.post(
            f"/datasets/{self._name()}/zip", content=zipped(files),
            headers={"content-type": "application/zip"},
        )  # fmt: skip
        return self._stored(_good(reply.json()))

    def imported(self, files):
        class Importer:
            def fetch(self, url, path, max_bytes, room):
                path.write_bytes(zipped(files))
                return Download(path, "zip", "")

        cache = self.root / "cache"
        editor = DatasetEditor(self.world.store, self.world.datasets, cache, Importer())
        reply = editor.import_url(self._name(), "https://example.org/a.zip")
        return self._stored(reply.model_dump(mode="json"))

    # What they need

    def ask(self, **request):
        return _good(self.world.dispatcher.answer(request, base_url=URL))

    def send(self, entry, path, on_bytes):
        self.world.store.put_file(entry.key, path)

    def _stored(self, reply):
        target = self.root / "copies" / reply["dataset_folder"]
        report = scan(self.world.datasets.materialize(reply["dataset_folder"], target))
        assert not report.problems
        entries = self.world.services.dataset_editor.details.images(reply["dataset_folder"]).images
        shown = {one.name: one.caption.text for one in entries}
        trained = {one.relative_path: one.caption for one in report.images}
        assert {name: _words(text) for name, text in shown.items()} == trained
        return report, [_LeftOut(**one) for one in reply["left_out"]], reply["warnings"]

    def _written(self, files):
        folder = self.root / self._name()
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder

    def _name(self):
        return f"set-{next(self._numbers)}"


class _LeftOut(NamedTuple):
    reason: str
    count: int
    names: tuple


class _Refused(Exception):
    pass


def _good(reply):
    if "error" in reply:
        raise _Refused(reply["error"])
    return reply


def _words(text):
    return None if text is None else " ".join(text.split())


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


DOORS = ("folder", "command", "request", "upload", "zip", "imported")


@pytest.fixture(scope="module")
def doors(tmp_path_factory):
    doors = Doors(tmp_path_factory.mktemp("doors"))
    yield doors
    doors.client.__exit__(None, None, None)


def outcome(doors, door, files):
    """Return what came of the files, and all that the user was told."""
    try:
        report, left_out, warnings = getattr(doors, door)(files)
    except (InvalidDataset, InvalidRequest, _Refused) as error:
        text = str(error)
        named = sorted(_named_in(error, files))
        return Outcome(refused=tuple(named)), text
    captions = {one.relative_path: one.caption for one in report.images}
    found = {}
    for group in (*left_out, *report.left_out):
        found.setdefault(group.reason, set()).update(group.names)
    left = {reason: tuple(sorted(names)) for reason, names in found.items()}
    return Outcome(captions, left), "\n".join(warnings)


def _named_in(error, files):
    """Return the files that can't be used, as the problems name them: images by their captions."""
    problems = error.problems if isinstance(error, LoradashError) else str(error).splitlines()
    for line in problems:
        name, _, text = line.removeprefix("  - ").partition(": ")
        if name in files:
            caption = text.startswith("its caption: ")
            yield str(Path(name).with_suffix(".txt")) if caption else name


@pytest.mark.parametrize("name", INPUTS)
def test_every_door_takes_and_leaves_out_and_refuses_the_same(doors, name):
    files, expected = INPUTS[name]
    for door in DOORS:
        found, told = outcome(doors, door, files)
        assert found == expected, (door, told)
        for reason, names in expected.left_out.items():
            if reason != "system_file":
                assert all(name in told for name in names), (door, reason, told)


LATER = ["one caption for two", "empty caption", "animated gif", "several pages",
         "caption without an image", "txt before caption"]  # fmt: skip


@pytest.mark.parametrize("name", LATER)
def test_every_door_tells_what_is_used_otherwise_than_may_be_expected(doors, name):
    files, _ = INPUTS[name]
    words = {
        "one caption for two": "one caption for 2 images: a.txt is used for a.jpg, a.png",
        "empty caption": "1 caption is empty: a.",
        "animated gif": "1 image is only the first of several frames or pages in its file: a.gif",
        "several pages": "1 image is only the first of several frames or pages in its file: a.tiff",
        "caption without an image": "1 caption without an image: lost.txt",
        "txt before caption": "a.caption",
    }[name]
    for door in DOORS:
        assert words in outcome(doors, door, files)[1], door


def test_links_are_followed_from_a_folder_and_by_the_command_and_refused_in_a_zip_file(
    doors, tmp_path
):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / "1f").write_bytes(PNG)
    (blobs / "2f").write_bytes(b"a cat")
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "a.png").symlink_to("../../blobs/1f")
    (snapshot / "a.txt").symlink_to("../../blobs/2f")
    assert {one.relative_path: one.caption for one in scan(snapshot).images} == {"a.png": "a cat"}
    reply = upload_files(
        doors, files_to_upload(snapshot), name="linked", trigger_word="", add=False
    )
    report, _, _ = doors._stored(reply)
    assert {one.relative_path: one.caption for one in report.images} == {"a.png": "a cat"}
    link = zipfile.ZipInfo("a.png")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, "../../blobs/1f")
    reply = doors.client.post(
        "/datasets/linkedzip/zip", content=buffer.getvalue(),
        headers={"content-type": "application/zip"},
    )  # fmt: skip
    assert "symbolic link" in reply.json()["error"]


def test_a_dataset_that_was_whole_before_keeps_its_hash(tmp_path):
    """Trainings of earlier releases go on only with the very same dataset."""
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(_plain_bmp(number))
        (tmp_path / f"{number}.txt").write_text(f"cat {number}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "B.JPG").write_bytes(_plain_bmp(7))
    (tmp_path / "sub" / "B.txt").write_text(" two\n words ")
    (tmp_path / "bare.webp").write_bytes(_plain_bmp(9))
    assert scan(tmp_path).sha256 == BEFORE


def _plain_bmp(number):
    """A BMP of one pixel, whose bytes depend on no encoder."""
    header = b"BM" + (58).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    info = (40).to_bytes(4, "little") + (1).to_bytes(4, "little") * 2
    info += b"\x01\0\x18\0" + bytes(4) + (4).to_bytes(4, "little") + bytes(16)
    return header + info + bytes((number, 90, 30, 0))


BEFORE = "95f06cc111e44f911e9aa906edb1f4c0d76979ac16de949e64e8d29848734bf8"
