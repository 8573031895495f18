"""A reader that goes away and a terminal that is closed: the work goes on to its end."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import SMALL, CommandLine

pytestmark = pytest.mark.slow


def finished_adapters(cli: CommandLine) -> list[str]:
    return [path.name for path in cli.objects.rglob("results/*/lora/*/*.safetensors")]


def test_a_training_goes_on_when_its_reader_has_gone(cli: CommandLine, dataset: Path) -> None:
    """``loradash train --json ... | head -1``, with a full disk where stderr goes."""
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "loradash", "train", "--dataset", str(dataset), *SMALL,
             "--steps", "3", "--name", "unseen", "--output", "out", "--json"],
            cwd=cli.root, env=cli.environment, stdout=subprocess.PIPE, stderr=full,
        )  # fmt: skip
    with process:
        assert process.stdout
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(240) == 0
    assert finished_adapters(cli) == ["unseen.safetensors"]
    assert (cli.root / "out" / "unseen.safetensors").is_file()


def test_a_training_goes_on_when_its_terminal_is_closed(cli: CommandLine, dataset: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cli.root)
        os.execve(  # it leads the terminal's session, so that the kernel sends it SIGHUP
            sys.executable,
            [sys.executable, "-m", "loradash", "train", "--dataset", str(dataset), *SMALL,
             "--steps", "3", "--name", "unseen"],
            {**cli.environment, "TERM": "xterm", "LORADASH_ENGINE": "scripted"},
        )  # fmt: skip
    assert os.read(terminal, 10_000)  # it shows something
    shown = b""
    while b"training" not in shown:
        shown += os.read(terminal, 10_000)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert finished_adapters(cli) == ["unseen.safetensors"]


def test_a_server_whose_terminal_is_closed_stops_in_good_order(cli: CommandLine) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cli.root)
        command = [sys.executable, "-m", "loradash", "up", "--port", "0"]
        os.execve(sys.executable, command, cli.environment)
    shown = b""
    while b"is ready" not in shown:
        shown += os.read(terminal, 10_000)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
