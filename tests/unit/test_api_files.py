"""Result files over HTTP: ranges, versions, and what happens when a store breaks in the middle."""

import contextlib
import http.client
import io
import socket
import struct
import threading
import zipfile
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

import httpx2
import psutil
import pytest
import uvicorn
from fastapi.testclient import TestClient

from loradash.api.app import create_app
from loradash.errors import StoreUnavailable
from loradash.registry.registry import StoredArtifact
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore
from loradash.storage.store import ObjectInfo

from .published import real_key
from .waits import until
from .world import MISSING, TOKEN, URL, World, adapter, logged, picture

MIB = 2**20
PIECES_BETWEEN = 32 * MIB  # what buffers of sockets and threads may hold
DATA = bytes(range(256)) * 4 + b"the end"


@pytest.fixture(autouse=True)
def log():
    with logged() as stream:
        yield stream


class PieceStore(MemoryStore):
    """A store that gives small pieces, as one behind a network does, and counts the reads."""

    def __init__(self):
        super().__init__()
        self.reads = []

    def read(self, key, start=0, end=None):
        self.reads.append((key, start, end))
        data = self.get(key)[start:end]
        return (data[n : n + 100] for n in range(0, len(data), 100))


def make_store(kind, tmp_path):
    return PieceStore() if kind == "pieces" else LocalStore(tmp_path / "objects")


@pytest.fixture(params=["pieces", "local"])
def world(request, tmp_path):
    return World(tmp_path, store=make_store(request.param, tmp_path))


@pytest.fixture
def pieces(tmp_path):
    return World(tmp_path, store=PieceStore())


def kept(world, data=DATA, kind="lora", name="cat.safetensors"):
    """A completed process with one result; return the result."""
    process_id = world.running().id
    entry = world.keep(process_id, kind, name, data)
    world.completed(process_id)
    return entry


def get(world, entry, method="GET", **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    with world.client() as client:
        return client.request(method, f"/files/{entry.key}", headers=names)


# The whole file


def test_a_file_comes_whole_with_its_size_and_version(world):
    entry = kept(world)
    response = get(world, entry)
    assert (response.status_code, response.content) == (200, DATA)
    headers = response.headers
    assert headers["content-length"] == str(len(DATA))
    assert headers["accept-ranges"] == "bytes"
    assert headers["etag"] == f'"{entry.sha256}"'
    assert headers["x-content-type-options"] == "nosniff"
    assert "content-range" not in headers


def test_an_empty_file_comes_too(world):
    response = get(world, kept(world, b""))
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == "0"


@pytest.mark.parametrize(
    ("kind", "name", "content_type", "shown"),
    [
        ("sample", "a.png", "image/png", "inline"),
        ("image", "a.jpg", "image/jpeg", "inline"),
        ("lora", "a.safetensors", "application/octet-stream", "attachment"),
        ("log", "log.txt", "text/plain; charset=utf-8", "attachment"),
        ("sample", "a.svg", "application/octet-stream", "attachment"),
        ("sample", "a.html", "application/octet-stream", "attachment"),
        ("checkpoint", "step-1/checkpoint.json", "application/json", "attachment"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_images_are_shown_and_everything_else_is_saved(
    world, kind, name, content_type, shown, method
):
    headers = get(world, kept(world, picture(), kind, name), method).headers
    assert headers["content-type"] == content_type
    saved = name.rpartition("/")[2]
    assert headers["content-disposition"] == f'{shown}; filename="{saved}"'
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["my cat.png", 'a"b.png', "ä 😀.png", "a;b=c.png", "100%.png"])
def test_a_name_of_any_kind_is_given_without_breaking_the_header(world, name):
    entry = kept(world, picture(), "sample", name)
    with world.client() as client:
        response = client.get(f"/files/{quote(entry.key)}")
    assert response.content == picture()
    named = response.headers["content-disposition"]
    assert named == f"inline; filename*=UTF-8''{quote(name, safe='')}"


def test_head_tells_the_same_as_get_and_reads_nothing(world):
    entry = kept(world)
    whole, head = get(world, entry), get(world, entry, "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "etag", "accept-ranges", "content-disposition"):
        assert head.headers[name] == whole.headers[name]
    if isinstance(world.store, PieceStore):
        assert len(world.store.reads) == 1


# Ranges

SIZE = len(DATA)
RANGES = {
    "bytes=0-0": (0, 1),
    "bytes=0-99": (0, 100),
    "bytes=99-100": (99, 101),
    "bytes=100-250": (100, 251),
    "bytes=1000-": (1000, SIZE),
    "bytes=0-": (0, SIZE),
    "bytes=-1": (SIZE - 1, SIZE),
    "bytes=-7": (SIZE - 7, SIZE),
    f"bytes=-{SIZE}": (0, SIZE),
    f"bytes=-{SIZE + 1}": (0, SIZE),
    f"bytes={SIZE - 1}-": (SIZE - 1, SIZE),
    f"bytes=5-{SIZE + 1000}": (5, SIZE),
    "bytes=5-999999999999999999": (5, SIZE),
    "Bytes=1-2": (1, 3),
}


@pytest.mark.parametrize("wanted", RANGES)
def test_a_range_is_answered_with_exactly_these_bytes(world, wanted):
    start, end = RANGES[wanted]
    entry = kept(world)
    response = get(world, entry, range=wanted)
    assert (response.status_code, response.content) == (206, DATA[start:end])
    assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert response.headers["content-length"] == str(end - start)
    assert response.headers["etag"] == f'"{entry.sha256}"'


@pytest.mark.parametrize("wanted", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE + 5}", "bytes=-0"])
def test_a_range_behind_the_end_can_not_be_satisfied(world, wanted):
    response = get(world, kept(world), range=wanted)
    assert response.status_code == 416
    assert response.headers["content-range"] == f"bytes */{SIZE}"


def test_an_empty_file_has_no_ranges(pieces):
    entry = kept(pieces, b"")
    for wanted in ("bytes=0-", "bytes=-1", "bytes=0-0"):
        response = get(pieces, entry, range=wanted)
        assert response.status_code == 416
        assert response.headers["content-range"] == "bytes */0"


@pytest.mark.parametrize(
    "wanted",
    ["bytes=0-1,5-6", "bytes=0-1, -1", "bytes=5-2", "bytes=-", "bytes=", "bytes", "items=0-1",
     "bytes=a-b", "bytes=0x1-2", "bytes=1-2-3", "bytes=--1", "bytes=+1-2", "bytes=\xb2-3",
     f"bytes={'9' * 30}-", f"bytes=0-{'9' * 5000}", ""],
    ids=lambda text: ascii(text)[:20],
)  # fmt: skip
def test_what_is_not_one_range_gets_the_whole_file(pieces, wanted):
    """Several ranges as well, which a server need not answer with parts."""
    response = get(pieces, kept(pieces), range=wanted.encode("latin-1"))
    assert (response.status_code, response.content) == (200, DATA)
    assert "content-range" not in response.headers


def test_only_what_is_asked_for_is_read_from_the_store(pieces):
    entry = kept(pieces)
    get(pieces, entry, range="bytes=100-250")
    assert pieces.store.reads == [(entry.key, 100, 251)]


def test_a_range_of_a_head_request_has_no_meaning(pieces):
    response = get(pieces, kept(pieces), "HEAD", range="bytes=0-1")
    assert response.status_code == 200
    assert response.headers["content-length"] == str(SIZE)


# Versions


def test_a_part_is_only_added_to_the_version_that_it_belongs_to(world):
    entry = kept(world)
    ours = f'"{entry.sha256}"'
    part = get(world, entry, range="bytes=1-2", if_range=ours)
    assert (part.status_code, part.content) == (206, DATA[1:3])
    for other in ('"another"', f"W/{ours}", "Tue, 15 Nov 1994 12:45:26 GMT", ours[1:-1]):
        whole = get(world, entry, range="bytes=1-2", if_range=other)
        assert (whole.status_code, whole.content) == (200, DATA), other


def test_what_the_client_has_already_is_not_sent_again(world):
    entry = kept(world)
    ours = f'"{entry.sha256}"'
    for known in (ours, f"W/{ours}", f'"x", {ours}', f'"x",W/{ours},"y"', "*"):
        for method in ("GET", "HEAD"):
            response = get(world, entry, method, if_none_match=known)
            assert (response.status_code, response.content) == (304, b""), known
            assert response.headers["etag"] == ours
    if isinstance(world.store, PieceStore):
        assert world.store.reads == []


@pytest.mark.parametrize("known", ['"another"', "", "x", '"'])
def test_another_version_than_the_client_has_is_sent(world, known):
    response = get(world, kept(world), if_none_match=known)
    assert (response.status_code, response.content) == (200, DATA)


# What can't be sent


def error_of(response):
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error", "message"]
    return response.json()["error"]


def test_an_object_that_is_gone_is_not_found(world):
    entry = kept(world)
    world.store.delete(entry.key)
    assert get(world, entry, "HEAD").status_code == 404
    response = get(world, entry)
    assert response.status_code == 404
    assert "there is no object" in error_of(response)


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x", b""])
def test_an_object_of_another_size_is_told_before_anything_is_sent(world, data):
    entry = kept(world)
    world.store.put(entry.key, data)
    for headers in ({}, {"range": "bytes=0-1"}):
        response = get(world, entry, **headers)
        assert response.status_code == 500
        assert "isn't what was stored" in error_of(response)


class AwayStore(PieceStore):
    """A store that is away for one of its verbs."""

    away = ""

    def head(self, key):
        self._raise_if("head")
        return super().head(key)

    def read(self, key, start=0, end=None):
        self._raise_if("read")
        return self._first(super().read(key, start, end))

    def _first(self, pieces):
        self._raise_if("first piece")
        yield from pieces

    def _raise_if(self, verb):
        if self.away == verb:
            raise StoreUnavailable("the store is away", remedy="Wait.")


@pytest.mark.parametrize("verb", ["head", "read", "first piece"])
def test_a_store_that_is_away_is_an_error_with_a_status_and_no_broken_file(tmp_path, verb):
    world = World(tmp_path, store=AwayStore())
    entry = kept(world)
    world.store.away = verb
    response = get(world, entry)
    assert response.status_code == 503
    assert error_of(response) == "the store is away\nWait."
    assert get(world, entry, if_none_match=f'"{entry.sha256}"').status_code == 304


# Over a real connection


@contextlib.contextmanager
def served(app, **settings):
    """Serve on a port of this machine; yield the address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", **settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            thread.join(20)
            assert not thread.is_alive()


@contextlib.contextmanager
def asked(url, **headers):
    """Send a request over a connection of its own; yield the reply, its body unread."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    try:
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.request("GET", target, headers=headers)
        with connection.getresponse() as reply:
            yield reply
    finally:
        connection.close()


class MadeStore(MemoryStore):
    """Objects of any size, made while they are read: they are nowhere in memory.

    Reading can be made to stop with an error at a byte, to end there quietly, or to wait there.
    """

    def __init__(self):
        super().__init__()
        self.sizes = {}
        self.made_bytes = 0
        self.breaks_at = self.ends_at = self.waits_at = None
        self.go_on = threading.Event()
        self.left = threading.Event()

    def head(self, key):
        size = self.sizes.get(key)
        return super().head(key) if size is None else ObjectInfo(key, size, 0.0, "made")

    def list(self, prefix=""):
        yield from super().list(prefix)
        made = [key for key in self.sizes if key.startswith(f"{prefix}/")]
        yield from (ObjectInfo(key, self.sizes[key], 0.0, "made") for key in made)

    def read(self, key, start=0, end=None):
        if key not in self.sizes:
            return super().read(key, start, end)
        return self._made(start, self.sizes[key] if end is None else end)

    def _made(self, at, end):
        try:
            while at < end:
                block = at // MIB
                piece = made_block(block)[at - block * MIB : end - block * MIB]
                if self.breaks_at is not None and at >= self.breaks_at:
                    raise StoreUnavailable("the connection broke", remedy="Try again.")
                if self.ends_at is not None and at >= self.ends_at:
                    return
                if self.waits_at is not None and at >= self.waits_at:
                    assert self.go_on.wait(60)
                at += len(piece)
                self.made_bytes += len(piece)
                yield piece
        finally:
            self.left.set()


def made_block(number):
    """The n-th MiB of each object that is made."""
    return struct.pack(">Q", number) * (MIB // 8)


def made(world, *sizes):
    """A completed generation with images of these sizes; return their entries."""
    process_id = world.running("generation", "image").id
    now = datetime.now(UTC)
    entries = []
    for n, size in enumerate(sizes):
        key = f"results/{process_id}/images/image_{n:04d}.png"
        world.store.sizes[key] = size
        entry = StoredArtifact(
            process_id=process_id, key=key, kind="image", name=f"image_{n:04d}.png",
            size_bytes=size, sha256=f"{n:064d}", created_at=now, index=n,
        )  # fmt: skip
        world.registry.put_artifacts(TOKEN, [entry])
        entries.append(entry)
    world.completed(process_id)
    return entries


@pytest.fixture
def big(tmp_path):
    return World(tmp_path, store=MadeStore())


class Memory:
    """How much more memory this process takes than at the beginning, at most."""

    def __init__(self):
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        self.more_bytes = 0

    def look(self):
        self.more_bytes = max(self.more_bytes, self._process.memory_info().rss - self._before)


@pytest.mark.parametrize("server", ["h11", "httptools"])
def test_a_large_file_passes_through_without_being_held_in_memory(big, server):
    (entry,) = made(big, 300 * MIB + 5)
    with served(create_app(big.server()), http=server) as url:
        with asked(f"{url}/files/{entry.key}", Range="bytes=0-9") as reply:  # what a start takes
            assert len(reply.read()) == 10
        memory = Memory()
        with asked(f"{url}/files/{entry.key}") as reply:
            assert reply.getheader("content-length") == str(300 * MIB + 5)
            for n in range(300):
                assert reply.read(MIB) == made_block(n)
                memory.look()
            assert reply.read() == made_block(300)[:5]
    assert memory.more_bytes < 100 * MIB


def test_no_more_is_read_from_the_store_than_the_client_takes(big):
    (entry,) = made(big, 300 * MIB)
    with served(create_app(big.server())) as url, asked(f"{url}/files/{entry.key}") as reply:
        assert reply.read(MIB) == made_block(0)
        until(lambda: big.store.made_bytes > MIB)
        settled(lambda: big.store.made_bytes)
        assert big.store.made_bytes < PIECES_BETWEEN


def settled(value):
    """Wait until a value doesn't change any more."""
    seen = [value()]

    def same():
        seen.append(value())
        return len(seen) > 5 and len(set(seen[-5:])) == 1

    until(same)


def test_a_store_that_breaks_in_the_middle_is_an_error_that_every_server_sees(big):
    (entry,) = made(big, 2 * MIB)
    big.store.breaks_at = MIB
    client = TestClient(create_app(big.server()), base_url=URL, raise_server_exceptions=True)
    with pytest.raises(RuntimeError) as caught:
        client.get(f"/files/{entry.key}")
    assert isinstance(caught.value.__cause__, StoreUnavailable)


@pytest.mark.parametrize("server", ["h11", "httptools"])
@pytest.mark.parametrize("how", ["breaks_at", "ends_at"])
@pytest.mark.parametrize("wanted", ["whole", "range"])
def test_a_store_that_breaks_in_the_middle_is_noticed_by_the_client(big, server, how, wanted):
    (entry,) = made(big, 8 * MIB)
    setattr(big.store, how, 3 * MIB)
    headers = {"range": f"bytes=5-{5 * MIB}"} if wanted == "range" else {}
    with served(create_app(big.server()), http=server) as url:
        with asked(f"{url}/files/{entry.key}", **headers) as reply:
            assert reply.status == (206 if wanted == "range" else 200)
            with pytest.raises(http.client.IncompleteRead) as caught:
                reply.read()
        assert len(caught.value.partial) == 3 * MIB - (5 if wanted == "range" else 0)
        with pytest.raises(httpx2.RemoteProtocolError):
            httpx2.get(f"{url}/files/{entry.key}", headers=headers)


def test_a_download_that_broke_goes_on_where_it_was(big, log):
    (entry,) = made(big, 4 * MIB + 77)
    with served(create_app(big.server())) as url:
        big.store.breaks_at = 2 * MIB
        with asked(f"{url}/files/{entry.key}") as reply:
            etag = reply.getheader("etag")
            with pytest.raises(http.client.IncompleteRead) as caught:
                reply.read()
        begun = caught.value.partial
        big.store.breaks_at = None
        wanted = {"range": f"bytes={len(begun)}-", "if-range": etag}
        with asked(f"{url}/files/{entry.key}", **wanted) as reply:
            assert reply.status == 206
            rest = reply.read()
    assert begun + rest == b"".join(made_block(n) for n in range(5))[: 4 * MIB + 77]
    assert '"event": "download_broke"' in log.getvalue()


@pytest.mark.parametrize("what", ["file", "zip"])
def test_a_client_that_goes_away_ends_the_reading(big, what):
    (entry,) = made(big, 300 * MIB)
    target = (
        f"files/{entry.key}" if what == "file" else f"download/zip?process_id={entry.process_id}"
    )
    with served(create_app(big.server())) as url:
        with asked(f"{url}/{target}") as reply:
            reply.read(MIB)
            assert not big.store.left.is_set()
        assert big.store.left.wait(30)
        assert big.store.made_bytes < PIECES_BETWEEN


def test_a_store_that_keeps_one_waiting_does_not_hold_up_the_others(big):
    slow, fast = made(big, 4 * MIB, MIB)
    big.store.waits_at = 2 * MIB
    with served(create_app(big.server())) as url, asked(f"{url}/files/{slow.key}") as reply:
        assert reply.read(MIB) == made_block(0)
        with asked(f"{url}/files/{fast.key}") as other:
            assert other.read() == made_block(0)
        with asked(f"{url}/queue") as other:
            assert other.status == 200
        big.store.go_on.set()
        assert len(reply.read()) == 3 * MIB


# One zip file


def zipped(client, *process_ids, method="GET", **wanted):
    query = [("process_id", one) for one in process_ids]
    return client.request(method, "/download/zip", params=[*query, *wanted.items()])


def unzipped(data):
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert file.testzip() is None
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}
        return {name: file.read(name) for name in file.namelist()}


def test_results_of_several_processes_come_as_one_zip(world):
    trained, drawn = world.trained().id, world.drawn(2).id
    lora = {f"{trained}/cat.safetensors": adapter()}
    images = {f"{drawn}/image_{n:04d}.png": picture(n) for n in range(2)}
    preview = {f"{trained}/step-000000010-0.png": picture(1)}
    with world.client() as client:
        response = zipped(client, trained, drawn)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/zip"
        assert response.headers["content-length"] == str(len(response.content))
        named = response.headers["content-disposition"]
        assert named == 'attachment; filename="loradash-results.zip"'
        assert unzipped(response.content) == lora | images | preview
        assert unzipped(zipped(client, trained, drawn, loras="false").content) == images | preview
        assert unzipped(zipped(client, trained, drawn, images="false").content) == lora
        one = zipped(client, drawn, drawn)
        assert unzipped(one.content) == images
        assert one.headers["content-disposition"] == f'attachment; filename="{drawn}.zip"'


def test_head_of_a_zip_tells_its_size_and_reads_nothing(pieces):
    drawn = pieces.drawn(2).id
    with pieces.client() as client:
        head = zipped(client, drawn, method="HEAD")
        assert pieces.store.reads == []
        whole = zipped(client, drawn)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.content))


def test_a_zip_that_can_not_be_made_is_an_error(world):
    drawn, waiting = world.drawn(2).id, world.waiting().id
    with world.client() as client:
        for ids, status in (
            ((MISSING,), 404), ((drawn, MISSING), 404), ((waiting,), 404), (("../x",), 400),
            ((), 400), ((drawn,) * 201, 400), (("x" * 1001,), 400),
        ):  # fmt: skip
            response = zipped(client, *ids)
            assert response.status_code == status, ids
            assert error_of(response)
        assert zipped(client, drawn, images="perhaps").status_code == 400
        assert zipped(client, drawn, images="false").status_code == 404
        gone = real_key(world.store, f"results/{drawn}/images/image_0001.png")
        world.store.delete(gone)
        response = zipped(client, drawn)
        assert response.status_code == 404
        assert gone in error_of(response)


def test_a_reply_to_a_bulk_download_leads_to_the_zip(world):
    trained, drawn = world.trained().id, world.drawn(3).id
    url = world.ask("bulk_download", process_ids=[trained, drawn])["zip_url"]
    with world.client() as client:
        assert len(unzipped(client.get(url).content)) == 5


def test_a_link_for_images_that_are_too_large_for_a_reply_leads_to_them(tmp_path):
    world = World(tmp_path, store=PieceStore(), max_inline_bytes=100)
    drawn = world.drawn(3).id
    reply = world.ask("download", process_id=drawn)
    with world.client() as client:
        data = client.get(reply["url"]).content
    assert len(data) == reply["size"]
    assert set(unzipped(data)) == {f"{drawn}/image_{n:04d}.png" for n in range(3)}


def test_a_large_zip_passes_through_without_being_held_in_memory(big, tmp_path):
    entries = made(big, 100 * MIB + 3, 0, 100 * MIB, 100 * MIB)
    path = tmp_path / "big.zip"
    with served(create_app(big.server())) as url:
        target = f"{url}/download/zip?process_id={entries[0].process_id}"
        with asked(f"{url}/files/{entries[0].key}", Range="bytes=0-9") as reply:
            assert len(reply.read()) == 10
        memory = Memory()
        with asked(target) as reply, path.open("wb") as file:
            length = int(reply.getheader("content-length"))
            while piece := reply.read(MIB):
                file.write(piece)
                memory.look()
    assert memory.more_bytes < 100 * MIB
    assert path.stat().st_size == length
    with zipfile.ZipFile(path) as archive:
        assert [info.file_size for info in archive.infolist()] == [
            one.size_bytes for one in entries
        ]
        with archive.open(archive.namelist()[0]) as file:
            for n in range(100):
                assert file.read(MIB) == made_block(n)
            assert file.read() == made_block(100)[:3]
        assert archive.testzip() is None


@pytest.mark.parametrize("how", ["breaks_at", "ends_at"])
def test_a_store_that_breaks_in_the_middle_of_a_zip_is_noticed_by_the_client(big, how):
    entries = made(big, MIB, 4 * MIB)
    setattr(big.store, how, 2 * MIB)
    with served(create_app(big.server())) as url:
        target = f"{url}/download/zip?process_id={entries[0].process_id}"
        with asked(target) as reply, pytest.raises(http.client.IncompleteRead):
            reply.read()
