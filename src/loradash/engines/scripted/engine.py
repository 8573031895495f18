"""The parent's side of the scripted engine: checks, job file, command lines, files."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import loradash
from loradash.datasets.folder import combined_hash
from loradash.domain.dataset import DatasetReport
from loradash.domain.engine_use import EngineUse
from loradash.domain.events import Event, read_event
from loradash.domain.generation import GenerationRequest
from loradash.domain.training_config import DatasetSection, TrainingConfig
from loradash.engines.engine import Command
from loradash.engines.job_files import write_whole
from loradash.engines.scripted.adapter_file import (
    NotAnAdapter,
    check_values,
    rank_and_alpha,
    read_header,
)
from loradash.engines.scripted.orders import Orders, parse_orders
from loradash.engines.scripted.plan import DrawingPlan, TrainingPlan
from loradash.engines.scripted.planning import pictures_of, training_plan
from loradash.engines.stop_signal import SAMPLE_LINE, SAVE_LINE
from loradash.engines.training_files import JOB_FILE
from loradash.engines.training_folder import TrainingFolder
from loradash.errors import InvalidAdapter, InvalidBaseModel, InvalidCheckpoint

SCRIPTED_ENGINE = "scripted"
_WARNING = "the scripted engine learns nothing: the adapter is made up, and changes no image"


class ScriptedEngine(TrainingFolder):
    """Does everything that an engine can do, except to learn and to draw."""

    name = SCRIPTED_ENGINE
    version = loradash.__version__

    def __init__(self, python: str = "") -> None:
        self._python = python or sys.executable

    def require_installed(self) -> None:
        """See `Engine.require_installed`; it needs nothing."""

    def parse(self, line: str) -> Event | None:
        """See `Engine.parse`."""
        return read_event(line)

    def check_training(self, config: TrainingConfig) -> tuple[str, ...]:
        """See `Trains.check_training`; every setting and base model will do."""
        _orders(config.process.model.name_or_path, "model.name_or_path")
        return (_WARNING,)

    def native_size(self, config: TrainingConfig) -> int | None:
        """See `Trains.native_size`; any size will do."""
        return None

    def check_texts(
        self, config: TrainingConfig, data: Sequence[tuple[DatasetSection, DatasetReport]]
    ) -> tuple[str, ...]:
        """See `Trains.check_texts`; texts of any length will do."""
        return ()

    def write_training_job(
        self,
        process_id: str,
        config: TrainingConfig,
        reports: tuple[DatasetReport, ...],
        folder: Path,
        created_at: datetime,
    ) -> None:
        """See `Trains.write_training_job`."""
        dataset = combined_hash(reports)
        plan = training_plan(self._use(), process_id, config, dataset, folder, created_at)
        write_whole(folder / JOB_FILE, plan.to_json())

    def training_command(self, folder: Path) -> Command:
        """See `Trains.training_command`. Raises `InvalidCheckpoint`."""
        plan = _read_plan(folder / JOB_FILE, "Start a new training.")
        if plan.engine["name"] != self.name:
            raise InvalidCheckpoint(
                f"{folder}: its job is one of the engine {plan.engine['name']}",
                remedy="Start a new training.",
            )
        return self._command(("train", str(folder / JOB_FILE)), folder)

    def adapter_metadata(self, path: Path) -> dict[str, str]:
        """See `ReadsAdapters.adapter_metadata`; any LoRA in a safetensors file will do."""
        try:
            return read_header(path)
        except NotAnAdapter as error:
            raise _no_adapter(path, error) from error

    def verify_adapter(self, path: Path) -> dict[str, str]:
        """See `ReadsAdapters.verify_adapter`."""
        try:
            return check_values(path)
        except NotAnAdapter as error:
            raise _no_adapter(path, error) from error

    def extension_warnings(self, before: TrainingConfig, config: TrainingConfig) -> tuple[str, ...]:
        """See `ExtendsTrainings.extension_warnings`: no step depends on the number of steps."""
        return (_WARNING,)

    def write_extended_job(
        self,
        process_id: str,
        config: TrainingConfig,
        job: Path,
        data: tuple[str, ...],
        folder: Path,
        created_at: datetime,
    ) -> None:
        """See `ExtendsTrainings.write_extended_job`."""
        before = _read_plan(job, "Start from its adapter instead.")
        dataset = before.metadata.get("loradash.dataset_sha256", "")
        plan = training_plan(self._use(), process_id, config, dataset, folder, created_at)
        plan = replace(
            plan,
            before_sha256=hashlib.sha256(job.read_bytes()).hexdigest(),
            start_sha256=before.start_sha256,
        )
        write_whole(folder / JOB_FILE, plan.to_json())

    def network_of(self, path: Path) -> dict[str, float]:
        """See `StartsFromAdapters.network_of`."""
        try:
            rank, alpha = rank_and_alpha(path)
        except NotAnAdapter:
            return {}
        return {"linear": rank, "linear_alpha": alpha}

    def resumes_exactly_on(self, device: str) -> bool:
        """See `ResumesExactly.resumes_exactly_on`."""
        return True

    def save_line(self) -> str:
        """See `SavesNow.save_line`."""
        return SAVE_LINE

    def sample_line(self) -> str:
        """See `SamplesNow.sample_line`."""
        return SAMPLE_LINE

    def check_base_model(self, name: str) -> None:
        """See `WarmGenerator.check_base_model`; any will do."""
        _orders(name, "base_model")

    def check_generation(self, request: GenerationRequest) -> None:
        """See `WarmGenerator.check_generation`; anything can be drawn."""

    def serve_command(self, working_directory: Path) -> Command:
        """See `WarmGenerator.serve_command`."""
        return self._command(("serve",), working_directory)

    def generation_line(
        self,
        request_id: str,
        request: GenerationRequest,
        adapters: tuple[Path, ...],
        folder: Path,
        done: tuple[int, ...] = (),
    ) -> str:
        """See `WarmGenerator.generation_line`."""
        pictures = pictures_of(request)
        missing = tuple(one for one in pictures if one.index not in done)
        orders = _orders(request.base_model, "base_model")
        return DrawingPlan(request_id, str(folder), missing, len(pictures), orders).to_json()

    def _use(self) -> EngineUse:
        return EngineUse(name=self.name, version=self.version)

    def _command(self, arguments: tuple[str, ...], working_directory: Path) -> Command:
        return Command(
            argv=(self._python, "-m", "loradash.engines.scripted", *arguments),
            environment={"PYTHONUNBUFFERED": "1"},
            working_directory=working_directory,
        )


def _orders(base_model: str, key: str) -> Orders:
    try:
        return parse_orders(base_model)
    except ValueError as error:
        raise InvalidBaseModel(
            f"{key}: {error}",
            remedy="Write scripted:ORDER=VALUE,... as docs/engines.md lists them.",
        ) from error


def _no_adapter(path: Path, error: NotAnAdapter) -> InvalidAdapter:
    return InvalidAdapter(f"{path.name}: {error}", remedy="Give another file.")


def _read_plan(path: Path, remedy: str) -> TrainingPlan:
    try:
        return TrainingPlan.from_json(path.read_bytes())
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InvalidCheckpoint(
            f"{path}: the job can't be read, so there is nothing to continue", remedy=remedy
        ) from error
