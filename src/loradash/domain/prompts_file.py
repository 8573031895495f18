"""Files of prompts: a line each, or kohya's TOML and JSON."""

import json
import tomllib
from pathlib import PurePath
from typing import Any

from loradash.domain.prompt_text import PromptSettings, ReadPrompt, read_options, setting
from loradash.domain.schema import nearest
from loradash.errors import InvalidConfig

ENDINGS = (".txt", ".json", ".toml")

_FIELDS = {
    "negative_prompt": "negative_prompt", "width": "width", "height": "height", "seed": "seed",
    "sample_steps": "steps", "steps": "steps", "scale": "guidance_scale",
    "guidance_scale": "guidance_scale", "sample_sampler": "scheduler", "scheduler": "scheduler",
}  # fmt: skip


def is_prompts_file(text: str) -> bool:
    """Whether a text in the place of prompts names a file: one line, with such an ending."""
    name = text.strip()
    return "\n" not in name and len(name) < 4096 and PurePath(name).suffix.lower() in ENDINGS


def read_prompts(name: str, text: str) -> tuple[ReadPrompt, ...]:
    """Read a file of prompts, with the options that stand in it.

    Empty lines and those that begin with ``#`` are passed over. Raises `InvalidConfig` that names
    each line or entry that can't be read.
    """
    ending = PurePath(name).suffix.lower()
    text = text.removeprefix("\ufeff")
    try:
        entries = _entries(text, ending)
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(
            f"prompts file {name} can't be read: {error}", remedy="Correct the file."
        ) from error
    read: list[ReadPrompt] = []
    problems: list[str] = []
    for place, entry in entries:
        try:
            one = read_options(entry) if isinstance(entry, str) else _from_mapping(entry)
            read.append(one._replace(notes=tuple(f"{place}: {note}" for note in one.notes)))
        except ValueError as error:
            problems.append(f"{place}: {error}")
    if not read and not problems:
        problems = ["there is no prompt in it"]
    if problems:
        raise InvalidConfig(
            f"prompts file {name}", problems=problems, remedy="Correct the lines named above."
        )
    return tuple(read)


def _entries(text: str, ending: str) -> list[tuple[str, Any]]:
    """Each prompt with its place in the file. Raises `ValueError`."""
    if ending == ".json":
        document = json.loads(text)
        if not isinstance(document, list):
            raise ValueError("it isn't a list of prompts")
        return [(f"entry {n}", entry) for n, entry in enumerate(document, start=1)]
    if ending == ".toml":
        prompt = tomllib.loads(text).get("prompt")
        subsets = prompt.get("subset") if isinstance(prompt, dict) else None
        if not isinstance(prompt, dict) or not isinstance(subsets, list):
            raise ValueError("there are no [[prompt.subset]] tables")
        common = {key: value for key, value in prompt.items() if key != "subset"}
        return [(f"subset {n}", {**common, **one}) for n, one in enumerate(subsets, start=1)]
    lines = enumerate(text.splitlines(), start=1)
    return [
        (f"line {n}", line.strip()) for n, line in lines
        if line.strip() and not line.lstrip().startswith("#")
    ]  # fmt: skip


def _from_mapping(entry: Any) -> ReadPrompt:
    """A prompt that is given by its fields. Raises `ValueError`."""
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
        raise ValueError("has no prompt")
    values: dict[str, Any] = {}
    notes: list[str] = []
    for key, value in entry.items():
        if key in _FIELDS:
            try:
                values[_FIELDS[key]] = setting(_FIELDS[key], value, notes)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None
        elif key != "prompt":
            notes.append(f"{key} has no effect here{nearest(key, list(_FIELDS))}")
    return ReadPrompt(entry["prompt"], PromptSettings.model_validate(values), tuple(notes))
