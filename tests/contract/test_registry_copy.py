"""A registry copied into another one: everything arrives, in every direction."""

import itertools
import json
import sqlite3
from contextlib import ExitStack, closing

import pytest
from typer.testing import CliRunner

from loradash.cli.app import app
from loradash.domain.process import Status
from loradash.errors import ConflictingState, LeaseLost
from loradash.registry.memory import MemoryRegistry
from loradash.registry.objects import ObjectRegistry
from loradash.registry.sql import SqlRegistry
from loradash.services.system import registry_copy
from loradash.services.system.registry_copy import Copied, copy_registry
from loradash.storage.memory import MemoryStore
from tests.data.make_registry import IDS, fill

from .test_registries import line, metric, new, running
from .test_schema import DUMP, everything_goes_on

KINDS = ("sqlite", "postgres", "objects")


@pytest.fixture
def make(request, tmp_path):
    """Return a function that makes an empty registry of a kind."""
    with ExitStack() as stack:

        def make(kind):
            if kind == "sqlite":
                made = SqlRegistry(f"sqlite:///{tmp_path}/{len(list(tmp_path.iterdir()))}.sqlite3")
            elif kind == "postgres":
                server = request.getfixturevalue("postgres")
                url = server.new_schema()
                stack.callback(server.drop_schema, url)
                made = SqlRegistry(url)
            else:
                made = ObjectRegistry(MemoryStore()) if kind == "objects" else MemoryRegistry()
            return stack.enter_context(closing(made))

        yield make


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(KINDS, 2)))
def test_everything_arrives_and_goes_on(make, source, target):
    source, target = make(source), make(target)
    fill(source)
    assert copy_registry(source, target, with_running=True) == Copied(6, 0, 9, 9, 6)
    assert target.paused() is False
    everything_goes_on(target)


def test_long_logs_and_many_processes_are_copied_page_by_page(make, monkeypatch):
    monkeypatch.setattr(registry_copy, "_ROWS", 7)
    monkeypatch.setattr(registry_copy, "_PAGE", 3)
    source, target = make("memory"), make("objects")
    process_id = running(source).id
    source.append_log(process_id, "token", [line(str(n)) for n in range(30)])
    source.append_metrics(process_id, "token", [metric(n) for n in range(20)])
    for n in range(10):
        source.create(new(n))
    seen = []
    copied = copy_registry(
        source, target, with_running=True, on_progress=lambda done, of: seen.append((done, of))
    )
    assert copied == Copied(11, 0, 20, 30, 0)
    assert seen == [(n, 11) for n in range(1, 12)]
    assert target.log(process_id) == source.log(process_id)


@pytest.mark.parametrize("calls", range(1, 40, 3))
def test_a_copy_that_was_interrupted_goes_on_when_it_is_repeated(make, calls):
    source, target = make("memory"), make("memory")
    fill(source)
    left = itertools.count(calls, -1)

    class Failing:
        def __getattr__(self, name):
            if next(left) == 0:
                raise KeyboardInterrupt
            return getattr(target, name)

    with pytest.raises(KeyboardInterrupt):
        copy_registry(source, Failing(), with_running=True)
    assert target.paused() is (calls > 1)  # no server takes half a process
    copied = copy_registry(source, target, with_running=True)
    assert copied.processes + copied.there == 6
    everything_goes_on(target)


def test_what_runs_is_copied_only_if_nobody_works_on_it(make):
    source, target = make("memory"), make("memory")
    fill(source)
    with pytest.raises(ConflictingState, match="1 processes are running") as caught:
        copy_registry(source, target)
    assert "--with-running" in caught.value.remedy
    assert target.page().records == ()


def test_a_target_with_other_processes_is_refused_and_left_alone(make):
    source, target = make("memory"), make("memory")
    other = target.create(new())
    source.create(new())
    with pytest.raises(ConflictingState, match=other.id):
        copy_registry(source, target)
    assert target.page().records == (other,)
    assert target.paused() is False


def test_a_source_that_changes_meanwhile_is_noticed(make):
    source, target = make("memory"), make("memory")
    fill(source)

    def change(done, _):
        if done == 3:
            source.change(IDS["cancelled"], lambda one: one.model_copy(update={"name": "new"}))
            source.create(new())

    with pytest.raises(ConflictingState, match="changed while"):
        copy_registry(source, target, with_running=True, on_progress=change)
    assert target.paused() is True


def test_a_worker_of_the_source_goes_on_with_its_lease_and_nobody_with_that_of_the_copy(make):
    source, target = make("memory"), make("memory")
    record = running(source)
    copy_registry(source, target, with_running=True)
    target.append_log(record.id, "token", [line("goes on")])
    with pytest.raises(LeaseLost):
        target.append_log(record.id, registry_copy._TOKEN, [line("no")])


def test_a_paused_queue_stays_paused(make):
    source, target = make("memory"), make("memory")
    source.pause(True)
    copy_registry(source, target)
    assert target.paused() is True


def test_the_command_copies_a_file_of_an_older_release(tmp_path, monkeypatch, postgres):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKSPACE_PATH", str(tmp_path))
    with closing(sqlite3.connect(tmp_path / "registry.sqlite3")) as file:
        file.executescript(DUMP.read_text())
    url = postgres.new_schema()
    arguments = ["registry", "copy", "database", url, "--with-running", "--json"]
    for expected in ((6, 0), (0, 6)):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout[result.stdout.index("{") :])
        assert (found["processes"], found["there"]) == expected
    with closing(SqlRegistry(url)) as registry:
        assert registry.get(IDS["running"]).status is Status.RUNNING
        everything_goes_on(registry)
    postgres.drop_schema(url)
