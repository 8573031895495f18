"""Training: check, submit, run, resume, and keep what came out."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NamedTuple

from loradash.domain.dataset import DatasetReport
from loradash.domain.events import (
    Done,
    Event,
    Failed,
    SampleWritten,
    StepDone,
    Terminal,
    parse_event,
)
from loradash.domain.ids import new_process_id
from loradash.domain.training_config import TrainingConfig
from loradash.domain.training_text import training_text
from loradash.engines.engine import Artifact, Engine
from loradash.errors import (
    AlreadyRunning,
    InvalidAdapter,
    LoradashError,
    NotFound,
    ResultsNotStored,
)
from loradash.runtime.supervisor import Limits, StopRequest, supervise
from loradash.runtime.workspace import Workspace
from loradash.services.datasets import Progress, check_for_training
from loradash.storage import keys
from loradash.storage.store import ObjectStore

EVENTS_FILE = "events.jsonl"
LOG_FILE = "log.txt"
CONFIG_FILE = "config.yaml"


class CheckedTraining(NamedTuple):
    """A training that can start: config, data, and what the user should know."""

    config: TrainingConfig
    reports: tuple[DatasetReport, ...]
    warnings: tuple[str, ...]


class TrainingHistory(NamedTuple):
    """What the event file of a training tells, with the last attempt's word for each step."""

    steps: list[StepDone]
    samples: list[SampleWritten]
    ending: Terminal | None


class TrainingService:
    """Trainings in the workspace, run by one engine, their results in the object store."""

    def __init__(
        self, engine: Engine, workspace: Workspace, store: ObjectStore, limits: Limits
    ) -> None:
        self._engine = engine
        self._workspace = workspace
        self._store = store
        self._limits = limits

    def check(self, config: TrainingConfig, on_image: Progress | None = None) -> CheckedTraining:
        """Check config, base model and datasets without writing anything.

        Raises `InvalidConfig`, `InvalidBaseModel` or `InvalidDataset`.
        """
        warnings = self._engine.check_training(config)
        reports = check_for_training(config, on_image)
        return CheckedTraining(config, reports, warnings)

    def submit(self, checked: CheckedTraining, config_text: str = "") -> str:
        """Create the training's folder with its config and job file; return its process id.

        The folder appears complete, by a rename, so an id that exists can be run.
        """
        self._workspace.ensure()
        process_id = new_process_id("train")
        folder = self._workspace.training(process_id)
        partial = folder.with_name(f".{process_id}.partial")
        partial.mkdir(parents=True)
        try:
            text = config_text or training_text(checked.config)
            (partial / CONFIG_FILE).write_text(text, encoding="utf-8")
            self._engine.write_training_job(process_id, checked.config, checked.reports, partial)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return process_id

    def run(
        self, process_id: str, on_event: Callable[[Event], None], stop: StopRequest
    ) -> Terminal:
        """Start the training or continue it, and return how it ended.

        Done means: the adapter was verified and is in the object store. Raises `NotFound` for an
        unknown id and `AlreadyRunning` if another program works on it.
        """
        folder = self.folder(process_id)
        with _owned(folder), _appended(folder / EVENTS_FILE) as record:

            def note(event: Event) -> None:
                record.write(event.model_dump_json().encode() + b"\n")

            def keep(event: Event) -> None:
                note(event)
                on_event(event)

            ending = supervise(
                self._engine.training_command(folder),
                self._engine.parse,
                folder / LOG_FILE,
                keep,
                self._limits,
                stop,
                has_checkpoint=lambda: self._engine.has_checkpoint(folder),
            )
            if isinstance(ending, Done):
                ending = self._keep_results(process_id, folder, ending)
            note(ending)  # only now: if we die before, the training counts as lost, not as done
        return ending

    def folder(self, process_id: str) -> Path:
        """Folder of a training. Raises `NotFound`."""
        folder = self._workspace.training(process_id)
        if not folder.is_dir():
            raise NotFound(
                f"there is no training {process_id} in {self._workspace.root}",
                remedy="`loradash train --list` shows the trainings that are there.",
            )
        return folder

    def adapter(self, process_id: str) -> Path:
        """The finished adapter of a training. Raises `NotFound` if it isn't finished."""
        found = sorted((self.folder(process_id) / "lora").glob("*.safetensors"))
        if not found:
            raise NotFound(
                f"training {process_id} has no finished adapter",
                remedy=f"Continue it with `loradash train --resume {process_id}`.",
            )
        return found[0]

    def is_running(self, process_id: str) -> bool:
        """Whether some program works on the training at this moment. Raises `NotFound`."""
        try:
            with _owned(self.folder(process_id)):
                return False
        except AlreadyRunning:
            return True

    def history(self, process_id: str) -> TrainingHistory:
        """Read the events of all attempts; later attempts replace what earlier ones said."""
        steps: dict[int, StepDone] = {}
        samples: dict[tuple[int, int], SampleWritten] = {}
        ending: Terminal | None = None
        path = self.folder(process_id) / EVENTS_FILE
        for line in path.read_bytes().split(b"\n") if path.is_file() else ():
            try:
                event = parse_event(line)
            except ValueError:
                continue  # the last line of a killed program
            if event.type == "step":
                steps[event.step] = event
            elif event.type == "sample":
                samples[event.step, event.index] = event
            elif event.type in ("done", "failed", "stopped"):
                ending = event
            else:
                ending = None if event.type == "phase" and event.phase == "starting" else ending
        ordered = [steps[step] for step in sorted(steps)]
        return TrainingHistory(ordered, [samples[key] for key in sorted(samples)], ending)

    def ids(self) -> list[str]:
        """Ids of all trainings in the workspace, the newest first."""
        return self._workspace.trainings()

    def _keep_results(self, process_id: str, folder: Path, done: Done) -> Terminal:
        """Verify the adapter and store all results; a failure here is a failure of the training."""
        try:
            path = Path(done.path or "")
            if not path.is_file() or _sha256(path) != done.sha256:
                raise InvalidAdapter("the adapter file isn't the one that the engine wrote")
            self._engine.adapter_metadata(path)
            artifacts = self._engine.artifacts(folder)
            if not any(item.kind == "lora" and item.path == path for item in artifacts):
                raise ResultsNotStored(f"the adapter {path} isn't among the training's results")
            self._store_results(process_id, artifacts)
        except (LoradashError, OSError) as error:
            message = error.message if isinstance(error, LoradashError) else str(error)
            return Failed(
                time_s=done.time_s,
                code=error.code if isinstance(error, LoradashError) else ResultsNotStored.code,
                message=f"the training ended but its results aren't safe: {message}",
                remedy=f"Correct it and run `loradash train --resume {process_id}`.",
                resumable=True,
            )
        return done

    def _store_results(self, process_id: str, artifacts: list[Artifact]) -> None:
        kinds: dict[str, keys.ResultKind] = {
            "lora": "lora", "sample": "samples", "log": "logs", "metrics": "logs"
        }  # fmt: skip
        entries = []
        for kind, path in artifacts:
            if kind == "config":
                key = keys.result_config(process_id)
            else:
                key = keys.result(process_id, kinds[kind], path.name)
            info = self._store.put_file(key, path)
            entries.append(
                {"key": key, "kind": kind, "size_bytes": info.size_bytes, "sha256": _sha256(path)}
            )
        manifest = {
            "process_id": process_id,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "files": entries,
        }
        self._store.put(keys.manifest(process_id), json.dumps(manifest, indent=1).encode())


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold the training for as long as the block runs; the system lets go if we die."""
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyRunning(
                f"training {folder.name} is being run by another program",
                remedy="Wait for it, or stop that program.",
            ) from error
        yield


@contextlib.contextmanager
def _appended(path: Path) -> Iterator[IO[bytes]]:
    """Open an event file for appending, unbuffered; a torn last line is closed first."""
    with path.open("a+b", buffering=0) as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        yield file


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
