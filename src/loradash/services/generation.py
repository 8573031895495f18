"""Generation: find the adapters, draw the images, keep them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from loradash.domain.events import Done, Event, ImageWritten, Terminal
from loradash.domain.generation import MAX_WEIGHT, AdapterUse, GenerationRequest
from loradash.domain.ids import is_process_id, new_process_id
from loradash.engines.engine import Engine
from loradash.errors import InvalidAdapter, NotFound
from loradash.paths import local_path
from loradash.runtime.supervisor import Limits, StopRequest
from loradash.runtime.warm_pipeline import WarmPipeline
from loradash.runtime.workspace import Workspace
from loradash.storage import keys
from loradash.storage.store import ObjectStore

_WEIGHT = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")


class GenerationResult(NamedTuple):
    """How a generation ended, and the images that are there."""

    process_id: str
    ending: Terminal
    images: tuple[ImageWritten, ...]


class GenerationService:
    """Generations with a pipeline that stays warm between them."""

    def __init__(
        self,
        engine: Engine,
        pipeline: WarmPipeline,
        workspace: Workspace,
        store: ObjectStore,
        limits: Limits,
    ) -> None:
        self._engine = engine
        self._pipeline = pipeline
        self._workspace = workspace
        self._store = store
        self._limits = limits

    def run(
        self,
        request: GenerationRequest,
        on_event: Callable[[Event], None],
        stop: StopRequest,
        process_id: str = "",
    ) -> GenerationResult:
        """Draw all images of a request. Raises `InvalidAdapter`, `NotFound`, `InvalidBaseModel`."""
        adapters = tuple(self.find_adapter(use.path) for use in request.adapters)
        process_id = process_id or new_process_id("gen")
        folder = self._workspace.generation(process_id)
        self._workspace.ensure()
        images: list[ImageWritten] = []

        def keep(event: Event) -> None:
            if isinstance(event, ImageWritten):
                images.append(event)
            on_event(event)

        ending = self._pipeline.generate(
            process_id,
            request,
            adapters,
            folder,
            keep,
            stop,
            self._limits.timeout_s,
            self._limits.stall_s,
        )
        if isinstance(ending, Done):
            for image in images:
                path = Path(image.path)
                self._store.put_file(keys.result(process_id, "images", path.name), path)
        return GenerationResult(process_id, ending, tuple(images))

    def find_adapter(self, reference: str) -> Path:
        """Return the verified file of an adapter: a path, or the id of the training that made it.

        A training that isn't in this workspace is looked up in the object store.
        """
        if is_process_id(reference):
            path = self._adapter_of(reference)
        else:
            path = local_path(reference, InvalidAdapter, "adapter").absolute()
            if path.suffix != ".safetensors":
                raise InvalidAdapter(
                    f"adapter {reference}: only .safetensors files are read",
                    remedy="Other formats can run code when they are read; convert the file.",
                )
            if not path.is_file():
                raise NotFound(
                    f"adapter {reference} doesn't exist",
                    remedy="Give a .safetensors file, or the process id of a training.",
                )
        self._engine.adapter_metadata(path)
        return path

    def base_model_of(self, reference: str) -> str:
        """The base model that an adapter names as its own. Raises `InvalidAdapter` if none."""
        metadata = self._engine.adapter_metadata(self.find_adapter(reference))
        if not (name := metadata.get("loradash.base_model")):
            raise InvalidAdapter(
                f"adapter {reference} doesn't say which base model it belongs to",
                remedy="Give the base model (--base-model).",
            )
        return name

    def close(self) -> None:
        """End the warm pipeline."""
        self._pipeline.close()

    def _adapter_of(self, process_id: str) -> Path:
        folder = self._workspace.training(process_id) / "lora"
        found = sorted(path for path in folder.glob("*.safetensors"))
        if found:
            return found[0]
        for info in self._store.list(f"{keys.results(process_id)}/lora"):
            path = self._workspace.lora(process_id) / Path(info.key).name
            if not path.is_file() or path.stat().st_size != info.size_bytes:
                self._store.get_file(info.key, path)
            return path
        raise NotFound(
            f"training {process_id} has no finished adapter",
            remedy=f"Continue it with `loradash train --resume {process_id}`.",
        )


def parse_adapter_use(text: str) -> AdapterUse:
    """Parse ``REFERENCE`` or ``REFERENCE:WEIGHT``, as the command line takes them."""
    reference, colon, number = text.rpartition(":")
    weight = 1.0
    if colon and _WEIGHT.fullmatch(number):
        weight = float(number)
    else:
        reference = text
    if not -MAX_WEIGHT <= weight <= MAX_WEIGHT:
        raise InvalidAdapter(
            f"adapter {reference}: the weight {weight:g} isn't between -10 and 10",
            remedy="1 is as trained, 0 has no effect.",
        )
    try:
        return AdapterUse(path=reference, weight=weight)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InvalidAdapter(
            f"adapter {text[:200]!r}: {problem['loc'][0]}: {problem['msg']}",
            remedy="Give a process id or a .safetensors file, and :WEIGHT from -10 to 10 after it.",
        ) from error
