"""Another engine is a folder of its own and one line in the wiring, as docs/engines.md says."""

import shutil

import pytest
from PIL import Image

from loradash.errors import InvalidAdapter, InvalidRequest
from loradash.runtime.supervisor import StopRequest
from loradash.settings import Settings
from loradash.wiring import core as wiring
from loradash.wiring.core import make_core, make_dispatcher

from .toy_engine import ToyEngine


@pytest.fixture
def core(tmp_path, monkeypatch):
    """Everything that a server has, with one line more in the list of engines."""
    monkeypatch.setattr(wiring, "ENGINES", (*wiring.ENGINES, lambda _: ToyEngine()))
    settings = Settings(WORKSPACE_PATH=tmp_path / "workspace", LORADASH_MIN_FREE_DISK_MB=0)
    core = make_core(settings)
    yield core
    core.close()


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (64, 64), (1, 2, 3)).save(folder / "a.png")
    return folder


def submitted(core, data, **settings):
    config = {
        "dataset": str(data), "base_model": "any", "name": "mine", "engine": "toy", "steps": 4,
        "save_every": 0, **settings,
    }  # fmt: skip
    reply = make_dispatcher(core).answer({"type": "train", "config": config})
    assert "error" not in reply, reply
    return reply["process_id"]


def run(core, process_id):
    return core.runner.run_here(process_id, lambda event: None, StopRequest())


def test_it_trains_and_its_results_are_kept_and_found_by_its_own_names(core, data):
    process_id = submitted(core, data)
    assert run(core, process_id).type == "done"
    record = core.registry.get(process_id)
    assert (record.status, record.engine.name, record.engine.version) == ("completed", "toy", "0.7")
    stored = {entry.name: entry.kind for entry in core.registry.artifacts(process_id)}
    assert stored["mine.toy"] == "lora"
    assert stored["order.txt"] == "job"
    assert {"config.yaml": "config", "log.txt": "log", "events.jsonl": "metrics"}.items() <= (
        stored.items()
    )
    (path,) = core.engines.adapters_in(core.workspace.training(process_id))
    assert path.read_bytes() == b"TOY 10"


def test_it_goes_on_elsewhere_from_checkpoints_of_its_own_layout(core, data):
    """They lie deeper than one folder, and their names don't sort by their steps."""
    process_id = submitted(core, data, steps=11, save_every=10)
    ending = run(core, process_id)
    assert (ending.code, ending.resumable) == ("engine_crashed", True)
    shutil.rmtree(core.workspace.training(process_id))
    assert run(core, process_id).type == "done"
    steps = [one.from_step for one in core.registry.get(process_id).attempts]
    assert steps == [0, 10]
    (path,) = core.engines.adapters_in(core.workspace.training(process_id))
    assert path.read_bytes() == b"TOY 66"


def test_it_may_take_settings_that_the_built_in_engine_refuses(core, data):
    config = f"""
        job: extension
        engine: toy
        config:
          name: mine
          process:
          - type: sd_trainer
            network: {{type: lokr}}
            train: {{optimizer: automagic, steps: 2}}
            model: {{name_or_path: any}}
            datasets: [{{folder_path: {data}}}]
    """
    reply = make_dispatcher(core).answer({"type": "train", "config": config})
    assert reply["warnings"] == ["the toy takes networks of type lokr"]
    assert run(core, reply["process_id"]).type == "done"
    refused = make_dispatcher(core).answer(
        {"type": "train", "config": config.replace("engine: toy", "engine: diffusers")}
    )
    assert "networks of type lokr" in refused["error"]


def test_what_it_can_not_do_is_refused_by_name(core, data):
    process_id = submitted(core, data)
    run(core, process_id)
    with pytest.raises(InvalidRequest, match="the engine toy can't extend trainings"):
        core.training.check_extension(process_id, 9)
    reply = make_dispatcher(core).answer(
        {"type": "generate", "prompt": "a cat", "base_model": "any", "engine": "toy"}
    )
    assert "the engine toy can't generate" in reply["error"]
    with pytest.raises(InvalidAdapter):  # nor can another engine use its adapters
        core.generation.find_adapter(process_id, "scripted")
