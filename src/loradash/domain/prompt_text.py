"""Reading a prompt: what in its text means something to a program, and not to the text encoder.

Sources: ``line_to_prompt_dict`` in ``library/train_util.py`` of kohya's sd-scripts and
``_process_prompt_string`` in ``toolkit/config_modules.py`` of ai-toolkit (options); A1111's wiki on
features and its ``prompt_parser.py`` (weights, schedules, BREAK, AND, extra networks); ComfyUI
(``embedding:``); the Dynamic Prompts extension (variants, wildcards).
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loradash.domain.image_size import rounded_side
from loradash.domain.schedulers import MAX_STEPS, AnySchedulerName, find_scheduler
from loradash.domain.training_config import RANDOM_SEED, Pixels, Seed, Text


class PromptSettings(BaseModel):
    """Settings of one prompt; None where those of all prompts hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    negative_prompt: Text | None = None
    width: Pixels | None = None
    height: Pixels | None = None
    seed: Seed | None = None
    steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance_scale: float | None = Field(None, ge=0, le=100)
    scheduler: AnySchedulerName | None = None
    multiplier: float | None = Field(None, ge=-10, le=10, description="times the adapters' weights")
    adapter_weights: tuple[float, ...] | None = Field(
        None, description="of each adapter of the request; 0 for those that don't act here"
    )


class ReadPrompt(NamedTuple):
    """A prompt without its options, the settings that they mean, and what the user should know."""

    text: str
    settings: PromptSettings = PromptSettings()
    notes: tuple[str, ...] = ()


class AdapterTag(NamedTuple):
    """``<lora:name:weight>`` in a prompt."""

    text: str
    kind: str
    name: str
    weight: float | None
    """None if what stands there isn't one number from -10 to 10."""


_FIELDS = {
    "n": "negative_prompt", "w": "width", "h": "height", "d": "seed", "seed": "seed",
    "s": "steps", "steps": "steps", "l": "guidance_scale", "cfg": "guidance_scale",
    "ss": "scheduler", "m": "multiplier", "network_multiplier": "multiplier",
}  # fmt: skip
# Options of the same programs for other base models, or for what isn't done here.
_WITHOUT_EFFECT = frozenset({
    "p2", "n2", "gr", "g", "a", "ref", "ev", "extra_values", "frames", "num_frames", "fps", "f",
    "ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3", "ctrl_idx", "cn", "ctr", "rcfg", "fs",
})  # fmt: skip
_OPTION = re.compile(r"(?:(?<=\s)|^)--([A-Za-z]\w*)(?=[\s=]|$)")
_ONE_DASH = re.compile(r"(?:(?<=\s)|^)([\u2013\u2014])([A-Za-z]\w*)(?=[\s=]|$)")
_TAG = re.compile(
    r"<(lora|lyco|lycoris|locon|hypernet|hypernetwork):([^<>:]+)((?::[^<>]*)?)>", re.I
)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d{1,3})?", re.I | re.A)


def read_options(text: str) -> ReadPrompt:
    """Read the options at the end of a prompt as kohya's scripts and ai-toolkit do.

    Raises `ValueError` with one sentence for all options that can't be read.
    """
    found = list(_OPTION.finditer(text))
    first = next((n for n, match in enumerate(found) if _is_known(match[1])), None)
    if first is None:
        return ReadPrompt(text)
    found = found[first:]
    notes: list[str] = []
    values: dict[str, Any] = {}
    problems = []
    ends = [*(match.start() for match in found[1:]), len(text)]
    for match, end in zip(found, ends, strict=True):
        name, value = match[1].lower(), text[match.end() : end].strip()
        if name not in _FIELDS:
            notes.append(f"--{name} has no effect here and is left out")
            continue
        if not value and _FIELDS[name] == "negative_prompt":  # as in kohya's scripts
            notes.append(f"--{name} has no text and is left out")
            continue
        try:
            values[_FIELDS[name]] = _value(_FIELDS[name], value, notes)
        except ValueError as error:
            problems.append(f"--{name}: {error}")
    if problems:
        raise ValueError("; ".join(problems))
    return ReadPrompt(text[: found[0].start()].rstrip(), PromptSettings(**values), tuple(notes))


def _is_known(name: str) -> bool:
    return name.lower() in _FIELDS or name.lower() in _WITHOUT_EFFECT


def _value(field: str, text: str, notes: list[str]) -> Any:
    """The value of an option. Raises `ValueError`."""
    if field in ("negative_prompt", "scheduler"):
        return setting(field, text, notes)
    kind: Callable[[str], Any] = float if field in ("guidance_scale", "multiplier") else int
    try:
        number = kind(text)
    except ValueError:
        what = "a number" if kind is float else "a whole number"
        raise ValueError(f"{text[:40]!r} isn't {what}") from None
    return setting(field, number, notes)


def setting(field: str, value: Any, notes: list[str]) -> Any:
    """Check one setting of a prompt; what is used otherwise than given is added to the notes.

    Raises `ValueError` with one sentence.
    """
    if value is True:
        raise ValueError("must be a value, not true")
    if field == "seed" and value == RANDOM_SEED:
        return None
    if field == "scheduler" and isinstance(value, str):
        found = find_scheduler(value)
        notes += [found.note] if found.note else []
        return found.name
    try:
        checked = getattr(PromptSettings.model_validate({field: value}), field)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ValueError(f"{message[0].lower()}{message[1:]} (got {str(value)[:40]})") from None
    if field in ("width", "height") and checked is not None:
        used = rounded_side(checked)
        notes += [f"{field} {checked} isn't a multiple of 8; {used} is used"] * (used != checked)
        return used
    return checked


def option_names(text: str) -> list[str]:
    """Names of the options, such as ``--w``, that a prompt holds; each once.

    Phones and word processors make one dash of the two; of those, known names alone are meant.
    """
    found = [*_OPTION.finditer(text)]
    found += (match for match in _ONE_DASH.finditer(text) if match[2].lower() in _FIELDS)
    found.sort(key=lambda match: match.start())
    return list(dict.fromkeys(match[0] for match in found))


def take_tags(text: str) -> tuple[str, tuple[AdapterTag, ...]]:
    """Return a prompt without its ``<lora:...>`` tags, and the tags."""
    tags = tuple(_tag(match) for match in _TAG.finditer(text))
    if not tags:
        return text, ()
    return re.sub(r"[ \t]{2,}", " ", _TAG.sub("", text)).strip(), tags


def _tag(match: re.Match[str]) -> AdapterTag:
    number = match[3].removeprefix(":").strip()
    weight = None
    if not number:
        weight = 1.0
    elif _NUMBER.fullmatch(number) and -10 <= float(number) <= 10:
        weight = float(number)
    return AdapterTag(match[0], match[1].lower(), match[2].strip(), weight)


def read_as_words(text: str) -> list[str]:
    """Return what of a prompt other programs would follow and is drawn as words here.

    Each with its kind, such as ``(red:1.5) (a weight)``. Round brackets of prose, times, ratios,
    and the placeholders of captions aren't meant.
    """
    found = [f"{name} (an option)" for name in option_names(text)]
    rest = text
    for pattern, kind, is_meant in _SYNTAX:
        found += [
            f"{_shown(match[0])} ({kind})"
            for match in pattern.finditer(rest)
            if kind and is_meant(match)
        ]
        rest = pattern.sub(lambda match: " " * len(match[0]), rest)
    return list(dict.fromkeys(found))


def _always(match: re.Match[str]) -> bool:
    del match
    return True


def _no_ratio(match: re.Match[str]) -> bool:
    """Not 16:9, 10:30, 1:2."""
    return re.search(r"\d\s*:\s*\d+\s*[)\]]$", match[0]) is None


def _not_shouted(match: re.Match[str]) -> bool:
    """Not a word between others in capitals, as in CATS AND DOGS."""
    text = match.string
    before = re.search(r"(\w+)\W*$", text[: match.start()])
    after = re.search(r"^\W*(\w+)", text[match.end() :])
    sides = [side[1] for side in (before, after) if side]
    return not sides or not all(side.isupper() and len(side) > 1 for side in sides)


# In this order; what one has taken, the next ones don't see. Without a kind: what isn't meant.
_SYNTAX: tuple[tuple[re.Pattern[str], str, Callable[[re.Match[str]], bool]], ...] = (
    (re.compile(r"\[(?:trigger|name|sic|\.\.\.|…|[\d\s]*)\]", re.I), "", _always),
    (re.compile(r"\\[()\[\]{}]"), "", _always),  # brackets that A1111, too, is told to draw
    (re.compile(r"\[[^\[\]]*\|[^\[\]]*\]"), "words that take turns", _always),
    (re.compile(r"\[[^\[\]]*:[^\[\]]*:?\s*[\d.]+\s*\]"), "words from a step on", _no_ratio),
    (re.compile(r"\{[^{}]*\|[^{}]*\}"), "variants", _always),
    (re.compile(r"(?<!\w)__[A-Za-z0-9][\w/*.-]*?__(?!\w)"), "a wildcard", _always),
    (re.compile(r"\([^()]*[^\s()]\s*:\s*[-+]?\d*\.?\d+\s*\)"), "a weight", _no_ratio),
    (re.compile(r"\({2,}[^()]+\){2,}|\[{2,}[^\[\]]+\]{2,}"), "a weight", _always),
    (re.compile(r"(?<![\w\"'])\[[^\[\]\"']+\](?![\"'])"), "a weight", _always),
    (re.compile(r"(?<!\w)embedding:[\w./-]+", re.I), "an embedding", _always),
    (re.compile(r"(?<!\w)(?:BREAK|AND)(?!\w)"), "a keyword", _not_shouted),
)


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 40 else f"{text[:37]}..."
