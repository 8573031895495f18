"""What every object store must do, whichever it is."""

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loradash.errors import (
    DiskFull,
    InvalidKey,
    NotFound,
    PreconditionFailed,
    StoreRefused,
    StoreUnavailable,
)
from loradash.storage.disk import DiskGuard
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore
from loradash.storage.s3.store import S3Store
from loradash.storage.store import (
    MAX_KEY_LENGTH,
    conditional_put,
)
from tests.umasks import umask_of

from .buckets import config_of

# JuiceFS takes the attempt for a fault of its own.
REFUSALS = (InvalidKey, StoreRefused, StoreUnavailable)

HOSTILE_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "a//b",
    "a/",
    "..",
    "../a",
    "a/../b",
    "a/..",
    ".",
    "./a",
    "a/./b",
    "a\\b",
    "..\\a",
    "C:\\a",
    "a\0b",
    "a\nb",
    "a\n",
    "a\n/b",
    "a\x7f",
    "\x1b[31m",
    "x" * (MAX_KEY_LENGTH + 1),
    "x" * 256,
    "ä" * 200,
    "\ud800",
]


def make_store(kind, request, tmp_path):
    if kind == "memory":
        return MemoryStore()
    if kind in ("local", "shared"):
        return LocalStore(tmp_path / "objects", shared=kind == "shared")
    return S3Store(config_of(request.getfixturevalue(kind), prefix="some/where"))


@pytest.fixture(params=["memory", "local", "shared", "seaweedfs", "juicefs"])
def store(request, tmp_path):
    store = make_store(request.param, request, tmp_path)
    yield store
    if isinstance(store, S3Store):
        store.close()


@pytest.fixture(params=["memory", "local", "seaweedfs"])
def conditional(request, tmp_path):
    """A store that can put on condition."""
    store = conditional_put(make_store(request.param, request, tmp_path))
    assert store is not None
    yield store
    if isinstance(store, S3Store):
        store.close()


@pytest.fixture(params=["shared", "juicefs"])
def unconditional(request, tmp_path):
    store = make_store(request.param, request, tmp_path)
    yield store
    if isinstance(store, S3Store):
        store.close()


def same(one, other):
    """Whether two pieces of information mean the same version; clocks may differ a little."""
    return one[:2] == other[:2] and one.etag == other.etag and (
        abs(one.modified_s - other.modified_s) < 5
    )  # fmt: skip


@pytest.fixture
def files_left(tmp_path):
    """All files of a local store that are no objects (none for a store in memory)."""

    def find(*keys):
        root = tmp_path / "objects"
        found = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
        return found - set(keys) - {".lock"}

    return find


def keys(store, prefix=""):
    return sorted(info.key for info in store.list(prefix))


def test_what_was_put_can_be_got(store):
    data = bytes(range(256)) * 100
    info = store.put("a/b.bin", data)
    assert store.get("a/b.bin") == data
    assert same(store.head("a/b.bin"), info)
    assert (info.key, info.size_bytes) == ("a/b.bin", len(data))
    assert info.modified_s > 1_700_000_000
    assert info.etag


def test_an_empty_object_is_an_object(store):
    assert store.put("a", b"").size_bytes == 0
    assert store.get("a") == b""


def test_putting_again_replaces_the_object_and_its_etag(store):
    first = store.put("a", b"old")
    second = store.put("a", b"new")
    assert store.get("a") == b"new"
    assert second.etag != first.etag
    assert keys(store) == ["a"]


def test_the_callers_bytes_may_change_afterwards(store):
    data = bytearray(b"old")
    store.put("a", data)
    data[:] = b"new"
    assert store.get("a") == b"old"


@pytest.mark.parametrize("key", ["missing", "a/missing", "a/b/missing", "a"])
def test_a_missing_object_is_not_found(store, tmp_path, key):
    store.put("a/b", b"x")
    target = tmp_path / "target"
    target.write_bytes(b"keep")
    for ask in (store.get, store.head, lambda key: store.get_file(key, target)):
        with pytest.raises(NotFound, match=key) as caught:
            ask(key)
        assert caught.value.remedy
    assert target.read_bytes() == b"keep"


def test_an_object_is_not_a_folder(store):
    store.put("a", b"x")
    with pytest.raises(NotFound):
        store.get("a/b")
    assert keys(store, "a/b") == []


def test_deleting_makes_an_object_not_found(store):
    store.put("a/b", b"x")
    store.delete("a/b")
    assert keys(store) == []
    with pytest.raises(NotFound):
        store.get("a/b")


@pytest.mark.parametrize("key", ["missing", "a/missing", "a", "a/b/under an object"])
def test_deleting_what_is_not_there_does_nothing(store, key):
    store.put("a/b", b"x")
    store.delete(key)
    assert keys(store) == ["a/b"]


def test_objects_are_listed_in_the_order_of_their_keys(store):
    for key in ("b", "a/2", "a/10", "a.txt", "a/2.d/x", "Z", "ä", "a-1/x"):
        store.put(key, b"x")
    wanted = ["b", "a/2", "a/10", "a.txt", "a/2.d/x", "Z", "ä", "a-1/x"]
    listed = [info.key for info in store.list()]
    assert sorted(listed) == sorted(wanted)
    if not isinstance(store, S3Store):  # SeaweedFS orders by folder
        assert listed == sorted(wanted)


def test_a_prefix_is_a_whole_part_of_the_key(store):
    for key in ("a/b/1", "a/bc/2", "a/b.txt", "a/b2", "aa/b/3"):
        store.put(key, b"x")
    assert keys(store, "a/b") == keys(store, "a/b/") == ["a/b/1"]
    assert keys(store, "a") == ["a/b.txt", "a/b/1", "a/b2", "a/bc/2"]
    assert keys(store, "missing") == []


def test_an_object_is_not_below_itself(store):
    store.put("a/b", b"x")
    assert keys(store, "a/b") == []


def test_hidden_names_are_listed_like_others(store):
    for key in (".hidden", ".folder/a", "a/.b"):
        store.put(key, b"x")
    assert keys(store) == [".folder/a", ".hidden", "a/.b"]


def test_listing_tells_what_head_tells(store):
    store.put("a/b", b"xyz")
    (listed,) = store.list("a")
    assert same(listed, store.head("a/b"))


def test_an_empty_store_lists_nothing_and_is_not_created_by_looking(store, tmp_path):
    assert keys(store) == []
    assert not (tmp_path / "objects").exists()


def test_keys_may_hold_spaces_and_any_letters(store):
    key = "results/Größe 1 (neu)/猫 🐈.png"
    store.put(key, b"x")
    assert keys(store, "results/Größe 1 (neu)") == [key]
    assert store.get(key) == b"x"


def test_a_file_is_put_and_got_whole(store, tmp_path):
    source, target = tmp_path / "source", tmp_path / "new" / "folder" / "target"
    source.write_bytes(random.Random(0).randbytes(3_000_000))
    info = store.put_file("a/file", source)
    assert info.size_bytes == 3_000_000
    assert same(store.get_file("a/file", target), info)
    assert target.read_bytes() == source.read_bytes() == store.get("a/file")


def test_getting_a_file_replaces_the_old_one(store, tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"old and longer")
    store.put("a", b"new")
    store.get_file("a", target)
    assert target.read_bytes() == b"new"


def test_a_file_that_can_not_be_written_leaves_nothing_behind(store, tmp_path):
    target = tmp_path / "target"
    (target / "full").mkdir(parents=True)
    store.put("a", b"x")
    with pytest.raises(OSError, match="target"):
        store.get_file("a", target)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".target")] == []


@pytest.mark.parametrize("source", ["missing", "folder", "/proc/self/mem"])
def test_a_put_whose_source_fails_changes_nothing(store, tmp_path, files_left, source):
    if not Path("/proc/self/mem").exists() and source.startswith("/proc"):
        pytest.skip("needs a file that can be opened and not be read")
    (tmp_path / "folder").mkdir()
    before = store.put("a/b", b"old")
    for key in ("a/b", "a/new"):
        with pytest.raises(OSError):
            store.put_file(key, tmp_path / source)
    assert same(store.head("a/b"), before)
    assert store.get("a/b") == b"old"
    assert keys(store) == ["a/b"]
    assert files_left("a/b") == set()


def test_a_key_below_an_object_is_stored_or_refused_and_harms_nothing(store, files_left):
    store.put("a", b"x")
    try:
        store.put("a/b", b"y")
        expected = ["a", "a/b"]
    except REFUSALS:
        expected = ["a"]
    assert keys(store) == expected
    assert store.get("a") == b"x"
    assert files_left(*expected) == set()


def test_a_key_above_an_object_is_stored_or_refused_and_harms_nothing(store, files_left):
    store.put("a/b", b"y")
    try:
        store.put("a", b"x")
        expected = ["a", "a/b"]
    except REFUSALS:
        expected = ["a/b"]
    assert keys(store) == expected
    assert store.get("a/b") == b"y"
    assert files_left(*expected) == set()


@pytest.mark.parametrize("key", HOSTILE_KEYS)
def test_hostile_keys_are_refused_by_every_verb(store, tmp_path, key):
    source = tmp_path / "source"
    source.write_bytes(b"x")
    for ask in (
        lambda: store.put(key, b"x"),
        lambda: store.put_file(key, source),
        lambda: store.put_if(key, b"x", None),
        lambda: store.get(key),
        lambda: store.read(key),
        lambda: store.delete_many([key]),
        lambda: store.get_file(key, tmp_path / "target"),
        lambda: store.head(key),
        lambda: store.delete(key),
    ):
        with pytest.raises(InvalidKey) as caught:
            ask()
        assert caught.value.remedy
    assert keys(store) == []
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "objects") == ["source"]


@pytest.mark.parametrize(
    ("start", "end"), [(0, None), (0, 5), (3, 700_000), (299_990, None), (7, 7), (700_000, None)]
)
def test_any_range_can_be_read_in_pieces(store, start, end):
    data = random.Random(1).randbytes(700_000)
    store.put("a", data)
    assert b"".join(store.read("a", start, end)) == data[start:end]


def test_an_empty_object_is_read_as_nothing(store, tmp_path):
    store.put("a", b"")
    assert list(store.read("a")) == []
    store.get_file("a", tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_missing_object_is_not_found_before_the_first_piece(store):
    with pytest.raises(NotFound):
        store.read("a")


def test_folders_are_the_names_that_have_objects_below_them(store):
    for key in ("a/1", "a/b/2", "a/c/d/3", "b/4", "top", "a/e"):
        store.put(key, b"x")
    assert {"a", "b"} <= set(store.folders("")) <= {"a", "b", ".loradash-probe"}
    assert tuple(store.folders("a")) == tuple(store.folders("a/")) == ("b", "c")
    assert tuple(store.folders("missing")) == tuple(store.folders("b")) == ()


@pytest.mark.parametrize("count", [0, 1, 2, 25])
def test_many_objects_are_deleted_and_no_others(store, count):
    for n in range(count + 2):
        store.put(f"a/{n:02d} & <odd>.txt", b"x")
    store.delete_many([f"a/{n:02d} & <odd>.txt" for n in range(count)] + ["a/missing"])
    assert len(keys(store)) == 2


def test_moved_bytes_are_counted(store, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(random.Random(0).randbytes(3_000_000))
    sent, fetched = [], []
    store.put_file("a", source, sent.append)
    store.get_file("a", tmp_path / "target", fetched.append)
    assert sum(sent) == sum(fetched) == 3_000_000


@pytest.mark.parametrize("prefix", ["/", "/etc", "..", "a/../b", "a\\b", "a//b", "a\n", "\ud800"])
def test_hostile_prefixes_are_refused(store, prefix):
    store.put("a", b"x")
    with pytest.raises(InvalidKey):
        list(store.list(prefix))


def test_a_store_that_ignores_conditions_says_so(unconditional):
    assert conditional_put(unconditional) is None


def test_a_conditional_put_writes_if_nothing_has_changed(conditional):
    first = conditional.put_if("a", b"1", None)
    second = conditional.put_if("a", b"2", first.etag)
    assert conditional.get("a") == b"2"
    assert same(conditional.head("a"), second)


@pytest.mark.parametrize("etag", [None, "", "another"])
def test_a_conditional_put_on_another_version_writes_nothing(conditional, etag):
    before = conditional.put("a", b"old")
    with pytest.raises(PreconditionFailed) as caught:
        conditional.put_if("a", b"new", etag)
    assert caught.value.remedy
    assert same(conditional.head("a"), before)


def test_a_conditional_put_fails_if_the_object_is_gone(conditional):
    etag = conditional.put("a", b"old").etag
    conditional.delete("a")
    with pytest.raises(PreconditionFailed):
        conditional.put_if("a", b"new", etag)
    assert keys(conditional) == []


def test_a_conditional_put_leaves_no_other_object_behind(conditional):
    conditional.put_if("a", b"1", None)
    assert keys(conditional) == ["a"]
    with pytest.raises(NotFound):
        conditional.get(".lock")


def test_an_old_etag_never_comes_back(conditional):
    """Three quick writes of one length: the third must not look like the first."""
    for n in range(10):
        first = conditional.put("a", b"%04d" % n)
        conditional.put("a", b"....")
        assert conditional.put("a", b"%04d" % (n + 1)).etag != first.etag


def test_of_many_creators_exactly_one_wins(conditional):
    barrier = threading.Barrier(8)

    def create(n):
        barrier.wait()
        try:
            conditional.put_if("a", b"%d" % n, None)
        except PreconditionFailed:
            return None
        return n

    with ThreadPoolExecutor(8) as threads:
        winners = [n for n in threads.map(create, range(8)) if n is not None]
    assert len(winners) == 1
    assert conditional.get("a") == b"%d" % winners[0]


def test_no_conditional_update_is_lost(conditional):
    conditional.put("count", b"0")

    def add_five(_):
        done = 0
        while done < 5:
            info = conditional.head("count")
            number = int(conditional.get("count"))
            try:
                conditional.put_if("count", b"%d" % (number + 1), info.etag)
                done += 1
            except PreconditionFailed:
                pass

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add_five, range(4)))
    assert conditional.get("count") == b"20"


def test_a_reader_sees_the_old_or_the_new_object_and_nothing_between(store, files_left):
    versions = [bytes([n]) * 200_000 for n in range(4)]
    store.put("a", versions[0])
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for version in versions:
                store.put("a", version)

    with ThreadPoolExecutor(1) as threads:
        writer = threads.submit(write)
        try:
            seen = [store.get("a") for _ in range(100)]
            sizes = {info.size_bytes for _ in range(20) for info in store.list()}
        finally:
            stop.set()  # else a failure would wait for the writer for ever
        writer.result()
    assert all(data in versions for data in seen)
    assert sizes == {200_000}
    assert files_left("a") == set()


@pytest.mark.parametrize("kind", ["local", "seaweedfs"])
def test_nothing_is_fetched_that_would_fill_the_disk(kind, request, tmp_path):
    guard = DiskGuard(keep_free_bytes=2**60)
    store = (
        LocalStore(tmp_path / "objects", guard=guard) if kind == "local"
        else S3Store(config_of(request.getfixturevalue(kind)), guard)
    )  # fmt: skip
    store.put("a", b"x")
    with pytest.raises(DiskFull, match="don't fit") as caught:
        store.get_file("a", tmp_path / "folder" / "a")
    assert "LORADASH_MIN_FREE_DISK_MB" in caught.value.remedy
    assert not (tmp_path / "folder").exists()


class TestLocalStore:
    """What only a store on disk can get wrong."""

    @pytest.fixture
    def root(self, tmp_path):
        (tmp_path / "objects").mkdir()
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "secret").write_bytes(b"secret")
        return tmp_path / "objects"

    @pytest.fixture
    def store(self, root):
        return LocalStore(root)

    @pytest.mark.parametrize("key", ["link/secret", "link/new", "file", "link", "deep/link/secret"])
    def test_a_link_out_of_the_store_is_refused_by_every_verb(self, store, root, tmp_path, key):
        (root / "deep").mkdir()
        (root / "link").symlink_to(tmp_path / "outside")
        (root / "deep/link").symlink_to("../../outside")
        (root / "file").symlink_to("../outside/secret")
        source = tmp_path / "source"
        source.write_bytes(b"changed")
        for ask in (
            lambda: store.put(key, b"changed"),
            lambda: store.put_file(key, source),
            lambda: store.put_if(key, b"changed", None),
            lambda: store.get(key),
            lambda: store.get_file(key, tmp_path / "target"),
            lambda: store.head(key),
            lambda: store.delete(key),
        ):
            with pytest.raises(InvalidKey):
                ask()
        assert (tmp_path / "outside/secret").read_bytes() == b"secret"
        assert [path.name for path in (tmp_path / "outside").iterdir()] == ["secret"]

    def test_links_are_not_listed(self, store, root, tmp_path):
        (root / "link").symlink_to(tmp_path / "outside")
        (root / "file").symlink_to("../outside/secret")
        store.put("a", b"x")
        assert keys(store) == ["a"]

    def test_a_store_below_a_linked_folder_works(self, root, tmp_path):
        (tmp_path / "alias").symlink_to(root)
        store = LocalStore(tmp_path / "alias")
        store.put("a/b", b"x")
        assert keys(store, "a") == ["a/b"]

    def test_two_stores_of_one_folder_see_the_same_objects(self, store, root):
        info = store.put("a", b"x")
        other = LocalStore(root)
        assert other.head("a") == info
        assert other.put_if("a", b"y", info.etag).etag == store.head("a").etag

    def test_a_partial_file_is_no_object_and_no_key_can_name_it(self, store, root):
        store.put("a/b", b"x")
        (root / "a" / "\\partial-123").write_bytes(b"half")
        assert keys(store) == ["a/b"]
        with pytest.raises(InvalidKey):
            store.get("a/\\partial-123")

    def test_objects_lie_in_the_folder_under_their_keys(self, store, root):
        """So that a volume is the same store, seen as a folder or through an S3 API."""
        store.put("results/x/lora/a b.safetensors", b"x")
        assert (root / "results/x/lora/a b.safetensors").read_bytes() == b"x"
        (root / "dataset").mkdir()
        (root / "dataset/other").write_bytes(b"y")
        assert store.get("dataset/other") == b"y"

    @pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640)])
    def test_the_umask_says_who_can_read_an_object(self, store, root, tmp_path, umask, mode):
        with umask_of(umask):
            store.put("a", b"x")
            store.put_file("b", root / "a")
            store.get_file("a", tmp_path / "fetched")
        paths = (root / "a", root / "b", tmp_path / "fetched")
        assert {path.stat().st_mode & 0o777 for path in paths} == {mode}


def test_an_object_that_is_deleted_while_it_is_read_is_not_found(tmp_path, monkeypatch):
    store = LocalStore(tmp_path / "objects")
    info = store.put("a", b"x")
    existing = store._existing

    def deleted_after(key):
        path = existing(key)
        path.unlink()
        return path

    monkeypatch.setattr(store, "_existing", deleted_after)
    for read in (store.head, store.get, lambda key: store.get_file(key, tmp_path / "copy")):
        with pytest.raises(NotFound):
            read("a")
        assert store.put("a", b"x").size_bytes == info.size_bytes
    assert [path.name for path in tmp_path.iterdir()] == ["objects"]


def test_partial_files_of_killed_programs_are_removed_when_they_are_old(tmp_path):
    store = LocalStore(tmp_path)
    store.put("results/a", b"kept")
    old, young = tmp_path / "results/\\partial-old", tmp_path / "results/\\partial-young"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1000, 1000))
    os.utime(tmp_path / "results/a", (1000, 1000))
    assert store.remove_partial_files(before_s=2000) == 1
    assert (old.exists(), young.exists(), store.get("results/a")) == (False, True, b"kept")
