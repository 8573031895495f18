"""Lines that repeat are bounded, and none is left out without being counted."""

import io
import json
import logging

import pytest
import structlog

from loradash.telemetry import logging as our_logging
from loradash.telemetry.repeats import Repeats, WrittenOnce

log = structlog.get_logger("loradash.test")


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines(clock, monkeypatch, tmp_path):
    made = Repeats
    monkeypatch.setattr(our_logging, "Repeats", lambda **how: made(clock_s=clock, **how))
    stream = io.StringIO()
    our_logging.configure(tmp_path, "info", as_json=True, stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    our_logging.close()


def test_the_same_line_is_written_once_a_second_and_counted(lines, clock, tmp_path):
    for _ in range(500):
        log.warning("store_away", process_id="a")
    clock.now_s = 1.0
    log.warning("store_away", process_id="a")
    assert [line.get("suppressed") for line in lines()] == [None, 499]
    assert len((tmp_path / "app.log").read_text().splitlines()) == 2


def test_another_field_level_or_request_makes_another_line(lines):
    for _ in range(2):
        log.warning("store_away", process_id="a")
        log.warning("store_away", process_id="b")
        log.error("store_away", process_id="a")
        log.warning("store_away", process_id="a", request_id="r1")
    assert len(lines()) == 4


def test_one_event_with_ever_new_fields_comes_in_bounded_numbers(lines, clock):
    for number in range(5000):
        log.warning("path_refused", path=f"/{number}")
    assert len(lines()) == 50
    clock.now_s = 2.0
    for number in range(5000):
        log.warning("path_refused", path=f"/again/{number}")
    assert len(lines()) == 52
    assert lines()[50]["suppressed"] == 4950


def test_other_events_are_written_while_one_floods(lines):
    for number in range(5000):
        log.warning("path_refused", path=f"/{number}")
    log.info("process_taken", process_id="train_x")
    assert lines()[-1]["event"] == "process_taken"


def test_lines_of_other_libraries_are_bounded_too(lines, clock):
    for _ in range(300):
        logging.getLogger("asyncio").error("socket.accept() out of %s", "system resource")
    clock.now_s = 1.5
    logging.getLogger("asyncio").error("socket.accept() out of %s", "system resource")
    text = "socket.accept() out of system resource"
    assert [line["event"] for line in lines()] == [text, f"{text} (299 like this suppressed)"]


def test_many_requests_rotate_nothing_but_their_own_file(lines, tmp_path):
    for number in range(300):
        structlog.get_logger("loradash.requests").info("request", request_id=str(number))
    assert (tmp_path / "app.log").read_text() == ""
    assert len((tmp_path / "requests.log").read_text().splitlines()) == 100


def test_what_is_remembered_is_bounded():
    repeats = Repeats()
    for number in range(5000):
        record = logging.LogRecord("x", logging.INFO, "", 0, f"text {number}", None, None)
        assert repeats.passes(record)
    assert len(repeats._seen) == 2000


def test_a_record_is_decided_on_once_whatever_handlers_it_passes():
    once = WrittenOnce(Repeats(), {})
    record = logging.LogRecord("x", logging.INFO, "", 0, "text", None, None)
    assert [once.filter(record) for _ in range(4)] == [True] * 4
    again = logging.LogRecord("x", logging.INFO, "", 0, "text", None, None)
    assert [once.filter(again) for _ in range(4)] == [False] * 4
