"""An endpoint whose machines die: workers with disks of their own, one bucket, one queue."""

import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from loradash.domain.ids import key_of_job, process_id_of
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import LoradashError, NotFound
from loradash.registry.objects import ObjectRegistry
from loradash.runtime.manifests import latest_manifest, stored_manifests
from loradash.storage import keys
from loradash.storage.s3.store import S3Store
from tests.chaos.verdict import Attempt, Stored, Training
from tests.contract.buckets import config_of
from tests.servers.endpoint import Endpoint
from tests.servers.queue import RunpodQueue
from tests.servers.seaweedfs import SeaweedServer

LEASE_S = 4
REQUEUE_S = 3
MAX_DELIVERIES = 1000
SETTINGS = {"MAX_ATTEMPTS": "1000", "LORADASH_LEASE": str(LEASE_S)}
"""Here a worker that is lost again and again says nothing about its training."""

_READY = "fitness checks passed"


class Scene:
    """The endpoint, and what can be seen of it from outside."""

    def __init__(self, endpoint: Endpoint, store: S3Store, folder: Path) -> None:
        self.endpoint = endpoint
        self.folder = folder
        self._store = store
        self._registry = ObjectRegistry(store)
        self._workers = 0

    def start_worker(self) -> str:
        """Start a worker on a new machine: a new name, and an empty disk at a new path."""
        self._workers += 1
        name = f"w{self._workers}"
        self.endpoint.start(name)
        return name

    def lose_machine(self, name: str) -> None:
        """Kill a worker and everything that it started, and take its disk away."""
        worker = self.endpoint.workers.pop(name)
        family = [psutil.Process(worker.pid)]
        with suppress(psutil.Error):  # it may end by itself at this very moment
            family += family[0].children(recursive=True)
        _kill(family)  # the worker first, so that it can't react to an engine's death
        worker.wait()
        _kill(self._programs_of(name))  # what it had started after the family was counted
        shutil.rmtree(self.folder / name / "workspace", ignore_errors=True)

    def doing(self, name: str) -> str:
        """What a worker is doing, as far as the queue and the registry know."""
        taken = [
            job_id
            for job_id, job in self.endpoint.queue.jobs().items()
            if job["status"] == "IN_PROGRESS" and job["worker"] == name
        ]
        if not taken:
            return "idle" if _READY in self.endpoint.log(name) else "booting"
        try:
            record = self.record(taken[-1])
        except LoradashError:
            return "unknown"
        if record is None:
            return "submitting"
        if record.status.is_end:
            return "answering"
        if record.lease is None or not record.lease.owner.startswith(f"{name}-"):
            return "awaiting the lease"
        return record.progress.phase or "starting"

    def process_id(self, job_id: str) -> str:
        """The process of a job that asks for a training."""
        return process_id_of("training", key_of_job(job_id))

    def record(self, job_id: str) -> ProcessRecord | None:
        """The record of a job's training, if it is there yet."""
        try:
            return self._registry.get(self.process_id(job_id))
        except NotFound:
            return None

    def has_ended(self, job_id: str) -> bool:
        """Whether both the job and its training have."""
        job = self.endpoint.queue.status(job_id)["status"]
        if job == "COMPLETED":  # one that failed may leave its training running: that shows
            record = self.record(job_id)
            return bool(record and record.status.is_end)
        return job not in ("IN_QUEUE", "IN_PROGRESS")

    def observed(self, job_id: str) -> Training:
        """Everything that is known of a job's training."""
        process_id = self.process_id(job_id)
        job = str(self.endpoint.queue.status(job_id)["status"])
        record = self.record(job_id)
        if record is None:
            return Training(process_id, job, "missing", 0, "none")
        artifacts = self._registry.artifacts(process_id)
        objects = [self._stored(info.key) for info in self._store.list(keys.results(process_id))]
        adapters = [one.key for one in artifacts if one.kind == "lora"]
        found = {one.key for one in objects}
        return Training(
            process_id=process_id,
            job_status=job,
            status=str(record.status),
            total_steps=record.progress.total_steps,
            weights=weights_hash(self._store.get(adapters[-1]))
            if adapters and adapters[-1] in found
            else "none",
            metrics=tuple(
                (row.step, row.loss) for row in self._registry.metrics(process_id, limit=100_000)
            ),
            artifacts=tuple(
                Stored(one.key, one.size_bytes, one.sha256, one.kind) for one in artifacts
            ),
            objects=tuple(objects),
            manifest=self._manifest(process_id),
            attempts=tuple(
                Attempt(
                    note.number, note.ending, note.from_step, note.to_step, note.owner,
                    note.started_at.timestamp(),
                    note.ended_at.timestamp() if note.ended_at else None,
                )
                for note in record.attempts
            ),
            attempt_count=record.attempt_count,
            log_gaps=self._log_gaps(process_id),
        )  # fmt: skip

    def running(self) -> list[str]:
        """Processes that aren't at their end."""
        page = self._registry.page(statuses=[Status.PENDING, Status.RUNNING], limit=200)
        return [record.id for record in page.records]

    def recorded(self) -> set[str]:
        """Ids of all processes in the registry."""
        found: set[str] = set()
        cursor = ""
        while True:
            page = self._registry.page(limit=100, cursor=cursor)
            found |= {record.id for record in page.records}
            cursor = page.next_cursor
            if not cursor:
                return found

    def unnamed_parts(self) -> int:
        """Objects of the registry that no record names: what dead writers left behind."""
        named: set[str] = set()
        for info in self._store.list(keys.processes()):
            if info.key.endswith(".json"):
                parts = json.loads(self._store.get(info.key))["parts"]
                named |= {chunk["key"] for chunk in (*parts["metrics"], *parts["log"])}
                named.add(parts["artifacts"])
        return sum(info.key not in named for info in self._store.list("process-data"))

    def left_over(self) -> list[str]:
        """Programs of any worker that are still there."""
        return [f"{one.pid} {_words(one)}" for one in self._programs_of("")]

    def _programs_of(self, name: str) -> list[psutil.Process]:
        """Programs that work on a worker's disk, or were started by one that does; '' for any."""
        place = f"{self.folder}/{name}/" if name else f"{self.folder}/"
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                own = process.environ().get("WORKSPACE_PATH", "")
                if f"{own}/".startswith(place) or f"{process.cwd()}/".startswith(place):
                    found.append(process)
        return found

    def _manifest(self, process_id: str) -> tuple[Stored, ...]:
        try:
            latest = latest_manifest(stored_manifests(self._store, process_id))
            files = json.loads(self._store.get(latest.key))["files"] if latest else ()
        except (NotFound, ValueError, LookupError):
            return ()
        return tuple(
            Stored(one["key"], one["size_bytes"], one["sha256"], one["kind"]) for one in files
        )

    def _log_gaps(self, process_id: str) -> int:
        numbers = [line.number for line in self._registry.log(process_id, limit=100_000)]
        return len(set(range(1, len(numbers) + 1)) ^ set(numbers))

    def _stored(self, key: str) -> Stored:
        data = self._store.get(key)
        return Stored(key, len(data), hashlib.sha256(data).hexdigest())


@contextmanager
def scene(folder: Path, s3: SeaweedServer) -> Iterator[Scene]:
    """Make an endpoint without workers; end everything afterwards."""
    # RunPod's limit isn't known; the emulator's usual one would fail jobs that are hit often.
    with RunpodQueue(requeue_after=REQUEUE_S, max_deliveries=MAX_DELIVERIES) as queue:
        endpoint = Endpoint(queue, s3, folder / "workers", SETTINGS)
        store = S3Store(config_of(s3, bucket=endpoint.bucket))
        stage = Scene(endpoint, store, folder / "workers")
        try:
            yield stage
        finally:
            for name in list(endpoint.workers):
                stage.lose_machine(name)
            store.close()


def weights_hash(data: bytes) -> str:
    """SHA-256 of a safetensors file without its metadata: that names the process and the time."""
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    described = json.dumps(header, sort_keys=True).encode()
    return hashlib.sha256(described + data[8 + length :]).hexdigest()


def configs(seed: int, count: int, steps: int) -> list[dict[str, Any]]:
    """Different trainings of at most so many steps, the same for the same seed."""
    chance = random.Random(seed)
    return [
        {
            "name": f"chaos-{n}",
            "seed": 1000 * n + chance.randrange(1000),
            "steps": chance.randint(max(2, steps // 2), steps),
            "rank": chance.choice([2, 4, 8]),
            "save_every": chance.choice([3, 5, 8]),
            "keep_checkpoints": 3,
            **(
                {"sample_prompts": ["a [trigger] triangle"], "sample_every": 20, "sample_steps": 2}
                if n % 3 == 0
                else {}
            ),
        }
        for n in range(count)
    ]


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:100]
    except psutil.Error:
        return "(gone meanwhile)"
