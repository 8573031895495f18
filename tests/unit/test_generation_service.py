import json
import sys

import pytest

from loradash.domain.events import parse_event
from loradash.domain.generation import GenerationRequest
from loradash.domain.ids import is_process_id
from loradash.engines.engine import Command
from loradash.errors import InvalidAdapter, LoradashError, NotFound
from loradash.runtime.supervisor import Limits, StopRequest
from loradash.runtime.warm_pipeline import WarmPipeline
from loradash.runtime.workspace import Workspace
from loradash.services.generation import GenerationService
from loradash.storage.memory import MemoryStore

from .conftest import PRELUDE

ID = "train_01k9x3q4zt8m2v7c0hde"
GENERATOR = """
for line in sys.stdin:
    job = json.loads(line)
    id, folder = job["request_id"], job["folder"]
    os.makedirs(folder, exist_ok=True)
    for n, prompt in enumerate(job["prompts"]):
        path = f"{folder}/image_{n:04d}.png"
        open(path, "w").write(prompt)
        emit("image", request_id=id, index=n, path=path, prompt=prompt, seed=n, duration_s=0)
    if "fail" in job["prompts"]:
        emit("failed", request_id=id, code="out_of_memory", message="full")
    else:
        emit("done", request_id=id)
    emit("ready")
"""


class ScriptedEngine:
    """Draws an image by writing its prompt into a file; an adapter is any file with ``LORA``."""

    def __init__(self, folder):
        self.folder = folder

    def adapter_metadata(self, path):
        if not path.read_text().startswith("LORA"):
            raise InvalidAdapter(f"{path}: no LoRA", remedy="Train again.")
        return json.loads(path.read_text()[4:] or "{}")

    def serve_command(self, working_directory):
        script = self.folder / "engine_script.py"
        script.write_text(PRELUDE + GENERATOR)
        return Command(
            argv=(sys.executable, "-S", "-E", str(script)), working_directory=self.folder
        )

    def generation_line(self, request_id, request, adapters, folder):
        return json.dumps(
            {"request_id": request_id, "prompts": request.prompts, "folder": str(folder)}
        )

    def parse(self, line):
        return parse_event(line)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "work")


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def service(workspace, store, tmp_path):
    engine = ScriptedEngine(tmp_path)
    pipeline = WarmPipeline(engine, tmp_path / "log.txt", idle_unload_s=60)
    limits = Limits(timeout_s=20, stall_s=20, grace_s=1)
    service = GenerationService(engine, pipeline, workspace, store, limits)
    yield service
    service.close()


@pytest.fixture
def adapter(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text('LORA{"loradash.base_model": "emoji-base"}')
    return path


def request(*prompts, **fields):
    return GenerationRequest(base_model="emoji-base", prompts=prompts, **fields)


def test_images_are_drawn_and_stored(service, store, workspace):
    events = []
    result = service.run(request("a cat", "a dog"), events.append, StopRequest())
    assert result.ending.type == "done"
    assert is_process_id(result.process_id)
    assert [event.prompt for event in result.images] == ["a cat", "a dog"]
    assert [event.type for event in events] == ["image", "image"]
    folder = workspace.generation(result.process_id)
    assert (folder / "image_0001.png").read_text() == "a dog"
    assert store.get(f"results/{result.process_id}/images/image_0001.png") == b"a dog"


def test_a_failed_generation_stores_nothing_and_tells_which_images_are_there(service, store):
    result = service.run(request("a cat", "fail"), lambda event: None, StopRequest())
    assert result.ending.code == "out_of_memory"
    assert len(result.images) == 2
    assert list(store.list()) == []


def test_a_generation_with_an_unknown_adapter_starts_nothing(service, workspace):
    wanted = request("a cat", adapters=({"path": "missing.safetensors"},))
    with pytest.raises(NotFound, match=r"missing\.safetensors"):
        service.run(wanted, lambda event: None, StopRequest())
    assert not workspace.root.exists()


def test_an_adapter_is_found_by_its_path(service, adapter, monkeypatch):
    assert service.find_adapter(str(adapter)) == adapter
    monkeypatch.chdir(adapter.parent)
    assert service.find_adapter("a.safetensors") == adapter


def test_an_adapter_is_found_by_the_training_that_made_it(service, workspace, store):
    path = workspace.training(ID) / "lora" / "mine.safetensors"
    path.parent.mkdir(parents=True)
    path.write_text("LORA")
    store.put(f"results/{ID}/lora/mine.safetensors", b"LORA from elsewhere")
    assert service.find_adapter(ID) == path


def test_an_adapter_of_another_machine_is_fetched_once(service, store):
    store.put(f"results/{ID}/lora/mine.safetensors", b"LORA")
    path = service.find_adapter(ID)
    assert path.read_text() == "LORA"
    before = path.stat().st_mtime_ns
    assert service.find_adapter(ID) == path
    assert path.stat().st_mtime_ns == before


def test_a_fetched_adapter_that_is_not_whole_is_fetched_again(service, store):
    store.put(f"results/{ID}/lora/mine.safetensors", b"LORA{}")
    service.find_adapter(ID).write_text("LO")
    assert service.find_adapter(ID).read_text() == "LORA{}"


def test_a_training_without_an_adapter_is_told(service):
    with pytest.raises(NotFound, match="no finished adapter") as caught:
        service.find_adapter(ID)
    assert ID in caught.value.remedy


def test_an_adapter_that_does_not_verify_is_refused(service, adapter):
    adapter.write_text("something else")
    with pytest.raises(InvalidAdapter):
        service.find_adapter(str(adapter))


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.bin", "a"])
def test_only_safetensors_files_are_adapters(service, tmp_path, name):
    (tmp_path / name).write_text("LORA")
    with pytest.raises(InvalidAdapter, match=r"only \.safetensors"):
        service.find_adapter(str(tmp_path / name))


@pytest.mark.parametrize(
    "reference", ["~nobody-has-this-name/a.safetensors", f"{'x' * 300}.safetensors"]
)
def test_an_adapter_that_can_not_exist_is_refused(service, reference):
    with pytest.raises(LoradashError) as caught:
        service.find_adapter(reference)
    assert caught.value.remedy


def test_an_adapter_names_its_base_model(service, adapter):
    assert service.base_model_of(str(adapter)) == "emoji-base"
    adapter.write_text("LORA")
    with pytest.raises(InvalidAdapter, match="which base model"):
        service.base_model_of(str(adapter))
