"""Tiny base models, datasets, and trainings that run in this process."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from loradash.domain.events import Event, Failed, Warned
from loradash.domain.training_text import parse_training
from loradash.engines.diffusers.child.run_training import run_training
from loradash.engines.diffusers.engine import DiffusersEngine
from loradash.engines.stop_signal import StopSignal
from loradash.errors import LoradashError
from loradash.services.datasets.folders import check_for_training
from tests.engine.tiny_models import build_stable_diffusion, build_stable_diffusion_xl

torch.set_num_threads(1)

CREATED_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stable_diffusion(tmp_path_factory.mktemp("base") / "tiny-sd")


@pytest.fixture(scope="session")
def tiny_v_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stable_diffusion(tmp_path_factory.mktemp("base") / "tiny-sd-v", "v_prediction")


@pytest.fixture(scope="session")
def tiny_xl_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stable_diffusion_xl(tmp_path_factory.mktemp("base") / "tiny-sdxl")


def write_dataset(
    folder: Path, sizes: list[tuple[int, int]], caption: str = "a [trigger] blob"
) -> Path:
    """Write one image a size, each different, with captions that have tags."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, size in enumerate(sizes):
        image = Image.new("RGB", size, ((n * 53) % 256, (n * 97) % 256, 120))
        ImageDraw.Draw(image).ellipse(
            (4 + n, 5, size[0] - 6, size[1] - 4 - n % 3), fill=(250, 220, n)
        )
        image.save(folder / f"image_{n:02d}.png")
        (folder / f"image_{n:02d}.txt").write_text(f"{caption}, tag{n}, round, yellow")
    return folder


@pytest.fixture(scope="session")
def square_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "square", [(32, 32)] * 4)


@pytest.fixture(scope="session")
def mixed_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = [(32, 32), (48, 24), (24, 48), (32, 32), (48, 24)]
    return write_dataset(tmp_path_factory.mktemp("data") / "mixed", sizes)


@dataclass
class Recorder:
    """An emitter that keeps the events, and may act on them."""

    on_event: Callable[[Event], None] = lambda event: None
    events: list[Event] = field(default_factory=list)
    request_id: str = ""
    phases: list[str] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        self.events.append(event)
        self.on_event(event)

    def phase(self, phase: str, detail: str = "", done: Any = None, total: Any = None) -> None:
        self.phases += [f"{phase} {detail}".strip()]

    def fail(self, error: LoradashError, *, resumable: bool) -> None:
        self.emit(
            Failed(
                code=error.code,
                message=error.message,
                remedy=error.remedy,
                problems=error.problems,
                resumable=resumable,
            )
        )

    def warn(self, code: str, message: str) -> None:
        self.emit(Warned(code=code, message=message))

    def of(self, kind: str) -> list[Any]:
        return [event for event in self.events if event.type == kind]

    @property
    def codes(self) -> set[str]:
        return {event.code for event in self.of("warning")}


@dataclass
class LocalTraining:
    """A training whose engine code runs in the test's own process."""

    folder: Path

    def run(
        self, on_event: Callable[[Event], None] = lambda event: None, stop: StopSignal | None = None
    ) -> Recorder:
        recorder = Recorder(on_event)
        run_training(self.folder / "job.json", recorder, stop or StopSignal())  # type: ignore[arg-type]
        return recorder

    def stop_after(self, step: int) -> Recorder:
        """Run until ``step`` is done, then ask for the end."""
        stop = StopSignal()
        return self.run(
            lambda event: stop.request() if event.type == "step" and event.step == step else None,
            stop,
        )

    def crash_at(self, step: int) -> None:
        """Run and die in the middle, without any chance to write something."""

        def die(event: Event) -> None:
            if event.type == "step" and event.step == step:
                raise SystemExit(9)

        with pytest.raises(SystemExit):
            self.run(die)

    @property
    def adapter(self) -> Path:
        return next((self.folder / "lora").glob("*.safetensors"))

    @property
    def checkpoints(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in self.folder.glob("checkpoints/step-*"))


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., LocalTraining]:
    """Submit a training of the short form, with overrides of the full one."""
    count = 0

    def submit(full: dict[str, Any] | None = None, **short: Any) -> LocalTraining:
        nonlocal count
        count += 1
        defaults = {
            "name": "tiny", "trigger_word": "sks", "steps": 8, "rank": 4, "learning_rate": 1e-2,
            "batch_size": 2, "resolution": 32, "save_every": 3, "seed": 11, "precision": "fp32",
            "gradient_checkpointing": False, "lr_scheduler": "constant",
        }  # fmt: skip
        document = parse_training({**defaults, **short}).model_dump(mode="json", exclude_unset=True)
        config = parse_training(document, full or {})
        engine = DiffusersEngine(device="cpu", threads=1, offline=True)
        engine.check_training(config)
        folder = tmp_path / f"training-{count}"
        folder.mkdir()
        engine.write_training_job(
            f"train_{count:020d}", config, check_for_training(config), folder, CREATED_AT
        )
        return LocalTraining(folder)

    return submit
