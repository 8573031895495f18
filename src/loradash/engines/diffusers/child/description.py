"""The facts of a training that its adapter's file tells."""

from collections import Counter
from typing import Literal

from loradash.data import EMBEDDED_BASE_MODELS
from loradash.domain.adapter import AdapterDescription, DatasetSummary
from loradash.domain.training_config import DatasetSection
from loradash.engines.diffusers.child.architecture import Architecture
from loradash.engines.diffusers.child.objective import Objective
from loradash.engines.diffusers.child.training_data import Item
from loradash.engines.diffusers.job import TrainingJob

MAX_TAGS = 10_000
"""Of one dataset: captions in sentences have a tag each, and the file's header isn't for books."""

_MOST_TOKENS = 100_000  # a tokenizer without a limit names a number with thirty digits


def describe(
    job: TrainingJob,
    architecture: Architecture,
    items: list[Item],
    objective: Objective,
    precision: Literal["fp32", "bf16", "fp16"],
    optimizer: str,
) -> AdapterDescription:
    """Return what is known of the adapter before its first step."""
    source = job.base_model
    prediction_type = objective.prediction_type
    return AdapterDescription(
        process_id=job.process_id,
        engine=job.engine,
        created_at=job.created_at,
        config=job.config,
        base_model=source.name,
        base_model_is_local=source.kind != "hub" and source.name not in EMBEDDED_BASE_MODELS,
        names=architecture.published_names(prediction_type),
        prediction_type=prediction_type,
        zero_terminal_snr=objective.zero_terminal_snr,
        precision=precision,
        optimizer=optimizer,
        caption_tokens=_caption_tokens(architecture),
        datasets=tuple(_summary(section, items) for section in job.config.process.datasets),
        dataset_sha256=job.dataset_sha256,
    )


def _caption_tokens(architecture: Architecture) -> int | None:
    """Tokens of a caption without the two that mark its start and end."""
    tokenizer = getattr(architecture.pipeline, "tokenizer", None)
    most = getattr(tokenizer, "model_max_length", None)
    return int(most) - 2 if most is not None and most < _MOST_TOKENS else None


def _summary(section: DatasetSection, items: list[Item]) -> DatasetSummary:
    own = [item for item in items if item.section is section]
    captions = {item.path: item.caption for item in own}
    sizes = Counter(item.size for item in own if not item.flipped)
    tags = Counter(
        tag.strip().lower()
        for caption in captions.values()
        for tag in caption.split(",")
        if tag.strip()
    )
    frequent = sorted(tags.items(), key=lambda item: (-item[1], item[0]))[:MAX_TAGS]
    return DatasetSummary(
        section=section,
        images=len(captions),
        items_per_epoch=len(own) * section.num_repeats,
        buckets=tuple((size, n * section.num_repeats) for size, n in sorted(sizes.items())),
        tags=tuple(frequent),
    )
