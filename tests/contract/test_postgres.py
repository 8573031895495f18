"""What only a registry on a database server can get wrong: locks, connections, lost answers."""

import contextlib
import itertools
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg
import pytest
from structlog.testing import capture_logs

from loradash.domain import process as changes
from loradash.domain.process import Status
from loradash.errors import (
    ConflictingState,
    InvalidKey,
    InvalidSettings,
    LoradashError,
    RegistryUnavailable,
)
from loradash.registry import schema
from loradash.registry.database import Database
from loradash.registry.opening import open_database_registry
from loradash.registry.postgres_registry import PostgresRegistry
from loradash.registry.registry import Notifies
from loradash.registry.sql import SqlRegistry
from tests.servers.postgres import PostgresServer

from .test_registries import (
    KINDS,
    MOVES,
    WRITER,
    artifact,
    at,
    in_status,
    in_threads,
    new,
    recount,
    running,
    taking,
    to_pending,
)
from .test_schema import ADDITION, FAILURE, NEXT, described


@pytest.fixture
def url(postgres):
    url = postgres.new_schema()
    yield url
    postgres.drop_schema(url)


@pytest.fixture
def registry(url):
    with closing(PostgresRegistry(url)) as registry:
        yield registry


@pytest.fixture(scope="module")
def unreliable():
    """A server of its own, for tests that stop it."""
    with PostgresServer() as server:
        yield server


def execute(url, statement):
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def adding(record):
    return record.model_copy(update={"worked_s": record.worked_s + 1})


@contextlib.contextmanager
def retried():
    """Collect the reasons for which transactions were tried again."""
    reasons = []
    with capture_logs() as logs:
        yield reasons
    reasons += [one["reason"] for one in logs if one["event"] == "registry_retries"]


def churn(registry, threads, times):
    """Have threads move processes in opposite directions; return the errors that this gave."""
    ids = [registry.create(new(n, KINDS[n % 2])).id for n in range(2 * threads)]
    errors = []

    def work(n):
        for turn in range(times):
            process_id = ids[2 * n + turn % 2]
            try:
                registry.change(process_id, taking())
                registry.change(process_id, to_pending)
            except LoradashError as error:
                errors.append(error)

    in_threads(threads, work)
    return errors


def test_eight_threads_change_processes_in_opposite_directions_without_a_deadlock(
    registry,
):
    with retried() as reasons:
        assert churn(registry, 8, 25) == []
    assert reasons == []
    assert registry.counts() == recount(registry)


def test_a_deadlock_with_another_program_is_retried(registry, url, postgres):
    process_id = registry.create(new()).id
    with (
        retried() as reasons,
        psycopg.connect(url) as other,
        ThreadPoolExecutor(1) as threads,
    ):
        other.execute("SET deadlock_timeout = '10s'")  # so that ours is the one that is ended
        other.execute("UPDATE process_counts SET count = count")
        started = threads.submit(registry.change, process_id, taking())
        blocked(postgres, 1)
        other.execute("SELECT 1 FROM processes WHERE id = %s FOR UPDATE", [process_id])
        other.commit()
        assert started.result(20).status is Status.RUNNING
    assert reasons == ["deadlock detected"]


def blocked(postgres, count):
    """Wait until that many transactions wait for a lock."""
    deadline = time.monotonic() + 20
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    while postgres.execute(query)[0][0] < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_another_taker_has_locked_is_passed_over(registry, url):
    first, second = (registry.create(new(n)).id for n in range(2))
    with psycopg.connect(url) as other:
        other.execute("SELECT 1 FROM processes WHERE id = %s FOR UPDATE", [first])
        assert registry.take_next("training", taking()).id == second
        assert registry.take_next("training", taking()) is None
    assert registry.take_next("training", taking()).id == first


def test_once_the_queue_is_paused_no_taking_that_has_begun_goes_on(registry, url, postgres):
    registry.create(new())
    with psycopg.connect(url) as other, ThreadPoolExecutor(1) as threads:
        other.execute("UPDATE registry_state SET value = 1 WHERE name = 'queue_paused'")
        taken = threads.submit(registry.take_next, "training", taking())
        blocked(postgres, 1)
        other.commit()
        assert taken.result(20) is None


def test_pausing_waits_for_what_is_being_taken(registry, postgres):
    registry.create(new())
    begun, go_on = threading.Event(), threading.Event()

    def take(record):
        begun.set()
        go_on.wait(20)
        return taking()(record)

    with ThreadPoolExecutor(2) as threads:
        taken = threads.submit(registry.take_next, "training", take)
        begun.wait(20)
        paused = threads.submit(registry.pause, True)
        blocked(postgres, 1)
        assert not paused.done()
        go_on.set()
        assert taken.result(20).status is Status.RUNNING
        paused.result(20)


def test_reads_do_not_wait_for_writers_and_writers_wait_only_so_long(registry, url):
    record = registry.create(new())
    with psycopg.connect(url) as other, closing(SqlRegistry(url, wait_s=0.3)) as impatient:
        other.execute("SELECT 1 FROM processes FOR UPDATE")
        assert impatient.get(record.id) == record
        assert impatient.page().records == (record,)
        with pytest.raises(RegistryUnavailable, match="lock timeout") as caught:
            impatient.change(record.id, taking())
        assert "Another program" in caught.value.remedy
        with ThreadPoolExecutor(1) as threads:
            patient = threads.submit(registry.change, record.id, taking())
            other.rollback()
            assert patient.result(20).status is Status.RUNNING


def test_a_transaction_whose_program_sleeps_is_ended_and_frees_its_locks(registry):
    """A frozen machine must not hold up all others."""
    settings = registry._database.read(
        lambda connection: {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar()
            for name in (
                "idle_in_transaction_session_timeout", "lock_timeout", "statement_timeout",
            )
        }
    )  # fmt: skip
    assert settings == {
        "idle_in_transaction_session_timeout": "30s",
        "lock_timeout": "10s",
        "statement_timeout": "30s",
    }


def test_many_threads_share_a_bounded_number_of_connections(registry, url, postgres):
    process_id = running(registry).id
    most = []
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'loradash'"

    def work(n):
        if n == 0:
            most.extend(postgres.execute(query)[0][0] for _ in range(20))
        else:
            for _ in range(5):
                registry.change(process_id, adding)

    before = postgres.execute(query)[0][0]
    in_threads(30, work)
    assert registry.get(process_id).worked_s == 145
    assert max(most) - before <= 20


def test_each_change_happens_once_while_the_server_restarts_and_connections_are_cut(unreliable):
    """Whether a commit was lost, or only its answer, makes no difference to a caller."""
    with closing(PostgresRegistry(unreliable.new_schema())) as registry:
        ids = [running(registry).id for _ in range(4)]
        done = Counter()
        stop = threading.Event()

        def work(n):
            while not stop.is_set():
                registry.change(ids[n], adding)
                done[n] += 1

        with ThreadPoolExecutor(4) as threads:
            workers = [threads.submit(work, n) for n in range(4)]
            try:
                for turn in range(30):
                    cut(unreliable)
                    if turn % 10 == 5:
                        (unreliable.stop if turn == 5 else unreliable.kill)()
                        unreliable.start()
            finally:
                stop.set()
            for worker in workers:
                worker.result(30)
        assert [registry.get(ids[n]).worked_s for n in range(4)] == [done[n] for n in range(4)]
        assert len(done) == 4
        assert done.total() > 20


def cut(server):
    """End all connections of registries, wherever they are in their transactions."""
    server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'loradash'"
    )
    time.sleep(0.02)


def lose_answer(connection, commits):
    """Have the next commit of a connection fail, with or without having come through."""
    driver = connection.connection.driver_connection

    def commit():
        if commits:
            psycopg.Connection.commit(driver)
        driver.close()
        raise psycopg.OperationalError("the connection is lost")

    driver.commit = commit


@pytest.mark.parametrize(("commits", "times"), [(True, 1), (False, 2)])
def test_a_commit_without_an_answer_is_looked_up(registry, monkeypatch, commits, times):
    process_id = running(registry).id
    calls = []
    dialect = registry._database.dialect
    original = dialect.about_to_commit

    def about_to_commit(connection):
        if len(calls) == 1:
            lose_answer(connection, commits)
        return original(connection)

    def change(record):
        calls.append(record)
        return adding(record)

    monkeypatch.setattr(dialect, "about_to_commit", about_to_commit)
    assert registry.change(process_id, change).worked_s == 1
    assert registry.get(process_id).worked_s == 1
    assert len(calls) == times


@pytest.mark.parametrize("commits", [True, False])
def test_after_a_failover_only_what_is_certain_is_believed(registry, monkeypatch, commits):
    process_id = running(registry).id
    dialect = registry._database.dialect
    original = dialect.about_to_commit
    lost = []

    def about_to_commit(connection):
        if not lost:
            lost.append(connection)
            lose_answer(connection, commits)
        return original(connection)._replace(history="of another timeline")

    monkeypatch.setattr(dialect, "about_to_commit", about_to_commit)
    if commits:  # by the transaction of that number, which may be another one by now
        with pytest.raises(RegistryUnavailable, match="can't tell whether it happened"):
            registry.change(process_id, adding)
    else:
        registry.change(process_id, adding)
    assert registry.get(process_id).worked_s == 1


def test_a_server_that_is_away_is_an_error_with_a_remedy_and_soon_for_all_who_follow(unreliable):
    with closing(PostgresRegistry(unreliable.new_schema(), wait_s=0.5)) as registry:
        record = registry.create(new())
        unreliable.stop()
        try:
            with pytest.raises(RegistryUnavailable) as caught:
                registry.get(record.id)
            assert "can be reached" in caught.value.remedy
            start = time.monotonic()
            with pytest.raises(RegistryUnavailable):
                registry.get(record.id)
            assert time.monotonic() - start < 0.4
        finally:
            unreliable.start()
        assert registry.get(record.id) == record


def test_a_change_is_announced_to_another_program(registry, url):
    with closing(PostgresRegistry(url)) as listener:
        assert isinstance(listener, Notifies)
        listener.wait_for_change(10)  # from here on it listens
        assert listener.wait_for_change(0) is False
        for act in (
            lambda: registry.create(new()),
            lambda: registry.take_next("training", taking()),
            lambda: registry.change(registry.running()[0].id, MOVES[Status.FAILED]),
        ):
            act()
            assert listener.wait_for_change(10) is True
            assert listener.wait_for_change(0) is False
        record = running(registry)
        while listener.wait_for_change(0.05):
            pass
        registry.change(record.id, adding)  # no change of status: nobody is woken
        assert listener.wait_for_change(0.05) is False
        registry.change(record.id, lambda one: changes.cancel_requested(one, at(5)))
        assert listener.wait_for_change(10) is True


def test_an_announcement_wakes_who_waits(registry):
    with ThreadPoolExecutor(1) as threads:
        registry.wait_for_change(10)
        waiting = threads.submit(registry.wait_for_change, 30)
        registry.create(new())
        assert waiting.result(20) is True


def test_a_listener_whose_connection_was_cut_listens_again(registry, postgres):
    registry.wait_for_change(10)
    cut(postgres)
    assert registry.wait_for_change(10) is True  # some may have been missed
    registry.create(new())
    assert registry.wait_for_change(10) is True


def test_a_closed_listener_waits_for_nothing(url):
    registry = PostgresRegistry(url)
    registry.wait_for_change(10)
    registry.close()
    assert registry.wait_for_change(60) is False


def test_an_artifact_whose_key_no_store_takes_is_refused(registry):
    process_id = running(registry).id
    with pytest.raises(InvalidKey):
        registry.put_artifacts("token", [artifact(process_id, "results/a\0b")])


def test_all_texts_that_are_compared_are_compared_by_their_bytes(registry, url):
    rows = execute(
        url,
        "SELECT table_name || '.' || column_name, collation_name FROM information_schema.columns"
        " WHERE table_schema = current_schema() AND data_type = 'character varying'",
    )
    assert len(rows) >= 10
    assert {collation for _, collation in rows} == {"C"}


@pytest.mark.parametrize("unknown", ["kind = 'generation'", "status = 'cancelled'", "true"])
def test_what_was_not_counted_is_counted_by_all_programs_at_once(registry, url, unknown):
    for status, kind in itertools.product(Status, KINDS):
        in_status(registry, status, kind)
    execute(url, f"DELETE FROM process_counts WHERE {unknown}")

    def work(n):
        if n % 2:
            with closing(SqlRegistry(url)) as other:
                return other.counts()
        record = registry.create(new(kind=KINDS[n // 2 % 2]))
        return registry.change(record.id, lambda one: changes.cancel_requested(one, at(9)))

    in_threads(8, work)
    assert registry.counts() == recount(registry)


def test_another_program_writes_at_the_same_time(registry, url):
    process_id = running(registry).id
    program = subprocess.Popen(
        [sys.executable, "-c", WRITER, url, process_id], stdout=subprocess.PIPE, text=True
    )
    assert program.stdout.readline() == "ready\n"
    for _ in range(100):
        registry.change(process_id, adding)
    program.communicate(timeout=60)
    assert program.returncode == 0
    assert registry.get(process_id).worked_s == 200


def test_many_may_create_the_tables_at_once(url):
    def start(_):
        with closing(SqlRegistry(url)) as registry:
            return registry.create(new()).id

    created = in_threads(6, start)
    with closing(SqlRegistry(url)) as registry:
        assert {one.id for one in registry.page().records} == set(created)
        assert registry.counts() == recount(registry)


def test_of_many_programs_one_migrates_and_a_failure_leaves_the_old_schema(url):
    SqlRegistry(url).close()
    with pytest.raises(RegistryUnavailable, match="nowhere"):
        Database(url, 5, FAILURE)
    with closing(Database(url, 5)) as database:
        before = described(database), database.read(schema.stored)
    assert before[1].version == schema.SCHEMA_VERSION
    with ThreadPoolExecutor(6) as threads, capture_logs() as logs:
        for database in threads.map(lambda _: Database(url, 10, ADDITION), range(6)):
            database.close()
    events = [one["event"] for one in logs]
    assert events.count("registry_migrated") == events.count("registry_not_backed_up") == 1
    with closing(Database(url, 5)) as database:
        assert database.read(schema.stored).version == NEXT
        assert described(database) != before[0]


def test_a_schema_with_tables_of_another_program_is_refused_and_left_alone(url):
    execute(url, "CREATE TABLE processes (pid INTEGER)")
    with pytest.raises(RegistryUnavailable, match="processes") as caught:
        SqlRegistry(url)
    assert "database of its own" in caught.value.remedy
    query = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema()"
    assert execute(url, query) == [("processes",)]


def test_a_database_error_shows_no_record_and_no_statement(registry, url):
    execute(url, "ALTER TABLE processes ADD CONSTRAINT no CHECK (document NOT LIKE '%private%')")
    with pytest.raises(RegistryUnavailable, match="constraint") as caught:
        registry.create(new(name="a private name"))
    shown = f"{caught.value} {caught.value.__cause__}"
    assert "a private" not in str(caught.value)
    assert "INSERT" not in str(caught.value)
    assert shown.count("a private name") <= 1  # the cause has the server's detail


def test_a_write_that_fails_halfway_leaves_nothing(registry, url):
    execute(url, "DROP TABLE process_counts")
    with pytest.raises(RegistryUnavailable, match="process_counts"):
        registry.create(new())
    assert registry.page().records == ()


@pytest.mark.parametrize(
    ("change", "message", "remedy"),
    [
        (lambda url: url.replace(url.split(":")[2].split("@")[0], "secret"), "password", "pg_hba"),
        (lambda url: url.replace("/postgres?", "/nowhere?"), "nowhere", "Create the database"),
        (lambda url: re.sub(r":[0-9]+/", ":1/", url), "refused", "can be reached"),
        (lambda url: url.replace("127.0.0.1", "127.0.0.1:1"), "invalid", "postgresql://"),
        (lambda url: url + "&nonsense=1", "nonsense", ""),
    ],
)
def test_a_server_that_refuses_is_named_without_the_password(url, change, message, remedy):
    password = url.split(":")[2].split("@")[0]
    with pytest.raises(LoradashError, match=message) as caught:
        SqlRegistry(change(url), wait_s=0.2)
    assert remedy in caught.value.remedy
    for secret in (password, "secret"):
        assert secret not in str(caught.value)


def test_a_user_without_rights_is_told_which(postgres, url):
    schema = url.rpartition("%3D")[2]
    postgres.execute("DROP ROLE IF EXISTS guest")
    postgres.execute(f"CREATE ROLE guest LOGIN PASSWORD '{postgres.password}'")
    postgres.execute(f"GRANT USAGE ON SCHEMA {schema} TO guest")
    with pytest.raises(RegistryUnavailable, match="permission denied") as caught:
        SqlRegistry(url.replace("//loradash:", "//guest:"))
    assert "right to create" in caught.value.remedy


def test_without_the_driver_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidSettings, match="psycopg") as caught:
        open_database_registry("postgresql://user:secret@host/loradash")
    assert "loradash[postgres]" in caught.value.remedy
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_each_usual_form_of_the_url_is_taken(url, scheme):
    given = url.replace("postgresql", scheme, 1)
    with closing(open_database_registry(given)) as registry:
        assert isinstance(registry, PostgresRegistry)
        with pytest.raises(ConflictingState):
            registry.create(registry.create(new()))
