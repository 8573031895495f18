"""What prompts say beside words: parameters of an image, adapters by name, syntax of elsewhere."""

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import NamedTuple

from loradash.domain.generation import AdapterUse, GenerationRequest
from loradash.domain.parameters_text import read_parameters
from loradash.domain.prompt_text import (
    AdapterTag,
    PromptSettings,
    ReadPrompt,
    read_as_words,
    take_tags,
)
from loradash.errors import InvalidAdapter, NotFound

MAX_TOLD = 50
_LORA_KINDS = ("lora", "lyco", "lycoris", "locon")

FindByName = Callable[[str], str | None]
"""Returns a lasting reference to the trained adapter of a name; raises if there are several."""


def with_prompts_read(request: GenerationRequest, find_by_name: FindByName) -> GenerationRequest:
    """Follow what the prompts say beside words, and tell of all that isn't followed.

    ``<lora:name:weight>`` means an adapter of the request of that name, or else a trained one; its
    weight holds for its prompt. Weights, alternatives and the like are named and drawn as words.
    """
    adapters = _Adapters(request.adapters, find_by_name)
    prompts: list[str] = []
    settings: list[PromptSettings] = []
    weights: list[dict[int, float]] = []
    told: list[str] = []
    for number, text in enumerate(request.prompts):
        read = _read(text, request.settings_of(number))
        words, tags = take_tags(read.text)
        used, notes = adapters.use(tags)
        negative = read.settings.negative_prompt
        if negative is not None:
            notes += _left_out(negative)
            cleaned = take_tags(negative)[0]
            read = read._replace(
                settings=read.settings.model_copy(update={"negative_prompt": cleaned})
            )
        notes = [*read.notes, *notes, *_drawn(words), *_drawn(negative or "")]
        where = "prompt" if len(request.prompts) == 1 else f"prompt {number + 1}"
        told += [f"{where}: {note}" for note in notes]
        prompts.append(words)
        settings.append(read.settings)
        weights.append(used)
    told += [
        f"negative prompt: {note}"
        for note in (*_left_out(request.negative_prompt), *_drawn(request.negative_prompt))
    ]
    if len(told) > MAX_TOLD:
        told = [*told[: MAX_TOLD - 1], f"and {len(told) - MAX_TOLD + 1} more about prompts"]
    uses, settings = _weighted(adapters.uses, settings, weights)
    return request.model_copy(
        update={
            "prompts": tuple(prompts),
            "negative_prompt": take_tags(request.negative_prompt)[0],
            "prompt_settings": tuple(settings) if any(_said(one) for one in settings) else (),
            "adapters": uses,
            "warnings": (*request.warnings, *told),
        }
    )


def _read(text: str, own: PromptSettings) -> ReadPrompt:
    """A prompt whose text may hold an image's parameters; its own settings come first."""
    read = read_parameters(text)
    if read is None:
        return ReadPrompt(text, own)
    return read._replace(settings=read.settings.model_copy(update=_said(own)))


def _said(settings: PromptSettings) -> dict[str, object]:
    return settings.model_dump(exclude_none=True)


def _drawn(text: str) -> list[str]:
    found = read_as_words(text)
    if not found:
        return []
    hint = (
        "; settings are fields of their own" if any("(an option)" in one for one in found) else ""
    )
    return [f"drawn as words: {', '.join(found[:5])}{', ...' if len(found) > 5 else ''}{hint}"]


def _left_out(negative: str) -> list[str]:
    """Say of each tag in a negative prompt that it does nothing there."""
    return [f"{tag.text} is left out of the negative prompt" for tag in take_tags(negative)[1]]


class _Adapters:
    """The adapters of a request, those that its prompts name included."""

    def __init__(self, given: Sequence[AdapterUse], find_by_name: FindByName) -> None:
        self.uses = list(given)
        self._find_by_name = find_by_name
        self._number_of = {
            name.casefold(): number
            for number, use in enumerate(given)
            for name in (use.path, PurePath(use.path).stem)
        }

    def use(self, tags: Sequence[AdapterTag]) -> tuple[dict[int, float], list[str]]:
        """The weights that the tags of a prompt give, by adapter, and what to say of them."""
        weights: dict[int, float] = {}
        notes: list[str] = []
        for tag in tags:
            if tag.weight is None:
                notes.append(f"{tag.text} is left out: its weight isn't a number from -10 to 10")
                continue
            number, why = self._number(tag)
            if number is None:
                notes.append(f"{tag.text} is left out: {why}")
            else:
                weights[number] = tag.weight
        return weights, notes

    def _number(self, tag: AdapterTag) -> tuple[int | None, str]:
        if tag.kind not in _LORA_KINDS:
            return None, "hypernetworks can't be used"
        name = tag.name.casefold()
        if name in self._number_of:
            return self._number_of[name], ""
        try:
            reference = self._find_by_name(tag.name)
        except (InvalidAdapter, NotFound) as error:
            return None, " ".join((error.message, *error.problems))
        if reference is None:
            return None, f"no trained LoRA is called {tag.name!r}; name its file as an adapter"
        if reference.casefold() not in self._number_of:
            self._number_of[reference.casefold()] = len(self.uses)
            self.uses.append(AdapterUse(path=reference, weight=0.0))
        self._number_of[name] = self._number_of[reference.casefold()]
        return self._number_of[name], ""


class _Weighted(NamedTuple):
    uses: tuple[AdapterUse, ...]
    settings: list[PromptSettings]


def _weighted(
    uses: Sequence[AdapterUse], settings: list[PromptSettings], weights: list[dict[int, float]]
) -> _Weighted:
    """Put weights that all prompts agree on into the adapters, others into the prompts."""
    rows = [
        tuple(row.get(number, use.weight) for number, use in enumerate(uses)) for row in weights
    ]
    if len(set(rows)) == 1:
        same = zip(uses, rows[0], strict=True)
        return _Weighted(
            tuple(use.model_copy(update={"weight": weight}) for use, weight in same), settings
        )
    with_weights = [
        one.model_copy(update={"adapter_weights": row})
        for one, row in zip(settings, rows, strict=True)
    ]
    return _Weighted(tuple(uses), with_weights)
