"""Looking at an upload before anything of it is stored, and telling what came of it.

One file is decoded at a time and dropped again: an upload may be half a gigabyte, and the machine
that takes it in may be small.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from loradash.datasets.folder import MAX_CAPTION_BYTES
from loradash.datasets.images import open_image
from loradash.domain.dataset_manifest import DatasetFile, FileType, file_type
from loradash.domain.requests import UploadedFile
from loradash.domain.sizes import size_text
from loradash.errors import InvalidDataset, InvalidRequest

MAX_FILE_BYTES = 100 * 1024 * 1024
MAX_TOTAL_BYTES = 500 * 1024 * 1024

_WHITE_SPACE = re.compile(r"[ \t\r\n]+")  # encoders wrap their lines
_NAMES_SHOWN = 10
_CONTENT_TYPES = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp",
    ".bmp": "image/bmp", ".txt": "text/plain", ".json": "application/json",
    ".yaml": "application/yaml", ".yml": "application/yaml",
}  # fmt: skip


class CheckedFile(NamedTuple):
    """Facts about one good file of an upload."""

    name: str
    size_bytes: int
    sha256: str
    file_type: FileType
    warning: str = ""


class StoredFile(BaseModel):
    """One file of an upload, as the reply lists it."""

    model_config = ConfigDict(frozen=True)

    filename: str
    size: int
    size_formatted: str
    content_type: str
    file_type: FileType
    uploaded_at: datetime
    path: str
    folder: str


class FileCounts(BaseModel):
    """How many files of each type."""

    model_config = ConfigDict(frozen=True)

    images: int
    captions: int
    other: int


class UploadStatistics(BaseModel):
    """Numbers that older clients read; an upload succeeds as a whole or not at all."""

    model_config = ConfigDict(frozen=True)

    total_files_attempted: int
    succeeded: int
    failed: int = 0
    success_rate: float = 100.0
    average_file_size: int


class UploadResult(BaseModel):
    """What an upload stored. All counts are of this upload, which may be a part of a dataset."""

    model_config = ConfigDict(frozen=True)

    uploaded_files: tuple[StoredFile, ...]
    s3_path: str
    training_folder: str
    dataset_folder: str
    training_name: str
    trigger_word: str
    total_images: int
    total_captions: int
    total_size: int
    total_size_formatted: str
    file_types_summary: FileCounts
    message: str
    detailed_message: str
    warnings: tuple[str, ...]
    statistics: UploadStatistics


def check_files(files: Sequence[UploadedFile]) -> list[CheckedFile]:
    """Decode and check every file.

    Raises `InvalidRequest` if a file didn't arrive as it should have, and else `InvalidDataset` if
    one can't be used; both name each bad file.
    """
    checked, damaged, unusable = [], [], []
    total_bytes = 0
    for file in files:
        try:
            data = decoded(file)
            total_bytes += len(data)
            if total_bytes > MAX_TOTAL_BYTES:
                damaged.append(
                    f"{file.filename}: with this file the upload is larger than "
                    f"{size_text(MAX_TOTAL_BYTES)}; send it in parts, the later ones with "
                    "cleanup_existing: false"
                )
                break
            checked.append(_checked(file.filename, data))
        except InvalidRequest as error:
            damaged.append(f"{file.filename}: {error.message}")
        except InvalidDataset as error:
            unusable.append(f"{file.filename}: {error.message.removeprefix(f'{file.filename}: ')}")
    if problems := damaged + unusable:
        kind = InvalidRequest if damaged else InvalidDataset
        raise kind(
            f"upload: {len(problems)} of {len(files)} files can't be used; nothing was stored",
            problems=problems,
            remedy="Correct or leave out the files named above and upload again.",
        )
    return checked


def decoded(file: UploadedFile) -> bytes:
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
    if len(data) > MAX_FILE_BYTES:
        raise InvalidRequest(
            f"{size_text(len(data))}; files may have {size_text(MAX_FILE_BYTES)}, scale it down"
        )
    if file.size and file.size != len(data):
        raise InvalidRequest(
            f"{len(data):,} bytes arrived, but its size says {file.size:,}; send it again"
        )
    return data


def content_type(name: str) -> str:
    """Return the media type that belongs to a file name."""
    return _CONTENT_TYPES.get(PurePosixPath(name).suffix.lower(), "application/octet-stream")


def completeness_warnings(files: Sequence[DatasetFile]) -> list[str]:
    """Tell what is missing or doubled in a dataset; none of it stops a training."""
    images = [file for file in files if file.file_type == "image"]
    image_stems = {_stem(file.name) for file in images}
    captions = {_stem(file.name): file.name for file in files if file.file_type == "caption"}
    warnings = []
    if bare := [file.name for file in images if _stem(file.name) not in captions]:
        warnings.append(f"{_count(bare, 'image')} without a caption: {name_list(bare)}")
    if lost := [name for stem, name in captions.items() if stem not in image_stems]:
        warnings.append(f"{_count(lost, 'caption')} without an image: {name_list(lost)}")
    groups: dict[str, list[str]] = {}
    for file in images:
        if file.sha256:
            groups.setdefault(file.sha256, []).append(file.name)
    doubles = [names for names in groups.values() if len(names) > 1]
    warnings += [f"identical images: {name_list(names)}" for names in doubles[:_NAMES_SHOWN]]
    if len(doubles) > _NAMES_SHOWN:
        warnings.append(f"{len(doubles) - _NAMES_SHOWN} more groups of identical images")
    return warnings


def name_list(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _checked(name: str, data: bytes) -> CheckedFile:
    kind = file_type(name)
    warning = ""
    if kind == "image":
        warning = _check_image(name, data)
    elif kind == "caption":
        _check_caption(data)
    return CheckedFile(name, len(data), hashlib.sha256(data).hexdigest(), kind, warning)


def _check_image(name: str, data: bytes) -> str:
    real = open_image(data, name).format
    expected = content_type(name).removeprefix("image/")
    return "" if real == expected else f"{name} is really a {real} image"


def _check_caption(data: bytes) -> None:
    if len(data) > MAX_CAPTION_BYTES:
        raise InvalidDataset(f"a caption may have {MAX_CAPTION_BYTES:,} bytes, not {len(data):,}")
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidDataset(
            f"not UTF-8 text (byte {error.start}); save it with that encoding"
        ) from error
    if b"\0" in data:
        raise InvalidDataset("a NUL byte: not UTF-8 text; save it with that encoding")


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _count(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"
