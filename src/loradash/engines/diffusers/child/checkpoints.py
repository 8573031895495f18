"""Checkpoints: folders that are either complete and verified, or not there.

A checkpoint holds the adapter as a user could take it, and the state from which training goes on
exactly: parameters, moving average and optimizer, all as safetensors, since a pickle can run code.
It is written beside its place, flushed to disk, and renamed; a manifest with the hash of each file
tells a damaged one.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loradash.engines.diffusers.child.finite import not_finite, require_finite_state
from loradash.errors import InvalidCheckpoint

MANIFEST = "checkpoint.json"
ADAPTER = "adapter.safetensors"
STATE = "state.safetensors"
_VERSION = 1


@dataclass
class TrainingState:
    """All that a training carries from one step to the next."""

    step: int
    tensors: dict[str, Tensor]
    """Parameters, moving average and the optimizer's tensors, by name."""
    scalars: dict[str, Any]
    """The rest, as JSON."""


class CheckpointStore:
    """The checkpoints of one training."""

    def __init__(self, folder: Path, job_sha256: str, before_sha256: str = "") -> None:
        """Take the hash of the training's job, and that of the job that it extends, if any."""
        self._folder = folder
        self._job_sha256 = job_sha256
        self._known_jobs = {job_sha256, before_sha256} - {""}

    def write(self, state: TrainingState, write_adapter: Callable[[Path], None]) -> Path:
        """Write the checkpoint of ``state.step`` and return its folder; a rename shows it.

        Raises `LossNotFinite` for a state that holds NaN or infinity; older ones stay.
        """
        require_finite_state(state.tensors, state.step)
        target = self._path(state.step)
        partial = self._folder / f".partial-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            write_adapter(partial / ADAPTER)
            save_file(state.tensors, partial / STATE)
            files = {name: _facts(partial / name) for name in (ADAPTER, STATE)}
            manifest = {
                "version": _VERSION,
                "step": state.step,
                "job_sha256": self._job_sha256,
                "torch": torch.__version__,
                "scalars": state.scalars,
                "files": files,
            }
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            for name in (ADAPTER, STATE, MANIFEST):
                _flush(partial / name)
            _flush(partial)
            if target.exists():
                shutil.rmtree(target)
            partial.rename(target)
        except BaseException:  # it would fill a disk that is full
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _flush(self._folder)
        return target

    def newest(self, on_damaged: Callable[[Path, str], None]) -> tuple[Path, TrainingState] | None:
        """Return the newest checkpoint that verifies, or None.

        Damaged ones are told to ``on_damaged`` and passed over. Raises `InvalidCheckpoint` if one
        belongs to another job: going on from it would train something else.
        """
        for path in self._newest_first():
            try:
                manifest = _verified_manifest(path)
            except (OSError, ValueError, KeyError, TypeError) as error:
                on_damaged(path, str(error))
                continue
            if manifest["job_sha256"] not in self._known_jobs:
                raise InvalidCheckpoint(
                    f"checkpoint {path.name} belongs to a job with other settings or data",
                    remedy="Start a new training instead of changing the job of this one.",
                )
            state = TrainingState(manifest["step"], load_file(path / STATE), manifest["scalars"])
            if names := not_finite(state.tensors):
                on_damaged(path, f"{names[0]} holds NaN or infinity")
                continue
            return path, state
        return None

    def prune(self, keep: int) -> None:
        """Delete all but the newest ``keep`` (0: none is deleted).

        At least two stay, so that one damaged checkpoint doesn't cost the training.
        """
        shutil.rmtree(self._folder / f".partial-{os.getpid()}", ignore_errors=True)
        if keep:
            for path in list(self._newest_first())[max(keep, 2) :]:
                shutil.rmtree(path, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Delete what earlier attempts have left half-written."""
        for path in self._folder.glob(".partial-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:09d}"

    def _newest_first(self) -> Iterator[Path]:
        yield from sorted(self._folder.glob("step-?????????"), reverse=True)


def _verified_manifest(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if manifest["version"] != _VERSION:
        raise ValueError(f"its format has version {manifest['version']}, not {_VERSION}")
    for name in (ADAPTER, STATE):
        facts = manifest["files"][name]
        if (path / name).stat().st_size != facts["size_bytes"]:
            raise ValueError(f"{name} has the wrong size")
        if _sha256(path / name) != facts["sha256"]:
            raise ValueError(f"{name} has the wrong hash")
    return manifest


def _facts(path: Path) -> dict[str, Any]:
    return {"size_bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    file_descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file_descriptor)
    finally:
        os.close(file_descriptor)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into named tensors and JSON values.

    Numbers of its groups belong to it, too: prodigy keeps there the rate that it has found.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    state = optimizer.state_dict()
    for index, values in state["state"].items():
        for key, value in values.items():
            name = f"optimizer/{index}/{key}"
            if isinstance(value, Tensor):
                tensors[name] = value.detach().cpu().contiguous().clone()
            else:
                scalars[name] = value
    for index, group in enumerate(state["param_groups"]):
        for key, value in group.items():
            if key != "lr" and type(value) in (int, float) and math.isfinite(value):
                scalars[f"optimizer_group/{index}/{key}"] = value
    return tensors, scalars


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: TrainingState) -> None:
    """Put back what `optimizer_state` took apart."""
    entries: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for source in (state.tensors, state.scalars):
        for name, value in source.items():
            kind, _, place = name.partition("/")
            index, _, key = place.partition("/")
            if kind == "optimizer":
                entries.setdefault(int(index), {})[key] = value
            elif kind == "optimizer_group":
                groups[int(index)][key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
