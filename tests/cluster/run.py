"""The run: trainings undisturbed, the same ones while servers and database die, and the verdict."""

import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from loradash.domain.process import Status
from loradash.registry.opening import open_database_registry
from loradash.storage import keys
from loradash.storage.s3.store import S3Store
from tests.acceptance.conftest import CommandLine, Server, draw_dataset, training, upload
from tests.chaos.scene import weights_hash
from tests.contract.buckets import config_of
from tests.servers.postgres import PostgresServer
from tests.servers.seaweedfs import SeaweedServer

LEASE_S = 4
_TRAINING_S = 240.0
"""What a training may take before a run without an end is called stuck."""


class Wanted(NamedTuple):
    """What a run is asked for; the same settings give the same trainings and the same chances."""

    seed: int = 7
    servers: int = 3
    trainings: int = 20
    configs: int = 5
    """How many of the trainings are different ones."""
    kills: int = 30
    database_failures: int = 4
    steps: int = 40
    mean_between_s: float = 3.0
    engine: str = "diffusers"


@dataclass
class Outcome:
    """What a run has found."""

    wanted: Wanted
    kills: Counter[str] = field(default_factory=Counter)
    """By what was lost: the server alone, with its engines, or with its disk too."""
    failures: Counter[str] = field(default_factory=Counter)
    """Of the database, by their kind."""
    attempts: list[int] = field(default_factory=list)
    """Of each training."""
    takers: Counter[str] = field(default_factory=Counter)
    """How many attempts each server has made."""
    problems: list[str] = field(default_factory=list)
    undisturbed_s: float = 0.0
    disturbed_s: float = 0.0
    folder: Path = Path()


class Cluster:
    """Servers with a disk of their own each, that share a database and a bucket."""

    def __init__(self, folder: Path, database: str, s3: SeaweedServer, engine: str) -> None:
        self._folder = folder
        bucket = s3.new_bucket()
        self._environment = {
            "DATABASE_URL": database,
            "S3_BUCKET": bucket,
            "S3_ENDPOINT_URL": s3.endpoint_url,
            "AWS_ACCESS_KEY_ID": s3.access_key_id,
            "AWS_SECRET_ACCESS_KEY": s3.secret_access_key,
            "LORADASH_ENGINE": engine,
            "LORADASH_LEASE": str(LEASE_S),
            "MAX_ATTEMPTS": "1000",
        }
        self.store = S3Store(config_of(s3, bucket=bucket))
        self.registry = open_database_registry(database)
        self.servers: dict[str, Server] = {}

    def add(self, name: str) -> None:
        """Make a server; `start` begins it."""
        root = self._folder / name
        root.mkdir()
        self.servers[name] = Server(CommandLine(root), **self._environment)

    def start(self, name: str) -> None:
        self.servers[name].launch()

    def any_url(self) -> Server:
        """A server that answers."""
        server = next(iter(self.servers.values()))
        server.wait_until_ready()
        return server

    def kill(self, name: str, *, engines: bool, disk: bool) -> None:
        """End a server without a chance to do anything; its engines and its disk too if asked."""
        self.servers[name].kill()
        if engines:
            for process in self._programs_of(name):
                with suppress(psutil.Error):
                    process.kill()
        if disk:
            shutil.rmtree(self._folder / name / "workspace", ignore_errors=True)

    def close(self) -> None:
        for name, server in self.servers.items():
            server.close()
            for process in self._programs_of(name):
                with suppress(psutil.Error):
                    process.kill()
        self.registry.close()
        self.store.close()

    def left_over(self) -> list[str]:
        """Programs of any server that are still there."""
        return [
            f"{process.pid} of {name}"
            for name in self.servers
            for process in self._programs_of(name)
        ]

    def _programs_of(self, name: str) -> list[psutil.Process]:
        place = str(self._folder / name)
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                own = process.environ().get("WORKSPACE_PATH", "")
                if f"{own}/".startswith(f"{place}/") or f"{process.cwd()}/".startswith(f"{place}/"):
                    found.append(process)
        return found


def run(wanted: Wanted, say: Callable[[str], None] = print) -> Outcome:
    """Do it all. Files stay in the outcome's folder, for who wants to look."""
    outcome = Outcome(wanted, folder=Path(tempfile.mkdtemp(prefix="loradash-cluster-")))
    with (
        PostgresServer(durable=True) as database,
        SeaweedServer() as s3,
        _cluster(outcome, database, s3) as cluster,
    ):
        names = [f"s{number}" for number in range(1, wanted.servers + 1)]
        for name in names:
            cluster.add(name)
            cluster.start(name)
        for name in names:
            cluster.servers[name].wait_until_ready()
        upload(cluster.servers[names[0]], draw_dataset(outcome.folder / "dataset"), "shapes")
        say(f"{wanted.configs} trainings undisturbed ...")
        began_s = time.monotonic()
        undisturbed = _submit(cluster, wanted, wanted.configs)
        _wait(cluster, undisturbed, outcome)
        outcome.undisturbed_s = time.monotonic() - began_s
        before = [_weights(cluster, process_id, outcome) for process_id in undisturbed]
        if outcome.problems:
            return outcome
        say(f"{wanted.trainings} trainings while servers and database die ...")
        began_s = time.monotonic()
        disturbed = _disturb(cluster, database, names, outcome)
        say(f"{outcome.kills.total()} kills; waiting for the end ...")
        _wait(cluster, disturbed, outcome)
        outcome.disturbed_s = time.monotonic() - began_s
        for number, process_id in enumerate(disturbed):
            _judge(cluster, process_id, before[number % wanted.configs], outcome)
        _end(cluster, outcome)
    return outcome


@contextmanager
def _cluster(outcome: Outcome, database: PostgresServer, s3: SeaweedServer) -> Iterator[Cluster]:
    cluster = Cluster(outcome.folder, database.new_schema(), s3, outcome.wanted.engine)
    try:
        yield cluster
    finally:
        cluster.close()


def _config(wanted: Wanted, number: int) -> dict[str, Any]:
    return training(
        "shapes", name=f"cluster {number}", steps=wanted.steps, save_every=10,
        seed=wanted.seed * 1000 + number % wanted.configs,
    )  # fmt: skip


def _submit(cluster: Cluster, wanted: Wanted, count: int) -> list[str]:
    """Submit through the servers in turn."""
    servers = list(cluster.servers.values())
    return [
        servers[number % len(servers)].submit(type="train", config=_config(wanted, number))
        for number in range(count)
    ]


def _disturb(
    cluster: Cluster, database: PostgresServer, names: list[str], outcome: Outcome
) -> list[str]:
    """Kill until all kills are spent; submit again if everything has ended before."""
    wanted, chance = outcome.wanted, random.Random(outcome.wanted.seed)
    disturbed = _submit(cluster, wanted, wanted.trainings)
    down: dict[str, float] = {}
    spent = 0
    failures = sorted(chance.sample(range(wanted.kills), wanted.database_failures))
    while spent < wanted.kills:
        time.sleep(chance.uniform(0.25, 1.75) * wanted.mean_between_s)
        for name in [one for one, at_s in down.items() if at_s <= time.monotonic()]:
            cluster.start(name)
            del down[name]
        up = [name for name in names if name not in down]
        if not up:
            continue
        name = chance.choice(up)
        engines = chance.random() < 0.5
        disk = engines and chance.random() < 0.5
        cluster.kill(name, engines=engines, disk=disk)
        outcome.kills["machine and disk" if disk else "machine" if engines else "server"] += 1
        down[name] = time.monotonic() + chance.uniform(0, 2)
        if spent in failures:
            _fail(database, chance, outcome)
        spent += 1
        if all(_has_ended(cluster, one) for one in disturbed):
            for one in list(down):
                cluster.start(one)
                del down[one]
            for server in cluster.servers.values():
                server.wait_until_ready()
            disturbed += _submit(cluster, wanted, wanted.trainings)
    for name in down:
        cluster.start(name)
    return disturbed


def _fail(database: PostgresServer, chance: random.Random, outcome: Outcome) -> None:
    """Restart the database in order, crash it, or freeze it for some seconds."""
    kind = ("restart", "crash", "freeze")[outcome.failures.total() % 3]
    outcome.failures[kind] += 1
    away_s = chance.uniform(0.5, 3)
    if kind == "freeze":
        database.pause()
        time.sleep(away_s)
        database.resume()
        return
    (database.stop if kind == "restart" else database.kill)()
    time.sleep(away_s)
    database.start()


def _has_ended(cluster: Cluster, process_id: str) -> bool:
    return cluster.registry.get(process_id).status.is_end


def _wait(cluster: Cluster, process_ids: list[str], outcome: Outcome) -> None:
    deadline_s = time.monotonic() + _TRAINING_S * max(
        1.0, len(process_ids) / outcome.wanted.servers
    )
    while left := [one for one in process_ids if not _has_ended(cluster, one)]:
        if time.monotonic() > deadline_s:
            outcome.problems += [
                f"{one}: no end, {cluster.registry.get(one).status}" for one in left
            ]
            return
        time.sleep(0.5)


def _weights(cluster: Cluster, process_id: str, outcome: Outcome) -> str:
    record = cluster.registry.get(process_id)
    if record.status is not Status.COMPLETED:
        error = record.error.message if record.error else ""
        outcome.problems.append(f"{process_id}: {record.status} {error}")
        return "none"
    adapters = cluster.registry.artifacts(process_id, ["lora"])
    if len(adapters) != 1:
        outcome.problems.append(f"{process_id}: {len(adapters)} adapters")
        return "none"
    return weights_hash(cluster.store.get(adapters[0].key))


def _judge(cluster: Cluster, process_id: str, before: str, outcome: Outcome) -> None:
    """Compare a training with the same one that nothing disturbed; look for work done by two."""
    weights = _weights(cluster, process_id, outcome)
    record = cluster.registry.get(process_id)
    problems = [] if weights == before else [f"other weights: {weights[:12]}, not {before[:12]}"]
    steps = [row.step for row in cluster.registry.metrics(process_id, limit=100_000)]
    if steps != list(range(1, outcome.wanted.steps + 1)):
        problems.append(f"measurements of {len(steps)} steps")
    numbers = [line.number for line in cluster.registry.log(process_id, limit=100_000)]
    if numbers != list(range(1, len(numbers) + 1)):
        problems.append("gaps in the log")
    endings = Counter(note.ending for note in record.attempts)
    if endings["completed"] != 1 or endings[""]:
        problems.append(f"attempts ended as {dict(endings)}")
    if [note.number for note in record.attempts] != sorted({n.number for n in record.attempts}):
        problems.append("two attempts have one number")
    stored = {info.key for info in cluster.store.list(keys.results(process_id))}
    listed = {entry.key for entry in cluster.registry.artifacts(process_id)}
    if missing := listed - stored:
        problems.append(f"not stored: {sorted(missing)[:3]}")
    outcome.attempts.append(record.attempt_count)
    outcome.takers.update(note.owner for note in record.attempts)
    outcome.problems += [f"{process_id}: {problem}" for problem in problems]


def _end(cluster: Cluster, outcome: Outcome) -> None:
    """End the servers in order: nothing may run on afterwards, and none may fail."""
    for name, server in cluster.servers.items():
        server.wait_until_ready()
        if code := server.terminate():
            ended = f"signal {signal.Signals(-code).name}" if code < 0 else str(code)
            outcome.problems.append(f"server {name} ended with {ended}")
    outcome.problems += [f"still there: {one}" for one in cluster.left_over()]
