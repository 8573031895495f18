"""Starting processes: checked, submitted, and the executor told."""

import pytest

from loradash.domain.process import Status
from loradash.domain.yaml_text import load_mapping
from loradash.errors import InvalidRequest, LoradashError
from loradash.services.processes.starting import Submission

from .world import TRAINING, World, picture

SUBMISSION = Submission(request_id="req_1", priority=2)


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = World(tmp_path)
    world.submitted = []
    monkeypatch.setattr(world.executor, "submitted", world.submitted.append)
    folder = world.workspace.root / "cats"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    world.config = TRAINING.replace("cats", str(folder))
    return world


def train(world, text, **submission):
    return world.services.starting.train(
        load_mapping(text, "config"), text, SUBMISSION.model_copy(update=submission)
    )


def test_a_training_is_submitted_and_the_executor_told(world):
    started = train(world, world.config)
    record = world.registry.get(started.id)
    assert (started.kind, started.name, started.status) == ("training", "cat", Status.PENDING)
    assert (record.priority, record.request_id) == (2, "req_1")
    assert world.submitted == [started.id]


def test_a_generation_is_submitted_and_the_executor_told(world):
    settings = {"prompts": ["<lora:unheard:1> a cat"], "base_model": "emoji-base"}
    started = world.services.starting.generate(settings, SUBMISSION)
    assert (started.kind, started.status) == ("generation", Status.PENDING)
    assert "unheard" in started.warnings[0]
    assert world.submitted == [started.id]


def test_a_generation_takes_the_base_model_of_its_adapter(world):
    adapter = world.trained().id
    settings = {"prompts": ["a cat"], "adapters": [adapter]}
    started = world.services.starting.generate(settings, SUBMISSION)
    assert world.registry.get(started.id).summary["base_model"] == "emoji-base"


def test_what_is_refused_leaves_nothing_behind(world):
    before = world.everything()
    starting = world.services.starting
    with pytest.raises(LoradashError):
        train(world, world.config.replace("emoji-base", "no/such/model"))
    with pytest.raises(InvalidRequest, match="base_model: missing"):
        starting.generate({"prompts": ["a cat"]}, SUBMISSION)
    with pytest.raises(LoradashError):
        starting.extend("train_00000000000000000000", 20, "", SUBMISSION)
    assert world.submitted == []
    assert world.everything() == before


def test_what_is_submitted_again_is_the_same_process(world):
    first, second = (train(world, world.config, idempotency_key="monday") for _ in range(2))
    assert first == second
