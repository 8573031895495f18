"""Preview images during a training: when they are due, and drawing them.

They come after the step's checkpoint, so a training that dies here draws them when it is continued;
a failure here costs the previews and not the training.
"""

import traceback
from pathlib import Path

import torch

from loradash.domain.events import SampleWritten
from loradash.domain.image_size import rounded_side
from loradash.domain.schedulers import scheduler_name
from loradash.engines.diffusers.child.architecture import Architecture
from loradash.engines.diffusers.child.emitter import Emitter
from loradash.engines.diffusers.child.failures import translated_errors
from loradash.engines.diffusers.child.sampling import Drawing, draw, one_color, save_image
from loradash.engines.diffusers.child.trainer import Trainer
from loradash.engines.diffusers.job import TrainingJob
from loradash.engines.sample_prompts import SamplePrompt, sample_prompts
from loradash.engines.stop_signal import StopSignal
from loradash.engines.training_files import SAMPLES_FOLDER
from loradash.errors import DiskFull, ImageNotFinite, Interrupted, LoradashError


class Previews:
    """The previews of one training."""

    def __init__(
        self,
        job: TrainingJob,
        folder: Path,
        architecture: Architecture,
        trainer: Trainer,
        dtype: torch.dtype,
        emitter: Emitter,
        stop: StopSignal,
    ) -> None:
        self._job = job
        self._sample = job.config.process.sample
        self._folder = folder
        self._architecture = architecture
        self._trainer = trainer
        self._dtype = dtype
        self._emitter = emitter
        self._stop = stop
        self._items = sample_prompts(self._sample, job.config.trigger_word)
        self._own_scheduler = architecture.pipeline.scheduler
        self._tell_of_cut_prompts()

    def _tell_of_cut_prompts(self) -> None:
        for item in self._items if not self._job.config.process.train.disable_sampling else ():
            if cut := self._architecture.cut(item.text):
                self._emitter.warn("text_cut", cut.sentence(item.place))

    def draw_if_due(self) -> None:
        """Draw the previews of the current step that are due, or asked for, and not there yet."""
        step = self._trainer.step
        wanted = self._stop.take_sample_request() or self._due(step)
        if not self._items or not wanted or self._job.config.process.train.disable_sampling:
            return
        self._emitter.phase("sampling", "", 0, len(self._items))
        try:
            with translated_errors(), self._trainer.evaluating():
                self._draw(step)
        except (Interrupted, DiskFull):
            raise
        except LoradashError as error:
            traceback.print_exc()
            self._emitter.warn("sampling_failed", f"previews of step {step}: {error.message}")
        finally:
            self._architecture.pipeline.scheduler = self._own_scheduler
        self._emitter.phase("training")

    def path(self, step: int, index: int) -> Path:
        """Where the preview of a prompt at a step is, or would be."""
        name = f"step-{step:09d}-{index}.{self._sample.format}"
        return self._folder / SAMPLES_FOLDER / name

    def _due(self, step: int) -> bool:
        train = self._job.config.process.train
        if train.disable_sampling or (step == 0 and train.skip_first_sample):
            return False
        if self._sample.sample_every == 0:
            return False
        every = max(1, self._sample.sample_every // train.steps_per_update)
        start = self._sample.sample_start_step // train.steps_per_update
        return step >= start and (step % every == 0 or step == train.updates)

    def _draw(self, step: int) -> None:
        for index, preview in enumerate(self._items):
            self._stop.check()
            path = self.path(step, index)
            if path.is_file():
                continue
            drawing = self._drawing(preview, index)
            multiplier = self._multiplier(preview)
            try:
                with self._trainer.saved_weights(), self._trainer.scaled(multiplier):
                    image = draw(
                        self._architecture, drawing, self._own_scheduler, self._dtype, self._stop
                    )
            except ImageNotFinite as error:  # the others may well be fine
                self._emitter.warn("sampling_failed", f"{path.name}: {error.message}")
                continue
            if color := one_color(image):
                self._emitter.warn("image_one_color", f"{path.name}: every pixel is {color}")
            save_image(image, path, drawing)
            self._emitter.emit(
                SampleWritten(
                    step=step, index=index, path=str(path), prompt=drawing.prompt, seed=drawing.seed
                )
            )
            self._emitter.phase("sampling", "", index + 1, len(self._items))

    def _drawing(self, preview: SamplePrompt, index: int) -> Drawing:
        sample, own = self._sample, preview.settings
        seed = sample.seed + index * sample.walk_seed if own.seed is None else own.seed
        guidance = own.guidance_scale
        return Drawing(
            prompt=preview.text,
            negative_prompt=sample.neg if own.negative_prompt is None else own.negative_prompt,
            seed=seed,
            steps=own.steps or sample.sample_steps,
            guidance_scale=sample.guidance_scale if guidance is None else guidance,
            width=rounded_side(own.width or sample.width),
            height=rounded_side(own.height or sample.height),
            scheduler=own.scheduler or scheduler_name(sample.sampler),
            base_model=self._job.base_model.name,
            adapters=((self._job.config.name, self._multiplier(preview)),),
        )

    def _multiplier(self, preview: SamplePrompt) -> float:
        own = preview.settings.multiplier
        return self._sample.network_multiplier if own is None else own
