"""The settings of one config of sd-scripts, and what was said of them."""

import math
from collections.abc import Iterable
from typing import Any

_ON = frozenset({"true", "1", "yes", "on"})


class Source:
    """Settings by name; an empty text, like ``null``, is one that isn't given."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self._taken: set[str] = set()
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.silent: set[str] = set()
        """Settings of datasets that have no effect."""

    def take(self, key: str, default: Any = None) -> Any:
        """Return a setting and count it as converted."""
        self._taken.add(key)
        value = self._values.get(key)
        return default if value is None or value == "" else value

    def text(self, key: str) -> str | None:
        """Return a setting that is text."""
        value = self.take(key)
        return None if value is None else str(value)

    def switch(self, key: str, default: bool = False) -> bool:
        """Return a setting that is on or off."""
        value = self.take(key, default)
        if not isinstance(value, str):
            return bool(value)
        word = value.strip().lower()
        if word not in _ON and is_on(word):
            self.problems.append(f"{key}: neither true nor false (got {value[:40]!r})")
        return word in _ON

    def number(
        self, key: str, default: float | None = None, *, of_several: bool = False
    ) -> float | None:
        """Return a setting that is a number; what isn't becomes a problem.

        With ``of_several`` it may be the first of a list.
        """
        value = self.take(key)
        if value is None:
            return default
        if isinstance(value, list) and (len(value) == 1 or (value and of_several)):
            value = value[0]
        try:
            number = math.nan if value is True else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            self.problems.append(f"{key}: not a number (got {str(value)[:40]!r})")
            return default
        return number

    def whole(self, key: str, default: int | None = None) -> int | None:
        """Return a setting that is a whole number."""
        number = self.number(key)
        if number is None:
            return default
        if number != int(number):
            self.problems.append(f"{key}: not a whole number (got {number:g})")
        return int(number)

    def left(self) -> dict[str, Any]:
        """The settings that are given and weren't taken, and that switch something on."""
        return {
            key: value
            for key, value in self._values.items()
            if key not in self._taken and is_on(value)
        }


def is_on(value: Any) -> bool:
    """Whether a value asks for something: it isn't false, 0, empty, or a word for that."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "0", "0.0", "false", "none", "no", "off")
    return bool(value)


def assignments(value: Any) -> dict[str, str]:
    """Return ``["conv_dim=4", "algo=lora"]``, or the same as one text, as a mapping."""
    words: Iterable[Any] = value if isinstance(value, list) else str(value or "").split()
    pairs = (str(word).partition("=") for word in words)
    return {key.strip(): text.strip().strip("'\"") for key, _, text in pairs if key.strip()}
