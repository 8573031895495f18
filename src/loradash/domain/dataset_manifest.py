"""What a stored dataset consists of: one small document that is replaced by one write.

A dataset is what its manifest names and nothing else, so a half-written upload is never seen.
"""

from datetime import datetime
from pathlib import PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from loradash.domain.dataset import IMAGE_SUFFIXES

CAPTION_SUFFIX = ".txt"
OTHER_SUFFIXES = frozenset({".json", ".yaml", ".yml"})

FileType = Literal["image", "caption", "other"]


def file_type(name: str) -> FileType:
    """Tell by its ending what a file of a dataset is."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return "caption" if suffix == CAPTION_SUFFIX else "other"


class DatasetFile(BaseModel):
    """One file: its name in the dataset, and the object that holds it."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="relative path; uploads have no sub-folders")
    key: str
    size_bytes: int = Field(ge=0)
    sha256: str = Field("", description="'' for a file that was put there by other means")
    file_type: FileType


class DatasetManifest(BaseModel):
    """All files of a dataset, sorted by name; ``version`` is the upload that wrote it last."""

    model_config = ConfigDict(frozen=True)

    training_name: str = ""
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
