"""The object store in a bucket at the end of a line that breaks; boto3 looks past that line."""

import filecmp
import json
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loradash.errors import MAX_PROBLEMS, StoreUnavailable
from loradash.resilience.circuit import Policy
from loradash.storage.s3.store import S3Store
from loradash.storage.transfer import Transfer, get_files, put_files
from tests.servers.fault_proxy import FAULTS, FaultProxy

from .buckets import QUICK, config_of

MIB = 2**20
SHARE = 0.3
SMALL, LARGE = 200, 2
TIMEOUT_S, STALL_S = 1.5, 3.0
STEADY = QUICK._replace(failures_to_open=100)  # a busy machine's pause is not what is tested


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Many small files, some of them empty, and two that are sent in three parts."""
    folder, chance = tmp_path_factory.mktemp("files"), random.Random(0)
    sizes = [chance.choice((0, 200, 3_000, 60_000)) for _ in range(SMALL)]
    made = []
    for number, size in enumerate([*sizes, *(11 * MIB + number for number in range(LARGE))]):
        path = folder / f"{number:03d}.png"
        path.write_bytes(chance.randbytes(size))
        made.append(Transfer(f"files/{path.name}", path, size))
    return made


@pytest.fixture
def bucket(seaweedfs):
    name = seaweedfs.new_bucket()
    seaweedfs.client().put_object(Bucket=name, Key="first")  # this one may take a second
    return name


@pytest.fixture
def proxy(seaweedfs):
    with FaultProxy(seaweedfs.endpoint_url, stall_s=STALL_S) as proxy:
        yield proxy


@pytest.fixture
def store_with(seaweedfs, bucket, proxy):
    """Make stores at the far end of the line."""
    made = []

    def make(**options):
        options = {"timeout_s": TIMEOUT_S, "part_bytes": 5 * MIB, **options}
        options = {"endpoint_url": proxy.url, **options}
        config = config_of(seaweedfs, bucket=bucket, **options)
        made.append(S3Store(config))
        return made[-1]

    yield make
    for store in made:
        store.close()


def contents(server, bucket, files):
    """What is really there, by key; keys without an object are left out."""
    client = server.client()

    def read(file):
        try:
            return client.get_object(Bucket=bucket, Key=file.key)["Body"].read()
        except client.exceptions.NoSuchKey:
            return None

    with ThreadPoolExecutor(8) as threads:
        found = zip(files, threads.map(read, files), strict=True)
        return {file.key: content for file, content in found if content is not None}


def check_report(outcomes, files, retries):
    """Each file is either done or failed, and those that failed are named."""
    done, failed = ([item for item, _ in some] for some in (outcomes.done, outcomes.failed))
    assert sorted([*done, *failed]) == sorted(files)
    if retries:
        assert len(failed) <= 3, "four tries, and once more at the end, are rarely too few"
    else:
        assert len(failed) >= 3, "so many are too few, or the line isn't as bad as it should be"
    if failed:
        with pytest.raises(
            StoreUnavailable, match=f"{len(failed)} of {len(files)} files"
        ) as caught:
            outcomes.or_raise("transfer", lambda file: file.key)
        assert [line.partition(": ")[0] for line in caught.value.problems] == [
            file.key for file in failed
        ]
    return done, failed


def until_all_are_done(store, files, transfer):
    """Repeat a transfer, each time with what has failed."""
    deadline = time.monotonic() + 60
    while files:
        assert time.monotonic() < deadline
        files = [file for file, _ in transfer(store, files).failed]


@pytest.mark.parametrize("retries", [3, 0])
def test_what_is_said_to_have_been_sent_is_there(
    seaweedfs, bucket, proxy, store_with, files, retries
):
    store = store_with(policy=STEADY._replace(retries=retries))
    proxy.disturb(SHARE)
    proxy.fail_next("error_in_200", operations=["CompleteMultipartUpload"])
    told = []
    outcomes = put_files(store, files, on_progress=told.append)
    assert len(proxy.faults) >= len(FAULTS) - 3, "nearly all that a line can do has been done"
    done, failed = check_report(outcomes, files, retries)
    there = contents(seaweedfs, bucket, files)
    for file, info in outcomes.done:
        assert there[file.key] == file.path.read_bytes()
        assert info.size_bytes == file.size_bytes
    assert told[-1].done_files == len(done)
    assert told[-1].done_bytes == sum(file.size_bytes for file in done)
    for file in failed:
        if file.key in there:
            assert there[file.key] == file.path.read_bytes(), "whole or not at all"

    # The same again, by a caller that leaves out what is done: only the rest is sent.
    proxy.forget()
    rest = {file.key for file in failed}
    until_all_are_done(store_with(policy=STEADY), failed, put_files)
    named = {seen.path.partition("?")[0].partition(f"/{bucket}/")[2] for seen in proxy.requests}
    # A look at the bucket, after an answer that could come from wrong settings, names no file.
    assert named - {""} == rest
    assert contents(seaweedfs, bucket, files) == {
        file.key: file.path.read_bytes() for file in files
    }


@pytest.mark.parametrize("retries", [3, 0])
def test_what_is_said_to_have_been_fetched_is_here(
    seaweedfs, bucket, proxy, store_with, files, tmp_path, retries
):
    with S3Lines(seaweedfs, bucket) as direct:
        assert not put_files(direct, files).failed
    store = store_with(policy=STEADY._replace(retries=retries))
    proxy.disturb(SHARE)
    wanted = [file._replace(path=tmp_path / "new" / file.path.name) for file in files]
    told = []
    outcomes = get_files(store, wanted, on_progress=told.append)
    assert len(proxy.faults) >= len(FAULTS) - 3, "nearly all that a line can do has been done"
    done, failed = check_report(outcomes, wanted, retries)
    here = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert here == {file.path.name: original(files, file).read_bytes() for file in done}
    assert told[-1].done_files == len(done)
    assert told[-1].done_bytes == sum(file.size_bytes for file in done)

    until_all_are_done(store_with(policy=STEADY), failed, get_files)
    for file in wanted:
        assert file.path.read_bytes() == original(files, file).read_bytes()


def original(files, copy):
    return next(file.path for file in files if file.key == copy.key)


class S3Lines:
    """A store without a proxy in between."""

    def __init__(self, server, bucket):
        self._store = S3Store(config_of(server, bucket=bucket, part_bytes=5 * MIB))

    def __enter__(self):
        return self._store

    def __exit__(self, *_):
        self._store.close()


# A server that is away


def fail_until_open(store):
    for _ in range(QUICK.failures_to_open):
        if store.state.state == "open":
            return
        with pytest.raises(StoreUnavailable):
            store.get("a")
    assert store.state.state == "open"


def wait_until_half_open(store):
    deadline = time.monotonic() + 10
    while store.state.state == "open":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert store.state.state == "half_open"


def test_a_server_that_only_fails_is_left_alone_for_a_while(proxy, store_with):
    store = store_with()
    store.put("a", b"x")
    proxy.disturb(1.0, ["503"])
    fail_until_open(store)
    assert store.state.failures == QUICK.failures_to_open
    assert "503" in store.state.last_error
    assert 0 < store.state.next_try_s <= 1
    proxy.forget()
    for ask in (
        lambda: store.get("a"),
        lambda: store.head("a"),
        lambda: store.put("a", b"y"),
        lambda: store.delete("a"),
        lambda: list(store.list()),
        lambda: store.capabilities,
        lambda: store.begin_upload("a", content_type="a/b"),
    ):
        with pytest.raises(StoreUnavailable, match="doesn't answer") as caught:
            ask()
        assert caught.value.remedy
    assert store.state.state == "open", "this test was too slow to mean anything"
    assert proxy.requests == []

    wait_until_half_open(store)
    with pytest.raises(StoreUnavailable):
        store.get("a")
    assert len(proxy.requests) == 1, "one look, and it isn't repeated"
    assert store.state.state == "open"

    proxy.calm()
    wait_until_half_open(store)
    assert store.get("a") == b"x"
    assert store.state == ("closed", 0, store.state.retries, 0.0, "")


def test_a_server_that_was_away_is_found_again(proxy, store_with):
    store = store_with()
    store.put("a", b"x")
    with proxy.down():
        fail_until_open(store)
    wait_until_half_open(store)
    assert store.get("a") == b"x"
    assert store.state.state == "closed"
    assert store.put_if("b", b"y", None).size_bytes == 1


def test_many_files_to_a_server_that_is_away_fail_soon_and_by_name(proxy, store_with, files):
    store = store_with(policy=QUICK._replace(open_s=60))
    begun = time.monotonic()
    with proxy.down():
        outcomes = put_files(store, files)
    assert time.monotonic() - begun < 10
    assert [file for file, _ in outcomes.failed] == files
    with pytest.raises(StoreUnavailable, match=f"{len(files)} of {len(files)}") as caught:
        outcomes.or_raise("upload", lambda file: file.key)
    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert caught.value.problems[-1] == f"and {len(files) - MAX_PROBLEMS} more"


def test_a_moment_that_breaks_all_connections_fails_no_file(proxy, store_with, files):
    """As when a router starts again: all that is under way fails at once, and nothing after it."""
    store = store_with(policy=Policy())
    store.put("a", b"x")
    proxy.delay_s = 0.05  # so that 16 are under way
    with ThreadPoolExecutor(1) as threads:
        sending = threads.submit(put_files, store, files)
        while proxy.count("PutObject") < 50:
            time.sleep(0.005)
        with proxy.down():
            pass
        assert [file.key for file, _ in sending.result().failed] == []


# Memory

FILE_BYTES = 300 * 10**6
LIMIT_BYTES = 300 * 10**6
CHILD = """
import json, re, sys
from pathlib import Path
from loradash.storage.s3.config import S3Config
from loradash.storage.s3.store import S3Store

job = json.load(sys.stdin)
store = S3Store(S3Config(**job["config"]))
getattr(store, job["verb"])("large", Path(job["path"]))
store.close()
status = Path("/proc/self/status").read_text()  # getrusage would tell the parent's if that has more
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) * 1024)
"""


def memory_of(verb, path, server, bucket):
    """Let another process send or fetch a file; return the most memory that it had, in bytes."""
    config = {
        "bucket": bucket,
        "access_key_id": server.access_key_id,
        "secret_access_key": server.secret_access_key,
        "endpoint_url": server.endpoint_url,
    }
    job = json.dumps({"verb": verb, "path": str(path), "config": config})
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=job, capture_output=True, text=True, timeout=300,
        check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells it")
def test_a_large_file_takes_little_memory(seaweedfs, bucket, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:  # mostly holes, but no two parts are the same
        for offset in range(0, FILE_BYTES, MIB):
            file.seek(offset)
            file.write(b"%d" % offset)
        file.truncate(FILE_BYTES)
    assert memory_of("put_file", source, seaweedfs, bucket) < LIMIT_BYTES
    assert memory_of("get_file", target, seaweedfs, bucket) < LIMIT_BYTES
    assert filecmp.cmp(source, target, shallow=False)
    seaweedfs.delete_bucket(bucket)


def test_records_are_reachable_soon_after_an_outage_that_answered_nothing(store_with, proxy):
    """Whoever looks after it takes away what its owner hasn't renewed within the lease."""
    store = store_with(timeout_s=60)
    records = store.prompt(0.5)
    records.put("record", b"1")
    proxy.stall_s = 60
    proxy.fail_next("stall_before")
    began_s = time.monotonic()
    assert records.get("record") == b"1"  # by another request than the one without an answer
    assert time.monotonic() - began_s < 30
    assert records.capabilities == store.capabilities
    store.close()
    with pytest.raises(StoreUnavailable):
        for _ in range(2):
            proxy.fail_next("500", 10)
            records.list("x").__next__()


def test_a_name_that_can_not_be_resolved_is_an_outage_for_files_and_records(store_with):
    store = store_with(endpoint_url="http://nowhere.invalid:9000")
    for work in (
        lambda: store.get("a"),
        lambda: next(store.list("a")),
        lambda: store.prompt(1).put("a", b""),
    ):
        with pytest.raises(StoreUnavailable):
            work()
