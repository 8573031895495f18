"""What holds for every engine: real child processes, one suite over all of them.

What takes seconds to train is trained once for each engine and looked at by many tests.
"""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from loradash.domain.events import Done, Failed, Stopped
from loradash.domain.generation import GenerationRequest
from loradash.errors import InvalidAdapter, InvalidCheckpoint
from loradash.runtime.supervisor import StopRequest
from loradash.runtime.warm_pipeline import WarmPipeline
from loradash.services.datasets.folders import check_for_training

from .engine_cases import CASES, CREATED_AT, STEPS, Training, config_of, sha256, weights


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for number in range(2):
        Image.new("RGB", (32, 32), (90 * number, 40, 7)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a sks cat")
    return folder


@pytest.fixture(scope="module")
def through(case, data, tmp_path_factory):
    """A training that ran to its end, asked for a checkpoint and previews after step 2."""
    training = Training(case, tmp_path_factory.mktemp("through") / "t", data,
                        base_model=case.slow_base_model)  # fmt: skip
    able = case.able

    def ask(step, stop, lines):
        del stop
        if step == 1 and able.saves_now:
            lines.put(able.saves_now.save_line())
        if step == 1 and able.samples_now:
            lines.put(able.samples_now.sample_line())

    training.ending = training.run(ask)
    return training


@pytest.fixture(scope="module")
def continued(case, data, tmp_path_factory):
    """The same training, killed after a checkpoint and continued."""
    training = Training(case, tmp_path_factory.mktemp("killed") / "t", data,
                        base_model=case.slow_base_model, save_every=2)  # fmt: skip

    def kill(step, stop, lines):
        del lines
        if step == 3:
            stop()
            stop()

    training.first = training.run(kill)
    training.ending = training.run()
    return training


@pytest.fixture
def copy(through, tmp_path):
    """Return the finished training's folder to be changed."""
    shutil.copytree(through.folder, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_training_ends_with_an_adapter_that_verifies_and_is_as_announced(case, through):
    assert isinstance(through.ending, Done), through.ending
    (path,) = [one.path for one in case.engine.artifacts(through.folder) if one.kind == "lora"]
    assert str(path) == through.ending.path
    assert sha256(path) == through.ending.sha256
    assert path.stat().st_size == through.ending.size_bytes
    assert case.engine.verify_adapter(path) == case.engine.adapter_metadata(path)


def test_job_and_adapter_name_the_engine_and_its_version(case, through):
    engine = {"name": case.engine.name, "version": case.engine.version}
    assert engine["version"]
    assert json.loads(case.engine.job_file(through.folder).read_text())["engine"] == engine
    (path,) = [one.path for one in case.engine.artifacts(through.folder) if one.kind == "lora"]
    metadata = case.engine.verify_adapter(path)
    assert metadata["loradash.engine"] == engine["name"]
    assert metadata["loradash.engine_version"] == engine["version"]
    assert metadata["loradash.process_id"] == through.id
    assert metadata["loradash.steps"] == str(STEPS)
    assert metadata["loradash.trigger_word"] == "sks"


def test_every_step_is_told_once_and_in_order(through):
    steps = through.of("step")
    assert [one.step for one in steps] == list(range(1, STEPS + 1))
    assert {one.total_steps for one in steps} == {STEPS}
    assert all(one.loss > 0 and one.learning_rate > 0 and one.time_s for one in steps)


def test_what_is_announced_is_there_and_is_listed(case, through):
    listed = {str(one.path) for one in case.engine.artifacts(through.folder)}
    assert {one.path for one in through.of("sample")} <= listed
    assert {(one.index, one.prompt) for one in through.of("sample")} == {(0, "a sks cat")}
    assert all(one.path.is_file() for one in case.engine.artifacts(through.folder))
    assert str(case.engine.job_file(through.folder)) in listed
    checkpoints = case.engine.checkpoints(through.folder)
    announced = [one.path for one in through.of("checkpoint")]
    assert {str(one.folder) for one in checkpoints} <= set(announced)
    assert str(checkpoints[-1].folder) == announced[-1]


def test_checkpoints_lie_where_they_are_restored_to_and_nothing_else_is_in_them(case, through):
    place = case.engine.checkpoint_folder(through.folder)
    for one in case.engine.checkpoints(through.folder):
        assert one.folder.parent == place
        assert one.files == tuple(sorted(one.folder.rglob("*")))
    assert case.engine.has_checkpoint(through.folder)
    assert not any(one.path.is_relative_to(place) for one in case.engine.artifacts(through.folder))


def test_a_checkpoint_and_previews_that_were_asked_for_come_at_once(case, through):
    if case.able.saves_now:
        steps = [one.step for one in through.of("checkpoint")]
        assert steps[0] < 4 and steps[1:] == [4, STEPS]
    if case.able.samples_now:
        assert [one.step for one in through.of("sample")][1] < STEPS


def test_what_was_killed_goes_on_with_the_same_weights(case, through, continued):
    """That of `through` was asked to save and to draw meanwhile, which changes nothing either."""
    assert isinstance(continued.first, Stopped | Failed)
    assert isinstance(continued.ending, Done), continued.ending
    (resumed,) = continued.of("resumed")
    assert resumed.step == 2
    assert [one.step for one in continued.of("step")] == list(range(3, STEPS + 1))
    if case.able.resumes_exactly and case.able.resumes_exactly.resumes_exactly_on("cpu"):
        (one,), (other,) = (
            [found.path for found in case.engine.artifacts(training.folder) if found.kind == "lora"]
            for training in (through, continued)
        )
        assert weights(one) == weights(other)


def test_a_job_of_another_engine_is_not_run(case, copy):
    path = case.engine.job_file(copy)
    job = json.loads(path.read_text())
    path.write_text(json.dumps({**job, "engine": {"name": "other", "version": "1"}}))
    with pytest.raises(InvalidCheckpoint, match="other"):
        case.engine.training_command(copy)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "no json", '{"engine": 3}'])
def test_a_damaged_job_is_not_run(case, copy, text):
    case.engine.job_file(copy).write_text(text)
    with pytest.raises(InvalidCheckpoint):
        case.engine.training_command(copy)


def _cut(data):
    return data[:-1]


def _empty(data):
    return b""


def _longer(data):
    return data + b"\0"


def _no_header(data):
    return b"\xff" * 8 + data[8:]


def _infinite(data):
    return data[:-2] + (b"\x00\x7c" if b'"F16"' in data else b"\x80\x7f")


@pytest.mark.parametrize("damage", [_cut, _empty, _longer, _no_header, _infinite])
def test_a_damaged_adapter_does_not_verify(case, through, tmp_path, damage):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damage(Path(through.ending.path).read_bytes()))
    with pytest.raises(InvalidAdapter):
        case.engine.verify_adapter(path)


def test_lines_that_are_no_events_are_passed_over(case):
    for line in ("", "text", "{}", '{"type": "unknown"}', "[]", "null"):
        assert case.engine.parse(line) is None
    assert case.engine.parse('{"type": "done", "step": 3}') == Done(step=3)


def test_a_folder_without_a_training_has_no_results(case, tmp_path):
    engine = case.engine
    assert engine.artifacts(tmp_path) == engine.checkpoints(tmp_path) == []
    assert not engine.has_checkpoint(tmp_path)
    assert engine.artifacts(tmp_path / "missing") == []


def test_the_same_process_has_the_same_job(case, through, data, tmp_path):
    config = config_of(case, data, base_model=case.slow_base_model)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        case.engine.write_training_job(
            through.id, config, check_for_training(config), folder, CREATED_AT
        )
    one, other = (case.engine.job_file(folder).read_bytes() for folder in folders)
    assert one == other


# Ability: to extend trainings


def test_an_extended_training_goes_on_where_the_first_one_ended(case, through, data, tmp_path):
    if case.able.extends is None or case.engine.name == "diffusers":  # tests/engine/test_extension
        pytest.skip("tested elsewhere, or not there")
    longer = Training(case, tmp_path / "longer", data, steps=STEPS + 4)
    assert isinstance(longer.run(), Done)
    extended = Training(case, tmp_path / "extended", data, steps=STEPS + 4)
    job = case.engine.job_file(through.folder)
    case.able.extends.write_extended_job(
        extended.id, extended.config, job, (str(data),), extended.folder, CREATED_AT
    )
    shutil.copytree(
        case.engine.checkpoint_folder(through.folder),
        case.engine.checkpoint_folder(extended.folder),
    )
    ending = extended.run()
    assert isinstance(ending, Done), ending
    assert extended.of("resumed")[0].step == STEPS
    (one,), (other,) = (
        [found.path for found in case.engine.artifacts(training.folder) if found.kind == "lora"]
        for training in (longer, extended)
    )
    assert weights(one) == weights(other)


# Ability: to know what an adapter was trained with


def test_an_adapter_tells_its_rank_and_alpha(case, through):
    if case.able.starts is None:
        pytest.skip("not there")
    (path,) = [one.path for one in case.engine.artifacts(through.folder) if one.kind == "lora"]
    own = case.able.starts.network_of(path)
    assert (own["linear"], own["linear_alpha"]) == (2, 2.0)


# Ability: to generate in a process that stays


@pytest.fixture(scope="module")
def drawn(case, tmp_path_factory):
    """Three generations of one process: all images, without the first one, and stopped."""
    if case.able.generates is None:
        pytest.skip("not there")
    folder = tmp_path_factory.mktemp("drawn")
    pipeline = WarmPipeline(case.engine, folder / "log.txt", idle_unload_s=60)
    request = GenerationRequest(
        base_model=case.base_model, prompts=["a cat", "a dog"], seed=3, steps=1, width=32, height=32
    )
    case.engine.check_base_model(request.base_model)
    case.engine.check_generation(request)
    runs = {}
    try:
        for name, done in (("all", ()), ("rest", (0,)), ("stopped", ())):
            events, stop = [], StopRequest()
            if name == "stopped":
                stop("cancel")
            ending = pipeline.generate(
                name, request, (), folder / name, events.append, stop, 60, 60, done
            )
            runs[name] = ending, events, case.engine.images(folder / name)
        runs["starts"] = pipeline.starts
    finally:
        pipeline.close()
    return runs


def test_images_are_drawn_and_listed_with_prompts_and_seeds(drawn):
    ending, events, images = drawn["all"]
    assert isinstance(ending, Done), ending
    told = [event for event in events if event.type == "image"]
    assert [(one.index, one.prompt, one.seed) for one in told] == [(0, "a cat", 3), (1, "a dog", 3)]
    assert [one.path for one in told] == [str(path) for path in images]
    for path in images:
        with Image.open(path) as image:
            assert image.size == (32, 32)


def test_images_that_are_there_are_not_drawn_again_and_the_others_are_the_same(drawn):
    ending, events, images = drawn["rest"]
    assert isinstance(ending, Done)
    assert [event.index for event in events if event.type == "image"] == [1]
    assert [path.name for path in images] == [path.name for path in drawn["all"][2][1:]]
    with Image.open(images[0]) as one, Image.open(drawn["all"][2][1]) as other:
        assert one.tobytes() == other.tobytes()


def test_a_generation_that_is_stopped_says_so_and_the_process_stays(drawn):
    assert isinstance(drawn["stopped"][0], Stopped | Done)
    assert drawn["starts"] == 1


def test_a_request_to_stop_ends_a_training_with_a_checkpoint(case, data, tmp_path):
    if case.engine.name == "diffusers":
        pytest.skip("tests/acceptance kills and stops it")
    training = Training(case, tmp_path / "t", data, base_model=case.slow_base_model)
    ending = training.run(lambda step, stop, lines: stop() if step == 2 else None)
    assert isinstance(ending, Stopped)
    assert ending.step < STEPS
    assert ending.checkpoint == str(case.engine.checkpoints(training.folder)[-1].folder)
    assert isinstance(training.run(), Done)
