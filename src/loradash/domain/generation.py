"""What to generate: prompts, adapters and sampling settings; and ai-toolkit's ``job: generate``."""

from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from loradash.domain import ai_toolkit_keys
from loradash.domain.image_size import ImageSide, rounded_side
from loradash.domain.names import Name
from loradash.domain.schedulers import MAX_STEPS, AnySchedulerName
from loradash.domain.schema import Section, validate
from loradash.domain.training_config import (
    RANDOM_SEED,
    AnyPrecision,
    FilePath,
    Pixels,
    Seed,
    Text,
    image_ending,
)
from loradash.domain.training_text import refuse_template_text, with_name_filled
from loradash.domain.yaml_text import load_mapping
from loradash.errors import InvalidConfig

MAX_IMAGES = 1000
MAX_WEIGHT = 10.0


class AdapterUse(BaseModel):
    """One LoRA and how strongly it acts (1.0 as trained, 0 not at all, negative inverts)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: FilePath = Field(description="a .safetensors file, or the process id that trained it")
    weight: float = Field(1.0, ge=-MAX_WEIGHT, le=MAX_WEIGHT)


def _none_if_random(seed: Any) -> Any:
    """-1 is every program's word for a random seed."""
    return None if seed in (RANDOM_SEED, str(RANDOM_SEED)) else seed


class GenerationRequest(BaseModel):
    """A generation: every prompt is drawn ``num_images`` times; image n has seed ``seed + n``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    base_model: FilePath
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

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if len(self.prompts) * self.num_images > MAX_IMAGES:
            raise ValueError(
                f"{len(self.prompts)} prompts x {self.num_images} images are more than {MAX_IMAGES}"
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

    prompts: Annotated[
        list[Text], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
    ] = Field(min_length=1, max_length=MAX_IMAGES)
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
    config: _GenerationJob
    meta: dict[str, Any] = Field(default_factory=dict)


_SECTIONS: dict[str, type[Section]] = {
    "config": _GenerationJob,
    "process": _GenerationProcess,
    "generate": _GenerateSection,
    "model": _GenerationModelSection,
}


def parse_generation_text(text: str) -> GenerationRequest:
    """Parse a generation in YAML: our own fields, or ai-toolkit's ``job: generate``.

    ``output_folder`` and ``device`` of the latter have no effect: outputs belong to their process.
    Raises `InvalidConfig`.
    """
    document = load_mapping(text, "generation config")
    refuse_template_text(document, "generation config")
    if document.get("job") == "extension":
        raise InvalidConfig(
            "generation config: job is 'extension'",
            remedy="Use `loradash train` (request type train_with_yaml) for this file.",
        )
    if "job" not in document:
        return validate(GenerationRequest, document, "generation config")
    document = with_name_filled(document)
    process = validate(_GenerationDocument, document, "generation config", _SECTIONS).config
    return _from_process(process.name, process.process[0])


def _from_process(name: str, process: _GenerationProcess) -> GenerationRequest:
    generate, model = process.generate, process.model
    adapters = [{"path": model.lora_path, "weight": model.lora_scale}] if model.lora_path else []
    return validate(
        GenerationRequest,
        {
            "name": name,
            "base_model": model.name_or_path,
            "adapters": adapters,
            "prompts": generate.prompts,
            "negative_prompt": generate.neg,
            "num_images": generate.num_repeats,
            "seed": None if generate.seed < 0 else generate.seed,
            "steps": generate.sample_steps,
            "guidance_scale": generate.guidance_scale,
            "width": generate.width and rounded_side(generate.width),
            "height": generate.height and rounded_side(generate.height),
            "scheduler": generate.sampler,
            "precision": process.dtype,
        },
        "generation config",
    )


def image_name(name: str, index: int) -> str:
    """File name of image ``index`` of a generation."""
    return f"{PurePath(name).name}_{index:04d}.png"
