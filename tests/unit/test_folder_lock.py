import shutil
import subprocess
import sys
import threading

import pytest

from loradash.errors import AlreadyRunning, Interrupted
from loradash.runtime.folder_lock import LOCK_FILE, folder_lock


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    folder = tmp_path / "process"
    with folder_lock(folder), pytest.raises(AlreadyRunning, match="process"), folder_lock(folder):
        raise AssertionError("both hold it")
    with folder_lock(folder):
        pass


def test_who_waits_gets_it_once_it_is_free(tmp_path):
    holding, free = threading.Event(), threading.Event()

    def hold():
        with folder_lock(tmp_path):
            holding.set()
            free.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert holding.wait(10)
    looks = []

    def looked():
        looks.append(1)
        free.set()

    with folder_lock(tmp_path, patience_s=10, while_waiting=looked):
        assert looks
    holder.join()


def test_who_waits_can_be_stopped(tmp_path):
    def stop():
        raise Interrupted("stopped")

    waiting = folder_lock(tmp_path, patience_s=10, while_waiting=stop)
    with folder_lock(tmp_path), pytest.raises(Interrupted), waiting:
        raise AssertionError("both hold it")


def test_an_engine_that_inherits_it_holds_it_until_it_ends(tmp_path):
    with folder_lock(tmp_path) as descriptor:
        engine = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(descriptor,)
        )
    with pytest.raises(AlreadyRunning), folder_lock(tmp_path):
        raise AssertionError("both hold it")
    engine.communicate(b"\n")
    with folder_lock(tmp_path):
        pass


def test_who_waited_for_a_folder_that_was_removed_gets_a_new_one(tmp_path):
    """Removing takes the lock file away; what the waiting one has open is nobody's any more."""
    folder = tmp_path / "process"
    removed = threading.Event()

    def remove():
        if not removed.is_set():
            shutil.rmtree(folder)
            holder.close()
            removed.set()

    holder = _held(folder)
    with folder_lock(folder, patience_s=10, while_waiting=remove):
        assert removed.is_set()
        assert (folder / LOCK_FILE).exists()
        with pytest.raises(AlreadyRunning), folder_lock(folder):
            raise AssertionError("both hold it")


class _held:  # noqa: N801 - reads like the function that it wraps
    def __init__(self, folder):
        self._lock = folder_lock(folder)
        self._lock.__enter__()

    def close(self):
        self._lock.__exit__(None, None, None)
