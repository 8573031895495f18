import errno
import os
import shutil

import pytest

from loradash.errors import DiskFull
from loradash.storage.disk import DiskGuard, arriving, free_bytes
from tests.umasks import umask_of


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
