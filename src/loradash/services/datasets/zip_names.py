"""Names of a zip file's entries, which for most of the format's life had no stated encoding.

An entry says that its name is UTF-8 by a flag, or gives the name once more in an extra field
(Info-ZIP's 0x7075). Windows and old programs write the code page of the machine instead, and say
nothing. In those of Japan and China a byte of a letter may be 0x5C, which is a backslash elsewhere:
read as the wrong code page, a name falls apart into folders and its file is lost. So all such names
of a zip file are read together, as the one code page that they fit best.
"""

import re
import struct
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple
from zipfile import ZipInfo

UTF8_NAME = 0x800  # a flag: the name is UTF-8

_UNICODE_PATH = 0x7075
_ZIPFILES_OWN = "cp437"  # as which `zipfile` decodes what has no flag; no byte is lost
_CODE_PAGES = (
    "cp932", "gb18030", "big5", "cp949",  # Japan, China, Taiwan and Hong Kong, Korea
    "cp866", "cp1251", "koi8-r",  # Cyrillic
    "cp437", "cp850", "cp1252",  # the west of Europe and America
    "cp852", "cp1250", "cp775", "cp1257",  # its middle, and the Baltic states
    "cp737", "cp1253", "cp857", "cp1254", "cp862", "cp1255", "cp864", "cp1256", "cp874",
)  # fmt: skip
_UNIXES = ("euc-jp",)
_MADE_ON_UNIX = (3, 19)  # and macOS
_MAX_SAMPLE_BYTES = 20_000
_NO_LETTERS = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Sc", "Sk", "Sm", "So", "Zl", "Zp"})
_MARKS = frozenset("–—‘’“”…«»")  # noqa: RUF001  # that people write
_IMPOSSIBLE = frozenset({"Cc", "Cn", "Co", "Cs", "Zl", "Zp"})


class EntryNames(NamedTuple):
    """The names of all entries, in their order, with ``/`` and ``\\`` as their writers meant."""

    names: tuple[str, ...]
    guessed: str
    """The code page that names without a stated encoding were read as; '' if there was no need."""


def entry_names(entries: Sequence[ZipInfo]) -> EntryNames:
    """Return the names of a zip file's entries."""
    stated = [_stated(info) for info in entries]
    open_names = dict.fromkeys(
        _raw(info) for info, name in zip(entries, stated, strict=True) if name is None
    )
    on_unix = any(info.create_system in _MADE_ON_UNIX for info in entries)
    guessed = _fitting(list(open_names), on_unix) if open_names else ""
    names = tuple(
        _decoded(_raw(info), guessed) if name is None else name
        for info, name in zip(entries, stated, strict=True)
    )
    return EntryNames(names, "" if guessed == "utf-8" else guessed)


def _stated(info: ZipInfo) -> str | None:
    """Return an entry's name if there is no doubt about it."""
    if info.flag_bits & UTF8_NAME:
        return info.orig_filename  # `filename` ends at the first NUL
    raw = _raw(info)
    return raw.decode() if raw.isascii() else _unicode_path(info.extra, raw)


def _raw(info: ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & UTF8_NAME else _ZIPFILES_OWN)


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """Return the name of the extra field, if there is one and it was made for this very name."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _UNICODE_PATH and len(field) > 5:
            version, checksum = struct.unpack_from("<BL", field)
            if version == 1 and checksum == zlib.crc32(raw):
                try:
                    return field[5:].decode("utf-8")
                except UnicodeDecodeError:
                    return None
    return None


def _decoded(raw: bytes, encoding: str) -> str:
    """Decode a name; one that isn't of that encoding is of another program than the rest."""
    for one in (encoding, "utf-8"):
        try:
            return raw.decode(one)
        except UnicodeDecodeError:
            continue
    return raw.decode(_ZIPFILES_OWN)


def _fitting(raws: Sequence[bytes], on_unix: bool) -> str:
    """Return the encoding that all of these names fit best.

    Detection goes by how often letters stand beside each other; of a few letters it can't know
    much. So what it proposes comes first only among those by which every name is a good one.
    """
    if _fits(raws, "utf-8"):
        return "utf-8"
    proposed = [one for one in _proposed(raws, on_unix) if _fits(raws, one)]
    return min(proposed, key=lambda one: _oddity(raws, one), default=_ZIPFILES_OWN)


def _proposed(raws: Iterable[bytes], on_unix: bool) -> Iterator[str]:
    """Yield encodings, the likeliest first; those that detection has dropped come last."""
    from chardet import detect_all

    names = (*_CODE_PAGES, *(_UNIXES if on_unix else ()))
    found = detect_all(
        _sample(raws), ignore_threshold=True, include_encodings=names, compat_names=False
    )
    yield from (one["encoding"] for one in found if one["encoding"])
    yield from names


def _sample(raws: Iterable[bytes]) -> bytes:
    """Return whole names, as many as are enough to judge by."""
    taken: list[bytes] = []
    size_bytes = 0
    for raw in raws:
        size_bytes += len(raw)
        if taken and size_bytes > _MAX_SAMPLE_BYTES:
            break
        taken.append(raw)
    return b"\n".join(taken)


def _fits(raws: Sequence[bytes], encoding: str) -> bool:
    try:
        return all(_is_possible(raw.decode(encoding)) for raw in raws)
    except (UnicodeDecodeError, LookupError):
        return False


def _is_possible(name: str) -> bool:
    """Whether a name has nothing in it that no program would write."""
    return all(_category(letter) not in _IMPOSSIBLE for letter in name)


def _oddity(raws: Sequence[bytes], encoding: str) -> tuple[int, int]:
    """Count what is odd by an encoding: files without a name, and letters nobody writes so."""
    names = [raw.decode(encoding) for raw in raws]
    nameless = sum(_last(name).startswith(".") for name in names)
    return nameless, sum(_is_odd(*pair) for name in names for pair in _pairs(name))


def _pairs(name: str) -> Iterator[tuple[str, str]]:
    """Each letter that isn't ASCII with the one before it, and each one that follows such a one."""
    return ((a, b) for a, b in zip(f" {name}", name, strict=False) if max(a, b) > "\x7f")


def _is_odd(before: str, letter: str) -> bool:
    """Whether a letter is a sign that names don't have, or a capital behind a small one."""
    kind = _category(letter)
    if kind.startswith("P"):
        return letter > "\x7f" and letter not in _MARKS and not _is_east_asian(letter)
    return kind in _NO_LETTERS or (kind == "Lu" and _category(before) == "Ll")


def _is_east_asian(letter: str) -> bool:
    return "\u3000" <= letter <= "\u30ff" or "\uff00" <= letter <= "\uffef"


def _last(name: str) -> str:
    return re.split(r"[/\\]", name)[-1]


@lru_cache(10_000)
def _category(letter: str) -> str:
    return unicodedata.category(letter)
