"""The real command line as a real process, in a workspace of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

pytestmark = pytest.mark.slow


@dataclass
class Result:
    exit_code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]

    @property
    def result(self) -> dict[str, Any]:
        return self.events[-1]


class CommandLine:
    """Runs ``loradash`` with a fresh workspace and object store."""

    def __init__(self, root: Path) -> None:
        self.workspace = root / "workspace"
        self.objects = root / "objects"
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("LORADASH")},
            "WORKSPACE_PATH": str(self.workspace),
            "LORADASH_OBJECTS_PATH": str(self.objects),
            "LORADASH_DEVICE": "cpu",
            "LORADASH_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self._root = root

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "loradash", *arguments],
            cwd=self._root,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, timeout_s: float = 240, **environment: str) -> Result:
        process = self.start(*arguments, **environment)
        try:
            out, err = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
        return Result(process.returncode, out, err)

    def written(self) -> list[str]:
        """All files that commands have left behind."""
        roots = (self.workspace, self.objects)
        return sorted(str(path) for root in roots for path in root.rglob("*") if path.is_file())


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Six images of three shapes, so that there are several buckets."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    for n, size in enumerate([(64, 64), (64, 64), (96, 48), (96, 48), (48, 96), (64, 64)]):
        image = Image.new("RGB", size, (40 * n, 120, 200 - 30 * n))
        ImageDraw.Draw(image).polygon(
            [(8, 40), (size[0] - 8, 44), (size[0] // 2, 6)], (250, 60, 90)
        )
        image.save(folder / f"{n}.png")
        (folder / f"{n}.txt").write_text(f"a [trigger] triangle, number {n}")
    return folder


SMALL = (
    "--base-model", "emoji-base", "--resolution", "64", "--rank", "4", "--batch-size", "2",
    "--trigger-word", "sks", "--set", "precision=fp32", "--set", "gradient_checkpointing=false",
)  # fmt: skip


def engine_processes(folder: Path) -> list[int]:
    """Process ids of engines that work in ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            in_folder = str(folder) in str((entry / "cwd").readlink())
        except OSError:
            continue
        if "loradash.engines.diffusers" in words and in_folder:
            found.append(int(entry.name))
    return found


def wait_until_gone(folder: Path, timeout_s: float = 30) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not engine_processes(folder):
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(autouse=True)
def nothing_left_running(tmp_path: Path) -> Iterator[None]:
    """Whatever a test does, no engine may outlive it; those that do are ended and reported."""
    yield
    gone = wait_until_gone(tmp_path)
    for pid in engine_processes(tmp_path):
        os.killpg(pid, signal.SIGKILL)
    assert gone, "an engine process was left running"
