"""The training loop: from (seed, step) to the next weights, and nothing else.

What a step does depends only on the job, the step's number and the state before it. So a training
that is killed anywhere and continued from its last checkpoint ends with the same weights; on a CPU
bit for bit.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from loradash.domain.events import CheckpointWritten, StepDone
from loradash.domain.training_config import TrainSection
from loradash.engines.diffusers.child.architecture import (
    AdaptedModule,
    Architecture,
    Conditioning,
    ImageFacts,
)
from loradash.engines.diffusers.child.checkpoints import (
    CheckpointStore,
    TrainingState,
    load_optimizer_state,
    optimizer_state,
)
from loradash.engines.diffusers.child.ema import MovingAverage
from loradash.engines.diffusers.child.emitter import Emitter
from loradash.engines.diffusers.child.lora import scale_lora, trainable
from loradash.engines.diffusers.child.objective import Objective
from loradash.engines.diffusers.child.optimizers import effective_rate, make_optimizer
from loradash.engines.diffusers.child.precision import autocast
from loradash.engines.diffusers.child.randomness import generator, seed_everything
from loradash.engines.diffusers.child.schedules import factor
from loradash.engines.diffusers.child.speed import Speed
from loradash.engines.diffusers.child.training_data import TrainingData
from loradash.engines.stop_signal import StopSignal
from loradash.errors import InvalidCheckpoint, LossNotFinite

MAX_SKIPPED_UPDATES = 20  # in a row, with fp16's loss scaling
_HISTORY_STEPS = 2000
_KEPT = ("step", "time_s", "loss", "learning_rate", "grad_norm", "steps_per_s")


class Trainer:
    """Trains the LoRAs of ``modules``, which must already be in place."""

    def __init__(  # noqa: PLR0913 - made in one place
        self,
        architecture: Architecture,
        modules: list[AdaptedModule],
        learning_rates: list[float],
        data: TrainingData,
        train: TrainSection,
        objective: Objective,
        dtype: torch.dtype,
        seed: int,
        emitter: Emitter,
    ) -> None:
        self._architecture = architecture
        self._modules = modules
        self._data = data
        self._train = train
        self._objective = objective
        self._dtype = dtype
        self._seed = seed
        self._emitter = emitter
        self._device = architecture.pipeline.device
        self._parameters = {
            name: value for module in modules for name, value in trainable(module).items()
        }
        self._base_rates = learning_rates
        self._optimizer = make_optimizer(
            [
                {"params": list(trainable(module).values()), "lr": rate}
                for module, rate in zip(modules, learning_rates, strict=True)
            ],
            train,
            self._device,
            emitter,
        )
        self.average = (
            MovingAverage(list(self._parameters.values()), train.ema_config.ema_decay)
            if train.ema_config.use_ema
            else None
        )
        # fp16 gradients underflow without scaling; bf16 and fp32 have the range.
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=dtype == torch.float16)
        self._skipped = 0
        self._history: deque[StepDone] = deque(maxlen=_HISTORY_STEPS)
        self._embeddings: dict[str, Conditioning] = {}
        self._dropout = any(
            isinstance(layer, torch.nn.Dropout) and layer.p > 0
            for module in modules
            for layer in module.module.modules()
        )
        self.step = 0

    @property
    def history(self) -> tuple[StepDone, ...]:
        """The latest steps, those before the checkpoint that was restored too."""
        return tuple(self._history)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of all parameters."""
        return self._optimizer

    @property
    def trains_text(self) -> bool:
        """Whether a text encoder learns too, so that captions can't be encoded beforehand."""
        return any(module.is_text for module in self._modules)

    def cache_captions(self, stop: StopSignal) -> None:
        """Encode all captions beforehand, if no text encoder is trained."""
        if self.trains_text:
            return
        captions = self._data.distinct_captions()
        for done, caption in enumerate(captions, start=1):
            stop.check()
            self._encode_frozen(caption)
            self._emitter.phase("caching", "captions", done, len(captions))

    def run(
        self,
        stop: StopSignal,
        save_every: int,
        checkpoint: Callable[[], None],
        sample_if_due: Callable[[], None],
    ) -> None:
        """Train to the last step; return there, or at the first step end after a stop request.

        ``checkpoint`` is called after every ``save_every`` steps (0: never), on request, and at the
        end;
        ``sample_if_due`` after every step, when the checkpoint is safe.
        """
        self._set_training_mode(True)
        batches = self._data.batches(
            self._train.batch_size, start=self.step * self._train.accumulation
        )
        speed = Speed(self.step)
        while self.step < self._train.updates and not stop.requested:
            loss, norm = self._update(batches)
            self.step += 1
            rate, eta = speed.after(self.step, self._train.updates)
            done = StepDone(
                time_s=time.time(),
                step=self.step,
                total_steps=self._train.updates,
                loss=loss,
                learning_rate=effective_rate(self._optimizer),
                grad_norm=norm,
                steps_per_s=rate,
                eta_s=eta,
            )
            self._history.append(done)
            self._emitter.emit(done)
            at_end = self.step == self._train.updates
            with speed.paused():
                due = save_every > 0 and self.step % save_every == 0
                if due or stop.take_save_request() or at_end:
                    checkpoint()
                sample_if_due()

    @contextmanager
    def saved_weights(self) -> Iterator[None]:
        """Put those weights into the model that are saved: the average, if there is one."""
        with self.average.applied() if self.average else nullcontext():
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch dropout and saved activations off for as long as the context lasts."""
        self._set_training_mode(False)
        try:
            yield
        finally:
            self._set_training_mode(True)

    @contextmanager
    def scaled(self, multiplier: float) -> Iterator[None]:
        """Let the adapter act ``multiplier`` times as strongly for as long as the context lasts."""
        for module in self._modules:
            scale_lora(module, multiplier)
        try:
            yield
        finally:
            for module in self._modules:
                scale_lora(module, 1.0)

    def state(self) -> TrainingState:
        """Return a copy of everything that the next step depends on."""
        tensors, scalars = optimizer_state(self._optimizer)
        for name, parameter in self._parameters.items():
            tensors[f"parameter/{name}"] = parameter.detach().cpu().contiguous().clone()
        if self.average:
            for name, shadow in zip(self._parameters, self.average.shadow, strict=True):
                tensors[f"average/{name}"] = shadow.cpu().contiguous().clone()
        if self._scaler.is_enabled():
            scalars["scaler"] = self._scaler.state_dict()
            scalars["skipped"] = self._skipped
        scalars["history"] = [[getattr(one, name) for name in _KEPT] for one in self._history]
        return TrainingState(self.step, tensors, scalars)

    def restore(self, state: TrainingState) -> None:
        """Go back to a state. Raises `InvalidCheckpoint` if it has other parameters."""
        names = {f"parameter/{name}" for name in self._parameters}
        if names != {name for name in state.tensors if name.startswith("parameter/")}:
            raise InvalidCheckpoint(
                "the checkpoint has other layers than this training",
                remedy="Start a new training.",
            )
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state.tensors[f"parameter/{name}"])
        if self.average:
            self.average.load([state.tensors[f"average/{name}"] for name in self._parameters])
        load_optimizer_state(self._optimizer, state)
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state.scalars["scaler"])
            self._skipped = state.scalars["skipped"]
        self.step = state.step
        self._history.extend(
            StepDone(total_steps=self._train.updates, **dict(zip(_KEPT, row, strict=True)))
            for row in state.scalars.get("history", ())
        )

    def _update(self, batches: Iterator[list[int]]) -> tuple[float, float]:
        """One optimizer update over the accumulated batches; return mean loss and gradient norm."""
        scale = factor(self.step, self._train)
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * scale
        total = torch.zeros((), device=self._device)
        for part in range(self._train.accumulation):
            loss = self._loss(next(batches), part) / self._train.accumulation
            self._scaler.scale(loss).backward()
            total += loss.detach()
        self._scaler.unscale_(self._optimizer)
        limit = self._train.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(list(self._parameters.values()), limit)
        mean_loss, norm_value = float(total), float(norm)
        self._check_finite(mean_loss, norm_value)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.step + 1)
        return mean_loss, norm_value

    def _loss(self, indices: list[int], part: int) -> Tensor:
        """Mean loss of one batch, with all its random numbers drawn from (seed, step, part)."""
        purpose = (self.step, part)
        source = generator(self._seed, "noise", *purpose)
        if self._dropout:
            seed_everything(self._seed, "dropout", *purpose)
        posterior = self._data.posterior(indices)
        posterior_noise = torch.randn(posterior.shape, generator=source).to(self._device)
        latents = self._architecture.normalise(posterior.to(self._device).sample(posterior_noise))
        noise, times = self._objective.draw(latents.shape, source)
        noise, times = noise.to(self._device), times.to(self._device)
        noisy = self._objective.add_noise(latents, noise, times)
        items = [self._data.items[index] for index in indices]
        captions = [
            item.drawn_caption(self._seed, *purpose, place) for place, item in enumerate(items)
        ]
        with autocast(self._device, self._dtype):
            rows, facts = self._encode(captions), [item.facts for item in items]
            predicted = self._architecture.predict(noisy.to(self._dtype), times, rows, facts)
        target = self._objective.target(latents, noise, times)
        prior = [place for place, item in enumerate(items) if item.section.prior_reg]
        if prior:
            target[prior] = self._prior_prediction(
                noisy[prior], times[prior],
                [captions[place] for place in prior], [facts[place] for place in prior],
            )  # fmt: skip
        losses = self._objective.loss(predicted, target, times)
        weights = torch.tensor([item.weight for item in items], device=self._device)
        return (losses * weights).mean()

    def _prior_prediction(
        self, noisy: Tensor, times: Tensor, captions: list[str], facts: list[ImageFacts]
    ) -> Tensor:
        """What the base model predicts without the adapter: what a prior image shall keep."""
        for module in self._modules:
            module.module.disable_adapters()
        try:
            with torch.no_grad(), autocast(self._device, self._dtype):
                predicted = self._architecture.predict(
                    noisy.to(self._dtype), times, self._encode(captions), facts
                )
        finally:
            for module in self._modules:
                module.module.enable_adapters()
        return predicted.float()

    def _encode(self, captions: list[str]) -> list[Conditioning]:
        if self.trains_text:
            return self._architecture.encode_captions(captions)
        return [self._encode_frozen(caption) for caption in captions]

    def _encode_frozen(self, caption: str) -> Conditioning:
        if caption not in self._embeddings:
            if len(self._embeddings) > 10_000:  # shuffled tags make new captions for ever
                self._embeddings.clear()
            with torch.no_grad():
                self._embeddings[caption] = self._architecture.encode_captions([caption])[0]
        return self._embeddings[caption]

    def _check_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            self._skipped = 0
            return
        self._skipped += 1
        if (
            self._scaler.is_enabled()
            and math.isfinite(loss)
            and self._skipped < MAX_SKIPPED_UPDATES
        ):
            return  # the scaler leaves this update out and lowers its scale
        what = "loss" if not math.isfinite(loss) else "gradient norm"
        value = loss if not math.isfinite(loss) else norm
        raise LossNotFinite(
            f"the {what} became {value} at step {self.step + 1}",
            remedy="Lower the learning rate, train in bf16 or fp32 instead of fp16, and look for "
            "broken images.",
        )

    def _set_training_mode(self, on: bool) -> None:
        for module in self._modules:
            module.module.train(on)


def write_checkpoint(
    store: CheckpointStore,
    trainer: Trainer,
    write_adapter: Callable[[Path], None],
    keep: int,
    emitter: Emitter,
) -> Path:
    """Write a checkpoint of the trainer, then let go of the oldest."""
    path = store.write(trainer.state(), write_adapter)
    size = sum(file.stat().st_size for file in path.iterdir())
    emitter.emit(CheckpointWritten(step=trainer.step, path=str(path), size_bytes=size))
    store.prune(keep)
    return path
