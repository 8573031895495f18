"""One training from its job file to its adapter, or to the sentence that says why not."""

import hashlib
import os
import shutil
import time
import traceback
from pathlib import Path

import torch

from loradash.domain.events import Done, Resumed, Stopped
from loradash.engines.diffusers.base_models.families import fingerprint, on_this_machine
from loradash.engines.diffusers.child.adapter_file import write_adapter
from loradash.engines.diffusers.child.adapter_start import start_from_adapter
from loradash.engines.diffusers.child.architecture import AdaptedModule, Architecture
from loradash.engines.diffusers.child.base_model import load_base_model
from loradash.engines.diffusers.child.checkpoints import CheckpointStore
from loradash.engines.diffusers.child.description import describe
from loradash.engines.diffusers.child.emitter import Emitter
from loradash.engines.diffusers.child.failures import translated_errors
from loradash.engines.diffusers.child.library_warnings import library_warnings
from loradash.engines.diffusers.child.lora import add_lora
from loradash.engines.diffusers.child.optimizers import optimizer_text
from loradash.engines.diffusers.child.precision import DTYPES, pick_device, pick_precision
from loradash.engines.diffusers.child.previews import Previews
from loradash.engines.diffusers.child.randomness import seed_everything
from loradash.engines.diffusers.child.thumbnail import thumbnail
from loradash.engines.diffusers.child.trainer import Trainer, write_checkpoint
from loradash.engines.diffusers.child.training_data import (
    TrainingData,
    encode_items,
    items_of,
    read_datasets,
    tell_of_cut_captions,
)
from loradash.engines.diffusers.job import (
    CACHE_FOLDER,
    TrainingJob,
)
from loradash.engines.stop_signal import StopSignal
from loradash.engines.training_files import ADAPTER_FOLDER, CHECKPOINTS_FOLDER
from loradash.errors import (
    DiskFull,
    Interrupted,
    InvalidBaseModel,
    InvalidCheckpoint,
    LoradashError,
)


def run_training(job_path: Path, emitter: Emitter, stop: StopSignal) -> int:
    """Run or continue the training in the job's folder; return the exit code."""
    started = time.monotonic()
    run: TrainingRun | None = None
    try:
        with translated_errors(), library_warnings(emitter):
            try:
                job_text = job_path.read_bytes()
                run = TrainingRun(job_path.parent, job_text, emitter, stop)
                run.prepare()
                finished = run.train()
                if not finished:
                    raise Interrupted("stopped on request")
                adapter = run.write_final_adapter()
            except Interrupted:
                return report_stop(run, emitter)
        emitter.emit(
            Done(
                step=run.trainer.step,
                path=str(adapter),
                sha256=hashlib.sha256(adapter.read_bytes()).hexdigest(),
                size_bytes=adapter.stat().st_size,
                duration_s=time.monotonic() - started,
            )
        )
    except LoradashError as error:
        traceback.print_exc()
        has_checkpoint = run is not None and run.has_checkpoint()
        emitter.fail(error, resumable=has_checkpoint or isinstance(error, DiskFull))
        return 1
    return 0


def report_stop(run: "TrainingRun | None", emitter: Emitter) -> int:
    """Save what there is and say where the training can go on."""
    checkpoint = run.save_if_needed() if run else None
    step = run.trainer.step if run and run.prepared else None
    emitter.emit(Stopped(step=step, checkpoint=str(checkpoint) if checkpoint else None))
    return 130


class TrainingRun:
    """A training and its folder."""

    def __init__(self, folder: Path, job_text: bytes, emitter: Emitter, stop: StopSignal) -> None:
        self._folder = folder
        self._job = TrainingJob.model_validate_json(job_text)
        self._emitter = emitter
        self._stop = stop
        before = self._job.before
        self._store = CheckpointStore(
            folder / CHECKPOINTS_FOLDER,
            hashlib.sha256(job_text).hexdigest(),
            before.sha256 if before else "",
        )
        self._saved_step: int | None = None
        self._saved_path: Path | None = None
        self.prepared = False

    def prepare(self) -> None:
        """Load the base model, encode the data, put the LoRA in place, restore a checkpoint."""
        job, config = self._job, self._job.config
        process, train = config.process, config.process.train
        torch.set_num_threads(job.threads)
        device = pick_device(job.device)
        precision = pick_precision(train.dtype, device)
        self._dtype = DTYPES[precision]
        self._store.remove_leftovers()

        self._emitter.phase("loading", "dataset")
        reports = read_datasets(job, self._folder, self._stop)
        self._emitter.phase("loading", job.base_model.name)
        self._stop.check()
        # As the config says: jobs of earlier releases don't name it for embedded models.
        source = on_this_machine(job.base_model).model_copy(
            update={"is_v_pred": process.model.is_v_pred}
        )
        if source.fingerprint and fingerprint(source) != source.fingerprint:
            raise InvalidBaseModel(
                f"base model {job.base_model.name} has changed since the training was submitted",
                remedy="Restore the files, or start a new training.",
            )
        self.architecture = load_base_model(
            source, self._dtype, device, self._emitter, self._stop, offline=job.offline
        )
        self._stop.check()
        items = items_of(job, reports, self.architecture.bucket_step(), self._emitter)
        tell_of_cut_captions(items, self.architecture, self._emitter)
        posteriors = encode_items(
            items,
            self.architecture,
            device,
            self._folder / CACHE_FOLDER,
            f"{job.base_model.fingerprint or job.base_model.location}/posterior 1",
            self._emitter,
            self._stop,
        )
        data = TrainingData(items, posteriors, config.seed)

        self._modules, rates = self._adapted_modules()
        seed_everything(config.seed, "adapter")
        for module in self._modules:
            add_lora(module, process.network)
        if process.network.pretrained_lora_path:
            self._start_from(self._folder / process.network.pretrained_lora_path)
        if train.gradient_checkpointing:
            _checkpoint_activations(self.architecture)
        objective = self.architecture.objective(train, device)
        self.trainer = Trainer(
            self.architecture,
            self._modules,
            rates,
            data,
            train,
            objective,
            self._dtype,
            config.seed,
            self._emitter,
        )
        self.trainer.cache_captions(self._stop)
        self._description = describe(
            job, self.architecture, items, objective, precision,
            optimizer_text(self.trainer.optimizer),
        )  # fmt: skip
        self._previews = Previews(
            job,
            self._folder,
            self.architecture,
            self.trainer,
            self._dtype,
            self._emitter,
            self._stop,
        )
        self._restore()
        self.prepared = True

    def train(self) -> bool:
        """Train to the end, or to a stop request; return whether the end was reached."""
        self._previews.draw_if_due()
        self._emitter.phase("training")
        self.trainer.run(
            self._stop,
            self._updates_between_checkpoints,
            self._checkpoint,
            self._previews.draw_if_due,
        )
        return self.trainer.step == self._job.config.process.train.updates

    def write_final_adapter(self) -> Path:
        """Write the finished adapter, whole or not at all."""
        self._emitter.phase("saving", "adapter")
        path = self._folder / ADAPTER_FOLDER / f"{self._job.config.name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        # Only of the last step, whose previews are there or drawn anew, whichever attempt ends it.
        picture = thumbnail(self._previews.path(self.trainer.step, 0))
        self._description = self._description.model_copy(update={"thumbnail": picture})
        try:
            self._write_adapter(partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        shutil.rmtree(self._folder / CACHE_FOLDER, ignore_errors=True)
        return path

    def has_checkpoint(self) -> bool:
        """Whether there is something to continue from."""
        return any((self._folder / CHECKPOINTS_FOLDER).glob("step-*"))

    def save_if_needed(self) -> Path | None:
        """Write a checkpoint of the current step unless there is one; return its folder."""
        if not self.prepared or self.trainer.step == 0:
            return None
        if self._saved_step != self.trainer.step:
            self._checkpoint()
        return self._saved_path

    @property
    def _updates_between_checkpoints(self) -> int:
        """0: none but the last one, and those that are asked for."""
        every = self._job.config.process.save.save_every
        return max(1, every // self._job.config.process.train.steps_per_update) if every else 0

    def _adapted_modules(self) -> tuple[list[AdaptedModule], list[float]]:
        train = self._job.config.process.train
        modules: list[AdaptedModule] = []
        rates: list[float] = []
        if train.train_unet:
            modules.append(self.architecture.denoiser())
            rates.append(train.unet_rate)
        if train.train_text_encoder:
            for module in self.architecture.text_encoders():
                modules.append(module)
                rates.append(train.text_encoder_rate)
        return modules, rates

    def _start_from(self, adapter: Path) -> None:
        """Begin with an adapter's weights; once there is a checkpoint, that holds all of them."""
        if self.has_checkpoint() and not adapter.is_file():
            return
        parts = [self.architecture.denoiser(), *self.architecture.text_encoders()]
        for text in start_from_adapter(adapter, self._modules, parts):
            self._emitter.warn("adapter_partly_used", text)

    def _restore(self) -> None:
        damaged = []

        def on_damaged(path: Path, reason: str) -> None:
            damaged.append(path.name)
            self._emitter.warn("checkpoint_damaged", f"{path.name} is passed over: {reason}")

        found = self._store.newest(on_damaged)
        if not found and self._job.before:
            raise InvalidCheckpoint(
                f"no checkpoint of {self._job.before.process_id} verifies, which this training "
                "extends",
                remedy="Start a new training from its adapter.",
            )
        if damaged and not found:
            self._emitter.warn(
                "training_begins_again", "no checkpoint is whole, so the training begins at step 1"
            )
        if found:
            path, state = found
            self.trainer.restore(state)
            self._saved_step, self._saved_path = state.step, path
            steps = self.trainer.history
            self._emitter.emit(Resumed(step=state.step, path=str(path), steps=steps))

    def _checkpoint(self) -> None:
        self._emitter.phase("saving", "checkpoint")
        keep = self._job.config.process.save.max_step_saves_to_keep
        self._saved_path = write_checkpoint(
            self._store, self.trainer, self._write_adapter, keep, self._emitter
        )
        self._saved_step = self.trainer.step
        self._emitter.phase("training")

    def _write_adapter(self, path: Path) -> None:
        save = self._job.config.process.save
        description = self._description.model_copy(update={"steps": self.trainer.step})
        with self.trainer.saved_weights():
            write_adapter(path, self._modules, description, DTYPES[save.dtype], save.save_format)


def _checkpoint_activations(architecture: Architecture) -> None:
    """Trade a second forward pass for the memory of the activations."""
    denoiser = architecture.denoiser().module
    if getattr(denoiser, "_supports_gradient_checkpointing", False):
        denoiser.enable_gradient_checkpointing()
