"""The parent's side of the built-in engine: job file, command line, events, results. No torch."""

import hashlib
import math
import os
import sys
import threading
from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from cachetools import TTLCache
from pydantic import ValidationError

import loradash
from loradash.datasets.changes import marks
from loradash.datasets.folder import combined_hash
from loradash.domain.dataset import DatasetReport
from loradash.domain.engine_use import BUILT_IN_ENGINE, EngineUse
from loradash.domain.events import Event, read_event
from loradash.domain.generation import GenerationRequest
from loradash.domain.training_config import DatasetSection, TrainingConfig
from loradash.engines.diffusers import support
from loradash.engines.diffusers.adapters.dimensions import network_settings
from loradash.engines.diffusers.adapters.layers import read_adapter_layout
from loradash.engines.diffusers.adapters.pretrained import check_pretrained
from loradash.engines.diffusers.base_models.families import (
    BaseModelSource,
    find_base_model,
    fingerprint,
)
from loradash.engines.diffusers.base_models.inspection import Inspection, inspect
from loradash.engines.diffusers.child.schedules import factor
from loradash.engines.diffusers.drawing_limits import drawing_limits
from loradash.engines.diffusers.job import (
    DatasetPlan,
    Generate,
    JobBefore,
    ResolvedAdapter,
    TrainingJob,
)
from loradash.engines.diffusers.text_checks import cut_texts
from loradash.engines.diffusers.token_count import cutting
from loradash.engines.engine import Command
from loradash.engines.job_files import write_whole
from loradash.engines.stop_signal import SAMPLE_LINE, SAVE_LINE
from loradash.engines.training_files import JOB_FILE
from loradash.engines.training_folder import TrainingFolder
from loradash.error_list import ErrorList
from loradash.errors import EngineUnavailable, InvalidAdapter, InvalidCheckpoint, InvalidConfig
from loradash.paths import local_path

_PASSED_S = 300.0
"""So long a model on the hub counts as looked through."""


class DiffusersEngine(TrainingFolder):
    """Trains LoRAs and generates images with diffusers, peft and transformers."""

    name = BUILT_IN_ENGINE
    version = loradash.__version__

    def __init__(self, *, device: str, threads: int, offline: bool, python: str = "") -> None:
        self._device = device
        self._threads = threads or os.cpu_count() or 1
        self._offline = offline
        self._python = python or sys.executable
        self._lock = threading.Lock()
        self._passed: TTLCache[tuple[str, str | None], Inspection] = TTLCache(
            maxsize=100, ttl=_PASSED_S
        )

    def check_training(self, config: TrainingConfig) -> tuple[str, ...]:
        """Check what can be checked without torch; see `Engine.check_training`."""
        errors = ErrorList("the training config and what it names")
        found = Inspection(None)
        warnings: tuple[str, ...] = ()
        with errors.noted():
            found = self._inspected(_source_of(config))
        with errors.noted():
            warnings = support.check(config, found.layout)
        if lora := config.process.network.pretrained_lora_path:
            with errors.noted():
                path = local_path(lora, InvalidAdapter, "network.pretrained_lora_path")
                check_pretrained(path, config.process)
        errors.raise_all()
        warnings += found.warnings
        return warnings + support.warnings_about_machine(config, self._device)

    def require_installed(self) -> None:
        """See `Engine.require_installed`."""
        if self._python == sys.executable and find_spec("torch") is None:
            raise EngineUnavailable(
                "torch isn't installed here, so nothing can be trained or generated",
                remedy="pip install 'loradash[diffusers]', or deploy an image that has it.",
            )

    def native_size(self, config: TrainingConfig) -> int | None:
        """See `Trains.native_size`."""
        return self._inspected(_source_of(config)).native_size

    def check_base_model(self, name: str) -> None:
        """See `WarmGenerator.check_base_model`."""
        self._inspected(find_base_model(name))

    def check_texts(
        self,
        config: TrainingConfig,
        data: Sequence[tuple[DatasetSection, DatasetReport]],
    ) -> tuple[str, ...]:
        """See `Trains.check_texts`."""
        cut = cutting(_source_of(config))
        return () if cut is None else tuple(cut_texts(config, data, cut))

    def check_generation(self, request: GenerationRequest) -> None:
        """See `WarmGenerator.check_generation`."""
        layout = self._inspected(find_base_model(request.base_model)).layout
        limits = drawing_limits(layout.configs if layout else {})
        places = [("steps", request.steps)]
        places += [
            (f"prompt {number}: steps", own.steps)
            for number, own in enumerate(request.prompt_settings, start=1)
            if own.steps is not None
        ]
        problems = [problem for place, steps in places if (problem := limits.problem(steps, place))]
        if problems:
            raise InvalidConfig(
                "the base model can't draw this", problems=problems, remedy="Give fewer steps."
            )

    def write_training_job(
        self,
        process_id: str,
        config: TrainingConfig,
        reports: tuple[DatasetReport, ...],
        folder: Path,
        created_at: datetime,
    ) -> None:
        """See `Trains.write_training_job`; ``job.json`` appears at once and whole."""
        base_model = _source_of(config)
        found = self._inspected(base_model)
        job = TrainingJob(
            process_id=process_id,
            engine=self._use(),
            created_at=created_at,
            config=config,
            base_model=base_model.model_copy(
                update={
                    "fingerprint": fingerprint(base_model),
                    "revision": found.revision if base_model.kind == "hub" else None,
                }
            ),
            datasets=tuple(
                DatasetPlan(
                    folder=report.folder,
                    sha256=report.sha256,
                    skip=tuple(problem.relative_path for problem in report.problems),
                    images=marks(report),
                )
                for report in reports
            ),
            dataset_sha256=combined_hash(reports),
            device=self._device,
            threads=self._threads,
            offline=self._offline,
        )
        _write_job(job, folder)

    def network_of(self, path: Path) -> dict[str, float]:
        """See `StartsFromAdapters.network_of`."""
        return network_settings(read_adapter_layout(path))

    def extension_warnings(self, before: TrainingConfig, config: TrainingConfig) -> tuple[str, ...]:
        """See `ExtendsTrainings.extension_warnings`: a schedule that depends on the last step."""
        old, new = before.process.train, config.process.train
        done = old.updates
        rates = [(factor(step, old), factor(step, new)) for step in range(done)]
        if all(math.isclose(one, other) for one, other in rates):
            return ()
        rate = new.unet_lr or new.lr
        text = (
            f"lr_scheduler {new.lr_scheduler}: the first {done} steps followed the schedule of "
            f"{done} steps, down to a learning rate of {rate * rates[-1][0]:.2e}; the others "
            f"follow that of {new.updates} steps, from {rate * factor(done, new):.2e} on. So the "
            f"result isn't that of one training of {new.updates} steps; with a constant rate it is"
        )
        return (text,)

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
        try:
            text = job.read_bytes()
            old = TrainingJob.model_validate_json(text)
        except (OSError, ValidationError) as error:
            raise InvalidCheckpoint(
                "the job of the training that this one extends can't be read",
                remedy="Start from its adapter instead.",
            ) from error
        before = JobBefore(
            process_id=old.process_id,
            sha256=hashlib.sha256(text).hexdigest(),
            steps=old.config.process.train.updates,
        )
        datasets = tuple(
            plan.model_copy(update={"folder": place})
            for plan, place in zip(old.datasets, data, strict=True)
        )
        update = {
            "engine": self._use(),
            "process_id": process_id, "created_at": created_at, "config": config,
            "datasets": datasets, "before": before,
        }  # fmt: skip
        _write_job(old.model_copy(update=update), folder)

    def training_command(self, folder: Path) -> Command:
        """Start or continue the training in ``folder``. Raises `InvalidCheckpoint`."""
        try:
            job = TrainingJob.model_validate_json((folder / JOB_FILE).read_bytes())
        except (OSError, ValidationError) as error:
            raise InvalidCheckpoint(
                f"{folder}: its {JOB_FILE} can't be read, so there is nothing to continue",
                remedy="Start a new training.",
            ) from error
        if job.engine.name != self.name:
            raise InvalidCheckpoint(
                f"{folder}: its job is one of the engine {job.engine.name}",
                remedy="Start a new training.",
            )
        return self._command(["train", str(folder / JOB_FILE)], job.threads, folder)

    def save_line(self) -> str:
        """See `SavesNow.save_line`."""
        return SAVE_LINE

    def sample_line(self) -> str:
        """See `SamplesNow.sample_line`."""
        return SAMPLE_LINE

    def serve_command(self, working_directory: Path) -> Command:
        """Start the long-lived generator."""
        return self._command(
            ["serve", "--device", self._device, *(["--offline"] if self._offline else [])],
            self._threads,
            working_directory,
        )

    def generation_line(
        self,
        request_id: str,
        request: GenerationRequest,
        adapters: tuple[Path, ...],
        folder: Path,
        done: tuple[int, ...] = (),
    ) -> str:
        """Return the generator's input line for a request."""
        resolved = tuple(
            ResolvedAdapter(path=path, weight=use.weight)
            for path, use in zip(adapters, request.adapters, strict=True)
        )
        return Generate(
            request_id=request_id,
            request=request,
            base_model=find_base_model(request.base_model),
            adapters=resolved,
            folder=folder,
            done=done,
        ).model_dump_json()

    def parse(self, line: str) -> Event | None:
        """See `Engine.parse`."""
        return read_event(line)

    def adapter_metadata(self, path: Path) -> dict[str, str]:
        """See `ReadsAdapters.adapter_metadata`; only the header is read."""
        return read_adapter_header(path)

    def verify_adapter(self, path: Path) -> dict[str, str]:
        """See `ReadsAdapters.verify_adapter`; no torch, and a few megabytes at a time."""
        return dict(read_adapter_layout(path, values=True).file.metadata)

    def _use(self) -> EngineUse:
        return EngineUse(name=self.name, version=self.version)

    def _inspected(self, source: BaseModelSource) -> Inspection:
        """Look through a base model; one on the hub that has just passed isn't asked for again."""
        if source.kind == "folder":
            return inspect(source)
        key = (source.location, source.extras)
        with self._lock:
            found = self._passed.get(key)
        if found is None:
            found = inspect(source, offline=self._offline)
            if source.kind == "hub" and not found.warnings:
                with self._lock:
                    self._passed[key] = found
        return found

    def _command(self, arguments: list[str], threads: int, working_directory: Path) -> Command:
        environment = {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            # Waiting threads that spin make steps several times slower on a shared machine.
            "OMP_WAIT_POLICY": "passive",
            "GOMP_SPINCOUNT": "0",
            # Without it MKL's results differ in the last bits from run to run with two threads.
            "MKL_CBWR": "AUTO,STRICT",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        if self._offline:
            environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        self.require_installed()
        return Command(
            argv=(self._python, "-m", "loradash.engines.diffusers", *arguments),
            environment=environment,
            working_directory=working_directory,
        )


def _write_job(job: TrainingJob, folder: Path) -> None:
    write_whole(folder / JOB_FILE, job.model_dump_json(indent=2))


def _source_of(config: TrainingConfig) -> BaseModelSource:
    model = config.process.model
    return find_base_model(
        model.name_or_path, extras=model.extras_name_or_path, is_v_pred=model.is_v_pred
    )


def read_adapter_header(path: Path) -> dict[str, str]:
    """Return an adapter file's metadata, after checking that it is whole and can be used.

    Only the header is read. Raises `InvalidAdapter`.
    """
    return dict(read_adapter_layout(path).file.metadata)
