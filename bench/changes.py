"""How soon does a change reach a listener, and what does it cost to wait for one?

The listener is one of a real server's hub, in this process; another program, with a registry of its
own, changes 200 processes at random times, each once. The delay counts from the moment at which the
writer knows that its change is committed. Then nothing happens, and the CPU time of the server is
taken with and without listeners. The bucket is SeaweedFS. The changes are such as PostgreSQL
doesn't notify of, so all of them are found by polling.

A poll that finds nothing is timed in a database with 1,000 and with 100,000 processes.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import insert
from tests.servers.postgres import PostgresServer
from tests.servers.seaweedfs import SeaweedServer

from bench.measure import Row, judged, parser, reading, report
from bench.registry import filled, processes
from loradash.api.app import Server
from loradash.registry import tables
from loradash.registry.sql import SqlRegistry
from loradash.settings import Settings, load_settings
from loradash.wiring.core import make_core
from loradash.wiring.server import make_server

CHANGES = 200
LISTENERS = 20
IDLE_S = 20.0
POLLS = 500
LATE_S = 10.0
SOON = {"SQLite": 0.5, "PostgreSQL": 0.5, "bucket": 2.0}
"""In seconds, what 95 % of the changes must reach a listener within."""
PAUSES_S = {"SQLite": (0.05, 0.45), "PostgreSQL": (0.05, 0.45), "bucket": (0.2, 1.0)}


class Delays(NamedTuple):
    """Seconds from a committed change to the listener."""

    p50: float
    p95: float
    most: float


class Shares(NamedTuple):
    """CPU time in percent of one core: of the whole process, and of the hub's thread."""

    all: float
    hub: float


def main() -> None:
    """Measure each registry in turn, then polls."""
    options = parser(__doc__, repeats=1)
    options.add_argument("--registries", default=",".join(SOON), help="default: %(default)s")
    arguments = options.parse_args()
    rows: list[Row] = []
    for name in arguments.registries.split(","):
        with environment_of(name) as environment:
            rows += measured(name, environment, arguments.repeats)
    rows += list(poll_rows(arguments.repeats))
    report(rows, arguments)


@contextlib.contextmanager
def environment_of(name: str) -> Iterator[Mapping[str, str]]:
    """Yield what both programs find in their environment, so that they share a registry."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="loradash-bench-"))
        environment = {
            "WORKSPACE_PATH": f"{folder}/workspace",
            "LORADASH_OBJECTS_PATH": f"{folder}/objects",
            "LORADASH_DEVICE": "cpu",
        }
        if name == "PostgreSQL":
            server = stack.enter_context(PostgresServer(durable=True))
            environment["DATABASE_URL"] = server.new_schema()
        if name == "bucket":
            s3 = stack.enter_context(SeaweedServer())
            environment |= {
                "S3_BUCKET": s3.new_bucket(),
                "S3_ENDPOINT_URL": s3.endpoint_url,
                "AWS_ACCESS_KEY_ID": s3.access_key_id,
                "AWS_SECRET_ACCESS_KEY": s3.secret_access_key,
                "LORADASH_REGISTRY": "objects",
            }
        yield environment


def measured(name: str, environment: Mapping[str, str], repeats: int) -> list[Row]:
    """Return delays and idle costs of a server with this registry."""
    os.environ.update(environment)
    settings = load_settings()
    assert str(settings.workspace_path) == environment["WORKSPACE_PATH"]
    ids = created(settings)
    server = make_server(settings)
    server.start()
    try:
        found = [delays(server, name, ids, environment) for _ in range(repeats)]
        alone = [idle_share(server, 0) for _ in range(repeats)]
        listened = [idle_share(server, LISTENERS) for _ in range(repeats)]
    finally:
        server.stop()
        for variable in environment:
            del os.environ[variable]
    worst = Row(f"{name}: ... p95", "s", [one.p95 for one in found])
    return [
        Row(f"{name}: a change of another program to a listener, p50", "s",
            [one.p50 for one in found]),
        judged(worst, f"at most {SOON[name]} s", lambda s: s <= SOON[name]),
        Row(f"{name}: ... latest of {CHANGES}", "s", [one.most for one in found]),
        Row(f"{name}: CPU of an idle server, nobody listens", "%", [one.all for one in alone]),
        judged(
            Row(f"{name}: ... {LISTENERS} listeners", "%", [one.all for one in listened]),
            "under 1 %", lambda share: share < 1,
        ),
        Row(f"{name}: ... of which the hub", "%", [one.hub for one in listened]),
    ]  # fmt: skip


def created(settings: Settings) -> list[str]:
    """Create the processes that will be changed; they have ended, so that nothing takes them."""
    ended = (one for one in processes(2 * CHANGES) if one.status.is_end)
    core = make_core(settings)
    try:
        return [core.registry.create(one).id for one in islice(ended, CHANGES)]
    finally:
        core.close()


def delays(server: Server, name: str, ids: Sequence[str], environment: Mapping[str, str]) -> Delays:
    """Have another program change each process, and see when a listener gets it."""
    received: dict[str, float] = {}
    wanted = set(ids)

    def listen() -> None:
        with server.changes.listen() as listener:
            deadline_s = time.monotonic() + len(ids) * PAUSES_S[name][1] + LATE_S + 30
            while wanted - received.keys() and time.monotonic() < deadline_s:
                if update := listener.next(1.0):
                    now_s = time.monotonic()
                    for process_id, _ in update.changes:
                        received.setdefault(process_id, now_s)

    thread = threading.Thread(target=listen)
    thread.start()
    time.sleep(2.0)  # the hub has its first cursor
    writer = subprocess.run(
        [sys.executable, "-m", "bench.changes_writer", *map(str, PAUSES_S[name])],
        input="\n".join(ids), text=True, capture_output=True, check=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    thread.join()
    written = {one: float(at) for one, at in map(str.split, writer.stdout.splitlines())}
    assert written.keys() == wanted
    assert received.keys() == wanted, f"missed: {wanted - received.keys()}"
    found = sorted(max(0.0, received[one] - written[one]) for one in ids)
    return Delays(statistics.median(found), found[int(len(found) * 0.95)], found[-1])


def idle_share(server: Server, listeners: int) -> Shares:
    """Return what the server takes of a core while nothing happens."""
    with contextlib.ExitStack() as stack:
        for _ in range(listeners):
            stack.enter_context(server.changes.listen())
        time.sleep(2.0)
        before, hub_before_s = reading(), hub_s()
        time.sleep(IDLE_S)
        cost, hub_cost_s = reading() - before, hub_s() - hub_before_s
    return Shares(100 * cost.cpu_s / cost.wall_s, 100 * hub_cost_s / cost.wall_s)


def hub_s() -> float:
    """Return the CPU seconds of the hub's thread."""
    threads = [one for one in threading.enumerate() if one.name == "changes"]
    return sum(
        time.clock_gettime(time.pthread_getcpuclockid(one.ident)) for one in threads if one.ident
    )


def poll_rows(repeats: int) -> Iterator[Row]:
    """Time polls that find nothing, with few and with many processes, each of which has changed."""
    with tempfile.TemporaryDirectory() as folder:
        for size in (1_000, 100_000):
            registry, engine = filled(f"sqlite:///{Path(folder) / f'{size}.sqlite3'}", size)
            with engine.begin() as connection:
                rows = [
                    {"process_id": one.id, "changed": number}
                    for number, one in enumerate(registry.page(limit=size).records, start=1)
                ]
                connection.execute(insert(tables.process_changes), rows)
            values = [poll_ms(registry) for _ in range(repeats)]
            yield Row(f"SQLite: a poll without a change, {size:,} processes, CPU", "ms", values)


def poll_ms(registry: SqlRegistry) -> float:
    """Return the CPU time of one poll that finds nothing."""
    cursor = registry.changes_since().cursor
    before = reading()
    for _ in range(POLLS):
        assert not registry.changes_since(cursor).changes
    return (reading() - before).cpu_s / POLLS * 1000


if __name__ == "__main__":
    main()
