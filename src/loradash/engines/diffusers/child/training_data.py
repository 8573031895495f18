"""The training images as the model sees them: encoded once, cached, and drawn in a fixed order."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor

from loradash.datasets.batches import batches
from loradash.datasets.buckets import bucket_size
from loradash.datasets.captions import shuffled
from loradash.datasets.changes import changes, summary
from loradash.datasets.folder import combined_hash, require_usable, scan
from loradash.datasets.images import fit, open_image
from loradash.domain.dataset import DatasetReport
from loradash.domain.dataset_findings import findings, images_enlarged, name_list
from loradash.domain.sizes import counted
from loradash.domain.text_length import cut_captions
from loradash.domain.training_config import DatasetSection, TrainingConfig
from loradash.engines.diffusers.child.architecture import Architecture, ImageFacts
from loradash.engines.diffusers.child.emitter import Emitter
from loradash.engines.diffusers.child.latents import Posterior, batch_of
from loradash.engines.diffusers.child.randomness import python_random
from loradash.engines.diffusers.job import TrainingJob
from loradash.engines.diffusers.text_checks import caption_of
from loradash.engines.stop_signal import StopSignal
from loradash.errors import InvalidBaseModel, InvalidDataset


@dataclass(frozen=True)
class Item:
    """One image at one size, with its caption and its weight in the loss."""

    path: Path
    sha256: str
    size: tuple[int, int]
    flipped: bool
    caption: str
    section: DatasetSection
    weight: float
    facts: ImageFacts

    def drawn_caption(self, seed: int, *purpose: str | int) -> str:
        """The caption for one use: dropped or shuffled as the dataset's settings say."""
        section = self.section
        if not (section.caption_dropout_rate or section.shuffle_tokens):
            return self.caption
        source = python_random(seed, "caption", *purpose)
        if source.random() < section.caption_dropout_rate:
            return ""
        if section.shuffle_tokens:
            return shuffled(self.caption, section.keep_tokens, source)
        return self.caption


_CHANGED_REMEDY = (
    "Restore the files and resume it, or start another training with what is there now; "
    "network.pretrained_lora_path (--from-adapter) takes over what an adapter has learned."
)


class TrainingData:
    """All items of a training, with their encoded images."""

    def __init__(self, items: list[Item], posteriors: list[Posterior], seed: int) -> None:
        self.items = items
        self._posteriors = posteriors
        self._seed = seed

    def posterior(self, indices: list[int]) -> Posterior:
        """What the autoencoder has made of some items of one size, on the CPU."""
        return batch_of([self._posteriors[index] for index in indices])

    def batches(self, batch_size: int, start: int) -> Iterator[list[int]]:
        """Batches of item numbers for ever, from batch number ``start``."""
        return batches(
            [item.size for item in self.items],
            [item.section.num_repeats for item in self.items],
            [item.section.is_reg for item in self.items],
            batch_size,
            self._seed,
            start,
        )

    def distinct_captions(self) -> list[str]:
        """All captions that can be encoded beforehand."""
        captions = {item.caption for item in self.items if not item.section.shuffle_tokens}
        if any(item.section.caption_dropout_rate for item in self.items):
            captions.add("")
        return sorted(captions)


def read_datasets(job: TrainingJob, folder: Path, stop: StopSignal) -> list[DatasetReport]:
    """Look at the datasets of the job in ``folder``.

    Raises `InvalidDataset`, which names each file that isn't what it was when the job was written.
    """
    reports: list[DatasetReport] = []
    lines: list[str] = []
    for plan, section in zip(job.datasets, job.config.process.datasets, strict=True):
        try:
            report = scan(
                (folder / plan.folder).resolve(),
                section.caption_suffix,
                skip=plan.skip,
                on_image=lambda *_: stop.check(),
            )
            found = changes(plan.images, report) if plan.images else []
            lines += (
                [f"{line} (in {report.folder})" for line in found] if job.datasets[1:] else found
            )
            if not found:
                require_usable(report, on_bad_image="stop")
        except InvalidDataset as error:
            raise InvalidDataset(
                error.message, problems=error.problems, remedy=_CHANGED_REMEDY
            ) from error
        reports.append(report)
    if lines or combined_hash(reports) != job.dataset_sha256:
        what = f": {summary(lines)}" if lines else ""
        raise InvalidDataset(
            f"the dataset has changed since the training began{what}",
            problems=lines, remedy=_CHANGED_REMEDY,
        )  # fmt: skip
    return reports


def items_of(
    job: TrainingJob, reports: list[DatasetReport], bucket_step: int, emitter: Emitter
) -> list[Item]:
    """Return what is trained on, from the job's datasets as `read_datasets` has found them."""
    sections = job.config.process.datasets
    for plan in job.datasets:
        if plan.skip:
            emitter.warn(
                "images_skipped",
                f"{counted(len(plan.skip), 'image')} that can't be used "
                f"{'is' if len(plan.skip) == 1 else 'are'} left out: {name_list(plan.skip)}",
            )
    for report in reports:
        for finding in findings(report):
            emitter.warn(finding.code, f"{report.folder}: {finding.text}")
    trigger_word = job.config.trigger_word
    items: list[Item] = []
    for report, section in zip(reports, sections, strict=True):
        if missing := report.missing_captions:
            replacement = "the default caption" if section.default_caption else "an empty caption"
            emitter.warn(
                "captions_missing",
                f"{len(missing)} of {counted(len(report.images), 'image')} in {report.folder} "
                f"{'has' if len(missing) == 1 else 'have'} no "
                f"{section.caption_suffix} file; {replacement} is used: {', '.join(missing[:5])}",
            )
        if notes := report.colour_notes:
            emitter.warn(
                "colours_not_followed",
                f"colours of {counted(len(notes), 'image')} in {report.folder}: "
                f"{'; '.join(notes[:5])}",
            )
        if small := _smaller_than(report, bucket_step):
            emitter.warn(
                "images_enlarged", f"{report.folder}: {images_enlarged(small, bucket_step)}"
            )
        items += _items_of(report, section, trigger_word, job.config, bucket_step)
    return items


def _smaller_than(report: DatasetReport, side: int) -> list[str]:
    return [one.relative_path for one in report.images if min(one.width, one.height) < side]


def _items_of(
    report: DatasetReport,
    section: DatasetSection,
    trigger_word: str,
    config: TrainingConfig,
    bucket_step: int,
) -> Iterator[Item]:
    weight = section.loss_multiplier
    if section.is_reg:
        weight *= config.process.train.reg_weight
    for image in report.images:
        # Where no image is scaled up, several resolutions can come to the same size: one is enough.
        sizes = dict.fromkeys(
            bucket_size(image.width, image.height, resolution, bucket_step)
            for resolution in section.resolution
        )
        for size in sizes:
            for flipped in (False, True) if section.flip_x else (False,):
                yield Item(
                    path=Path(report.folder, image.relative_path),
                    sha256=image.sha256,
                    size=size,
                    flipped=flipped,
                    caption=caption_of(image.caption, section, trigger_word),
                    section=section,
                    weight=weight,
                    facts=_facts(image.width, image.height, *size),
                )


def _facts(width: int, height: int, new_width: int, new_height: int) -> ImageFacts:
    """How an image comes to its size: scaled to cover it, and cut off evenly at two sides."""
    scale = max(new_width / width, new_height / height)
    crop = (round(height * scale - new_height) // 2, round(width * scale - new_width) // 2)
    return ImageFacts((height, width), crop, (new_height, new_width))


def tell_of_cut_captions(items: list[Item], architecture: Architecture, emitter: Emitter) -> None:
    """Warn of the captions whose end the text encoder doesn't read."""
    captions = {item.path: item.caption for item in items}
    cuts = [(path.name, architecture.cut(caption)) for path, caption in captions.items()]
    if text := cut_captions(cuts):
        emitter.warn("captions_cut", text)


def encode_items(
    items: list[Item],
    architecture: Architecture,
    device: torch.device,
    cache_folder: Path,
    base_model_key: str,
    emitter: Emitter,
    stop: StopSignal,
) -> list[Posterior]:
    """Encode every item's image, with a batch axis of 1; what is returned is on the CPU.

    Images are encoded one by one, so the result doesn't depend on their company. With
    ``cache_latents_to_disk`` the result is also kept in ``cache_folder``.
    """
    encoded: dict[tuple[str, tuple[int, int], bool], Posterior] = {}
    result = []
    for done, item in enumerate(items, start=1):
        stop.check()
        key = (item.sha256, item.size, item.flipped)
        if key not in encoded:
            cache = None
            if item.section.cache_latents_to_disk:
                text = f"{base_model_key}/{item.sha256}/{item.size}/{item.flipped}"
                name = hashlib.sha256(text.encode()).hexdigest()[:32]
                cache = cache_folder / f"{name}.safetensors"
            found = _cached(cache) if cache and cache.is_file() else None
            encoded[key] = found or _encode(item, architecture, device)
            if cache and found is None:
                _write_cache(cache, encoded[key])
        result.append(encoded[key])
        emitter.phase("caching", "images", done, len(items))
    return result


def _encode(item: Item, architecture: Architecture, device: torch.device) -> Posterior:
    image = fit(open_image(item.path.read_bytes(), item.path.name).pixels, *item.size)
    if item.flipped:
        image = ImageOps.mirror(image)
    posterior = architecture.encode_images(to_tensor(image).to(device)).to("cpu")
    if not posterior.is_finite():
        raise InvalidBaseModel(
            f"the base model's autoencoder makes NaN or infinity of {item.path.name}",
            remedy="Use another copy of the base model.",
        )
    return posterior


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as (1, 3, height, width) in -1..1."""
    array = np.asarray(image, dtype=np.float32) / 127.5 - 1.0
    return torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0).contiguous()


def _cached(path: Path) -> Posterior | None:
    try:
        posterior = Posterior(**load_file(path))
        if not posterior.is_finite():
            raise ValueError("it holds NaN or infinity")
    except Exception:  # noqa: BLE001 - a damaged cache file is as good as none
        path.unlink(missing_ok=True)
        return None
    return posterior


def _write_cache(path: Path, posterior: Posterior) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    # Both may be views of one tensor, which a file can't hold.
    save_file({name: one.clone() for name, one in posterior.tensors().items()}, partial)
    partial.replace(path)
