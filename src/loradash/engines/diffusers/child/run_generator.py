"""The long-lived generator: the base model stays loaded, adapters come and go."""

import hashlib
import queue
import secrets
import threading
import time
import traceback
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from loradash.domain.events import Done, ImageWritten, Ready, Stopped
from loradash.domain.generation import GenerationRequest, image_name
from loradash.domain.prompt_text import PromptSettings
from loradash.domain.sizes import counted
from loradash.engines.diffusers.adapters.layers import PEFT_SETTINGS
from loradash.engines.diffusers.base_models.families import BaseModelSource
from loradash.engines.diffusers.child.adapter_reading import put_adapter, read_adapter
from loradash.engines.diffusers.child.architecture import Architecture
from loradash.engines.diffusers.child.base_model import load_base_model
from loradash.engines.diffusers.child.emitter import Emitter
from loradash.engines.diffusers.child.failures import translated_errors
from loradash.engines.diffusers.child.library_warnings import library_warnings
from loradash.engines.diffusers.child.precision import DTYPES, pick_device, pick_precision
from loradash.engines.diffusers.child.sampling import Drawing, draw, one_color, save_image
from loradash.engines.diffusers.job import (
    GENERATOR_LINE,
    Cancel,
    Generate,
    ResolvedAdapter,
)
from loradash.engines.stop_signal import StopSignal, stdin_lines
from loradash.errors import Interrupted, InvalidConfig, LoradashError

MAX_LOADED_ADAPTERS = 8
MAX_CUT_TEXTS = 20

_Value = TypeVar("_Value")


def run_generator(emitter: Emitter, stop: StopSignal, device: str, offline: bool) -> int:
    """Answer requests until stdin ends or a stop is asked for; return the exit code."""
    inbox = _Inbox(stop)
    pipeline = LoadedPipeline(device, offline, emitter)
    while (line := inbox.next()) is not None:
        _answer(line, pipeline, emitter, inbox.stop_of(line.request_id))
        emitter.emit(Ready(loaded_base_model=pipeline.loaded))
    return 0


def _answer(line: Generate, pipeline: "LoadedPipeline", emitter: Emitter, stop: StopSignal) -> None:
    started = time.monotonic()
    emitter.request_id = line.request_id
    try:
        with translated_errors(), library_warnings(emitter):
            pipeline.generate(line, stop)
        emitter.emit(Done(duration_s=time.monotonic() - started))
    except Interrupted:
        emitter.emit(Stopped())
    except LoradashError as error:
        traceback.print_exc()
        emitter.fail(error, resumable=error.code in ("out_of_memory", "disk_full"))
    finally:
        emitter.request_id = ""


class _Inbox:
    """Reads stdin in a thread, so that a cancel arrives while an image is drawn."""

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop
        self._lines: queue.Queue[Generate | None] = queue.Queue()
        self._stops: dict[str, StopSignal] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def next(self) -> Generate | None:
        """Wait for the next request; None at the end."""
        while not self._stop.requested:
            try:
                return self._lines.get(timeout=0.2)
            except queue.Empty:
                continue
        return None

    def stop_of(self, request_id: str) -> StopSignal:
        """The stop signal of one request; it is also set when the whole program shall end."""
        with self._lock:
            stop = self._stops.setdefault(request_id, StopSignal())
        if self._stop.requested:
            stop.request()
        return stop

    def _read(self) -> None:
        for raw in stdin_lines():
            try:
                line = GENERATOR_LINE.validate_json(raw)
            except ValidationError:
                traceback.print_exc()
                continue
            if isinstance(line, Cancel):
                self.stop_of(line.request_id).request()
            else:
                self._lines.put(line)
        with self._lock:
            for stop in self._stops.values():
                stop.request()
        self._stop.request()
        self._lines.put(None)


class LoadedPipeline:
    """A loaded base model and the adapters that were used with it lately."""

    def __init__(self, device: str, offline: bool, emitter: Emitter) -> None:
        self._device_name = device
        self._offline = offline
        self._emitter = emitter
        self._key: tuple[BaseModelSource, str] | None = None
        self._architecture: Architecture | None = None
        self._own_scheduler: Any = None
        # What isn't used of each, by its name; the most recently used last.
        self._adapters: dict[str, tuple[str, ...]] = {}

    @property
    def loaded(self) -> str | None:
        """Name of the base model in memory."""
        return self._key[0].name if self._key else None

    def generate(self, line: Generate, stop: StopSignal) -> None:
        """Draw all images of a request. Raises errors of our tree."""
        request = line.request
        device = pick_device(self._device_name)
        precision = pick_precision(request.precision, device)
        architecture = self._load(line.base_model, precision, device, stop)
        stop.check()
        names = self._use_adapters(architecture, line.adapters)
        self._tell_of_cut_texts(request, architecture)
        first_seed = secrets.randbelow(2**32) if request.seed is None else request.seed
        total = len(request.prompts) * request.num_images
        done = frozenset(line.done)
        drawn = len(done)
        self._emitter.phase("generating", "", drawn, total)
        index = 0
        for number in range(len(request.prompts)):
            adapters = _weighted(line.adapters, request.settings_of(number))
            if names and request.prompt_settings:
                architecture.pipeline.set_adapters(names, [use.weight for use in adapters])
            for image_number in range(request.num_images):
                if index in done:
                    index += 1
                    continue
                stop.check()
                started = time.monotonic()
                seed = request.settings_of(number).seed
                seed = (first_seed if seed is None else seed) + image_number
                drawing = _drawing(line, number, adapters, seed, architecture)
                image = draw(architecture, drawing, self._own_scheduler, DTYPES[precision], stop)
                path = line.folder / image_name(request.name, index)
                if color := one_color(image):
                    self._emitter.warn("image_one_color", f"{path.name}: every pixel is {color}")
                save_image(image, path, drawing)
                self._emitter.emit(
                    ImageWritten(
                        index=index,
                        path=str(path),
                        prompt=drawing.prompt,
                        seed=drawing.seed,
                        duration_s=time.monotonic() - started,
                    )
                )
                index += 1
                drawn += 1
                self._emitter.phase("generating", "", drawn, total)

    def _tell_of_cut_texts(self, request: GenerationRequest, architecture: Architecture) -> None:
        texts = {prompt: f"the prompt {prompt[:40]!r}" for prompt in request.prompts}
        negatives = [request.negative_prompt]
        negatives += [one.negative_prompt or "" for one in request.prompt_settings]
        texts |= {text: f"the negative prompt {text[:40]!r}" for text in negatives}
        cuts = [(what, cut) for text, what in texts.items() if (cut := architecture.cut(text))]
        for what, cut in cuts[:MAX_CUT_TEXTS]:
            self._emitter.warn("text_cut", cut.sentence(what))
        if more := cuts[MAX_CUT_TEXTS:]:
            self._emitter.warn("text_cut", f"{counted(len(more), 'more prompt')} are cut, too")

    def unload(self) -> None:
        """Drop the base model and free its memory."""
        self._key = self._architecture = self._own_scheduler = None
        self._adapters.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _load(
        self, source: BaseModelSource, precision: str, device: torch.device, stop: StopSignal
    ) -> Architecture:
        if self._architecture is not None and self._key == (source, precision):
            return self._architecture
        self.unload()
        self._emitter.phase("loading", source.name)
        architecture = load_base_model(
            source, DTYPES[precision], device, self._emitter, stop, offline=self._offline
        )
        self._architecture = architecture
        self._own_scheduler = architecture.pipeline.scheduler
        self._key = (source, precision)
        return architecture

    def _use_adapters(
        self, architecture: Architecture, adapters: tuple[ResolvedAdapter, ...]
    ) -> list[str]:
        """Make exactly these adapters act; load those that aren't in memory yet; return names."""
        pipeline: Any = architecture.pipeline
        if not adapters:
            if self._adapters:
                pipeline.disable_lora()
            return []
        names = []
        for use in adapters:
            name = self._load_adapter(architecture, use.path)
            if name in names:
                raise InvalidConfig(
                    f"adapters: {use.path.name} is given twice",
                    remedy="Give each adapter once, with the sum of the weights.",
                )
            names.append(name)
        pipeline.enable_lora()
        pipeline.set_adapters(names, [use.weight for use in adapters])
        self._forget_old_adapters(pipeline, keep=len(names))
        return names

    def _load_adapter(self, architecture: Architecture, path: Path) -> str:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        if (settings := path.with_name(PEFT_SETTINGS)).is_file():
            digest.update(settings.read_bytes())  # they may hold the file's alpha
        name = f"adapter_{digest.hexdigest()[:24]}"
        if name not in self._adapters:
            modules = [architecture.denoiser(), *architecture.text_encoders()]
            read = read_adapter(path, modules)
            try:
                put_adapter(read, modules, name)
            except BaseException:
                self.unload()  # a half-loaded adapter would stay in the base model
                raise
            self._adapters[name] = read.warnings
        # Told with each request: one that finds the adapter in memory uses no more of it.
        for text in self._adapters[name]:
            self._emitter.warn("adapter_partly_used", text)
        self._adapters[name] = self._adapters.pop(name)
        return name

    def _forget_old_adapters(self, pipeline: Any, keep: int) -> None:
        while len(self._adapters) > max(MAX_LOADED_ADAPTERS, keep):
            oldest = next(iter(self._adapters))
            pipeline.delete_adapters(oldest)
            del self._adapters[oldest]


def _weighted(
    adapters: tuple[ResolvedAdapter, ...], settings: PromptSettings
) -> tuple[ResolvedAdapter, ...]:
    """The adapters with the weights that they have for one prompt."""
    weights = settings.adapter_weights or [use.weight for use in adapters]
    multiplier = 1.0 if settings.multiplier is None else settings.multiplier
    return tuple(
        use.model_copy(update={"weight": weight * multiplier})
        for use, weight in zip(adapters, weights, strict=True)
    )


def _drawing(
    line: Generate,
    number: int,
    adapters: tuple[ResolvedAdapter, ...],
    seed: int,
    architecture: Architecture,
) -> Drawing:
    """The parameters of an image of a prompt: its own settings, or else the request's."""
    request, own = line.request, line.request.settings_of(number)
    size = architecture.default_size()
    return Drawing(
        prompt=request.prompts[number],
        negative_prompt=_first(own.negative_prompt, request.negative_prompt),
        seed=seed,
        steps=_first(own.steps, request.steps),
        guidance_scale=_first(own.guidance_scale, request.guidance_scale),
        width=own.width or request.width or size,
        height=own.height or request.height or size,
        scheduler=_first(own.scheduler, request.scheduler),
        base_model=line.base_model.name,
        adapters=tuple(
            (use.path.stem, use.weight) for use in adapters if use.weight or not own.adapter_weights
        ),
    )


def _first(own: _Value | None, common: _Value) -> _Value:
    return common if own is None else own
