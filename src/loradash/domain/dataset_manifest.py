"""What a stored dataset consists of: one small document that is replaced by one write.

A dataset is what its manifest names and nothing else, so a half-written upload is never seen.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from loradash.domain.dataset_files import FileType, suffix_of

UPLOAD_SESSION = "_upload.json"  # an object beside an upload's files, so none may be called that


class DatasetFile(BaseModel):
    """One file: its name in the dataset, and the object that holds it.

    Several files may share an object, if their content is the same.
    """

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="relative path, with /")
    key: str
    size_bytes: int = Field(ge=0)
    sha256: str = Field("", description="'' for a file that was put there by other means")
    file_type: FileType
    width: int | None = Field(None, description="pixels, upright; None where it isn't known")
    height: int | None = None


class DatasetManifest(BaseModel):
    """All files of a dataset, sorted by name; ``version`` is the upload that wrote it last."""

    model_config = ConfigDict(frozen=True)

    training_name: str = ""
    original_name: str = Field("", description="of which its folder was made; '' if that was given")
    trigger_word: str = ""
    upload_date: datetime | None = None
    total_images: int = 0
    total_captions: int = 0
    files: tuple[DatasetFile, ...]
    version: str = ""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    def of_type(self, kind: FileType) -> list[DatasetFile]:
        """Return the files of one type."""
        return [file for file in self.files if file.file_type == kind]


class Content(NamedTuple):
    """What is in a file, whatever its name: files of equal content may share one object."""

    sha256: str
    size_bytes: int
    file_type: FileType


class Upload(NamedTuple):
    """What an upload says of the dataset that it becomes or is added to."""

    folder: str
    upload_id: str
    replace: bool
    training_name: str = ""
    trigger_word: str = ""
    original_name: str = ""


def with_totals(manifest: DatasetManifest) -> DatasetManifest:
    """Return the manifest with its files in order and counted."""
    return manifest.model_copy(
        update={
            "files": tuple(sorted(manifest.files, key=lambda file: file.name)),
            "total_images": len(manifest.of_type("image")),
            "total_captions": len(manifest.of_type("caption")),
        }
    )


def after_upload(
    old: DatasetManifest, upload: Upload, files: Sequence[DatasetFile], now: datetime
) -> DatasetManifest:
    """Return the dataset that an upload makes of the one before it."""
    kept: Sequence[DatasetFile] = ()
    name, word = upload.training_name, upload.trigger_word
    if not upload.replace:
        new = {name for file in files for name in (file.name, _of_earlier_releases(file.name))}
        kept = [file for file in old.files if file.name not in new]
        name, word = name or old.training_name, word or old.trigger_word
    return with_totals(
        DatasetManifest(
            training_name=name or upload.folder,
            original_name=upload.original_name or old.original_name,
            trigger_word=word,
            upload_date=now,
            files=(*kept, *files),
            version=upload.upload_id,
        )
    )


def _of_earlier_releases(name: str) -> str:
    """Return the name that a file was stored under before: its ending was in lower case then."""
    return str(PurePosixPath(name).with_suffix(suffix_of(name)))


def by_content(manifest: DatasetManifest) -> dict[Content, DatasetFile]:
    """Return the files by what is in them; those without a hash are left out."""
    return {
        Content(file.sha256, file.size_bytes, file.file_type): file
        for file in manifest.files
        if file.sha256
    }
