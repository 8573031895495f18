"""Zip files of images and captions, read as what they are: written by a stranger.

Every number in a zip file is its writer's choice. So names and kinds of all entries are looked at
before anything is unpacked, no two entries may share bytes (which is how a few kilobytes become
terabytes), and what is unpacked is counted piece by piece. Nothing is in memory but the list of
entries, whose length is bounded too, and one piece.
"""

import contextlib
import errno
import io
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile, ZipInfo

from loradash.domain.dataset_files import IMAGE_KINDS, OTHER_SUFFIXES, LeftOut, sorted_out
from loradash.domain.dataset_findings import left_out_text
from loradash.domain.sizes import size_text
from loradash.domain.upload_fields import check_file_names, file_name, shown
from loradash.errors import InvalidRequest
from loradash.services.datasets.upload_checks import (
    DEFAULT_LIMITS,
    FileProblem,
    SourceFile,
    UploadLimits,
    check_amounts,
    check_number,
    too_large,
)
from loradash.services.datasets.zip_names import entry_names

MAX_RATIO = 200
"""How many times its own size a zip file may unpack to; images and captions stay far below."""
RATIO_COUNTS_ABOVE_BYTES = 64 * 2**20
"""What may be unpacked at any ratio: a few plain bitmaps are no bomb."""

_ENTRIES_PER_FILE = 4  # macOS adds a hidden entry to each file, and folders are entries too
_DIRECTORY_BYTES_PER_ENTRY = 256
_MIN_DIRECTORY_BYTES = 2**20
_PIECE_BYTES = 64 * 1024
_LOCAL_HEADER_BYTES = 30
_PROBLEMS_SHOWN = 20

_ENCRYPTED = 0x1 | 0x40 | 0x2000  # flags: encrypted, strongly encrypted, with hidden headers
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:")
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError, RuntimeError
)  # fmt: skip


class Extracted(NamedTuple):
    """Files that were unpacked, what was left out, and in a sentence each what else to know."""

    sources: tuple[SourceFile, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]


def extract(
    path: Path,
    folder: Path,
    limits: UploadLimits = DEFAULT_LIMITS,
    announce: Callable[[int], None] = lambda _size_bytes: None,
) -> Extracted:
    """Unpack what a dataset can use of a zip file into a folder, under names made for it.

    ``announce`` is called with how many bytes that will be, and may raise. The folders in which
    all of it lies aren't parts of the files' names, others are. Raises `InvalidRequest`, and has
    perhaps written a part into the folder, if the zip file is damaged, if an entry leads elsewhere
    or is a link or encrypted, if two files would have one name, or if anything is more than the
    limits allow.
    """
    with _opened(path, limits) as archive:
        entries = archive.infolist()
        _refuse_too_many(len(entries), limits)
        found = entry_names(entries)
        parts_of = _checked_parts(entries, found.names)
        _refuse_overlaps(archive, entries)
        kept, left_out = _sorted_out(entries, parts_of)
        names = _checked_names(kept, left_out, limits)
        announce(sum(one.info.file_size for one in kept))
        unpacking = _Unpacking(archive, limits, path.stat().st_size)
        sources = []
        for number, (name, one) in enumerate(zip(names, kept, strict=True)):
            target = folder / str(number)
            unpacking.write(name, one.info, target)
            sources.append(SourceFile(name, target))
    notes = [_guess_text(found.guessed)] if found.guessed else []
    return Extracted(tuple(sources), left_out, tuple(notes))


def _guess_text(encoding: str) -> str:
    return f"the zip file doesn't say how its names are encoded; they were read as {encoding}"


class _Entry(NamedTuple):
    info: ZipInfo
    parts: tuple[str, ...]


class _BoundedReader(io.BufferedReader):
    """A file of which only so much is read at once: a zip file says itself how long its list is."""

    def __init__(self, path: Path, max_read_bytes: int) -> None:
        super().__init__(io.FileIO(path))
        self._size_bytes = path.stat().st_size
        self._max_read_bytes = max_read_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        """Read bytes. Raises `InvalidRequest` if they are more than a good zip file needs."""
        left = max(0, self._size_bytes - self.tell())
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > self._max_read_bytes:
            raise InvalidRequest(
                f"zip file: its list of entries has {size_text(wanted)}",
                remedy="Make a zip file of images and captions only.",
            )
        return super().read(wanted)


@contextlib.contextmanager
def _opened(path: Path, limits: UploadLimits) -> Iterator[ZipFile]:
    """Open a zip file; whatever can't be read in it becomes an `InvalidRequest`."""
    entries = _max_entries(limits)
    directory_bytes = max(_MIN_DIRECTORY_BYTES, entries * _DIRECTORY_BYTES_PER_ENTRY)
    try:
        with _BoundedReader(path, directory_bytes) as file, ZipFile(file) as archive:
            yield archive
    except _UNREADABLE as error:
        raise _damaged(str(error) or type(error).__name__) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # where a place in the file is out of the question
            raise
        raise _damaged("it refers to places outside of it") from error


def _damaged(reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"zip file: it can't be read ({reason[:200]})",
        remedy="Make the zip file again, or send it once more: it may not have arrived whole.",
    )


def _max_entries(limits: UploadLimits) -> int:
    return limits.max_files * _ENTRIES_PER_FILE


def _refuse_too_many(number: int, limits: UploadLimits) -> None:
    if number > _max_entries(limits):
        raise InvalidRequest(
            f"zip file: {number:,} entries; at most {_max_entries(limits):,} are looked at",
            remedy=f"Split it: one upload may have {limits.max_files:,} files.",
        )


def _checked_parts(entries: Sequence[ZipInfo], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the parts of each entry's path, or refuse all entries that no honest zip file has."""
    parts_of, problems = [], []
    for info, name in zip(entries, names, strict=True):
        try:
            parts_of.append(_parts(info, name))
        except ValueError as error:
            problems.append(FileProblem(shown(name), str(error)))
    _refuse(problems, len(entries))
    return parts_of


def _parts(info: ZipInfo, name: str) -> tuple[str, ...]:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if it was made on Windows
    if info.flag_bits & _ENCRYPTED:
        raise ValueError("is encrypted; make the zip file without a password")
    if kind == stat.S_IFLNK:
        raise ValueError("is a symbolic link; put the file itself into the zip file")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ValueError("isn't a file but a device or the like; leave it out")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise ValueError("has a control character in its name; rename it")
    parts = tuple(part for part in re.split(r"[/\\]", name) if part != ".")
    if _ABSOLUTE.match(name) or ".." in parts:
        raise ValueError("has a path that leads out of the zip file; make it again, from a folder")
    return parts


def _refuse(problems: Sequence[FileProblem], total: int) -> None:
    if problems:
        told = [f"{problem.name}: {problem.text}" for problem in problems[:_PROBLEMS_SHOWN]]
        more = len(problems) - len(told)
        raise InvalidRequest(
            f"zip file: {len(problems):,} of {total:,} entries can't be used; nothing was stored",
            problems=[*told, *([f"and {more:,} more"] if more else [])],
            remedy="Make the zip file again, without what is named above.",
        )


def _refuse_overlaps(archive: ZipFile, entries: Sequence[ZipInfo]) -> None:
    """Refuse entries that share bytes, with each other or with the list of entries.

    See David Fifield, "A better zip bomb" (2019). A file's data begins where its own header in the
    zip file says, whatever the list of entries says.
    """
    end = 0
    for info in sorted(entries, key=lambda info: info.header_offset):
        if info.header_offset < end or info.header_offset >= archive.start_dir:
            raise _overlapping(info)
        end = _end_of_data(archive, info)
        if end > archive.start_dir:
            raise _overlapping(info)


def _end_of_data(archive: ZipFile, info: ZipInfo) -> int:
    assert archive.fp is not None  # it's open
    archive.fp.seek(info.header_offset)
    name_bytes, extra_bytes = struct.unpack("<26x2H", archive.fp.read(_LOCAL_HEADER_BYTES))
    start = info.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    return int(start + info.compress_size)


def _overlapping(info: ZipInfo) -> InvalidRequest:
    return InvalidRequest(
        f"zip file: the entry {shown(info.filename)} shares bytes with another one",
        remedy="Make the zip file again: such a file unpacks to far more than it holds.",
    )


def _sorted_out(
    entries: Sequence[ZipInfo], parts_of: Sequence[tuple[str, ...]]
) -> tuple[list[_Entry], tuple[LeftOut, ...]]:
    """Return the files that datasets know, without the folders that all of them have in common."""
    files = [
        _Entry(info, parts)
        for info, parts in zip(entries, parts_of, strict=True)
        if parts and parts[-1]
    ]
    found = sorted_out(("/".join(one.parts) for one in files), OTHER_SUFFIXES)
    taken = frozenset(found.taken)
    kept = [one for one in files if "/".join(one.parts) in taken]
    common = _common_folders([one.parts[:-1] for one in kept])
    return [_Entry(one.info, one.parts[common:]) for one in kept], found.left_out


def _common_folders(folders: Sequence[tuple[str, ...]]) -> int:
    if not folders:
        return 0
    first, last = min(folders), max(folders)  # what both have in common, all between them have
    return next(
        (depth for depth, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )


def _checked_names(
    kept: Sequence[_Entry], left_out: Sequence[LeftOut], limits: UploadLimits
) -> list[str]:
    """Return the names that the files will have; refuse what is too much by its own account."""
    if not kept:
        raise InvalidRequest(
            "zip file: no images or captions in it",
            problems=[left_out_text(one) for one in left_out],
            remedy=f"Put {IMAGE_KINDS} images into it, each with a .txt caption.",
        )
    check_number(len(kept), limits)
    names, problems = [], []
    for one in kept:
        try:
            names.append(file_name("/".join(one.parts)))
        except ValueError as error:
            problems.append(FileProblem(shown("/".join(one.parts)), str(error)))
        if one.info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            text = "is compressed in an unusual way; make the zip file with the usual method"
            problems.append(FileProblem(shown(one.parts[-1]), text))
    _refuse(problems, len(kept))
    try:
        check_file_names(names, is_replacement=False)
    except ValueError as error:
        raise InvalidRequest(f"zip file: {error}") from error
    sizes = [(name, one.info.file_size) for name, one in zip(names, kept, strict=True)]
    _refuse(check_amounts(sizes, limits), len(kept))
    return names


class _Unpacking:
    """Unpacks one file after the other and counts what really comes out."""

    def __init__(self, archive: ZipFile, limits: UploadLimits, zip_bytes: int) -> None:
        self._archive = archive
        self._max_file_bytes = limits.max_file_bytes
        by_ratio = max(RATIO_COUNTS_ABOVE_BYTES, zip_bytes * MAX_RATIO)
        self._left_bytes = min(limits.max_upload_bytes, by_ratio)

    def write(self, name: str, info: ZipInfo, target: Path) -> None:
        """Unpack one entry into a file."""
        size_bytes = 0
        with self._archive.open(info) as source, target.open("wb") as file:
            while piece := source.read(_PIECE_BYTES):
                size_bytes += len(piece)
                self._left_bytes -= len(piece)
                self._refuse_too_much(name, size_bytes)
                file.write(piece)
        if size_bytes != info.file_size:
            raise _damaged(f"{name} has {size_bytes:,} bytes and not {info.file_size:,}")

    def _refuse_too_much(self, name: str, size_bytes: int) -> None:
        if size_bytes > self._max_file_bytes:
            text = too_large(size_bytes, self._max_file_bytes)
            _refuse([FileProblem(name, f"more than {text}")], 1)
        if self._left_bytes < 0:
            raise InvalidRequest(
                f"zip file: with {name} it unpacks to more than a zip file of its size may",
                remedy="Make it of images and captions only, and split it if it's large.",
            )
