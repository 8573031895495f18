"""The datasets of sd-scripts: of its dataset config, or folders with repeats in their names."""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from loradash.domain.kohya.folders import Files, named_folders
from loradash.domain.kohya.keys import (
    DATASET_LEVEL,
    FOLLOWED_IN_DATASETS,
    SUBSET_LEVEL,
    UNSUPPORTED,
)
from loradash.domain.kohya.source import Source, is_on
from loradash.domain.sizes import counted

_OTHER_NAMES = {"batch_size": "train_batch_size", "num_repeats": "dataset_repeats"}
_DEFAULT_ENDING = ".caption"


class Datasets(NamedTuple):
    """Our dataset sections, and what counts for the length of an epoch."""

    sections: list[dict[str, Any]]
    batch_size: int
    batches_per_epoch: int | None
    """None if an image folder isn't on this machine."""


def datasets_of(source: Source, config: dict[str, Any] | None, files: Files) -> Datasets:
    """Convert the datasets; problems and notes go to ``source``."""
    subsets = list(_of_config(source, config) if config is not None else _of_folders(source, files))
    sections = [_section(source, subset) for subset in subsets]
    sizes = {_count(source, "batch_size", subset) for subset in subsets} or {1}
    if len(sizes) > 1:
        source.problems.append(
            "datasets: they have different batch_sizes, and a training has one here"
        )
    batch_size = min(sizes)
    return Datasets(sections, batch_size, _batches(sections, files, batch_size))


def _of_config(source: Source, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    general = config.get("general") or {}
    datasets = config.get("datasets")
    if not isinstance(general, dict) or not isinstance(datasets, list) or not datasets:
        source.problems.append("datasets: the dataset config has no [[datasets]]")
        return
    source.problems += [
        f"{key}: sd-scripts knows no such setting in a dataset config"
        for key in config
        if key not in ("general", "datasets")
    ]
    _name_unknown(source, "general", general, DATASET_LEVEL | SUBSET_LEVEL)
    for number, dataset in enumerate(datasets):
        where = f"datasets[{number}]"
        subsets = dataset.get("subsets") if isinstance(dataset, dict) else None
        if not isinstance(subsets, list) or not subsets:
            source.problems.append(f"{where}: it has no [[datasets.subsets]]")
            continue
        own = {key: value for key, value in dataset.items() if key != "subsets"}
        _name_unknown(source, where, own, DATASET_LEVEL | SUBSET_LEVEL)
        for place, subset in enumerate(subsets):
            if not isinstance(subset, dict):
                source.problems.append(f"{where}.subsets[{place}]: not a table")
                continue
            _name_unknown(source, f"{where}.subsets[{place}]", subset, SUBSET_LEVEL)
            yield {**_from_arguments(source), **general, **own, **subset}


def _name_unknown(
    source: Source, where: str, values: dict[str, Any], known: frozenset[str]
) -> None:
    for key in values:
        if key not in known:
            source.problems.append(f"{where}.{key}: sd-scripts knows no such setting there")
        elif key not in FOLLOWED_IN_DATASETS and key not in UNSUPPORTED and is_on(values[key]):
            source.silent.add(key)


def _of_folders(source: Source, files: Files) -> Iterator[dict[str, Any]]:
    arguments = _from_arguments(source)
    parents = [
        (source.take(key), is_reg)
        for key, is_reg in (("train_data_dir", False), ("reg_data_dir", True))
    ]
    if parents[0][0] is None:
        source.problems.append("train_data_dir: missing, and there is no dataset config")
    for parent, is_reg in parents:
        if parent is None:
            continue
        names = files.folders(str(parent))
        if names is None:
            source.problems.append(
                f"{'reg' if is_reg else 'train'}_data_dir: {parent} isn't on this machine, so its "
                "folders such as 10_name can't be listed"
            )
            continue
        folders, others = named_folders(str(parent), names)
        if others:
            source.notes.append(
                f"{parent}: {counted(len(others), 'folder')} without repeats in the name left out, "
                f"as sd-scripts does: {', '.join(others[:10])}{', ...' if others[10:] else ''}"
            )
        if not folders:
            source.problems.append(f"{parent}: it has no folder such as 10_name")
        elif beside := files.images_beside(str(parent)):
            source.notes.append(
                f"{parent}: {counted(beside, 'image')} beside these folders left out, as "
                "sd-scripts does"
            )
        for folder in folders:
            yield {
                **arguments,
                "image_dir": folder.path,
                "num_repeats": folder.repeats,
                "class_tokens": folder.caption,
                "is_reg": is_reg,
            }


def _from_arguments(source: Source) -> dict[str, Any]:
    """What the training's own settings say for all datasets."""
    names = FOLLOWED_IN_DATASETS - {"image_dir", "is_reg", "class_tokens"}
    found = {name: source.take(_OTHER_NAMES.get(name, name)) for name in sorted(names)}
    if (old := source.take("caption_extention")) is not None:
        found["caption_extension"] = old  # which goes first in sd-scripts, too
    return {name: value for name, value in found.items() if value is not None}


def _section(source: Source, subset: dict[str, Any]) -> dict[str, Any]:
    folder = subset.get("image_dir")
    where = f"dataset {folder}"
    source.problems += _problems(subset, where)
    if not is_on(subset.get("enable_bucket")):
        source.notes.append(
            f"{where}: without enable_bucket sd-scripts crops every image to the resolution; here "
            "each keeps its shape"
        )
    if is_on(subset.get("random_crop")):
        source.notes.append(f"{where}: random_crop has no effect; images are cropped at the middle")
    section: dict[str, Any] = {
        "folder_path": folder,
        "caption_ext": str(subset.get("caption_extension") or _DEFAULT_ENDING).removeprefix("."),
        "resolution": _resolution(source, where, subset.get("resolution")),
        "num_repeats": _count(source, "num_repeats", subset),
    }
    if subset.get("class_tokens"):
        section["default_caption"] = subset["class_tokens"]
    if subset.get("caption_prefix"):
        section["trigger_word"] = subset["caption_prefix"]
        source.notes.append(
            f"{where}: caption_prefix becomes trigger_word, which is put first in captions that "
            "lack it"
        )
    for theirs, ours in (
        ("is_reg", "is_reg"), ("shuffle_caption", "shuffle_tokens"), ("flip_aug", "flip_x"),
        ("keep_tokens", "keep_tokens"), ("caption_dropout_rate", "caption_dropout_rate"),
    ):  # fmt: skip
        if is_on(subset.get(theirs)):
            section[ours] = subset[theirs]
    return section


def _problems(subset: dict[str, Any], where: str) -> Iterator[str]:
    """What a subset asks for that would make another training."""
    for key, reason in UNSUPPORTED.items():
        if is_on(subset.get(key)):
            yield f"{where}: {key}: {reason}"
    folder = subset.get("image_dir")
    if not isinstance(folder, str) or not folder:
        yield "datasets: a subset has no image_dir"
    if subset.get("caption_separator", ",") != ",":
        yield f"{where}: caption_separator must be a comma here"
    if str(subset.get("network_multiplier", 1)) not in ("1", "1.0"):
        yield f"{where}: network_multiplier isn't supported"


def _count(source: Source, key: str, subset: dict[str, Any]) -> int:
    try:
        return int(subset.get(key, 1))
    except (TypeError, ValueError, OverflowError):
        source.problems.append(f"dataset {subset.get('image_dir')}: {key} isn't a whole number")
        return 1


def _resolution(source: Source, where: str, value: Any) -> int:
    """One number: the side of a square with as many pixels."""
    if isinstance(value, str):
        value = [part for part in re.split(r"[,x ]+", value) if part]
    sides = value if isinstance(value, list) else [value]
    try:
        width, height = (int(side) for side in (sides * 2 if len(sides) == 1 else sides))
    except (TypeError, ValueError, OverflowError):
        width = height = 0
    if not (8 <= width <= 8192 and 8 <= height <= 8192):
        source.problems.append(
            f"{where}: resolution is missing, or not one or two whole numbers from 8 to 8192"
        )
        return 512
    if width != height:
        side = round(math.sqrt(width * height))
        source.notes.append(
            f"{where}: resolution {width}x{height} becomes {side}, as many pixels; each image "
            "keeps its own shape"
        )
        return side
    return width


def _batches(sections: list[dict[str, Any]], files: Files, batch_size: int) -> int | None:
    counts = []
    for section in sections:
        if section.get("is_reg"):
            continue
        images = files.images(str(section["folder_path"]))
        if images is None:
            return None
        counts.append(images * section["num_repeats"])
    twice = 2 if any(section.get("is_reg") for section in sections) else 1
    return math.ceil(sum(counts) * twice / max(1, batch_size)) or None
