"""A training that starts from an adapter: found by file, id, key or name, verified, and kept."""

import json
import shutil
from pathlib import Path

import pytest

from loradash.domain.process import Status
from loradash.domain.training_text import parse_training, parse_training_text
from loradash.engines.catalogue import Engines
from loradash.errors import InvalidAdapter, NotFound
from loradash.runtime.orphans import ChildRecords
from loradash.services.adapters.uses import users_of
from loradash.services.path_policy import PathPolicy
from loradash.services.processes.submission import stored_config
from loradash.services.training.service import TrainingService
from loradash.services.training.starting_adapter import START_FILE

from .here import LIMITS, Here
from .test_extension import CHECKPOINT, ExtendingEngine
from .test_training_service import ADAPTER, SHA256, TRAINS

STARTS = 'assert open("start.safetensors", "rb").read() == b"LORA weights"\n' + TRAINS


class StartingEngine(ExtendingEngine):
    """A scripted engine whose adapters have rank 6 and alpha 3, and whose job shows the config."""

    def network_of(self, path):
        assert path.read_bytes().startswith(b"LORA")
        return {"linear": 6, "linear_alpha": 3.0}

    def check_training(self, config):
        if path := config.process.network.pretrained_lora_path:
            self.adapter_metadata(Path(path))
        return ()

    def write_training_job(self, process_id, config, reports, folder, created_at):
        super().write_training_job(process_id, config, reports, folder, created_at)
        job = json.loads(self.job_file(folder).read_text())
        job["network"] = config.process.network.model_dump(exclude_unset=True)
        self.job_file(folder).write_text(json.dumps(job))


@pytest.fixture
def engine():
    return StartingEngine(TRAINS + CHECKPOINT)


@pytest.fixture
def here(tmp_path, engine):
    here = Here(tmp_path / "workspace")
    here.service = TrainingService(
        Engines([engine], engine.name), here.workspace, here.store, here.registry,
        here.datasets, LIMITS, ChildRecords(here.workspace.run),
    )  # fmt: skip
    here.works["training"] = here.service
    return here


@pytest.fixture
def data(save_image):
    return str(save_image("a.png", caption="a cat").parent)


@pytest.fixture
def first(here, engine, data):
    config = parse_training({"dataset": data, "base_model": "emoji-base", "name": "mine"})
    process_id = here.service.submit(here.service.check(config)).id
    assert here.run(process_id).type == "done"
    engine.body = STARTS + CHECKPOINT
    return process_id


def config_from(data, adapter, **fields):
    return parse_training(
        {"dataset": data, "base_model": "emoji-base", "name": "next", "from_adapter": adapter,
         "steps": 2, **fields}
    )  # fmt: skip


def submitted(here, config):
    return here.service.submit(here.service.check(config))


def network_of_job(here, process_id):
    return json.loads((here.workspace.training(process_id) / "job.json").read_text())["network"]


@pytest.mark.parametrize("how", ["id", "name", "key", "file"])
def test_a_training_starts_from_what_was_named_and_its_record_says_so(
    here, first, data, tmp_path, how
):
    (entry,) = here.registry.artifacts(first, ["lora"])
    file = tmp_path / "other.safetensors"
    file.write_bytes(ADAPTER)
    reference = {"id": first, "name": "mine", "key": entry.key, "file": str(file)}[how]
    record = submitted(here, config_from(data, reference))
    origin = record.origin
    assert (origin.kind, origin.sha256) == ("adapter", SHA256)
    assert (origin.process_id, origin.name) == (
        ("", "other.safetensors") if how == "file" else (first, "mine.safetensors")
    )
    stored = parse_training_text(stored_config(here.store, record)).process.network
    assert stored.pretrained_lora_path == (first if how == "name" else reference)
    assert here.run(record.id).type == "done"
    assert network_of_job(here, record.id) == {
        "type": "lora", "linear": 6, "linear_alpha": 3.0, "pretrained_lora_path": START_FILE,
    }  # fmt: skip
    assert here.artifacts(record.id)[START_FILE].sha256 == SHA256


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (6, 3.0)),
        ({"rank": 8}, (8, 8.0)),
        ({"alpha": 5}, (6, 5.0)),
        ({"rank": 8, "alpha": 2}, (8, 2.0)),
    ],
)
def test_rank_and_alpha_are_the_adapters_unless_they_are_given(here, first, data, given, expected):
    network = here.service.check(config_from(data, first, **given)).config.process.network
    assert (network.rank, network.alpha) == expected


def test_a_config_of_the_full_form_leaves_rank_and_alpha_open_too(here, first, data):
    short = config_from(data, first).model_dump(mode="json", exclude_unset=True)
    for written, expected in (({}, (6, 3.0)), ({"rank": 6, "alpha": 1}, (6, 1.0))):
        network = {"type": "lora", "pretrained_lora_path": first, **written}
        config = parse_training(short, {"network": network})
        checked = here.service.check(config).config.process.network
        assert (checked.rank, checked.alpha) == expected


def test_another_machine_has_the_adapter_whatever_became_of_the_original(
    here, engine, first, data, tmp_path
):
    file = tmp_path / "other.safetensors"
    file.write_bytes(ADAPTER)
    record = submitted(here, config_from(data, str(file)))
    engine.body = 'emit("failed", code="internal", message="x", resumable=True)'
    assert here.run(record.id).type == "failed"
    file.unlink()
    shutil.rmtree(here.workspace.root)
    engine.body = STARTS + CHECKPOINT
    assert here.run(record.id).type == "done"


def test_an_adapter_that_is_another_one_by_now_fails_the_training(here, first, data, tmp_path):
    file = tmp_path / "other.safetensors"
    file.write_bytes(ADAPTER)
    record = submitted(here, config_from(data, str(file)))
    file.write_bytes(b"LORA of somebody else")
    assert here.run(record.id).code == "adapter_invalid"
    assert "has changed" in here.record(record.id).error.message
    file.write_bytes(ADAPTER)
    assert here.run(record.id).type == "done"


def test_an_extension_of_such_a_training_has_its_adapter_too(here, engine, first, data):
    second = submitted(here, config_from(data, first)).id
    assert here.run(second).type == "done"
    here.registry.drop_artifacts(first, [one.key for one in here.registry.artifacts(first)])
    shutil.rmtree(here.workspace.root)
    third = here.service.submit(here.service.check_extension(second, 5))
    assert (third.origin.kind, third.origin.process_id) == ("extends", second)
    engine.body = (STARTS + CHECKPOINT).replace("step=2", "step=5").replace("00002", "00005")
    assert here.run(third.id).type == "done"
    assert here.artifacts(third.id)[START_FILE].sha256 == SHA256


def test_what_is_no_adapter_is_refused_before_anything_is_submitted(here, first, data, tmp_path):
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"junk")
    waiting = submitted(here, config_from(data, first)).id
    for reference, error in (
        (str(junk), InvalidAdapter), (waiting, NotFound), ("nobody", NotFound),
        (str(tmp_path / "none.safetensors"), NotFound), (str(tmp_path), InvalidAdapter),
        ("train_01k9x3q4zt8m2v7c0hde", NotFound), (f"results/{first}/lora/x.safetensors", NotFound),
    ):  # fmt: skip
        with pytest.raises(error) as refused:
            here.service.check(config_from(data, reference))
        assert refused.value.remedy


def test_a_request_names_no_file_outside_its_places(here, first, data, tmp_path):
    outside = tmp_path / "secret.safetensors"
    outside.write_bytes(ADAPTER)
    places = PathPolicy([here.workspace.root])
    config = config_from(data, str(outside))
    with pytest.raises(InvalidAdapter, match="not a place"):
        here.service._starts.find("scripted", config.process.network.pretrained_lora_path, places)
    assert here.service._starts.find("scripted", "mine", places).origin.process_id == first


def test_the_adapter_that_a_waiting_training_starts_from_is_not_deleted(here, first, data):
    record = submitted(here, config_from(data, "mine"))
    assert [one.id for one in users_of(here.registry, first, "lora")] == [record.id]
    here.run(record.id)
    assert here.record(record.id).status is Status.COMPLETED
    assert users_of(here.registry, first) == []
