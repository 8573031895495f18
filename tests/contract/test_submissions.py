"""Two submissions under one key, in every kind of store: record and config agree."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime

import pytest

from loradash.domain.ids import process_id_of
from loradash.domain.process import ProcessRecord
from loradash.registry.memory import MemoryRegistry
from loradash.registry.objects import ObjectRegistry
from loradash.services.processes.submission import stored_config, submit
from loradash.storage import keys
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore
from loradash.storage.s3.store import S3Store

from .buckets import config_of

RACES = 40
RACERS = 3
AT_ONCE = 4


@pytest.fixture(params=["memory", "folder", "volume", "seaweedfs"])
def programs(request, tmp_path):
    """What each of some programs has: a registry and a store, all seeing the same."""
    if request.param == "memory":
        store, registry = MemoryStore(), MemoryRegistry()
        yield [(registry, store)] * RACERS
        return
    if request.param in ("folder", "volume"):
        shared = request.param == "volume"  # and then without conditional writes
        stores = [LocalStore(tmp_path / "objects", shared=shared) for _ in range(RACERS)]
    else:
        config = config_of(request.getfixturevalue("seaweedfs"))
        stores = [S3Store(config) for _ in range(RACERS)]
    yield [(ObjectRegistry(store, settle_s=0.5), store) for store in stores]
    for store in stores:
        with closing(store):
            pass


def test_record_and_config_agree_whoever_wins(programs):
    def race(racer, number, barrier):
        registry, store = programs[racer]
        now = datetime.now(UTC)
        record = ProcessRecord(
            id=process_id_of("training", f"race {number}"), kind="training", name="cat",
            created_at=now, enqueued_at=now, updated_at=now, summary={"seed": racer},
        )  # fmt: skip
        barrier.wait()
        return submit(registry, store, record, f"seed: {racer}", may_exist=True)

    registry, store = programs[0]
    with ThreadPoolExecutor(RACERS * AT_ONCE) as threads:
        barriers = [threading.Barrier(RACERS) for _ in range(RACES)]
        races = [
            [threads.submit(race, racer, n, barriers[n]) for racer in range(RACERS)]
            for n in range(RACES)
        ]
        for futures in races:
            got = [future.result() for future in futures]
            record = registry.get(got[0].id)
            assert {one.summary["seed"] for one in got} == {record.summary["seed"]}
            assert stored_config(store, record) == f"seed: {record.summary['seed']}"
            assert [info.key for info in store.list(keys.results(record.id))] == [record.config_key]
