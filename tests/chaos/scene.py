"""An endpoint whose machines die: workers with disks of their own, one bucket, one queue."""

import hashlib
import json
import random
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from loradash.domain.ids import process_id_of
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import LoradashError, NotFound
from loradash.registry.objects import ObjectRegistry
from loradash.storage import keys
from loradash.storage.s3.store import S3Store
from tests.chaos.verdict import Attempt, Stored, Training
from tests.contract.buckets import config_of
from tests.servers.endpoint import Endpoint
from tests.servers.queue import RunpodQueue
from tests.servers.seaweedfs import SeaweedServer

REQUEUE_S = 3
SETTINGS = {"MAX_ATTEMPTS": "1000"}
"""Here a worker that is lost again and again says nothing about its training."""


class Scene:
    """The endpoint, and what can be seen of it from outside."""

    def __init__(self, endpoint: Endpoint, store: S3Store, folder: Path) -> None:
        self.endpoint = endpoint
        self.folder = folder
        self._store = store
        self._registry = ObjectRegistry(store)
        self._workers = 0

    def start_worker(self) -> str:
        """Start a worker on a new machine: a new name and an empty disk."""
        self._workers += 1
        name = f"w{self._workers}"
        self.endpoint.start(name)
        return name

    def lose_machine(self, name: str) -> str:
        """Kill a worker and everything that it started; return what it was doing."""
        doing = self._doing(name)
        worker = self.endpoint.workers.pop(name)
        family = [psutil.Process(worker.pid)]
        family += family[0].children(recursive=True)
        for process in family:  # the worker first, so that it can't react to an engine's death
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        worker.wait()
        psutil.wait_procs(family[1:], timeout=10)
        return doing

    def process_id(self, job_id: str) -> str:
        """The process of a job that asks for a training."""
        return process_id_of("train", f"job/{job_id}")

    def record(self, job_id: str) -> ProcessRecord | None:
        """The record of a job's training, if it is there yet."""
        try:
            return self._registry.get(self.process_id(job_id))
        except NotFound:
            return None

    def has_ended(self, job_id: str) -> bool:
        """Whether both the job and its training have."""
        record = self.record(job_id)
        return bool(record and record.status.is_end) and self.endpoint.queue.status(job_id)[
            "status"
        ] not in ("IN_QUEUE", "IN_PROGRESS")

    def observed(self, job_id: str) -> Training:
        """Everything that is known of a job's training."""
        process_id = self.process_id(job_id)
        record = self._registry.get(process_id)
        artifacts = self._registry.artifacts(process_id)
        prefix = f"{keys.results(process_id)}/"
        objects = [self._stored(info.key) for info in self._store.list(keys.results(process_id))]
        adapters = [one.key for one in artifacts if one.kind == "lora"]
        return Training(
            process_id=process_id,
            job_status=str(self.endpoint.queue.status(job_id)["status"]),
            status=str(record.status),
            total_steps=record.progress.total_steps,
            weights=weights_hash(self._store.get(adapters[-1])) if adapters else "none",
            metrics=tuple(
                (row.step, row.loss) for row in self._registry.metrics(process_id, limit=5000)
            ),
            artifacts=tuple(Stored(one.key, one.size_bytes, one.sha256) for one in artifacts),
            objects=tuple(objects),
            attempts=tuple(
                Attempt(note.number, note.ending, note.from_step, note.to_step)
                for note in record.attempts
            ),
            names=tuple(f"{one.kind} {one.key.removeprefix(prefix)}" for one in artifacts),
        )

    def running(self) -> list[str]:
        """Processes that aren't at their end."""
        page = self._registry.page(statuses=[Status.PENDING, Status.RUNNING], limit=200)
        return [record.id for record in page.records]

    def left_over(self) -> list[str]:
        """Programs that still work in the folder of any worker."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if str(self.folder) in process.cwd():
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:80]}")
        return found

    def _doing(self, worker: str) -> str:
        try:
            page = self._registry.page(statuses=[Status.RUNNING], limit=200)
        except LoradashError:
            return "unknown"
        for record in page.records:
            if record.lease and record.lease.owner.startswith(f"{worker}-"):
                return record.progress.phase or "starting"
        return "idle"

    def _stored(self, key: str) -> Stored:
        data = self._store.get(key)
        return Stored(key, len(data), hashlib.sha256(data).hexdigest())


@contextmanager
def scene(folder: Path, s3: SeaweedServer) -> Iterator[Scene]:
    """Make an endpoint without workers; end everything afterwards."""
    with RunpodQueue(requeue_after=REQUEUE_S, max_deliveries=1000) as queue:
        endpoint = Endpoint(queue, s3, folder / "workers", SETTINGS)
        store = S3Store(config_of(s3, bucket=endpoint.bucket))
        try:
            yield Scene(endpoint, store, folder / "workers")
        finally:
            endpoint.close()
            store.close()


def weights_hash(data: bytes) -> str:
    """SHA-256 of a safetensors file without its metadata, which tells when it was made."""
    (length,) = struct.unpack("<Q", data[:8])
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    described = json.dumps(header, sort_keys=True).encode()
    return hashlib.sha256(described + data[8 + length :]).hexdigest()


def configs(seed: int, count: int) -> list[dict[str, Any]]:
    """Different trainings, the same for the same seed."""
    chance = random.Random(seed)
    return [
        {
            "name": f"chaos-{n}",
            "seed": chance.randrange(1000),
            "steps": chance.randrange(30, 81, 2),
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
