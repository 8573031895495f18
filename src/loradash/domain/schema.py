"""How config sections are declared, and how their errors are told to people.

A section knows three sets of keys: those that have a meaning here (fields), those that ai-toolkit
knows and that are kept as they are (``passthrough``), and all others, which are errors: in a
training config an ignored typo costs GPU hours.
"""

import difflib
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from loradash.domain.sizes import counted
from loradash.errors import InvalidConfig

_OTHER_KEYS = "\0other_keys"  # no key of a YAML text has this name


class Section(BaseModel):
    """A frozen part of a config; unknown keys are errors, ai-toolkit's other keys are kept.

    ``null`` means that a key isn't given: the files people have are full of ``ema_config: null``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    passthrough: ClassVar[frozenset[str]] = frozenset()
    other_names: ClassVar[frozenset[str]] = frozenset()
    """Second names of keys, which a validator of the section replaces by the first."""

    other_keys: dict[str, Any] = Field(default_factory=dict, exclude=True, alias=_OTHER_KEYS)
    """Keys of ai-toolkit that have no meaning for the built-in engine, as they were given."""

    @model_validator(mode="before")
    @classmethod
    def _set_other_keys_aside(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        others = {key: value for key, value in data.items() if key in cls.passthrough}
        kept = {
            key: value
            for key, value in data.items()
            if key not in cls.passthrough and not (value is None and key in cls.model_fields)
        }
        kept = without_switches_for_numbers(cls, kept)
        return {**kept, _OTHER_KEYS: others} if others else kept

    @model_serializer(mode="wrap")
    def _with_other_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**handler(self), **self.other_keys}

    @classmethod
    def known_keys(cls) -> list[str]:
        """All keys that this section accepts."""
        return sorted({*cls.model_fields, *cls.passthrough, *cls.other_names} - {"other_keys"})


def without_switches_for_numbers(model: type[BaseModel], data: dict[str, Any]) -> dict[str, Any]:
    """Return ``data`` with ``true`` as text where ``model`` has a number, so that it is refused.

    Python takes it for 1: ``steps: true`` would be a training of one step. ``false`` stays 0,
    which is off wherever a number may be.
    """
    return {
        key: "true" if value is True and _is_number(model, key) else value
        for key, value in data.items()
    }


def _is_number(model: type[BaseModel], key: str) -> bool:
    field = model.model_fields.get(key)
    types = set(_types_in(field.annotation)) if field else set()
    return bool(types & {int, float}) and bool not in types


def _types_in(annotation: Any) -> Iterator[Any]:
    if not (arguments := get_args(annotation)):
        yield annotation
    for argument in arguments:
        if not isinstance(argument, Hashable) or isinstance(argument, FieldInfo):
            continue  # what Annotated says beside the type
        yield from _types_in(argument)


Model = TypeVar("Model", bound=BaseModel)


def validate(
    model: type[Model], data: Any, what: str, sections: dict[str, type[Section]] | None = None
) -> Model:
    """Validate ``data`` as ``model``; raise `InvalidConfig` that lists every problem with its path.

    ``sections`` maps a section's key to its class, so that an unknown key can be answered with the
    nearest known one.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [_describe(problem, model, sections or {}) for problem in error.errors()]
        raise InvalidConfig(
            f"{what}: {len(problems)} problem{'s' if len(problems) > 1 else ''}",
            remedy="Correct the keys named above.",
            problems=problems,
        ) from error


def nearest(word: str, known: Sequence[str]) -> str:
    """Return ``; did you mean 'x'?`` for the known word nearest to ``word``, or nothing."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def path_text(location: Sequence[str | int]) -> str:
    """Return a location such as ``('config', 'process', 0)`` as ``config.process[0]``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "(top level)"


def _describe(problem: Any, root: type[BaseModel], sections: dict[str, type[Section]]) -> str:
    location = problem["loc"]
    if problem["type"] == "extra_forbidden":
        parents = [part for part in location[:-1] if isinstance(part, str)]
        section = sections.get(parents[-1]) if parents else None
        if section is None and issubclass(root, Section):
            section = root
        known = section.known_keys() if section else []
        if not section and len(location) == 1:
            known = list(root.model_fields)
        hint = nearest(str(location[-1]), known)
        return f"{path_text(location)}: unknown key{hint}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if problem["type"] == "missing":
        return f"{path_text(location)}: missing"
    if problem["type"] in ("model_type", "model_attributes_type", "dict_type"):
        message = "Must be a mapping of keys to values"
    if problem["type"] == "too_short":
        least = problem["ctx"]["min_length"]
        message = f"Must have at least {counted(least, 'item')}"
    if problem["type"] == "too_long":
        message = f"Must have at most {counted(problem['ctx']['max_length'], 'item')}"
    given = problem["input"]
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
    if len(shown) > 80:
        shown = f"{shown[:76]}...)"
    return f"{path_text(location)}: {message[0].lower()}{message[1:]}{shown}"
