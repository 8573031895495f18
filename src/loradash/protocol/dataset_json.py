"""Datasets as JSON: replies to the requests of published clients."""

from collections.abc import Sequence
from typing import Any

from loradash.services.datasets.summary import DatasetSummary

_LISTED = (
    "name", "total_images", "total_captions", "size_bytes", "trigger_word", "upload_date",
    "problem",
)  # fmt: skip


def datasets_reply(datasets: Sequence[DatasetSummary], prefix: str) -> dict[str, Any]:
    """Return the reply to ``list_dataset_folders``; all datasets lie below ``prefix``."""
    listed = [one.model_dump(mode="json") for one in datasets]
    return {
        "folders": [one.name for one in datasets],
        "datasets": [{field: one[field] for field in _LISTED} for one in listed],
        "prefix": prefix,
    }
