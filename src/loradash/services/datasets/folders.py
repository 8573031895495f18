"""Looking at datasets before GPU time is spent on them."""

from collections.abc import Callable, Iterable
from pathlib import Path

from loradash.datasets.buckets import bucket_size
from loradash.datasets.folder import require_usable, scan
from loradash.domain.dataset import DatasetReport
from loradash.domain.training_config import DatasetSection, TrainingConfig
from loradash.services.path_policy import ANYWHERE, PathPolicy

Progress = Callable[[int, int], None]


def check_folder(
    folder: Path, caption_ext: str = "txt", on_image: Progress | None = None
) -> DatasetReport:
    """Read a dataset folder completely and say what is there and what is wrong.

    Raises `InvalidDataset` only if the folder can't be read; bad images are in the report.
    """
    return scan(
        folder,
        f".{caption_ext.removeprefix('.')}",
        on_image=on_image,
    )


def check_for_training(
    config: TrainingConfig, on_image: Progress | None = None, path_policy: PathPolicy = ANYWHERE
) -> tuple[DatasetReport, ...]:
    """Check every dataset of a training. Raises `InvalidDataset` if one can't be used."""
    return check_sections(config.process.datasets, on_image, path_policy)


def check_sections(
    sections: Iterable[DatasetSection],
    on_image: Progress | None = None,
    path_policy: PathPolicy = ANYWHERE,
) -> tuple[DatasetReport, ...]:
    """As `check_for_training`, for some of the datasets; links lead to ``path_policy`` only."""
    reports = []
    for section in sections:
        report = scan(
            Path(section.folder_path),
            section.caption_suffix,
            on_image=on_image,
            link_roots=path_policy.roots,
        )
        require_usable(report, on_bad_image=section.on_bad_image)
        reports.append(report)
    return tuple(reports)


def bucket_counts(report: DatasetReport, resolution: int, step: int) -> dict[tuple[int, int], int]:
    """Count the images of each aspect-ratio bucket, the fullest first."""
    counts: dict[tuple[int, int], int] = {}
    for image in report.images:
        size = bucket_size(image.width, image.height, resolution, step)
        counts[size] = counts.get(size, 0) + 1
    return dict(sorted(counts.items(), key=lambda entry: -entry[1]))
