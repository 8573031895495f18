"""Real processes: each leads a session of its own, as engines do."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import psutil
import pytest

from loradash.runtime import orphans
from loradash.runtime.orphans import ChildRecords, Orphan
from loradash.runtime.start_time import started_s


@pytest.fixture
def records(tmp_path):
    return ChildRecords(tmp_path / "run")


@pytest.fixture
def start():
    """Start a script that says ``up`` when it is ready; ends whatever is left of its group."""
    started = []

    def start_script(body):
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", f"import os, signal, subprocess, sys, time\n{body}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout.readline() == b"up\n"
        return process

    yield start_script
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(ValueError):  # a test has closed its stdin
            process.stdin.close()
        process.stdout.close()
        process.wait()


@pytest.fixture
def brief_steps(monkeypatch):
    monkeypatch.setattr(orphans, "_TERM_S", 0.5)


UP = "print('up', flush=True)\n"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"


def rewrite(tmp_path, of_pid, **changes):
    path = tmp_path / "run" / f"{of_pid}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def names(tmp_path):
    return sorted(path.name for path in (tmp_path / "run").iterdir())


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_engine_that_stops_by_itself_gets_no_signal(records, start, tmp_path):
    process = start(
        "signal.signal(signal.SIGTERM, lambda *_: os._exit(9))\n"
        + UP
        + "sys.stdin.read(); time.sleep(0.4); os._exit(0)"
    )
    records.add(process.pid, "train_x")
    process.stdin.close()
    assert records.end_orphans(30) == [Orphan(process.pid, "train_x", "by_itself")]
    assert process.wait(5) == 0
    assert names(tmp_path) == []


def test_an_engine_that_hangs_is_terminated_after_the_grace(records, start, tmp_path):
    process = start(UP + "time.sleep(60)")
    records.add(process.pid, "generator")
    started = time.monotonic()
    assert records.end_orphans(0.5) == [Orphan(process.pid, "generator", "terminated")]
    assert time.monotonic() - started >= 0.5
    assert process.wait(5) == -signal.SIGTERM
    assert names(tmp_path) == []


def test_an_engine_that_ignores_sigterm_is_killed(records, start, brief_steps):
    process = start(DEAF + UP + "time.sleep(60)")
    records.add(process.pid, "train_x")
    assert records.end_orphans(0) == [Orphan(process.pid, "train_x", "killed")]
    assert process.wait(5) == -signal.SIGKILL


def test_a_grandchild_whose_leader_died_is_ended(records, start):
    process = start(
        "child = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL)\n"
        f"{UP}print(child.pid, flush=True)\nsys.stdin.read()"
    )
    grandchild = int(process.stdout.readline())
    records.add(process.pid, "train_x")
    process.communicate()
    assert not psutil.pid_exists(process.pid)
    assert is_alive(grandchild)
    assert records.end_orphans(0) == [Orphan(process.pid, "train_x", "terminated")]
    assert not is_alive(grandchild)


def test_a_grandchild_of_a_zombie_leader_is_ended(records, start):
    process = start(
        "child = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL)\n"
        f"{UP}print(child.pid, flush=True)\nsys.stdin.read()"
    )
    grandchild = int(process.stdout.readline())
    records.add(process.pid, "train_x")
    process.stdin.close()
    while is_alive(process.pid):  # nobody waits for it, so it stays as a zombie
        time.sleep(0.01)
    assert records.end_orphans(0) == [Orphan(process.pid, "train_x", "terminated")]
    assert not is_alive(grandchild)


def test_a_zombie_counts_as_gone(records, start, tmp_path):
    process = start(UP + "sys.stdin.read()")
    records.add(process.pid, "train_x")
    process.stdin.close()
    while is_alive(process.pid):
        time.sleep(0.01)
    assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    assert records.end_orphans(5) == []
    assert names(tmp_path) == []


def test_a_program_that_got_the_pid_of_an_engine_is_not_touched(records, start, tmp_path):
    process = start(UP + "time.sleep(60)")
    records.add(process.pid, "train_x")
    created = started_s(process.pid)
    rewrite(tmp_path, process.pid, start_s=created - 100)
    assert records.end_orphans(0) == []
    assert process.poll() is None
    assert names(tmp_path) == []


def test_a_group_that_is_older_than_the_record_is_not_touched(records, start, tmp_path):
    process = start(
        "child = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL)\n"
        f"{UP}print(child.pid, flush=True)\nsys.stdin.read()"
    )
    grandchild = int(process.stdout.readline())
    records.add(process.pid, "train_x")
    rewrite(tmp_path, process.pid, start_s=started_s(process.pid) + 100)
    process.communicate()
    assert records.end_orphans(0) == []
    assert is_alive(grandchild)


@pytest.mark.parametrize("machine", ["", "another boot/pid:[1]"])
def test_a_record_of_another_machine_says_nothing_about_ours(records, start, tmp_path, machine):
    process = start(UP + "time.sleep(60)")
    records.add(process.pid, "train_x")
    rewrite(tmp_path, process.pid, machine=machine)
    assert records.end_orphans(0) == []
    assert process.poll() is None
    assert names(tmp_path) == []


def test_the_child_of_a_server_that_lives_is_left_alone(records, start, tmp_path):
    server = start(UP + "time.sleep(60)")
    process = start(UP + "time.sleep(60)")
    records.add(process.pid, "train_x")
    created = started_s(server.pid)
    rewrite(tmp_path, process.pid, server_pid=server.pid, server_start_s=created)
    assert records.end_orphans(0) == []
    assert process.poll() is None
    assert names(tmp_path) == [f"{process.pid}.json"]
    server.kill()
    server.wait()
    assert records.end_orphans(0) == [Orphan(process.pid, "train_x", "terminated")]


def test_all_orphans_are_waited_for_at_once(records, start, brief_steps):
    processes = [start(DEAF + UP + "time.sleep(60)") for _ in range(4)]
    for process in processes:
        records.add(process.pid, "train_x")
    started = time.monotonic()
    ended = records.end_orphans(1)
    assert {orphan.ending for orphan in ended} == {"killed"}
    assert len(ended) == 4
    assert time.monotonic() - started < 4  # 6 s and more one after another


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 77}', "\0" * 40])
def test_a_record_that_can_not_be_read_is_deleted_and_told(records, tmp_path, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "77.json").write_text(text)
    assert records.end_orphans(0) == [Orphan(0, "77.json", "unreadable")]
    assert names(tmp_path) == []


@pytest.mark.parametrize("pid", [-1, 0, 1])
def test_a_record_of_a_pid_that_no_engine_has_is_unreadable(records, start, tmp_path, pid):
    process = start(UP + "time.sleep(60)")
    records.add(process.pid, "train_x")
    rewrite(tmp_path, process.pid, pid=pid)
    (tmp_path / "run" / f"{process.pid}.json").rename(tmp_path / "run" / f"{pid}.json")
    assert records.end_orphans(0) == [Orphan(0, f"{pid}.json", "unreadable")]


def test_a_record_under_another_pids_name_is_unreadable(records, start, tmp_path):
    process = start(UP + "time.sleep(60)")
    records.add(process.pid, "train_x")
    (tmp_path / "run" / f"{process.pid}.json").rename(tmp_path / "run" / "77.json")
    assert records.end_orphans(0) == [Orphan(0, "77.json", "unreadable")]
    assert process.poll() is None


def test_our_own_group_is_never_ended(tmp_path):
    program = (
        "import os, pathlib, sys; from loradash.runtime.orphans import ChildRecords\n"
        "records = ChildRecords(pathlib.Path(sys.argv[1])); records.add(os.getpid(), 'x')\n"
        "print(os.getpid() == os.getpgrp(), records.end_orphans(0))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "True []\n", "")


def test_a_record_says_whom_it_is_about_and_is_whole(records, start, tmp_path):
    process = start(UP + "time.sleep(60)")
    records.add(process.pid, "train_x")
    assert names(tmp_path) == [f"{process.pid}.json"]
    record = json.loads((tmp_path / "run" / f"{process.pid}.json").read_text())
    assert record["pid"] == process.pid
    assert record["what"] == "train_x"
    assert record["start_s"] == started_s(process.pid)
    age = datetime.now(UTC) - datetime.fromisoformat(record["started_at"])
    assert 0 <= age.total_seconds() < 60


def test_a_forgotten_child_is_left_alone(records, start):
    process = start(UP + "time.sleep(60)")
    records.add(process.pid, "train_x")
    records.remove(process.pid)
    records.remove(process.pid)
    assert records.end_orphans(0) == []
    assert process.poll() is None


def test_a_child_that_is_gone_already_is_not_noted(records, start, tmp_path):
    process = start(UP)
    process.communicate()
    records.add(process.pid, "train_x")
    assert not (tmp_path / "run").exists()


def test_no_folder_means_no_orphans(records):
    assert records.end_orphans(0) == []
