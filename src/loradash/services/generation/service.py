"""Generation: find the adapters, draw the images, keep them."""

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from loradash.data import EMBEDDED_BASE_MODELS
from loradash.domain.addresses import NO_ADDRESS, Address
from loradash.domain.events import Done, Failed, Stopped, Terminal, Warned
from loradash.domain.generation import (
    AdapterUse,
    GenerationRequest,
)
from loradash.domain.ids import new_process_id, process_id_of
from loradash.domain.kinds import GENERATION
from loradash.domain.process import ProcessRecord, Progress, merged_warnings
from loradash.domain.schema import validate
from loradash.domain.yaml_text import dump_mapping, load_mapping
from loradash.engines.catalogue import Engines
from loradash.engines.engine import WarmGenerator
from loradash.error_list import ErrorList
from loradash.errors import (
    InvalidAdapter,
    InvalidBaseModel,
    InvalidRequest,
    ResultsNotStored,
)
from loradash.paths import full_path
from loradash.registry.registry import Change, ProcessRegistry, StoredArtifact
from loradash.runtime.attempt import Attempt, failure
from loradash.runtime.supervisor import Limits
from loradash.runtime.warm_pipeline import WarmPipeline
from loradash.runtime.workspace import Workspace
from loradash.services.adapters.files import AdapterFiles, adapter_file
from loradash.services.adapters.stored import StoredAdapters
from loradash.services.generation.prompts import with_prompts_read
from loradash.services.path_policy import ANYWHERE, PathPolicy
from loradash.services.processes.submission import stored_config, submit
from loradash.storage.store import ObjectStore

_MAX_SEED = 2**32

PipelineMaker = Callable[[WarmGenerator, str, Mapping[str, str]], WarmPipeline]
"""Makes the pipeline of an engine, for the device of this name and with its environment."""


class GenerationService:
    """Generations with pipelines, one per device and engine, that stay warm between them."""

    def __init__(
        self,
        engines: Engines,
        make_pipeline: PipelineMaker,
        workspace: Workspace,
        store: ObjectStore,
        registry: ProcessRegistry,
        limits: Limits,
        address: Address = NO_ADDRESS,
    ) -> None:
        self._engines = engines
        self._make_pipeline = make_pipeline
        self._pipelines: dict[tuple[str, str], WarmPipeline] = {}
        self._pipelines_lock = threading.Lock()
        self._workspace = workspace
        self._store = store
        self._registry = registry
        self._limits = limits
        self._adapter_files = AdapterFiles(store, workspace, engines.adapters_in)
        self._stored = StoredAdapters(registry, store, address)

    def request(
        self, settings: Mapping[str, Any], path_policy: PathPolicy = ANYWHERE
    ) -> GenerationRequest:
        """Return the request that these settings make.

        Without ``base_model`` it is the one that the first adapter was trained for. Raises
        `InvalidConfig`, `InvalidRequest` if no base model is known, and what `check` raises for an
        adapter.
        """
        if "base_model" in settings:
            return validate(GenerationRequest, settings, "generate")
        if not settings.get("adapters"):
            raise InvalidRequest(
                "base_model: missing",
                remedy="Send base_model, or an adapter that says which one it belongs to.",
            )
        # Only well-formed adapters can be asked for theirs.
        probe = validate(GenerationRequest, {**settings, "base_model": "unknown"}, "generate")
        for use in probe.adapters:
            self.check_adapter(use.path, path_policy, probe.engine)
        base_model = self.base_model_of(probe.adapters[0].path, probe.engine)
        return validate(GenerationRequest, {**settings, "base_model": base_model}, "generate")

    def check(
        self, request: GenerationRequest, path_policy: PathPolicy = ANYWHERE
    ) -> GenerationRequest:
        """Check prompts, base model and adapters; return the request as it will be run.

        The seed is drawn here if none is given, so that every attempt draws the same images, and
        local paths are given in full. All problems are told at once. Raises `InvalidAdapter`,
        `InvalidBaseModel`, `InvalidConfig`, `NotFound`.
        """
        base_model = request.base_model
        engine = self._engines.generator(self._engines.choose(request.engine).name)
        request = with_prompts_read(request, self._trained)
        errors = ErrorList("the generation can't start")
        with errors.noted():
            path_policy.check(base_model, InvalidBaseModel, "base_model")
            engine.check_base_model(base_model)
            engine.check_generation(request)
        uses = []
        for use in request.adapters:
            with errors.noted():
                path = self.check_adapter(use.path, path_policy, request.engine)
                uses.append(use.model_copy(update={"path": path}))
        errors.raise_all()
        if base_model not in EMBEDDED_BASE_MODELS:
            base_model = full_path(base_model)
        seed = secrets.randbelow(_MAX_SEED) if request.seed is None else request.seed
        return request.model_copy(
            update={"base_model": base_model, "adapters": tuple(uses), "seed": seed}
        )

    def submit(
        self,
        request: GenerationRequest,
        *,
        request_id: str = "",
        priority: int = 0,
        taking: Change | None = None,
        key: str = "",
    ) -> ProcessRecord:
        """Store the request, then create the record: the generation waits, or is taken at once.

        With an idempotency ``key``, the generation that was submitted with it before is returned.
        Raises `InvalidConfig` for a request too large to be stored as a config.
        """
        process_id = process_id_of(GENERATION.name, key) if key else new_process_id(GENERATION.name)
        now = datetime.now(UTC)
        record = ProcessRecord(
            id=process_id, kind=GENERATION.name, name=request.name, created_at=now, enqueued_at=now,
            updated_at=now, priority=priority, request_id=request_id, summary=_summary(request),
            progress=Progress(total_steps=len(request.prompts) * request.num_images),
            engine=self._engines.choose(request.engine), warnings=merged_warnings(request.warnings),
        )  # fmt: skip
        text = dump_mapping(request.model_dump(mode="json", exclude_defaults=True))
        _read_back(text)
        return submit(self._registry, self._store, record, text, may_exist=bool(key), taking=taking)

    def work(self, attempt: Attempt) -> Terminal:
        """Draw the images that an earlier attempt hasn't stored yet. Done means: all are stored."""
        self._workspace.ensure()
        use = self._engines.use(attempt.record.engine.name)
        attempt.patiently(lambda: attempt.works_with(use))
        config = attempt.patiently(lambda: stored_config(self._store, attempt.record))
        request = _read_back(config)
        adapters = attempt.patiently(
            lambda: tuple(
                self.find_adapter(use.path, attempt.record.engine.name) for use in request.adapters
            )
        )
        folder = self._workspace.generation(attempt.id)
        folder.mkdir(parents=True, exist_ok=True)
        done = tuple(entry.index for entry in self._images(attempt) if entry.index is not None)
        if attempt.stop.count:
            return Stopped(time_s=time.time())
        for text in request.warnings:
            attempt.event(Warned(code="request", message=text))
        ending = self._pipeline(attempt.record, attempt.environment).generate(
            attempt.id,
            request,
            adapters,
            folder,
            attempt.event,
            attempt.stop,
            self._limits.timeout_s,
            self._limits.stall_s,
            done,
        )
        return self._verified(attempt, request, ending)

    def find_adapter(self, reference: str, engine: str | None = None) -> Path:
        """Return the verified file of an adapter, brought to this machine if it isn't here.

        The ``engine`` verifies it, or the default one.

        A reference is the id of the training that made it, its name, the key of a result, alone or
        with our bucket before it, or a path. Raises `InvalidAdapter`, `NotFound`, and
        `ResultsNotStored` for an object that isn't what was stored.
        """
        return self._file_of(reference, self._stored.find(reference), engine)

    def base_model_of(self, reference: str, engine: str | None = None) -> str:
        """The base model that an adapter names as its own. Raises `InvalidAdapter` if none."""
        metadata = self._reader(engine).adapter_metadata(self.find_adapter(reference, engine))
        if not (name := metadata.get("loradash.base_model")):
            raise InvalidAdapter(
                f"adapter {reference} doesn't say which base model it belongs to",
                remedy="Give the base model (--base-model).",
            )
        return name

    def unload_pipeline(self, device: str) -> None:
        """Free the memory of a device's pipelines; waits for a running generation."""
        self._unload(device)

    def close(self) -> None:
        """End the warm pipelines."""
        with self._pipelines_lock:
            pipelines = list(self._pipelines.values())
        for pipeline in pipelines:
            pipeline.close()

    def _pipeline(self, record: ProcessRecord, environment: Mapping[str, str]) -> WarmPipeline:
        """The warm pipeline of a device and an engine; other engines leave the device to it."""
        name = record.engine.name
        self._unload(record.device, but=name)
        key = record.device, name
        with self._pipelines_lock:
            if key not in self._pipelines:
                generator = self._engines.generator(name)
                self._pipelines[key] = self._make_pipeline(generator, record.device, environment)
            return self._pipelines[key]

    def _unload(self, device: str, but: str = "") -> None:
        with self._pipelines_lock:
            others = [
                pipeline
                for (where, engine), pipeline in self._pipelines.items()
                if where == device and engine != but
            ]
        for pipeline in others:
            pipeline.unload()

    def _verified(self, attempt: Attempt, request: GenerationRequest, ending: Terminal) -> Terminal:
        if not isinstance(ending, Done):
            # What was stored isn't drawn again, so an interrupted generation can always go on.
            return (
                ending.model_copy(update={"resumable": True})
                if isinstance(ending, Failed) and ending.code != InvalidAdapter.code
                else ending
            )
        attempt.show("uploading", "images")
        attempt.patiently(attempt.keeper.flush)
        wanted = len(request.prompts) * request.num_images
        stored = len({entry.index for entry in self._images(attempt)})
        if stored != wanted:
            error = ResultsNotStored(
                f"{stored} of {wanted} images were stored", remedy=f"Resume {attempt.id}."
            )
            return failure(error, resumable=True)
        return ending

    def _images(self, attempt: Attempt) -> tuple[StoredArtifact, ...]:
        return attempt.patiently(lambda: self._registry.artifacts(attempt.id, ["image"]))

    def check_adapter(
        self, reference: str, path_policy: PathPolicy, engine: str | None = None
    ) -> str:
        """Return the reference, a path in full; raise if it isn't allowed or isn't an adapter."""
        stored = self._stored.find(reference)
        if stored is None:
            path_policy.check(reference, InvalidAdapter, "adapters")
        path = self._file_of(reference, stored, engine)
        return str(path) if stored is None else self._stored.lasting(reference, stored)

    def _trained(self, name: str) -> str | None:
        """A reference to the trained adapter that a prompt names."""
        found = self._stored.find(name)
        return None if found is None else self._stored.lasting(name, found)

    def _reader(self, engine: str | None) -> WarmGenerator:
        return self._engines.generator(self._engines.choose(engine).name)

    def _file_of(self, reference: str, stored: StoredArtifact | None, engine: str | None) -> Path:
        path = adapter_file(reference) if stored is None else self._adapter_files.path_of(stored)
        self._reader(engine).verify_adapter(path)
        return path


def _read_back(text: str) -> GenerationRequest:
    """Read a request as `GenerationService.submit` has written it. Raises `InvalidConfig`.

    It isn't a config from outside: whatever a prompt may hold was allowed when it came.
    """
    return validate(GenerationRequest, load_mapping(text, "generation"), "generation")


def _summary(request: GenerationRequest) -> dict[str, Any]:
    return {
        "base_model": request.base_model,
        "adapters": [use.model_dump() for use in request.adapters],
        "prompt": request.prompts[0][:200],
        "prompts": len(request.prompts),
        "seed": request.seed,
    }


def parse_adapter_use(text: str) -> AdapterUse:
    """Parse ``REFERENCE`` or ``REFERENCE:WEIGHT`` as an option gives them, with its own errors."""
    try:
        return AdapterUse.model_validate(text)
    except ValidationError as error:
        problem = error.errors()[0]
        raise InvalidAdapter(
            f"adapter {text[:200]!r}: {''.join(f'{part}: ' for part in problem['loc'])}"
            f"{problem['msg'].removeprefix('Value error, ')}",
            remedy="Give a process id or a .safetensors file, and :WEIGHT from -10 to 10 after it; "
            "1 is as trained, 0 has no effect.",
        ) from error
