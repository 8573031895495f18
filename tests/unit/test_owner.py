import os
import subprocess
import sys

import psutil
import pytest

from loradash.runtime.owner import is_gone, this_owner
from tests.unit.waits import until

TELLS_ITS_NAME = """
import sys
from loradash.runtime.owner import this_owner
print(this_owner(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other():
    """Another program, and its name as an owner."""
    with subprocess.Popen(
        [sys.executable, "-c", TELLS_ITS_NAME],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield process, process.stdout.readline().strip()
        process.kill()


def parts():
    machine, pid, started = this_owner().rsplit("/", 2)
    return machine, pid, float(started)


def test_this_program_is_not_gone():
    assert not is_gone(this_owner())


def test_the_name_tells_machine_and_pid_and_stays():
    machine, pid, _ = parts()
    assert machine
    assert pid == str(os.getpid())
    assert this_owner() == this_owner()


def test_another_program_here_is_gone_when_it_has_ended(other):
    process, name = other
    assert name != this_owner()
    assert not is_gone(name)
    process.kill()
    process.wait()
    assert is_gone(name)


def test_a_program_that_has_ended_is_gone_before_its_parent_knows(other):
    process, name = other
    process.kill()
    until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    assert is_gone(name)


@pytest.mark.parametrize("difference_s", [-1000, -2, 2, 1000])
def test_a_pid_that_was_given_to_another_program_since_is_gone(difference_s):
    machine, pid, started_s = parts()
    assert is_gone(f"{machine}/{pid}/{started_s + difference_s:.2f}")


def test_a_clock_that_was_set_since_changes_nothing(monkeypatch):
    name = this_owner()
    boot_s = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot_s + 3600, raising=False)
    assert not is_gone(name)


def test_nobody_knows_from_here_whether_an_owner_elsewhere_is_gone():
    machine, pid, _ = parts()
    for elsewhere in (f"not-{machine}", f"{machine}2", f"a/{machine}", machine[:-1]):
        assert not is_gone(f"{elsewhere}/{pid}/1.00")


@pytest.mark.parametrize(
    "rest", ["", "/", "//", "/x/1.0", "/1", "/1/", "/1/x", "/-1/1.0", "/1.5/1.0", "/1/nan"]
)
def test_who_has_no_name_of_ours_is_not_gone(rest):
    assert not is_gone(parts()[0] + rest)
    assert not is_gone(rest)
    assert not is_gone(f"worker{rest}")
