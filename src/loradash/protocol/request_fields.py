"""The values that requests are made of: bounded, and never raising anything but ``ValueError``."""

import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator

from loradash.domain import yaml_text
from loradash.domain.addresses import may_be_stored
from loradash.domain.characters import printable
from loradash.domain.process import MAX_PRIORITY, MIN_PRIORITY
from loradash.domain.schema import path_text
from loradash.domain.upload_fields import matching, shown

MAX_YAML_CHARACTERS = 10 * 1024 * 1024
MAX_REFERENCE_CHARACTERS = 1000

_MAX_DIGITS = 100

_Path = tuple[str | int, ...]


def _clean(text: str) -> str:
    printable(text)
    return text


_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
Id = Annotated[
    str, PlainValidator(matching(_ID, "a process id: 1 to 64 letters, digits, '_' and '-'"))
]


def _reference(value: Any) -> str:
    """A process's id, or what may be a file's key or address; the results service looks for it."""
    if isinstance(value, str) and may_be_stored(value):
        if len(value) > MAX_REFERENCE_CHARACTERS:
            raise ValueError(f"must be a key of at most {MAX_REFERENCE_CHARACTERS} characters")
        return _clean(value)
    return matching(_ID, "a process id (1 to 64 letters, digits, '_' and '-') or a file's key")(
        value
    )


Reference = Annotated[str, PlainValidator(_reference)]
"""A process's id, or a stored file's key or address."""
Priority = Annotated[int, Field(ge=MIN_PRIORITY, le=MAX_PRIORITY)]


def _config(value: Any) -> str | dict[str, Any]:
    if isinstance(value, str):
        return _yaml_text(value)
    if isinstance(value, dict):
        json_value(value)
        return value
    raise ValueError("must be YAML text or a mapping of keys to values")


def _yaml_text(text: str) -> str:
    if len(text) > MAX_YAML_CHARACTERS:
        raise ValueError(f"{len(text):,} characters of YAML; at most {MAX_YAML_CHARACTERS:,}")
    return _clean(text)


Config = Annotated[str | dict[str, Any], PlainValidator(_config)]
"""A config as YAML text, or as the document that such a text stands for."""


def json_value(value: Any) -> Any:
    """Return a value of JSON under the limits of `loradash.domain.yaml_text`; else `ValueError`.

    It walks without recursion: nesting can't end the program.
    """
    nodes, characters = 1, 0
    waiting: list[tuple[Any, _Path]] = [(value, ())]
    while waiting:
        item, path = waiting.pop()
        depth = len(path)
        if isinstance(item, str):
            characters += len(_text_at(path, item))
        elif isinstance(item, dict | list):
            nodes += len(item) * (2 if isinstance(item, dict) else 1)
            _refuse_if_large(depth, nodes, characters)  # before its parts are looked at
            if isinstance(item, dict):
                characters += sum(_key_length(key) for key in item)
            parts = item.items() if isinstance(item, dict) else enumerate(item)
            waiting.extend((part, (*path, place)) for place, part in parts)
        elif item is not None:
            _check_number(item)
        _refuse_if_large(0, nodes, characters)
    return value


def _text_at(path: _Path, text: str) -> str:
    try:
        return _yaml_text(text)
    except ValueError as error:
        raise ValueError(f"{path_text(path)}: {error}" if path else str(error)) from error


def _refuse_if_large(depth: int, nodes: int, characters: int) -> None:
    if depth >= yaml_text.MAX_DEPTH:
        raise ValueError(f"is nested more than {yaml_text.MAX_DEPTH} levels deep; flatten it")
    if nodes > yaml_text.MAX_NODES or characters > yaml_text.MAX_CHARACTERS:
        raise ValueError(
            f"has more than {yaml_text.MAX_NODES:,} values or "
            f"{yaml_text.MAX_CHARACTERS:,} characters; shorten it"
        )


def _key_length(key: Any) -> int:
    if not isinstance(key, str):
        raise ValueError(f"has the key {shown(key)}; keys must be text")
    return len(_yaml_text(key))


def _check_number(item: Any) -> None:
    if isinstance(item, float) and not math.isfinite(item):
        raise ValueError(f"holds {item}, which isn't a number")
    if not isinstance(item, bool | int | float):
        raise ValueError(f"holds a {type(item).__name__}; only JSON values are read")
    if isinstance(item, int) and abs(item) >= 10**_MAX_DIGITS:
        raise ValueError(f"holds a number of more than {_MAX_DIGITS} digits")


def _json_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return json_value(value)


JsonValue = Annotated[Any, BeforeValidator(json_value)]
JsonNumber = Annotated[Any, BeforeValidator(_json_number)]
