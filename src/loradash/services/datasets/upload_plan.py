"""What a client that has announced an upload has to do: which files to send, and where."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

FileState = Literal["send", "arrived", "unchanged", "left_out"]


class PlannedFile(BaseModel):
    """What a client has to do with one file; ``url`` is None where there is nothing to send it to.

    What is ``left_out`` isn't a dataset's file, and has no key. ``headers`` must be sent along as
    they are.
    """

    model_config = ConfigDict(frozen=True)

    filename: str
    key: str
    state: FileState
    method: Literal["PUT"] = "PUT"
    url: str | None = None
    headers: dict[str, str] = {}


class UploadPlan(BaseModel):
    """The reply to an announcement: its files in the order in which they were announced."""

    model_config = ConfigDict(frozen=True)

    upload_id: str
    dataset_folder: str
    expires_at: datetime
    files: tuple[PlannedFile, ...]
    s3_path: str
