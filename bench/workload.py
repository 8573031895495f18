"""What the benchmarks train and draw with: the embedded base model and a few synthetic images."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image, ImageDraw

from loradash.data import base_model_folder
from loradash.domain.events import Event, Terminal
from loradash.domain.ids import new_process_id
from loradash.domain.training_config import TrainingConfig
from loradash.domain.training_text import parse_training
from loradash.engines.catalogue import Engines
from loradash.engines.diffusers.engine import DiffusersEngine
from loradash.registry.memory import MemoryRegistry
from loradash.runtime.attempt import Timing
from loradash.runtime.supervisor import Limits, StopRequest
from loradash.runtime.workspace import Workspace
from loradash.services.datasets.folders import check_for_training
from loradash.services.datasets.store import DatasetStore
from loradash.services.processes.running import Runner
from loradash.services.training.service import TrainingService
from loradash.storage.memory import MemoryStore

BASE_MODEL = "emoji-base"
BASE_MODEL_FOLDER = base_model_folder(BASE_MODEL)
REPOSITORY = Path(__file__).resolve().parent.parent
SIZE = 64
RANK = 4
TARGET_MODULES = ("to_q", "to_k", "to_v", "to_out.0")
BATCH_SIZE = 4
IMAGES = 16  # a multiple of the batch size: the peer doesn't drop an incomplete last batch
LEARNING_RATE = 1e-4
NEVER = 1_000_000  # for checkpoints and samples, which aren't part of a step

_COLOURS = ("red", "orange", "gold", "green", "teal", "blue", "purple", "black")


def write_images(ours: Path, peers: Path) -> None:
    """Write the same captioned images twice: with .txt files, and with ``metadata.jsonl``.

    They already have the training's size, so that no scaling is measured: larger images cost the
    peer more in each step, and us only once.
    """
    ours.mkdir(parents=True)
    peers.mkdir(parents=True)
    lines = []
    for number in range(IMAGES):
        colour = _COLOURS[number % len(_COLOURS)]
        shape = "circle" if number < IMAGES // 2 else "square"
        image = Image.new("RGB", (SIZE, SIZE), "white")
        draw = ImageDraw.Draw(image)
        box = (12 + number % 5, 12, 50, 50)
        (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=colour)
        caption = f"a {colour} {shape}"
        name = f"{number:02d}.png"
        for folder in (ours, peers):
            image.save(folder / name)
        (ours / name).with_suffix(".txt").write_text(caption)
        lines.append(json.dumps({"file_name": name, "text": caption}))
    (peers / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def training_config(dataset: Path, steps: int, seed: int = 0) -> TrainingConfig:
    """The training that both sides run: the same layers, rank, batch and optimizer, in fp32."""
    return parse_training(
        {
            "dataset": str(dataset),
            "base_model": BASE_MODEL,
            "name": f"bench{seed}",
            "steps": steps,
            "rank": RANK,
            "target_modules": list(TARGET_MODULES),
            "learning_rate": LEARNING_RATE,
            "lr_scheduler": "constant",
            "batch_size": BATCH_SIZE,
            "resolution": SIZE,
            "gradient_checkpointing": False,
            "precision": "fp32",
            "seed": seed,
            "save_every": NEVER,
            "sample_every": NEVER,
        }
    )


def make_engine() -> DiffusersEngine:
    """Our engine with one thread on the CPU."""
    return DiffusersEngine(device="cpu", threads=1, offline=True)


@dataclass(frozen=True)
class Trainings:
    """Our training service in a workspace of its own, and the runner that works for it."""

    service: TrainingService
    runner: Runner

    def train(
        self, config: TrainingConfig, on_event: Callable[[Event], None] = lambda _event: None
    ) -> tuple[str, Terminal]:
        """Submit a training and run it here; return its process id and how it ended."""
        checked = self.service.check(config)
        record = self.service.submit(checked, taking=self.runner.taking("local"))
        return record.id, self.runner.run(record, None, StopRequest(), on_event)


def make_trainings(engine: DiffusersEngine, root: Path) -> Trainings:
    """Our trainings with the registry and the object store in memory."""
    registry, store = MemoryRegistry(), MemoryStore()
    service = TrainingService(
        Engines([engine]), Workspace(root), store, registry, DatasetStore(store),
        Limits(timeout_s=3600, stall_s=600, grace_s=30),
    )  # fmt: skip
    timing = Timing(lease_s=30, cancel_grace_s=3, max_attempts=3)
    return Trainings(service, Runner(registry, store, {"training": service}, timing))


def prepare_training(engine: DiffusersEngine, config: TrainingConfig, root: Path) -> Path:
    """Make a folder with the job of a training, and nothing of a service around it; return it."""
    engine.check_training(config)
    process_id = new_process_id("training")
    folder = root / process_id
    folder.mkdir(parents=True)
    engine.write_training_job(
        process_id, config, check_for_training(config), folder, datetime.now(UTC)
    )
    return folder
