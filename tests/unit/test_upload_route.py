"""Files of an upload that are sent to our own server, through the whole application."""

import asyncio
import hashlib
from urllib.parse import quote, urlsplit

import pytest

from loradash.api.app import create_app
from loradash.api.bodies import _PIECE_BYTES
from loradash.domain.ids import new_upload_id
from loradash.errors import DiskFull
from loradash.services.datasets.scratch import Scratch
from loradash.storage.local import LocalStore

from .world import World, logged, picture


@pytest.fixture(autouse=True)
def log():
    with logged() as stream:
        yield stream


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path, store=LocalStore(tmp_path / "objects"))
    world.datasets.scratch = Scratch(tmp_path / "scratch")
    return world


@pytest.fixture
def client(world):
    with world.client() as client:
        yield client


def content(name):
    return b"a caption" if name.endswith(".txt") else picture(len(name))


def create(world, *names, folder="cats", size=None):
    files = [
        {"filename": name, "size": len(content(name)) if size is None else size} for name in names
    ]
    plan = world.ask("create_upload", dataset_folder=folder, cleanup_existing=False, files=files)
    assert "error" not in plan
    return plan


def address(plan, name="1.png"):
    return f"/uploads/{plan['dataset_folder']}/{plan['upload_id']}/{quote(name, safe='')}"


def stored(world):
    return {info.key: world.store.get(info.key) for info in world.store.list("dataset")}


def test_what_is_sent_to_the_urls_of_the_plan_becomes_a_dataset(world, client):
    names = ["1.png", "a b#&.png", "кот.txt"]
    plan = create(world, *names)
    for one in plan["files"]:
        response = client.put(
            urlsplit(one["url"]).path, content=content(one["filename"]), headers=one["headers"]
        )
        assert response.status_code == 200, response.text
        assert response.json() == {
            "filename": one["filename"], "key": one["key"], "size": len(content(one["filename"])),
        }  # fmt: skip
    reply = world.ask("complete_upload", dataset_folder="cats", upload_id=plan["upload_id"])
    assert reply["total_images"] == 2
    for name in names:
        assert world.datasets.details.content("cats", name) == content(name)


def test_a_file_may_be_sent_again(world, client):
    plan = create(world, "1.png")
    other = bytes(reversed(content("1.png")))
    for data in (other, content("1.png")):
        assert client.put(address(plan), content=data).status_code == 200
    assert world.store.get(plan["files"][0]["key"]) == content("1.png")


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("more", [1, 5_000_000])
def test_a_file_that_is_larger_than_announced_is_refused(world, client, chunked, more):
    plan = create(world, "1.png")
    before = stored(world)
    data = content("1.png") + b"x" * more
    body = iter([data[:1000], data[1000:]]) if chunked else data
    response = client.put(address(plan), content=body)
    assert response.status_code == 413
    assert "that were announced" in response.json()["error"]
    assert stored(world) == before
    assert list((world.root / "scratch").glob("*")) == []


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("data", [b"", b"x"])
def test_a_file_that_is_smaller_than_announced_is_refused(world, client, chunked, data):
    plan = create(world, "1.png")
    before = stored(world)
    response = client.put(address(plan), content=iter([data]) if chunked else data)
    assert response.status_code == 400
    assert "were announced" in response.json()["error"]
    assert stored(world) == before
    assert list((world.root / "scratch").glob("*")) == []


def test_a_large_file_arrives_whole(world, client):
    data = bytes(range(256)) * (3 * _PIECE_BYTES // 256) + b"the end"
    plan = create(world, "1.png", size=len(data))
    pieces = (data[n : n + 70_001] for n in range(0, len(data), 70_001))
    assert client.put(address(plan), content=pieces).status_code == 200
    arrived = world.store.get(plan["files"][0]["key"])
    assert hashlib.sha256(arrived).digest() == hashlib.sha256(data).digest()


def test_an_empty_file_may_be_sent(world, client):
    plan = create(world, "1.txt", size=0)
    assert client.put(address(plan, "1.txt"), content=b"").status_code == 200
    assert world.store.get(plan["files"][0]["key"]) == b""


def put_by_hand(world, plan, messages, *headers):
    """Send these messages to the application; return the reply's status and how many it read."""
    app = create_app(world.server())
    path = address(plan)
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "PUT",
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
        "root_path": "", "headers": [(b"host", b"127.0.0.1"), *headers],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
    }  # fmt: skip
    messages = iter(messages)
    read, sent = [], []

    async def receive():
        read.append(next(messages))
        return read[-1]

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], len(read)


def part(data):
    return {"type": "http.request", "body": data, "more_body": True}


def test_a_client_that_goes_away_leaves_nothing(world, log):
    plan = create(world, "1.png")
    before = stored(world)
    messages = [part(content("1.png")[:10]), {"type": "http.disconnect"}]
    assert put_by_hand(world, plan, messages) == (400, 2)
    assert stored(world) == before
    assert list((world.root / "scratch").glob("*")) == []
    assert "request_broke" not in log.getvalue()


def test_a_file_that_says_it_is_too_large_is_not_read(world):
    plan = create(world, "1.png")
    length = b"content-length", b"%d" % (len(content("1.png")) + 1)
    assert put_by_hand(world, plan, [], length) == (413, 0)


def test_a_file_without_end_is_read_no_further_than_it_may_be_large(world):
    plan = create(world, "1.png", size=1000)
    parts = [part(b"x" * 400) for _ in range(1000)]
    assert put_by_hand(world, plan, parts) == (413, 3)
    assert list((world.root / "scratch").glob("*")) == []


@pytest.mark.parametrize(
    "path",
    [
        "/uploads/cats/{id}/2.png",
        "/uploads/cats/{id}/_upload.json",
        "/uploads/cats/{id}/..%2F1.png",
        "/uploads/cats/{id}/%2e%2e",
        "/uploads/cats/{id}/a%00.png",
        "/uploads/cats/{id}/sub/1.png",
        "/uploads/cats/{other}/1.png",
        "/uploads/cats/x/1.png",
        "/uploads/cats/%2e%2e/1.png",
        "/uploads/dogs/{id}/1.png",
        "/uploads/..%2Fcats/{id}/1.png",
        "/uploads/%2e%2e/{id}/1.png",
        "/uploads/cats%5C..%5Cdogs/{id}/1.png",
        "/uploads/cats/{id}/" + "x" * 300,
        "/uploads/" + "x" * 300 + "/{id}/1.png",
    ],
)
def test_nothing_can_be_sent_that_was_not_announced(world, client, path):
    plan = create(world, "1.png")
    before = world.everything()
    path = path.format(id=plan["upload_id"], other=new_upload_id())
    response = client.put(path, content=content("1.png"))
    assert response.status_code in (400, 404)
    assert set(response.json()) == {"error", "message"}
    assert world.everything() == before


def test_nothing_can_be_sent_to_an_upload_that_has_ended(world, client):
    plan = create(world, "1.png")
    assert client.put(address(plan), content=content("1.png")).status_code == 200
    of_upload = {"dataset_folder": "cats", "upload_id": plan["upload_id"]}
    assert "error" not in world.ask("complete_upload", **of_upload)
    response = client.put(address(plan), content=bytes(reversed(content("1.png"))))
    assert response.status_code == 409
    assert world.datasets.details.content("cats", "1.png") == content("1.png")
    plan = create(world, "2.png")
    world.ask("abort_upload", dataset_folder="cats", upload_id=plan["upload_id"])
    assert client.put(address(plan, "2.png"), content=content("2.png")).status_code == 404


def test_a_file_may_be_larger_than_requests_may(world):
    """It isn't held in memory, and has a limit of its own."""
    data = b"x" * 2_000_000
    plan = create(world, "1.png", size=len(data))
    with world.client(max_request_bytes=2**20) as client:
        pieces = iter([data[:1_000_000], data[1_000_000:]])
        assert client.put(address(plan), content=pieces).status_code == 200
        body = {"input": {"type": "health", "padding": "x" * 2_000_000}}
        assert client.post("/v2/local/runsync", json=body).status_code == 413
    assert world.store.get(plan["files"][0]["key"]) == data


def test_pages_of_others_can_send_nothing(world, client):
    plan = create(world, "1.png")
    before = stored(world)
    origin = {"origin": "https://evil.example"}
    assert client.put(address(plan), content=content("1.png"), headers=origin).status_code == 403
    asked = {**origin, "access-control-request-method": "PUT"}
    assert client.options(address(plan), headers=asked).status_code == 403
    assert stored(world) == before


def test_pages_that_are_allowed_can_send_files(world):
    plan = create(world, "1.png")
    origin = {"origin": "https://mine.example"}
    with world.client(cors_origins=("https://mine.example",)) as client:
        asked = {
            **origin, "access-control-request-method": "PUT",
            "access-control-request-headers": "content-type",
        }  # fmt: skip
        answer = client.options(address(plan), headers=asked)
        assert answer.status_code == 200
        assert "PUT" in answer.headers["access-control-allow-methods"]
        sent = client.put(
            address(plan), content=content("1.png"),
            headers={**origin, "content-type": "image/png"},
        )  # fmt: skip
        assert sent.status_code == 200
        assert sent.headers["access-control-allow-origin"] == "https://mine.example"


def test_a_disk_that_is_full_is_the_servers_fault(world, client, monkeypatch):
    plan = create(world, "1.png")

    def full(*_):
        raise DiskFull("no room", remedy="Free space.")

    monkeypatch.setattr(world.services.uploads, "receive", full)
    response = client.put(address(plan), content=content("1.png"))
    assert response.status_code == 507
    assert "Free space." in response.json()["error"]
