"""The training config: ai-toolkit's job YAML, typed.

Keys and defaults are those of ai-toolkit (ostris/ai-toolkit, ``toolkit/config_modules.py``) so that
the files people have keep working. Two defaults differ on purpose: ``train.lr`` (1e-4 instead of
1e-6, which learns nothing) and ``sample.format`` (png, which can hold the parameters). Keys marked
*loradash* don't exist in ai-toolkit.
"""

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    StringConstraints,
    field_validator,
    model_validator,
)

from loradash.domain import ai_toolkit_keys
from loradash.domain.characters import printable
from loradash.domain.engine_use import EngineName
from loradash.domain.names import Name
from loradash.domain.optimizers import (
    LEAST_OWN_RATE,
    foreign_settings,
    kind_of,
    optimizer_name,
    optimizers_with,
)
from loradash.domain.schema import Section

Precision = Literal["fp32", "bf16", "fp16", "auto"]

_PRECISION_NAMES = {
    "float": "fp32", "float32": "fp32", "fp32": "fp32", "single": "fp32", "no": "fp32",
    "bfloat16": "bf16", "bf16": "bf16",
    "float16": "fp16", "half": "fp16", "fp16": "fp16",
    "auto": "auto",
}  # fmt: skip


def _precision(value: Any) -> Any:
    """Take the names that ai-toolkit, kohya and torch have for a precision."""
    if not isinstance(value, str):
        return value
    return _PRECISION_NAMES.get(value.strip().lower().removeprefix("torch."), value)


def as_list(value: Any) -> Any:
    """Return a list as it is, and anything else as its one item."""
    return value if isinstance(value, list) else [value]


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


AnyPrecision = Annotated[Precision, BeforeValidator(_precision)]
Pixels = Annotated[int, Field(ge=8, le=8192)]
Rate = Annotated[float, Field(ge=0, le=1)]
MAX_TEXT_CHARACTERS = 10_000
"""Of a prompt and other texts, in configs, requests and options alike."""

Text = Annotated[str, BeforeValidator(printable), StringConstraints(max_length=MAX_TEXT_CHARACTERS)]
FilePath = Annotated[
    str,
    BeforeValidator(printable),
    StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f]+$"),
]


def _whole_number(value: Any) -> Any:
    """A name of digits, which a client that sends JSON may have made a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _none_if_zero(value: Any) -> Any:
    """0 switches off what ``null`` switches off."""
    return None if is_zero(value) else value


def is_zero(value: Any) -> bool:
    """Whether a value is 0 or false, as a number or as text; ``null`` isn't."""
    if isinstance(value, str):
        try:
            return float(value) == 0
        except ValueError:
            return False
    return isinstance(value, bool | int | float) and value == 0


def _last_step(value: Any) -> Any:
    """1000, and so the number of steps, is ai-toolkit's other word for the last one."""
    return LAST_DENOISING_STEP if value in (1000, 1000.0, "1000") else value


def split_at_commas(value: Any) -> Any:
    """Return the parts of a text with commas, and anything else as it is."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


DatasetPath = Annotated[FilePath, BeforeValidator(_whole_number)]
MAX_SEED = 2**63 - 1
RANDOM_SEED = -1
LAST_DENOISING_STEP = 999
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
SeedOrRandom = Annotated[
    int,
    Field(
        ge=RANDOM_SEED, le=MAX_SEED, description="-1 is drawn once, when the training is submitted"
    ),
]
DenoisingStep = Annotated[int, BeforeValidator(_last_step), Field(ge=0, le=LAST_DENOISING_STEP)]


SnrGamma = Annotated[
    Annotated[float, Field(gt=0, le=1000, description="0: off")] | None,
    BeforeValidator(_none_if_zero),
]


NetworkType = Literal[
    "lora", "lokr", "loha", "dora", "lorm", "lierla", "c3lier", "ia3", "full", "fullrank"
]


def _network_type(value: Any) -> Any:
    """LoCon is a LoRA with ``conv``."""
    name = _lower(value)
    return "lora" if name in ("locon", "lycoris") else name


class NetworkSection(Section):
    """The LoRA: rank (``linear``), alpha, and which layers it is put on."""

    passthrough = ai_toolkit_keys.NETWORK
    other_names = frozenset({"rank", "alpha"})

    type: Annotated[NetworkType, BeforeValidator(_network_type)] = "lora"
    linear: int = Field(4, ge=1, le=1024, description="rank of linear layers")
    linear_alpha: float = Field(1.0, gt=0, le=4096, description="0 or null: the rank")
    conv: Annotated[Annotated[int, Field(ge=1, le=1024)] | None, BeforeValidator(_none_if_zero)] = (
        Field(None, description="rank of 3x3 convolutions")
    )
    conv_alpha: Annotated[
        Annotated[float, Field(gt=0, le=4096)] | None, BeforeValidator(_none_if_zero)
    ] = None
    dropout: float | None = Field(None, ge=0, lt=1)
    pretrained_lora_path: FilePath | None = Field(None, description="start from this adapter")
    target_modules: list[str] | None = Field(
        None, min_length=1, max_length=100, description="loradash: layer name endings, as in peft"
    )
    network_kwargs: "NetworkKwargs" = Field(default_factory=lambda: NetworkKwargs())

    @model_validator(mode="before")
    @classmethod
    def _aliases(cls, data: Any) -> Any:
        """``rank`` and ``alpha`` are ai-toolkit's other names of the same two values."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        for other, name in (("rank", "linear"), ("alpha", "linear_alpha")):
            if other not in data:
                continue
            value = data.pop(other)
            if data.get(name) is None:
                data[name] = value
            elif value is not None and data[name] != value:
                raise ValueError(f"{other} and {name} are the same setting but differ")
        if "linear_alpha" in data and (
            data["linear_alpha"] is None or is_zero(data["linear_alpha"])
        ):
            rank = data.get("linear")
            data["linear_alpha"] = cls.model_fields["linear"].default if rank is None else rank
        return data

    @property
    def rank(self) -> int:
        """Rank of the linear layers."""
        return self.linear

    @property
    def alpha(self) -> float:
        """Alpha of the linear layers; the update is scaled by alpha / rank."""
        return self.linear_alpha


class NetworkKwargs(Section):
    """Which layers are chosen, by parts of their names."""

    passthrough = ai_toolkit_keys.NETWORK_KWARGS

    only_if_contains: list[str] | None = None
    ignore_if_contains: list[str] | None = None


def _stay_here(push_to_hub: bool) -> bool:
    if push_to_hub:
        raise ValueError(
            "results go to the object store, never elsewhere on their own; set it to false, and "
            "upload the finished adapter yourself"
        )
    return push_to_hub


class SaveSection(Section):
    """How often checkpoints are written, and what the adapter file looks like."""

    passthrough = ai_toolkit_keys.SAVE

    dtype: Annotated[Literal["fp32", "bf16", "fp16"], BeforeValidator(_precision)] = "fp16"
    save_every: int = Field(1000, ge=0, description="0: only at the end, and when it is stopped")
    max_step_saves_to_keep: int = Field(5, ge=0, description="0 keeps all")
    save_format: Literal["safetensors", "diffusers"] = Field(
        "safetensors", description="key names: kohya's (read everywhere) or diffusers'"
    )
    metadata: Literal["full", "minimal"] = Field(
        "full", description="loradash: minimal leaves out what tells of the data (folders, tags)"
    )
    push_to_hub: Annotated[bool, AfterValidator(_stay_here)] = Field(
        False, description="refused: results go to the object store, never elsewhere on their own"
    )


def _caption_ending(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value.strip().lower().removeprefix(".") in ("json", "jsonl"):
        raise ValueError("captions in JSON aren't read; write one text file beside each image")
    return value.strip() or "txt"


class DatasetSection(Section):
    """One folder of images with captions."""

    passthrough = ai_toolkit_keys.DATASETS
    other_names = frozenset({"dataset_path", "caption_type"})

    folder_path: DatasetPath
    caption_ext: Annotated[
        str,
        StringConstraints(pattern=r"^\.?[A-Za-z0-9]{1,10}$"),
        BeforeValidator(_caption_ending),
    ] = "txt"
    default_caption: Text | None = None
    trigger_word: Text | None = None
    resolution: Annotated[
        list[Pixels], BeforeValidator(as_list), Field(min_length=1, max_length=16)
    ] = Field(
        default_factory=lambda: [512], description="default: the base model's own size if known"
    )
    num_repeats: int = Field(1, ge=1, le=10_000)
    is_reg: bool = Field(False, description="regularisation (prior) images")
    prior_reg: bool = Field(
        False, description="learn the base model's own prediction on them, not the image's"
    )
    caption_dropout_rate: Rate = 0.0
    shuffle_tokens: bool = False
    keep_tokens: int = Field(0, ge=0)
    flip_x: bool = False
    loss_multiplier: float = Field(1.0, ge=0, le=1000)
    cache_latents: bool = Field(False, description="always done, in memory")
    cache_latents_to_disk: bool = False
    on_bad_image: Literal["stop", "skip"] = Field("stop", description="loradash")

    @model_validator(mode="before")
    @classmethod
    def _aliases(cls, data: Any) -> Any:
        """``dataset_path`` and ``caption_type`` are ai-toolkit's other names, and win there."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        for other, name in (("dataset_path", "folder_path"), ("caption_type", "caption_ext")):
            value = data.pop(other, None)
            if value is not None:
                data[name] = value
        return data

    @property
    def caption_suffix(self) -> str:
        """The caption files' ending with its dot, such as ``.txt``."""
        return f".{self.caption_ext.removeprefix('.')}"


class EmaSection(Section):
    """Exponential moving average of the adapter's weights."""

    passthrough = ai_toolkit_keys.EMA_CONFIG

    use_ema: bool = False
    ema_decay: float = Field(0.999, ge=0, lt=1)


def _none_if_false(value: Any) -> Any:
    return {} if value is False else value


AI_TOOLKIT_WARMUP = 1000
LearningRateSchedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial",
]  # fmt: skip
NoiseScheduler = Literal[
    "ddpm", "ddim", "pndm", "lms", "k_lms", "euler", "k_euler", "euler_a", "heun", "dpm_2",
    "dpm_2_a", "dpmsolver", "dpmsolver++", "k_dpmsolver", "k_dpmsolver++", "dpmsingle", "unipc",
    "lcm", "flowmatch", "mean_flow", "custom_lcm",
]  # fmt: skip
Loss = Literal[
    "mse", "mae", "wavelet", "pixelspace", "mean_flow", "pseudo_huber", "huber", "smooth_l1",
    "stepped",
]  # fmt: skip


class TrainSection(Section):
    """Steps, batch, optimizer, objective."""

    passthrough = ai_toolkit_keys.TRAIN

    steps: int = Field(1000, ge=1, le=10_000_000)
    batch_size: int = Field(1, ge=1, le=4096)
    gradient_accumulation: int = Field(1, ge=1, le=4096, description="steps count updates")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=4096, description="as above, but steps count batches (ai-toolkit's old key)"
    )
    lr: float = Field(1e-4, gt=0, le=1e6)
    unet_lr: float | None = Field(None, gt=0, le=1e6)
    text_encoder_lr: float | None = Field(None, gt=0, le=1e6)
    optimizer: Annotated[str, BeforeValidator(optimizer_name)] = "adamw"
    optimizer_params: "OptimizerParams" = Field(default_factory=lambda: OptimizerParams())
    lr_scheduler: Annotated[LearningRateSchedule, BeforeValidator(_lower)] = "constant"
    lr_scheduler_params: "ScheduleParams" = Field(default_factory=lambda: ScheduleParams())
    max_grad_norm: float = Field(1.0, ge=0, description="0 switches clipping off")
    dtype: AnyPrecision = "fp32"
    train_unet: bool = True
    train_text_encoder: bool = False
    gradient_checkpointing: bool = True
    noise_scheduler: Annotated[NoiseScheduler, BeforeValidator(_lower)] = "ddpm"
    min_denoising_steps: DenoisingStep = 0
    max_denoising_steps: DenoisingStep = LAST_DENOISING_STEP
    content_or_style: Annotated[
        Literal["balanced", "content", "style"], BeforeValidator(_lower)
    ] = Field("balanced", description="content prefers steps with much noise, style with little")
    noise_offset: float = Field(0.0, ge=0, le=10)
    min_snr_gamma: SnrGamma = None
    snr_gamma: SnrGamma = None
    loss_type: Annotated[Loss, BeforeValidator(_lower)] = "mse"
    reg_weight: float = Field(1.0, ge=0, le=1000)
    ema_config: Annotated[EmaSection, BeforeValidator(_none_if_false)] = Field(
        default_factory=EmaSection
    )
    skip_first_sample: bool = False
    disable_sampling: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.gradient_accumulation > 1 and self.gradient_accumulation_steps > 1:
            raise ValueError(
                "give either gradient_accumulation or gradient_accumulation_steps, not both"
            )
        if self.min_snr_gamma and self.snr_gamma and self.min_snr_gamma != self.snr_gamma:
            raise ValueError("give either min_snr_gamma or snr_gamma, not both")
        if self.min_denoising_steps >= self.max_denoising_steps:
            raise ValueError("min_denoising_steps must be smaller than max_denoising_steps")
        if not (self.train_unet or self.train_text_encoder):
            raise ValueError("nothing to train: set train_unet or train_text_encoder to true")
        self._check_optimizer()
        return self

    def _check_optimizer(self) -> None:
        params = self.optimizer_params.given
        for name in foreign_settings(self.optimizer, set(params)):
            having = " or ".join(optimizers_with(name)) or "no optimizer"
            raise ValueError(
                f"optimizer_params.{name} is a setting of {having}, not of {self.optimizer}"
            )
        if isinstance(params.get("eps"), tuple) != (
            self.optimizer == "adafactor" and "eps" in params
        ):
            raise ValueError(
                "optimizer_params.eps: adafactor has two values in a list, others have one number"
            )
        own_rate = kind_of(self.optimizer).own_rate
        both = self.train_unet and self.train_text_encoder
        if own_rate and both and self.unet_rate != self.text_encoder_rate:
            raise ValueError(
                f"{self.optimizer} finds one rate for all that it trains, so unet_lr and "
                "text_encoder_lr can't differ"
            )

    @property
    def warmup_updates(self) -> int:
        """Updates of the rise; ``constant_with_warmup`` alone has one if none is given."""
        given = self.lr_scheduler_params.num_warmup_steps
        if given is None:
            return AI_TOOLKIT_WARMUP if self.lr_scheduler == "constant_with_warmup" else 0
        return given

    @property
    def unet_rate(self) -> float:
        """Learning rate of the denoiser."""
        return self._rate(self.unet_lr)

    @property
    def text_encoder_rate(self) -> float:
        """Learning rate of the text encoders."""
        return self._rate(self.text_encoder_lr)

    def _rate(self, own: float | None) -> float:
        """An optimizer that finds the rate itself has 1 instead of an ordinary one, as there."""
        rate = own or self.lr
        return 1.0 if kind_of(self.optimizer).own_rate and rate < LEAST_OWN_RATE else rate

    @property
    def accumulation(self) -> int:
        """Batches per optimizer update."""
        return max(self.gradient_accumulation, self.gradient_accumulation_steps)

    @property
    def steps_per_update(self) -> int:
        """How many of this config's steps one optimizer update takes (see the two keys above)."""
        return self.gradient_accumulation_steps

    @property
    def updates(self) -> int:
        """Optimizer updates of the whole training: what loradash calls a step everywhere else."""
        return -(-self.steps // self.steps_per_update)


Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerParams(Section):
    """Extra arguments of the optimizer; each has those of its kind (`domain.optimizers`)."""

    weight_decay: float | None = Field(None, ge=0, le=10)
    betas: tuple[float, float] | None = None
    eps: PositiveFloat | tuple[PositiveFloat, PositiveFloat] | None = None
    amsgrad: bool | None = None
    decoupled_weight_decay: bool | None = None
    beta1: Beta | None = None
    beta3: Beta | None = None
    decouple: bool | None = None
    use_bias_correction: bool | None = None
    safeguard_warmup: bool | None = None
    d0: float | None = Field(None, gt=0, le=1)
    d_coef: float | None = Field(None, gt=0, le=1000)
    growth_rate: float | None = Field(None, gt=1)
    slice_p: int | None = Field(None, ge=1, le=10_000)
    clip_threshold: float | None = Field(None, gt=0)
    decay_rate: float | None = Field(None, lt=0)
    scale_parameter: bool | None = None
    relative_step: bool | None = None
    warmup_init: bool | None = None
    lr_decay: float | None = Field(None, ge=0)
    initial_accumulator_value: float | None = Field(None, ge=0)

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float] | None) -> tuple[float, float] | None:
        if betas is not None and not all(0 <= beta < 1 for beta in betas):
            raise ValueError("each beta must be at least 0 and below 1")
        return betas

    @property
    def given(self) -> dict[str, Any]:
        """The settings that were given."""
        return self.model_dump(exclude_none=True)


class ScheduleParams(Section):
    """Extra arguments of the learning-rate schedule, in optimizer updates."""

    passthrough = ai_toolkit_keys.LR_SCHEDULER_PARAMS

    num_warmup_steps: int | None = Field(None, ge=0)
    num_cycles: int = Field(1, ge=1, le=1000)
    power: float = Field(1.0, gt=0, le=10)
    min_factor: float = Field(0.0, ge=0, le=1, description="loradash: the schedule ends here")
    eta_min: float = Field(0.0, ge=0, description="the same as a learning rate, for cosine")
    factor: float = Field(1.0, gt=0, le=1, description="of a constant rate")
    start_factor: float | None = Field(None, gt=0, le=1, description="of a linear schedule")
    end_factor: float | None = Field(None, ge=0, le=1, description="of a linear schedule")


class ModelSection(Section):
    """The base model."""

    passthrough = ai_toolkit_keys.MODEL

    name_or_path: FilePath
    arch: str | None = Field(
        None, description="told by the base model itself; another one is refused or mentioned"
    )
    is_v_pred: bool | None = Field(None, description="only where the base model doesn't say")
    extras_name_or_path: FilePath | None = Field(
        None, description="folder or hub id with the configs that a single file lacks"
    )


def image_ending(value: Any) -> Any:
    """``.JPEG`` is ``jpg``: with a dot or without, in any case."""
    name = _lower(value)
    if not isinstance(name, str):
        return value
    name = name.removeprefix(".")
    return "jpg" if name == "jpeg" else name


class SampleItem(Section):
    """One sample image with settings of its own."""

    passthrough = ai_toolkit_keys.SAMPLES

    prompt: Text
    width: Pixels | None = None
    height: Pixels | None = None
    neg: Text | None = None
    seed: SeedOrRandom | None = None
    guidance_scale: float | None = Field(None, ge=0, le=100)
    sample_steps: int | None = Field(None, ge=1, le=500)
    network_multiplier: float | None = Field(None, ge=-10, le=10)


class SampleSection(Section):
    """Preview images during training."""

    passthrough = ai_toolkit_keys.SAMPLE

    sampler: str = Field("ddpm", max_length=50)
    sample_every: int = Field(100, ge=0, description="0: never")
    sample_start_step: int = Field(0, ge=0)
    width: Pixels = Field(512, description="default: the base model's own size if known")
    height: Pixels = Field(512, description="default: the base model's own size if known")
    neg: Text = ""
    seed: SeedOrRandom = 0
    walk_seed: bool = False
    guidance_scale: float = Field(7.0, ge=0, le=100)
    sample_steps: int = Field(20, ge=1, le=500)
    network_multiplier: float = Field(1.0, ge=-10, le=10)
    format: Annotated[Literal["png", "jpg", "webp"], BeforeValidator(image_ending)] = "png"
    prompts: list[Text] = Field(default_factory=list, max_length=100)
    samples: list[SampleItem] = Field(default_factory=list, max_length=100)

    @field_validator("neg", mode="before")
    @classmethod
    def _no_negative_prompt(cls, value: Any) -> Any:
        return "" if value is False or value is None else value


class LoggingSection(Section):
    """Accepted and without effect: every step is reported as an event."""

    passthrough = ai_toolkit_keys.LOGGING


class TrainingProcess(Section):
    """One entry of ``config.process``."""

    passthrough = ai_toolkit_keys.PROCESS

    type: Annotated[
        Literal["sd_trainer", "diffusion_trainer", "ui_trainer"], BeforeValidator(_lower)
    ]
    name: Name | None = None
    trigger_word: Text | None = None
    training_seed: SeedOrRandom | None = None
    network: NetworkSection
    save: SaveSection = Field(default_factory=SaveSection)
    datasets: list[DatasetSection] = Field(min_length=1, max_length=100)
    train: TrainSection = Field(default_factory=TrainSection)
    model: ModelSection
    sample: SampleSection = Field(default_factory=SampleSection)
    logging: LoggingSection = Field(default_factory=LoggingSection)


class JobSection(Section):
    """``config``: the name and exactly one process."""

    name: Name
    process: list[TrainingProcess] = Field(min_length=1, max_length=1)


class MetaSection(Section):
    """What the adapter file says for its reader. Any key is allowed, as in ai-toolkit.

    All of them are copied into the file's metadata; those below also get their places in ModelSpec.
    """

    model_config = Section.model_config | {"extra": "allow"}
    max_characters: ClassVar[int] = 100_000

    title: Text | None = Field(None, description="default: the training's name")
    description: Annotated[str, StringConstraints(max_length=50_000)] | None = None
    author: Text | None = None
    creator: Any = Field(None, description="ai-toolkit's author: a name, or a mapping with `name`")
    license: Text | None = None
    usage_hint: Text | None = None
    tags: Annotated[list[Text], BeforeValidator(split_at_commas)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _fits_into_a_file(self) -> Self:
        values = self.model_dump(exclude_unset=True)
        for key in values:
            if key == "format" or key.startswith(("modelspec.", "ss_", "sshs_", "loradash.")):
                raise ValueError(
                    f"{key} is written by the trainer itself; of ModelSpec you can give "
                    "title, description, author, license, usage_hint and tags"
                )
        try:
            size = len(json.dumps(values, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"the values must be such as JSON has ({error})") from error
        if size > self.max_characters:
            raise ValueError(f"at most {self.max_characters} characters; these are {size}")
        return self

    @property
    def creator_name(self) -> str | None:
        """The name in ``creator``."""
        name = self.creator.get("name") if isinstance(self.creator, dict) else self.creator
        return name if isinstance(name, str) else None


class TrainingConfig(Section):
    """A whole training document (``job: extension``)."""

    sections: ClassVar[dict[str, type[Section]]]

    job: Literal["extension"]
    engine: EngineName | None = Field(
        None, description="loradash: what trains it; default: LORADASH_ENGINE"
    )
    config: JobSection
    meta: MetaSection = Field(default_factory=MetaSection)

    @property
    def name(self) -> str:
        """Name of the training and of its adapter file."""
        return self.config.process[0].name or self.config.name

    @property
    def process(self) -> TrainingProcess:
        """The one training process."""
        return self.config.process[0]

    @property
    def trigger_word(self) -> str:
        """The word that calls the concept, or ''."""
        return (self.process.trigger_word or "").strip()

    @property
    def seed(self) -> int:
        """Seed of everything random in the training; -1 until it is submitted, if it's random."""
        return 0 if self.process.training_seed is None else self.process.training_seed


TrainingConfig.sections = {
    "config": JobSection, "process": TrainingProcess, "network": NetworkSection,
    "network_kwargs": NetworkKwargs, "save": SaveSection, "datasets": DatasetSection,
    "train": TrainSection, "optimizer_params": OptimizerParams,
    "lr_scheduler_params": ScheduleParams, "ema_config": EmaSection, "model": ModelSection,
    "sample": SampleSection, "samples": SampleItem,
    "logging": LoggingSection, "meta": MetaSection,
}  # fmt: skip
