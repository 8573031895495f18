"""What the parent hands to the child: the training's job file and the generator's requests."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_serializer

from loradash.domain.engine_use import EngineUse
from loradash.domain.generation import GenerationRequest
from loradash.domain.ids import ProcessId
from loradash.domain.training_config import TrainingConfig
from loradash.engines.diffusers.base_models.families import BaseModelSource

CACHE_FOLDER = "cache"


class DatasetPlan(BaseModel):
    """A dataset as it was when the training was submitted."""

    model_config = ConfigDict(frozen=True)

    folder: str
    """A relative one begins at the job's folder, and goes with it to another machine."""
    sha256: str
    skip: tuple[str, ...] = ()
    images: Mapping[str, str] = Field(
        default_factory=dict,
        description="each image's mark (`loradash.datasets.changes`); empty: by an older loradash",
    )


class JobBefore(BaseModel):
    """The job of a finished training, from whose checkpoints another one goes on."""

    model_config = ConfigDict(frozen=True)

    process_id: ProcessId
    sha256: str = Field(description="of its file, which its checkpoints name")
    steps: int = Field(description="optimizer updates that it had")


class TrainingJob(BaseModel):
    """Everything a training needs, and all that its result depends on.

    Written once; a resumed training reads the same file, so it also fixes what would change the
    last bits of the result (the number of threads).
    """

    model_config = ConfigDict(frozen=True)

    process_id: ProcessId
    engine: EngineUse = Field(EngineUse(), description="what wrote it; older jobs say nothing")
    created_at: datetime
    config: TrainingConfig
    base_model: BaseModelSource
    datasets: tuple[DatasetPlan, ...]
    dataset_sha256: str
    device: str
    threads: int = Field(ge=1)
    offline: bool
    before: JobBefore | None = None

    @field_serializer("config")
    def _as_given(self, config: TrainingConfig) -> dict[str, Any]:
        return config.model_dump(mode="json", exclude_unset=True)


class ResolvedAdapter(BaseModel):
    """An adapter file on this machine."""

    model_config = ConfigDict(frozen=True)

    path: Path
    weight: float


class Generate(BaseModel):
    """Ask the long-lived generator for images."""

    model_config = ConfigDict(frozen=True)

    type: Literal["generate"] = "generate"
    request_id: str
    request: GenerationRequest
    base_model: BaseModelSource
    adapters: tuple[ResolvedAdapter, ...]
    folder: Path
    done: tuple[int, ...] = Field((), description="numbers of images that needn't be drawn")


class Cancel(BaseModel):
    """Ask the generator to stop the request that it works on."""

    model_config = ConfigDict(frozen=True)

    type: Literal["cancel"] = "cancel"
    request_id: str


GeneratorLine = Annotated[Generate | Cancel, Field(discriminator="type")]
GENERATOR_LINE: TypeAdapter[GeneratorLine] = TypeAdapter(GeneratorLine)
