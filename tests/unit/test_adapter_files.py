"""Files of stored adapters on this machine: fetched once, verified, hashed no more than needed."""

import hashlib
import os
import threading
import time
from datetime import UTC, datetime

import pytest

from loradash.errors import LoradashError, NotFound, ResultsNotStored, StoreUnavailable
from loradash.registry.registry import StoredArtifact
from loradash.runtime.workspace import Workspace
from loradash.services.adapters import files as adapter_files
from loradash.services.adapters.files import MAX_REMEMBERED, AdapterFiles, FileHashes
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore

ID = "train_01k9x3q4zt8m2v7c0hde"
DATA = b"an adapter"
OLD_S = time.time() - 1000


@pytest.fixture(params=["memory", "local"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "objects")


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "work")


def new_files(store, workspace):
    return AdapterFiles(store, workspace, lambda folder: (folder / "lora").glob("*"))


@pytest.fixture
def files(store, workspace):
    return new_files(store, workspace)


@pytest.fixture
def hashed(monkeypatch):
    """The files that were hashed, in order."""
    found = []
    real = adapter_files.sha256_of

    def counting(path):
        found.append(path)
        return real(path)

    monkeypatch.setattr(adapter_files, "sha256_of", counting)
    return found


def put(store, data=DATA, name="cat.safetensors", kind="lora", folder="lora"):
    key = f"results/{ID}/{folder}/{name}"
    store.put(key, data)
    return StoredArtifact(
        process_id=ID, key=key, kind=kind, name=name, size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(), created_at=datetime.now(UTC),
    )  # fmt: skip


def written(path, data=DATA):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return settled(path)


def settled(path, at_s=OLD_S):
    """Make a file look as if it was written long ago."""
    os.utime(path, (at_s, at_s))
    return path


def everything(workspace):
    return sorted(path for path in workspace.root.rglob("*") if path.is_file())


# Finding and fetching


def test_an_adapter_that_was_trained_here_is_used_where_it_lies(files, store, workspace):
    path = written(workspace.training(ID) / "lora" / "cat.safetensors")
    assert files.path_of(put(store)) == path
    assert everything(workspace) == [path]


def test_another_one_is_fetched_below_the_id_of_its_training_under_its_own_name(
    files, store, workspace
):
    path = files.path_of(put(store))
    assert path.is_relative_to(workspace.lora(ID))
    assert path.name == "cat.safetensors"
    assert path.read_bytes() == DATA
    assert everything(workspace) == [path]


def test_an_adapter_is_fetched_once(files, store, workspace):
    entry = put(store)
    path = files.path_of(entry)
    inode = path.stat().st_ino
    store.delete(entry.key)
    for other in (files, new_files(store, workspace)):
        assert other.path_of(entry) == path
    assert path.stat().st_ino == inode


@pytest.mark.parametrize("damage", [b"an ad@pter", b"an", b"", b"an adapter and more", None])
def test_a_fetched_file_that_is_not_whole_any_more_is_fetched_again(files, store, damage):
    entry = put(store)
    path = settled(files.path_of(entry))
    files.path_of(entry)  # it's known now
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    assert files.path_of(entry).read_bytes() == DATA


def test_adapters_of_one_name_lie_apart(files, store):
    """Checkpoints of one training, as the store's own list names them: all by the same name."""
    name = "adapter.safetensors"
    entries = [
        put(store, f"step {n}".encode(), name, "checkpoint", f"checkpoints/step-{n}")
        for n in (1, 2)
    ]
    paths = [files.path_of(entry) for entry in entries]
    assert [path.read_bytes() for path in paths] == [b"step 1", b"step 2"]
    assert [files.path_of(entry) for entry in entries] == paths


def test_a_newer_adapter_under_the_same_key_leaves_the_file_of_the_older_alone(files, store):
    """A generation that has begun with the older one may not have opened it yet."""
    older = files.path_of(put(store))
    newer = files.path_of(put(store, b"another adapter"))
    assert (older.read_bytes(), newer.read_bytes()) == (DATA, b"another adapter")


@pytest.mark.parametrize("data", [b"an ad@pter", b"an", b"an adapter and more", None])
def test_an_object_that_is_not_what_was_stored_is_an_error_and_leaves_nothing(
    files, store, workspace, data
):
    entry = put(store)
    if data is None:
        store.delete(entry.key)
    else:
        store.put(entry.key, data)
    with pytest.raises(NotFound if data is None else ResultsNotStored) as caught:
        files.path_of(entry)
    assert entry.key in caught.value.message
    assert caught.value.remedy
    assert everything(workspace) == []


class TogetherStore(MemoryStore):
    """A store whose downloads all begin before one of them ends; some of them fail."""

    def __init__(self, at_once, failing=0):
        super().__init__()
        self.barrier = threading.Barrier(at_once)
        self.lock = threading.Lock()
        self.failing = failing
        self.paths = []

    def get_file(self, key, path, on_bytes=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.get(key)[:3])
        with self.lock:
            self.paths.append(path)
            fails = len(self.paths) <= self.failing
        self.barrier.wait(20)
        if fails:
            raise StoreUnavailable("the connection broke", remedy="Try again.")
        return super().get_file(key, path, on_bytes)


def test_two_that_fetch_the_same_adapter_at_once_do_not_disturb_each_other(workspace):
    store = TogetherStore(at_once=4, failing=1)
    files, entry = new_files(store, workspace), put(store)
    seen = []

    def fetch():
        try:
            seen.append(files.path_of(entry).read_bytes())
        except LoradashError as error:
            seen.append(error.code)

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(map(str, seen)) == sorted([str(DATA)] * 3 + ["store_unavailable"])
    assert len(set(store.paths)) == 4
    assert [path.read_bytes() for path in everything(workspace)] == [DATA]


def test_what_is_being_fetched_does_not_stand_where_it_belongs(workspace):
    store = TogetherStore(at_once=2)
    files, entry = new_files(store, workspace), put(store)
    thread = threading.Thread(target=files.path_of, args=(entry,))
    thread.start()
    while not store.paths:
        time.sleep(0.005)
    (partial,) = everything(workspace)
    store.barrier.wait(20)
    thread.join(20)
    (path,) = everything(workspace)
    assert partial != path
    assert any(part.startswith(".") for part in partial.relative_to(workspace.root).parts)


# Hashing


def test_a_file_that_has_not_changed_is_hashed_once(files, store, workspace, hashed):
    path = written(workspace.training(ID) / "lora" / "cat.safetensors")
    entry = put(store)
    for _ in range(5):
        assert files.path_of(entry) == path
    assert hashed == [path]


def test_a_fetched_file_is_hashed_once_after_it_was_fetched(files, store, hashed):
    entry = put(store)
    path = settled(files.path_of(entry))
    hashed.clear()
    for _ in range(5):
        assert files.path_of(entry) == path
    assert hashed == [path]


@pytest.mark.parametrize("change", ["content", "time", "file"])
def test_a_file_that_looks_different_is_hashed_again(tmp_path, hashed, change):
    hashes, path = FileHashes(), written(tmp_path / "a")
    digest = hashes.of(path, len(DATA))
    assert digest == hashlib.sha256(DATA).hexdigest()
    if change == "content":
        path.write_bytes(DATA.upper())
    elif change == "time":
        settled(path, OLD_S + 1)
    else:
        other = written(tmp_path / "b", DATA.upper())
        other.replace(path)
        assert path.stat().st_mtime == OLD_S
    hashes.of(path, len(DATA))
    assert hashed == [path, path]
    assert (hashes.of(path, len(DATA)) == digest) is (change == "time")


def test_a_file_of_a_moment_ago_is_not_trusted_since_its_time_may_not_change(tmp_path, hashed):
    """Two writes within one tick of the file system's clock have the same time."""
    hashes, path = FileHashes(), tmp_path / "a"
    path.write_bytes(DATA)
    facts = path.stat()
    assert hashes.of(path, len(DATA)) == hashlib.sha256(DATA).hexdigest()
    path.write_bytes(DATA.upper())
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert hashes.of(path, len(DATA)) == hashlib.sha256(DATA.upper()).hexdigest()


def test_a_file_that_was_written_to_while_it_was_hashed_is_hashed_again(tmp_path, monkeypatch):
    hashes, path = FileHashes(), written(tmp_path / "a")
    real = adapter_files.sha256_of

    def slow(path):
        digest = real(path)
        path.write_bytes(DATA.upper())
        settled(path, OLD_S + 1)
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(adapter_files, "sha256_of", slow)
        hashes.of(path, len(DATA))
    assert hashes.of(path, len(DATA)) == hashlib.sha256(DATA.upper()).hexdigest()


@pytest.mark.parametrize("size", [0, len(DATA) - 1, len(DATA) + 1])
def test_a_file_of_another_size_is_not_even_hashed(tmp_path, hashed, size):
    assert FileHashes().of(written(tmp_path / "a"), size) == ""
    assert hashed == []


def test_where_no_file_is_there_is_no_hash(tmp_path):
    hashes, path = FileHashes(), written(tmp_path / "a")
    (tmp_path / "folder").mkdir()
    size = (tmp_path / "folder").stat().st_size
    assert hashes.of(tmp_path / "missing", 5) == ""
    assert hashes.of(tmp_path / "folder", size) == ""
    assert hashes.of(path / "below", 5) == ""


def test_the_oldest_hashes_are_forgotten(tmp_path, hashed):
    hashes = FileHashes()
    paths = [written(tmp_path / str(n)) for n in range(MAX_REMEMBERED + 1)]
    for path in paths:
        hashes.of(path, len(DATA))
    hashed.clear()
    hashes.of(paths[-1], len(DATA))
    assert hashed == []
    hashes.of(paths[0], len(DATA))
    assert hashed == [paths[0]]
