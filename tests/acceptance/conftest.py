"""The real command line as a real process, in a workspace of its own."""

import base64
import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
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
        self.root = root
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "loradash", *arguments],
            cwd=self.root,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """Close the pipes of all that was started; who has started it has ended it."""
        for process in self._started:
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()

    def run(self, *arguments: str, timeout_s: float = 240, **environment: str) -> Result:
        process = self.start(*arguments, **environment)
        try:
            out, err = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
        return Result(process.returncode, out, err)

    def written(self) -> list[str]:
        """All files that commands have left behind, and all records in the registry."""
        roots = (self.workspace, self.objects)
        files = [
            str(path)
            for root in roots
            for path in root.rglob("*")
            if path.is_file() and not path.name.startswith("registry.sqlite3")
        ]
        return sorted(files) + self.recorded()

    def recorded(self) -> list[str]:
        """Ids of all processes in the registry."""
        path = self.workspace / "registry.sqlite3"
        if not path.is_file():
            return []
        with contextlib.closing(sqlite3.connect(path)) as registry:
            return [row[0] for row in registry.execute("SELECT id FROM processes ORDER BY id")]


class Server:
    """Runs ``loradash up`` on a free port, again and again in the same workspace."""

    def __init__(self, cli: CommandLine, **environment: str) -> None:
        self.cli = cli
        self.url = ""
        self.program: Sequence[str] = ("-m", "loradash")
        self.environment = {
            # What waits for what is tested where memory is made up.
            "LORADASH_TRAINING_MEMORY_MB": "0",
            "LORADASH_GENERATION_MEMORY_MB": "0",
            **environment,
        }
        self.log = cli.root / "server.log"
        self._said = cli.root / "server.out"
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx2.Client(timeout=60)

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def start(self, **environment: str) -> "Server":
        """Start and wait until it answers."""
        self.launch(**environment)
        self.wait_until_ready()
        return self

    def launch(self, **environment: str) -> None:
        """Start it as the leader of a process group, and don't wait."""
        with self._said.open("wb") as out, self.log.open("ab") as err:
            self._process = subprocess.Popen(
                [sys.executable, *self.program, "up", "--port", "0"],
                cwd=self.cli.root,
                env={**self.cli.environment, **self.environment, **environment},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def wait_until_ready(self, timeout_s: float = 120) -> None:
        assert self._process
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if found := re.search(r"loradash is ready: (\S+)\n", self._said.read_text()):
                self.url = found[1]
                return
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.02)
        raise AssertionError("the server isn't ready within the time")

    def kill(self) -> None:
        """End the server's group without a chance to do anything."""
        assert self._process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def terminate(self, timeout_s: float = 60) -> int:
        """Ask for the end; return the exit code."""
        assert self._process
        self._process.terminate()
        return self._process.wait(timeout_s)

    def close(self) -> None:
        """End the server, and whatever of it is left."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(60)
            self.kill()
        self._http.close()

    def call(self, path: str, body: Any = None, **options: Any) -> httpx2.Response:
        """Send a request: POST if there is a body."""
        method = options.pop("method", "GET" if body is None else "POST")
        if body is not None:
            options["json"] = body
        return self._http.request(method, self.url + path, **options)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the output of a request that must go well."""
        job = self.call("/v2/local/runsync", {"input": request}).json()
        assert job["status"] == "COMPLETED", job
        return job["output"]

    def submit(self, **request: Any) -> str:
        """Queue a training or generation; return its process id."""
        job = self.call("/v2/local/run", {"input": request}).json()
        assert job["status"] == "IN_QUEUE", job
        return job["id"]

    def process(self, process_id: str, **more: Any) -> dict[str, Any]:
        return self.ask(type="process_status", process_id=process_id, **more)

    def wait_until(
        self, process_id: str, wanted: Collection[str] | Callable[[dict[str, Any]], bool],
        timeout_s: float = 180,
    ) -> dict[str, Any]:  # fmt: skip
        """Wait for one of these statuses, or until the process is as wanted; return it."""
        is_there = wanted if callable(wanted) else lambda one: one["status"] in wanted
        deadline = time.monotonic() + timeout_s
        while not is_there(one := self.process(process_id)):
            ended = one["status"] in ("completed", "failed", "cancelled")
            assert not ended, f"{one['status']}: {one['error']} {one['remedy']}"
            assert time.monotonic() < deadline, f"{one['status']} {one['phase']} {one['step']}"
            time.sleep(0.1)
        return one


def upload(server: Server, folder: Path, name: str) -> None:
    """Store a folder as a dataset."""
    files = [
        {"filename": path.name, "content": base64.b64encode(path.read_bytes()).decode()}
        for path in sorted(folder.iterdir())
    ]
    server.ask(
        type="upload_training_data", training_name=name, dataset_folder=name, trigger_word="sks",
        files=files,
    )  # fmt: skip


def training(dataset: str, **settings: Any) -> dict[str, Any]:
    """The short form of a training that takes moments."""
    return {
        "dataset": dataset, "base_model": "emoji-base", "resolution": [64], "rank": 4,
        "batch_size": 2, "trigger_word": "sks", "precision": "fp32",
        "gradient_checkpointing": False, **settings,
    }  # fmt: skip


def scripted(dataset: str, step_s: float = 0.05, **settings: Any) -> dict[str, Any]:
    """The same for the scripted engine, whose child starts in a moment and has no torch.

    For what queues, workers, registries and stores do with a process, and not what it learns. Those
    of the built-in engine go through the same ways in at least one test of each module.
    """
    base_model = f"scripted:step_s={step_s}"
    return {**training(dataset, **settings), "engine": "scripted", "base_model": base_model}


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CommandLine]:
    cli = CommandLine(tmp_path)
    yield cli
    cli.close()


@pytest.fixture
def server(cli: CommandLine) -> Iterator[Server]:
    """A server that isn't started yet, in the workspace of `cli`."""
    server = Server(cli)
    yield server
    server.close()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return draw_dataset(tmp_path / "dataset")


def draw_dataset(folder: Path) -> Path:
    """Six images of three shapes, so that there are several buckets."""
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


ENGINES = frozenset({"loradash.engines.diffusers", "loradash.engines.scripted"})


def engine_processes(folder: Path) -> list[int]:
    """Process ids of engines that work in ``folder``."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            in_folder = str(folder) in str((entry / "cwd").readlink())
        except OSError:
            continue
        if ENGINES & set(words) and in_folder:
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
