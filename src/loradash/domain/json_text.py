"""JSON documents where YAML is read: ai-toolkit takes both, and its UI writes JSON.

YAML reads most JSON, but not tabs, and it takes the two halves of ``"\\ud83d\\ude00"`` for two
characters.
"""

import json
from collections.abc import Iterator
from typing import Any, NoReturn

from loradash.errors import InvalidConfig

_MAX_DIGITS = 100


def parsed_json(text: str, what: str, max_depth: int, max_nodes: int) -> dict[str, Any] | None:
    """Parse a text that is a JSON object, or return None if it isn't.

    Raises `InvalidConfig` for a key that stands twice, a number of more than 100 digits, and for
    more than ``max_depth`` levels or ``max_nodes`` values.
    """
    if not text.lstrip("\ufeff \t\r\n").startswith("{"):
        return None
    try:
        data = json.loads(
            text.removeprefix("\ufeff"),
            object_pairs_hook=lambda pairs: _mapping(pairs, what),
            parse_int=lambda digits: _whole(digits, what),
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError):
        return None  # it may still be a mapping of YAML in braces, whose error is the better one
    if not isinstance(data, dict):
        return None
    for number, depth in enumerate(_depths(data), start=1):
        if depth > max_depth:
            raise InvalidConfig(
                f"{what}: nested more than {max_depth} levels deep", remedy="Flatten the JSON."
            )
        if number > max_nodes:
            raise InvalidConfig(f"{what}: more than {max_nodes:,} values", remedy="Shorten it.")
    return data


def _mapping(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise InvalidConfig(
                f"{what}: the key {key!r} stands twice in one object", remedy="Remove one of them."
            )
        data[key] = value
    return data


def _whole(digits: str, what: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise InvalidConfig(
            f"{what}: a number of more than {_MAX_DIGITS} digits", remedy="Shorten it."
        )
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _depths(value: Any, depth: int = 1) -> Iterator[int]:
    yield depth
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        yield from _depths(item, depth + 1)
