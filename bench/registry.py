"""How long do the registry's pages and writes take, and does it grow with all that was ever run?

Latencies of single calls on an SQLite file, or with ``--database postgres`` on a PostgreSQL server
on loopback, in ms. The peer is the obvious way to get a page, from the same database: read all
documents, parse them, filter and sort them in Python. Both give the same. A page of 10 processes is
short: the fair comparison of sizes is that of 100,000 with 1,000. At the end 8 threads make 1,000
changes each, in opposite directions, and none of them may fail.
"""

import contextlib
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product
from typing import NamedTuple

from sqlalchemy import Engine, create_engine, insert, select
from tests.servers.postgres import PostgresServer

from bench.measure import Row, judged, parser, reading, report
from loradash.domain import process as changes
from loradash.domain.ids import new_process_id
from loradash.domain.kinds import kind_names
from loradash.domain.process import ProcessRecord, Status
from loradash.executors.executor import NoExecutor
from loradash.registry import tables
from loradash.registry.rows import columns
from loradash.registry.sql import SqlRegistry
from loradash.runtime.lease_watch import LeaseWatch
from loradash.services.processes.service import ProcessService
from loradash.storage.memory import MemoryStore

SIZES = (10, 1_000, 100_000)
START = datetime(2026, 1, 1, tzinfo=UTC)
SHARES = {Status.PENDING: 3, Status.COMPLETED: 75, Status.FAILED: 14, Status.CANCELLED: 8}
PAGES = {"newest page": (None, ()), "page of a kind and status": ("training", (Status.FAILED,))}
SERVICE = "newest page in the service, with places in the queue"
THREADS, CHANGES = 8, 1_000
WRITES = ("change", "take_next and release")


class Latency(NamedTuple):
    """What one call takes, in ms; ``cpu`` is a median too."""

    p50: float
    p95: float
    cpu: float


def main() -> None:
    """Fill one file of each size, then measure all in turn, repeat after repeat."""
    options = parser(__doc__, repeats=5)
    options.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite")
    arguments = options.parse_args()
    with contextlib.ExitStack() as stack:
        if arguments.database == "postgres":
            server = stack.enter_context(PostgresServer(durable=True, shared_buffers="128MB"))
            urls = {size: server.new_schema() for size in SIZES}
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            urls = {size: f"sqlite:///{folder}/{size}.sqlite3" for size in SIZES}
        databases = {size: filled(url, size) for size, url in urls.items()}
        repeats = [
            {
                (name, size): value
                for size in SIZES
                for name, value in measured(*databases[size], size)
            }
            for _ in range(arguments.repeats)
        ]
        contended = contention(databases[SIZES[0]][0])
    report([*rows(repeats), contended], arguments)


def contention(registry: SqlRegistry) -> Row:
    """Have threads move processes of their own between two statuses at the same time."""
    waiting = {"status": Status.PENDING}
    ids = [registry.create(one.model_copy(update=waiting)).id for one in processes(THREADS)]

    def work(process_id: str) -> None:
        for _ in range(CHANGES // 2):
            registry.change(process_id, taking)
            registry.change(process_id, lambda one: changes.released(one, "token", START))

    start = reading()
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(work, ids))  # raises what any of them has met
    wall_s = (reading() - start).wall_s
    return Row(
        f"{THREADS} threads x {CHANGES:,} changes", "changes/s", [THREADS * CHANGES / wall_s]
    )


def measured(registry: SqlRegistry, engine: Engine, size: int) -> Iterator[tuple[str, Latency]]:
    """Time each quantity on one file."""
    for name, (kind, statuses) in PAGES.items():
        page = partial(registry.page, kind=kind, statuses=statuses)
        naive = partial(naive_page, engine, kind, statuses)
        assert page().records == naive()
        yield name, latency(page, 200)
        yield f"naive {name}", latency(naive, 1 if size == SIZES[-1] else 20)
    service = ProcessService(registry, MemoryStore(), NoExecutor(), LeaseWatch(30, look_every_s=5))
    view = partial(service.page, kind=None, statuses=(), limit=50, cursor="")
    yield SERVICE, latency(view, 200)
    (first,) = registry.pending("training", limit=1)

    def rename() -> None:
        registry.change(first.id, lambda one: one.model_copy(update={"name": one.name[::-1]}))

    def take_and_release() -> None:
        registry.take_next("training", taking)
        registry.change(first.id, lambda record: changes.released(record, "token", START))

    yield "change", latency(rename, 200)
    yield "take_next and release", latency(take_and_release, 100)


def latency(call: Callable[[], object], calls: int) -> Latency:
    """Time a call that often, after one that isn't counted."""
    call()
    costs = []
    for _ in range(calls):
        before = reading()
        call()
        costs.append(reading() - before)
    wall = sorted(cost.wall_s * 1000 for cost in costs)
    cpu_ms = statistics.median(cost.cpu_s for cost in costs) * 1000
    return Latency(statistics.median(wall), wall[int(calls * 0.95)], cpu_ms)


def rows(repeats: Sequence[dict[tuple[str, int], Latency]]) -> Iterator[Row]:
    """All sizes of each quantity; for pages the peer, and the largest size next to the others."""

    def values(name: str, size: int, what: str) -> list[float]:
        return [getattr(repeat[name, size], what) for repeat in repeats]

    for name, size in product((SERVICE, *PAGES, *WRITES), SIZES):
        p95 = Row("... p95", "ms", values(name, size, "p95"))
        naive = values(f"naive {name}", size, "cpu") if name in PAGES else None
        yield Row(f"{name}, {size:,} processes, p50", "ms", values(name, size, "p50"))
        yield p95 if name in WRITES else judged(p95, "under 10 ms", lambda ms: ms < 10)
        yield Row("... CPU", "ms", values(name, size, "cpu"), naive)
    for name, size in product((SERVICE, *PAGES), SIZES[:-1]):
        title = f"{name}, CPU: {SIZES[-1]:,} next to {size:,}"
        yield Row(title, "ms", values(name, SIZES[-1], "cpu"), values(name, size, "cpu"))


def naive_page(
    engine: Engine, kind: str | None, statuses: Sequence[Status]
) -> tuple[ProcessRecord, ...]:
    """The peer: everything is read, and Python does the rest."""
    with engine.connect() as connection:
        documents = connection.scalars(select(tables.processes.c.document)).all()
    records = [ProcessRecord.model_validate_json(document) for document in documents]
    if statuses:
        records = [one for one in records if one.kind == kind and one.status in statuses]
    return tuple(sorted(records, key=lambda one: (one.created_at, one.id), reverse=True)[:50])


def taking(record: ProcessRecord) -> ProcessRecord:
    return changes.taken(record, owner="worker", token="token", now=START, lease_s=30, device="cpu")


def filled(url: str, size: int) -> tuple[SqlRegistry, Engine]:
    """Make a registry with that many processes, in one transaction; return it and a bare engine."""
    registry = SqlRegistry(url)
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:  # not the table of counts: nothing here reads it
        connection.execute(insert(tables.processes), [*map(columns, processes(size))])
    if engine.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE processes")  # as autovacuum does in a minute
    return registry, engine


def processes(size: int) -> Iterator[ProcessRecord]:
    """Processes as large as real ones, with two attempts, a second apart from each other."""
    first = ProcessRecord(
        id=new_process_id("training"), kind="training", name="cats",
        created_at=START, enqueued_at=START, updated_at=START,
        summary={"base_model": "/models/stable-diffusion-v1-5", "trigger_word": "emj", "rank": 16},
    )  # fmt: skip
    for _ in range(2):
        first = changes.released(taking(first), "token", START)
    dice = random.Random(0)
    for n in range(size):
        now = START + timedelta(seconds=n)
        kind = kind_names()[n % 2]
        status = dice.choices([*SHARES], [*SHARES.values()])[0] if n else Status.PENDING
        fields = {"id": new_process_id(kind, now.timestamp()), "kind": kind, "status": status}
        times = dict.fromkeys(("created_at", "enqueued_at", "updated_at"), now)
        yield first.model_copy(update=fields | times)


if __name__ == "__main__":
    main()
