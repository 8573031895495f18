import hashlib
import json
import sys
import threading

import pytest

from loradash.domain.events import Done, Failed, StepDone, Stopped, parse_event
from loradash.domain.training_text import parse_training, parse_training_text
from loradash.engines.engine import Artifact, Command
from loradash.errors import (
    AlreadyRunning,
    DiskFull,
    InvalidAdapter,
    InvalidBaseModel,
    InvalidCheckpoint,
    InvalidDataset,
    LoradashError,
    NotFound,
)
from loradash.runtime.supervisor import Limits, StopRequest
from loradash.runtime.workspace import Workspace
from loradash.services.training import TrainingService
from loradash.storage.memory import MemoryStore

from .conftest import PRELUDE

ADAPTER = b"LORA weights"
SHA256 = hashlib.sha256(ADAPTER).hexdigest()
TRAINS = f"""
emit("phase", phase="starting")
emit("step", step=1, total_steps=2, loss=0.5, learning_rate=0.1)
emit("step", step=2, total_steps=2, loss=0.25, learning_rate=0.1)
print("trained")
os.makedirs("lora"); os.makedirs("samples")
open("lora/mine.safetensors", "wb").write({ADAPTER!r})
open("samples/0002_0.png", "wb").write(b"png")
emit("sample", step=2, index=0, path="samples/0002_0.png", prompt="a cat", seed=0)
emit("done", step=2, path=os.path.abspath("lora/mine.safetensors"), sha256={SHA256!r})
"""


class ScriptedEngine:
    """An engine whose training is a script; adapters of it begin with ``LORA``."""

    name = "scripted"

    def __init__(self, body=TRAINS):
        self.body = body
        self.finds = ("lora", "sample", "config", "metrics", "log")

    def check_training(self, config):
        return ("a warning",)

    def write_training_job(self, process_id, config, reports, folder):
        (folder / "job.json").write_text(json.dumps({"id": process_id, "images": len(reports)}))

    def training_command(self, folder):
        if not (folder / "job.json").is_file():
            raise InvalidCheckpoint("there is no job", remedy="Start a new training.")
        script = folder / "engine_script.py"
        script.write_text(PRELUDE + self.body)
        return Command(argv=(sys.executable, "-S", "-E", str(script)), working_directory=folder)

    def parse(self, line):
        return parse_event(line)

    def adapter_metadata(self, path):
        if not path.read_bytes().startswith(b"LORA"):
            raise InvalidAdapter(f"{path}: no LoRA", remedy="Train again.")
        return {}

    def has_checkpoint(self, folder):
        return (folder / "checkpoints").is_dir()

    def artifacts(self, folder):
        found = [
            *(Artifact("lora", path) for path in sorted(folder.glob("lora/*"))),
            *(Artifact("sample", path) for path in sorted(folder.glob("samples/*"))),
            Artifact("config", folder / "config.yaml"),
            Artifact("metrics", folder / "events.jsonl"),
            Artifact("log", folder / "log.txt"),
        ]
        return [artifact for artifact in found if artifact.kind in self.finds]


class FailingStore(MemoryStore):
    """A store that accepts nothing."""

    def put_file(self, key, path):
        raise DiskFull("the disk is full", remedy="Free space.")


@pytest.fixture
def engine():
    return ScriptedEngine()


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "workspace")


@pytest.fixture
def service(engine, workspace, store):
    return TrainingService(engine, workspace, store, Limits(timeout_s=30, stall_s=30, grace_s=30))


@pytest.fixture
def config(save_image):
    folder = save_image("a.png", caption="a cat").parent
    return parse_training({"dataset": str(folder), "base_model": "emoji-base", "name": "mine"})


@pytest.fixture
def process_id(service, config):
    return service.submit(service.check(config))


def run(service, process_id, on_event=lambda event: None):
    return service.run(process_id, on_event, StopRequest())


def leftovers(workspace):
    return sorted(path.name for path in (workspace.root / "output/training").iterdir())


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


@pytest.mark.parametrize("folder", ["~nobody-has-this-name/images", "x" * 300, "missing"])
def test_checking_refuses_a_dataset_folder_that_is_not_there(service, folder):
    config = parse_training({"dataset": folder, "base_model": "emoji-base"})
    with pytest.raises(InvalidDataset):
        service.check(config)


def test_submitting_creates_a_folder_with_config_and_job(service, config, process_id):
    folder = service.folder(process_id)
    assert json.loads((folder / "job.json").read_text()) == {"id": process_id, "images": 1}
    assert parse_training_text((folder / "config.yaml").read_text()) == config
    assert service.ids() == [process_id]


def test_submitting_keeps_the_text_that_the_user_gave(service, config):
    text = "# my notes\ndataset: x\nbase_model: ü\n"
    folder = service.folder(service.submit(service.check(config), text))
    assert (folder / "config.yaml").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("error", [InvalidBaseModel("gone"), OSError("disk"), KeyboardInterrupt()])
def test_a_submit_that_fails_leaves_nothing_behind(service, engine, config, workspace, error):
    def fail(*_):
        raise error

    engine.write_training_job = fail
    with pytest.raises(type(error)):
        service.submit(service.check(config))
    assert leftovers(workspace) == []
    assert service.ids() == []


def test_the_newest_training_is_listed_first(service, config):
    checked = service.check(config)
    first, second = service.submit(checked), service.submit(checked)
    assert set(service.ids()) == {first, second}
    assert service.ids() == sorted([first, second], reverse=True)


def test_a_training_is_done_when_its_adapter_is_verified_and_stored(service, store, process_id):
    events = []
    ending = run(service, process_id, events.append)
    assert isinstance(ending, Done)
    assert [event.type for event in events] == ["phase", "step", "step", "sample"]
    assert store.get(f"results/{process_id}/lora/mine.safetensors") == ADAPTER
    assert service.adapter(process_id).read_bytes() == ADAPTER
    assert [info.key for info in store.list(f"results/{process_id}")] == [
        f"results/{process_id}/{name}"
        for name in (
            "config.yaml",
            "logs/events.jsonl",
            "logs/log.txt",
            "lora/mine.safetensors",
            "manifest.json",
            "samples/0002_0.png",
        )
    ]


def test_the_manifest_lists_every_result_with_its_hash(service, store, process_id):
    run(service, process_id)
    manifest = json.loads(store.get(f"results/{process_id}/manifest.json"))
    assert manifest["process_id"] == process_id
    keys = {info.key for info in store.list()} - {f"results/{process_id}/manifest.json"}
    assert {entry["key"] for entry in manifest["files"]} == keys
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
    service, engine, store, process_id, damage
):
    engine.body = TRAINS.replace('emit("done"', f'{damage}\nemit("done"')
    ending = run(service, process_id)
    assert isinstance(ending, Failed)
    assert ending.resumable
    assert process_id in ending.remedy
    assert list(store.list()) == []


@pytest.mark.parametrize(
    "fields", ["step=2", 'path="", sha256=""', 'path="lora/none", sha256=None']
)
def test_done_without_an_adapter_is_a_failure(service, engine, store, process_id, fields):
    engine.body = f'emit("done", {fields})'
    assert run(service, process_id).type == "failed"
    assert list(store.list()) == []


def test_an_adapter_that_does_not_verify_is_a_failure(service, engine, store, process_id):
    other = b"something else"
    engine.body = TRAINS.replace(repr(ADAPTER), repr(other)).replace(
        SHA256, hashlib.sha256(other).hexdigest()
    )
    ending = run(service, process_id)
    assert (ending.type, ending.code) == ("failed", "adapter_invalid")
    assert list(store.list()) == []


def test_an_adapter_that_is_not_among_the_results_is_a_failure(service, engine, store, process_id):
    engine.finds = ("config", "log")
    ending = run(service, process_id)
    assert ending.type == "failed"


def test_a_store_that_fails_makes_the_training_fail_and_a_second_run_can_repair_it(
    engine, workspace, config
):
    limits = Limits(timeout_s=30, stall_s=30, grace_s=30)
    failing = TrainingService(engine, workspace, FailingStore(), limits)
    process_id = failing.submit(failing.check(config))
    ending = run(failing, process_id)
    assert (ending.type, ending.code) == ("failed", "disk_full")
    assert ending.resumable
    store = MemoryStore()
    engine.body = TRAINS.replace("os.makedirs", "(lambda name: os.makedirs(name, exist_ok=True))")
    assert run(TrainingService(engine, workspace, store, limits), process_id).type == "done"
    assert store.get(f"results/{process_id}/lora/mine.safetensors") == ADAPTER


def test_a_program_that_dies_while_it_stores_leaves_no_word_of_completion(
    engine, workspace, config
):
    class DyingStore(MemoryStore):
        """Ends the program at the first file, as a SIGKILL would."""

        def put_file(self, key, path):
            raise SystemExit(9)

    dying = TrainingService(engine, workspace, DyingStore(), Limits(30, 30, 30))
    process_id = dying.submit(dying.check(config))
    with pytest.raises(SystemExit):
        run(dying, process_id)
    assert dying.history(process_id).ending is None
    assert not dying.is_running(process_id)


def test_a_training_is_running_only_while_a_program_works_on_it(service, process_id):
    seen = []
    assert not service.is_running(process_id)
    run(service, process_id, lambda event: seen.append(service.is_running(process_id)))
    assert seen
    assert all(seen)
    assert not service.is_running(process_id)


def test_a_failed_training_stores_no_results(service, engine, store, process_id):
    engine.body = 'emit("failed", code="out_of_memory", message="full")'
    assert run(service, process_id).code == "out_of_memory"
    assert list(store.list()) == []
    with pytest.raises(NotFound, match="no finished adapter"):
        service.adapter(process_id)


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_crash_can_be_resumed_if_there_is_a_checkpoint(service, engine, process_id, checkpoint):
    engine.body = ('os.makedirs("checkpoints/step-5")\n' if checkpoint else "") + "sys.exit(1)"
    ending = run(service, process_id)
    assert (ending.code, ending.resumable) == ("engine_crashed", checkpoint)


def test_an_unknown_training_is_not_found(service, workspace):
    for process_id in ("train_00000000000000000000", "nonsense", "../../etc", ""):
        with pytest.raises(NotFound) as caught:
            run(service, process_id)
        assert caught.value.remedy
    assert not workspace.root.exists()


def test_a_training_without_a_job_can_not_be_run(service, process_id):
    (service.folder(process_id) / "job.json").unlink()
    with pytest.raises(InvalidCheckpoint):
        run(service, process_id)


def test_a_training_is_run_by_one_program_at_a_time(service, engine, process_id):
    refused = []

    def run_again(event):
        if event.type == "phase":
            with pytest.raises(AlreadyRunning, match=process_id) as caught:
                run(service, process_id)
            refused.append(caught.value)

    assert run(service, process_id, run_again).type == "done"
    assert len(refused) == 1
    engine.body = 'emit("stopped", step=1)'
    assert run(service, process_id) == Stopped(step=1)


def test_two_trainings_run_side_by_side(service, config):
    checked = service.check(config)
    ids = [service.submit(checked) for _ in range(2)]
    endings = {}
    threads = [
        threading.Thread(target=lambda id_=id_: endings.update({id_: run(service, id_).type}))
        for id_ in ids
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert endings == dict.fromkeys(ids, "done")


def test_history_tells_what_was_told(service, process_id):
    told = []
    ending = run(service, process_id, told.append)
    history = service.history(process_id)
    assert history.steps == [event for event in told if event.type == "step"]
    assert history.samples == [event for event in told if event.type == "sample"]
    assert history.ending == ending


def test_history_of_a_training_that_never_ran_is_empty(service, process_id):
    assert service.history(process_id) == ([], [], None)


def test_history_takes_the_last_attempts_word_for_each_step(service, engine, process_id):
    step = 'emit("step", step={}, total_steps=4, loss={}, learning_rate=0.1)\n'
    engine.body = (
        'emit("phase", phase="starting")\n'
        + "".join(step.format(n, 1) for n in (1, 2, 3))
        + 'emit("sample", step=3, index=0, path="old", prompt="", seed=0)\n'
        + "os._exit(1)"
    )
    assert run(service, process_id).type == "failed"
    engine.body = (
        'emit("phase", phase="starting")\n'
        'emit("resumed", step=2, path="checkpoints/step-2")\n'
        + "".join(step.format(n, 2) for n in (3, 4))
        + 'emit("sample", step=3, index=0, path="new", prompt="", seed=0)\n'
        + 'emit("stopped", step=4)'
    )
    assert run(service, process_id).type == "stopped"
    history = service.history(process_id)
    assert [(event.step, event.loss) for event in history.steps] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert [event.path for event in history.samples] == ["new"]
    assert history.ending == Stopped(step=4)


def test_history_of_a_training_that_runs_again_has_no_ending_yet(service, engine, process_id):
    engine.body = 'emit("failed", code="internal", message="x")'
    run(service, process_id)
    assert service.history(process_id).ending.type == "failed"
    endings = []
    engine.body = TRAINS
    run(service, process_id, lambda _: endings.append(service.history(process_id).ending))
    assert set(endings) == {None}


def write_events(service, process_id, data):
    (service.folder(process_id) / "events.jsonl").write_bytes(data)


def step_line(step):
    return StepDone(step=step, total_steps=9, loss=1, learning_rate=1).model_dump_json().encode()


def test_history_survives_the_torn_last_line_of_a_killed_program(service, process_id):
    torn = 'sample", "prompt": "ü'.encode()[:-1]
    write_events(service, process_id, step_line(1) + b'\n{"type": "' + torn)
    assert [event.step for event in service.history(process_id).steps] == [1]


def test_the_first_event_after_a_torn_line_is_not_lost(service, engine, process_id):
    write_events(service, process_id, step_line(1) + b'\n{"type": "st')
    engine.body = (
        'emit("step", step=2, total_steps=9, loss=1, learning_rate=1); emit("stopped", step=2)'
    )
    run(service, process_id)
    assert [event.step for event in service.history(process_id).steps] == [1, 2]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x1c", "\r"])
def test_history_keeps_samples_whatever_characters_their_prompts_hold(
    service, engine, process_id, character
):
    engine.body = (
        f'emit("sample", step=1, index=0, path="p", prompt={f"a{character}b"!r}, seed=0)\n'
        'emit("stopped")'
    )
    run(service, process_id)
    assert [event.prompt for event in service.history(process_id).samples] == [f"a{character}b"]


def test_history_keeps_a_loss_that_is_not_finite(service, engine, process_id):
    engine.body = (
        'emit("step", step=1, total_steps=9, loss=float("nan"), learning_rate=1); emit("stopped")'
    )
    run(service, process_id)
    assert len(service.history(process_id).steps) == 1


def test_a_stop_request_ends_the_training_as_stopped(service, engine, process_id):
    engine.body = """
def stop(*_):
    emit("stopped", step=1, checkpoint="checkpoints/step-1")
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
emit("phase", phase="training")
time.sleep(60)
"""
    stop = StopRequest()
    ending = service.run(process_id, lambda _: stop(), stop)
    assert ending == Stopped(step=1, checkpoint="checkpoints/step-1")
    assert service.history(process_id).ending == ending


def test_a_workspace_that_can_not_be_written_names_its_variable(service, config, workspace):
    workspace.root.write_text("a file where the workspace should be")
    with pytest.raises(LoradashError) as caught:
        service.submit(service.check(config))
    assert "WORKSPACE_PATH" in caught.value.remedy
