"""Checkpoints of scripted trainings: folders that are whole and verified, or not there."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from loradash.engines.scripted.adapter_file import write_adapter
from loradash.engines.scripted.plan import TrainingPlan
from loradash.engines.training_files import CHECKPOINTS_FOLDER

ADAPTER = "adapter.safetensors"
STATE = "state.json"


@dataclass(frozen=True)
class State:
    """All that a scripted training carries from one step to the next."""

    step: int
    digest: str
    job_sha256: str
    adapter_sha256: str = ""


def first_state(plan: TrainingPlan, job_sha256: str) -> State:
    """Return the state before the first step."""
    start = f"scripted/{plan.seed}/{plan.start_sha256}".encode()
    return State(0, hashlib.sha256(start).hexdigest(), job_sha256)


def next_state(state: State) -> State:
    """Return the state after one more step."""
    text = f"{state.digest}/{state.step + 1}".encode()
    return State(state.step + 1, hashlib.sha256(text).hexdigest(), state.job_sha256)


def write_checkpoint(folder: Path, plan: TrainingPlan, state: State) -> Path:
    """Write a checkpoint beside its place, flush it, rename it; return its folder."""
    target = folder / CHECKPOINTS_FOLDER / f"step-{state.step:09d}"
    partial = target.with_name(f".partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        adapter = partial / ADAPTER
        save_adapter(adapter, plan, state)
        digest = hashlib.sha256(adapter.read_bytes()).hexdigest()
        with (partial / STATE).open("w", encoding="utf-8") as file:
            json.dump(asdict(State(state.step, state.digest, state.job_sha256, digest)), file)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if plan.keep:
        for path in list(_newest_first(folder))[max(plan.keep, 2) :]:
            shutil.rmtree(path, ignore_errors=True)
    return target


def newest_checkpoint(folder: Path, jobs: set[str]) -> tuple[Path, State] | None:
    """Return the newest checkpoint of these jobs that verifies; damaged ones are passed over."""
    for path in _newest_first(folder):
        try:
            state = State(**json.loads((path / STATE).read_bytes()))
            digest = hashlib.sha256((path / ADAPTER).read_bytes()).hexdigest()
        except (OSError, ValueError, TypeError):
            continue
        if digest == state.adapter_sha256 and state.job_sha256 in jobs:
            return path, state
    return None


def save_adapter(path: Path, plan: TrainingPlan, state: State) -> None:
    """Write the adapter of a state."""
    metadata = {**plan.metadata, "loradash.steps": str(state.step)}
    write_adapter(path, bytes.fromhex(state.digest), plan.rank, plan.alpha, plan.dtype, metadata)


def _newest_first(folder: Path) -> Iterator[Path]:
    yield from sorted((folder / CHECKPOINTS_FOLDER).glob("step-?????????"), reverse=True)
