"""What the upload command sends, and what it does about files that don't arrive."""

import io
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from loradash.cli import dataset_upload
from loradash.cli.backend import HttpBackend
from loradash.cli.dataset_upload import files_to_upload, upload_files
from loradash.errors import InvalidDataset, ServerUnreachable, TransferFailed
from loradash.services.datasets.upload_plan import PlannedFile

from .dataset_listing import names_of
from .world import World, picture


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "world")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "Cats"
    folder.mkdir()
    for n in range(30):
        (folder / f"{n:02d}.PNG").write_bytes(picture(n))
        (folder / f"{n:02d}.txt").write_text(f"cat {n}")
    (folder / ".hidden.png").write_bytes(picture())
    (folder / "notes.md").write_text("no")
    (folder / "sub").mkdir()
    (folder / "sub" / "deep.png").write_bytes(picture())
    return folder


class Target:
    """A backend that puts files where the plan says, except for those of certain names."""

    def __init__(self, world, failing=(), attempts=99):
        self.world, self.failing, self.attempts = world, failing, attempts
        self.tried, self.sent = [], []

    def ask(self, **request):
        reply = self.world.dispatcher.answer(request)
        assert list(reply) != ["error"], reply
        return reply

    def send(self, entry, path, on_bytes):
        self.tried.append(path.name)
        on_bytes(path.stat().st_size // 2)
        if path.name in self.failing and self.tried.count(path.name) <= self.attempts:
            raise TransferFailed("refused with 503: slow down")
        self.world.store.put_file(entry.key, path)
        on_bytes(path.stat().st_size - path.stat().st_size // 2)
        self.sent.append(path.name)


def upload(target, folder, **fields):
    fields = {"name": "Cats", "trigger_word": "sks", "add": False, **fields}
    return upload_files(target, files_to_upload(folder), **fields)


def test_images_and_captions_of_a_folder_are_sent_and_the_rest_is_named(world, folder):
    target = Target(world)
    reply = upload(target, folder)
    assert (reply["total_images"], reply["total_captions"]) == (31, 30)
    assert reply["warnings"][:2] == [
        "1 hidden file or folder is left out: .hidden.png; what begins with a dot isn't looked at",
        "1 file of another kind is left out: notes.md",
    ]
    assert [one["reason"] for one in reply["left_out"]] == ["hidden", "other_kind"]
    assert world.datasets.details.content("Cats", "sub/deep.png") == picture()
    assert reply["trigger_word"] == "sks"
    assert world.datasets.details.content("Cats", "07.PNG") == picture(7)
    assert len(target.sent) == 61


def test_a_file_that_fails_is_named_and_the_others_are_sent(world, folder):
    target = Target(world, failing=("03.PNG", "11.txt"))
    with pytest.raises(TransferFailed, match="2 of 61 files failed") as caught:
        upload(target, folder)
    assert [text.partition(": ")[0] for text in caught.value.problems] == ["03.PNG", "11.txt"]
    assert "slow down" in caught.value.problems[0]
    assert len(target.sent) == 59
    assert names_of(world.datasets) == ()
    again = Target(world)
    upload(again, folder)
    assert sorted(again.tried) == ["03.PNG", "11.txt"]
    assert world.datasets.details.for_training("Cats").total_images == 31


def test_a_file_that_fails_once_is_tried_again(world, folder):
    target = Target(world, failing=("03.PNG",), attempts=1)
    assert upload(target, folder)["total_images"] == 31
    assert target.tried.count("03.PNG") == 2


def test_what_the_dataset_holds_is_not_sent(world, folder):
    upload(Target(world), folder)
    (folder / "07.txt").write_text("another")
    again = Target(world)
    assert upload(again, folder)["unchanged_files"] == 60
    assert again.tried == ["07.txt"]


def test_a_name_without_any_letter_that_a_folder_may_have_is_always_the_same_folder(world, folder):
    names = {upload(Target(world), folder, name="Мои коты")["dataset_folder"] for _ in range(2)}
    other = upload(Target(world), folder, name="Мои псы")["dataset_folder"]
    assert len(names) == 1
    assert other not in names
    assert world.datasets.details.manifest(other).training_name == "Мои псы"


@pytest.mark.parametrize("kind", ["missing", "empty", "a file"])
def test_a_folder_without_images_is_refused(tmp_path, kind):
    folder = tmp_path / "x"
    if kind == "empty":
        folder.mkdir()
    elif kind == "a file":
        folder.write_text("x")
    with pytest.raises(InvalidDataset) as caught:
        files_to_upload(folder)
    assert caught.value.remedy


def test_progress_goes_to_a_terminal_and_counts_each_byte_once(world, folder, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown = Terminal()
    monkeypatch.setattr("sys.stderr", shown)
    seen = []
    original = dataset_upload._send

    def watched(target, one, on_bytes):
        def count(more):
            seen.append(more)
            on_bytes(more)

        original(target, one, count)

    monkeypatch.setattr(dataset_upload, "_send", watched)
    upload(Target(world, failing=("03.PNG",), attempts=1), folder)
    total = sum(file.path.stat().st_size for file in files_to_upload(folder).files)
    assert sum(seen) == total
    assert "sending" in shown.getvalue()


# Over HTTP


@contextmanager
def serving(answer):
    """A server that answers each PUT with (status, body); yields its address and what came."""
    came = []

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self):
            length = self.headers["content-length"]
            body = self.rfile.read(int(length)) if length else b""
            came.append((self.path, dict(self.headers), body))
            status, text = answer(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def planned(url, headers=None):
    return PlannedFile(filename="a", key="k", state="send", url=url, headers=headers or {})


def test_a_file_is_sent_as_the_signature_wants_it(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(picture() * 1000)
    headers = {"Content-Type": "image/png", "Content-Length": str(path.stat().st_size)}
    counted = []
    with serving(lambda _body: (200, b"")) as (url, came), HttpBackend("http://unused") as backend:
        entry = planned(f"{url}/bucket/a.png?X-Amz-Signature=x", headers)
        backend.send(entry, path, counted.append)
    ((where, got, body),) = came
    assert where == "/bucket/a.png?X-Amz-Signature=x"
    assert body == path.read_bytes()
    lower = [name.lower() for name in got]
    assert lower.count("content-length") == lower.count("content-type") == 1
    assert "transfer-encoding" not in lower
    assert got.get("content-type", got.get("Content-Type")) == "image/png"
    assert sum(counted) == len(body)


def test_an_empty_file_is_sent(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"")
    with serving(lambda _body: (200, b"")) as (url, came), HttpBackend("http://unused") as backend:
        backend.send(planned(url), path, lambda _bytes: None)
    assert [
        (body, got.get("content-length", got.get("Content-Length"))) for _, got, body in came
    ] == [(b"", "0")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"error": "more than was announced"}', "more than was announced"),
        (
            b"<Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>",
            "Reduce your",
        ),
        (b"<html>", "Service Unavailable"),
        (b"[3]", "Service Unavailable"),
        (b"", "Service Unavailable"),
    ],
)
def test_a_refusal_says_why_and_shows_no_signature(tmp_path, text, words):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x")
    with serving(lambda _body: (503, text)) as (url, _), HttpBackend("http://unused") as backend:
        entry = planned(f"{url}/a?X-Amz-Signature=secret")
        with pytest.raises(TransferFailed, match="refused with 503") as caught:
            backend.send(entry, path, lambda _bytes: None)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_gone_is_told_without_a_signature(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x")
    with serving(lambda _body: (200, b"")) as (url, _):
        pass
    with HttpBackend("http://unused") as backend:
        entry = planned(f"{url}/a?X-Amz-Signature=secret")
        with pytest.raises(ServerUnreachable) as caught:
            backend.send(entry, path, lambda _bytes: None)
    assert "secret" not in str(caught.value)
