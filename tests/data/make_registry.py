"""Makes the registries of a release that later ones must be able to upgrade.

Run it with the code of that release, and keep what it writes:

    git archive RELEASE src | tar -x -C /tmp/release
    PYTHONPATH=/tmp/release/src python tests/data/make_registry.py tests/data

It writes ``registry_schema_1.sql``, a dump of the SQLite file, and ``registry_schema_1.json``, the
objects of a registry in a bucket, by key. Both hold the same six processes. Made with commit
9c47667, the last one before schemas were migrated.
"""

import json
import sqlite3
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from loradash.domain import process as changes
from loradash.domain.process import Problem, ProcessRecord, Progress
from loradash.registry.objects import ObjectRegistry
from loradash.registry.registry import Metric, NewLine, StoredArtifact
from loradash.registry.sql import SqlRegistry
from loradash.storage.memory import MemoryStore

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
IDS = {
    "waiting": "train_01k9x3q4zt8m2v7c0001",
    "waiting_generation": "gen_01k9x3q4zt8m2v7c0002",
    "running": "train_01k9x3q4zt8m2v7c0003",
    "completed": "train_01k9x3q4zt8m2v7c0004",
    "failed": "train_01k9x3q4zt8m2v7c0005",
    "cancelled": "gen_01k9x3q4zt8m2v7c0006",
}


def at(seconds):
    return NOW + timedelta(seconds=seconds)


def fill(registry):
    for number, (name, process_id) in enumerate(IDS.items()):
        kind = "training" if process_id.startswith("train_") else "generation"
        registry.create(
            ProcessRecord(
                id=process_id, kind=kind, name=f"{name} Größe 猫 \0", priority=number,
                created_at=at(number), enqueued_at=at(number), updated_at=at(number),
                summary={"base_model": "sd-1.5", "rank": 16, "none": None},
                config_key=f"configs/{process_id}/config.yaml",
            )
        )  # fmt: skip
    for name in ("running", "completed", "failed"):
        work(registry, IDS[name], f"token of {name}")
    registry.change(
        IDS["completed"],
        lambda one: changes.completed(
            one, "token of completed", now=at(90), output_prefix="results/x"
        ),
    )
    problem = Problem(code="out_of_memory", message="the memory ran out", problems=("a", "b"))
    registry.change(
        IDS["failed"], lambda one: changes.failed(one, "token of failed", problem, at(91))
    )
    registry.change(IDS["cancelled"], lambda one: changes.cancel_requested(one, at(92)))


def work(registry, process_id, token):
    """Take a process and write all that a worker writes."""
    registry.change(
        process_id,
        lambda one: changes.taken(
            one, owner="worker 1", token=token, now=at(10), lease_s=30, device="cpu"
        ),
    )
    registry.append_metrics(
        process_id,
        token,
        [
            Metric(
                step=step,
                attempt=1,
                time=at(10 + step),
                loss=float("nan") if step == 2 else 0.5 / step,
                learning_rate=1e-4,
            )
            for step in (1, 2, 3)
        ],
    )
    lines = [NewLine(1, at(11), "engine", text) for text in ("loading", "step 1 \0 🐈", "")]
    registry.append_log(process_id, token, lines)
    registry.put_artifacts(
        token,
        [
            StoredArtifact(
                process_id=process_id,
                key=f"results/{process_id}/{kind} ä.safetensors",
                kind=kind,
                name=f"{kind}.safetensors",
                size_bytes=7,
                sha256="0" * 64,
                created_at=at(20),
                step=3,
            )
            for kind in ("checkpoint", "lora")
        ],
    )
    progress = Progress(phase="training", step=3, total_steps=9, loss=0.1)
    registry.change(
        process_id, lambda one: changes.renewed(one, token, now=at(30), lease_s=30,
                                                progress=progress),
    )  # fmt: skip


def main():
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "registry.sqlite3"
        with closing(SqlRegistry(f"sqlite:///{path}")) as registry:
            fill(registry)
        with closing(sqlite3.connect(path)) as file:
            (folder / "registry_schema_1.sql").write_text("\n".join(file.iterdump()) + "\n")
    store = MemoryStore()
    fill(ObjectRegistry(store))
    objects = {info.key: store.get(info.key).decode() for info in store.list("")}
    (folder / "registry_schema_1.json").write_text(json.dumps(objects, indent=1) + "\n")


if __name__ == "__main__":
    main()
