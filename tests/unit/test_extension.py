"""More steps for a finished training: what is asked, what is refused, and what stays as it was."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from loradash.cli.app import app
from loradash.domain.process import Status
from loradash.domain.training_text import parse_training, parse_training_text
from loradash.engines.catalogue import Engines
from loradash.errors import (
    ConflictingState,
    InvalidCheckpoint,
    InvalidConfig,
    InvalidRequest,
    NotFound,
)
from loradash.runtime.orphans import ChildRecords
from loradash.services.adapters.uses import require_unused, users_of
from loradash.services.processes.submission import stored_config
from loradash.services.training.service import TrainingService

from .here import LIMITS, Here
from .test_training_service import TRAINS, ScriptedEngine, upload
from .world import World

CHECKPOINT = """
os.makedirs("checkpoints/step-000000002")
open("checkpoints/step-000000002/state", "w").write("state of step 2")
emit("checkpoint", step=2, path=os.path.abspath("checkpoints/step-000000002"), size_bytes=15)
"""
GOES_ON = """
assert open("checkpoints/step-000000002/state").read() == "state of step 2"
emit("resumed", step=2, path="checkpoints/step-000000002")
""" + (TRAINS + CHECKPOINT).replace("step=2", "step=5").replace("00002", "00005")


class ExtendingEngine(ScriptedEngine):
    """A scripted engine that can go on from a finished job."""

    def extension_warnings(self, before, config):
        return ("another schedule",)

    def write_extended_job(self, process_id, config, job, data, folder, created_at):
        document = json.loads(job.read_text())
        document |= {"id": process_id, "steps": config.process.train.steps, "folders": data}
        self.job_file(folder).write_text(json.dumps(document))


@pytest.fixture
def engine():
    return ExtendingEngine(TRAINS + CHECKPOINT)


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
def config(save_image):
    folder = save_image("a.png", caption="a cat").parent
    return parse_training(
        {"dataset": str(folder), "base_model": "emoji-base", "name": "mine", "steps": 2}
    )


@pytest.fixture
def first(here, config):
    """A completed training of two steps."""
    process_id = here.service.submit(here.service.check(config)).id
    assert here.run(process_id).type == "done"
    return process_id


def submitted(here, process_id, steps=5, **fields):
    return here.service.submit(here.service.check_extension(process_id, steps, **fields))


def everything(here, process_id):
    return (
        here.record(process_id), here.registry.artifacts(process_id),
        here.registry.metrics(process_id), here.registry.log(process_id),
        {info.key: here.store.get(info.key) for info in here.store.list(f"results/{process_id}")},
    )  # fmt: skip


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same machine", "another machine"])
def test_an_extension_is_a_process_of_its_own_that_begins_at_the_last_checkpoint(
    here, engine, first, elsewhere
):
    before = everything(here, first)
    record = submitted(here, first)
    assert record.id != first
    assert (record.progress.step, record.progress.total_steps) == (2, 5)
    assert (record.origin.kind, record.origin.process_id, record.origin.step) == (
        "extends", first, 2,
    )  # fmt: skip
    config = parse_training_text(stored_config(here.store, record))
    assert config.process.train.steps == 5
    assert (config.name, record.name) == ("mine-5", "mine-5")
    if elsewhere:
        shutil.rmtree(here.workspace.root)
    engine.body = GOES_ON
    assert here.run(record.id).type == "done"
    job = json.loads((here.workspace.training(record.id) / "job.json").read_text())
    assert (job["id"], job["steps"], job["images"]) == (record.id, 5, 1)
    ended = here.record(record.id)
    assert ended.status is Status.COMPLETED
    assert ended.attempt.from_step == 2
    assert f"goes on from the last checkpoint of {first}" in here.log(record.id)
    assert everything(here, first) == before
    third = submitted(here, record.id, 9)
    assert (third.name, third.origin.process_id, third.origin.step) == ("mine-9", record.id, 5)


def test_an_attempt_that_broke_off_before_its_first_checkpoint_begins_there_again(
    here, engine, first
):
    record = submitted(here, first)
    engine.body = 'emit("failed", code="internal", message="x", resumable=True)'
    assert here.run(record.id).type == "failed"
    shutil.rmtree(here.workspace.root)
    engine.body = GOES_ON
    assert here.run(record.id).type == "done"


def test_an_extension_is_named_and_found_by_names_and_by_its_key(here, first):
    assert submitted(here, "mine", name="longer").name == "longer"
    checked = here.service.check_extension(first, 5)
    assert checked.warnings == ("another schedule", "a warning")
    one, same = (here.service.submit(checked, key="k") for _ in range(2))
    assert one.id == same.id
    assert one.config_key == same.config_key


@pytest.mark.parametrize(("steps", "verb"), [(1, "is"), (2, "are")])
def test_a_number_of_steps_that_is_not_more_is_refused(here, first, steps, verb):
    with pytest.raises(InvalidConfig, match=f"2 steps already, and {steps} in all {verb} not more"):
        here.service.check_extension(first, steps)


def test_only_completed_trainings_are_extended_and_others_are_told_what_to_do(here, engine, config):
    waiting = here.service.submit(here.service.check(config)).id
    with pytest.raises(ConflictingState, match="is pending"):
        here.service.check_extension(waiting, 5)
    engine.body = 'emit("failed", code="internal", message="x")'
    here.run(waiting)
    with pytest.raises(ConflictingState, match="is failed") as refused:
        here.service.check_extension(waiting, 5)
    assert f"--resume {waiting}" in refused.value.remedy
    for unknown in ("train_01k9x3q4zt8m2v7c0hde", "nobody"):
        with pytest.raises(NotFound):
            here.service.check_extension(unknown, 5)


@pytest.mark.parametrize("kind", ["checkpoint", "job"])
@pytest.mark.parametrize("how", ["object", "list"])
def test_what_is_gone_is_named_before_anything_is_submitted(here, first, kind, how):
    keys = [entry.key for entry in here.registry.artifacts(first, [kind])]
    if how == "object":
        here.store.delete_many(keys)
    else:
        here.registry.drop_artifacts(first, keys)
    with pytest.raises(InvalidCheckpoint, match=f"its {kind}") as refused:
        here.service.check_extension(first, 5)
    assert f"--from-adapter {first}" in refused.value.remedy


@pytest.mark.parametrize("kind", ["checkpoint", "job"])
def test_what_is_lost_while_it_waits_fails_the_extension_with_the_remedy(here, first, kind):
    record = submitted(here, first)
    here.store.delete_many([entry.key for entry in here.registry.artifacts(first, [kind])])
    assert here.run(record.id).code == "checkpoint_invalid"
    error = here.record(record.id).error
    verb = "are" if kind == "checkpoint" else "is"
    assert f"its {kind}{'s' if kind == 'checkpoint' else ''} {verb} not in" in error.message
    assert first in error.remedy


def test_checkpoints_that_an_extension_needs_are_not_deleted(here, first):
    record = submitted(here, first)
    for result_type in ("checkpoints", "all"):
        with pytest.raises(ConflictingState, match=record.id):
            require_unused(here.registry, first, result_type)
    assert users_of(here.registry, first, "lora") == []


def test_an_engine_without_the_ability_says_so(here, first):
    other = TrainingService(
        Engines([ScriptedEngine()], "scripted"),
        here.workspace,
        here.store,
        here.registry,
        here.datasets,
        LIMITS,
    )
    with pytest.raises(InvalidRequest, match="can't extend") as refused:
        other.check_extension(first, 5)
    assert first in refused.value.remedy


def test_a_stored_dataset_is_fetched_for_the_extension_and_found_from_its_own_folder(
    here, engine, tmp_path
):
    upload(here, "cats", cat=1)
    config = parse_training({"dataset": "cats", "base_model": "emoji-base", "steps": 2})
    first = here.service.submit(here.service.check(config)).id
    here.run(first)
    record = submitted(here, first)
    shutil.rmtree(here.workspace.root)
    engine.body = GOES_ON
    assert here.run(record.id).type == "done"
    job = here.workspace.training(record.id) / "job.json"
    (folder,) = json.loads(job.read_text())["folders"]
    assert folder == f"../../../training_data/{record.id}/0"
    assert (job.parent / folder / "cat.png").is_file()


# The request and the command


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"extend": {"process_id": "train_01k9x3q4zt8m2v7c0hde"}}, "extend.steps"),
        ({"extend": {"steps": 3}}, "extend.process_id"),
        ({"extend": {"process_id": "x", "steps": 0}}, "extend.steps"),
        ({"extend": {"process_id": "x", "steps": "3"}}, "extend.steps"),
        ({"extend": {"process_id": "x", "steps": 3, "lr": 1}}, "extend.lr"),
        ({"extend": {"process_id": "x", "steps": 3}, "config": "steps: 1"}, "extend, config"),
        ({"extend": "train_01k9x3q4zt8m2v7c0hde"}, "extend"),
        ({"extend": {"process_id": "train_01k9x3q4zt8m2v7c0hde", "steps": 3}}, "no process"),
        ({"extend": {"process_id": "nobody", "steps": 3}}, "nobody"),
    ],
)
def test_requests_to_extend_that_make_no_sense_are_told_by_field(tmp_path, fields, named):
    world = World(tmp_path)
    before = world.everything()
    reply = world.ask("train", **fields)
    assert named in reply["error"]
    assert world.everything() == before


def test_the_origin_of_a_process_is_shown(here, first):
    world = World(here.root.parent, registry=here.registry, store=here.store)
    record = submitted(here, first)
    shown = world.ask("process_status", process_id=record.id)
    assert shown["origin"] == {
        "kind": "extends", "process_id": first, "step": 2, "name": "", "sha256": "",
    }  # fmt: skip
    assert world.ask("process_status", process_id=first)["origin"] is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--steps", "5", "--rank", "8"], "--rank"),
        (["--steps", "5", "--set", "train.lr=1"], "--set"),
        (["--steps", "5", "--resume", "train_a"], "one of them"),
        ([], "--steps"),
    ],
)
def test_the_command_names_what_an_extension_cannot_take(options, said):
    refused = CliRunner().invoke(app, ["train", "--extend", "train_a", *options])
    assert refused.exit_code == 2
    assert said in refused.output
