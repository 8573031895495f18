"""Datasets by the real command line: uploaded, killed in the middle, and uploaded again."""

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.acceptance.conftest import CommandLine, Server

pytestmark = pytest.mark.slow

FILES = 200


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Many images of noise, so that they are not small."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(FILES // 2):
        Image.frombytes("RGB", (128, 128), os.urandom(128 * 128 * 3)).save(folder / f"{n:03d}.png")
        (folder / f"{n:03d}.txt").write_text(f"picture {n}")
    return folder


@pytest.fixture(params=["local", "server"])
def way(request: pytest.FixtureRequest, cli: CommandLine, server: Server) -> Iterator[CommandLine]:
    """The command line, working on this machine's store itself or through a server."""
    if request.param == "server":
        server.start()
        cli.environment["LORADASH_URL"] = server.url
    yield cli
    if request.param == "server":
        log = server.log.read_text()
        assert "request_broke" not in log
        assert "Traceback" not in log


def arrived(cli: CommandLine) -> dict[str, int]:
    """The files of uploads that are in the store, and which file on the disk each is."""
    found = {}
    for path in (cli.objects / "dataset").glob("*/upload_*/*"):
        if not path.name.startswith(("\\", "_")):
            found[path.name] = path.stat().st_ino
    return found


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def listed(cli: CommandLine) -> list[dict[str, object]]:
    done = cli.run("datasets", "list", "--json")
    assert done.exit_code == 0, done.err
    datasets: list[dict[str, object]] = done.result["datasets"]
    return datasets


def manifest(cli: CommandLine, name: str = "pictures") -> dict[str, str]:
    text = (cli.objects / "dataset" / name / "_training_info.json").read_text()
    return {file["name"]: file["sha256"] for file in json.loads(text)["files"]}


def test_an_upload_that_was_killed_goes_on_where_it_was(way: CommandLine, pictures: Path) -> None:
    process = way.start("datasets", "upload", str(pictures), "--trigger-word", "sks")
    deadline = time.monotonic() + 60
    while len(before := arrived(way)) < FILES // 8:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = arrived(way)
    assert FILES // 8 <= len(before) < FILES, "the upload was over before it was killed"
    assert listed(way) == []

    done = way.run("datasets", "upload", str(pictures), "--trigger-word", "sks", "--json")
    assert done.exit_code == 0, done.err
    assert manifest(way) == hashes(pictures)
    after = arrived(way)
    assert {name: after[name] for name in before} == before, "files were sent again"
    assert (done.result["total_images"], done.result["total_captions"]) == (FILES // 2, FILES // 2)
    assert [(one["name"], one["total_images"]) for one in listed(way)] == [("pictures", FILES // 2)]

    again = way.run("datasets", "upload", str(pictures), "--trigger-word", "sks", "--json")
    assert again.exit_code == 0, again.err
    assert again.result["unchanged_files"] == FILES
    assert arrived(way) == after


def test_a_bad_image_is_named_and_the_dataset_stays(way: CommandLine, pictures: Path) -> None:
    for path in sorted(pictures.iterdir())[6:]:
        path.unlink()
    assert way.run("datasets", "upload", str(pictures)).exit_code == 0
    good = manifest(way)
    (pictures / "000.png").write_bytes(b"no image")
    (pictures / "001.txt").write_bytes(b"\xff")
    refused = way.run("datasets", "upload", str(pictures))
    assert refused.exit_code == 1
    assert "000.png: not a jpg" in refused.err
    assert "001.txt: not UTF-8" in refused.err
    assert manifest(way) == good
    (pictures / "000.png").unlink()
    (pictures / "001.txt").write_text("better")
    done = way.run("datasets", "upload", str(pictures), "--json")
    assert done.exit_code == 0, done.err
    assert done.result["unchanged_files"] == 4
    assert manifest(way) == hashes(pictures)


def test_a_dataset_of_any_name_can_be_uploaded_and_added_to(
    way: CommandLine, pictures: Path
) -> None:
    folder = pictures.parent / "Мои коты"
    folder.mkdir()
    for path in sorted(pictures.iterdir())[:2]:
        path.rename(folder / path.name)
    for _ in range(2):
        done = way.run("datasets", "upload", str(folder), "--json")
        assert done.exit_code == 0, done.err
        name = done.result["dataset_folder"]
    for path in sorted(pictures.iterdir())[4:]:
        path.unlink()
    done = way.run("datasets", "upload", str(pictures), "--name", str(name), "--add", "--json")
    assert done.exit_code == 0, done.err
    (dataset,) = listed(way)
    assert (dataset["name"], dataset["total_images"]) == (name, 3)
