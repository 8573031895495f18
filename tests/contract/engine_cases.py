"""The engines that the contract is about, each with what it needs to train something small."""

import hashlib
import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from loradash.domain.events import Event
from loradash.domain.training_text import parse_training
from loradash.engines.catalogue import abilities_of
from loradash.engines.diffusers.engine import DiffusersEngine
from loradash.engines.scripted.engine import ScriptedEngine
from loradash.runtime.supervisor import Limits, StopRequest, supervise
from loradash.services.datasets.folders import check_for_training

CREATED_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
LIMITS = Limits(timeout_s=120, stall_s=60, grace_s=30)
STEPS = 6
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Case:
    """One engine and a base model for it; ``settings`` make its trainings short."""

    engine: Any
    base_model: str
    slow_base_model: str
    """One whose steps take long enough to be interrupted between them."""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def able(self):
        return abilities_of(self.engine)


CASES = {
    "scripted": Case(ScriptedEngine(), "scripted", "scripted:step_s=0.05"),
    "diffusers": Case(
        DiffusersEngine(device="cpu", threads=1, offline=True), "emoji-base", "emoji-base",
        {"resolution": 32, "batch_size": 1, "precision": "fp32", "sample_steps": 1,
         "sample_size": 32},
    ),
}  # fmt: skip


class Training:
    """A training in a folder of its own, run as real child processes."""

    def __init__(self, case: Case, folder: Path, data: Path, **settings: Any) -> None:
        self.case, self.folder = case, folder
        self.folder.mkdir(parents=True)
        self.config = config_of(case, data, **settings)
        self.warnings = case.engine.check_training(self.config)
        self.id = f"train_{next(_numbers):020d}"
        case.engine.write_training_job(
            self.id, self.config, check_for_training(self.config), folder, CREATED_AT
        )
        self.events: list[Event] = []

    def run(self, on_step=lambda step, stop, lines: None):
        """Run one attempt; ``on_step`` may stop it, or send it lines."""
        engine, stop, lines = self.case.engine, StopRequest(), SimpleQueue()
        self.events = []

        def on_event(event):
            self.events.append(event)
            if event.type == "step":
                on_step(event.step, stop, lines)

        return supervise(
            engine.training_command(self.folder), engine.parse, self.folder / "log.txt", on_event,
            LIMITS, stop, lambda: engine.has_checkpoint(self.folder), lines=lines,
        )  # fmt: skip

    def of(self, kind):
        return [event for event in self.events if event.type == kind]


def config_of(case: Case, data: Path, **settings: Any):
    return parse_training(
        {
            "dataset": str(data), "base_model": case.base_model, "name": "mine", "steps": STEPS,
            "save_every": 4, "rank": 2, "seed": 5, "lr_scheduler": "constant",
            "trigger_word": "sks", "sample_every": 100, "sample_prompts": ["a sks cat"],
            **case.settings, **settings,
        }
    )  # fmt: skip


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights(path: Path) -> bytes:
    """A safetensors file without its header, in which ids and dates stand."""
    data = path.read_bytes()
    return data[8 + int.from_bytes(data[:8], "little") :]
