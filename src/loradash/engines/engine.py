"""The port of an engine: a program that trains or generates, run as a child process.

An engine turns a request into a command line and a job file, its output into typed events
(`parse`), and says which files count as results (`artifacts`). It never sees the registry or the
object store. Each thing that it can do is a protocol of its own, an ability. To add an engine, see
``docs/engines.md``.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from loradash.domain.artifacts import ArtifactKind
from loradash.domain.dataset import DatasetReport
from loradash.domain.events import Event
from loradash.domain.generation import GenerationRequest
from loradash.domain.training_config import DatasetSection, TrainingConfig


class Command(BaseModel):
    """A program to start: arguments, what is added to the environment, where it runs."""

    model_config = ConfigDict(frozen=True)

    argv: tuple[str, ...]
    environment: Mapping[str, str] = Field(default_factory=dict)
    working_directory: Path


class Artifact(NamedTuple):
    """A file that a run has produced and that is worth keeping."""

    kind: ArtifactKind
    path: Path


class Checkpoint(NamedTuple):
    """What a training can go on from: a folder, and the files that it is made of."""

    folder: Path
    files: tuple[Path, ...]


class Engine(Protocol):
    """A program that works on processes. What it can do, it says by the protocols below.

    `loradash.engines.catalogue` looks for them once, when the program starts.
    """

    @property
    def name(self) -> str:
        """What requests, records, jobs and adapters call it; see `domain.engine_use.EngineName`."""
        ...

    @property
    def version(self) -> str:
        """The version of what computes its results."""
        ...

    def require_installed(self) -> None:
        """Raise `EngineUnavailable` if the engine can't be started on this machine."""
        ...

    def parse(self, line: str) -> Event | None:
        """Turn one line of the event stream into an event, or None if it isn't one."""
        ...


class ReadsAdapters(Protocol):
    """Part of training and of generating: to tell whether an adapter file can be used."""

    def adapter_metadata(self, path: Path) -> dict[str, str]:
        """Return an adapter file's metadata if it is whole and of a make that can be used.

        Raises `InvalidAdapter`.
        """
        ...

    def verify_adapter(self, path: Path) -> dict[str, str]:
        """As `adapter_metadata`, after reading all values: NaN and infinity aren't an adapter.

        Raises `InvalidAdapter`.
        """
        ...


@runtime_checkable
class Trains(Engine, ReadsAdapters, Protocol):
    """Ability: to train adapters. Only the engine knows how the files of a training are called."""

    def check_training(self, config: TrainingConfig) -> tuple[str, ...]:
        """Return warnings about settings without effect; raise for those that can't be done.

        Starts nothing and writes nothing. Raises `InvalidConfig` and `InvalidBaseModel`.
        """
        ...

    def native_size(self, config: TrainingConfig) -> int | None:
        """Side in pixels of the images that the base model was trained on.

        None if that isn't known here. Raises `InvalidBaseModel` as `check_training` does.
        """
        ...

    def check_texts(
        self,
        config: TrainingConfig,
        data: Sequence[tuple[DatasetSection, DatasetReport]],
    ) -> tuple[str, ...]:
        """Return what to say of captions and prompts that the base model doesn't read to their end.

        Nothing if that isn't known here; then the training says it.
        """
        ...

    def write_training_job(
        self,
        process_id: str,
        config: TrainingConfig,
        reports: tuple[DatasetReport, ...],
        folder: Path,
        created_at: datetime,
    ) -> None:
        """Write the job file of a new training into the process's folder.

        ``created_at`` is the process's: whichever attempt writes the job, its results are the same.
        A report whose folder is relative means one seen from there, also on another machine.
        """
        ...

    def training_command(self, folder: Path) -> Command:
        """Return the command that starts a training or, if it has checkpoints, continues it."""
        ...

    def job_file(self, folder: Path) -> Path:
        """Where `write_training_job` puts the job."""
        ...

    def checkpoint_folder(self, folder: Path) -> Path:
        """Where checkpoints are, and are restored to: a folder for each, and all files in it."""
        ...

    def has_checkpoint(self, folder: Path) -> bool:
        """Whether an earlier attempt has left something to continue from."""
        ...

    def checkpoints(self, folder: Path) -> list[Checkpoint]:
        """List a training's checkpoints, the newest last; none that is still being written."""
        ...

    def artifacts(self, folder: Path) -> list[Artifact]:
        """List what the engine has produced so far, except checkpoints, whatever the format.

        The config, the log and the events are written and kept by who runs the engine.
        """
        ...


@runtime_checkable
class ExtendsTrainings(Protocol):
    """Ability: to go on, in a new training, where a finished one ended."""

    def extension_warnings(self, before: TrainingConfig, config: TrainingConfig) -> tuple[str, ...]:
        """Return what keeps the result from being that of one training of that many steps."""
        ...

    def write_extended_job(
        self,
        process_id: str,
        config: TrainingConfig,
        job: Path,
        data: tuple[str, ...],
        folder: Path,
        created_at: datetime,
    ) -> None:
        """Write a job that goes on from checkpoints of the finished ``job``, with its data.

        ``data`` are the folders in which the same datasets are now, as in `write_training_job`.
        Raises `InvalidCheckpoint` if the job can't be read.
        """
        ...


@runtime_checkable
class StartsFromAdapters(Protocol):
    """Ability: to tell which network settings an adapter was made with."""

    def network_of(self, path: Path) -> dict[str, float]:
        """Return rank and alpha under the config's names (``linear``, ``linear_alpha``, ...)."""
        ...


@runtime_checkable
class ResumesExactly(Protocol):
    """Ability: a training that was stopped anywhere and continued has the weights of one that ran
    through, bit for bit."""

    def resumes_exactly_on(self, device: str) -> bool:
        """Whether that is so on a device of this kind: ``cpu``, ``cuda``, ``mps``."""
        ...


@runtime_checkable
class SavesNow(Protocol):
    """Ability: a running training writes a checkpoint when it is asked to, and goes on."""

    def save_line(self) -> str:
        """Return the line for its stdin that asks for one after the present step."""
        ...


@runtime_checkable
class SamplesNow(Protocol):
    """Ability: a running training draws its previews when it is asked to, and goes on."""

    def sample_line(self) -> str:
        """Return the line for its stdin that asks for them after the present step."""
        ...


@runtime_checkable
class WarmGenerator(Engine, ReadsAdapters, Protocol):
    """Ability: a long-lived process that generates, request after request."""

    def check_base_model(self, name: str) -> None:
        """Check that a base model is there, or may be downloaded. Raises `InvalidBaseModel`."""
        ...

    def check_generation(self, request: GenerationRequest) -> None:
        """Check that the base model can draw what is asked for, as far as that is known now.

        Starts nothing and loads nothing. Raises `InvalidConfig` and `InvalidBaseModel`.
        """
        ...

    def serve_command(self, working_directory: Path) -> Command:
        """Return the command that starts the process; it reads requests as lines on its stdin."""
        ...

    def generation_line(
        self,
        request_id: str,
        request: GenerationRequest,
        adapters: tuple[Path, ...],
        folder: Path,
        done: tuple[int, ...] = (),
    ) -> str:
        """Return the line that asks for one generation into ``folder``, without those done."""
        ...

    def images(self, folder: Path) -> list[Path]:
        """List the images that a generation has drawn into its folder, whatever the format."""
        ...
