"""Datasets that come in: with all files at once, or announced first and sent file by file."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from loradash.domain.upload_fields import (
    Content,
    Count,
    DatasetFolder,
    FileName,
    Name,
    Sha256,
    Text,
    check_file_names,
    list_of,
)

MAX_FILES = 1000
MAX_ANNOUNCED_FILES = 100_000


class _Input(BaseModel):
    # Inputs can be large and secret, so errors don't carry them.
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, hide_input_in_errors=True)


class UploadedFile(_Input):
    """One file of an upload, still encoded."""

    filename: FileName
    content: Content
    content_type: Annotated[Text, Field(max_length=255)] | None = None
    size: Count | None = None


class AnnouncedFile(_Input):
    """One file that is going to be sent; its hash is compared with what arrives, if given."""

    filename: FileName
    size: Count
    sha256: Sha256 | None = None


class DatasetUpload(_Input):
    """What is to become a dataset; without a folder it gets one by its name, if it has one."""

    training_name: Name = ""
    trigger_word: Name = ""
    cleanup_existing: bool = Field(True, description="replace the dataset, instead of adding to it")
    dataset_folder: DatasetFolder | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_folder(cls, data: Any) -> Any:
        """An empty folder is none."""
        if isinstance(data, dict) and data.get("dataset_folder", "") == "":
            return {name: value for name, value in data.items() if name != "dataset_folder"}
        return data


class FilesUpload(DatasetUpload):
    """A dataset whose files are here."""

    files: Annotated[tuple[UploadedFile, ...], list_of(1, MAX_FILES)]

    @model_validator(mode="after")
    def _usable_together(self) -> Self:
        names = [file.filename for file in self.files]
        check_file_names(names, is_replacement=self.cleanup_existing)
        return self


class AnnouncedDataset(DatasetUpload):
    """A dataset whose files are going to be sent one by one."""

    files: Annotated[tuple[AnnouncedFile, ...], list_of(1, MAX_ANNOUNCED_FILES)]

    @model_validator(mode="after")
    def _usable_together(self) -> Self:
        names = [file.filename for file in self.files]
        check_file_names(names, is_replacement=self.cleanup_existing)
        return self
