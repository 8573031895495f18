"""Looking at the files of an upload before any of them becomes part of a dataset.

Few files are in memory at a time: an upload may be half a gigabyte, and the machine that takes it
in may be small.
"""

import base64
import binascii
import hashlib
import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from loradash.datasets.captions import MAX_CAPTION_BYTES, decode_caption
from loradash.datasets.images import inspect_image
from loradash.domain.dataset_files import (
    IMAGE_KINDS,
    OTHER_SUFFIXES,
    LeftOut,
    SortedOut,
    file_type,
    grouped,
    paired,
    sorted_out,
)
from loradash.domain.dataset_findings import (
    NAMES_SHOWN,
    empty_captions,
    left_out_text,
    only_first_frames,
)
from loradash.domain.dataset_manifest import Content, DatasetFile
from loradash.domain.dataset_uploads import UploadedFile
from loradash.domain.media_types import media_type
from loradash.domain.sizes import counted, size_text
from loradash.domain.upload_fields import check_file_names, file_name, shown
from loradash.errors import InvalidDataset, InvalidRequest
from loradash.storage.transfer import in_parallel

CHECKED_AT_ONCE = 4
TURNS_IN_MEMORY = threading.BoundedSemaphore(CHECKED_AT_ONCE)
"""For files that are read whole, of all uploads together: each may be as large as files may be."""

_WHITE_SPACE = re.compile(r"[ \t\r\n]+")  # encoders wrap their lines


@dataclass(frozen=True)
class UploadLimits:
    """How large one upload may be."""

    max_file_bytes: int = 100 * 2**20
    max_upload_bytes: int = 500 * 2**20
    max_files: int = 1000


DEFAULT_LIMITS = UploadLimits()


class SourceFile(NamedTuple):
    """A file on this machine that is to become a dataset's file of that name."""

    name: str
    path: Path


class FileProblem(NamedTuple):
    """Why a file can't be used; ``is_damaged`` if it didn't arrive as it should have."""

    name: str
    text: str
    is_damaged: bool = False


class CheckedFile(NamedTuple):
    """Facts about one good file. Sizes of images are in pixels, upright."""

    name: str
    content: Content
    width: int | None = None
    height: int | None = None
    warning: str = ""
    has_more_frames: bool = False
    is_empty: bool = False
    """Whether it is a caption without any text."""

    def at(self, key: str) -> DatasetFile:
        """Return the entry of a manifest for this file, whose object has that key."""
        return DatasetFile(
            name=self.name,
            key=key,
            size_bytes=self.content.size_bytes,
            sha256=self.content.sha256,
            file_type=self.content.file_type,
            width=self.width,
            height=self.height,
        )


class CheckedSource(NamedTuple):
    """A good file and where it lies; ``stamp`` shows whether it has been written since."""

    file: CheckedFile
    path: Path
    stamp: tuple[int, int]


def decode_files(
    files: Sequence[UploadedFile], folder: Path, limits: UploadLimits
) -> tuple[list[SourceFile], list[FileProblem]]:
    """Write the files of a request into a folder, one after the other, as far as they arrived.

    Raises `InvalidRequest` for an upload of too many files.
    """
    check_number(len(files), limits)
    sources, problems = [], []
    total_bytes = 0
    for number, file in enumerate(files):
        try:
            data = decoded(file, limits.max_file_bytes)
        except InvalidRequest as error:
            problems.append(FileProblem(file.filename, error.message, is_damaged=True))
            continue
        total_bytes += len(data)
        if total_bytes > limits.max_upload_bytes:
            problems.append(_too_much(file.filename, limits))
            break
        path = folder / str(number)
        path.write_bytes(data)
        sources.append(SourceFile(file.filename, path))
    return sources, problems


def named_sources(
    sources: Sequence[SourceFile], limits: UploadLimits, *, is_replacement: bool
) -> tuple[tuple[SourceFile, ...], tuple[LeftOut, ...]]:
    """Return the files that are stored, with their names in the dataset, and what is left out.

    Raises `InvalidRequest` if the names, their number or their sizes can't be used.
    """
    check_number(len(sources), limits)
    named: list[SourceFile] = []
    problems: list[FileProblem] = []
    for source in sources:
        try:
            named.append(SourceFile(file_name(source.name), source.path))
        except ValueError as error:
            problems.append(FileProblem(shown(source.name), str(error), is_damaged=True))
    refuse(problems, len(sources))
    try:
        check_file_names([source.name for source in named], is_replacement=is_replacement)
    except ValueError as error:
        raise InvalidRequest(f"upload: {error}") from error
    found = selected([source.name for source in named])
    taken = frozenset(found.taken)
    named = [source for source in named if source.name in taken]
    sizes = [(one.name, one.path.stat().st_size if one.path.is_file() else 0) for one in named]
    refuse(check_amounts(sizes, limits), len(sources))
    return tuple(named), found.left_out


def check_sources(
    sources: Sequence[SourceFile],
) -> tuple[list[CheckedSource], list[FileProblem]]:
    """Read every file completely, a few at a time; return the good ones and what is wrong."""
    outcomes = in_parallel(sources, _checked_source, concurrency=CHECKED_AT_ONCE, tries=1)
    good = [one for _, one in outcomes.done if isinstance(one, CheckedSource)]
    problems = [one for _, one in outcomes.done if isinstance(one, FileProblem)]
    problems += [
        FileProblem(
            source.name,
            f"can't be read ({getattr(error, 'strerror', None) or error})",
            is_damaged=True,
        )
        for source, error in outcomes.failed
    ]
    return good, problems


def refuse(problems: Sequence[FileProblem], total: int) -> None:
    """Raise if there is any problem, naming each file.

    `InvalidRequest` if a file didn't arrive as it should have, and else `InvalidDataset`.
    """
    if not problems:
        return
    first_the_damaged = sorted(problems, key=lambda problem: not problem.is_damaged)
    kind = InvalidRequest if first_the_damaged[0].is_damaged else InvalidDataset
    raise kind(
        f"upload: {len(problems)} of {total} files can't be used; nothing was stored",
        problems=[f"{problem.name}: {problem.text}" for problem in first_the_damaged],
        remedy="Correct or leave out the files named above and upload again.",
    )


def check_file(name: str, source: bytes | Path) -> CheckedFile:
    """Look at one file's content, without reading a file whole into memory.

    Raises `InvalidDataset` if it can't be used, and `OSError` if it can't be read.
    """
    content = _content(name, source)
    if content.file_type == "image":
        image = inspect_image(source, name)
        expected = media_type(name).removeprefix("image/")
        warnings = [] if image.format == expected else [f"{name} is really a {image.format} image"]
        warnings += [f"{name}: {image.colour_note}"] if image.colour_note else []
        return CheckedFile(
            name, content, image.width, image.height, "; ".join(warnings), image.has_more_frames
        )
    is_empty = content.file_type == "caption" and not _caption(source).strip()
    return CheckedFile(name, content, is_empty=is_empty)


def check_warnings(files: Iterable[CheckedFile]) -> list[str]:
    """Return warnings about files that can be used and aren't what they seem to be."""
    files = list(files)
    warnings = [file.warning for file in files if file.warning]
    if (more := len(warnings) - NAMES_SHOWN) > 0:
        warnings[NAMES_SHOWN:] = [f"{counted(more, 'more image')} with such a warning"]
    if empty := [file.name for file in files if file.is_empty]:
        warnings.append(empty_captions(empty))
    if frames := [file.name for file in files if file.has_more_frames]:
        warnings.append(only_first_frames(frames))
    return warnings


def selected(names: Sequence[str]) -> SortedOut:
    """Sort out which files of an upload are stored. Raises `InvalidRequest` if none is."""
    found = sorted_out(names, OTHER_SUFFIXES)
    if names and not found.taken:
        raise InvalidRequest(
            "upload: none of its files is an image or a caption",
            problems=[left_out_text(one) for one in found.left_out],
            remedy=f"Send {IMAGE_KINDS} images, each with a .txt caption.",
        )
    return found


def without_lost(
    names: Sequence[str], problems: Sequence[FileProblem], there: Iterable[str]
) -> tuple[list[FileProblem], tuple[LeftOut, ...]]:
    """Leave out what can't be read and is no image's caption: a readme, say.

    ``there`` are images that the dataset has already and keeps. Returns the other problems, and
    what is left out.
    """
    captions = [name for name in names if file_type(name) == "caption"]
    images = [*there, *(name for name in names if file_type(name) == "image")]
    lost = set(paired(images, captions).lost)
    left = [one for one in problems if one.name in lost and not one.is_damaged]
    rest = [one for one in problems if one not in left]
    return rest, grouped(("unreadable_caption", one.name) for one in left)


def most_bytes(files: Sequence[UploadedFile]) -> int:
    """Return how many bytes the files of a request have at most, before they are decoded."""
    return sum(len(file.content) * 3 // 4 for file in files)


def decoded(file: UploadedFile, max_bytes: int) -> bytes:
    """Return a file's bytes. Raises `InvalidRequest` without the file's name."""
    text = file.content
    if text[:100].lstrip()[:5].lower() == "data:":
        raise InvalidRequest(
            "the content is a data: URL; send only what comes after its first comma"
        )
    if _WHITE_SPACE.search(text):
        text = _WHITE_SPACE.sub("", text)
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(
            f"the content isn't base64 ({str(error)[:80]}); use the standard alphabet with padding"
        ) from error
    if len(data) > max_bytes:
        raise InvalidRequest(too_large(len(data), max_bytes))
    if file.size and file.size != len(data):
        raise InvalidRequest(
            f"{len(data):,} bytes arrived, but its size says {file.size:,}; send it again"
        )
    return data


def too_large(size_bytes: int, max_bytes: int) -> str:
    """The problem of a file that is larger than files may be."""
    return f"{size_text(size_bytes)}; files may have {size_text(max_bytes)}, scale it down"


def check_number(number: int, limits: UploadLimits) -> None:
    """Raise `InvalidRequest` for an upload of no files, or of too many."""
    if not number:
        raise InvalidRequest("upload: no files", remedy="Send at least one image.")
    if number > limits.max_files:
        raise InvalidRequest(
            f"upload: {number:,} files; one upload may have {limits.max_files:,}",
            remedy="Send it in parts, the later ones with cleanup_existing: false, or raise "
            "MAX_UPLOAD_FILES.",
        )


def check_amounts(
    names_and_sizes: Sequence[tuple[str, int]], limits: UploadLimits
) -> list[FileProblem]:
    """Return which files are too large, alone or with those before them."""
    problems = []
    total_bytes = 0
    for name, size_bytes in names_and_sizes:
        total_bytes += size_bytes
        if size_bytes > limits.max_file_bytes:
            text = too_large(size_bytes, limits.max_file_bytes)
            problems.append(FileProblem(name, text, is_damaged=True))
        elif total_bytes > limits.max_upload_bytes:
            return [*problems, _too_much(name, limits)]
    return problems


def problem_text(name: str, error: InvalidDataset) -> str:
    """Return what is wrong with a file, without its name, which stands before it anyway."""
    return error.message.removeprefix(f"{name}: ")


def stamp_of(path: Path) -> tuple[int, int]:
    """Return what changes when a file is written: its size in bytes and the time in ns."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _checked_source(source: SourceFile) -> CheckedSource | FileProblem:
    if not source.path.is_file():
        return FileProblem(source.name, "there is no such file", is_damaged=True)
    stamp = stamp_of(source.path)
    try:
        return CheckedSource(check_file(source.name, source.path), source.path, stamp)
    except InvalidDataset as error:
        return FileProblem(source.name, problem_text(source.name, error))


def _too_much(name: str, limits: UploadLimits) -> FileProblem:
    return FileProblem(
        name,
        f"with this file the upload is larger than {size_text(limits.max_upload_bytes)}; send it "
        "in parts, the later ones with cleanup_existing: false",
        is_damaged=True,
    )


def _content(name: str, source: bytes | Path) -> Content:
    if isinstance(source, bytes):
        return Content(hashlib.sha256(source).hexdigest(), len(source), file_type(name))
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return Content(digest.hexdigest(), file.tell(), file_type(name))


def _caption(source: bytes | Path) -> str:
    """Return a caption's text. Raises `InvalidDataset` if it can't be read."""
    data = source
    if isinstance(data, Path):
        with data.open("rb") as file:
            data = file.read(MAX_CAPTION_BYTES + 1)
    try:
        return decode_caption(data)
    except ValueError as error:
        raise InvalidDataset(str(error)) from error
