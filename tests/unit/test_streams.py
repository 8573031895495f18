"""What is shown may be lost; what is done may not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loradash.streams import LossyStream, lossy_output

WORK = """
import sys
from loradash.streams import lossy_output
with lossy_output():
    for number in range(200):
        print("x" * 1000, flush=number % 2 == 0)
        print("y" * 1000, file=sys.stderr)
    open(sys.argv[1], "w").write("done")
sys.exit(3)
"""


def run(code, *arguments, **streams):
    return subprocess.run([sys.executable, "-c", code, *arguments], check=False, **streams)


@pytest.mark.parametrize("which", ["stdout", "stderr"])
def test_a_reader_that_has_gone_does_not_end_the_work(tmp_path, which):
    read_end, write_end = os.pipe()
    os.close(read_end)
    other = {"stdout": "stderr", "stderr": "stdout"}[which]
    done = run(WORK, tmp_path / "done", **{which: write_end, other: subprocess.PIPE})
    os.close(write_end)
    assert (tmp_path / "done").read_text() == "done"
    assert done.returncode == 3
    assert b"rror" not in (done.stdout or b"") + (done.stderr or b"")


def test_a_full_disk_does_not_end_the_work(tmp_path):
    with Path("/dev/full").open("w") as full:
        done = run(WORK, tmp_path / "done", stdout=full, stderr=full)
    assert (tmp_path / "done").read_text() == "done"
    assert done.returncode == 3


def test_what_is_written_when_there_is_room_again_is_there(tmp_path):
    class Fills:
        def __init__(self):
            self.full, self.text = False, ""

        def write(self, text):
            if self.full:
                raise OSError(28, "No space left on device")
            self.text += text

        def flush(self):
            pass

    stream = Fills()
    shown = LossyStream(stream)
    shown.write("a")
    stream.full = True
    assert shown.write("b") == 1
    stream.full = False
    shown.writelines(["c", "d"])
    assert stream.text == "acd"
    assert shown.lost is not None


def test_output_is_as_it_was_afterwards(capsys):
    before = sys.stdout
    with lossy_output():
        print("shown")
    assert sys.stdout is before
    assert capsys.readouterr().out == "shown\n"


def test_what_is_opened_later_does_not_get_the_number_of_a_closed_output(tmp_path):
    code = (
        "from loradash.streams import open_standard_files; import sys; open_standard_files();"
        "file = open(sys.argv[1], 'w'); print('lost'); sys.stdout.flush();"
        "file.write(str(file.fileno() > 2)); file.close()"
    )
    shell = f'exec \'{sys.executable}\' -c "$0" "$1" <&- >&- 2>&-'
    subprocess.run(["sh", "-c", shell, code, tmp_path / "file"], check=True)
    assert (tmp_path / "file").read_text() == "True"


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hangup_is_outlived_and_an_ignored_one_stays_ignored(tmp_path, ignored):
    code = (
        "import os, signal, sys; from loradash.streams import outlive_the_terminal;"
        f"{'signal.signal(signal.SIGHUP, signal.SIG_IGN);' if ignored else ''}"
        "outlive_the_terminal(); os.kill(os.getpid(), signal.SIGHUP);"
        "print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    )
    done = run(code, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{ignored}\n")


def test_time_is_not_lost_with_what_nobody_reads(tmp_path):
    """A closed output is replaced, so that not every line fails anew."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as stream:
        shown = LossyStream(stream)
        shown.write("x")
        shown.flush()
        assert isinstance(shown.lost, BrokenPipeError)
        os.write(stream.fileno(), b"goes nowhere")
