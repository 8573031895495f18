"""A scripted training: steps, checkpoints, previews and an adapter, all made of the seed."""

import hashlib
import math
import time
from pathlib import Path

from loradash.engines.scripted.channel import Channel, log
from loradash.engines.scripted.checkpoints import (
    State,
    first_state,
    newest_checkpoint,
    next_state,
    save_adapter,
    write_checkpoint,
)
from loradash.engines.scripted.misbehaviour import FAILURE, ScriptedFailure, before_step, begin
from loradash.engines.scripted.plan import TrainingPlan
from loradash.engines.stop_signal import StopSignal
from loradash.engines.training_files import ADAPTER_FOLDER, SAMPLES_FOLDER

DONE, FAILED, STOPPED = 0, 1, 130
_STEPS_TO_LEARN = 100


def run_training(job: Path, channel: Channel, stop: StopSignal) -> int:
    """Run or continue the training of a job file; return the exit code."""
    training = _Training(job, channel, stop)
    try:
        return training.run()
    except ScriptedFailure as error:
        channel.send(
            "failed", code=FAILURE, message=str(error), remedy="Resume it.",
            resumable=training.state.step > 0,
        )  # fmt: skip
        return FAILED


def loss_at(seed: int, step: int) -> float:
    """The loss that a step reports: it falls, and is never quite the same."""
    (noise,) = hashlib.sha256(f"{seed}/{step}".encode()).digest()[:1]
    return 0.1 + 0.9 * math.exp(-step / _STEPS_TO_LEARN) + noise / 255 * 0.05


class _Training:
    def __init__(self, job: Path, channel: Channel, stop: StopSignal) -> None:
        text = job.read_bytes()
        self._plan = TrainingPlan.from_json(text)
        self._folder = job.parent
        self._channel = channel
        self._stop = stop
        self._job_sha256 = hashlib.sha256(text).hexdigest()
        self._saved_step = 0
        self._saved_path = ""
        self._began_s = time.monotonic()
        self.state = first_state(self._plan, self._job_sha256)

    def run(self) -> int:
        plan = self._plan
        log(f"the scripted engine trains {plan.name}: nothing is learned")
        self._channel.send("phase", phase="loading", detail="nothing, it is scripted")
        begin(plan.orders, self._stop)
        if not self._restore():
            self._channel.send(
                "failed", code="invalid_checkpoint", resumable=False,
                message="no checkpoint of the training that this one extends verifies",
                remedy="Start a new training from its adapter.",
            )  # fmt: skip
            return FAILED
        self._sample_if_due()
        self._channel.send("phase", phase="training")
        while self.state.step < plan.steps and not self._must_stop():
            self._step()
        if self.state.step < plan.steps:
            return self._stopped()
        self._finish()
        return DONE

    def _must_stop(self) -> bool:
        return self._stop.requested and not self._plan.orders.ignore_stop

    def _restore(self) -> bool:
        """Go back to the newest checkpoint; return whether the training can go on."""
        jobs = {self._job_sha256, self._plan.before_sha256} - {""}
        found = newest_checkpoint(self._folder, jobs)
        if found is None:
            return not self._plan.before_sha256
        path, state = found
        self.state = State(state.step, state.digest, self._job_sha256)
        self._saved_step, self._saved_path = state.step, str(path)
        self._channel.send("resumed", step=state.step, path=str(path), steps=[])
        return True

    def _step(self) -> None:
        plan, step = self._plan, self.state.step + 1
        before_step(step, plan.orders, self._folder, self._channel, self._stop)
        if self._must_stop():
            return
        self.state = next_state(self.state)
        self._channel.send(
            "step", step=step, total_steps=plan.steps, loss=loss_at(plan.seed, step),
            learning_rate=plan.learning_rate,
            grad_norm=loss_at(plan.seed + 1, step),
        )  # fmt: skip
        due = plan.save_every > 0 and step % plan.save_every == 0
        if due or self._stop.take_save_request() or step == plan.steps:
            self._save()
        self._sample_if_due()

    def _save(self) -> None:
        path = write_checkpoint(self._folder, self._plan, self.state)
        size = sum(file.stat().st_size for file in path.iterdir())
        self._saved_step, self._saved_path = self.state.step, str(path)
        self._channel.send("checkpoint", step=self.state.step, path=str(path), size_bytes=size)

    def _sample_if_due(self) -> None:
        plan, step = self._plan, self.state.step
        asked = self._stop.take_sample_request()
        due = plan.sample_every > 0 and step >= plan.sample_start
        due = due and (step % plan.sample_every == 0 or step == plan.steps)
        if not plan.samples or not (asked or (due and (step > 0 or plan.sample_first))):
            return
        from loradash.engines.scripted.drawing import draw  # takes longer than the rest

        for picture in plan.samples:
            path = self._folder / SAMPLES_FOLDER / f"step-{step:09d}-{picture.index}.png"
            if path.is_file():
                continue
            draw(picture, path, step)
            self._channel.send(
                "sample", step=step, index=picture.index, path=str(path), prompt=picture.prompt,
                seed=picture.seed,
            )  # fmt: skip

    def _stopped(self) -> int:
        if self.state.step and self._saved_step != self.state.step:
            self._save()
        self._channel.send("stopped", step=self.state.step, checkpoint=self._saved_path or None)
        return STOPPED

    def _finish(self) -> None:
        path = self._folder / ADAPTER_FOLDER / f"{self._plan.name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        save_adapter(partial, self._plan, self.state)
        partial.replace(path)
        data = path.read_bytes()
        self._channel.send(
            "done", step=self.state.step, path=str(path), sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data), duration_s=time.monotonic() - self._began_s,
        )  # fmt: skip
