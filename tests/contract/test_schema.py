"""How a database of another release is opened: brought up to date, used as it is, or refused."""

import itertools
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import BigInteger, Column, inspect, text

from loradash.domain import process as changes
from loradash.domain.process import Status
from loradash.errors import RegistryUnavailable
from loradash.registry import schema, tables
from loradash.registry.database import Database
from loradash.registry.migrations import FIRST_VERSION, MIGRATIONS, Migration, add_column
from loradash.registry.objects import ObjectRegistry, upgrades
from loradash.registry.sql import SqlRegistry
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore
from tests.data.make_registry import IDS, at

DATA = Path(__file__).parents[1] / "data"
DUMP, OBJECTS = DATA / "registry_schema_1.sql", DATA / "registry_schema_1.json"
NEXT = schema.SCHEMA_VERSION + 1


def add_a_column(connection):
    column = Column("new", BigInteger, nullable=False, server_default=text("7"))
    add_column(connection, "processes", column)


def fail_halfway(connection):
    add_a_column(connection)
    connection.execute(tables.counts.delete())
    connection.exec_driver_sql("SELECT * FROM nowhere")


ADDITION = (*MIGRATIONS, Migration(NEXT, 1, add_a_column))
REPLACEMENT = (*MIGRATIONS, Migration(NEXT, NEXT, add_a_column))
FAILURE = (*MIGRATIONS, Migration(NEXT, 1, fail_halfway))


@pytest.fixture
def path(tmp_path):
    """A database that the release with the first schema has made."""
    path = tmp_path / "registry.sqlite3"
    with closing(sqlite3.connect(path)) as file:
        file.executescript(DUMP.read_text())
    return path


@pytest.fixture
def url(path):
    return f"sqlite:///{path}"


def backups(path):
    return sorted(path.parent.glob("registry.sqlite3.schema-*"))


def described(database):
    """All tables with their columns, keys and indexes, as the database describes them."""
    with database.engine.connect() as connection:
        inspector = inspect(connection)
        return {
            name: (
                {
                    column["name"]: (str(column["type"]), column["nullable"])
                    for column in inspector.get_columns(name)
                },
                inspector.get_pk_constraint(name)["constrained_columns"],
                sorted(
                    (one["name"], one["column_names"], one["unique"])
                    for one in inspector.get_indexes(name)
                ),
            )
            for name in inspector.get_table_names()
        }


def taking(token):
    return lambda record: changes.taken(
        record, owner="new", token=token, now=at(100), lease_s=30, device="cpu"
    )


def everything_goes_on(registry):
    """Check that all processes of the earlier release are there and can go on."""
    assert {one.id: str(one.status) for one in registry.page().records} == {
        process_id: "pending" if name.startswith("waiting") else name
        for name, process_id in IDS.items()
    }
    assert registry.get(IDS["failed"]).name == "failed Größe 猫 \0"
    for name in ("running", "completed", "failed"):
        process_id = IDS[name]
        assert [one.step for one in registry.metrics(process_id)] == [1, 2, 3]
        assert repr(registry.metrics(process_id)[1].loss) == "nan"
        assert [one.text for one in registry.log(process_id)] == ["loading", "step 1 \0 🐈", ""]
        assert [one.kind for one in registry.artifacts(process_id)] == ["checkpoint", "lora"]
    worker = "token of running"  # the worker that has it goes on, and ends it
    registry.change(
        IDS["running"], lambda one: changes.renewed(one, worker, now=at(95), lease_s=30)
    )
    registry.append_log(IDS["running"], worker, [])
    registry.change(
        IDS["running"],
        lambda one: changes.completed(one, worker, now=at(96), output_prefix="results/y"),
    )
    assert registry.take_next("training", taking("new")).id == IDS["waiting"]
    assert registry.take_next("generation", taking("new")).id == IDS["waiting_generation"]
    registry.change(IDS["failed"], lambda one: changes.requeued(one, at(97)))
    assert registry.take_next("training", taking("again")).attempt_count == 2
    assert len(registry.newest_artifacts(["lora"])[0]) == 3
    counts = dict.fromkeys(itertools.product(("training", "generation"), Status), 0)
    for record in registry.page().records:
        counts[record.kind, record.status] += 1
    assert registry.counts() == counts


def test_a_database_of_the_first_schema_is_brought_up_to_date_and_everything_goes_on(url):
    with closing(SqlRegistry(url)) as registry:
        everything_goes_on(registry)
    with closing(Database(url, 1)) as database:
        assert database.read(schema.stored).version == schema.SCHEMA_VERSION


def test_a_migrated_schema_is_the_one_that_is_created(url, tmp_path):
    with closing(Database(url, 1)) as old, closing(Database(f"{url}.new", 1)) as new:
        assert described(old) == described(new)
        assert old.read(schema.stored) == new.read(schema.stored)


def test_a_migration_makes_its_change_once_and_notes_its_version(url):
    query = text("SELECT DISTINCT new FROM processes")
    for _ in range(2):
        with closing(Database(url, 1, ADDITION)) as database:
            assert database.read(schema.stored).version == NEXT
            assert database.read(lambda one: one.scalars(query).all()) == [7]


def test_the_database_is_backed_up_before_its_first_migration(url, path):
    with closing(sqlite3.connect(path)) as file:
        before = list(file.iterdump())
    Database(url, 1, ADDITION).close()
    (backup,) = backups(path)
    assert backup.name.startswith("registry.sqlite3.schema-1.20")
    assert backup.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(backup)) as file:
        assert list(file.iterdump()) == before
    with closing(SqlRegistry(f"sqlite:///{backup}")) as restored:
        everything_goes_on(restored)


def test_what_needs_no_migration_is_not_backed_up(url, path, tmp_path):
    Database(url, 1, ADDITION).close()
    for backup in backups(path):
        backup.unlink()
    Database(url, 1, ADDITION).close()
    Database(f"sqlite:///{tmp_path}/new.sqlite3", 1).close()
    assert backups(path) == []
    assert not list(tmp_path.glob("*.backup*"))


def test_a_backup_that_does_not_verify_prevents_the_migration(url, path, monkeypatch):
    def fail(_):
        raise sqlite3.DatabaseError("integrity check: page 7 is missing")

    monkeypatch.setattr("loradash.registry.sqlite._verify", fail)
    with pytest.raises(RegistryUnavailable, match=r"backup.*page 7") as caught:
        Database(url, 1, ADDITION)
    assert "nothing was changed" in caught.value.remedy
    assert backups(path) == []
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT value FROM registry_state ORDER BY name").fetchall()[1] == (1,)


def test_a_migration_that_fails_leaves_the_old_schema(url):
    with closing(SqlRegistry(url)):
        pass
    with closing(Database(url, 1)) as database:
        before = described(database), database.read(schema.stored)
    with pytest.raises(RegistryUnavailable, match="nowhere"):
        Database(url, 1, FAILURE)
    with closing(Database(url, 1)) as database:
        assert (described(database), database.read(schema.stored)) == before
    with closing(SqlRegistry(url)) as registry:
        everything_goes_on(registry)


def test_of_many_programs_that_open_it_at_once_one_migrates(url, path):
    with ThreadPoolExecutor(6) as threads:
        for database in threads.map(lambda _: Database(url, 10, ADDITION), range(6)):
            database.close()
    assert len(backups(path)) == 1


def test_a_newer_schema_is_refused_and_left_alone(url):
    with closing(Database(url, 1, REPLACEMENT)) as database:
        before = described(database)
    with pytest.raises(RegistryUnavailable, match=rf"schema is {NEXT}") as caught:
        SqlRegistry(url)
    assert "Update loradash" in caught.value.remedy
    with closing(Database(url, 1, REPLACEMENT)) as database:
        assert described(database) == before


def test_a_newer_schema_that_only_adds_is_used_as_it_is(url):
    Database(url, 1, ADDITION).close()
    with closing(SqlRegistry(url)) as registry:
        everything_goes_on(registry)
    with closing(Database(url, 1)) as database:
        assert database.read(schema.stored).version == NEXT


def test_who_opened_the_database_before_an_addition_goes_on(url):
    with closing(SqlRegistry(url)) as registry:
        Database(url, 1, ADDITION).close()
        everything_goes_on(registry)
        copy = {"id": "train_01k9x3q4zt8m2v7c0009"}
        registry.create(registry.get(IDS["completed"]).model_copy(update=copy))


def test_a_registry_that_can_not_be_used_any_longer_stays_refused_after_an_addition(url):
    further = (*REPLACEMENT, Migration(NEXT + 1, 1, lambda connection: None))
    Database(url, 1, further).close()
    with pytest.raises(RegistryUnavailable, match="newer"):
        SqlRegistry(url)


def test_migrations_are_numbered_without_gaps():
    numbers = [one.version for one in MIGRATIONS]
    assert numbers == list(range(FIRST_VERSION + 1, FIRST_VERSION + 1 + len(MIGRATIONS)))
    assert all(FIRST_VERSION <= one.usable_since <= one.version for one in MIGRATIONS)


# Records in a bucket


def bucket(kind, tmp_path):
    """A bucket as the release without numbers left it."""
    store = MemoryStore() if kind == "conditional" else LocalStore(tmp_path / "b", shared=True)
    for key, content in json.loads(OBJECTS.read_text()).items():
        store.put(key, content.encode())
    return store


@pytest.fixture(params=["conditional", "claims"])
def store(request, tmp_path):
    with closing(bucket(request.param, tmp_path)) as store:
        yield store


def record_of(store, name):
    return json.loads(store.get(f"processes/{IDS[name]}.json"))


def replace(store, name, **fields):
    document = json.dumps(record_of(store, name) | fields)
    store.put(f"processes/{IDS[name]}.json", document.encode())


def rename(registry, name):
    return registry.change(IDS[name], lambda one: one.model_copy(update={"name": "renamed"}))


def test_records_without_a_number_are_read_and_everything_goes_on(store):
    everything_goes_on(ObjectRegistry(store, settle_s=0.05))


def test_a_record_that_is_written_gets_the_number_of_its_schema():
    store = bucket("conditional", None)
    assert "schema" not in record_of(store, "waiting")
    rename(ObjectRegistry(store), "waiting")
    assert record_of(store, "waiting")["schema"] == upgrades.FIRST_VERSION + len(upgrades.UPGRADES)


def test_an_older_record_is_upgraded_as_it_is_read_and_written_with_its_next_change(monkeypatch):
    store = bucket("conditional", None)

    def shout(document):
        record = document["record"]
        return {**document, "record": {**record, "name": record["name"].upper()}}

    monkeypatch.setattr(upgrades, "UPGRADES", (upgrades.Upgrade(2, 2, shout),))
    registry = ObjectRegistry(store)
    assert registry.get(IDS["waiting"]).name == "WAITING GRÖSSE 猫 \0"
    assert "schema" not in record_of(store, "waiting")
    registry.change(IDS["waiting"], lambda one: one.model_copy(update={"priority": 9}))
    written = record_of(store, "waiting")
    assert (written["schema"], written["schema_usable_since"]) == (2, 2)
    assert registry.create(registry.get(IDS["waiting"]).model_copy(
        update={"id": "train_01k9x3q4zt8m2v7c0009", "name": "new"})).name == "new"  # fmt: skip
    assert registry.get("train_01k9x3q4zt8m2v7c0009").name == "new"  # written as it is now


def test_a_record_that_only_a_newer_loradash_can_read_is_refused_and_left_alone():
    store = bucket("conditional", None)
    replace(store, "waiting", schema=99, schema_usable_since=99)
    before = store.get(f"processes/{IDS['waiting']}.json")
    registry = ObjectRegistry(store)
    for ask in (lambda: registry.get(IDS["waiting"]), lambda: rename(registry, "waiting")):
        with pytest.raises(RegistryUnavailable, match="schema is 99") as caught:
            ask()
        assert "Update loradash" in caught.value.remedy
    assert store.get(f"processes/{IDS['waiting']}.json") == before
    assert registry.get(IDS["running"]).status is Status.RUNNING


def test_fields_and_number_of_a_newer_loradash_survive_a_change_by_this_one(store):
    record = record_of(store, "waiting")["record"] | {"cost": {"dollars": 1}}
    replace(store, "waiting", schema=99, schema_usable_since=1, record=record, owner="team")
    registry = ObjectRegistry(store, settle_s=0.05)
    assert rename(registry, "waiting").name == "renamed"
    keys = [one.key for one in store.list("processes") if IDS["waiting"] in one.key]
    keys = [key for key in keys if key.endswith(".json")]
    document = json.loads(store.get(max(keys, key=len)))  # the longest is of the latest epoch
    assert document["schema"] == 99
    assert document["owner"] == "team"
    assert document["record"]["cost"] == {"dollars": 1}


def test_fields_of_a_newer_loradash_survive_in_a_database(url, path):
    with closing(SqlRegistry(url)) as registry:
        with closing(sqlite3.connect(path)) as file:
            file.execute("UPDATE processes SET document = json_set(document, '$.cost', 7)")
            file.commit()
        registry.take_next("training", taking("new"))
        with closing(sqlite3.connect(path)) as file:
            query = "SELECT DISTINCT json_extract(document, '$.cost') FROM processes"
            assert file.execute(query).fetchall() == [(7,)]
