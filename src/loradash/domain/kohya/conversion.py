"""From the settings of sd-scripts to a config of the full form, with a word on all that differs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loradash.domain.foreign_choices import foreign_choices
from loradash.domain.kohya.datasets import datasets_of
from loradash.domain.kohya.folders import Files
from loradash.domain.kohya.gui import as_arguments, is_gui
from loradash.domain.kohya.keys import NO_EFFECT, UNSUPPORTED
from loradash.domain.kohya.network import network_of
from loradash.domain.kohya.source import Source, is_on
from loradash.domain.kohya.training import sample_of, save_of, train_of
from loradash.domain.training_text import parse_training
from loradash.domain.yaml_text import dump_mapping
from loradash.errors import InvalidConfig

_NAMED = 40  # settings without effect that are named one by one


@dataclass(frozen=True)
class Conversion:
    """A converted config, and what is to be known about it."""

    document: dict[str, Any]
    notes: tuple[str, ...]
    """What is followed in another way than in sd-scripts."""
    without_effect: tuple[str, ...]
    """Settings that were given and have no effect here."""

    def text(self, source: str) -> str:
        """The config as YAML, with the notes as comments at its top."""
        head = [f"Converted by loradash convert-config from {source}", *self.notes]
        if self.without_effect:
            head.append(f"No effect here: {named(self.without_effect)}")
        comments = [f"# {' '.join(line.split())}\n" for line in head]
        return "".join(comments) + dump_mapping(self.document)


def named(settings: Sequence[str]) -> str:
    """Names in one line: the first ones, and how many more there are."""
    shown = ", ".join(settings[:_NAMED])
    more = len(settings) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown


def convert(
    settings: dict[str, Any], dataset_config: dict[str, Any] | None, files: Files
) -> Conversion:
    """Convert a training config of sd-scripts, or of bmaltais' GUI.

    ``dataset_config`` is that of ``--dataset_config``. Raises `InvalidConfig` that lists every
    setting which can't be followed, where the training would be another one without it.
    """
    from_gui = is_gui(settings)  # which writes many settings that only it knows
    settings = as_arguments(settings) if from_gui else settings
    source = Source(settings)
    source.take("dataset_config")
    datasets = datasets_of(source, dataset_config, files)
    network = network_of(source)
    train, length = train_of(source, datasets)
    sample, at_first = sample_of(source, length, files)
    if sample["sample_every"] and not at_first:
        train["skip_first_sample"] = True
    seed = source.whole("seed")
    model = _model(source)
    process = {
        "type": "sd_trainer",
        "training_seed": -1 if seed is None else seed,
        "network": network,
        "save": {
            **save_of(source, length),
            **({"metadata": "minimal"} if source.switch("no_metadata") else {}),
        },
        "datasets": datasets.sections,
        "train": train,
        "model": model,
        "sample": sample,
    }
    document: dict[str, Any] = {
        "job": "extension",
        "config": {"name": source.take("output_name", "last"), "process": [process]},
    }
    if meta := _meta(source):
        document["meta"] = meta
    left = source.left()
    source.problems += [f"{key}: {UNSUPPORTED[key]}" for key in left if key in UNSUPPORTED]
    unknown = sorted(key for key in left if key not in UNSUPPORTED and key not in NO_EFFECT)
    if unknown and not from_gui:
        source.notes.append(f"not known, and so not converted: {named(unknown)}")
    if source.problems:
        # what stands in the place of a refused setting is valid, or missing, which is told already
        model["name_or_path"] = model["name_or_path"] or "missing"
        others = [one for one in _problems_of(document) if not one.endswith(": missing")]
        raise InvalidConfig(
            "config of sd-scripts: it can't be converted to the same training",
            problems=[*source.problems, *others],
            remedy="Change these settings, or remove them if the training may be another one.",
        )
    if problems := _problems_of(document):
        raise InvalidConfig(
            "config of sd-scripts: values that can't be followed",
            problems=problems,
            remedy="Change them in the config of sd-scripts; the names above are ours.",
        )
    silent = sorted({*source.silent, *(key for key in left if key in NO_EFFECT)})
    return Conversion(document, tuple(source.notes), (*silent, *(unknown if from_gui else ())))


def _problems_of(document: dict[str, Any]) -> tuple[str, ...]:
    """What no training by the built-in engine can have."""
    try:
        return tuple(foreign_choices(parse_training(document)))
    except InvalidConfig as error:
        return error.problems or (error.message,)


def _model(source: Source) -> dict[str, Any]:
    model: dict[str, Any] = {"name_or_path": source.take("pretrained_model_name_or_path")}
    if model["name_or_path"] is None:
        source.problems.append("pretrained_model_name_or_path: missing")
    if source.switch("v2"):
        model["is_v2"] = True
    if source.switch("v_parameterization"):
        model["is_v_pred"] = True
    skip = source.whole("clip_skip")
    if skip is not None and skip > 1:
        source.problems.append(
            f"clip_skip: {skip} takes an earlier layer of the text encoder, which isn't done here"
        )
    tokens = source.whole("max_token_length")
    if tokens is not None and is_on(tokens) and tokens > 75:
        source.notes.append(
            f"max_token_length {tokens}: captions are cut at 75 tokens here; a training names "
            "those that are longer"
        )
    return model


def _meta(source: Source) -> dict[str, Any]:
    found = {
        "title": source.take("metadata_title"),
        "description": source.take("metadata_description") or source.take("training_comment"),
        "author": source.take("metadata_author"),
        "license": source.take("metadata_license"),
        "usage_hint": source.take("metadata_usage_hint"),
        "tags": source.take("metadata_tags"),
    }
    return {key: value for key, value in found.items() if value is not None}
