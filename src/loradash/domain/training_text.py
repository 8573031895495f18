"""Reading and writing training configs: both forms, overrides, and the traps that are refused."""

import re
from collections.abc import Iterator
from typing import Any

from loradash.domain.job_kinds import refuse_other_jobs
from loradash.domain.schema import nearest, path_text, validate
from loradash.domain.short_training_config import ShortTrainingConfig, short_name
from loradash.domain.training_config import TrainingConfig, TrainingProcess
from loradash.domain.yaml_text import dump_mapping, load_mapping
from loradash.errors import InvalidConfig


def parse_training_text(text: str, overrides: dict[str, Any] | None = None) -> TrainingConfig:
    """Parse a training config in YAML, in the full or the short form.

    ``overrides`` maps paths below the process (``train.steps``) to values; for a short text also
    keys of the short form. Raises `InvalidConfig`.
    """
    return parse_training(load_mapping(text, "training config"), overrides)


def parse_training(
    document: dict[str, Any], overrides: dict[str, Any] | None = None
) -> TrainingConfig:
    """As `parse_training_text`, for a document that is already parsed."""
    overrides = dict(overrides or {})
    refuse_template_text({**document, "overrides": overrides}, "training config")
    is_short = "job" not in document and "config" not in document
    if is_short:
        paths = {key: overrides.pop(key) for key in list(overrides) if "." in key}
        short = validate(
            ShortTrainingConfig, {**document, **overrides}, "training config (short form)"
        )
        document, overrides = short.expanded(), paths
    document = _apply_overrides(document, overrides)
    refuse_other_jobs(document)
    document = with_name_filled(document)
    try:
        return validate(TrainingConfig, document, "training config", TrainingConfig.sections)
    except InvalidConfig as error:
        if not is_short:
            raise
        problems = [short_name(one, overrides) for one in error.problems]
        raise InvalidConfig(error.message, problems=problems, remedy=error.remedy) from error


def training_text(config: TrainingConfig) -> str:
    """Write a config as YAML of the full form, with the keys that were given."""
    return dump_mapping(config.model_dump(mode="json", exclude_unset=True))


_ENVIRONMENT_REFERENCE = re.compile(r"\$\{[^}]*\}?")


def refuse_template_text(document: Any, what: str) -> None:
    """Refuse ``${...}`` anywhere: ai-toolkit would put environment variables there, and so secrets.

    Raises `InvalidConfig` that names each place.
    """
    problems = [
        f"{path_text(location)}: {match.group(0)!r} isn't expanded here and could leak a secret "
        "elsewhere; write the value itself"
        for location, text in _texts(document, ())
        if (match := _ENVIRONMENT_REFERENCE.search(text))
    ]
    if problems:
        raise InvalidConfig(
            f"{what}: references to environment variables", problems=problems,
            remedy="Replace each by the value itself.",
        )  # fmt: skip


def with_name_filled(document: dict[str, Any]) -> dict[str, Any]:
    """Put the job's name where a text of the document says ``[name]``, as ai-toolkit does."""
    job = document.get("config")
    name = job.get("name") if isinstance(job, dict) else None
    if not isinstance(name, str) or _NAME in name:
        return document
    filled: dict[str, Any] = _filled(document, name)
    return filled


_NAME = "[name]"


def _filled(value: Any, name: str) -> Any:
    if isinstance(value, str):
        return value.replace(_NAME, name)
    if isinstance(value, dict):
        return {key: _filled(item, name) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, name) for item in value]
    return value


def _texts(
    value: Any, location: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield location, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield (*location, "(key)"), str(key)
            yield from _texts(item, (*location, key))
    elif isinstance(value, list):
        for n, item in enumerate(value):
            yield from _texts(item, (*location, n))


def _apply_overrides(document: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Set dotted keys in a copy of the document; lists are addressed by number."""
    if not overrides:
        return document
    document = _deep_copy(document)
    root = _process_of(document) if "config" in document else document
    if root is not document and "engine" in overrides:  # it stands beside the process
        document["engine"] = overrides["engine"]
        overrides = {key: value for key, value in overrides.items() if key != "engine"}
    for dotted, value in overrides.items():
        if dotted == "name" and root is not document:
            document["config"]["name"] = value
        target = root
        *parents, last = dotted.split(".")
        for depth, part in enumerate(parents):
            try:
                target = target[int(part)] if isinstance(target, list) else _within(target, part)
            except (IndexError, ValueError, AttributeError) as error:
                raise InvalidConfig(
                    f"override {dotted}: there is no {'.'.join(parents[: depth + 1])}",
                    remedy="Use the path as it stands in the config, e.g. datasets.0.resolution.",
                ) from error
        if isinstance(target, list) and last.isdecimal() and int(last) < len(target):
            target[int(last)] = value
        elif isinstance(target, dict):
            target[last] = value
        else:
            hint = nearest(dotted, TrainingProcess.known_keys())
            raise InvalidConfig(
                f"override {dotted}: not a setting{hint}",
                remedy="Use the path as it stands in the config, e.g. train.steps.",
            )
    return document


def _process_of(document: dict[str, Any]) -> Any:
    """The process of a document of the full form, in which overrides are set."""
    try:
        return document["config"]["process"][0]
    except (KeyError, IndexError, TypeError) as error:
        raise InvalidConfig(
            "training config: config.process is missing, so nothing can be set in it",
            remedy="Give a process with a type, or use the short form.",
        ) from error


def _within(target: Any, part: str) -> Any:
    """The section of this name, which is made if it is missing or null."""
    if target.get(part) is None:
        target[part] = {}
    return target[part]


def _deep_copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _deep_copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_deep_copy(item) for item in value]
    return value
