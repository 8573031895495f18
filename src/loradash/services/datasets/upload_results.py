"""What an upload is answered with: what it stored, and what may be missing in the dataset."""

from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from loradash.domain.addresses import Address
from loradash.domain.dataset_files import FileType, LeftOut, merged, paired
from loradash.domain.dataset_findings import (
    NAMES_SHOWN,
    left_out_warnings,
    lost_captions,
    name_list,
    shared_captions,
    unused_captions,
)
from loradash.domain.dataset_manifest import DatasetFile, Upload
from loradash.domain.media_types import media_type
from loradash.domain.sizes import counted, size_text
from loradash.services.datasets.manifests import Swap
from loradash.storage import keys


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
    unchanged_files: int
    """How many of them the dataset held already, so that they weren't stored again."""
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
    left_out: tuple[LeftOut, ...] = ()
    """What was given and isn't stored, by reasons."""
    statistics: UploadStatistics


def upload_result(
    upload: Upload,
    files: Sequence[DatasetFile],
    swap: Swap,
    address: Address,
    warnings: Sequence[str],
    left_out: Sequence[LeftOut] = (),
) -> UploadResult:
    """Return the reply to an upload of these files, by which the dataset has been replaced."""
    manifest = swap.manifest
    counts = _counts(files)
    total = sum(file.size_bytes for file in files)
    uploaded_at = manifest.upload_date or datetime.now(UTC)
    message = (
        f"Stored {counted(counts.images, 'image')} and {counted(counts.captions, 'caption')} "
        f"as dataset {upload.folder!r}"
    )
    return UploadResult(
        uploaded_files=tuple(_stored(file, upload, address, uploaded_at) for file in files),
        unchanged_files=sum(not is_of_upload(file.key, upload) for file in files),
        s3_path=address.shown(keys.dataset(upload.folder)),
        training_folder=upload.folder,
        dataset_folder=upload.folder,
        training_name=manifest.training_name,
        trigger_word=manifest.trigger_word,
        total_images=counts.images,
        total_captions=counts.captions,
        total_size=total,
        total_size_formatted=size_text(total),
        file_types_summary=counts,
        message=message,
        detailed_message=(
            f"{message} ({size_text(total)}). The dataset now has "
            f"{counted(manifest.total_images, 'image')} and "
            f"{counted(manifest.total_captions, 'caption')}. Use it in a training with "
            f"folder_path: {upload.folder}"
        ),
        warnings=(
            *_replacement_warnings(upload, swap), *left_out_warnings(left_out), *warnings,
            *completeness_warnings(manifest.files), *_cleaning_warnings(swap),
        ),
        left_out=tuple(left_out),
        statistics=UploadStatistics(
            total_files_attempted=len(files),
            succeeded=len(files),
            average_file_size=total // max(1, len(files)),
        ),
    )  # fmt: skip


def with_left_out(result: UploadResult, left_out: Sequence[LeftOut]) -> UploadResult:
    """Return a reply that also names what was left out before the upload began."""
    warnings = (*left_out_warnings(left_out), *result.warnings)
    left = merged(left_out, result.left_out)
    return result.model_copy(update={"warnings": warnings, "left_out": left})


def is_of_upload(key: str, upload: Upload) -> bool:
    """Whether an object was sent by this upload, and not by one before it."""
    return keys.dataset_of(key)[1].startswith(f"{upload.upload_id}/")


def completeness_warnings(files: Sequence[DatasetFile]) -> list[str]:
    """Return what is missing or there twice in a dataset; none of it stops a training."""
    images = [file for file in files if file.file_type == "image"]
    captions = [file.name for file in files if file.file_type == "caption"]
    pairs = paired([file.name for file in images], captions)
    warnings = []
    if bare := [image for image, caption in pairs.caption_of.items() if caption is None]:
        warnings.append(f"{counted(len(bare), 'image')} without a caption: {name_list(bare)}")
    if pairs.lost:
        warnings.append(lost_captions(pairs.lost))
    if pairs.unused:
        warnings.append(unused_captions(pairs.unused))
    warnings += shared_captions(pairs.shared)
    if others := [file.name for file in files if file.file_type == "other"]:
        warnings.append(
            f"{counted(len(others), 'file')} that no training uses: {name_list(others)}"
        )
    groups: dict[str, list[str]] = {}
    for file in images:
        if file.sha256:
            groups.setdefault(file.sha256, []).append(file.name)
    duplicates = [names for names in groups.values() if len(names) > 1]
    warnings += [f"identical images: {name_list(names)}" for names in duplicates[:NAMES_SHOWN]]
    if len(duplicates) > NAMES_SHOWN:
        warnings.append(f"{len(duplicates) - NAMES_SHOWN} more groups of identical images")
    return warnings


def _stored(
    file: DatasetFile, upload: Upload, address: Address, uploaded_at: datetime
) -> StoredFile:
    return StoredFile(
        filename=file.name,
        size=file.size_bytes,
        size_formatted=size_text(file.size_bytes),
        content_type=media_type(file.name),
        file_type=file.file_type,
        uploaded_at=uploaded_at,
        path=address.shown(file.key),
        folder=upload.folder,
    )


def _counts(files: Sequence[DatasetFile]) -> FileCounts:
    types = [file.file_type for file in files]
    return FileCounts(
        images=types.count("image"), captions=types.count("caption"), other=types.count("other")
    )


def _replacement_warnings(upload: Upload, swap: Swap) -> list[str]:
    left = {(file.name, file.key) for file in swap.manifest.files}
    replaced = [file.name for file in swap.old_files if (file.name, file.key) not in left]
    if not replaced:
        return []
    count = f"{len(replaced)} earlier file{'' if len(replaced) == 1 else 's'}"
    if upload.replace:
        hint = "send cleanup_existing: false with the later parts when uploading in several parts"
        return [f"replaced the dataset's {count}; {hint}"]
    return [f"replaced {count} of the same name: {name_list(replaced)}"]


def _cleaning_warnings(swap: Swap) -> list[str]:
    if swap.is_clean:
        return []
    return ["some replaced files couldn't be deleted; a later upload does it"]
