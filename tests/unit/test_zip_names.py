"""Names in zip files of other countries and programs: read as they were meant, and never lost."""

import io
import struct
import zipfile
import zlib

import pytest

from loradash.domain.dataset_manifest import DatasetFile, DatasetManifest
from loradash.services.datasets.zip_in import extract
from loradash.services.datasets.zip_names import entry_names
from loradash.services.datasets.zip_out import dataset_zip
from loradash.storage.memory import MemoryStore

WINDOWS, UNIX = 0, 3


class Entry(zipfile.ZipInfo):
    """An entry whose name is written as these bytes."""

    def __init__(self, raw, system=WINDOWS, flags=0, extra=b""):
        super().__init__(raw.hex())
        self.raw, self.raw_flags = raw, flags
        self.create_system, self.extra = system, extra

    def _encodeFilenameFlags(self):  # noqa: N802  # zipfile's name
        return self.raw, self.raw_flags


def zip_of(entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for entry in entries:
            archive.writestr(entry, entry.raw)
    return buffer.getvalue()


def names_in(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return entry_names(archive.infolist())


def unicode_path(name, raw, version=1):
    field = struct.pack("<BL", version, zlib.crc32(raw)) + name.encode()
    return struct.pack("<HH", 0x7075, len(field)) + field


def pairs(*stems):
    return [f"{stem}.{ending}" for stem in stems for ending in ("png", "txt")]


FOREIGN = {
    "cp932": [
        pairs("ソ"), pairs("表紙", "能力"), pairs("女の子 (1)", "女の子 (2)"), pairs("予定表/十"),
        ["スクリーンショット 2024-01-02.png"], pairs("猫の写真"),
    ],
    "gb18030": [
        pairs("新建文件夹/图片1"), ["微信图片_20240102.jpg"], pairs("照片"), pairs("女孩 (1)"),
    ],
    "big5": [pairs("圖片1"), ["新增資料夾/照片.jpg"], pairs("功能", "許願")],
    "cp949": [pairs("고양이"), pairs("새 폴더/사진 1"), pairs("강아지")],
    "cp866": [pairs("Кошка"), pairs("фото 1"), pairs("Новая папка/Мои коты"), pairs("яблоко")],
    "cp1251": [pairs("Кошка"), pairs("Новая папка/Мои коты")],
    "koi8-r": [pairs("Кошка", "фото")],
    "cp437": [pairs("café"), pairs("Müller", "größe"), pairs("niño pequeño", "España")],
    "cp852": [pairs("kočka"), pairs("zażółć gęślą", "jaźń")],
    "cp1250": [pairs("kočka"), pairs("zażółć gęślą", "jaźń")],
    "cp737": [pairs("γάτα", "σκύλος")],
    "cp857": [pairs("kedi güneş", "çiçek ağaç")],
    "cp1255": [pairs("חתול", "כלב")],
    "cp874": [pairs("แมว", "สุนัข")],
}  # fmt: skip
CASES = [(encoding, names) for encoding, sets in FOREIGN.items() for names in sets]


@pytest.mark.parametrize(("encoding", "names"), CASES, ids=[f"{e} {n[0]}" for e, n in CASES])
def test_names_without_a_stated_encoding_are_read_as_they_were_meant(encoding, names, tmp_path):
    path = tmp_path / "sent.zip"
    path.write_bytes(zip_of([Entry(name.encode(encoding)) for name in names]))
    found = names_in(path.read_bytes())
    assert list(found.names) == names
    (target := tmp_path / "unpacked").mkdir()
    extracted = extract(path, target)
    taken = {source.name: source.path.read_bytes() for source in extracted.sources}
    assert sorted(taken.values()) == sorted(name.encode(encoding) for name in names)
    assert {name.rpartition("/")[2] for name in taken} == {n.rpartition("/")[2] for n in names}


@pytest.mark.parametrize("letter", "ソ表能十予貼暴申構欺圭蚕噂浬")
@pytest.mark.parametrize("system", [WINDOWS, UNIX])
def test_a_backslash_inside_a_letter_loses_neither_image_nor_caption(letter, system, tmp_path):
    raws = [f"{letter}.{ending}".encode("cp932") for ending in ("png", "txt")]
    assert raws[0][1:2] == b"\\"
    path = tmp_path / "sent.zip"
    path.write_bytes(zip_of([Entry(raw, system) for raw in raws]))
    (target := tmp_path / "unpacked").mkdir()
    names = [source.name for source in extract(path, target).sources]
    assert len(names) == 2
    assert names[0].removesuffix(".png") == names[1].removesuffix(".txt") != ""


def test_a_guess_is_told_and_what_is_stated_needs_none(tmp_path):
    (target := tmp_path / "unpacked").mkdir()
    path = tmp_path / "sent.zip"
    path.write_bytes(zip_of([Entry("ソ.png".encode("cp932"))]))
    (note,) = [note for note in extract(path, target).notes if "cp932" in note]
    assert "doesn't say how its names are encoded" in note
    stated = [Entry(b"a.png"), Entry("ソ.png".encode(), flags=0x800), Entry("é.png".encode(), UNIX)]
    assert names_in(zip_of(stated)) == (("a.png", "ソ.png", "é.png"), "")


def test_the_extra_field_says_the_name_if_it_was_made_for_it():
    raw = "表.png".encode("cp932")
    good = Entry(raw, extra=unicode_path("表.png", raw))
    assert names_in(zip_of([good])) == (("表.png",), "")
    renamed = Entry("図.png".encode("cp932"), extra=unicode_path("表.png", raw))
    other = Entry(raw, extra=unicode_path("x.png", raw, version=2))
    damaged = unicode_path("表.png", raw)[:-3] + b"\xff\xff\xff"
    broken = Entry("表紙.png".encode("cp932"), extra=damaged)
    found = names_in(zip_of([renamed, other, broken]))
    assert found == (("図.png", "表.png", "表紙.png"), "cp932")


@pytest.mark.parametrize("extra", [b"\x75\x70", b"\x75\x70\x01\x00\x01", b"\x75\x70\xff\xff\x01"])
def test_a_damaged_extra_field_is_passed_over(extra):
    info = zipfile.ZipInfo("x.png")
    info.orig_filename, info.extra = "caf\u00e9.png", extra
    assert entry_names([info]).names == ("café.png",)


def test_names_of_two_programs_are_each_read_as_they_can_be():
    raws = ["表紙.png".encode("cp932"), "łąka.png".encode()]
    found = names_in(zip_of([Entry(raw) for raw in raws]))
    assert len(set(found.names)) == 2
    assert all(name.endswith(".png") and len(name) > 4 for name in found.names)


def test_a_backslash_of_old_windows_programs_still_divides_folders():
    found = names_in(zip_of([Entry("photos\\кот.png".encode("cp866"))]))
    assert found.names == ("photos\\кот.png",)


def test_many_names_are_judged_by_some_of_them():
    names = [f"写真{number}.png" for number in range(5000)]
    found = names_in(zip_of([Entry(name.encode("cp932")) for name in names]))
    assert (list(found.names), found.guessed) == (names, "cp932")


def test_zip_files_of_ours_say_that_their_names_are_utf8():
    store = MemoryStore()
    store.put("k", b"x")
    file = DatasetFile(name="ソ é.png", key="k", size_bytes=1, file_type="image")
    manifest = DatasetManifest(files=(file,))
    data = b"".join(dataset_zip(store, "катя", manifest))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (info,) = archive.infolist()
    assert (info.filename, bool(info.flag_bits & 0x800)) == ("катя/ソ é.png", True)
