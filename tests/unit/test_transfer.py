import threading
import time

import pytest

from loradash.errors import StoreUnavailable, TransferFailed
from loradash.storage.memory import MemoryStore
from loradash.storage.transfer import Transfer, get_files, in_parallel, put_files


def files(folder, count, size_bytes=10):
    folder.mkdir(exist_ok=True)
    made = []
    for n in range(count):
        path = folder / f"{n}.bin"
        path.write_bytes(bytes([n]) * size_bytes)
        made.append(Transfer(f"a/{n}.bin", path, size_bytes))
    return made


class Unsteady(MemoryStore):
    """Fails the first tries of some keys, after having moved some bytes."""

    def __init__(self, tries_that_fail):
        super().__init__()
        self.left = dict(tries_that_fail)

    def put_file(self, key, path, on_bytes=None):
        if self.left.get(key, 0):
            self.left[key] -= 1
            if on_bytes:
                on_bytes(3)
            raise StoreUnavailable(f"no answer for {key}", remedy="Wait.")
        return super().put_file(key, path, on_bytes)


def test_all_files_arrive_and_come_back(tmp_path):
    store, sent = MemoryStore(), files(tmp_path / "in", 40)
    outcomes = put_files(store, sent)
    assert [item for item, _ in outcomes.done] == sent
    assert not outcomes.failed
    back = [item._replace(path=tmp_path / "out" / item.path.name) for item in sent]
    assert not get_files(store, back).failed
    assert [item.path.read_bytes() for item in back] == [item.path.read_bytes() for item in sent]


def test_no_more_than_the_given_number_run_at_the_same_time():
    running, most, lock = set(), [], threading.Lock()

    def work(item):
        with lock:
            running.add(item)
            most.append(len(running))
        time.sleep(0.005)
        with lock:
            running.remove(item)

    in_parallel(range(30), work, concurrency=5)
    assert max(most) == 5


def test_what_fails_is_tried_once_more_at_the_end(tmp_path):
    store, sent = Unsteady({"a/1.bin": 1}), files(tmp_path, 3)
    assert not put_files(store, sent).failed
    assert store.get("a/1.bin") == bytes([1]) * 10


def test_what_fails_again_is_named_and_the_others_arrive(tmp_path):
    store, sent = Unsteady({"a/1.bin": 9, "a/2.bin": 9}), files(tmp_path, 5)
    outcomes = put_files(store, sent)
    assert [item.key for item, _ in outcomes.failed] == ["a/1.bin", "a/2.bin"]
    assert [info.key for info in store.list()] == ["a/0.bin", "a/3.bin", "a/4.bin"]
    with pytest.raises(StoreUnavailable, match="2 of 5 files") as caught:
        outcomes.or_raise("upload", lambda item: item.path.name)
    assert caught.value.problems == (
        "1.bin: no answer for a/1.bin", "2.bin: no answer for a/2.bin",
    )  # fmt: skip


def test_a_file_that_vanished_is_named_too(tmp_path):
    store, sent = MemoryStore(), files(tmp_path, 2)
    sent[0].path.unlink()
    outcomes = put_files(store, sent)
    assert [item.key for item, _ in outcomes.failed] == ["a/0.bin"]
    with pytest.raises(TransferFailed, match="1 of 2 files"):
        outcomes.or_raise("upload", lambda item: item.path.name)


def test_a_bug_is_raised_and_not_counted_as_a_failed_file():
    with pytest.raises(ZeroDivisionError):
        in_parallel([0], lambda number: 1 // number)


def test_nothing_to_do_is_done():
    assert in_parallel([], str).done == ()


def test_progress_counts_bytes_and_whole_files_and_ends_with_all(tmp_path):
    store, sent = Unsteady({"a/1.bin": 1}), files(tmp_path, 4)
    told = []
    put_files(store, sent, concurrency=2, on_progress=told.append)
    assert told[-1].done_files == told[-1].total_files == 4
    assert told[-1].done_bytes == told[-1].total_bytes == 40
    assert max(one.done_bytes for one in told) == 40
    assert [one.done_files for one in told] == sorted(one.done_files for one in told)
    last = {one.key: one for one in told}
    assert all(one.key_bytes == one.key_total_bytes == 10 for one in last.values())
