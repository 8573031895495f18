import contextlib
import io
import json
import logging
import logging.config
import subprocess
import sys
import threading
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import structlog
from uvicorn.config import LOGGING_CONFIG

from loradash.errors import InvalidSettings
from loradash.telemetry import logging as our_logging
from loradash.telemetry.logging import bound, close, configure, rotation_paused
from loradash.telemetry.repeats import Repeats
from tests.nasty_names import NASTY, NOT_UTF8, harmful

log = structlog.get_logger("loradash.test")  # as modules have it: made before it is configured


@pytest.fixture(autouse=True)
def undo():
    yield
    close()


@pytest.fixture
def stream():
    return io.StringIO()


def events(source):
    text = source.getvalue() if isinstance(source, io.StringIO) else source.read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


def names_of(source):
    return [event["event"] for event in events(source)]


def test_an_event_is_one_json_line_with_its_fields(stream):
    configure(None, "info", as_json=True, stream=stream)
    log.info("process_taken", process_id="train_x", device="cuda:0", loss=0.5, größe="ä\n")
    (event,) = events(stream)
    time = datetime.fromisoformat(event.pop("timestamp"))
    assert time.utcoffset().total_seconds() == 0
    assert abs((datetime.now(UTC) - time).total_seconds()) < 60
    assert event == {
        "event": "process_taken", "level": "info", "logger": "loradash.test",
        "process_id": "train_x", "device": "cuda:0", "loss": 0.5, "größe": "ä\n",
    }  # fmt: skip


def test_a_terminal_gets_a_line_to_read(stream):
    configure(None, "info", as_json=False, stream=stream)
    log.info("process_taken", process_id="train_x")
    line = stream.getvalue()
    assert "process_taken" in line
    assert "process_id=train_x" in line
    assert "\x1b" not in line  # no colours into a file


def test_only_a_terminal_gets_colours(stream):
    stream.isatty = lambda: True
    configure(None, "info", as_json=False, stream=stream)
    log.info("process_taken")
    assert "\x1b[" in stream.getvalue()


def test_a_text_can_not_play_with_the_terminal_or_forge_a_line(stream):
    configure(None, "info", as_json=False, stream=stream)
    logging.getLogger("uvicorn").info("GET /\x1b[2J\r\nforged")
    log.info("named", name="a\x1b[2Jb\nforged")
    assert len(stream.getvalue().splitlines()) == 2
    assert "\x1b" not in stream.getvalue()
    assert "\\x1b[2J" in stream.getvalue()


@pytest.mark.parametrize("name", [*NASTY, NOT_UTF8])
def test_lines_for_programs_can_be_shown_and_mean_the_same(tmp_path, stream, name):
    configure(tmp_path, "info", as_json=True, stream=stream)
    log.info("named", name=name)
    for text in (stream.getvalue(), (tmp_path / "app.log").read_text()):
        assert json.loads(text)["name"] == name
        assert not harmful(text)


def test_each_file_gets_what_is_for_it(tmp_path, stream):
    configure(tmp_path / "logs", "info", as_json=True, stream=stream)
    log.info("one")
    log.error("two")
    structlog.get_logger("loradash.requests").info("three")
    structlog.get_logger("loradash.requests").error("four")
    structlog.get_logger("loradash.requests_of_others").info("five")
    assert names_of(tmp_path / "logs/app.log") == ["one", "two", "four", "five"]
    assert names_of(tmp_path / "logs/requests.log") == ["three", "four"]
    assert names_of(tmp_path / "logs/errors.log") == ["two", "four"]
    assert names_of(stream) == ["one", "two", "three", "four", "five"]


def test_tracebacks_are_in_the_log_of_errors(tmp_path, stream):
    configure(tmp_path, "info", as_json=False, stream=stream)
    try:
        raise ValueError("no such thing")
    except ValueError:
        log.exception("broken", process_id="train_x")
        logging.getLogger("loradash.plain").exception("plain")
    for event in events(tmp_path / "errors.log"):
        assert event["exception"].startswith("Traceback")
        assert event["exception"].endswith("ValueError: no such thing")
    assert "ValueError: no such thing" in stream.getvalue()


def test_of_an_endless_traceback_the_end_is_kept(stream):
    configure(None, "info", as_json=True, stream=stream)
    try:
        raise ValueError("x" * 50_000 + " the end")
    except ValueError:
        log.exception("broken")
    (event,) = events(stream)
    assert event["exception"].endswith(" the end")
    assert len(event["exception"]) <= 20_000


def test_records_of_other_libraries_have_the_same_form(stream):
    configure(None, "info", as_json=True, stream=stream)
    with bound(request_id="r1"):
        logging.getLogger("uvicorn.error").info("Started server process [%d]", 12)
        logging.getLogger("sqlalchemy.pool").warning("slow")
    for event, text in zip(events(stream), ["Started server process [12]", "slow"], strict=True):
        assert event["event"] == text
        assert event["request_id"] == "r1"
        assert event["timestamp"].endswith("Z")
        assert {"level", "logger"} <= event.keys()


def test_what_uvicorn_has_set_up_for_itself_is_taken_over(stream, capfd):
    logging.config.dictConfig(LOGGING_CONFIG)
    configure(None, "info", as_json=True, stream=stream)
    logging.getLogger("uvicorn.access").info("GET /health")
    logging.getLogger("uvicorn.error").info("started")
    assert names_of(stream) == ["GET /health", "started"]
    assert capfd.readouterr() == ("", "")


def test_debug_is_for_our_own_events_only(stream):
    configure(None, "debug", as_json=True, stream=stream)
    log.debug("ours")
    logging.getLogger("botocore.auth").debug("secret headers")
    logging.getLogger("httpx2").info("GET")
    assert names_of(stream) == ["ours"]


def test_the_level_silences_what_is_below_it(stream):
    configure(None, "WARNING", as_json=True, stream=stream)
    log.info("quiet")
    log.warning("loud")
    assert names_of(stream) == ["loud"]


def test_bound_fields_are_in_the_events_of_their_context_only(stream):
    configure(None, "info", as_json=True, stream=stream)
    with bound(request_id="r1"):
        with bound(process_id="p1"):
            log.info("inner")
            thread = threading.Thread(target=lambda: log.info("elsewhere"))
            thread.start()
            thread.join()
        log.info("outer")
    log.info("outside")
    inner, elsewhere, outer, outside = events(stream)
    assert (inner["request_id"], inner["process_id"]) == ("r1", "p1")
    assert outer["request_id"] == "r1"
    assert "process_id" not in outer
    assert not {"request_id", "process_id"} & (elsewhere.keys() | outside.keys())


def test_secrets_are_written_nowhere(tmp_path, stream):
    configure(tmp_path, "info", as_json=False, stream=stream)
    with bound(api_key="s3cr3t"):
        log.error("called", headers={"Authorization": "Bearer s3cr3t-s3cr3t"}, token="s3cr3t")
    logging.getLogger("uvicorn.access").error("GET /events?token=%s", "s3cr3t")
    try:
        raise ValueError("https://host/x?X-Amz-Signature=s3cr3t")
    except ValueError:
        log.exception("broken")
    assert "s3cr3t" not in stream.getvalue()
    for path in tmp_path.iterdir():
        assert "s3cr3t" not in path.read_text()
    assert len(events(tmp_path / "app.log")) == 3


def test_a_value_is_cut_to_2000_characters(stream):
    configure(None, "info", as_json=True, stream=stream)
    log.info("e" * 9_000, prompt="p" * 9_000)
    (event,) = events(stream)
    assert event["prompt"].count("p") == 2_000
    assert event["event"].startswith("e" * 2_000 + "…")


def test_values_that_json_does_not_know_break_nothing(tmp_path, stream):
    configure(tmp_path, "info", as_json=True, stream=stream)
    log.info("odd", loss=float("nan"), path=tmp_path, name="\udcff", data=b"\xff", obj={1: {2}})
    for event in (*events(stream), *events(tmp_path / "app.log")):
        assert event["loss"] == "nan"
        assert event["path"] == str(tmp_path)
        assert event["name"] == "\udcff"


def test_configuring_again_replaces_what_was_before(tmp_path, stream):
    before = list(logging.getLogger().handlers)
    first = io.StringIO()
    configure(tmp_path / "one", "info", as_json=True, stream=first)
    configure(tmp_path / "two", "info", as_json=True, stream=stream)
    log.info("once")
    assert first.getvalue() == ""
    assert (tmp_path / "one/app.log").read_text() == ""
    assert names_of(stream) == names_of(tmp_path / "two/app.log") == ["once"]
    assert len(logging.getLogger().handlers) == len(before) + 4
    close()
    close()
    assert logging.getLogger().handlers == before
    assert logging.getLogger("loradash").level == logging.NOTSET


def test_full_files_are_rotated_and_five_are_kept(tmp_path, stream, monkeypatch):
    monkeypatch.setattr(our_logging, "_MAX_FILE_BYTES", 500)
    monkeypatch.setattr(our_logging, "Repeats", partial(Repeats, at_once=1000))
    configure(tmp_path, "info", as_json=True, stream=stream)
    for number in range(60):
        log.info("event", number=number)
    names = sorted(path.name for path in tmp_path.glob("app.log*"))
    assert names == ["app.log", *(f"app.log.{number}" for number in range(1, 6))]
    assert all(path.stat().st_size <= 500 for path in tmp_path.iterdir())
    assert events(tmp_path / "app.log")[-1]["number"] == 59


def test_while_rotation_is_paused_others_wait_with_their_events(tmp_path, stream):
    configure(tmp_path, "info", as_json=True, stream=stream)
    thread = threading.Thread(target=lambda: log.info("late"))
    with rotation_paused():
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert (tmp_path / "app.log").read_text() == ""
    thread.join(5)
    assert names_of(tmp_path / "app.log") == ["late"]


def test_an_unknown_level_is_told(stream):
    with pytest.raises(InvalidSettings, match="'loud'"):
        configure(None, "loud", as_json=True, stream=stream)


def test_a_folder_that_can_not_be_written_is_told_and_the_old_logs_go_on(tmp_path, stream):
    configure(None, "info", as_json=True, stream=stream)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSettings, match="file/logs"):
        configure(tmp_path / "file/logs", "info", as_json=True, stream=io.StringIO())
    log.info("still")
    assert names_of(stream) == ["still"]


def test_nothing_happens_when_the_module_is_imported():
    program = (
        "import logging, loradash.telemetry.logging, structlog, threading\n"
        "print(logging.getLogger().handlers, structlog.is_configured(), threading.active_count())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[] False 1\n", "")


def test_a_full_log_disk_costs_nothing_but_the_lines(tmp_path, capsys):
    folder = tmp_path / "logs"
    folder.mkdir()
    for name in ("app.log", "requests.log", "errors.log"):
        (folder / name).symlink_to("/dev/full")
    with Path("/dev/full").open("w") as stream:
        configure(folder, "info", as_json=True, stream=stream)
        for _ in range(50):
            log.error("happened", detail="x" * 100)
        close()
        with contextlib.suppress(OSError):
            stream.close()
    assert capsys.readouterr() == ("", "")
