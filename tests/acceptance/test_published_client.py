"""The published dashboard's downloads, by the requests that it sends and the fields that it reads.

It runs in its RunPod mode, knows no process but by what lists show, and saves what comes under the
name that comes with it. Each file must be the one that was clicked.
"""

import base64
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.acceptance.conftest import CommandLine, Server, draw_dataset, training, upload
from tests.acceptance.test_s3 import Bucket, a_server
from tests.servers.seaweedfs import SeaweedServer

pytestmark = pytest.mark.slow

Input = dict[str, Any]
SHORT = {"steps": 4, "save_every": 4, "sample_every": 4, "sample_prompts": ["a sks triangle"]}


class Dashboard:
    """The client: `ask` is its one way of asking."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return what the client takes for its data."""
        reply = self._server.call("/api.runpod.ai/v2/local/runsync", {"input": request})
        assert reply.status_code == 200, reply.text
        body = reply.json()
        data: dict[str, Any] = body.get("output") or body
        return data

    def save(self, **request: Any) -> tuple[str, bytes]:
        """Return the name and the content of the file that the browser saves."""
        data = self.ask(**request)
        assert "error" not in data, data
        assert data["type"] == "file_data"
        return data["filename"], base64.b64decode(data["data"], validate=True)


@pytest.fixture(scope="module", params=["folder", "bucket"])
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Callable[[str], bytes]]]:
    """A server, and how the test reads its objects past it."""
    root = tmp_path_factory.mktemp(f"published-{request.param}")
    if request.param == "bucket":
        seaweedfs: SeaweedServer = request.getfixturevalue("seaweedfs")
        bucket = Bucket(seaweedfs)
        server = a_server(root / "one", bucket, LORADASH_ENGINE="scripted")
        read = bucket.read
    else:
        server = Server(CommandLine(root))

        def read(key: str) -> bytes:
            return (server.cli.objects / key).read_bytes()

    server.start()
    try:
        upload(server, draw_dataset(root / "dataset"), "triangles")
        for seed in (1, 2):  # two adapters of one name
            config = training("triangles", name="triangle", seed=seed, **SHORT)
            trained = server.submit(type="train", config=config)
            server.wait_until(trained, {"completed"})
        drawn = server.submit(
            type="generate", prompt="a sks triangle", lora=trained, num_images=2, steps=2
        )
        server.wait_until(drawn, {"completed"})
        yield server, read
    finally:
        server.close()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_each_click_saves_the_file_that_was_clicked(
    scene: tuple[Server, Callable[[str], bytes]],
) -> None:
    server, read = scene
    page = Dashboard(server)
    files = page.ask(type="list_files")
    assert len(files["lora_files"]) == 2
    assert len({one["filename"] for one in files["lora_files"]}) == 2
    assert len(files["image_files"]) >= 4  # previews of two trainings, and two images

    for one in files["lora_files"]:
        name, content = page.save(type="download_file", file_path=one["path"])
        assert sha256(content) == sha256(read(one["s3_key"]))
        assert name == one["filename"]
    for one in files["image_files"]:
        name, content = page.save(type="download", process_id=one["process_id"])
        assert sha256(content) == sha256(read(one["s3_key"]))
        assert Path(name).suffix == Path(one["filename"]).suffix == ".png"
        assert content[:4] == b"\x89PNG"


def test_processes_are_downloaded_alone_and_together(
    scene: tuple[Server, Callable[[str], bytes]], tmp_path: Path
) -> None:
    server, read = scene
    page = Dashboard(server)
    processes = page.ask(type="processes")["processes"]
    trained = [one["id"] for one in processes if one["type"] == "training"]
    (drawn,) = [one["id"] for one in processes if one["type"] == "generation"]
    keys = {
        one: [
            entry["key"]
            for entry in server.process(one)["artifacts"]
            if entry["kind"] in ("lora", "image", "sample")
        ]
        for one in (*trained, drawn)
    }

    for one in trained:
        _, content = page.save(type="download", process_id=one)
        (adapter,) = [key for key in keys[one] if key.endswith(".safetensors")]
        assert sha256(content) == sha256(read(adapter))
    name, content = page.save(type="download", process_id=drawn)
    assert name.endswith(".zip")
    assert hashes_of_zip(content) == sorted(sha256(read(key)) for key in keys[drawn])

    ids = [*trained, drawn]
    bulk = page.ask(type="bulk_download", process_ids=ids, include_images=True, include_loras=True)
    wanted = sorted(sha256(read(key)) for one in ids for key in keys[one])
    got = []
    for item in bulk["download_items"]:
        reply = httpx2.get(item["url"])
        assert reply.status_code == 200
        assert reply.headers["content-disposition"].startswith("attachment")
        got.append(sha256(reply.content))
    assert sorted(got) == wanted
    assert bulk["total_files"] == len(wanted)
    assert hashes_of_zip(httpx2.get(bulk["zip_url"]).content) == wanted


def test_a_refused_start_is_no_success(scene: tuple[Server, Callable[[str], bytes]]) -> None:
    server, _ = scene
    request = {"input": {"type": "train_with_yaml", "config": "job: extension\r\nconfig: {}"}}
    reply = server.call("/api.runpod.ai/v2/local/runsync", request)
    assert reply.status_code == 400
    assert reply.json()["message"] == reply.json()["error"]


def hashes_of_zip(data: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return sorted(sha256(archive.read(entry)) for entry in archive.infolist())
