"""Training: check, submit, do the work of an attempt, and keep what came out."""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, NamedTuple

from loradash.data import EMBEDDED_BASE_MODELS
from loradash.datasets.folder import require_usable, scan
from loradash.domain.addresses import NO_ADDRESS, Address
from loradash.domain.dataset import DatasetReport
from loradash.domain.dataset_references import STORED_PREFIX
from loradash.domain.engine_use import EngineUse
from loradash.domain.events import (
    Done,
    Event,
    Failed,
    SampleWritten,
    StepDone,
    Stopped,
    Terminal,
    read_event,
)
from loradash.domain.ids import new_process_id, process_id_of
from loradash.domain.kinds import TRAINING
from loradash.domain.native_sizes import FORMER_SIZE, far_from_native, sizes_left_open
from loradash.domain.process import Origin, ProcessRecord, Progress, merged_warnings
from loradash.domain.random_seeds import MAX_DRAWN_SEED, with_seeds_drawn
from loradash.domain.sizes import counted
from loradash.domain.training_config import DatasetSection, TrainingConfig
from loradash.domain.training_text import parse_training_text, training_text
from loradash.engines.catalogue import Engines
from loradash.engines.engine import Artifact, Trains
from loradash.error_list import ErrorList
from loradash.errors import (
    Interrupted,
    InvalidAdapter,
    InvalidBaseModel,
    InvalidDataset,
    LoradashError,
    NotFound,
    ResultsNotStored,
)
from loradash.paths import full_path
from loradash.registry.registry import Change, ProcessRegistry
from loradash.runtime.attempt import Attempt, failure
from loradash.runtime.folder_lock import folder_lock
from loradash.runtime.orphans import ChildRecords
from loradash.runtime.patience import AWAY
from loradash.runtime.results import (
    NewArtifact,
    fetch,
    restore_checkpoints,
    sha256_of,
)
from loradash.runtime.submitted_config import config_key
from loradash.runtime.supervisor import Limits, supervise
from loradash.runtime.workspace import CONFIG_FILE, EVENTS_FILE, LOG_FILE, Workspace
from loradash.services.datasets.folders import Progress as ImageProgress
from loradash.services.datasets.folders import check_for_training, check_sections
from loradash.services.datasets.found import FoundDataset, find_dataset
from loradash.services.datasets.store import DatasetStore
from loradash.services.path_policy import ANYWHERE, PathPolicy
from loradash.services.processes.submission import submit
from loradash.services.training.extension import Extensions
from loradash.services.training.starting_adapter import ADAPTER_KEY, StartingAdapters
from loradash.storage.disk import as_disk_full
from loradash.storage.store import ObjectStore

_LOCK_PATIENCE_S = 15.0  # an engine that has lost its parent needs a moment for its checkpoint


class CheckedTraining(NamedTuple):
    """A training that can start: config, data, and what the user should know."""

    config: TrainingConfig
    engine: EngineUse
    reports: tuple[DatasetReport, ...]
    warnings: tuple[str, ...]
    origin: Origin | None = None
    datasets: tuple[tuple[FoundDataset, DatasetSection], ...] = ()

    def images(self) -> int:
        """How many images there are, as far as the datasets were read or counted."""
        return sum(found.images or 0 for found in self.found())

    def found(self) -> tuple[FoundDataset, ...]:
        """Each dataset with its number of images, where it was read or is stored."""
        counts = {
            report.folder.removeprefix(STORED_PREFIX): len(report.images) for report in self.reports
        }
        return tuple(
            one._replace(images=counts.get(one.name, one.images)) for one, _ in self.datasets
        )


class TrainingHistory(NamedTuple):
    """What the event file of a training tells, with the last attempt's word for each step."""

    steps: list[StepDone]
    samples: list[SampleWritten]
    ending: Terminal | None


class TrainingService:
    """Trainings in the workspace, each run by its engine, their results in the object store."""

    def __init__(
        self,
        engines: Engines,
        workspace: Workspace,
        store: ObjectStore,
        registry: ProcessRegistry,
        datasets: DatasetStore,
        limits: Limits,
        children: ChildRecords | None = None,
        address: Address = NO_ADDRESS,
    ) -> None:
        self._engines = engines
        self._workspace = workspace
        self._store = store
        self._registry = registry
        self._datasets = datasets
        self._limits = limits
        self._children = children
        self.path_policy: PathPolicy = ANYWHERE
        """Where links in the datasets of trainings that run here may lead."""
        self._extensions = Extensions(engines, registry, store)
        self._starts = StartingAdapters(engines, registry, store, workspace, address)

    def check(
        self,
        config: TrainingConfig,
        on_image: ImageProgress | None = None,
        path_policy: PathPolicy = ANYWHERE,
        *,
        thoroughly: bool = False,
    ) -> CheckedTraining:
        """Check config, base model and datasets, as far as can be done without loading a model.

        Datasets in folders are read completely, so that a corrupt file shows now. Those in the
        object store are fetched and read too if that is to be done ``thoroughly``, and the engine
        is looked for; else both are when the training starts. All problems are told at once. The
        config that is returned names local paths in full. Raises `InvalidConfig`,
        `InvalidBaseModel`, `InvalidAdapter`, `InvalidDataset`, `NotFound`, `EngineUnavailable`.
        """
        errors = ErrorList("the training can't start")
        engine = self._engines.trainer(self._engines.choose(config.engine).name)
        if thoroughly:
            engine.require_installed()
        checked = self._quickly(config, path_policy, errors)
        read: list[tuple[DatasetSection, DatasetReport]] = []
        for found, section in checked.datasets:
            with errors.noted():
                if found.kind == "folder":
                    here = section.model_copy(update={"folder_path": found.name})
                    read += [
                        (section, one) for one in check_sections([here], on_image, path_policy)
                    ]
                elif thoroughly:
                    read.append((section, self._read_stored(found.name, section, on_image)))
        errors.raise_all()
        return checked._replace(
            reports=tuple(report for _, report in read),
            warnings=checked.warnings + engine.check_texts(checked.config, read),
        )

    def quick_check(
        self, config: TrainingConfig, path_policy: PathPolicy, *, origin: Origin | None = None
    ) -> CheckedTraining:
        """Check all that takes no time: config, names, path_policy, base model. See `check`.

        With an ``origin`` it is known where the training begins, whatever adapter its config names.
        """
        errors = ErrorList("the training can't start")
        checked = self._quickly(config, path_policy, errors, origin)
        errors.raise_all()
        return checked

    def _quickly(
        self,
        config: TrainingConfig,
        path_policy: PathPolicy,
        errors: ErrorList,
        origin: Origin | None = None,
    ) -> CheckedTraining:
        """Note what is wrong; what is returned holds good only if nothing is."""
        use = self._engines.choose(config.engine)
        engine = self._engines.trainer(use.name)
        given = training_paths(config)
        in_full: dict[str, Any] = {}
        for name in ("model.name_or_path", "model.extras_name_or_path"):
            if text := given[name]:
                with errors.noted():
                    path_policy.check(text, InvalidBaseModel, name)
                if text not in EMBEDDED_BASE_MODELS:
                    in_full[name] = full_path(text)
        is_allowed = not errors
        datasets: list[tuple[FoundDataset, DatasetSection]] = []
        for number, section in enumerate(config.process.datasets):
            key = f"datasets.{number}.folder_path"
            with errors.noted():
                found = find_dataset(self._datasets, section.folder_path, key, path_policy)
                datasets.append((found, section))
                in_full[key] = found.folder_path
        warnings = tuple(found.warning for found, _ in datasets if found.warning)
        with_adapter = config
        if reference := given[ADAPTER_KEY]:
            file: dict[str, Any] = {ADAPTER_KEY: None}
            if origin is None:
                with errors.noted():
                    start = self._starts.find(use.name, reference, path_policy)
                    origin = start.origin
                    settings = self._starts.settings(use.name, config.process.network, start.path)
                    file = {**settings, ADAPTER_KEY: str(start.path)}
                    in_full |= {**settings, ADAPTER_KEY: start.reference}
            with_adapter = parse_training_text(training_text(config), file)
        if is_allowed:  # nothing is said of files that may not be named
            with errors.noted():
                warnings += engine.check_training(with_adapter)
        if errors:
            return CheckedTraining(config, use, (), warnings, datasets=tuple(datasets))
        in_full = {key: full for key, full in in_full.items() if full != given.get(key)}
        if in_full:
            config = parse_training_text(training_text(config), in_full)
        config, about_sizes = _with_sizes(engine, config)
        return CheckedTraining(config, use, (), warnings + about_sizes, origin, tuple(datasets))

    def _read_stored(
        self, name: str, section: DatasetSection, on_image: ImageProgress | None
    ) -> DatasetReport:
        """Read a dataset of the object store by the rules of a folder; nothing of it is kept."""
        with TemporaryDirectory(prefix="loradash-check-") as folder:
            copy = self._datasets.materialize(name, Path(folder) / "dataset")
            report = scan(copy, section.caption_suffix, on_image=on_image)
        report = report.model_copy(update={"folder": f"dataset:{name}"})
        require_usable(report, on_bad_image=section.on_bad_image)
        return report

    def check_extension(
        self, reference: str, steps: int, name: str = "", path_policy: PathPolicy = ANYWHERE
    ) -> CheckedTraining:
        """Check that a completed training can go on, in another one, to ``steps`` steps in all.

        It is named by its id or by its adapter's name.

        Raises what `Extensions.plan` and `quick_check` raise.
        """
        extension = self._extensions.plan(reference, steps, name)
        config = extension.config
        if left_open := sizes_left_open(config, FORMER_SIZE):  # a training of an earlier release
            config = parse_training_text(training_text(config), left_open)
        checked = self.quick_check(config, path_policy, origin=extension.origin)
        return checked._replace(warnings=(*extension.warnings, *checked.warnings))

    def submit(
        self,
        checked: CheckedTraining,
        config_text: str = "",
        *,
        request_id: str = "",
        priority: int = 0,
        taking: Change | None = None,
        key: str = "",
    ) -> ProcessRecord:
        """Store the config, then create the record: the training waits.

        With ``taking`` it is the caller's from the first moment on, and no server takes it. With
        an idempotency ``key``, the training that was submitted with it before is returned.
        """
        process_id = process_id_of(TRAINING.name, key) if key else new_process_id(TRAINING.name)
        config = with_seeds_drawn(checked.config, lambda: secrets.randbelow(MAX_DRAWN_SEED + 1))
        if config is not checked.config:
            checked, config_text = checked._replace(config=config), ""
        now = datetime.now(UTC)
        record = ProcessRecord(
            id=process_id, kind=TRAINING.name, name=checked.config.name, created_at=now,
            enqueued_at=now, updated_at=now, priority=priority, request_id=request_id,
            summary=_summary(checked.config),
            progress=_start(checked), origin=checked.origin, engine=checked.engine,
            warnings=merged_warnings(checked.warnings),
        )  # fmt: skip
        text = config_text or training_text(checked.config)
        return submit(self._registry, self._store, record, text, may_exist=bool(key), taking=taking)

    def work(self, attempt: Attempt) -> Terminal:
        """Prepare the folder, run the engine from the newest checkpoint, keep the results.

        Done means: the adapter was verified and is in the object store.
        """
        self._workspace.ensure()
        folder = self._workspace.training(attempt.id)
        folder.mkdir(exist_ok=True)
        try:
            with (
                folder_lock(
                    folder,
                    patience_s=_LOCK_PATIENCE_S,
                    while_waiting=lambda: _raise_if_stopped(attempt),
                ) as lock,
                _appended(folder / EVENTS_FILE) as record,
            ):
                refetched: set[Path] = set()
                engine = self._engines.trainer(attempt.record.engine.name)
                use = self._engines.use(engine.name)
                attempt.patiently(lambda: attempt.works_with(use))
                attempt.patiently(lambda: self._prepare(engine, attempt, folder, refetched))
                _raise_if_stopped(attempt)
                ending = self._run_engine(engine, attempt, folder, lock, record)
                if isinstance(ending, Failed) and ending.code == InvalidDataset.code:
                    # The next attempt shall find what is stored then, perhaps as it was before.
                    for path in refetched:
                        shutil.rmtree(path, ignore_errors=True)
                return ending
        except Interrupted:
            return Stopped(time_s=time.time())

    def folder(self, process_id: str) -> Path:
        """Folder of a training. Raises `NotFound`."""
        folder = self._workspace.training(process_id)
        if not folder.is_dir():
            raise NotFound(
                f"there is no training {process_id} in {self._workspace.root}",
                remedy="`loradash processes` shows what is there.",
            )
        return folder

    def adapter(self, process_id: str) -> Path:
        """The finished adapter of a training. Raises `NotFound` if it isn't finished."""
        engine = self._engines.trainer(self._registry.get(process_id).engine.name)
        artifacts = engine.artifacts(self.folder(process_id))
        found = [one.path for one in artifacts if one.kind == "lora"]
        if not found:
            raise NotFound(
                f"training {process_id} has no finished adapter",
                remedy=f"Continue it with `loradash train --resume {process_id}`.",
            )
        return found[0]

    def elapsed_s(self, process_id: str) -> float:
        """Seconds of work over all attempts: what lists show, too. Raises `NotFound`."""
        return self._registry.get(process_id).elapsed_s(datetime.now(UTC))

    def history(self, process_id: str) -> TrainingHistory:
        """Read the events of all attempts; later attempts replace what earlier ones said."""
        steps: dict[int, StepDone] = {}
        samples: dict[tuple[int, int], SampleWritten] = {}
        ending: Terminal | None = None
        path = self.folder(process_id) / EVENTS_FILE
        for line in path.read_bytes().split(b"\n") if path.is_file() else ():
            if (event := read_event(line)) is None:
                continue  # the last line of a killed program
            if event.type == "step":
                steps[event.step] = event
            elif event.type == "resumed":
                steps |= {one.step: one for one in event.steps if one.step not in steps}
            elif event.type == "sample":
                samples[event.step, event.index] = event
            elif event.type in ("done", "failed", "stopped"):
                ending = event
            else:
                ending = None if event.type == "phase" and event.phase == "starting" else ending
        ordered = [steps[step] for step in sorted(steps)]
        return TrainingHistory(ordered, [samples[key] for key in sorted(samples)], ending)

    def _run_engine(
        self, engine: Trains, attempt: Attempt, folder: Path, lock: int, record: IO[bytes]
    ) -> Terminal:
        def note(event: Event) -> None:
            # Only curves are drawn from it; a full disk shows where a checkpoint is written.
            with contextlib.suppress(OSError):
                record.write(event.model_dump_json().encode() + b"\n")

        def keep(event: Event) -> None:
            note(event)
            attempt.event(event)

        attempt.follow_log(folder / LOG_FILE)
        command = engine.training_command(folder)
        environment = {**command.environment, **attempt.environment}
        ending = supervise(
            command.model_copy(update={"environment": environment}),
            engine.parse,
            folder / LOG_FILE,
            keep,
            self._limits,
            attempt.stop,
            has_checkpoint=lambda: engine.has_checkpoint(folder),
            records=self._children,
            what=attempt.id,
            keep_open=(lock,),
        )
        if isinstance(ending, Done):
            ending = self._keep_results(engine, attempt, folder, ending)
        note(ending)  # only now: if we die before, the training counts as lost, not as done
        return ending

    def _prepare(  # noqa: C901 - each step of it only where the step isn't done yet
        self, engine: Trains, attempt: Attempt, folder: Path, refetched: set[Path]
    ) -> None:
        """Make the job file, or bring it and the checkpoints back from the object store.

        The job fixes all that the result depends on, so only the first attempt may write it.
        Datasets that are fetched anew for a job of an earlier attempt are added to ``refetched``.
        """
        job = engine.job_file(folder)
        stored = {entry.kind: entry for entry in self._registry.artifacts(attempt.id, ["job"])}
        origin = attempt.record.origin
        extended = origin if origin and origin.kind == "extends" else None
        if not (folder / CONFIG_FILE).is_file():
            self._store.get_file(config_key(attempt.record), folder / CONFIG_FILE)
        if not job.is_file() and "job" in stored:
            fetch(self._store, stored["job"], job)
        if not job.is_file() and not extended:
            _give_sizes(engine, attempt, folder / CONFIG_FILE)
        config, fetched = self._with_local_datasets(attempt, folder, job.is_file(), refetched)
        start = self._starts.bring(
            attempt.record, config.process.network.pretrained_lora_path or "", folder
        )
        if start:
            config = parse_training_text(training_text(config), {ADAPTER_KEY: start.name})
        if not job.is_file() and extended:
            data = tuple(
                self._seen_from(attempt, folder, section.folder_path)
                for section in config.process.datasets
            )
            self._extensions.write_job(attempt.record, config, data, folder)
        elif not job.is_file():

            def looked_at(done: int, total: int) -> None:
                _raise_if_stopped(attempt)
                attempt.show("preparing", f"images {done}/{total}")

            reports = tuple(
                self._movable(attempt, folder, report)
                for report in check_for_training(config, looked_at, self.path_policy)
            )
            engine.write_training_job(
                attempt.id, config, reports, folder, attempt.record.created_at
            )
        if "job" not in stored:
            attempt.keeper.now([NewArtifact("config", folder / CONFIG_FILE, CONFIG_FILE),
                                *([NewArtifact("config", start, start.name)] if start else []),
                                NewArtifact("job", job, job.name)])  # fmt: skip
        checkpoints = engine.checkpoint_folder(folder)
        if count := restore_checkpoints(self._registry, self._store, attempt.id, checkpoints):
            attempt.say(f"{counted(count, 'checkpoint')} restored from the object store")
        elif extended and not engine.has_checkpoint(folder):
            self._extensions.restore(extended, checkpoints)
            attempt.say(f"goes on from the last checkpoint of {extended.process_id}")
        if fetched:
            attempt.say(f"datasets: {', '.join(fetched)}")

    def _movable(self, attempt: Attempt, folder: Path, report: DatasetReport) -> DatasetReport:
        place = self._seen_from(attempt, folder, report.folder)
        return report.model_copy(update={"folder": place})

    def _seen_from(self, attempt: Attempt, folder: Path, data: str) -> str:
        """Name what was fetched into the workspace by its way from the job's folder.

        Another machine, whose workspace may be somewhere else, fetches it to the same place.
        """
        if not Path(data).is_relative_to(self._workspace.training_data(attempt.id)):
            return data
        return os.path.relpath(data, folder)

    def _with_local_datasets(
        self, attempt: Attempt, folder: Path, job_exists: bool, refetched: set[Path]
    ) -> tuple[TrainingConfig, list[str]]:
        """Fetch datasets of the object store; return the config with their folders' paths."""
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8-sig")
        config = parse_training_text(text)
        overrides: dict[str, Any] = {}
        names = []
        for number, section in enumerate(config.process.datasets):
            stored = self._datasets.resolve(section.folder_path)
            if stored is None:
                continue
            _raise_if_stopped(attempt)
            fetched = partial(_show_fetched, attempt, stored)
            target = self._workspace.training_data(attempt.id) / str(number)
            if not (job_exists and target.is_dir()):  # what the job was made for stays
                refetched.update([target] if job_exists else [])
                self._datasets.materialize(stored, target, fetched)
            overrides[f"datasets.{number}.folder_path"] = str(target)
            names.append(stored)
        if not overrides:
            return config, names
        return parse_training_text(training_text(config), overrides), names

    def _keep_results(self, engine: Trains, attempt: Attempt, folder: Path, done: Done) -> Terminal:
        """Verify the adapter and store all results; a failure here is a failure of the training."""
        try:
            path = Path(done.path or "")
            if not path.is_file() or sha256_of(path) != done.sha256:
                raise InvalidAdapter("the adapter file isn't the one that the engine wrote")
            engine.verify_adapter(path)
            attempt.show("uploading", "results")
            attempt.patiently(attempt.keeper.flush)
            artifacts = [*engine.artifacts(folder), *_own_files(folder)]
            if not any(item.kind == "lora" and item.path == path for item in artifacts):
                raise ResultsNotStored(f"the adapter {path} isn't among the training's results")
            attempt.patiently(lambda: self._store_missing(attempt, artifacts))
        except (LoradashError, OSError) as error:
            if isinstance(error, AWAY) and attempt.stop.count:
                return Stopped(time_s=time.time())  # the next attempt finds the adapter on its disk
            full = as_disk_full(error)
            message = error.message if isinstance(error, LoradashError) else str(error)
            failed = failure(
                full or (error if isinstance(error, LoradashError) else ResultsNotStored(message)),
                resumable=True,
            )
            return failed.model_copy(
                update={
                    "message": f"the training ended but its results aren't safe: {message}",
                    "remedy": f"{'Free space' if full else 'Correct it'} and resume {attempt.id}.",
                }
            )
        return done

    def _store_missing(self, attempt: Attempt, artifacts: list[Artifact]) -> None:
        """Store what the engine has produced, except samples that are there already."""
        known = {entry.name for entry in self._registry.artifacts(attempt.id, ["sample"])}
        attempt.keeper.now(
            [
                NewArtifact(item.kind, item.path, item.path.name)
                for item in artifacts
                if item.kind != "sample" or item.path.name not in known
            ]
        )


def _with_sizes(engine: Trains, config: TrainingConfig) -> tuple[TrainingConfig, tuple[str, ...]]:
    """Give sizes that are left open the base model's own; mention those far from it.

    Where the base model's size isn't known here, as on a control plane, the machine that trains
    does it.
    """
    native = engine.native_size(config)
    if native is None:
        return config, ()
    if left_open := sizes_left_open(config, native):
        config = parse_training_text(training_text(config), left_open)
    return config, far_from_native(config, native)


def _give_sizes(engine: Trains, attempt: Attempt, path: Path) -> None:
    """Write the base model's own size where the config leaves one open until now."""
    config = parse_training_text(path.read_text(encoding="utf-8-sig"))
    with_sizes, warnings = _with_sizes(engine, config)
    if with_sizes is config:
        return
    partial_path = path.with_name(f".{path.name}.partial")
    partial_path.write_text(training_text(with_sizes), encoding="utf-8")
    partial_path.replace(path)
    attempt.say(f"sizes that the config leaves open: {with_sizes.process.sample.width} pixels")
    for warning in warnings:
        attempt.warn(warning)


def _own_files(folder: Path) -> list[Artifact]:
    """What we have written into a training's folder ourselves and keep among its results."""
    own: list[Artifact] = [
        Artifact("config", folder / CONFIG_FILE),
        Artifact("metrics", folder / EVENTS_FILE),
        Artifact("log", folder / LOG_FILE),
    ]
    return [one for one in own if one.path.is_file()]


def training_paths(config: TrainingConfig) -> dict[str, str | None]:
    """Return what the config says where local paths may stand, by the settings' names."""
    model = config.process.model
    return {
        "model.name_or_path": model.name_or_path,
        "model.extras_name_or_path": model.extras_name_or_path,
        "network.pretrained_lora_path": config.process.network.pretrained_lora_path,
        **{
            f"datasets.{number}.folder_path": section.folder_path
            for number, section in enumerate(config.process.datasets)
        },
    }


def _raise_if_stopped(attempt: Attempt) -> None:
    if attempt.stop.count:
        raise Interrupted("stopped while it was being prepared")


def _show_fetched(attempt: Attempt, dataset: str, done: int, total: int) -> None:
    _raise_if_stopped(attempt)
    attempt.show("downloading", f"dataset {dataset} {done}/{total}")


def _start(checked: CheckedTraining) -> Progress:
    """Where it stands before it has begun: an extension has the steps of the one before."""
    origin = checked.origin
    step = origin.step if origin and origin.kind == "extends" else 0
    return Progress(step=step, total_steps=checked.config.process.train.updates)


def _summary(config: TrainingConfig) -> dict[str, Any]:
    process = config.process
    return {
        "base_model": process.model.name_or_path,
        "trigger_word": process.trigger_word,
        "from_adapter": process.network.pretrained_lora_path,
        "datasets": [section.folder_path for section in process.datasets][:10],
        "steps": process.train.updates,
    }


@contextlib.contextmanager
def _appended(path: Path) -> Iterator[IO[bytes]]:
    """Open an event file for appending, unbuffered; a torn last line is closed first."""
    with path.open("a+b", buffering=0) as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        yield file
