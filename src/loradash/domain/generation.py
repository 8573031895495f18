"""What to generate: prompts, adapters and sampling settings; and ai-toolkit's ``job: generate``."""

import re
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from loradash.domain import ai_toolkit_keys
from loradash.domain.engine_use import EngineName
from loradash.domain.image_size import ImageSide, rounded_side
from loradash.domain.names import Name
from loradash.domain.prompt_text import PromptSettings, ReadPrompt, read_options
from loradash.domain.prompts_file import is_prompts_file, read_prompts
from loradash.domain.schedulers import MAX_STEPS, AnySchedulerName, find_scheduler
from loradash.domain.schema import Section, validate, without_switches_for_numbers
from loradash.domain.sizes import counted
from loradash.domain.training_config import (
    RANDOM_SEED,
    AnyPrecision,
    FilePath,
    Pixels,
    Seed,
    Text,
    as_list,
    image_ending,
)
from loradash.domain.training_text import refuse_template_text, with_name_filled
from loradash.domain.yaml_text import load_mapping
from loradash.errors import InvalidConfig

MAX_IMAGES = 1000
MAX_WEIGHT = 10.0


class AdapterUse(BaseModel):
    """One LoRA and how strongly it acts (1.0 as trained, 0 not at all, negative inverts).

    ``REFERENCE:WEIGHT`` is short for both, wherever an adapter is named: no file that is read ends
    in a colon and a number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: FilePath = Field(description="a .safetensors file, or the process id that trained it")
    weight: float = Field(1.0, ge=-MAX_WEIGHT, le=MAX_WEIGHT)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, data: Any) -> Any:
        data = {"path": data} if isinstance(data, str) else data
        if not isinstance(data, dict) or not isinstance(data.get("path"), str):
            return data
        data = without_switches_for_numbers(cls, data)
        path, weight = split_weight(data["path"])
        if weight is None:
            return data
        if data.get("weight") is not None:
            raise ValueError(
                f"the path ends in :{weight:g}, and weight is given too; leave one of them out"
            )
        return {**data, "path": path, "weight": weight}


_WEIGHT = re.compile(
    r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]{1,3})?", re.ASCII | re.IGNORECASE
)
_LIKE_WEIGHT = re.compile(
    r"[+-]?[0-9.,]*[0-9][0-9.,]*(?:e[+-]?[0-9]+)?%?|[+-]?(?:nan|inf)", re.ASCII | re.IGNORECASE
)
_SUFFIX = ".safetensors"


def split_weight(text: str) -> tuple[str, float | None]:
    """Split ``REFERENCE:WEIGHT``; the weight is None if the text has none.

    What follows the ending of a file, or looks like a number, is meant as a weight. Raises
    `ValueError` if it isn't one.
    """
    reference, colon, number = text.rpartition(":")
    if not colon or not (_LIKE_WEIGHT.fullmatch(number) or reference.lower().endswith(_SUFFIX)):
        return text, None
    if not _WEIGHT.fullmatch(number):
        pointed = number.replace(",", ".")
        hint = f"write {pointed} with a point" if _WEIGHT.fullmatch(pointed) else "give a number"
        raise ValueError(f"the weight {number[:40]!r} isn't a number: after the colon, {hint}")
    weight = float(number)
    if not -MAX_WEIGHT <= weight <= MAX_WEIGHT:
        raise ValueError(f"the weight {weight:g} isn't between -10 and 10")
    return reference, weight


def _none_if_random(seed: Any) -> Any:
    """-1 is every program's word for a random seed."""
    return None if seed in (RANDOM_SEED, str(RANDOM_SEED)) else seed


class GenerationRequest(BaseModel):
    """A generation: every prompt is drawn ``num_images`` times; image n has seed ``seed + n``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    base_model: FilePath
    engine: EngineName | None = Field(None, description="what draws it; default: LORADASH_ENGINE")
    prompts: tuple[Text, ...] = Field(min_length=1, max_length=MAX_IMAGES)
    negative_prompt: Text = ""
    adapters: tuple[AdapterUse, ...] = Field((), max_length=16)
    num_images: int = Field(1, ge=1, le=MAX_IMAGES)
    seed: Annotated[Seed | None, BeforeValidator(_none_if_random)] = Field(
        None, description="None or -1 draws one at random and reports it"
    )
    steps: int = Field(20, ge=1, le=MAX_STEPS)
    guidance_scale: float = Field(7.0, ge=0, le=100)
    width: ImageSide | None = Field(None, description="default: the base model's own size")
    height: ImageSide | None = None
    scheduler: AnySchedulerName = "default"
    precision: AnyPrecision = "auto"
    name: Name = "image"
    prompt_settings: tuple[PromptSettings, ...] = Field(
        (), description="what differs for each prompt; as many as there are prompts, or none"
    )
    warnings: tuple[Text, ...] = Field(
        (), max_length=MAX_IMAGES, description="what was read otherwise than it may be meant"
    )

    @model_validator(mode="before")
    @classmethod
    def _read_as_given(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = without_switches_for_numbers(cls, data)
        if not isinstance(data.get("scheduler"), str):
            return data
        try:
            note = find_scheduler(data["scheduler"]).note
        except ValueError:
            return data  # the field's own check says it
        told = data.get("warnings") or ()
        return {**data, "warnings": [*told, f"scheduler: {note}"]} if note else data

    @model_validator(mode="after")
    def _settings_of_each_prompt(self) -> Self:
        if self.prompt_settings and len(self.prompt_settings) != len(self.prompts):
            raise ValueError(
                f"{counted(len(self.prompts), 'prompt')}, but "
                f"{len(self.prompt_settings)} prompt_settings"
            )
        return self

    def settings_of(self, prompt_number: int) -> PromptSettings:
        """What differs for one prompt, counted from 0."""
        return self.prompt_settings[prompt_number] if self.prompt_settings else PromptSettings()

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if len(self.prompts) * self.num_images > MAX_IMAGES:
            raise ValueError(
                f"{counted(len(self.prompts), 'prompt')} x "
                f"{counted(self.num_images, 'image')}: more than {MAX_IMAGES}"
            )
        return self


def _png_ending(value: Any) -> Any:
    ending = image_ending(value)
    if ending in ("jpg", "webp"):
        raise ValueError(
            "images are written as png, which holds their parameters and loses nothing; "
            "set ext to png"
        )
    return ending


class _GenerateSection(Section):
    passthrough = ai_toolkit_keys.GENERATE

    prompts: Annotated[list[Text], BeforeValidator(as_list)] = Field(
        min_length=1, max_length=MAX_IMAGES
    )
    width: Pixels | None = None
    height: Pixels | None = None
    neg: Annotated[Text, BeforeValidator(lambda value: value or "")] = ""
    seed: int = Field(-1, ge=-1)
    guidance_scale: float = Field(7.0, ge=0, le=100)
    sample_steps: int = Field(20, ge=1, le=MAX_STEPS)
    sampler: str = "default"
    ext: Annotated[Literal["png"], BeforeValidator(_png_ending)] = "png"
    num_repeats: int = Field(1, ge=1, le=MAX_IMAGES)


class _GenerationModelSection(Section):
    passthrough = ai_toolkit_keys.GENERATION_MODEL

    name_or_path: FilePath
    lora_path: FilePath | None = None
    lora_scale: float = Field(1.0, ge=-10, le=10)


class _GenerationProcess(Section):
    passthrough = ai_toolkit_keys.GENERATION_PROCESS

    type: Literal["to_folder"]
    dtype: AnyPrecision = "auto"
    generate: _GenerateSection
    model: _GenerationModelSection


class _GenerationJob(Section):
    name: Name = "image"
    process: list[_GenerationProcess] = Field(min_length=1, max_length=1)


class _GenerationDocument(Section):
    job: Literal["generate"]
    engine: EngineName | None = None
    config: _GenerationJob
    meta: dict[str, Any] = Field(default_factory=dict)


_SECTIONS: dict[str, type[Section]] = {
    "config": _GenerationJob,
    "process": _GenerationProcess,
    "generate": _GenerateSection,
    "model": _GenerationModelSection,
}


ReadFile = Callable[[str], str]
"""Returns the text of a file that a config names. Raises `InvalidConfig`."""


def parse_generation_text(text: str, read_file: ReadFile | None = None) -> GenerationRequest:
    """Parse a generation in YAML: our own fields, or ai-toolkit's ``job: generate``.

    ``output_folder`` and ``device`` of the latter have no effect: outputs belong to their process.
    ``prompts`` may be a file of prompts if ``read_file`` is given. Raises `InvalidConfig`.
    """
    document = load_mapping(text, "generation config")
    refuse_template_text(document, "generation config")
    if document.get("job") == "extension":
        raise InvalidConfig(
            "generation config: job is 'extension'",
            remedy="Use `loradash train` (request type train_with_yaml) for this file.",
        )
    if "job" not in document:
        document = {key: value for key, value in document.items() if value is not None}
        if isinstance(document.get("prompts"), str):
            document = {**document, **_prompt_fields(document["prompts"], read_file)}
        return validate(GenerationRequest, document, "generation config")
    document = with_name_filled(document)
    read = validate(_GenerationDocument, document, "generation config", _SECTIONS)
    return _from_document(read, read_file)


def _prompt_fields(prompts: str, read_file: ReadFile | None) -> dict[str, Any]:
    """The prompts of a file, or the one prompt that a text is."""
    if not is_prompts_file(prompts):
        return {"prompts": [prompts]}
    return fields_of(_prompts_of_file(prompts.strip(), read_file))


def _prompts_of_file(name: str, read_file: ReadFile | None) -> tuple[ReadPrompt, ...]:
    if read_file is None:
        raise InvalidConfig(
            f"prompts: {name} is a file, which isn't read from a request",
            remedy="Send the prompts themselves, as a list.",
        )
    return read_prompts(name, read_file(name))


def fields_of(prompts: Sequence[ReadPrompt]) -> dict[str, Any]:
    """Return the fields of a `GenerationRequest` for prompts that were read with their options."""
    settings = [one.settings.model_dump(exclude_none=True) for one in prompts]
    return {
        "prompts": [one.text for one in prompts],
        "prompt_settings": settings if any(settings) else [],
        "warnings": [note for one in prompts for note in one.notes],
    }


def _from_document(document: _GenerationDocument, read_file: ReadFile | None) -> GenerationRequest:
    process = document.config.process[0]
    generate, model = process.generate, process.model
    adapters = [{"path": model.lora_path, "weight": model.lora_scale}] if model.lora_path else []
    prompts: Sequence[ReadPrompt]
    if len(generate.prompts) == 1 and is_prompts_file(generate.prompts[0]):
        prompts = _prompts_of_file(generate.prompts[0].strip(), read_file)
    else:
        prompts = _with_options(generate.prompts)
    fields = fields_of(prompts)
    warnings = [
        *fields["warnings"],
        *_rounded("width", generate.width),
        *_rounded("height", generate.height),
        *(
            f"generate.{key} has no effect"
            for key, value in generate.other_keys.items()
            if ai_toolkit_keys.asks_for_something("generate", key, value)
        ),
        *(
            f"model.{key} has no effect"
            for key, value in model.other_keys.items()
            if key in ai_toolkit_keys.GENERATION_MODEL_MENTIONED
            and ai_toolkit_keys.asks_for_something("model", key, value)
        ),
    ]
    return validate(
        GenerationRequest,
        {
            **fields,
            "name": document.config.name,
            "engine": document.engine,
            "base_model": model.name_or_path,
            "adapters": adapters,
            "negative_prompt": generate.neg,
            "num_images": generate.num_repeats,
            "seed": None if generate.seed < 0 else generate.seed,
            "steps": generate.sample_steps,
            "guidance_scale": generate.guidance_scale,
            "width": generate.width and rounded_side(generate.width),
            "height": generate.height and rounded_side(generate.height),
            "scheduler": generate.sampler,
            "precision": process.dtype,
            "warnings": warnings,
        },
        "generation config",
    )


def _with_options(prompts: Sequence[str]) -> list[ReadPrompt]:
    """Read the options in ai-toolkit's prompts. Raises `InvalidConfig`."""
    read: list[ReadPrompt] = []
    problems: list[str] = []
    for number, text in enumerate(prompts):
        try:
            one = read_options(text)
        except ValueError as error:
            problems.append(f"prompts[{number}]: {error}")
        else:
            notes = tuple(f"prompts[{number}]: {note}" for note in one.notes)
            read.append(one._replace(notes=notes))
    if problems:
        raise InvalidConfig(
            "generation config: options in prompts",
            problems=problems,
            remedy="Correct the options named above.",
        )
    return read


def _rounded(key: str, side: int | None) -> list[str]:
    used = side and rounded_side(side)
    return [f"{key}: {side} isn't a multiple of 8; {used} is used"] if used != side else []


def image_name(name: str, index: int) -> str:
    """File name of image ``index`` of a generation."""
    return f"{PurePath(name).name}_{index:04d}.png"
