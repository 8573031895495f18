"""Which engine works on what: the catalogue, and the field that names one."""

import json

import pytest

from loradash.domain.engine_use import BUILT_IN_ENGINE, EngineUse
from loradash.domain.generation import GenerationRequest, parse_generation_text
from loradash.domain.process import ProcessRecord
from loradash.domain.training_text import parse_training, parse_training_text, training_text
from loradash.domain.yaml_text import load_mapping
from loradash.engines.catalogue import Engines
from loradash.engines.diffusers.engine import DiffusersEngine
from loradash.engines.engine import Trains
from loradash.errors import EngineUnavailable, InvalidConfig, InvalidRequest, InvalidSettings

from .world import World

SHORT = {"dataset": "cats", "base_model": "emoji-base"}


class OnlyTrains(Trains):
    """An engine that trains, and can do nothing else."""

    name = "other"
    version = "2.5"


@pytest.fixture
def engines():
    return Engines([DiffusersEngine(device="cpu", threads=1, offline=True), OnlyTrains()])


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_name_chooses_an_engine_and_none_chooses_the_default(engines):
    assert engines.choose("other") == EngineUse(name="other", version="2.5")
    assert engines.choose(None).name == BUILT_IN_ENGINE
    assert Engines([OnlyTrains()], "other").choose(None).name == "other"


def test_an_unknown_engine_is_refused_with_those_that_there_are(engines):
    with pytest.raises(InvalidConfig, match="'otter' isn't one of diffusers, other") as refused:
        engines.choose("otter")
    assert "did you mean 'other'" in refused.value.message


def test_a_default_that_is_not_there_is_an_error_of_the_settings():
    with pytest.raises(InvalidSettings, match="LORADASH_ENGINE: 'other' isn't one of diffusers"):
        Engines([DiffusersEngine(device="cpu", threads=1, offline=True)], "other")


def test_an_engine_without_an_ability_is_not_given_for_it(engines):
    assert engines.trainer("other").name == "other"
    assert engines.starter("other") is None
    with pytest.raises(InvalidRequest, match="the engine other can't generate"):
        engines.generator("other")
    with pytest.raises(InvalidRequest, match="the engine other can't extend trainings") as refused:
        engines.extender("other", "train_1")
    assert "--from-adapter train_1" in refused.value.remedy


def test_a_process_of_an_engine_that_is_not_here_says_so(engines):
    with pytest.raises(EngineUnavailable, match="'newer' isn't one of diffusers, other"):
        engines.trainer("newer")


@pytest.mark.parametrize("name", [" Diffusers", "DIFFUSERS", "diffusers"])
def test_both_forms_of_a_training_config_name_an_engine(name):
    short = parse_training({**SHORT, "engine": name})
    assert short.engine == "diffusers"
    assert load_mapping(training_text(short), "config")["engine"] == "diffusers"
    assert parse_training_text(training_text(short)) == short
    assert parse_training_text(training_text(short), {"engine": "other"}).engine == "other"
    assert parse_training(SHORT).engine is None
    assert "engine" not in training_text(parse_training(SHORT))


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 40, 7])
def test_a_text_that_is_no_name_of_an_engine_is_refused(name):
    with pytest.raises(InvalidConfig, match="engine"):
        parse_training({**SHORT, "engine": name})


def test_both_forms_of_a_generation_name_an_engine():
    own = "base_model: emoji-base\nprompts: [a cat]\nengine: other\n"
    assert parse_generation_text(own).engine == "other"
    process = {
        "type": "to_folder", "generate": {"prompts": ["a cat"]}, "model": {"name_or_path": "x"},
    }  # fmt: skip
    document = {"job": "generate", "engine": "other", "config": {"process": [process]}}
    assert parse_generation_text(json.dumps(document)).engine == "other"


def test_a_record_of_an_earlier_release_is_one_of_the_built_in_engine(world):
    text = world.waiting().model_dump(mode="json")
    del text["engine"]
    assert ProcessRecord.model_validate(text).engine == EngineUse(name=BUILT_IN_ENGINE, version="")


@pytest.mark.parametrize("kind", ["train", "generate"])
def test_a_request_for_an_unknown_engine_is_refused_and_leaves_nothing(world, kind):
    (world.root / "cats").mkdir()
    before = world.everything()
    fields = {"config": {**SHORT, "engine": "otter"}} if kind == "train" else {
        "prompt": "a cat", "base_model": "emoji-base", "engine": "otter",
    }  # fmt: skip
    reply = world.ask(kind, **fields)
    assert "'otter' isn't one of diffusers" in reply["error"]
    assert world.everything() == before


def test_the_record_names_the_engine_and_its_version(world):
    reply = world.ask("generate", prompt="a cat", base_model="emoji-base")
    engine = world.registry.get(reply["process_id"]).engine
    assert engine == EngineUse(name=BUILT_IN_ENGINE, version=world.engine.version)
    assert engine.version
    assert GenerationRequest(base_model="x", prompts=["a"]).engine is None
