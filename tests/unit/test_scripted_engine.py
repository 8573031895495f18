"""What the scripted engine can be told to do, and that it does it; real child processes."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from loradash.domain.events import Done, Failed, Stopped
from loradash.domain.training_text import parse_training
from loradash.engines.scripted.engine import ScriptedEngine
from loradash.engines.scripted.orders import Orders, parse_orders
from loradash.errors import EngineCrashed, EngineStalled, InvalidBaseModel
from loradash.runtime.supervisor import Limits, StopRequest, supervise

ENGINE = ScriptedEngine()


class Run:
    """A training with orders, in a folder of its own."""

    def __init__(self, folder, orders, **settings):
        self.folder = folder
        self.config = parse_training(
            {"dataset": "x", "base_model": f"scripted:{orders}", "steps": 5, "save_every": 2,
             **settings}
        )  # fmt: skip
        ENGINE.write_training_job(
            "train_1", self.config, (), folder, datetime(2026, 1, 1, tzinfo=UTC)
        )

    def go(self, *, stall_s=30.0, grace_s=5.0, stop_at=None):
        self.events, stop = [], StopRequest()

        def on_event(event):
            self.events.append(event)
            if event.type == "step" and event.step == stop_at:
                stop()

        return supervise(
            ENGINE.training_command(self.folder), ENGINE.parse, self.folder / "log.txt", on_event,
            Limits(timeout_s=60, stall_s=stall_s, grace_s=grace_s), stop,
            lambda: ENGINE.has_checkpoint(self.folder),
        )  # fmt: skip


def test_orders_are_read_and_other_names_have_none():
    assert parse_orders("scripted:step_s=0.5, crash_at=7,once=1") == Orders(
        step_s=0.5, crash_at=7, once=1
    )
    assert parse_orders("scripted:") == parse_orders("emoji-base") == Orders()


@pytest.mark.parametrize(
    "text", ["crash=7", "crash_at", "crash_at=x", "crash_at=-1", "step_s=nan", "crash_at=1.5"]
)
def test_an_order_that_is_none_is_refused_with_those_that_there_are(text):
    config = parse_training({"dataset": "x", "base_model": f"scripted:{text}"})
    with pytest.raises(InvalidBaseModel, match=r"model\.name_or_path") as refused:
        ENGINE.check_training(config)
    assert refused.value.remedy
    with pytest.raises(InvalidBaseModel):
        ENGINE.check_base_model(f"scripted:{text}")


def test_it_says_that_nothing_is_learned():
    (warning,) = ENGINE.check_training(parse_training({"dataset": "x", "base_model": "any"}))
    assert "learns nothing" in warning


def test_a_step_can_fail_once_and_the_resumed_training_ends(tmp_path):
    run = Run(tmp_path, "fail_at=3,once=1")
    ending = run.go()
    assert isinstance(ending, Failed)
    assert (ending.code, ending.resumable) == ("scripted_failure", True)
    assert isinstance(run.go(), Done)
    assert [event.step for event in run.events if event.type == "resumed"] == [2]


def test_a_step_can_crash_each_time(tmp_path):
    run = Run(tmp_path, "crash_at=3")
    for _ in range(2):
        ending = run.go()
        assert isinstance(ending, Failed)
        assert ending.code == EngineCrashed.code
        assert "SIGKILL" in ending.message


def test_a_step_can_stall_and_is_ended(tmp_path):
    ending = Run(tmp_path, "stall_at=2").go(stall_s=0.5)
    assert isinstance(ending, Failed)
    assert ending.code == EngineStalled.code


def test_it_can_be_deaf_to_requests_and_is_killed_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("loradash.runtime.supervisor._STEP_BETWEEN_SIGNALS_S", 0.2)
    run = Run(tmp_path, "ignore_stop=1,step_s=0.1", steps=1000, save_every=0)
    assert isinstance(run.go(stop_at=1, grace_s=0.2), Stopped)
    assert not ENGINE.has_checkpoint(tmp_path)


def test_it_can_warn(tmp_path):
    run = Run(tmp_path, "warn_at=2")
    assert isinstance(run.go(), Done)
    assert [event.code for event in run.events if event.type == "warning"] == ["scripted_warning"]


def test_losses_depend_on_the_seed_and_fall(tmp_path):
    losses = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        run = Run(tmp_path / name, "", steps=200, save_every=0, seed=seed)
        assert isinstance(run.go(), Done)
        losses.append([event.loss for event in run.events if event.type == "step"])
    assert losses[0] == losses[1] != losses[2]
    assert losses[0][-1] < losses[0][0] / 2


def test_its_child_imports_none_of_what_makes_others_slow_to_start():
    program = (
        "import sys; sys.argv[1:] = ['serve']; sys.stdin.close()\n"
        "import loradash.engines.scripted.training, loradash.engines.scripted.generator\n"
        "import json; print(json.dumps(sorted(name.partition('.')[0] for name in sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"torch", "numpy", "pydantic", "diffusers", "safetensors", "PIL", "yaml"}
