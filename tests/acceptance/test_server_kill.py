"""Killed again and again, a server ends all its work as if nothing had happened.

The whole server is killed with SIGKILL at twenty random moments, while it starts, loads, trains,
saves, stores and generates, and is started again with the same workspace. Engines are in sessions
of their own: each kill leaves those that run without a parent, as a crash of the server does.
"""

import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from tests.acceptance.conftest import CommandLine, Server, engine_processes, training, upload

pytestmark = [pytest.mark.slow, pytest.mark.long]

SEED = 20261124
STEPS = 100
IMAGES = 16
WORTHWHILE = 12
"""How many of the kills must hit an engine at work."""

# The moments, in this order; what is random is how long after its sign each kill comes.
MOMENTS = (
    "early", "image", "steps", "boot", "image", "saving", "early", "steps", "stored", "image",
    "early", "steps", "ending", "boot", "early", "saving", "stored", "steps", "early", "ending",
)  # fmt: skip


@dataclass
class Engine:
    """A training engine as the process table showed it; times since the machine's start."""

    pid: int
    folder: str
    started_s: float
    last_seen_s: float


@dataclass
class Watch:
    """Looks at the process table all the time: which training engines ran, from when to when."""

    root: Path
    engines: dict[tuple[int, float], Engine] = field(default_factory=dict)

    def __enter__(self) -> "Watch":
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def overlaps(self) -> list[tuple[Engine, Engine]]:
        """Engines of the same training of which one began while the other was still there."""
        ordered = sorted(self.engines.values(), key=lambda engine: engine.started_s)
        return [
            (one, other)
            for number, one in enumerate(ordered)
            for other in ordered[number + 1 :]
            if one.folder == other.folder and other.started_s + 0.02 < one.last_seen_s
        ]

    def _look_on(self) -> None:
        while not self._over.wait(0.05):
            for pid in engine_processes(self.root):
                self._note(pid)

    def _note(self, pid: int) -> None:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        except OSError:
            return
        if "train" not in words:
            return
        started_s = int(ticks) / os.sysconf("SC_CLK_TCK")
        engine = self.engines.setdefault(
            (pid, started_s), Engine(pid, words[words.index("train") + 1], started_s, now)
        )
        engine.last_seen_s = now


class Signs:
    """What the files tell of the work, without asking the server."""

    def __init__(self, cli: CommandLine, trainings: list[str], generations: list[str]) -> None:
        self._cli = cli
        self._trainings = trainings
        self._generations = generations

    def seen(self, moment: str) -> set[str]:
        """All signs of this kind so far."""
        return set({
            "image": self._images, "steps": self._steps, "saving": self._saves,
            "stored": self._stored, "ending": self._adapters,
        }[moment]())  # fmt: skip

    def at_work(self) -> bool:
        """Whether an engine is alive that has something to do."""
        kinds = set()
        for pid in engine_processes(self._cli.workspace):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            kinds |= {b"train", b"serve"} & set(words)
        drawing = len(self.seen("image")) < IMAGES * len(self._generations)
        return b"train" in kinds or (b"serve" in kinds and drawing)

    def _events(self, text: str) -> Iterator[str]:
        for process_id in self._trainings:
            path = self._cli.workspace / "output/training" / process_id / "events.jsonl"
            count = path.read_text().count(text) if path.is_file() else 0
            yield from (f"{process_id}/{number}" for number in range(count))

    def _steps(self) -> Iterator[str]:
        return self._events('"type":"step"')

    def _saves(self) -> Iterator[str]:
        return self._events('"phase":"saving"')

    def _stored(self) -> Iterator[str]:
        return self._objects(self._trainings, "checkpoints/*/*")

    def _images(self) -> Iterator[str]:
        return self._objects(self._generations, "images/*/*.png")

    def _adapters(self) -> Iterator[str]:
        for process_id in self._trainings:
            folder = self._cli.workspace / "output/training" / process_id
            yield from map(str, folder.glob("lora/*.safetensors"))

    def _objects(self, process_ids: list[str], pattern: str) -> Iterator[str]:
        for process_id in process_ids:
            yield from map(str, (self._cli.objects / "results" / process_id).glob(pattern))


def wait_for(
    moment: str, signs: Signs, source: random.Random, any_left: Callable[[], bool]
) -> None:
    """Wait for so many new signs and a moment more; not for what can't come any more."""
    if moment == "early":
        over = time.monotonic() + source.uniform(0.3, 6)
        before = signs.seen("steps")
        # A fast machine would otherwise be done before all kills were.
        while time.monotonic() < over and len(signs.seen("steps") - before) < 8:
            time.sleep(0.02)
        return
    wanted = {"image": (1, 4), "steps": (1, 8), "saving": (1, 2)}.get(moment, (1, 1))
    count = source.randint(*wanted)
    delay_s = source.uniform(0, 0.5 if moment == "ending" else 0.15)
    before, deadline = signs.seen(moment), time.monotonic() + 120
    next_question_s = time.monotonic() + 2
    while len(signs.seen(moment) - before) < count:
        assert time.monotonic() < deadline, f"no sign of {moment}"
        if time.monotonic() > next_question_s:
            if not any_left():
                return
            next_question_s = time.monotonic() + 2
        time.sleep(0.01)
    time.sleep(delay_s)


def artifacts(process: dict[str, Any], *, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Hash by kind and name."""
    return {
        f"{entry['kind']} {entry['name']}": entry["sha256"]
        for entry in process["artifacts"]
        if entry["kind"] not in without
    }


def assert_each_result_is_there_once(cli: CommandLine, process: dict[str, Any]) -> None:
    """Registry, manifest and object store tell the same, and the files are what they tell."""
    listed = {entry["key"]: (entry["size"], entry["sha256"]) for entry in process["artifacts"]}
    assert len(listed) == len(process["artifacts"])
    folder = cli.objects / "results" / process["id"]
    (latest,) = (folder / "manifest").rglob("manifest.json")  # earlier attempts' were tidied away
    manifest = json.loads(latest.read_text())
    told = [entry["key"] for entry in manifest["files"]]
    assert sorted(told) == sorted(listed)
    assert {e["key"]: (e["size_bytes"], e["sha256"]) for e in manifest["files"]} == listed
    stored = {}
    for path in folder.rglob("*"):
        if path.is_file() and "\\" not in path.name:  # a file half-written is no object
            data = path.read_bytes()
            key = path.relative_to(cli.objects).as_posix()
            stored[key] = (len(data), hashlib.sha256(data).hexdigest())
    del stored[latest.relative_to(cli.objects).as_posix()]
    if process["type"] == "generation":  # there it is the request, and no result
        del stored[next(key for key in stored if "/config/s-" in key)]
    assert stored == listed


def weights(cli: CommandLine, process: dict[str, Any]) -> dict[str, Any]:
    from safetensors.numpy import load_file

    key = next(entry["key"] for entry in process["artifacts"] if entry["kind"] == "lora")
    return {name: tensor.tobytes() for name, tensor in load_file(cli.objects / key).items()}


def queue_work(server: Server, lora: str) -> list[str]:
    """Two trainings and two generations, the second with a LoRA."""
    queued = []
    for seed in (3, 4):
        config = training(
            "triangles", name=f"triangle_{seed}", steps=STEPS, seed=seed, save_every=5,
            ema_decay=0.95, caption_dropout_rate=0.1,
            sample_prompts=["a [trigger] triangle"], sample_every=20, sample_steps=2,
        )  # fmt: skip
        queued.append(server.submit(type="train", config=config))
        more = {"lora": lora} if seed == 4 else {"base_model": "emoji-base"}
        wanted = {"prompt": "a sks triangle", "num_images": IMAGES, "steps": 4, "seed": seed}
        queued.append(server.submit(type="generate", **wanted, **more))
    return queued


def test_server_killed_at_twenty_random_moments(
    cli: CommandLine, server: Server, dataset: Path
) -> None:
    server.environment["MAX_ATTEMPTS"] = "100"
    server.start()
    upload(server, dataset, "triangles")
    lora = server.submit(type="train", config=training("triangles", name="first", steps=10))
    server.wait_until(lora, {"completed"})
    undisturbed = [
        server.wait_until(process_id, {"completed"}) for process_id in queue_work(server, lora)
    ]
    queued = queue_work(server, lora)
    signs = Signs(
        cli,
        [process_id for process_id in queued if process_id.startswith("train")],
        [process_id for process_id in queued if process_id.startswith("gen")],
    )

    def any_left() -> bool:
        counts = server.ask(type="processes", limit=1)["counts"]
        return bool(counts["pending"] + counts["running"])

    source = random.Random(SEED)
    hits = []
    with Watch(cli.workspace) as watch:
        for moment in MOMENTS:
            if moment == "boot":
                time.sleep(source.uniform(0.3, 1.5))
            else:
                server.wait_until_ready()
                wait_for(moment, signs, source, any_left)
            hits.append(signs.at_work())
            server.kill()
            server.launch()
        server.wait_until_ready()
        ended = [server.wait_until(one, {"completed", "failed", "cancelled"}) for one in queued]
        assert server.terminate() == 0
        assert engine_processes(cli.workspace) == []

    assert [one["status"] for one in ended] == ["completed"] * 4, [one["error"] for one in ended]
    assert sum(hits) >= WORTHWHILE, list(zip(MOMENTS, hits, strict=True))
    assert sum(one["attempt"] - 1 for one in ended) >= WORTHWHILE
    assert watch.overlaps() == []
    server.start()
    for expected, one in zip(undisturbed, ended, strict=True):
        if one["type"] == "training":
            assert weights(cli, one) == weights(cli, expected)
            rows = server.process(one["id"], metrics_after=0, metrics_limit=5000)["metrics"]
            assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        # The rest differs from attempt to attempt: when it was, and what was told.
        bound = ("config", "job", "log", "metrics", "checkpoint", "lora")
        assert artifacts(one, without=bound) == artifacts(expected, without=bound)
        assert_each_result_is_there_once(cli, one)
        assert {note["ending"] for note in one["attempts"]} <= {"lost", "completed"}
    assert engine_processes(cli.workspace) == []
