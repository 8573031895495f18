"""What an engine tells while it works: typed events, one JSON object a line.

Every run ends with exactly one of `Done`, `Failed` or `Stopped`. An engine that ends without one
has crashed, whatever its exit code says.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

EVENTS_FD_VARIABLE = "LORADASH_EVENTS_FD"
"""Environment variable that names the file descriptor on which an engine's child writes events."""

Phase = Literal["starting", "loading", "caching", "training", "sampling", "saving", "generating"]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")

    time_s: float = Field(0.0, description="Unix time of the event")
    request_id: str = Field("", description="generation request of a long-lived engine, or ''")


class PhaseChanged(_Event):
    """The work entered a phase; ``done`` of ``total`` items of it are ready where that is known."""

    type: Literal["phase"] = "phase"
    phase: Phase
    detail: str = ""
    done: int | None = None
    total: int | None = None


class StepDone(_Event):
    """One optimizer update is done; ``step`` of ``total_steps``, counted from 1."""

    type: Literal["step"] = "step"
    step: int
    total_steps: int
    loss: float
    learning_rate: float
    grad_norm: float | None = None
    steps_per_s: float | None = None
    eta_s: float | None = None


class SampleWritten(_Event):
    """A preview image was written."""

    type: Literal["sample"] = "sample"
    step: int
    index: int
    path: str
    prompt: str
    seed: int


class ImageWritten(_Event):
    """A generated image was written."""

    type: Literal["image"] = "image"
    index: int
    path: str
    prompt: str
    seed: int
    duration_s: float


class CheckpointWritten(_Event):
    """A checkpoint is complete on disk: a folder that verifies, from which training can go on."""

    type: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str
    size_bytes: int


class Resumed(_Event):
    """Training goes on after ``step`` updates, from a checkpoint.

    ``steps`` are the latest of these updates: whoever listened to them may have died before it had
    written down what it heard.
    """

    type: Literal["resumed"] = "resumed"
    step: int
    path: str
    steps: tuple[StepDone, ...] = ()


class Warned(_Event):
    """Something that the user should know but that doesn't stop the work."""

    type: Literal["warning"] = "warning"
    code: str
    message: str


class Done(_Event):
    """The work is complete. For a training: the final adapter file with its hash."""

    type: Literal["done"] = "done"
    step: int | None = None
    path: str | None = None
    sha256: str | None = None
    size_bytes: int | None = None
    duration_s: float = 0.0


class Failed(_Event):
    """The work failed, with a stable code, a sentence, and whether it can be resumed."""

    type: Literal["failed"] = "failed"
    code: str
    message: str
    remedy: str = ""
    problems: tuple[str, ...] = ()
    resumable: bool = False


class Stopped(_Event):
    """The work ended on request after ``step`` updates; ``checkpoint`` says where it goes on."""

    type: Literal["stopped"] = "stopped"
    step: int | None = None
    checkpoint: str | None = None


class Ready(_Event):
    """A long-lived engine is ready for the next request."""

    type: Literal["ready"] = "ready"
    loaded_base_model: str | None = None


Event = Annotated[
    PhaseChanged
    | StepDone
    | SampleWritten
    | ImageWritten
    | CheckpointWritten
    | Resumed
    | Warned
    | Done
    | Failed
    | Stopped
    | Ready,
    Field(discriminator="type"),
]
Terminal = Done | Failed | Stopped

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(line: str | bytes) -> Event:
    """Parse one line. Raises `pydantic.ValidationError` for anything that isn't an event."""
    return _ADAPTER.validate_json(line)


def read_event(line: str | bytes) -> Event | None:
    """Return the event that a line is, or None if it isn't one."""
    try:
        return parse_event(line)
    except ValidationError:
        return None
