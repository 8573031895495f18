"""Datasets through the whole application: what is answered, with which status, and what is kept."""

import asyncio
import hashlib
import io
import json
import socket
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote

import pytest
from PIL import Image
from typer.testing import CliRunner

from loradash.api.app import create_app
from loradash.cli import dataset_target
from loradash.cli.app import app as command_line
from loradash.cli.dataset_target import LocalDatasets, ServerDatasets
from loradash.errors import LoradashError, ServerUnreachable, StoreUnavailable
from loradash.services.datasets.editing import DatasetEditor
from loradash.services.datasets.scratch import Scratch
from loradash.services.datasets.store import DatasetStore
from loradash.services.datasets.upload_checks import UploadLimits
from loradash.services.datasets.url_import import UrlImporter
from loradash.storage.local import LocalStore
from loradash.storage.memory import MemoryStore

from .world import URL, World, logged, picture

MIB = 2**20
ZIP = {"content-type": "application/zip"}


@pytest.fixture(autouse=True)
def log():
    with logged() as stream:
        yield stream


class PieceStore(MemoryStore):
    """A store whose objects are no files, and which may break in the middle of one."""

    breaks_after = 10**9

    def read(self, key, start=0, end=None):
        data = self.get(key)[start:end]
        for n in range(0, len(data), 10):
            if n >= self.breaks_after:
                raise StoreUnavailable("the network is gone")
            yield data[n : n + 10]


def make_world(root, store, limits=None):
    world = World(root, store=store)
    datasets = DatasetStore(store, limits=limits or UploadLimits(), scratch=Scratch(root / "tmp"))
    editor = DatasetEditor(store, datasets, root / "cache")
    world.services = replace(world.services, datasets=datasets, dataset_editor=editor)
    return world


@pytest.fixture(params=["pieces", "local"])
def world(request, tmp_path):
    store = PieceStore() if request.param == "pieces" else LocalStore(tmp_path / "objects")
    return make_world(tmp_path / "world", store)


@pytest.fixture
def client(world, log):
    with world.client() as client:
        yield client
    assert "request_broke" not in log.getvalue()


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def put(client, files, name="cats", **query):
    reply = client.post(f"/datasets/{name}/zip", content=zipped(files), headers=ZIP, params=query)
    assert reply.status_code == 200, reply.text
    return reply.json()


def error(reply, status, text):
    """Check an error's form; return it."""
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["error", "message"]
    assert text in reply.json()["error"]
    return reply.json()["error"]


def names(client, name="cats"):
    return [one["name"] for one in client.get(f"/datasets/{name}").json()["images"]]


def objects(world):
    return {info.key: info.etag for info in world.store.list()}


# Datasets


def test_a_dataset_is_created_described_listed_and_deleted(client, world):
    made = client.post("/datasets", json={"name": "cats", "trigger_word": "sks"})
    assert made.status_code == 201
    assert made.json()["name"] == "cats"
    version = made.json()["version"]
    changed = client.patch(
        "/datasets/cats", json={"training_name": "My  cats", "if_version": version}
    )
    assert changed.status_code == 200
    assert changed.json() == {
        **made.json(), "training_name": "My cats", "version": changed.json()["version"],
    }  # fmt: skip
    error(client.patch("/datasets/cats", json={"trigger_word": "x", "if_version": version}), 409,
          "if_version")  # fmt: skip
    assert client.get("/datasets").json() == {"datasets": [changed.json()], "next_cursor": None}
    assert client.get("/datasets/cats").json()["dataset"] == changed.json()
    error(client.post("/datasets", json={"name": "cats"}), 409, "already")
    assert client.delete("/datasets/cats").json() == {"name": "cats", "deleted_files": 0}
    error(client.get("/datasets/cats"), 404, "no dataset 'cats'")
    error(client.delete("/datasets/cats"), 404, "no dataset 'cats'")
    assert objects(world) == {}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/files/a.png"),
        ("DELETE", "/files/a.png"), ("GET", "/thumbnails/a.png"), ("GET", "/captions/a.png"),
        ("PUT", "/captions/a.png"), ("GET", "/statistics"), ("GET", "/duplicates"), ("GET", "/zip"),
        ("POST", "/remove"),
    ],
)  # fmt: skip
def test_a_dataset_that_is_not_there_is_404_and_the_nearest_is_named(client, world, method, path):
    put(client, {"a.png": picture(1)})
    before = objects(world)
    bodies = {"PATCH": {"trigger_word": "x"}, "PUT": {"text": "x"}, "POST": {"files": ["a.png"]}}
    reply = client.request(method, f"/datasets/cat{path}", json=bodies.get(method))
    error(reply, 404, "did you mean 'cats'")
    assert objects(world) == before


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/files/b.png"), ("HEAD", "/files/b.png"), ("DELETE", "/files/b.png"),
        ("GET", "/thumbnails/b.png"), ("GET", "/captions/b.png"), ("PUT", "/captions/b.png"),
        ("GET", "/captions/a.txt"), ("GET", "/thumbnails/a.txt"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_there_is_404(client, world, method, path):
    put(client, {"a.png": picture(1), "a.txt": b"a"})
    before = objects(world)
    reply = client.request(
        method, f"/datasets/cats{path}", json={"text": "x"} if method == "PUT" else None
    )
    if method == "HEAD":
        assert reply.status_code == 404
    else:
        error(reply, 404, "dataset 'cats'")
    assert objects(world) == before


@pytest.mark.parametrize("name", ["..%2Fresults", "a%2Fb", "%2E%2E", "a%5Cb", "a%00b", "a%0Ab"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_names_that_lead_elsewhere_are_refused(client, world, name, method):
    world.store.put("results/secret", b"secret")
    reply = client.request(method, f"/datasets/{name}")
    assert reply.status_code in (400, 404, 405)
    assert "secret" not in reply.text
    assert list(objects(world)) == ["results/secret"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"), ({"name": "a b"}, "name"), ({"name": 1}, "name"), ({"name": "../a"}, "name"),
        ({"name": "a", "trigger_word": "x" * 101}, "trigger_word"),
        ({"name": "a", "trigger_word": "a\0"}, "trigger_word"), ({"name": "a", "x": 1}, "x"),
        ([], ""), ("cats", ""),
    ],
)  # fmt: skip
def test_a_new_dataset_of_wrong_fields_is_refused_by_their_names(client, world, body, field):
    error(client.post("/datasets", json=body), 400, field)
    assert objects(world) == {}


def test_datasets_come_in_pages(client):
    for name in ("a", "b", "c"):
        client.post("/datasets", json={"name": name})
    first = client.get("/datasets?limit=2").json()
    assert ([one["name"] for one in first["datasets"]], first["next_cursor"]) == (["a", "b"], "b")
    second = client.get("/datasets?limit=2&cursor=b").json()
    assert ([one["name"] for one in second["datasets"]], second["next_cursor"]) == (["c"], None)


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", f"text={'x' * 201}"])
def test_pages_out_of_bounds_are_refused(client, query):
    put(client, {"a.png": picture(1)})
    error(client.get(f"/datasets/cats?{query}"), 400, query.partition("=")[0])


def test_images_come_in_pages_with_captions_and_filters(client):
    files = {f"{n}.png": picture(n) for n in range(5)}
    put(client, {**files, "1.txt": b"a red cat", "3.txt": "ein Кот".encode()})
    page = client.get("/datasets/cats?limit=2").json()
    assert [one["name"] for one in page["images"]] == ["0.png", "1.png"]
    assert page["images"][1] == {
        "name": "1.png", "size_bytes": len(files["1.png"]), "width": 16, "height": 16,
        "sha256": hashlib.sha256(files["1.png"]).hexdigest(),
        "caption": {
            "image": "1.png", "name": "1.txt", "text": "a red cat", "problem": "",
            "version": hashlib.sha256(b"a red cat").hexdigest(),
        },
    }  # fmt: skip
    rest = client.get("/datasets/cats", params={"cursor": page["next_cursor"]}).json()
    assert [one["name"] for one in rest["images"]] == ["2.png", "3.png", "4.png"]
    found = client.get("/datasets/cats", params={"text": "кот"}).json()
    assert [one["name"] for one in found["images"]] == ["3.png"]
    bare = client.get("/datasets/cats?without_caption=true").json()
    assert [one["name"] for one in bare["images"]] == ["0.png", "2.png", "4.png"]


# Files


@pytest.mark.parametrize(
    ("name", "data", "kind", "shown"),
    [
        ("a.png", picture(1), "image/png", "inline"),
        ("a.txt", b"<script>alert(1)</script>", "text/plain; charset=utf-8", "attachment"),
        ("a.json", b"{}", "application/json", "attachment"),
        ("a.yaml", b"a: 1", "application/yaml", "attachment"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_images_are_shown_and_everything_else_is_saved(client, name, data, kind, shown, method):
    put(client, {"first.png": picture(9), name: data})
    reply = client.request(method, f"/datasets/cats/files/{name}")
    assert reply.status_code == 200
    assert reply.content == (data if method == "GET" else b"")
    assert reply.headers["content-type"] == kind
    assert reply.headers["content-disposition"] == f'{shown}; filename="{name}"'
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["content-length"] == str(len(data))
    etag = reply.headers["etag"]
    assert etag == f'"{hashlib.sha256(data).hexdigest()}"'
    again = client.request(method, f"/datasets/cats/files/{name}", headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")


def test_a_page_that_calls_itself_an_image_is_never_run(client, world):
    world.store.put("dataset/cats/a.png", b"<html><script>alert(1)</script>")
    world.store.put("dataset/cats/b.svg", b"<svg onload='alert(1)'/>")
    world.store.put("dataset/cats/c.html", b"<html>")
    for name, kind, shown in (
        ("a.png", "image/png", "inline"),
        ("b.svg", "application/octet-stream", "attachment"),
        ("c.html", "application/octet-stream", "attachment"),
    ):
        headers = client.get(f"/datasets/cats/files/{name}").headers
        assert headers["content-type"] == kind
        assert headers["content-disposition"].startswith(shown)
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["my cat.png", "a#b?c.png", 'a"b.png', "кот 😀.png", "100%.png"])
def test_names_of_any_kind_are_found(client, name):
    put(client, {name: picture(1)})
    path = quote(name, safe="")
    reply = client.get(f"/datasets/cats/files/{path}")
    assert reply.content == picture(1)
    assert quote(name, safe="") in reply.headers["content-disposition"]
    assert client.put(f"/datasets/cats/captions/{path}", json={"text": "x"}).status_code == 200
    assert client.get(f"/datasets/cats/captions/{path}").json()["text"] == "x"
    assert client.get(f"/datasets/cats/thumbnails/{path}").status_code == 200
    assert len(client.delete(f"/datasets/cats/files/{path}").json()["removed"]) == 2


def test_files_of_sub_folders_are_found(client, world):
    world.store.put("dataset/cats/sub/a.png", picture(1))
    world.store.put("dataset/cats/sub/a.txt", b"a")
    assert client.get("/datasets/cats/files/sub/a.png").content == picture(1)
    assert client.get("/datasets/cats/captions/sub/a.png").json()["text"] == "a"
    assert client.get("/datasets/cats/thumbnails/sub/a.png?size=128").status_code == 200


def test_a_file_whose_object_is_damaged_is_told_before_anything_is_sent(client, world):
    put(client, {"a.png": picture(1)})
    (key,) = [key for key in objects(world) if key.endswith("a.png")]
    world.store.put(key, picture(1)[:-1])
    error(client.get("/datasets/cats/files/a.png"), 400, "gone or damaged")
    world.store.delete(key)
    error(client.get("/datasets/cats/files/a.png"), 400, "gone or damaged")


def test_files_are_removed_alone_and_together(client):
    put(client, {f"{n}.png": picture(n) for n in range(4)} | {"0.txt": b"x"})
    removed = client.delete("/datasets/cats/files/0.png").json()
    assert removed == {"removed": ["0.png", "0.txt"]}
    error(client.post("/datasets/cats/remove", json={"files": ["1.png", "9.png"]}), 404, "9.png")
    assert names(client) == ["1.png", "2.png", "3.png"]
    removed = client.post("/datasets/cats/remove", json={"files": ["1.png", "2.png"]}).json()
    assert removed == {"removed": ["1.png", "2.png"]}
    assert names(client) == ["3.png"]


@pytest.mark.parametrize("files", [[], "a.png", [1], None])
def test_a_removal_names_files(client, files):
    put(client, {"a.png": picture(1)})
    error(client.post("/datasets/cats/remove", json={"files": files}), 400, "files")
    assert names(client) == ["a.png"]


def test_thumbnails_are_webp_of_the_size_that_was_asked_for(client):
    buffer = io.BytesIO()
    Image.new("RGB", (1000, 500), "red").save(buffer, "PNG")
    put(client, {"a.png": buffer.getvalue()})
    for query, width in (("", 256), ("?size=128", 128), ("?size=512", 512)):
        reply = client.get(f"/datasets/cats/thumbnails/a.png{query}")
        assert reply.headers["content-type"] == "image/webp"
        assert reply.headers["x-content-type-options"] == "nosniff"
        with Image.open(io.BytesIO(reply.content)) as image:
            assert (image.format, image.size) == ("WEBP", (width, width // 2))
    for size in ("100", "0", "-1", "99999", "x"):
        error(client.get(f"/datasets/cats/thumbnails/a.png?size={size}"), 400, "size")


# Captions


def test_captions_are_read_and_written(client):
    put(client, {"a.png": picture(1)})
    path = "/datasets/cats/captions/a.png"
    assert client.get(path).json() == {
        "image": "a.png", "name": "a.txt", "text": None, "version": "", "problem": "",
    }  # fmt: skip
    written = client.put(path, json={"text": "кот\n", "if_version": ""})
    assert written.status_code == 200
    assert client.get(path).json() == written.json()
    assert written.json()["text"] == "кот\n"
    error(client.put(path, json={"text": "dog", "if_version": ""}), 409, "if_version")
    newer = client.put(path, json={"text": "dog", "if_version": written.json()["version"]})
    assert newer.json()["text"] == "dog"
    assert client.get("/datasets/cats/files/a.txt").content == b"dog"


@pytest.mark.parametrize(
    "text", ["x" * 64_001, "я" * 32_001, "a\0b", "\ud800", None, 1], ids=lambda text: repr(text)[:9]
)
def test_texts_that_are_no_captions_are_refused(client, world, text):
    put(client, {"a.png": picture(1)})
    before = objects(world)
    content = json.dumps({"text": text})
    headers = {"content-type": "application/json"}
    reply = client.put("/datasets/cats/captions/a.png", content=content, headers=headers)
    error(reply, 400, "text")
    assert objects(world) == before


# Numbers


def test_statistics_and_duplicates_are_answered(client):
    put(client, {"a.png": picture(1), "b.png": picture(1), "a.txt": b"a red cat"})
    found = client.get("/datasets/cats/statistics?resolution=64&step=8").json()
    assert found["buckets"] == [{"width": 16, "height": 16, "images": 2}]
    assert (found["resolution"], found["step"]) == (64, 8)
    assert found["missing_captions"] == {"count": 1, "names": ["b.png"]}
    found = client.get("/datasets/cats/duplicates").json()
    assert found == {
        "identical": [["a.png", "b.png"]], "alike": [], "max_distance": 5, "unreadable": [],
    }  # fmt: skip
    error(client.get("/datasets/cats/statistics?resolution=0"), 400, "resolution")
    error(client.get("/datasets/cats/statistics?step=0"), 400, "step")


# Zip files


def test_a_zip_file_goes_in_and_out(client, world):
    files = {"cats/a.png": picture(1), "cats/a.txt": b"a", "cats/b.md": b"x"}
    reply = put(client, files)
    assert reply["warnings"] == ["1 file of another kind is left out: cats/b.md"]
    assert reply["total_images"] == 1
    out = client.get("/datasets/cats/zip")
    assert out.headers["content-type"] == "application/zip"
    assert out.headers["content-disposition"] == 'attachment; filename="cats.zip"'
    assert out.headers["content-length"] == str(len(out.content))
    assert "content-encoding" not in out.headers
    with zipfile.ZipFile(io.BytesIO(out.content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "cats/a.png": picture(1), "cats/a.txt": b"a",
        }  # fmt: skip
    head = client.head("/datasets/cats/zip")
    assert (head.headers["content-length"], head.content) == (out.headers["content-length"], b"")
    put(client, {"b.png": picture(2)})
    assert names(client) == ["a.png", "b.png"]
    put(client, {"c.png": picture(3)}, replace="true")
    assert names(client) == ["c.png"]
    assert not list((world.root / "tmp").iterdir())


def test_a_store_that_breaks_in_the_middle_breaks_the_zip_file(tmp_path, log):
    store = PieceStore()
    world = make_world(tmp_path / "world", store)
    with world.client() as client:
        put(client, {"a.png": picture(1), "b.png": picture(2)})
        whole = client.get("/datasets/cats/zip").content
        store.breaks_after = 20
        reply = client.get("/datasets/cats/zip")
    assert reply.headers["content-length"] == str(len(whole))
    assert 0 < len(reply.content) < len(whole)
    assert "download_broke" in log.getvalue()


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "application/json", ""])
def test_what_a_form_can_send_is_not_taken_for_a_zip_file(client, world, kind):
    reply = client.post(
        "/datasets/cats/zip", content=zipped({"a.png": picture(1)}), headers={"content-type": kind}
    )
    error(reply, 400, "content-type")
    assert objects(world) == {}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "can't be read"),
        (b"no zip file", "can't be read"),
        (zipped({"../a.png": picture(1)}), "leads out"),
        (zipped({"a.md": b"x"}), "no images or captions"),
        (zipped({"a.png": b"x"}), "a.png"),
        (zipped({"é.png": picture(1), "e\u0301.png": picture(2)}), "is there twice"),
    ],
    ids=["empty", "other", "up", "nothing", "broken", "twice"],
)
def test_zip_files_that_cannot_be_used_are_refused_and_nothing_is_kept(client, world, data, text):
    error(client.post("/datasets/cats/zip", content=data, headers=ZIP), 400, text)
    assert objects(world) == {}
    assert not list((world.root / "tmp").iterdir())


@pytest.fixture
def small(tmp_path):
    limits = UploadLimits(max_file_bytes=10_000, max_upload_bytes=20_000, max_files=3)
    world = make_world(tmp_path / "world", MemoryStore(), limits)
    with world.client() as client:
        client.world = world
        yield client


def test_a_zip_file_that_is_too_large_is_413_whether_its_size_is_said_or_not(small):
    data = bytes(20_001)
    error(small.post("/datasets/cats/zip", content=data, headers=ZIP), 413, "20.0 kB")
    pieces = (data[n : n + 5000] for n in range(0, len(data), 5000))
    error(small.post("/datasets/cats/zip", content=pieces, headers=ZIP), 413, "20.0 kB")
    assert objects(small.world) == {}
    assert not list((small.world.root / "tmp").iterdir())


@pytest.mark.parametrize(("said", "read"), [([(b"content-length", b"20001")], 0), ([], 21)])
def test_a_body_that_is_too_large_is_not_read_to_its_end(small, said, read):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield bytes(1000)
            assert len(taken) < 1000

    async def ask():
        sent = []
        scope = {
            "type": "http", "method": "POST", "path": "/datasets/cats/zip", "query_string": b"",
            "headers": [
                (b"host", b"127.0.0.1:8000"), (b"content-type", b"application/zip"), *said,
            ],
            "http_version": "1.1", "scheme": "http", "root_path": "", "server": ("127.0.0.1", 8000),
            "client": ("127.0.0.1", 1), "raw_path": b"/datasets/cats/zip",
        }  # fmt: skip
        pieces = endless()

        async def receive():
            return {"type": "http.request", "body": next(pieces), "more_body": True}

        async def send(message):
            sent.append(message)

        await create_app(small.world.server())(scope, receive, send)
        return sent

    sent = asyncio.run(ask())
    assert sent[0]["status"] == 413
    assert len(taken) == read


def test_too_much_in_a_small_zip_file_is_refused(small):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", bytes(10_001))
    error(small.post("/datasets/cats/zip", content=buffer.getvalue(), headers=ZIP), 400, "a.txt")
    many = zipped({f"{n}.txt": b"" for n in range(4)})
    error(small.post("/datasets/cats/zip", content=many, headers=ZIP), 400, "4 files")
    assert objects(small.world) == {}


# Imports


@pytest.fixture
def site():
    """A web server on this machine; ``content`` is what it gives."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.server.content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_address[1]}/cat"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def importing(world, site):
    """A server that may fetch from this machine."""
    importer = UrlImporter(is_allowed=lambda address: True, ports={site.server_address[1]})
    editor = DatasetEditor(world.store, world.services.datasets, world.root / "cache", importer)
    world.services = replace(world.services, dataset_editor=editor)
    with world.client() as client:
        yield client


def test_a_zip_file_or_an_image_is_imported(importing, site):
    site.content = picture(1)
    reply = importing.post("/datasets/cats/import", json={"url": site.url})
    assert reply.json()["total_images"] == 1
    site.content = zipped({"b.png": picture(2)})
    importing.post("/datasets/cats/import", json={"url": site.url})
    assert names(importing) == ["b.png", "cat.png"]
    importing.post("/datasets/cats/import", json={"url": site.url, "replace": True})
    assert names(importing) == ["b.png"]
    site.content = b"<html>a secret</html>"
    text = error(importing.post("/datasets/cats/import", json={"url": site.url}), 400, "url: ")
    assert "secret" not in text


def test_nothing_of_this_machine_is_imported(client, world, site):
    site.content = picture(1)
    for url in (site.url, "http://127.0.0.1/", "http://localhost/", "http://169.254.169.254/x",
                "file:///etc/passwd"):  # fmt: skip
        error(client.post("/datasets/cats/import", json={"url": url}), 400, "url: ")
    assert objects(world) == {}


@pytest.mark.parametrize("body", [{}, {"url": ""}, {"url": 1}, {"url": "x" * 2001}])
def test_an_import_needs_an_address(client, body):
    error(client.post("/datasets/cats/import", json=body), 400, "url")


# Around


def test_pages_of_other_origins_change_nothing(client, world):
    put(client, {"a.png": picture(1)})
    before = objects(world)
    headers = {"origin": "https://evil.example"}
    for method, path in (("DELETE", ""), ("POST", "/zip"), ("POST", "/import"), ("PATCH", "")):
        error(client.request(method, f"/datasets/cats{path}", headers=headers), 403, "evil.example")
    assert objects(world) == before


def test_pages_of_allowed_origins_may_change_datasets(tmp_path):
    world = make_world(tmp_path, MemoryStore())
    with world.client(cors_origins=("https://ours.example",)) as client:
        headers = {"origin": "https://ours.example", "access-control-request-method": "PATCH"}
        assert client.options("/datasets/cats", headers=headers).status_code == 200


def test_the_reference_describes_every_route(client):
    described = client.get("/openapi.json").json()["paths"]
    routes = {path: set(one) for path, one in described.items() if path.startswith("/datasets")}
    name = "/datasets/{name}"
    assert routes == {
        "/datasets": {"get", "post"},
        name: {"get", "patch", "delete"},
        f"{name}/files/{{file}}": {"get", "delete"},
        f"{name}/thumbnails/{{file}}": {"get"},
        f"{name}/captions/{{file}}": {"get", "put"},
        f"{name}/statistics": {"get"},
        f"{name}/duplicates": {"get"},
        f"{name}/remove": {"post"},
        f"{name}/zip": {"get", "post"},
        f"{name}/import": {"post"},
    }


# Commands


@pytest.fixture(params=["local", "server"])
def target(request, world, client):
    """What the commands work on, in both ways."""
    if request.param == "local":
        return LocalDatasets(world.services.dataset_editor)
    return ServerDatasets(client, URL)


@pytest.fixture
def run(target, monkeypatch, tmp_path):
    """A function that runs a command; what isn't an exit code is raised."""
    from contextlib import nullcontext

    monkeypatch.setattr(dataset_target, "dataset_target", lambda settings: nullcontext(target))
    monkeypatch.chdir(tmp_path)

    def run(*arguments, **settings):
        done = CliRunner().invoke(command_line, ["datasets", *arguments], **settings)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return run


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "sent.zip"
    path.write_bytes(zipped({"a.png": picture(1), "a.txt": "кот".encode(), "b c.png": picture(2)}))
    return path


def test_commands_bring_a_zip_file_in_and_out(run, archive, tmp_path):
    done = run("import", "cats", str(archive))
    assert done.stdout.startswith("cats: Stored 2 images and 1 caption as")
    assert "warning: 1 image without a caption: b c.png" in done.stderr
    run("zip", "cats")
    run("zip", "cats", "-o", str(tmp_path / "other.zip"))
    written = (tmp_path / "cats.zip").read_bytes()
    assert (tmp_path / "other.zip").stat().st_size == len(written)
    with zipfile.ZipFile(io.BytesIO(written)) as opened:
        assert sorted(opened.namelist()) == ["cats/a.png", "cats/a.txt", "cats/b c.png"]
    (tmp_path / "one.zip").write_bytes(zipped({"c.png": picture(3)}))
    reply = json.loads(run("import", "cats", "one.zip", "--replace", "--json").stdout)
    assert reply["total_images"] == 1
    shown = run("show", "cats", "--json").stdout
    assert [one["name"] for one in json.loads(shown)["images"]] == ["c.png"]


def test_a_zip_command_that_fails_leaves_no_file(run, tmp_path):
    with pytest.raises(LoradashError, match="no dataset"):
        run("zip", "cats")
    assert not list(tmp_path.glob("*.zip"))
    assert not list(tmp_path.glob(".*partial*"))


def test_the_show_command_lists_images_with_captions_by_pages(run, archive):
    run("import", "cats", str(archive))
    shown = run("show", "cats").stdout
    assert shown.startswith("cats: 2 images, 1 caption, ")
    lines = shown.splitlines()
    assert lines[2].split() == ["a.png", "16x16", f"{len(picture(1))}", "B", "кот"]
    assert lines[3].split() == ["b", "c.png", "16x16", f"{len(picture(2))}", "B", "(none)"]
    first = run("show", "cats", "-n", "1").stdout
    assert "more with --cursor 'a.png'" in first
    assert "b c.png" not in first
    assert "b c.png" in run("show", "cats", "-n", "1", "--cursor", "a.png").stdout
    assert "no such images" in run("show", "cats", "--text", "dog").stdout


def test_the_caption_command_reads_and_writes(run, archive):
    run("import", "cats", str(archive))
    assert run("caption", "cats", "a.png").stdout == "кот\n"
    assert "no caption" in run("caption", "cats", "b c.png").stderr
    assert run("caption", "cats", "b c.png", "a dog").stdout == "wrote b c.txt\n"
    assert run("caption", "cats", "b c.png").stdout == "a dog\n"
    with pytest.raises(LoradashError, match=r"no file 'x\.png'"):
        run("caption", "cats", "x.png", "text")


def test_the_rm_command_asks_before_it_removes(run, archive):
    run("import", "cats", str(archive))
    for answer in ("n\n", ""):
        done = run("rm", "cats", input=answer)
        assert done.exit_code == 1
        assert "Remove the whole dataset cats?" in done.stderr
    assert "2 images" in run("show", "cats").stdout
    assert "removed a.png, a.txt" in run("rm", "cats", "a.png", input="y\n").stdout
    with pytest.raises(LoradashError, match=r"no file 'x\.png'"):
        run("rm", "cats", "b c.png", "x.png", "--yes")
    assert "b c.png" in run("show", "cats").stdout
    assert "deleted cats with 1 file" in run("rm", "cats", "--yes").stdout
    with pytest.raises(LoradashError, match="no dataset 'cats'"):
        run("show", "cats")


def test_an_import_of_an_address_goes_through_the_same_checks(run):
    with pytest.raises(LoradashError, match="isn't a host of the public internet"):
        run("import", "cats", "http://127.0.0.1/cats.zip")
    with pytest.raises(LoradashError, match=r"there is no file cats\.zip"):
        run("import", "cats", "cats.zip")


def test_a_server_that_is_away_is_told(monkeypatch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("LORADASH_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    for arguments in (["show", "cats"], ["zip", "cats", "-o", str(tmp_path / "x.zip")]):
        done = CliRunner().invoke(command_line, ["datasets", *arguments])
        assert isinstance(done.exception, ServerUnreachable)
    assert not list(tmp_path.iterdir())
