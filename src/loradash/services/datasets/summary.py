"""A stored dataset in short: what every list, page and check says of it."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from loradash.domain.dataset_manifest import DatasetManifest


class DatasetSummary(BaseModel):
    """A stored dataset in short; ``problem`` says why it can't be read, if so."""

    model_config = ConfigDict(frozen=True)

    name: str
    training_name: str = ""
    trigger_word: str = ""
    upload_date: datetime | None = None
    version: str = ""
    total_images: int = 0
    total_captions: int = 0
    size_bytes: int = 0
    problem: str = ""


def summary_of(folder: str, manifest: DatasetManifest) -> DatasetSummary:
    """Return a dataset in short."""
    return DatasetSummary(
        name=folder,
        training_name=manifest.training_name,
        trigger_word=manifest.trigger_word,
        upload_date=manifest.upload_date,
        version=manifest.version,
        total_images=manifest.total_images,
        total_captions=manifest.total_captions,
        size_bytes=manifest.size_bytes,
    )
