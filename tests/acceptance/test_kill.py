"""Killed at random moments and resumed, a training ends as if nothing had happened."""

import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.acceptance.conftest import SMALL, CommandLine, engine_processes, wait_until_gone

pytestmark = pytest.mark.slow

KILLS = 10
STEPS = "120"
OPTIONS = (
    *SMALL, "--steps", STEPS, "--save-every", "4", "--seed", "3",
    "--set", "gradient_accumulation=2", "--set", "ema_decay=0.95",
    "--set", "text_encoder_learning_rate=0.001", "--set", "caption_dropout_rate=0.1",
)  # fmt: skip


def adapter(cli: CommandLine, process_id: str) -> dict[str, np.ndarray]:
    folder = cli.workspace / "output/training" / process_id / "lora"
    return load_file(next(folder.glob("*.safetensors")))


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not np.array_equal(one[key], other[key])] == []


def training_id(cli: CommandLine) -> str:
    return next((cli.workspace / "output/training").glob("train_*")).name


@pytest.mark.long
def test_trainer_group_killed_at_ten_random_moments(cli: CommandLine, dataset: Path) -> None:
    undisturbed = cli.run("train", "--dataset", str(dataset), *OPTIONS, "--json").result
    assert undisturbed["status"] == "completed"
    expected = adapter(cli, undisturbed["process_id"])

    source = random.Random(20261124)
    arguments: tuple[str, ...] = ("train", "--dataset", str(dataset), *OPTIONS)
    process_id, kills, runs = "", 0, 0
    while runs < KILLS + 5:
        runs += 1
        process = cli.start(*arguments)
        if kills < KILLS:
            # Every second kill comes while the engine still starts or loads.
            steps = source.randint(1, 12) if kills % 2 else 0
            _kill_engine(cli, steps, source.uniform(0, 0.3 if steps else 3), process)
        out, err = process.communicate(timeout=240)
        process_id = process_id or re.findall(r"train_\w+", out)[0]
        arguments = ("train", "--resume", process_id)
        if process.returncode == 0:
            break
        kills += 1
        assert process.returncode == 1, err
        assert "engine_crashed" in err
        assert "SIGKILL" in err
    assert kills == KILLS, "a kill missed the training"
    assert_equal(expected, adapter(cli, process_id))


def _kill_engine(
    cli: CommandLine, steps: int, delay_s: float, process: "subprocess.Popen[str]"
) -> None:
    """Wait for the engine's group and so many steps of it, then ``delay_s``, and kill it."""
    deadline = time.monotonic() + 60
    before = _steps(cli)
    while time.monotonic() < deadline and process.poll() is None:
        if _steps(cli) >= before + steps and engine_processes(cli.workspace):
            break
        time.sleep(0.01)
    time.sleep(delay_s)
    for pid in engine_processes(cli.workspace):
        os.killpg(pid, signal.SIGKILL)


def _steps(cli: CommandLine) -> int:
    """Steps of all trainings and attempts so far."""
    files = (cli.workspace / "output/training").glob("train_*/events.jsonl")
    return sum(path.read_text().count('"type":"step"') for path in files)


def test_whole_program_killed_leaves_no_engine_and_the_training_can_go_on(
    cli: CommandLine, dataset: Path
) -> None:
    options = (*SMALL, "--steps", "60", "--save-every", "5", "--seed", "3")
    process = cli.start("train", "--dataset", str(dataset), *options)
    _wait_for_steps(cli, 8)
    process.kill()
    process.wait()
    assert wait_until_gone(cli.workspace, 30), "the engine lives on without its parent"
    process_id = training_id(cli)
    folder = cli.workspace / "output/training" / process_id
    steps_told = (folder / "events.jsonl").read_text().count('"type":"step"')
    checkpoints = sorted(folder.glob("checkpoints/step-*"))
    assert int(checkpoints[-1].name[5:]) >= steps_told, "the orphan wrote no last checkpoint"
    listed = cli.run("train", "--list").out
    assert re.search(rf"{process_id}\s+my_lora\s+lost\s", listed)
    resumed = cli.run("train", "--resume", process_id, "--json")
    assert resumed.result["status"] == "completed"
    undisturbed = cli.run("train", "--dataset", str(dataset), *options, "--json").result
    assert_equal(adapter(cli, undisturbed["process_id"]), adapter(cli, process_id))


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(cli: CommandLine, dataset: Path) -> None:
    options = (*SMALL, "--steps", "80", "--save-every", "1000")
    process = cli.start("train", "--dataset", str(dataset), *options)
    _wait_for_steps(cli, 5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    process_id = training_id(cli)
    assert f"-m loradash train --resume {process_id}" in err
    stopped_at = int(re.findall(r"stopped at step (\d+)", err)[0])
    resumed = cli.run("train", "--resume", process_id, "--json")
    assert resumed.exit_code == 0
    steps = [event["step"] for event in resumed.events if event["type"] == "step"]
    assert steps == list(range(stopped_at + 1, 81))


def test_two_programs_cannot_run_one_training(cli: CommandLine, dataset: Path) -> None:
    cli.environment["LORADASH_ENGINE"] = "scripted"
    base_model = ("--base-model", "scripted:step_s=0.1")
    process = cli.start("train", "--dataset", str(dataset), *base_model, "--steps", "200")
    _wait_for_steps(cli, 2)
    assert re.search(rf"{training_id(cli)}\s+my_lora\s+running\s", cli.run("train", "--list").out)
    second = cli.run("train", "--resume", training_id(cli))
    assert second.exit_code == 1
    assert "another program" in second.err
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def _wait_for_steps(cli: CommandLine, steps: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if _steps(cli) >= steps:
            return
        time.sleep(0.05)
    raise AssertionError(f"no {steps} steps within the time")
