import pytest

from loradash.runtime import log_pump
from loradash.runtime.log_pump import MAX_LINE, LogPump


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.txt"


@pytest.fixture
def write(path):
    def append(data):
        with path.open("ab") as file:
            file.write(data if isinstance(data, bytes) else data.encode())

    return append


def test_lines_are_handed_out_once_each_in_order(path, write):
    pump = LogPump(path)
    write("one\ntwo\n")
    assert pump.new_lines() == ["one", "two"]
    assert pump.new_lines() == []
    write("three\n")
    assert pump.new_lines() == ["three"]


def test_a_line_without_its_end_waits_for_it(path, write):
    pump = LogPump(path)
    write("loading the mo")
    assert pump.new_lines() == []
    write("del\nnext")
    assert pump.new_lines() == ["loading the model"]
    write("\n")
    assert pump.new_lines() == ["next"]


def test_a_character_that_is_written_in_two_parts_stays_whole(path, write):
    pump = LogPump(path)
    first, second = "caf\u00e9\n".encode()[:4], "caf\u00e9\n".encode()[4:]
    write(first)
    assert pump.new_lines() == []
    write(second)
    assert pump.new_lines() == ["caf\u00e9"]


def test_at_the_end_the_last_line_needs_no_line_end(path, write):
    pump = LogPump(path)
    write("all is well\nSegmentation fault")
    assert pump.new_lines(at_end=True) == ["all is well", "Segmentation fault"]
    assert pump.new_lines(at_end=True) == []


def test_at_the_end_all_that_is_left_is_read_at_once(path, write, monkeypatch):
    monkeypatch.setattr(log_pump, "MAX_BYTES_AT_ONCE", 10)
    pump = LogPump(path)
    write("".join(f"line {number}\n" for number in range(50)))
    before = pump.new_lines()
    assert before == ["line 0"]
    assert before + pump.new_lines(at_end=True) == [f"line {number}" for number in range(50)]


def test_of_a_progress_bar_the_last_state_counts(path, write):
    pump = LogPump(path)
    write("10%\r20%\r")
    assert pump.new_lines() == []
    write("\r100%\ndone\n")
    assert pump.new_lines() == ["100%", "done"]


def test_line_ends_of_windows_are_line_ends(path, write):
    pump = LogPump(path)
    write("one\r\ntwo\r")
    assert pump.new_lines() == ["one"]
    write("\nthree\r\n")
    assert pump.new_lines() == ["two", "three"]


def test_a_progress_bar_without_any_line_end_is_not_kept_whole(path, write):
    pump = LogPump(path)
    for number in range(30):
        write(f"\r{number} " + "#" * 10_000)
        assert pump.new_lines() == []
    assert len(pump._rest) < 100_000
    write("\rfinished\n")
    assert pump.new_lines() == ["finished"]


def test_empty_lines_are_left_out(path, write):
    pump = LogPump(path)
    write("\n \none\n\r\n\r")
    assert pump.new_lines(at_end=True) == ["one"]


def test_bytes_that_are_no_text_are_shown_as_such(path, write):
    pump = LogPump(path)
    write(b"a\xff\xfe\x00b\x1b[31mred\x1b[0m\tc\xe2\x80\xae\n")
    (line,) = pump.new_lines()
    assert line == "a\ufffd\ufffd\\x00b\\x1b[31mred\\x1b[0m\tc\\u202e"
    assert line.encode()


def test_a_line_has_a_longest_length(path, write):
    pump = LogPump(path)
    write("x" * (MAX_LINE + 1) + "\nshort\n")
    assert pump.new_lines() == ["x" * MAX_LINE, "short"]


def test_output_without_end_stops_after_a_number_of_lines_and_says_so(path, write, monkeypatch):
    monkeypatch.setattr(log_pump, "MAX_LINES", 5)
    pump = LogPump(path)
    write("a\nb\nc\n")
    assert pump.new_lines() == ["a", "b", "c"]
    write("d\ne\nf\ng\n")
    assert pump.new_lines() == ["d", "e", "(more than 5 lines: the rest is in log.txt only)"]
    write("h\n")
    assert pump.new_lines() == []
    assert pump.new_lines(at_end=True) == []


def test_the_number_of_lines_may_be_reached_exactly(path, write, monkeypatch):
    monkeypatch.setattr(log_pump, "MAX_LINES", 2)
    pump = LogPump(path)
    write("a\nb\n")
    assert pump.new_lines() == ["a", "b"]
    assert pump.new_lines(at_end=True) == []


def test_at_the_end_of_endless_output_only_so_much_is_read(path, write, monkeypatch):
    monkeypatch.setattr(log_pump, "MAX_LINES", 100)
    monkeypatch.setattr(log_pump, "MAX_BYTES_AT_ONCE", 50)
    pump = LogPump(path)
    write("x\n" * 10_000)
    lines = pump.new_lines(at_end=True)
    assert lines[:-1] == ["x"] * 100
    assert lines[-1].startswith("(more than 100 lines")
    assert pump._offset < 1000


def test_a_file_may_appear_later(path, write):
    pump = LogPump(path)
    assert pump.new_lines() == []
    assert pump.new_lines(at_end=True) == []
    write("hello\n")
    assert pump.new_lines() == ["hello"]


def test_what_an_earlier_attempt_has_printed_is_not_read_again(path, write):
    write("the first attempt\n")
    pump = LogPump(path)
    assert pump.new_lines() == []
    write("the second\n")
    assert pump.new_lines() == ["the second"]


def test_a_file_that_can_not_be_read_is_no_reason_to_fail(tmp_path):
    pump = LogPump(tmp_path)  # a folder
    assert pump.new_lines() == []
    assert pump.new_lines(at_end=True) == []


def test_secrets_that_a_library_prints_are_masked(path, write):
    pump = LogPump(path)
    write("login with hf_abcdefghijABCDEFGHIJ0123456789abcd, password: hunter2\nstep 1 of 2\n")
    assert pump.new_lines() == ["login with ***, password: ***", "step 1 of 2"]
