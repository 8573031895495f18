"""Zip files from strangers: what is taken from good ones, and how the others are refused."""

import io
import json
import re
import stat
import struct
import subprocess
import sys
import zipfile
import zlib

import pytest

from loradash.domain.dataset_manifest import DatasetFile, DatasetManifest
from loradash.errors import InvalidDataset, InvalidRequest, NotFound
from loradash.services.datasets.editing import DatasetEditor
from loradash.services.datasets.scratch import Scratch
from loradash.services.datasets.store import DatasetStore
from loradash.services.datasets.upload_checks import UploadLimits
from loradash.services.datasets.zip_in import RATIO_COUNTS_ABOVE_BYTES, extract
from loradash.services.datasets.zip_out import dataset_zip
from loradash.storage.memory import MemoryStore

from .world import picture

MIB = 2**20
LIMITS = UploadLimits(max_file_bytes=2 * MIB, max_upload_bytes=4 * MIB, max_files=10)
WIDE = UploadLimits(max_file_bytes=2**40, max_upload_bytes=2**40, max_files=1000)


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "unpacked"
    folder.mkdir()
    return folder


@pytest.fixture
def zipped(tmp_path):
    """A function that writes a zip file of names with their content."""

    def write(files, compression=zipfile.ZIP_DEFLATED):
        path = tmp_path / "sent.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path

    return write


def info(name, mode):
    """An entry of a kind that only Unix has."""
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = mode << 16
    return entry


def left_out(extracted):
    return {one.reason: one.names for one in extracted.left_out}


def contents(extracted):
    return {source.name: source.path.read_bytes() for source in extracted.sources}


# Good ones


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_images_captions_and_configs_are_unpacked(zipped, target, compression):
    files = {"a.png": picture(1), "a.txt": "кот".encode(), "b.json": b"{}"}
    found = extract(zipped(files, compression), target, LIMITS)
    assert contents(found) == files
    assert found.left_out == ()
    assert {path.parent for _, path in found.sources} == {target}


@pytest.mark.parametrize("folder", ["cats/", "cats/of/mine/", "cats\\", "./", "./cats/"])
def test_one_common_folder_is_dropped_without_a_word(zipped, target, folder):
    found = extract(zipped({f"{folder}a.png": b"1", f"{folder}a.txt": b"2"}), target)
    assert contents(found) == {"a.png": b"1", "a.txt": b"2"}
    assert found.left_out == ()


def test_other_folders_are_kept(zipped, target):
    found = extract(zipped({"my/x/a.png": b"1", "my/y/b.png": b"2", "my/c.png": b"3"}), target)
    assert contents(found) == {"x/a.png": b"1", "y/b.png": b"2", "c.png": b"3"}
    assert found.left_out == ()


def test_what_systems_and_other_programs_add_is_left_out_and_named(zipped, target):
    files = {
        "cats/": b"", "cats/a.png": b"1", "__MACOSX/cats/._a.png": b"x", "cats/.DS_Store": b"x",
        ".git/a.png": b"x", "cats/.hidden.png": b"x", "cats/Thumbs.db": b"x", "desktop.ini": b"x",
    }  # fmt: skip
    found = extract(zipped(files), target)
    assert contents(found) == {"a.png": b"1"}
    assert left_out(found) == {
        "hidden": (".git/", "cats/.hidden.png"),
        "system_file": ("__MACOSX/", "cats/.DS_Store", "cats/Thumbs.db", "desktop.ini"),
    }


def test_other_files_and_zip_files_inside_are_left_out_and_noted(zipped, target):
    files = {"a.png": b"1", "inner.zip": b"PK", "more.tar": b"x", "run.exe": b"x", "a.jxl": b"x"}
    found = extract(zipped(files), target)
    assert contents(found) == {"a.png": b"1"}
    assert left_out(found) == {
        "archive": ("inner.zip", "more.tar"),
        "image_format": ("a.jxl",),
        "other_kind": ("run.exe",),
    }
    assert [path.name for path in target.iterdir()] == ["0"]


def test_names_become_those_of_a_dataset(zipped, target):
    files = {"cats/A.PNG": b"1", "cats/e\u0301.TXT": b"2"}
    assert contents(extract(zipped(files), target)) == {"A.PNG": b"1", "é.TXT": b"2"}


def test_utf8_names_are_understood_without_their_flag(tmp_path, target):
    path = tmp_path / "sent.zip"
    path.write_bytes(raw_zip([("кот.png".encode(), b"1", {})]))
    assert contents(extract(path, target)) == {"кот.png": b"1"}


def test_a_zip_file_of_the_limits_own_size_is_taken(zipped, target):
    limits = UploadLimits(max_file_bytes=100, max_upload_bytes=300, max_files=3)
    files = {f"{n}.txt": bytes(100) for n in range(3)}
    assert contents(extract(zipped(files), target, limits)) == files


# Refused


REFUSED = {
    "up": ("../a.png", "leads out"),
    "up inside": ("cats/../../a.png", "leads out"),
    "up with backslashes": ("..\\a.png", "leads out"),
    "up hidden in what is left out": ("__MACOSX/../../.x", "leads out"),
    "absolute": ("/etc/a.png", "leads out"),
    "share": ("\\\\host\\a.png", "leads out"),
    "drive": ("C:\\a.png", "leads out"),
    "drive without a slash": ("c:a.png", "leads out"),
    "line break": ("a\nb.png", "control character"),
    "NUL": ("a.png\0.exe", "control character"),
}


@pytest.mark.parametrize(("name", "text"), REFUSED.values(), ids=REFUSED)
def test_entries_that_lead_elsewhere_are_refused(tmp_path, target, name, text):
    path = tmp_path / "bad.zip"
    path.write_bytes(raw_zip([(b"good.png", b"1", {}), (name.encode(), b"2", {})]))
    with pytest.raises(InvalidRequest, match=text) as caught:
        extract(path, target)
    assert "1 of 2 entries can't be used; nothing was stored" in caught.value.message
    assert not list(target.iterdir())


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (stat.S_IFLNK | 0o777, "symbolic link"),
        (stat.S_IFIFO | 0o666, "device"),
        (stat.S_IFCHR | 0o666, "device"),
        (stat.S_IFSOCK | 0o666, "device"),
    ],
)
def test_links_and_devices_are_refused(tmp_path, target, mode, text):
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info("a.png", mode), "/etc/passwd")
    with pytest.raises(InvalidRequest, match=text):
        extract(path, target)
    assert not list(target.iterdir())


@pytest.mark.parametrize("flag", [0x1, 0x41, 0x2000])
def test_encrypted_entries_are_refused(tmp_path, target, flag):
    path = tmp_path / "bad.zip"
    path.write_bytes(raw_zip([(b"a.png", b"1", {"flags": flag})]))
    with pytest.raises(InvalidRequest, match="without a password"):
        extract(path, target)


@pytest.mark.parametrize(
    "names", [("x/a.png", "x\\a.png"), ("a.png", "a.png"), ("é.txt", "e\u0301.txt")]
)
def test_files_that_would_have_one_name_are_refused(tmp_path, target, names):
    path = tmp_path / "bad.zip"
    path.write_bytes(raw_zip([(name.encode(), b"1", {"flags": 0x800}) for name in names]))
    with pytest.raises(InvalidRequest, match="is there twice"):
        extract(path, target)


def test_names_that_no_file_of_a_dataset_has_are_refused(zipped, target):
    with pytest.raises(InvalidRequest, match="shorten it"):
        extract(zipped({f"{'x' * 250}.png": b"1"}), target)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_inflate_without_bounds_are_refused(zipped, target, compression):
    with pytest.raises(InvalidRequest, match="usual method"):
        extract(zipped({"a.png": b"1"}, compression), target)


@pytest.mark.parametrize("files", [{}, {"cats/": b""}, {"readme.md": b"x"}, {"in.zip": b"x"}])
def test_a_zip_file_without_images_is_refused(zipped, target, files):
    with pytest.raises(InvalidRequest, match="no images or captions"):
        extract(zipped(files), target)


def test_too_many_files_are_refused(zipped, target):
    with pytest.raises(InvalidRequest, match="11 files; one upload may have 10"):
        extract(zipped({f"{n}.txt": b"" for n in range(11)}), target, LIMITS)


def test_too_many_entries_are_refused_whatever_they_are(zipped, target):
    with pytest.raises(InvalidRequest, match="41 entries; at most 40"):
        extract(zipped({f".{n}": b"" for n in range(41)}), target, LIMITS)


def test_a_list_of_entries_that_is_too_long_is_not_even_read(zipped, target):
    path = zipped({f"{n}/{'x' * 60_000}.txt": b"" for n in range(20)})
    with pytest.raises(InvalidRequest, match=r"list of entries has 1\.2 MB"):
        extract(path, target, LIMITS)


def test_files_that_are_too_large_alone_or_together_are_refused_unread(zipped, target):
    with pytest.raises(InvalidRequest, match=r"big.txt: 2.1 MB; files may have 2.1 MB"):
        extract(zipped({"big.txt": bytes(2 * MIB + 1)}), target, LIMITS)
    with pytest.raises(InvalidRequest, match=r"2.txt: with this file the upload is larger"):
        extract(zipped({f"{n}.txt": bytes(3 * MIB // 2) for n in range(3)}), target, LIMITS)
    assert not list(target.iterdir())


# Lies


def test_a_size_that_is_said_too_small_is_found_out(tmp_path, target):
    data = bytes(MIB)
    path = tmp_path / "bad.zip"
    path.write_bytes(raw_zip([(b"a.txt", data, {"size": 10})]))
    with pytest.raises(InvalidRequest, match="can't be read"):
        extract(path, target)
    assert sum(one.stat().st_size for one in target.iterdir()) <= 10


def test_a_size_that_is_said_too_large_is_found_out(tmp_path, target):
    path = tmp_path / "bad.zip"
    path.write_bytes(raw_zip([(b"a.txt", b"12345", {"size": 1000})]))
    with pytest.raises(InvalidRequest, match=r"a\.txt has 5 bytes and not 1,000"):
        extract(path, target)


def test_damaged_content_is_found_out(tmp_path, target):
    path = tmp_path / "bad.zip"
    path.write_bytes(raw_zip([(b"a.txt", b"12345", {"crc": 1})]))
    with pytest.raises(InvalidRequest, match="Bad CRC-32"):
        extract(path, target)


@pytest.mark.parametrize("keep", [0, 1, 21, 50, 100, -1, -30, -70])
def test_a_zip_file_that_did_not_arrive_whole_is_refused(zipped, target, keep):
    path = zipped({"a.png": picture(1), "b.png": picture(2)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InvalidRequest, match="can't be read"):
        extract(path, target)


@pytest.mark.parametrize("offset", range(0, 500, 3))
def test_any_damage_is_a_clear_refusal_or_harmless(zipped, target, offset):
    path = zipped({"a.png": picture(1), "b.txt": b"a caption"})
    data = bytearray(path.read_bytes())
    data[offset % len(data)] ^= 0xFF
    path.write_bytes(data)
    try:
        found = extract(path, target, LIMITS)
    except InvalidRequest as error:
        assert error.remedy
    else:
        assert set(contents(found).values()) <= {picture(1), b"a caption"}


@pytest.mark.parametrize("data", [b"", b"PK\x05\x06", b"<html>", picture(1), b"PK\x03\x04" * 50])
def test_what_is_no_zip_file_is_refused(tmp_path, target, data):
    path = tmp_path / "bad.zip"
    path.write_bytes(data)
    with pytest.raises(InvalidRequest, match="can't be read"):
        extract(path, target)


# Bombs


def test_two_entries_of_the_same_bytes_are_refused(tmp_path, target):
    path = tmp_path / "bad.zip"
    path.write_bytes(raw_zip([(b"a.txt", b"12345", {}), (b"a.txt", b"", {"same_as": 0})]))
    with pytest.raises(InvalidRequest, match="shares bytes with another"):
        extract(path, target)


def test_a_bomb_of_overlapping_entries_is_refused(tmp_path, target):
    path = tmp_path / "bomb.zip"
    path.write_bytes(overlapping_bomb(200, MIB))
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    assert sum(one.file_size for one in entries) > 5000 * path.stat().st_size
    for one in (entries[0], entries[100], entries[199]):  # every one of them is good by itself
        start = one.header_offset + 30 + len(one.filename)
        packed = path.read_bytes()[start : start + one.compress_size]
        data = zlib.decompress(packed, -15)
        assert (len(data), zlib.crc32(data)) == (one.file_size, one.CRC)
    with pytest.raises(InvalidRequest, match="shares bytes with another"):
        extract(path, target, WIDE)
    assert not list(target.iterdir())


def test_an_entry_whose_own_header_leads_into_the_next_one_is_refused(tmp_path, target):
    path = tmp_path / "bad.zip"
    path.write_bytes(raw_zip([(b"a.txt", b"1", {"extra_bytes": 30}), (b"b.txt", b"2", {})]))
    with pytest.raises(InvalidRequest, match=r"'b\.txt' shares bytes"):
        extract(path, target)


def test_an_entry_that_reaches_into_the_list_of_entries_is_refused(tmp_path, target):
    path = tmp_path / "bad.zip"
    path.write_bytes(raw_zip([(b"a.txt", b"12345", {"packed_size": 60})]))
    with pytest.raises(InvalidRequest, match="shares bytes"):
        extract(path, target)


def test_more_than_any_honest_ratio_is_refused_when_it_is_reached(zipped, target):
    path = zipped({"a.txt": bytes(RATIO_COUNTS_ABOVE_BYTES + MIB)})
    with pytest.raises(InvalidRequest, match="unpacks to more than a zip file of its size may"):
        extract(path, target, WIDE)
    assert sum(one.stat().st_size for one in target.iterdir()) <= RATIO_COUNTS_ABOVE_BYTES


BOMBS = {
    "flat": ("flat", "unpacks to more|larger than|files may have"),
    "lying": ("lying", "can't be read"),
    "nested": ("nested", "no images or captions"),
    "overlapping": ("overlapping", "shares bytes"),
    "long list": ("list", "list of entries"),
}

MEASURED = """
import json, resource, sys, tracemalloc
from pathlib import Path
from loradash.errors import InvalidRequest
from loradash.services.datasets.zip_in import extract
path, folder = map(Path, sys.argv[1:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tracemalloc.start()
try:
    extract(path, folder)
    text = ""
except InvalidRequest as error:
    text = str(error)
peak = tracemalloc.get_traced_memory()[1]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
written = sum(one.stat().st_size for one in folder.iterdir())
print(json.dumps({"text": text, "peak": peak, "rss": (after - before) * 1024, "written": written}))
"""


@pytest.mark.parametrize(("kind", "text"), BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_in_little_memory(tmp_path, target, kind, text):
    path = tmp_path / "bomb.zip"
    path.write_bytes(bomb(kind))
    ran = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path), str(target)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    facts = json.loads(ran.stdout)
    assert re.search(text, facts["text"]), facts
    assert facts["peak"] < 4 * MIB, facts
    assert facts["rss"] < 32 * MIB, facts
    assert facts["written"] <= 100 * MIB


def test_a_bomb_leaves_the_store_and_the_disk_as_they_were(tmp_path, target, zipped):
    store = MemoryStore()
    datasets = DatasetStore(store, scratch=Scratch(tmp_path / "scratch"))
    editor = DatasetEditor(store, datasets, tmp_path / "cache")
    for kind, _ in BOMBS.values():
        path = tmp_path / "bomb.zip"
        path.write_bytes(bomb(kind))
        with pytest.raises(InvalidRequest):
            editor.import_zip("cats", path)
    assert not list(store.list())
    assert not list((tmp_path / "scratch").iterdir())


def absurd_png(width, height):
    """A PNG of a few bytes that says it is enormous."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (absurd_png(100_000, 100_000), "pixels are more than"),
        (absurd_png(1000, 1000), "b.png"),
        (picture(1)[:40], "b.png"),
        (b"GIF89a" + bytes(100), "not a jpg"),
        (b"PK\x03\x04" + bytes(100), "not a jpg"),
    ],
    ids=["enormous", "no data", "truncated", "another kind", "a zip file"],
)
def test_images_that_are_none_are_refused_and_nothing_is_stored(tmp_path, zipped, data, text):
    store = MemoryStore()
    editor = DatasetEditor(store, DatasetStore(store), tmp_path / "cache")
    with pytest.raises(InvalidDataset, match="nothing was stored") as caught:
        editor.import_zip("cats", zipped({"a.png": picture(1), "b.png": data}))
    assert text in str(caught.value)
    assert not list(store.list())


# Out


class PieceStore(MemoryStore):
    """A store that gives small pieces, and counts those that were asked for."""

    read_pieces = 0

    def read(self, key, start=0, end=None):
        data = self.get(key)[start:end]
        for n in range(0, len(data), 10):
            self.read_pieces += 1
            yield data[n : n + 10]


def stored(store, files):
    entries = []
    for name, data in files.items():
        key = f"dataset/cats/up/{name}"
        store.put(key, data)
        kind = "image" if name.endswith("png") else "caption"
        entries.append(DatasetFile(name=name, key=key, size_bytes=len(data), file_type=kind))
    return DatasetManifest(files=tuple(entries))


def test_a_dataset_becomes_a_zip_file_of_the_size_that_was_said():
    store = PieceStore()
    files = {
        "a.png": picture(1),
        "кот 1.txt": "кот".encode(),
        "sub/b.png": picture(2),
        "c.txt": b"",
    }
    archive = dataset_zip(store, "my cats (1)", stored(store, files))
    data = b"".join(archive)
    assert archive.size_bytes == len(data)
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        assert opened.testzip() is None
        assert {one.filename: opened.read(one) for one in opened.infolist()} == {
            f"my cats (1)/{name}": content for name, content in files.items()
        }
        assert {one.compress_type for one in opened.infolist()} == {zipfile.ZIP_STORED}


def test_nothing_is_read_before_it_is_sent():
    store = PieceStore()
    manifest = stored(store, {"a.png": bytes(1000), "b.png": bytes(1000)})
    archive = dataset_zip(store, "cats", manifest)
    assert archive.size_bytes > 2000
    assert store.read_pieces == 0
    pieces = iter(archive)
    while store.read_pieces == 0:
        next(pieces)
    next(pieces)
    assert store.read_pieces < 5


def test_an_empty_dataset_is_an_empty_zip_file():
    data = b"".join(dataset_zip(MemoryStore(), "cats", DatasetManifest(files=())))
    assert zipfile.ZipFile(io.BytesIO(data)).namelist() == []


@pytest.mark.parametrize("data", [b"12", b"1234"])
def test_a_file_of_another_size_breaks_the_zip_file_instead_of_shifting_it(data):
    store = MemoryStore()
    manifest = stored(store, {"a.txt": b"123"})
    store.put("dataset/cats/up/a.txt", data)
    with pytest.raises(InvalidDataset, match=r"a.txt isn't what was uploaded"):
        b"".join(dataset_zip(store, "cats", manifest))


def test_a_file_that_is_gone_breaks_the_zip_file():
    store = MemoryStore()
    manifest = stored(store, {"a.txt": b"123"})
    store.delete("dataset/cats/up/a.txt")
    with pytest.raises(NotFound):
        b"".join(dataset_zip(store, "cats", manifest))


def test_what_comes_out_can_be_brought_in_again(tmp_path, target):
    store = MemoryStore()
    files = {"a.png": picture(1), "a.txt": "кот".encode()}
    path = tmp_path / "out.zip"
    path.write_bytes(b"".join(dataset_zip(store, "cats", stored(store, files))))
    found = extract(path, target)
    assert contents(found) == files
    assert found.left_out == ()


# Zip files by hand


def raw_zip(entries):
    """A zip file whose headers say what they are told to, true or not."""
    body, directory, offsets = b"", b"", []
    for name, data, said in entries:
        packed = zlib.compressobj(9, zlib.DEFLATED, -15)
        packed_data = packed.compress(data) + packed.flush()
        if "same_as" in said:
            offset, packed_data, data = offsets[said["same_as"]]
            local = b""
        else:
            offset = len(body)
            local = header(b"PK\x03\x04", name, data, packed_data, said)
            body += local + name + packed_data
        offsets.append((offset, packed_data, data))
        directory += header(b"PK\x01\x02", name, data, packed_data, said, offset) + name
    end = struct.pack(
        "<4s4H2IH", b"PK\x05\x06", 0, 0, len(entries), len(entries), len(directory), len(body), 0
    )
    return body + directory + end


def header(magic, name, data, packed, said, offset=None):
    numbers = (
        said.get("flags", 0), 8, 0, 33,
        said.get("crc", zlib.crc32(data)), said.get("packed_size", len(packed)),
        said.get("size", len(data)), len(name), said.get("extra_bytes", 0) if offset is None else 0,
    )  # fmt: skip
    if offset is None:
        return struct.pack("<4sH4H3I2H", magic, 20, *numbers)
    return struct.pack("<4s2H4H3I2H3H2I", magic, 20, 20, *numbers, 0, 0, 0, 0, offset)


def overlapping_bomb(count, size):
    """Fifield's bomb: the data of each entry quotes the headers of all entries after it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(bytes(size)) + packer.flush()
    data, directory = bytes(size), []
    for number in reversed(range(count)):
        name = b"%d.txt" % number
        said = {"crc": zlib.crc32(data), "packed_size": len(packed), "size": len(data)}
        local = header(b"PK\x03\x04", name, b"", b"", said) + name
        quote = struct.pack("<BHH", 0, len(local), len(local) ^ 0xFFFF)  # a block that is stored
        packed = quote + local + packed
        data = local + data
        directory.append((name, said, len(packed) - len(quote)))
    body = packed[len(quote) :]
    entries = b"".join(
        header(b"PK\x01\x02", name, b"", b"", said, len(body) - from_end) + name
        for name, said, from_end in directory
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(entries), len(body), 0)
    return body + entries + end


def bomb(kind):
    if kind == "overlapping":
        return overlapping_bomb(200, MIB)
    if kind == "lying":
        return raw_zip([(b"%d.txt" % n, bytes(50 * MIB), {"size": 10}) for n in range(3)])
    if kind == "list":
        return raw_zip([(b"x" * 60_000 + b"%d.txt" % n, b"", {}) for n in range(100)])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        if kind == "nested":
            inner = bomb("flat")
            for n in range(10):
                archive.writestr(f"{n}.zip", inner)
        else:
            for n in range(8):
                archive.writestr(f"{n}.txt", bytes(60 * MIB))
    return buffer.getvalue()
