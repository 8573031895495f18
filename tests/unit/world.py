"""A whole server without engine processes, GPU and network, for tests that ask it things.

The parts are the real ones, put together as `loradash.wiring` does it; only nothing takes processes
from the queue. What an engine would have done is done here by hand, through the same changes.
"""

import contextlib
import hashlib
import io
import threading
from datetime import UTC, datetime, timedelta

from fastapi.testclient import TestClient
from PIL import Image

from loradash.api.app import Server, create_app
from loradash.domain import process as changes
from loradash.domain.ids import new_process_id
from loradash.domain.kinds import kind_names
from loradash.domain.process import Problem, ProcessRecord, Progress
from loradash.engines.catalogue import Engines
from loradash.engines.diffusers.engine import DiffusersEngine
from loradash.executors.executor import NoExecutor
from loradash.protocol.dispatch import Dispatcher
from loradash.protocol.requests import REQUEST_TYPES
from loradash.registry.memory import MemoryRegistry
from loradash.registry.registry import Metric, NewLine
from loradash.runtime.gpu import Machine
from loradash.runtime.lease_watch import LeaseWatch
from loradash.runtime.results import NewArtifact, ResultKeeper
from loradash.runtime.supervisor import Limits
from loradash.runtime.workspace import Workspace
from loradash.services.adapters.service import AdapterService
from loradash.services.adapters.stored import StoredAdapters
from loradash.services.changes.hub import ChangeHub
from loradash.services.datasets.editing import DatasetEditor
from loradash.services.datasets.store import DatasetStore
from loradash.services.datasets.upload_sessions import UploadSessions
from loradash.services.generation.service import GenerationService
from loradash.services.path_policy import PathPolicy
from loradash.services.processes.service import ProcessService
from loradash.services.processes.starting import ProcessStarter
from loradash.services.results.results import make_results
from loradash.services.system.health import HealthService
from loradash.services.system.log_files import LogFiles
from loradash.services.training.service import TrainingService
from loradash.services.use_cases import Services
from loradash.storage import keys
from loradash.storage.memory import MemoryStore
from loradash.telemetry import logging
from loradash.telemetry.metrics import Metrics
from tests.clock import Clock
from tests.unit.tensor_bytes import tensors

URL = "http://127.0.0.1:8000"
TOKEN = "the owner's token"
MISSING = "train_00000000000000000000"

TRAINING = "dataset: cats\nbase_model: emoji-base\nname: cat\ntrigger_word: sks\nsteps: 10\n"


def no_pipeline(engine, name, environment):
    raise AssertionError("nothing is drawn in these tests")


class World:
    """The parts of a server, and a short way to ask it."""

    def __init__(
        self,
        root,
        *,
        registry=None,
        store=None,
        debug=False,
        max_inline_bytes=2**20,
        machine=None,
    ):
        self.root = root
        self.workspace = Workspace(root / "ws")
        self.workspace.ensure()
        self.registry = MemoryRegistry() if registry is None else registry
        self.store = MemoryStore() if store is None else store
        self.engine = DiffusersEngine(device="cpu", threads=1, offline=True)
        engines = Engines([self.engine])
        self.datasets = DatasetStore(self.store)
        self.metrics = Metrics(REQUEST_TYPES, kind_names())
        limits = Limits(timeout_s=60, stall_s=60, grace_s=1)
        self.executor = executor = NoExecutor()
        self.clock = Clock()
        self.watch = LeaseWatch(600, look_every_s=5, clock=self.clock)
        processes = ProcessService(self.registry, self.store, executor, self.watch)
        results = make_results(
            self.registry, self.store, self.workspace, max_inline_bytes, engines=engines
        )
        training = TrainingService(
            engines, self.workspace, self.store, self.registry, self.datasets, limits
        )
        generation = GenerationService(
            engines, no_pipeline, self.workspace, self.store, self.registry, limits
        )
        path_policy = PathPolicy([self.workspace.root])
        self.services = Services(
            starting=ProcessStarter(training, generation, executor, path_policy),
            training=training,
            generation=generation,
            processes=processes,
            results=results,
            adapters=AdapterService(
                self.registry, self.store, results, StoredAdapters(self.registry, self.store)
            ),
            datasets=self.datasets,
            uploads=UploadSessions(self.store, self.datasets),
            dataset_editor=DatasetEditor(self.store, self.datasets, self.workspace.root / "cache"),
            health=HealthService(
                self.registry, self.store, machine or Machine(None), self.workspace, processes,
                self.metrics, "local",
            ),
            log_files=LogFiles(self.workspace.logs),
        )  # fmt: skip
        self.dispatcher = Dispatcher(self.services, self.metrics, debug=debug)

    def ask(self, kind, /, **fields):
        return self.dispatcher.answer({"type": kind, **fields}, base_url=URL)

    def server(self, **settings):
        settings = {"start": lambda: None, "stop": lambda: None, **settings}
        return Server(
            dispatcher=self.dispatcher, services=self.services, metrics=self.metrics,
            changes=ChangeHub(self.registry), store=self.store, **settings,
        )  # fmt: skip

    def client(self, **settings):
        return TestClient(
            create_app(self.server(**settings)), base_url=URL, raise_server_exceptions=False
        )

    # Processes, as engines and executors leave them

    def waiting(self, kind="training", name="cat", *, age=timedelta(), **fields):
        """A process that waits, with its config in the store."""
        now = datetime.now(UTC) - age
        process_id = new_process_id(kind, now.timestamp())
        record = ProcessRecord(
            id=process_id, kind=kind, name=name, created_at=now, enqueued_at=now, updated_at=now,
            progress=Progress(total_steps=10), summary=SUMMARIES[kind], **fields,
        )  # fmt: skip
        self.store.put(keys.result_config(process_id), CONFIGS[kind].encode())
        return self.registry.create(record)

    def running(self, kind="training", name="cat", *, step=0, lease_s=600.0, **fields):
        record = self.waiting(kind, name, **fields)
        return self.started(record.id, step=step, lease_s=lease_s)

    def started(self, process_id, *, step=0, lease_s=600.0):
        now = datetime.now(UTC)
        self.registry.change(
            process_id,
            lambda one: changes.taken(
                one, owner="host/1", token=TOKEN, now=now, lease_s=lease_s, device="cpu"
            ),
        )
        return self.progressed(process_id, step)

    def progressed(self, process_id, step, loss=0.5):
        return self.registry.change(
            process_id,
            lambda one: changes.renewed(
                one, TOKEN, now=datetime.now(UTC), lease_s=600,
                progress=one.progress.model_copy(
                    update={"phase": "training", "step": step, "loss": loss}
                ),
            ),
        )  # fmt: skip

    def said(self, process_id, *texts):
        now = datetime.now(UTC)
        lines = [NewLine(1, now, "engine", text) for text in texts]
        self.registry.append_log(process_id, TOKEN, lines)

    def measured(self, process_id, *steps, loss=0.5):
        now = datetime.now(UTC)
        rows = [Metric(step=n, attempt=1, time=now, loss=loss, learning_rate=0.1) for n in steps]
        self.registry.append_metrics(process_id, TOKEN, rows)

    def completed(self, process_id, *, at=None):
        now = at or datetime.now(UTC)
        prefix = keys.results(process_id)
        return self.registry.change(
            process_id, lambda one: changes.completed(one, TOKEN, now=now, output_prefix=prefix)
        )

    def failed(self, process_id, message="the engine crashed", code="engine_crashed", *, at=None):
        now = at or datetime.now(UTC)
        problem = Problem(code=code, message=message, remedy="Look at its log.", resumable=True)
        return self.registry.change(
            process_id, lambda one: changes.failed(one, TOKEN, problem, now)
        )

    def cancelled(self, process_id, *, at=None):
        now = at or datetime.now(UTC)
        return self.registry.change(process_id, lambda one: changes.cancelled(one, TOKEN, now))

    def keep(self, process_id, kind, name, data, **fields):
        """Write a file where the engine would, and store it."""
        path = self.folder_of(process_id, kind) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        keeper = ResultKeeper(self.registry, self.store, process_id, TOKEN)
        try:
            keeper.now([NewArtifact(kind, path, name, **fields)])
        finally:
            keeper.close()
        found = self.registry.artifacts(process_id, [kind])
        return next(entry for entry in found if entry.name == name)

    def folder_of(self, process_id, kind):
        if kind == "image":
            return self.workspace.generation(process_id)
        folders = {"lora": "lora", "sample": "samples", "checkpoint": "checkpoints"}
        return self.workspace.training(process_id) / folders.get(kind, "")

    def trained(self, name="cat", *, base_model="emoji-base", **fields):
        """A completed training with its adapter, a preview, a checkpoint and its logs."""
        process_id = self.running("training", name, step=10, **fields).id
        self.keep(process_id, "config", "config.yaml", TRAINING.encode())
        self.keep(process_id, "job", "job.json", b"{}")
        self.keep(process_id, "lora", f"{name}.safetensors", adapter(base_model))
        self.keep(process_id, "sample", "step-000000010-0.png", picture(1), step=10, index=0)
        for part in ("adapter.safetensors", "state.safetensors", "checkpoint.json"):
            self.keep(process_id, "checkpoint", f"step-000000010/{part}", part.encode(), step=10)
        self.keep(process_id, "log", "log.txt", b"step 10\n")
        self.keep(process_id, "metrics", "events.jsonl", b"{}\n")
        return self.completed(process_id)

    def drawn(self, images=1, **fields):
        """A completed generation."""
        process_id = self.running("generation", "image", **fields).id
        for index in range(images):
            self.keep(process_id, "image", f"image_{index:04d}.png", picture(index), index=index)
        return self.completed(process_id)

    def everything(self):
        """All that a request could change, except logs."""
        records, cursor = [], ""
        while True:
            page = self.registry.page(limit=100, cursor=cursor)
            records += page.records
            cursor = page.next_cursor
            if not cursor:
                break
        return {
            "paused": self.registry.paused(),
            "records": {one.id: one.model_dump(mode="json") for one in records},
            "artifacts": {one.id: self.registry.artifacts(one.id) for one in records},
            "objects": {info.key: info.etag for info in self.store.list()},
            "files": {
                path.relative_to(self.root).as_posix(): _content(path)
                for path in sorted(self.root.rglob("*"))
                if not path.is_relative_to(self.workspace.logs)
                and not path.name.startswith("registry.sqlite3")
            },
        }


class HeldRegistry(MemoryRegistry):
    """A registry that doesn't answer lists until it is released."""

    def __init__(self):
        super().__init__()
        self.released = threading.Event()

    def page(self, **conditions):
        assert self.released.wait(30)
        return super().page(**conditions)


class BrokenRegistry(MemoryRegistry):
    """A registry with a bug: once it is broken, everything that is asked of it raises."""

    broken = False

    def __getattribute__(self, name):
        if not name.startswith("_") and name != "broken" and self.broken:
            raise RuntimeError(f"the bug of the registry, met in {name}")
        return super().__getattribute__(name)


SUMMARIES = {
    "training": {
        "base_model": "emoji-base", "trigger_word": "sks", "datasets": ["cats"], "steps": 10,
    },
    "generation": {
        "base_model": "emoji-base", "adapters": [{"path": MISSING, "weight": 1.0}],
        "prompt": "a cat", "prompts": 1, "seed": 3,
    },
}  # fmt: skip
CONFIGS = {
    "training": TRAINING,
    "generation": "base_model: emoji-base\nprompts: [a cat]\nseed: 3\n",
}


def picture(number=0, size=(16, 16)):
    """A PNG; another one for each number."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number % 256, 30, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def adapter(base_model="emoji-base", data=b"\0" * 8):
    """A whole LoRA file, as far as its header goes."""
    metadata = {"loradash.base_model": base_model} if base_model else None
    shapes = {"unet.x.lora_A.weight": (1, 2), "unet.x.lora_B.weight": (2, 1)}
    return tensors(shapes, metadata, values={"unet.x.lora_A.weight": data})


def _content(path):
    if path.is_symlink():
        return f"link to {path.readlink()}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"


@contextlib.contextmanager
def logged():
    """Send logs into a text, one JSON object a line."""
    stream = io.StringIO()
    logging.configure(None, "info", as_json=True, stream=stream)
    try:
        yield stream
    finally:
        logging.close()
