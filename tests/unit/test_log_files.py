import io
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest
import structlog

from loradash.errors import InvalidRequest
from loradash.services.system.log_files import Cleared, LogFiles
from loradash.telemetry import logging as our_logging
from loradash.telemetry.logging import close, configure


@pytest.fixture(autouse=True)
def undo():
    yield
    close()


@pytest.fixture
def files(tmp_path):
    return LogFiles(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """A folder with some of each kind of file, and some that are none of ours."""
    for name in (
        "app.log", "app.log.1", "app.log.2", "requests.log", "errors.log", "errors.log.1",
        "generator.txt", "generator-cuda:1.txt", "notes.txt", "app.log.gz", "app.log.0",
        "my_app.log", "app.log.1.bak", "secret.log",
    ):  # fmt: skip
        (tmp_path / name).write_text(f"{name}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/app.log").write_text("below\n")
    return tmp_path


ALL = {
    "app": {"app.log", "app.log.1", "app.log.2"},
    "requests": {"requests.log"},
    "errors": {"errors.log", "errors.log.1"},
    "system": {"generator.txt", "generator-cuda:1.txt"},
}
ALL["all"] = set().union(*ALL.values())


def contents(folder):
    return {p.name: p.read_text() for p in folder.iterdir() if p.is_file() and p.stat().st_size}


def test_sizes_tells_all_log_files_and_no_others(files, folder):
    found = files.sizes()
    assert [file.name for file in found] == sorted(ALL["all"])
    assert all(file.name in ALL[file.log_type] for file in found)
    assert all(file.size_bytes == len(file.name) + 1 for file in found)
    assert all(abs((datetime.now(UTC) - file.modified).total_seconds()) < 60 for file in found)


@pytest.mark.parametrize("log_type", ALL)
def test_clearing_a_type_empties_its_files_and_no_others(files, folder, log_type):
    before = contents(folder)
    cleared = files.clear(log_type)
    assert set(cleared) == {Cleared(name, len(name) + 1) for name in ALL[log_type]}
    assert contents(folder) == {n: t for n, t in before.items() if n not in ALL[log_type]}
    assert (folder / "sub/app.log").read_text() == "below\n"
    assert files.clear(log_type) == []


@pytest.mark.parametrize("log_type", ["", "App", "../app", "app.log", "*"])
def test_an_unknown_type_is_refused(files, folder, log_type):
    before = contents(folder)
    with pytest.raises(InvalidRequest):
        files.clear(log_type)
    with pytest.raises(InvalidRequest):
        files.tail(log_type, 5)
    assert contents(folder) == before


def test_a_folder_that_is_not_there_has_no_logs(tmp_path):
    files = LogFiles(tmp_path / "none")
    assert files.sizes() == files.clear("all") == files.tail("app", 5) == []


def test_nothing_is_reached_through_links_and_special_files(files, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    (tmp_path / "app.log").symlink_to(secret)
    (tmp_path / "app.log.1").symlink_to(secret)
    os.mkfifo(tmp_path / "errors.log")
    (tmp_path / "requests.log").mkdir()
    assert files.sizes() == files.clear("all") == []
    assert files.tail("app", 5) == files.tail("errors", 5) == files.tail("requests", 5) == []
    assert secret.read_text() == "secret\n"


def test_a_link_that_takes_a_files_name_at_the_last_moment_is_not_followed(files, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    (tmp_path / "app.log").symlink_to(secret)
    assert files._empty("app.log") == 0
    assert files._end_of("app.log", 100) == b""
    assert secret.read_text() == "secret\n"


def test_logging_goes_on_after_a_clear_at_the_beginning_of_the_file(files, tmp_path):
    configure(tmp_path, "info", as_json=True, stream=io.StringIO())
    log = structlog.get_logger("loradash.test")
    for number in range(100):
        log.info("before", number=number)
    size = (tmp_path / "app.log").stat().st_size
    assert files.clear("app") == [Cleared("app.log", size)]
    log.info("after")
    data = (tmp_path / "app.log").read_bytes()
    assert b"\0" not in data
    assert data.count(b"\n") == 1
    assert b'"after"' in data
    assert (tmp_path / "app.log").stat().st_size == len(data) < 300


def test_an_engine_goes_on_at_the_beginning_of_its_emptied_log(files, tmp_path):
    path = tmp_path / "generator.txt"
    with path.open("ab") as file:
        engine = subprocess.Popen(
            [sys.executable, "-u", "-c", "print('x' * 9999); input(); print('after')"],
            stdin=subprocess.PIPE,
            stdout=file,
        )
    while path.stat().st_size < 10_000:
        time.sleep(0.01)
    assert files.clear("system") == [Cleared("generator.txt", 10_000)]
    engine.communicate(b"\n")
    assert path.read_bytes() == b"after\n"


def test_clearing_while_others_log_and_rotate_loses_no_file(files, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(our_logging, "_MAX_FILE_BYTES", 400)
    configure(tmp_path, "info", as_json=True, stream=io.StringIO())
    log = structlog.get_logger("loradash.test")
    stop = threading.Event()

    def work():
        while not stop.is_set():
            log.info("event")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        files.clear("all")
    stop.set()
    for thread in threads:
        thread.join()
    files.clear("all")
    log.info("last")
    assert '"last"' in files.tail("app", 1)[0]
    assert [file.name for file in files.sizes() if file.size_bytes] == ["app.log"]
    assert "Logging error" not in capfd.readouterr().err


def test_the_tail_goes_back_into_the_files_that_were_rotated_away(files, tmp_path):
    (tmp_path / "app.log").write_text("5\n6\n")
    (tmp_path / "app.log.1").write_text("3\n4\n")
    (tmp_path / "app.log.2").write_text("1\n2\n")
    assert files.tail("app", 1) == ["6"]
    assert files.tail("app", 3) == ["4", "5", "6"]
    assert files.tail("app", 100) == list("123456")
    assert files.tail("app", 0) == []


def test_the_tail_of_the_system_is_the_log_that_was_written_last(files, tmp_path):
    for name, modified in (("generator-a.txt", 2_000), ("generator-b.txt", 1_000)):
        (tmp_path / name).write_text(f"{name}\n10%\r20%\n\n")
        os.utime(tmp_path / name, (modified, modified))
    assert files.tail("system", 10) == ["generator-a.txt", "10%", "20%"]


def test_the_tail_of_a_huge_log_is_read_from_its_end_and_begins_with_a_whole_line(files, tmp_path):
    with (tmp_path / "app.log").open("w") as file:
        file.writelines(f"line {number:07}\n" for number in range(300_000))
    lines = files.tail("app", 10**9)
    assert lines[-1] == "line 0299999"
    assert 100_000 < len(lines) < 200_000
    assert all(len(line) == 12 for line in lines)
