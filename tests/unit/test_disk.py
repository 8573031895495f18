import contextlib
import errno
import os
import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loradash.errors import DiskFull
from loradash.storage import disk as disk_module
from loradash.storage.disk import DiskGuard, arriving, as_disk_full, free_bytes, write_all
from tests.umasks import umask_of
from tests.unit.file_sizes import files_of_at_most
from tests.unit.waits import until


def test_a_guard_keeps_some_of_the_disk_free(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    guard = DiskGuard(free // 2)
    guard.require(tmp_path, free // 4)
    with pytest.raises(DiskFull, match="don't fit") as caught:
        guard.require(tmp_path, free // 2 + free // 4)
    assert "LORADASH_MIN_FREE_DISK_MB" in caught.value.remedy


def test_a_disk_is_low_if_less_is_free_than_shall_stay_free(tmp_path):
    assert DiskGuard(2**60).is_low(tmp_path)
    assert not DiskGuard(1).is_low(tmp_path)


def test_without_a_number_nothing_is_guarded(tmp_path):
    assert not DiskGuard().is_low(tmp_path)
    DiskGuard().require(tmp_path, 2**60)


def test_the_disk_of_a_folder_that_does_not_exist_yet_is_that_of_its_parent(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") > 0


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "folder" / "file"
    with arriving(path) as descriptor:
        os.write(descriptor, b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert [one.name for one in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [ValueError(), OSError(errno.EIO, "odd"), KeyboardInterrupt()])
def test_what_breaks_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), arriving(path) as descriptor:
        os.write(descriptor, b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_runs_full_is_told_as_such(tmp_path, number):
    with pytest.raises(DiskFull) as caught, arriving(tmp_path / "file"):
        raise OSError(number, "no space")
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640)])
def test_the_umask_says_who_can_read_a_file_that_arrives(tmp_path, umask, mode):
    with umask_of(umask), arriving(tmp_path / "file") as descriptor:
        os.write(descriptor, b"x")
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


class SafetensorError(Exception):
    """As safetensors raises it: no `OSError`, and the system's number in its text alone."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/data/x"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        SafetensorError("I/O error: Das Kontingent ist erschöpft (os error 122)"),
        SafetensorError("Error while serializing: I/O error: File too large (os error 27)"),
        SafetensorError("I/O error: failed to write whole buffer"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
        sqlite3.OperationalError("database or disk is full"),
    ],
)
def test_a_full_disk_is_found_in_what_libraries_raise(error):
    packed = ValueError("it broke")
    packed.__cause__ = error
    for one in (error, packed):
        full = as_disk_full(one, "Free space, and resume it.")
        assert isinstance(full, DiskFull)
        assert full.code == "disk_full"
        assert "Free space, and resume it." in full.remedy


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), OSError(errno.EACCES, "no space left on device"),
     ValueError("unexpected position"), SafetensorError("I/O error (os error 2)"), MemoryError()],
)  # fmt: skip
def test_other_errors_are_no_full_disk(error):
    assert as_disk_full(error) is None


def test_the_error_of_a_full_disk_names_the_folder_and_what_ran_out():
    assert str(as_disk_full(OSError(errno.ENOSPC, "x", "/data/a"))).startswith(
        "the disk of /data is"
    )
    assert "quota" in str(as_disk_full(OSError(errno.EDQUOT, "x", "/data/a")))
    assert "ulimit -f" in str(as_disk_full(OSError(errno.EFBIG, "x")))


def test_errors_that_refer_to_each_other_come_to_an_end():
    one, other = ValueError("a"), ValueError("b")
    one.__cause__, other.__cause__ = other, one
    assert as_disk_full(one) is None


def test_what_is_really_written_is_told_too(tmp_path):
    with files_of_at_most(1000), pytest.raises(DiskFull), arriving(tmp_path / "a") as descriptor:
        write_all(descriptor, bytes(5000))
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(OSError, match="No space left") as caught,
        Path("/dev/full").open("wb") as file,
    ):
        file.write(b"x")
        file.flush()
    assert as_disk_full(caught.value)


def test_a_write_that_takes_a_part_is_gone_on_with(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    with arriving(tmp_path / "a") as descriptor:
        write_all(descriptor, bytes(range(100)))
    assert (tmp_path / "a").read_bytes() == bytes(range(100))


# Reservations


@pytest.fixture
def disk(monkeypatch):
    """A disk of a size that tests know; what is written there is said by tests."""

    class Disk:
        free = 1000

    disk = Disk()
    monkeypatch.setattr(disk_module, "free_bytes", lambda _folder: disk.free)
    return disk


def test_what_others_are_about_to_write_counts(disk, tmp_path):
    guard = DiskGuard(100)
    with guard.reserve(tmp_path, 500):
        with pytest.raises(DiskFull, match="500 B of them for what is under way"):
            guard.require(tmp_path, 401)
        with guard.reserve(tmp_path, 400), pytest.raises(DiskFull):
            guard.require(tmp_path, 1)
        guard.require(tmp_path, 400)
    guard.require(tmp_path, 900)


def test_what_is_written_is_counted_once(disk, tmp_path):
    guard = DiskGuard(100)
    with guard.reserve(tmp_path, 500) as room:
        for _ in range(5):
            disk.free -= 100
            room.wrote(100)
            guard.require(tmp_path, 400)
            with pytest.raises(DiskFull):
                guard.require(tmp_path, 401)
        disk.free -= 100
        room.wrote(100)  # more than was announced
        guard.require(tmp_path, 300)


def test_room_grows_as_far_as_there_is_some(disk, tmp_path):
    guard = DiskGuard(100)
    with guard.reserve(tmp_path, 0) as room:
        room.grow(900)
        with pytest.raises(DiskFull):
            room.grow(1)
        with pytest.raises(DiskFull):
            guard.require(tmp_path, 1)
    guard.require(tmp_path, 900)


def test_an_error_gives_the_room_back(disk, tmp_path):
    guard = DiskGuard(100)
    with pytest.raises(ValueError, match="x"), guard.reserve(tmp_path, 900):
        raise ValueError("x")
    guard.require(tmp_path, 900)


def test_disks_are_counted_by_themselves(disk, tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one disk here")
    guard = DiskGuard(100)
    with guard.reserve(tmp_path, 900):
        guard.require(other, 900)


def test_many_at_once_never_reserve_more_than_there_is(disk, tmp_path):
    guard = DiskGuard(100)
    got = []
    ready = threading.Barrier(8)

    def reserve(_):
        ready.wait()
        with contextlib.suppress(DiskFull), guard.reserve(tmp_path, 300):
            got.append(1)
            ready_to_end.wait(10)

    ready_to_end = threading.Event()
    with ThreadPoolExecutor(8) as threads:
        done = [threads.submit(reserve, n) for n in range(8)]
        until(lambda: sum(one.done() for one in done) == 5)
        ready_to_end.set()
    assert len(got) == 3
