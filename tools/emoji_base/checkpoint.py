"""Training state on disk: a file that is whole or not there, and a refusal to mix two runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

State = dict[str, Any]


class CheckpointMismatchError(RuntimeError):
    """The checkpoint belongs to a run with other settings."""


def save_checkpoint(path: Path, settings: dict[str, Any], step: int, state: State) -> None:
    """Replace the checkpoint. A kill at any moment leaves the old or the new one, never half."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        torch.save({"settings": settings, "step": step, "state": state}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(path: Path, settings: dict[str, Any]) -> tuple[int, State] | None:
    """Read the finished steps and the state, or None if nothing was saved yet.

    Raises CheckpointMismatchError if the run that wrote it had other settings: continuing it with,
    for example, another number of steps would put a kink into the learning-rate curve.
    """
    import torch

    if not path.exists():
        return None
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved["settings"] != settings:
        names = sorted(saved["settings"].keys() | settings.keys())
        pairs = [(name, saved["settings"].get(name), settings.get(name)) for name in names]
        changes = ", ".join(f"{name} {old} -> {new}" for name, old, new in pairs if old != new)
        raise CheckpointMismatchError(
            f"{path} belongs to a run with other settings ({changes}). "
            "Use its settings to continue it, or another --work folder to start again."
        )
    return saved["step"], saved["state"]
