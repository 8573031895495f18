import base64
import contextlib
import fcntl
import hashlib
import io
import json
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from loradash.domain import process as changes
from loradash.domain.events import Done, Failed, StepDone, Stopped, parse_event
from loradash.domain.process import Status
from loradash.domain.training_text import parse_training, parse_training_text, training_text
from loradash.engines.catalogue import Engines
from loradash.engines.engine import Artifact, Checkpoint, Command
from loradash.errors import (
    ConflictingState,
    DiskFull,
    InvalidAdapter,
    InvalidBaseModel,
    InvalidCheckpoint,
    InvalidDataset,
    LoradashError,
    NotFound,
    RegistryUnavailable,
)
from loradash.protocol.requests import parse_request
from loradash.registry.memory import MemoryRegistry
from loradash.registry.sql import SqlRegistry
from loradash.runtime.orphans import ChildRecords
from loradash.runtime.owner import this_owner
from loradash.runtime.supervisor import StopRequest
from loradash.services.path_policy import ANYWHERE, PathPolicy
from loradash.services.training import service as training_module
from loradash.services.training.service import TrainingService
from loradash.storage.keys import published
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore

from .conftest import PRELUDE
from .here import LIMITS, TIMING, Here
from .published import content, names, real_key
from .waits import until

ADAPTER = b"LORA weights"
SHA256 = hashlib.sha256(ADAPTER).hexdigest()
TRAINS = f"""
emit("phase", phase="starting")
emit("step", step=1, total_steps=2, loss=0.5, learning_rate=0.1)
emit("step", step=2, total_steps=2, loss=0.25, learning_rate=0.1)
print("trained")
os.makedirs("lora", exist_ok=True); os.makedirs("samples", exist_ok=True)
open("lora/mine.safetensors", "wb").write({ADAPTER!r})
open("samples/0002_0.png", "wb").write(b"png")
emit("sample", step=2, index=0, path=os.path.abspath("samples/0002_0.png"), prompt="a cat", seed=0)
emit("done", step=2, path=os.path.abspath("lora/mine.safetensors"), sha256={SHA256!r})
"""


class ScriptedEngine:
    """An engine whose training is a script; adapters of it begin with ``LORA``."""

    name = "scripted"
    version = "1"

    def __init__(self, body=TRAINS):
        self.body = body
        self.size = None
        self.finds = ("lora", "sample", "job")

    def check_training(self, config):
        return ("a warning",)

    def check_texts(self, config, data):
        return ()

    def native_size(self, config):
        return self.size

    def require_installed(self):
        pass

    def write_training_job(self, process_id, config, reports, folder, created_at):
        self.job_file(folder).write_text(
            json.dumps(
                {
                    "id": process_id,
                    "created_at": created_at.isoformat(),
                    "images": sum(len(report.images) for report in reports),
                    "folders": [str(report.folder) for report in reports],
                }
            )
        )

    def training_command(self, folder):
        if not self.job_file(folder).is_file():
            raise InvalidCheckpoint("there is no job", remedy="Start a new training.")
        script = folder / "engine_script.py"
        script.write_text(PRELUDE + self.body)
        return Command(argv=(sys.executable, "-S", "-E", str(script)), working_directory=folder)

    def parse(self, line):
        return parse_event(line)

    def verify_adapter(self, path):
        return self.adapter_metadata(path)

    def adapter_metadata(self, path):
        if not path.read_bytes().startswith(b"LORA"):
            raise InvalidAdapter(f"{path}: no LoRA", remedy="Train again.")
        return {}

    def job_file(self, folder):
        return folder / "job.json"

    def checkpoint_folder(self, folder):
        return folder / "checkpoints"

    def checkpoints(self, folder):
        found = sorted(folder.glob("checkpoints/step-*"))
        return [Checkpoint(one, tuple(sorted(one.iterdir()))) for one in found]

    def has_checkpoint(self, folder):
        return any(folder.glob("checkpoints/step-*"))

    def artifacts(self, folder):
        found = [
            *(Artifact("lora", path) for path in sorted(folder.glob("lora/*"))),
            *(Artifact("sample", path) for path in sorted(folder.glob("samples/*"))),
            Artifact("job", folder / "job.json"),
        ]
        return [artifact for artifact in found if artifact.kind in self.finds]


class FailingStore(MemoryStore):
    """A store on whose disk there is no room for keys that ``is_full`` tells."""

    def __init__(self, is_full=lambda key: True):
        super().__init__()
        self.is_full = is_full

    def put_file(self, key, path):
        if self.is_full(key):
            raise DiskFull("the disk is full", remedy="Free space.")
        return super().put_file(key, path)


@pytest.fixture
def engine():
    return ScriptedEngine()


@pytest.fixture
def make(tmp_path, engine):
    """Return a function that makes all the parts around a training service."""

    def make_here(**parts):
        here = Here(tmp_path / "workspace", **parts)
        here.service = TrainingService(
            Engines([engine], engine.name), here.workspace, here.store, here.registry,
            here.datasets, LIMITS, ChildRecords(here.workspace.run),
        )  # fmt: skip
        here.works["training"] = here.service
        return here

    return make_here


@pytest.fixture
def here(make):
    return make()


@pytest.fixture
def service(here):
    return here.service


@pytest.fixture
def store(here):
    return here.store


@pytest.fixture
def workspace(here):
    return here.workspace


@pytest.fixture
def config(save_image):
    folder = save_image("a.png", caption="a cat").parent
    return parse_training({"dataset": str(folder), "base_model": "emoji-base", "name": "mine"})


@pytest.fixture
def process_id(service, config):
    return service.submit(service.check(config)).id


def run(here, process_id, on_event=lambda event: None, stop=None):
    return here.run(process_id, on_event, stop)


PREPARED = ("config.yaml", "job.json", "manifest.json")


def keys_of(process_id, *names):
    return [f"results/{process_id}/{name}" for name in sorted(names)]


def test_checking_reads_the_data_and_writes_nothing(service, config, workspace):
    checked = service.check(config)
    assert checked.warnings == ("a warning",)
    assert [image.caption for image in checked.reports[0].images] == ["a cat"]
    assert not workspace.root.exists()


def test_checking_refuses_a_dataset_that_can_not_be_used(service, config, tmp_path):
    (tmp_path / "data/b.png").write_bytes(b"broken")
    with pytest.raises(InvalidDataset) as caught:
        service.check(config)
    assert caught.value.problems[0].startswith("b.png")


@pytest.mark.parametrize(
    ("folder", "error"),
    [
        ("~nobody-has-this-name/images", InvalidDataset),
        ("x" * 300, InvalidDataset),
        ("/missing", InvalidDataset),
        ("./missing", InvalidDataset),
        ("missing", NotFound),  # it could be the name of an uploaded dataset
    ],
)
def test_checking_refuses_a_dataset_folder_that_is_not_there(service, folder, error):
    config = parse_training({"dataset": folder, "base_model": "emoji-base"})
    with pytest.raises(error) as caught:
        service.check(config)
    assert caught.value.remedy


def test_submitting_stores_the_config_and_a_record_that_waits(here, service, config):
    record = service.submit(service.check(config), request_id="req_1", priority=3)
    assert here.keys() == keys_of(record.id, "config.yaml")
    assert parse_training_text(content(here.store, here.keys()[0]).decode()) == config
    assert here.record(record.id) == record
    assert (record.kind, record.name, record.status) == ("training", "mine", Status.PENDING)
    assert (record.request_id, record.priority) == ("req_1", 3)
    assert record.progress.total_steps == config.process.train.updates
    assert record.summary["base_model"] == "emoji-base"
    assert [waiting.id for waiting in here.registry.pending("training")] == [record.id]
    assert not here.workspace.root.exists()


def test_a_training_that_is_taken_at_its_submit_never_waits(here, service, config):
    record = service.submit(service.check(config), taking=here.runner.taking("local"))
    assert record.status is Status.RUNNING
    assert here.registry.pending() == ()
    with pytest.raises(ConflictingState):
        here.run_beside_its_owner(record.id)
    assert here.runner.run(record, None, StopRequest()).type == "done"
    assert here.record(record.id).attempt_count == 1


def test_the_first_attempt_creates_a_folder_with_config_and_job(here, service, config, process_id):
    run(here, process_id)
    folder = service.folder(process_id)
    job = json.loads((folder / "job.json").read_text())
    assert (job["id"], job["images"]) == (process_id, 1)
    assert job["created_at"] == here.record(process_id).created_at.isoformat()
    assert parse_training_text((folder / "config.yaml").read_text()) == config


def test_the_job_is_written_once_and_stored(here, service, engine, process_id):
    engine.body = 'emit("failed", code="internal", message="x")'
    run(here, process_id)
    job = service.folder(process_id) / "job.json"
    assert content(here.store, f"results/{process_id}/job.json") == job.read_bytes()
    job.write_text("as the first attempt wrote it")
    engine.body = TRAINS
    assert run(here, process_id).type == "done"
    assert job.read_text() == "as the first attempt wrote it"


def test_submitting_keeps_the_text_that_the_user_gave(here, service, config):
    text = "# my notes\ndataset: x\nbase_model: ü\n"
    record = service.submit(service.check(config), text)
    assert content(here.store, f"results/{record.id}/config.yaml").decode("utf-8") == text


def test_a_random_seed_is_drawn_at_the_submit_and_stands_in_the_stored_config(
    here, service, config
):
    text = training_text(config).replace("training_seed: 0", "training_seed: -1")
    checked = service.check(parse_training_text(text))
    records = [service.submit(checked, text) for _ in range(2)]
    seeds = [
        parse_training_text(content(here.store, f"results/{one.id}/config.yaml").decode()).seed
        for one in records
    ]
    assert min(seeds) >= 0
    assert seeds[0] != seeds[1]


def sizes(text):
    process = parse_training_text(text).process
    return process.datasets[0].resolution, process.sample.width, process.sample.height


def test_a_size_that_is_left_open_is_recorded_in_the_stored_config(here, service, engine, config):
    engine.size = 64
    record = service.submit(service.check(config))
    assert sizes(content(here.store, f"results/{record.id}/config.yaml").decode()) == ([64], 64, 64)


def test_a_size_that_only_the_machine_that_trains_knows_is_recorded_there(
    here, engine, process_id, service
):
    engine.size = 64
    run(here, process_id)
    assert sizes((service.folder(process_id) / "config.yaml").read_text()) == ([64], 64, 64)


def test_a_training_that_has_begun_keeps_its_sizes(here, engine, process_id, service):
    engine.body = 'emit("failed", code="internal", message="x")'
    run(here, process_id)
    engine.size, engine.body = 64, TRAINS
    assert run(here, process_id).type == "done"
    assert sizes((service.folder(process_id) / "config.yaml").read_text()) == ([512], 512, 512)


def test_a_size_far_from_the_base_models_own_is_a_warning(service, engine, config):
    engine.size = 64
    document = {**config.model_dump(mode="json", exclude_unset=True)}
    far = parse_training(document, {"datasets.0.resolution": [512]})
    assert any("512 is far from 64" in text for text in service.check(far).warnings)


def test_the_text_that_the_user_gave_is_what_is_worked_on(here, service, config, tmp_path):
    text = f"# my notes\nname: ü\ndataset: {tmp_path / 'data'}\nbase_model: emoji-base\n".replace(
        "name: ü", "name: theirs"
    )
    record = service.submit(service.check(config), text)
    assert run(here, record.id).type == "done"
    assert (service.folder(record.id) / "config.yaml").read_text() == text


def test_a_submit_whose_config_can_not_be_stored_leaves_no_record(make, config):
    class ReadOnly(MemoryStore):
        def put(self, key, data):
            raise DiskFull("the disk is full")

    here = make(store=ReadOnly())
    with pytest.raises(DiskFull):
        here.service.submit(here.service.check(config))
    assert here.registry.page().records == ()
    assert not here.workspace.root.exists()


def test_a_submit_without_a_registry_leaves_nothing_that_could_run(make, config):
    class Unavailable(MemoryRegistry):
        def create(self, record, **_):
            raise RegistryUnavailable("the database is gone")

    here = make(registry=Unavailable())
    with pytest.raises(RegistryUnavailable):
        here.service.submit(here.service.check(config))
    assert here.registry.page().records == ()
    assert not here.workspace.root.exists()


@pytest.mark.parametrize(
    ("error", "code"),
    [(InvalidBaseModel("gone"), "base_model_invalid"), (OSError("x"), "internal")],
)
def test_a_job_that_can_not_be_written_fails_the_training_and_can_be_tried_again(
    here, service, engine, process_id, monkeypatch, error, code
):
    def fail(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(engine, "write_training_job", fail)
        ending = run(here, process_id)
    assert (ending.type, ending.code, ending.resumable) == ("failed", code, True)
    assert here.record(process_id).status is Status.FAILED
    assert not (service.folder(process_id) / "job.json").exists()
    assert here.keys() == keys_of(process_id, "config.yaml")
    assert here.artifacts(process_id) == {}
    assert run(here, process_id).type == "done"


def test_the_newest_training_is_listed_first(here, service, config):
    checked = service.check(config)
    first, second = service.submit(checked).id, service.submit(checked).id
    assert [record.id for record in here.registry.page().records] == [second, first]


def test_a_training_is_done_when_its_adapter_is_verified_and_stored(
    here, service, store, process_id
):
    events = []
    ending = run(here, process_id, events.append)
    assert isinstance(ending, Done)
    assert [event.type for event in events] == ["phase", "step", "step", "sample"]
    assert content(store, f"results/{process_id}/lora/mine.safetensors") == ADAPTER
    assert service.adapter(process_id).read_bytes() == ADAPTER
    assert names(store, f"results/{process_id}") == [
        f"results/{process_id}/{name}"
        for name in (
            "config.yaml",
            "job.json",
            "logs/events.jsonl",
            "logs/log.txt",
            "lora/mine.safetensors",
            "manifest.json",
            "samples/0002_0.png",
        )
    ]


def test_the_manifest_lists_every_result_with_its_hash(here, store, process_id):
    run(here, process_id)
    manifest = json.loads(content(store, f"results/{process_id}/manifest.json"))
    assert manifest["process_id"] == process_id
    keys = set(names(store)) - {f"results/{process_id}/manifest.json"}
    assert {published(entry["key"]) for entry in manifest["files"]} == keys
    for entry in manifest["files"]:
        data = store.get(entry["key"])
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert entry["size_bytes"] == len(data)


@pytest.mark.parametrize(
    "damage",
    [
        'open("lora/mine.safetensors", "ab").write(b"!")',
        'open("lora/mine.safetensors", "wb").write(b"")',
        'os.remove("lora/mine.safetensors")',
    ],
)
def test_a_training_whose_adapter_is_not_the_one_written_has_failed(
    here, engine, process_id, damage
):
    engine.body = TRAINS.replace('emit("done"', f'{damage}\nemit("done"')
    ending = run(here, process_id)
    assert isinstance(ending, Failed)
    assert ending.resumable
    assert process_id in ending.remedy
    assert here.record(process_id).status is Status.FAILED
    assert here.keys() == keys_of(process_id, *PREPARED, "samples/0002_0.png")
    assert here.artifacts(process_id, "lora") == {}


@pytest.mark.parametrize(
    "fields", ["step=2", 'path="", sha256=""', 'path="lora/none", sha256=None']
)
def test_done_without_an_adapter_is_a_failure(here, engine, process_id, fields):
    engine.body = f'emit("done", {fields})'
    assert run(here, process_id).type == "failed"
    assert here.record(process_id).status is Status.FAILED
    assert here.keys() == keys_of(process_id, *PREPARED)


def test_an_adapter_that_does_not_verify_is_a_failure(here, engine, process_id):
    other = b"something else"
    engine.body = TRAINS.replace(repr(ADAPTER), repr(other)).replace(
        SHA256, hashlib.sha256(other).hexdigest()
    )
    ending = run(here, process_id)
    assert (ending.type, ending.code) == ("failed", "adapter_invalid")
    assert here.record(process_id).error.code == "adapter_invalid"
    assert here.keys() == keys_of(process_id, *PREPARED, "samples/0002_0.png")


def test_an_adapter_that_is_not_among_the_results_is_a_failure(here, engine, process_id):
    engine.finds = ("config", "log")
    ending = run(here, process_id)
    assert ending.type == "failed"
    assert here.record(process_id).error.code == "results_not_stored"


@pytest.mark.parametrize("full", ["", "/job.json", "/lora/"])
def test_a_store_that_fails_makes_the_training_fail_and_a_second_run_can_repair_it(
    make, config, full
):
    store = FailingStore(lambda key: full in key)
    here = make(store=store)
    process_id = here.service.submit(here.service.check(config)).id
    ending = run(here, process_id)
    assert (ending.type, ending.code) == ("failed", "disk_full")
    assert ending.resumable
    record = here.record(process_id)
    assert (record.status, record.error.code) == (Status.FAILED, "disk_full")
    assert record.error.resumable
    assert here.artifacts(process_id, "lora") == {}
    store.is_full = lambda key: False
    assert run(here, process_id).type == "done"
    assert here.record(process_id).status is Status.COMPLETED
    assert content(store, f"results/{process_id}/lora/mine.safetensors") == ADAPTER


def test_a_sample_that_can_not_be_stored_at_first_is_stored_in_the_end(make, config):
    store = FailingStore(lambda key: False)
    here = make(store=store)
    process_id = here.service.submit(here.service.check(config)).id

    def full_for_one_sample(key):
        full = "/samples/" in key
        if full:
            store.is_full = lambda key: False
        return full

    store.is_full = full_for_one_sample
    assert run(here, process_id).type == "done"
    assert content(store, f"results/{process_id}/samples/0002_0.png") == b"png"
    assert "0002_0.png" in here.artifacts(process_id, "sample")


def test_a_training_whose_samples_can_not_be_stored_has_failed_in_every_book(make, config):
    store = FailingStore(lambda key: "/samples/" in key)
    here = make(store=store)
    process_id = here.service.submit(here.service.check(config)).id
    ending = run(here, process_id)
    assert (ending.type, ending.resumable) == ("failed", True)
    assert here.record(process_id).status is Status.FAILED
    assert here.service.history(process_id).ending.type == "failed"
    store.is_full = lambda key: False
    assert run(here, process_id).type == "done"


def test_a_program_that_dies_while_it_stores_leaves_no_word_of_completion(make, config):
    class DyingStore(MemoryStore):
        """Ends the program at the adapter, as a SIGKILL would."""

        def put_file(self, key, path):
            if "/lora/" in key:
                raise SystemExit(9)
            return super().put_file(key, path)

    here = make(store=DyingStore())
    process_id = here.service.submit(here.service.check(config)).id
    with pytest.raises(SystemExit):
        run(here, process_id)
    assert here.service.history(process_id).ending is None
    record = here.record(process_id)
    assert record.status is Status.RUNNING  # until its lease runs out
    assert record.ended_at is None
    assert here.artifacts(process_id, "lora") == {}
    assert not is_held(here, process_id)


def is_held(here, process_id):
    """Whether somebody holds the folder of a training."""
    with (here.workspace.training(process_id) / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_training_is_running_only_while_a_program_works_on_it(here, process_id):
    seen = []
    assert here.record(process_id).status is Status.PENDING
    run(
        here,
        process_id,
        lambda event: seen.append((here.record(process_id).status, is_held(here, process_id))),
    )
    assert set(seen) == {(Status.RUNNING, True)}
    assert here.record(process_id).status is Status.COMPLETED
    assert not is_held(here, process_id)


def test_a_failed_training_stores_no_results(here, service, engine, process_id):
    engine.body = 'emit("failed", code="out_of_memory", message="full")'
    assert run(here, process_id).code == "out_of_memory"
    assert here.keys() == keys_of(process_id, *PREPARED)
    with pytest.raises(NotFound, match="no finished adapter"):
        service.adapter(process_id)


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_crash_can_be_resumed_if_there_is_a_checkpoint(here, engine, process_id, checkpoint):
    engine.body = ('os.makedirs("checkpoints/step-5")\n' if checkpoint else "") + "sys.exit(1)"
    ending = run(here, process_id)
    assert (ending.code, ending.resumable) == ("engine_crashed", checkpoint)
    record = here.record(process_id)
    assert record.status is Status.FAILED
    assert (record.error.code, record.error.resumable) == ("engine_crashed", checkpoint)
    assert record.attempt.ending == "failed"


def test_an_unknown_training_is_not_found(here, service, workspace):
    for process_id in ("train_00000000000000000000", "nonsense", "../../etc", ""):
        for ask in (lambda id_: run(here, id_), service.folder, service.adapter, service.history):
            with pytest.raises(NotFound) as caught:
                ask(process_id)
            assert caught.value.remedy
    assert not workspace.root.exists()


def test_a_job_that_is_neither_on_disk_nor_in_the_store_can_not_be_run(
    here, service, engine, process_id
):
    engine.body = 'emit("failed", code="internal", message="x")'
    run(here, process_id)
    (service.folder(process_id) / "job.json").unlink()
    here.store.delete(real_key(here.store, f"results/{process_id}/job.json"))
    assert run(here, process_id).code == "not_found"
    assert here.record(process_id).error.code == "not_found"


def test_a_job_that_the_engine_refuses_fails_the_training(here, engine, process_id, monkeypatch):
    def refuse(folder):
        raise InvalidCheckpoint("the job can't be read", remedy="Start a new training.")

    monkeypatch.setattr(engine, "training_command", refuse)
    ending = run(here, process_id)
    assert (ending.code, ending.remedy) == ("checkpoint_invalid", "Start a new training.")
    assert here.record(process_id).error.code == "checkpoint_invalid"


def test_a_training_is_run_by_one_program_at_a_time(here, engine, process_id):
    refused = []

    def run_again(event):
        if event.type == "phase":
            with pytest.raises(ConflictingState, match=process_id) as caught:
                run(here, process_id)
            refused.append(caught.value)

    assert run(here, process_id, run_again).type == "done"
    assert len(refused) == 1
    assert here.record(process_id).attempt_count == 1


def test_a_folder_that_another_program_still_holds_is_not_written(
    here, service, process_id, workspace, monkeypatch
):
    """An engine that has lost its parent may be writing its last checkpoint there."""
    monkeypatch.setattr(training_module, "_LOCK_PATIENCE_S", 0.3)
    folder = workspace.training(process_id)
    folder.mkdir(parents=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ending = run(here, process_id)
    assert (ending.code, ending.resumable) == ("already_running", True)
    assert process_id in ending.message
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert run(here, process_id).type == "done"


def test_a_folder_that_gets_free_soon_is_waited_for(here, process_id, workspace):
    folder = workspace.training(process_id)
    folder.mkdir(parents=True)
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        timer = threading.Timer(0.5, lock.close)
        timer.start()
        assert run(here, process_id).type == "done"


def test_a_stop_is_heard_while_a_folder_is_waited_for(here, process_id, workspace):
    folder = workspace.training(process_id)
    folder.mkdir(parents=True)
    stop = StopRequest()
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Timer(0.3, stop, ("cancel",)).start()
        started = time.monotonic()
        ending = run(here, process_id, stop=stop)
    assert ending.type == "stopped"
    assert time.monotonic() - started < 3
    assert here.record(process_id).status is Status.CANCELLED


def test_the_engine_holds_the_folder_itself(here, engine, process_id):
    """So that nobody else begins while it lives, even if its parent has died."""
    engine.body = (
        "names = [os.path.realpath(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd')]\n"
        'emit("warning", code="x", message=str(os.path.abspath(".lock") in names))\n' + TRAINS
    )
    events = []
    run(here, process_id, events.append)
    assert events[0].message == "True"


def test_the_engine_is_remembered_while_it_runs(here, process_id):
    seen = []

    def look(_event):
        for path in here.workspace.run.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                seen.append(json.loads(path.read_text())["what"])

    run(here, process_id, look)
    assert set(seen) == {process_id}
    assert list(here.workspace.run.iterdir()) == []


def test_two_trainings_run_side_by_side(here, service, config):
    checked = service.check(config)
    ids = [service.submit(checked).id for _ in range(2)]
    endings = {}
    threads = [
        threading.Thread(target=lambda id_=id_: endings.update({id_: run(here, id_).type}))
        for id_ in ids
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert endings == dict.fromkeys(ids, "done")


def test_history_tells_what_was_told(here, service, process_id):
    told = []
    ending = run(here, process_id, told.append)
    history = service.history(process_id)
    assert history.steps == [event for event in told if event.type == "step"]
    assert history.samples == [event for event in told if event.type == "sample"]
    assert history.ending == ending


def test_history_of_a_training_that_never_ran_is_empty(service, workspace, process_id):
    workspace.training(process_id).mkdir(parents=True)
    assert service.history(process_id) == ([], [], None)


def test_history_takes_the_last_attempts_word_for_each_step(here, service, engine, process_id):
    step = 'emit("step", step={}, total_steps=4, loss={}, learning_rate=0.1)\n'
    engine.body = (
        'emit("phase", phase="starting")\n'
        + "".join(step.format(n, 1) for n in (1, 2, 3))
        + 'emit("sample", step=3, index=0, path="old", prompt="", seed=0)\n'
        + "os._exit(1)"
    )
    assert run(here, process_id).type == "failed"
    engine.body = (
        'emit("phase", phase="starting")\n'
        'emit("resumed", step=2, path="checkpoints/step-2")\n'
        + "".join(step.format(n, 2) for n in (3, 4))
        + 'emit("sample", step=3, index=0, path="new", prompt="", seed=0)\n'
        + 'emit("stopped", step=4)'
    )
    assert run(here, process_id).type == "stopped"
    history = service.history(process_id)
    assert [(event.step, event.loss) for event in history.steps] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert [event.path for event in history.samples] == ["new"]
    assert history.ending == Stopped(step=4)


def test_history_of_a_training_that_runs_again_has_no_ending_yet(here, service, engine, process_id):
    engine.body = 'emit("failed", code="internal", message="x")'
    run(here, process_id)
    assert service.history(process_id).ending.type == "failed"
    endings = []
    engine.body = TRAINS
    run(here, process_id, lambda _: endings.append(service.history(process_id).ending))
    assert set(endings) == {None}


def write_events(workspace, process_id, data):
    folder = workspace.training(process_id)
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_bytes(data)


def step_line(step):
    return StepDone(step=step, total_steps=9, loss=1, learning_rate=1).model_dump_json().encode()


def test_history_survives_the_torn_last_line_of_a_killed_program(service, workspace, process_id):
    torn = 'sample", "prompt": "ü'.encode()[:-1]
    write_events(workspace, process_id, step_line(1) + b'\n{"type": "' + torn)
    assert [event.step for event in service.history(process_id).steps] == [1]


def test_the_first_event_after_a_torn_line_is_not_lost(
    here, service, engine, workspace, process_id
):
    write_events(workspace, process_id, step_line(1) + b'\n{"type": "st')
    engine.body = (
        'emit("step", step=2, total_steps=9, loss=1, learning_rate=1); emit("stopped", step=2)'
    )
    run(here, process_id)
    assert [event.step for event in service.history(process_id).steps] == [1, 2]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x1c", "\r"])
def test_history_keeps_samples_whatever_characters_their_prompts_hold(
    here, service, engine, process_id, character
):
    engine.body = (
        f'emit("sample", step=1, index=0, path="p", prompt={f"a{character}b"!r}, seed=0)\n'
        'emit("stopped")'
    )
    run(here, process_id)
    assert [event.prompt for event in service.history(process_id).samples] == [f"a{character}b"]


def test_history_keeps_a_loss_that_is_not_finite(here, service, engine, process_id):
    engine.body = (
        'emit("step", step=1, total_steps=9, loss=float("nan"), learning_rate=1); emit("stopped")'
    )
    run(here, process_id)
    assert len(service.history(process_id).steps) == 1
    assert len(here.registry.metrics(process_id)) == 1


STOPS = """
def stop(*_):
    emit("stopped", step=1, checkpoint="checkpoints/step-1")
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
emit("phase", phase="training")
emit("step", step=1, total_steps=2, loss=0.5, learning_rate=0.1)
time.sleep(60)
"""


def on_step(action):
    """Return a listener that acts at each step."""
    return lambda event: action() if event.type == "step" else None


def test_a_stop_request_ends_the_training_as_stopped(here, service, engine, process_id):
    engine.body = STOPS
    stop = StopRequest()
    ending = run(here, process_id, on_step(stop), stop)
    assert ending == Stopped(step=1, checkpoint="checkpoints/step-1")
    assert service.history(process_id).ending == ending


def test_a_workspace_that_can_not_be_written_names_its_variable(here, process_id, workspace):
    workspace.root.write_text("a file where the workspace should be")
    ending = run(here, process_id)
    assert ending.code == "settings_invalid"
    assert "WORKSPACE_PATH" in ending.remedy
    assert "WORKSPACE_PATH" in here.record(process_id).error.remedy


# The record


def test_the_record_of_a_training_that_is_done(here, process_id):
    run(here, process_id)
    record = here.record(process_id)
    assert (record.status, record.error, record.lease) == (Status.COMPLETED, None, None)
    assert record.output_prefix == f"results/{process_id}"
    assert record.started_at <= record.ended_at
    assert (record.progress.step, record.progress.total_steps, record.progress.loss) == (2, 2, 0.25)
    (attempt,) = record.attempts
    assert (attempt.number, attempt.ending, attempt.device) == (1, "completed", "local")
    assert (attempt.from_step, attempt.to_step) == (0, 2)


def test_every_artifact_is_listed_with_its_hash(here, store, process_id):
    run(here, process_id)
    entries = here.registry.artifacts(process_id)
    assert {(entry.kind, entry.name) for entry in entries} == {
        ("lora", "mine.safetensors"),
        ("sample", "0002_0.png"),
        ("config", "config.yaml"),
        ("job", "job.json"),
        ("metrics", "events.jsonl"),
        ("log", "log.txt"),
    }
    for entry in entries:
        data = store.get(entry.key)
        assert entry.sha256 == hashlib.sha256(data).hexdigest()
        assert entry.size_bytes == len(data)
    sample = here.artifacts(process_id)["0002_0.png"]
    assert (sample.step, sample.index) == (2, 0)
    assert here.artifacts(process_id)["mine.safetensors"].sha256 == SHA256


def test_every_step_has_a_row_of_measurements(here, engine, process_id):
    engine.body = """
for step in range(1, 201):
    emit("step", step=step, total_steps=200, loss=1 / step, learning_rate=0.1, grad_norm=2.0,
         steps_per_s=3.0, eta_s=4.0)
emit("failed", code="internal", message="x")
"""
    run(here, process_id)
    rows = here.registry.metrics(process_id)
    assert [(row.step, row.loss) for row in rows] == [(n, 1 / n) for n in range(1, 201)]
    assert {(row.attempt, row.learning_rate, row.grad_norm, row.steps_per_s) for row in rows} == {
        (1, 0.1, 2.0, 3.0)
    }


def test_the_log_has_lines_of_the_engine_and_of_ours(here, process_id):
    run(here, process_id)
    assert here.log(process_id, "engine") == ["trained"]
    ours = here.log(process_id, "loradash")
    assert ours[0] == "starting"
    assert "sample at step 2: 0002_0.png" in ours
    assert ours[-1] == "completed"
    lines = here.registry.log(process_id)
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    assert {line.attempt for line in lines} == {1}


def test_the_log_of_a_second_attempt_has_its_own_lines_only_once(here, engine, process_id):
    engine.body = 'print("first"); emit("failed", code="internal", message="x")'
    run(here, process_id)
    engine.body = 'print("second")\n' + TRAINS
    run(here, process_id)
    lines = [line for line in here.registry.log(process_id) if line.source == "engine"]
    assert [(line.attempt, line.text) for line in lines] == [
        (1, "first"),
        (2, "second"),
        (2, "trained"),
    ]


def test_the_record_of_a_training_that_failed_has_the_engines_words(here, engine, process_id):
    engine.body = """
emit("step", step=1, total_steps=9, loss=0.5, learning_rate=0.1)
emit("failed", code="out_of_memory", message="the GPU is full", remedy="A smaller batch.",
     problems=["one", "two"], resumable=True)
"""
    run(here, process_id)
    record = here.record(process_id)
    assert (record.status, record.lease) == (Status.FAILED, None)
    assert record.error.model_dump() == {
        "code": "out_of_memory",
        "message": "the GPU is full",
        "remedy": "A smaller batch.",
        "problems": ("one", "two"),
        "resumable": True,
    }
    (attempt,) = record.attempts
    assert (attempt.ending, attempt.from_step, attempt.to_step) == ("failed", 0, 1)
    assert here.log(process_id)[-1] == "failed (out_of_memory): the GPU is full"


def test_an_error_of_our_own_is_told_and_does_not_leave_the_record_running(
    here, engine, process_id, monkeypatch
):
    def break_down(line):
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(engine, "parse", break_down)
        assert run(here, process_id).code == "internal"
    record = here.record(process_id)
    assert (record.status, record.error.code) == (Status.FAILED, "internal")
    assert "RuntimeError: a bug" in record.error.message
    assert record.error.resumable
    assert run(here, process_id).type == "done"


def cancel(here, process_id):
    here.registry.change(process_id, lambda one: changes.cancel_requested(one, datetime.now(UTC)))


def test_a_cancel_is_heard_and_ends_the_training_as_cancelled(here, engine, process_id):
    engine.body = STOPS
    ending = run(here, process_id, on_step(lambda: cancel(here, process_id)))
    assert ending == Stopped(step=1, checkpoint="checkpoints/step-1")
    record = here.record(process_id)
    assert (record.status, record.error, record.lease) == (Status.CANCELLED, None, None)
    (attempt,) = record.attempts
    assert (attempt.ending, attempt.to_step) == ("cancelled", 1)
    log = here.log(process_id, "loradash")
    assert "cancel requested" in log
    assert log[-1] == "stopped at step 1"


def test_a_cancelled_training_that_does_not_listen_is_ended_after_its_grace(make, engine, config):
    here = make(timing=TIMING._replace(cancel_grace_s=0.5))
    process_id = here.service.submit(here.service.check(config)).id
    engine.body = STOPS.replace(
        "signal.signal(signal.SIGINT, stop)",
        """
signal.signal(signal.SIGINT, signal.SIG_IGN)""",
    )
    cancelled_at = []

    def cancel_now():
        cancelled_at.append(time.monotonic())
        cancel(here, process_id)

    assert run(here, process_id, on_step(cancel_now)).type == "stopped"
    # Until it is heard, the grace, and some time for a busy machine.
    assert time.monotonic() - cancelled_at[0] < 0.5 + 0.5 + 2
    assert here.record(process_id).status is Status.CANCELLED


def test_a_training_of_a_server_that_shuts_down_waits_again(here, engine, process_id):
    engine.body = STOPS
    stop = StopRequest()
    run(here, process_id, on_step(lambda: stop("shutdown")), stop)
    record = here.record(process_id)
    assert (record.status, record.attempt.ending) == (Status.PENDING, "released")
    assert record.fruitless_attempts == 0
    assert [waiting.id for waiting in here.registry.pending()] == [process_id]
    engine.body = TRAINS
    assert run(here, process_id).type == "done"
    assert here.record(process_id).attempt_count == 2


def test_an_engine_that_somebody_else_has_stopped_is_queued_again_but_not_for_ever(
    here, engine, process_id
):
    engine.body = 'emit("stopped")'
    statuses = []
    for _ in range(3):
        assert run(here, process_id).type == "stopped"
        statuses.append(here.record(process_id).status)
    assert statuses == [Status.PENDING, Status.PENDING, Status.FAILED]
    record = here.record(process_id)
    assert (record.error.code, record.error.resumable) == ("worker_lost", True)


def test_whoever_has_lost_the_lease_ends_its_engine_and_writes_nothing(make, engine, config):
    here = make(timing=TIMING._replace(lease_s=1))
    process_id = here.service.submit(here.service.check(config)).id
    engine.body = STOPS
    taken_over = []

    def take_over():
        def change(record):
            now = datetime.now(UTC)
            waits = changes.expired(record, now=now, max_attempts=3, owner_is_gone=True)
            return changes.taken(
                waits, owner="elsewhere/1/1.0", token="theirs", now=now, lease_s=100, device="x"
            )

        taken_over.append(here.registry.change(process_id, change))

    ending = run(here, process_id, on_step(take_over))
    assert ending.type == "stopped"
    assert here.record(process_id) == taken_over[0]
    assert here.log(process_id)[-1:] != ["stopped at step 1"]
    assert not is_held(here, process_id)


@pytest.mark.parametrize("gone", [True, False])
def test_a_training_is_taken_from_an_owner_that_is_gone_and_from_no_other(here, process_id, gone):
    dead = subprocess.Popen(["true"])
    dead.wait()
    machine, _, started = this_owner().split("/")
    owner = f"{machine}/{dead.pid}/{started}" if gone else this_owner()
    here.registry.change(
        process_id,
        lambda one: changes.taken(
            one, owner=owner, token="theirs", now=datetime.now(UTC), lease_s=100, device="cpu"
        ),
    )
    if not gone:
        with pytest.raises(ConflictingState):
            here.run_beside_its_owner(process_id)
        return
    assert run(here, process_id).type == "done"
    assert [one.ending for one in here.record(process_id).attempts] == ["lost", "completed"]


def test_a_completed_training_is_not_run_again(here, process_id):
    run(here, process_id)
    before = here.record(process_id)
    with pytest.raises(ConflictingState):
        run(here, process_id)
    assert here.record(process_id) == before


STEP = 'emit("step", step={}, total_steps=4, loss={}, learning_rate=0.1)\n'


def test_a_resumed_training_replaces_what_an_earlier_attempt_said_of_later_steps(
    here, engine, process_id
):
    engine.body = "".join(STEP.format(n, 1) for n in (1, 2, 3)) + "os._exit(1)"
    run(here, process_id)
    assert [(row.step, row.attempt) for row in here.registry.metrics(process_id)] == [
        (1, 1), (2, 1), (3, 1)
    ]  # fmt: skip
    engine.body = (
        'emit("resumed", step=2, path="checkpoints/step-2")\n'
        + STEP.format(3, 2)
        + 'emit("failed", code="internal", message="x")'
    )
    run(here, process_id)
    rows = here.registry.metrics(process_id)
    assert [(row.step, row.attempt, row.loss) for row in rows] == [(1, 1, 1), (2, 1, 1), (3, 2, 2)]
    first, second = here.record(process_id).attempts
    assert (first.from_step, first.to_step) == (0, 3)
    assert (second.from_step, second.to_step) == (2, 3)
    assert "continuing after step 2" in here.log(process_id)


def test_a_training_that_begins_anew_forgets_the_steps_of_before(here, engine, process_id):
    engine.body = "".join(STEP.format(n, 1) for n in (1, 2, 3)) + "os._exit(1)"
    run(here, process_id)
    engine.body = STEP.format(1, 2) + 'emit("failed", code="internal", message="x")'
    run(here, process_id)
    assert [(row.step, row.loss) for row in here.registry.metrics(process_id)] == [(1, 2)]
    assert here.record(process_id).progress.step == 1


def test_all_of_it_works_with_a_registry_and_a_store_on_disk(make, engine, config, tmp_path):
    here = make(
        registry=SqlRegistry(f"sqlite:///{tmp_path}/registry.sqlite3"),
        store=LocalStore(tmp_path / "objects"),
    )
    process_id = here.service.submit(here.service.check(config)).id
    engine.body = WRITES_CHECKPOINT.format(step=1) + "os._exit(1)"
    assert run(here, process_id).code == "engine_crashed"
    shutil.rmtree(here.workspace.root)
    engine.body = TRAINS
    assert run(here, process_id).type == "done"
    record = here.record(process_id)
    assert (record.status, record.attempt_count) == (Status.COMPLETED, 2)
    assert [row.loss for row in here.registry.metrics(process_id)] == [0.5, 0.25]
    assert here.log(process_id, "engine") == ["trained"]
    assert {entry.kind for entry in here.registry.artifacts(process_id)} >= {"lora", "sample"}
    here.registry.close()


# Checkpoints, and a workspace that was lost


WRITES_CHECKPOINT = """
folder = os.path.abspath("checkpoints/step-{step:09d}")
os.makedirs(folder)
for name in ("adapter.safetensors", "state.safetensors", "checkpoint.json"):
    open(os.path.join(folder, name), "w").write(name + " of step {step}")
emit("step", step={step}, total_steps=9, loss=1, learning_rate=0.1)
emit("checkpoint", step={step}, path=folder, size_bytes=60)
"""
NAMES = ("adapter.safetensors", "checkpoint.json", "state.safetensors")


def checkpoints_of(here, process_id):
    return list(here.artifacts(process_id, "checkpoint"))


def test_checkpoints_are_stored_while_the_training_runs(here, engine, process_id):
    stored_at = []
    engine.body = (
        WRITES_CHECKPOINT.format(step=3)
        + STEP.format(4, 1)
        + "while not os.path.exists('seen'):\n    time.sleep(0.01)\n"
        + WRITES_CHECKPOINT.format(step=6)
        + "os._exit(1)"
    )

    def look(event):
        if event.type == "step" and event.step == 4:
            until(lambda: len(checkpoints_of(here, process_id)) == 3)
            stored_at.append(checkpoints_of(here, process_id))
            (here.workspace.training(process_id) / "seen").touch()

    run(here, process_id, look)
    assert stored_at == [[f"step-000000003/{name}" for name in NAMES]]
    assert checkpoints_of(here, process_id) == [
        f"step-00000000{step}/{name}" for step in (3, 6) for name in NAMES
    ]
    for name, entry in here.artifacts(process_id, "checkpoint").items():
        text = f"{name.partition('/')[2]} of step {entry.step}"
        assert here.store.get(entry.key) == text.encode()
        assert entry.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_checkpoints_that_the_engine_has_deleted_go_from_the_store_too(here, engine, process_id):
    engine.body = (
        "import shutil\n"
        + WRITES_CHECKPOINT.format(step=3)
        + "time.sleep(0.5)\nshutil.rmtree(folder)\n"
        + WRITES_CHECKPOINT.format(step=6)
        + "os._exit(1)"
    )
    run(here, process_id)
    expected = [f"step-000000006/{name}" for name in NAMES]
    assert checkpoints_of(here, process_id) == expected
    assert here.keys(f"results/{process_id}/checkpoints") == [
        f"results/{process_id}/checkpoints/{name}" for name in expected
    ]
    manifest = json.loads(content(here.store, f"results/{process_id}/manifest.json"))
    assert not any("step-000000003" in entry["key"] for entry in manifest["files"])


TELLS_CHECKPOINTS = """
names = sorted(os.path.join(folder, name) for folder, _, files in os.walk("checkpoints")
               for name in files)
emit("warning", code="found", message="|".join(f"{name}={open(name).read()}" for name in names))
"""


def test_job_and_checkpoints_come_back_when_the_workspace_was_deleted(
    here, service, engine, process_id
):
    engine.body = WRITES_CHECKPOINT.format(step=3) + WRITES_CHECKPOINT.format(step=6) + "exit(1)"
    assert run(here, process_id).resumable
    job = (service.folder(process_id) / "job.json").read_bytes()
    config = (service.folder(process_id) / "config.yaml").read_bytes()
    shutil.rmtree(here.workspace.root)
    engine.body = TELLS_CHECKPOINTS + 'emit("failed", code="internal", message="x")'
    events = []
    run(here, process_id, events.append)
    assert events[0].message.split("|") == [
        f"checkpoints/step-00000000{step}/{name}={name} of step {step}"
        for step in (3, 6)
        for name in NAMES
    ]
    folder = service.folder(process_id)
    assert (folder / "job.json").read_bytes() == job
    assert (folder / "config.yaml").read_bytes() == config
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "step-000000003",
        "step-000000006",
    ]
    assert "2 checkpoints restored from the object store" in here.log(process_id)


def test_a_checkpoint_that_was_damaged_in_the_workspace_comes_from_the_store(
    here, service, engine, process_id
):
    engine.body = WRITES_CHECKPOINT.format(step=3) + WRITES_CHECKPOINT.format(step=6) + "exit(1)"
    assert run(here, process_id).resumable
    for path in (service.folder(process_id) / "checkpoints").glob("*/*"):
        path.write_text("damaged")
    engine.body = TELLS_CHECKPOINTS + 'emit("failed", code="internal", message="x")'
    events = []
    run(here, process_id, events.append)
    assert events[0].message.split("|") == [
        f"checkpoints/step-00000000{step}/{name}={name} of step {step}"
        for step in (3, 6)
        for name in NAMES
    ]
    assert "2 checkpoints restored from the object store" in here.log(process_id)


def test_the_newest_checkpoints_that_are_whole_come_back(here, engine, process_id):
    engine.body = (
        WRITES_CHECKPOINT.format(step=3)
        + WRITES_CHECKPOINT.format(step=6)
        + WRITES_CHECKPOINT.format(step=9)
        + "exit(1)"
    )
    run(here, process_id)
    shutil.rmtree(here.workspace.root)
    state = here.artifacts(process_id)["step-000000009/state.safetensors"]
    here.store.put(state.key, b"state.safetensors of step X")
    engine.body = TELLS_CHECKPOINTS + 'emit("failed", code="internal", message="x")'
    events = []
    run(here, process_id, events.append)
    assert "step-000000006" in events[0].message
    assert "step-000000009" not in events[0].message


def test_checkpoints_on_disk_are_not_replaced_by_older_ones_of_the_store(
    here, service, engine, process_id
):
    engine.body = WRITES_CHECKPOINT.format(step=3) + "exit(1)"
    run(here, process_id)
    path = service.folder(process_id) / "checkpoints/step-000000005/state.safetensors"
    path.parent.mkdir()
    path.write_text("on disk")
    engine.body = TELLS_CHECKPOINTS + 'emit("failed", code="internal", message="x")'
    events = []
    run(here, process_id, events.append)
    assert "step-000000005/state.safetensors=on disk" in events[0].message


def test_a_dataset_folder_that_was_changed_since_the_job_is_left_to_the_engine(
    here, engine, process_id, tmp_path
):
    """The job says what the data was; only the first attempt may read it anew."""
    engine.body = 'emit("failed", code="internal", message="x")'
    run(here, process_id)
    job = content(here.store, f"results/{process_id}/job.json")
    shutil.rmtree(tmp_path / "data")
    shutil.rmtree(here.workspace.root)
    run(here, process_id)
    assert content(here.store, f"results/{process_id}/job.json") == job
    assert here.record(process_id).error.code == "internal"


# Uploaded datasets


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def upload(here, folder, **pictures):
    files = [{"filename": f"{name}.png", "content": png(n)} for name, n in pictures.items()]
    files += [
        {"filename": f"{name}.txt", "content": base64.b64encode(f"a {name}".encode()).decode()}
        for name in pictures
    ]
    here.datasets.upload(
        parse_request({"type": "upload_training_data", "dataset_folder": folder, "files": files})
    )


def stored_keys(here, prefix):
    return [info.key for info in here.store.list(prefix)]


def uploaded_config(reference="cats", **fields):
    return parse_training({"dataset": reference, "base_model": "emoji-base", **fields})


def folders_of(here, process_id):
    return json.loads(content(here.store, f"results/{process_id}/job.json"))["folders"]


@pytest.mark.parametrize("reference", ["cats", "dataset/cats"])
@pytest.mark.parametrize("path_policy", [ANYWHERE, PathPolicy([])], ids=["command", "server"])
def test_a_training_reads_an_uploaded_dataset(here, service, reference, path_policy):
    upload(here, "cats", cat=1, tiger=2)
    checked = service.check(uploaded_config(reference), path_policy=path_policy)
    assert checked.config.process.datasets[0].folder_path == reference
    process_id = service.submit(checked).id
    assert run(here, process_id).type == "done"
    target = here.workspace.training_data(process_id) / "0"
    assert sorted(path.name for path in target.iterdir()) == [
        "cat.png",
        "cat.txt",
        "tiger.png",
        "tiger.txt",
    ]
    assert (target / "tiger.txt").read_text() == "a tiger"
    [folder] = folders_of(here, process_id)
    assert not Path(folder).is_absolute()  # another machine's workspace may be elsewhere
    assert (here.workspace.training(process_id) / folder).resolve() == target.resolve()
    assert json.loads(content(here.store, f"results/{process_id}/job.json"))["images"] == 2
    assert "datasets: cats" in here.log(process_id)
    stored = parse_training_text(content(here.store, f"results/{process_id}/config.yaml").decode())
    assert stored.process.datasets[0].folder_path == reference


def test_datasets_of_both_kinds_can_be_combined(here, service, tmp_path, save_image):
    save_image("a.png", caption="a dog")
    upload(here, "cats", cat=1)
    upload(here, "birds", bird=1)
    config = parse_training(
        {"dataset": "cats", "regularization": str(tmp_path / "data"), "base_model": "emoji-base"}
    )
    process_id = service.submit(service.check(config)).id
    assert run(here, process_id).type == "done"
    first, second = folders_of(here, process_id)
    assert first == f"../../../training_data/{process_id}/0"
    assert second == str(tmp_path / "data")


def test_a_bad_image_in_a_folder_shows_at_the_check_though_another_dataset_is_uploaded(
    here, service, tmp_path, save_image
):
    save_image("a.png", caption="a dog").write_bytes(b"broken")
    upload(here, "cats", cat=1)
    config = parse_training(
        {"dataset": "cats", "regularization": str(tmp_path / "data"), "base_model": "emoji-base"}
    )
    with pytest.raises(InvalidDataset):
        service.check(config)


def test_a_dataset_that_is_replaced_later_does_not_change_a_training_that_has_begun(
    here, service, engine
):
    upload(here, "cats", cat=1)
    process_id = service.submit(service.check(uploaded_config())).id
    engine.body = 'emit("failed", code="internal", message="x")'
    run(here, process_id)
    upload(here, "cats", lion=3)
    engine.body = TRAINS
    assert run(here, process_id).type == "done"
    target = here.workspace.training_data(process_id) / "0"
    assert sorted(path.name for path in target.iterdir()) == ["cat.png", "cat.txt"]


def test_an_uploaded_dataset_is_fetched_again_when_the_workspace_was_deleted(here, service, engine):
    upload(here, "cats", cat=1)
    process_id = service.submit(service.check(uploaded_config())).id
    engine.body = 'emit("failed", code="internal", message="x")'
    run(here, process_id)
    job = content(here.store, f"results/{process_id}/job.json")
    shutil.rmtree(here.workspace.root)
    engine.body = TRAINS
    assert run(here, process_id).type == "done"
    target = here.workspace.training_data(process_id) / "0"
    assert sorted(path.name for path in target.iterdir()) == ["cat.png", "cat.txt"]
    assert content(here.store, f"results/{process_id}/job.json") == job


def test_a_fetched_dataset_that_the_engine_refuses_is_fetched_again_but_the_jobs_own_stays(
    here, service, engine, tmp_path
):
    upload(here, "cats", cat=1)
    upload(here, "prior", dog=2)
    config = {"dataset": "cats", "regularization": "prior", "base_model": "emoji-base"}
    process_id = service.submit(service.check(parse_training(config))).id
    engine.body = 'emit("failed", code="dataset_invalid", message="it has changed")'
    run(here, process_id)
    cats, prior = (here.workspace.training_data(process_id) / str(number) for number in (0, 1))
    assert cats.is_dir()  # the job was made for it
    shutil.rmtree(prior)
    here.store.delete_many(stored_keys(here, "dataset/prior"))
    upload(here, "prior", wolf=3)
    run(here, process_id)
    assert cats.is_dir()
    assert not prior.exists()
    upload(here, "cats", lion=4)
    here.store.delete_many(stored_keys(here, "dataset/prior"))
    upload(here, "prior", dog=2)
    engine.body = TRAINS
    assert run(here, process_id).type == "done"
    assert sorted(path.name for path in prior.iterdir()) == ["dog.png", "dog.txt"]
    assert sorted(path.name for path in cats.iterdir()) == ["cat.png", "cat.txt"]


def test_a_dataset_that_was_deleted_since_the_submit_fails_the_training(here, service):
    upload(here, "cats", cat=1)
    process_id = service.submit(service.check(uploaded_config())).id
    for key in here.keys("dataset"):
        here.store.delete(key)
    assert run(here, process_id).code == "not_found"
    assert here.record(process_id).error.code == "not_found"
    assert "cats" in here.record(process_id).error.message


def test_a_dataset_that_was_not_uploaded_is_refused_at_the_check(here, service):
    upload(here, "cats", cat=1)
    with pytest.raises(NotFound, match="cast") as caught:
        service.check(uploaded_config("cast"))
    assert "cats" in str(caught.value)
    for reference in ("s3://elsewhere/dataset/cats", "dataset/cats/more", "../cats"):
        with pytest.raises(InvalidDataset):
            service.check(uploaded_config(reference))


def test_a_folder_comes_before_an_uploaded_dataset_for_a_command_and_never_for_a_server(
    here, service, save_image, tmp_path, monkeypatch
):
    save_image("a.png", caption="a dog")
    upload(here, "data", cat=1)
    monkeypatch.chdir(tmp_path)
    by_command = service.check(uploaded_config("data"))
    assert by_command.config.process.datasets[0].folder_path == str(tmp_path / "data")
    by_server = service.check(uploaded_config("data"), path_policy=PathPolicy([]))
    assert by_server.config.process.datasets[0].folder_path == "data"


def test_a_stop_is_heard_while_datasets_are_fetched_and_read(here, service):
    upload(here, "cats", cat=1, tiger=2)
    process_id = service.submit(service.check(uploaded_config())).id
    stop = StopRequest()
    fetch = here.datasets.materialize

    def fetch_and_stop(*arguments):
        stop("cancel")
        return fetch(*arguments)

    here.datasets.materialize = fetch_and_stop
    assert run(here, process_id, stop=stop).type == "stopped"
    assert here.record(process_id).status is Status.CANCELLED
    assert not (service.folder(process_id) / "job.json").exists()


# PathPolicy


@pytest.fixture
def path_policy(workspace):
    workspace.ensure()
    return PathPolicy([workspace.root])


@pytest.fixture
def outside(tmp_path, save_image, monkeypatch):
    """A folder that is a dataset and lies outside of the workspace, as the working directory."""
    monkeypatch.chdir(tmp_path)
    return save_image("a.png", caption="a cat").parent


def test_a_request_may_name_a_dataset_folder_in_the_workspace(
    service, path_policy, workspace, outside
):
    inside = shutil.copytree(outside, workspace.root / "training_data" / "mine")
    checked = service.check(uploaded_config(str(inside)), path_policy=path_policy)
    assert [len(report.images) for report in checked.reports] == [1]
    service.check(uploaded_config(str(outside)), path_policy=PathPolicy([outside]))


def test_a_request_may_not_name_a_dataset_outside_of_the_workspace(
    service, path_policy, workspace, outside
):
    link = workspace.root / "training_data" / "link"
    link.symlink_to(outside)
    above = workspace.root / "training_data" / "above"
    above.symlink_to(outside.parent)
    for path in (outside, link, above / "data", workspace.root / ".." / "data", "/no/where", "/"):
        with pytest.raises(InvalidDataset, match="not a place that requests may name") as caught:
            service.check(uploaded_config(str(path)), path_policy=path_policy)
        assert "LORADASH_ALLOWED_PATHS" in caught.value.remedy
    for path in ("data", "./data", "../data"):  # names of uploaded datasets, if anything
        with pytest.raises((InvalidDataset, NotFound)):
            service.check(uploaded_config(path), path_policy=path_policy)


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("model.name_or_path", InvalidBaseModel),
        ("model.extras_name_or_path", InvalidBaseModel),
        ("network.pretrained_lora_path", InvalidAdapter),
    ],
)
def test_a_request_may_not_name_models_outside_of_the_workspace(
    here, service, path_policy, workspace, outside, key, error
):
    upload(here, "cats", cat=1)
    link = workspace.root / "models" / "link"
    link.symlink_to(outside)

    def with_path(path):
        document = uploaded_config().model_dump(mode="json", exclude_unset=True)
        return parse_training(document, {key: str(path)})

    for path in (outside, link, "data", "./data", "/no/where", "~/x"):
        with pytest.raises(error, match="not a place that requests may name"):
            service.quick_check(with_path(path), path_policy)
    inside = workspace.root / "models" / "mine.safetensors"
    inside.write_bytes(b"LORA")
    service.quick_check(with_path(inside), path_policy)
    if error is InvalidBaseModel:  # adapters aren't fetched from the hub
        service.quick_check(with_path("owner/model"), path_policy)


def test_a_request_may_not_ask_whether_a_folder_outside_exists(
    service, path_policy, outside, tmp_path
):
    messages = []
    for path in (outside, tmp_path / "none"):
        with pytest.raises(InvalidDataset) as caught:
            service.quick_check(uploaded_config(str(path)), path_policy)
        messages.append(str(caught.value).replace(str(path), ""))
    assert messages[0] == messages[1]


def test_relative_paths_of_a_command_are_stored_in_full(here, service, outside, tmp_path):
    for name in ("model", "extras"):
        (tmp_path / name).mkdir()
    (tmp_path / "start.safetensors").write_bytes(b"LORA")
    config = parse_training(
        {"dataset": "data", "base_model": "model", "name": "mine"},
        {
            "model.extras_name_or_path": "./extras",
            "network.pretrained_lora_path": "start.safetensors",
            "datasets.0.resolution": 64,
        },
    )
    record = service.submit(service.check(config))
    stored = parse_training_text(content(here.store, f"results/{record.id}/config.yaml").decode())
    assert stored.process.datasets[0].folder_path == str(tmp_path / "data")
    assert stored.process.model.name_or_path == str(tmp_path / "model")
    assert stored.process.model.extras_name_or_path == str(tmp_path / "extras")
    assert stored.process.network.pretrained_lora_path == str(tmp_path / "start.safetensors")
    assert stored.process.datasets[0].resolution == config.process.datasets[0].resolution
    assert record.summary["base_model"] == str(tmp_path / "model")


def test_a_config_without_relative_paths_is_stored_as_it_is(service, config):
    assert service.check(config).config is config


# A name that may be a folder or a stored dataset, and all problems in one round


@pytest.fixture
def both(here, tmp_path, monkeypatch, save_image):
    """A folder ``cats`` with one image and a stored dataset ``cats`` with two."""
    folder = tmp_path / "work"
    (folder / "cats").mkdir(parents=True)
    monkeypatch.chdir(folder)
    shutil.copy(save_image("a.png"), folder / "cats/a.png")
    upload(here, "cats", cat=1, dog=2)
    return folder / "cats"


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        ("cats", "folder"),
        ("./cats", "folder"),
        ("folder:cats", "folder"),
        ("dataset:cats", "stored"),
        ("dataset/cats", "stored"),
    ],
)
def test_a_command_takes_the_kind_of_dataset_that_is_named(here, service, both, reference, kind):
    checked = service.check(uploaded_config(reference))
    (found,) = checked.found()
    name = str(both) if kind == "folder" else "cats"
    assert (found.kind, found.name, found.images) == (kind, name, 1 if kind == "folder" else 2)
    assert checked.images() == found.images
    told = [text for text in checked.warnings if "a folder here and a stored dataset" in text]
    assert len(told) == (reference == "cats")
    process_id = service.submit(checked).id
    assert run(here, process_id).type == "done"
    (worked_on,) = folders_of(here, process_id)
    assert (worked_on == str(both)) == (kind == "folder")


def test_a_request_means_the_stored_dataset_by_a_plain_name(service, both):
    path_policy = PathPolicy([both.parent])
    for reference in ("cats", "dataset:cats"):
        (found,) = service.quick_check(uploaded_config(reference), path_policy).found()
        assert (found.kind, found.images) == ("stored", 2)
    for reference in (str(both), f"folder:{both}"):
        (found,) = service.quick_check(uploaded_config(reference), path_policy).found()
        assert (found.kind, found.name) == ("folder", str(both))
    with pytest.raises(InvalidDataset, match="full path"):
        service.quick_check(uploaded_config("folder:cats"), path_policy)
    with pytest.raises(InvalidDataset, match="not a place"):
        service.quick_check(uploaded_config(f"folder:{both.parent.parent}"), path_policy)


def test_a_stored_dataset_that_is_not_there_names_the_folder_that_is(service, both, tmp_path):
    (both.parent / "dogs").mkdir()
    with pytest.raises(NotFound) as caught:
        service.check(uploaded_config("dataset:dogs"))
    assert "folder:dogs" in caught.value.remedy
    with pytest.raises(InvalidDataset, match="doesn't exist"):
        service.check(uploaded_config("folder:birds"))


def test_a_check_reads_a_stored_dataset_by_the_rules_of_a_folder(here, service, both):
    checked = service.check(uploaded_config("dataset:cats"), thoroughly=True)
    assert [len(report.images) for report in checked.reports] == [2]
    key = next(key for key in here.keys("dataset") if key.endswith("cat.png"))
    here.store.put(key, b"not a picture")
    service.check(uploaded_config("dataset:cats"))
    with pytest.raises(InvalidDataset):
        service.check(uploaded_config("dataset:cats"), thoroughly=True)


def test_all_that_keeps_a_training_from_starting_is_told_at_once(
    service, engine, both, monkeypatch
):
    def refuse(config):
        raise InvalidBaseModel("unet is empty", remedy="Download it again.")

    monkeypatch.setattr(engine, "check_training", refuse)
    (both / "a.png").write_bytes(b"not a picture")
    config = parse_training(
        {"dataset": "cats", "base_model": "emoji-base", "regularization": "nowhere"}
    )
    with pytest.raises(LoradashError) as caught:
        service.check(config)
    assert caught.value.message == "the training can't start: 3 things are wrong"
    told = " ".join(caught.value.problems)
    assert [word for word in ("unet is empty", "a.png", "nowhere") if word not in told] == []
