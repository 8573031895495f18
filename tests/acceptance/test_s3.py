"""The server with everything in a bucket: a real S3 server, and one that goes away."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from loradash.storage.keys import published
from tests.acceptance.conftest import CommandLine, Server, draw_dataset, training, upload
from tests.servers.fault_proxy import FaultProxy
from tests.servers.seaweedfs import SeaweedServer

pytestmark = pytest.mark.slow

PREFIX = "some/where"
AWAY_S = float(os.environ.get("TEST_AWAY_S", "25"))
"""How long the endpoint is away; `TEST_AWAY_S=180` is what an outage of minutes looks like."""


class Bucket:
    """A fresh bucket, and what a server needs to know of it."""

    def __init__(self, seaweedfs: SeaweedServer) -> None:
        self.name = seaweedfs.new_bucket()
        self.s3 = seaweedfs.client()
        self.settings = {
            "S3_BUCKET": self.name,
            "S3_PREFIX": PREFIX,
            "S3_ENDPOINT_URL": seaweedfs.endpoint_url,
            "AWS_ACCESS_KEY_ID": seaweedfs.access_key_id,
            "AWS_SECRET_ACCESS_KEY": seaweedfs.secret_access_key,
        }

    def all_keys(self) -> set[str]:
        """All keys below the prefix, as the product names them."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        found = {entry["Key"] for page in pages for entry in page.get("Contents", ())}
        assert all(key.startswith(f"{PREFIX}/") for key in found)
        return {key.removeprefix(f"{PREFIX}/") for key in found}

    def read(self, key: str) -> bytes:
        content: bytes = self.s3.get_object(Bucket=self.name, Key=f"{PREFIX}/{key}")["Body"].read()
        return content


@pytest.fixture
def bucket(seaweedfs: SeaweedServer) -> Bucket:
    return Bucket(seaweedfs)


@pytest.fixture
def proxy(seaweedfs: SeaweedServer) -> Iterator[FaultProxy]:
    with FaultProxy(seaweedfs.endpoint_url) as proxy:
        yield proxy


def a_server(root: Path, bucket: Bucket, **settings: str) -> Server:
    root.mkdir(exist_ok=True)
    return Server(CommandLine(root), **{**bucket.settings, **settings})


def files_of(server: Server, bucket: Bucket, process_id: str) -> dict[str, Any]:
    """Check that list, manifest and bucket agree and that all content is what they say."""
    there = {key for key in bucket.all_keys() if key.startswith(f"results/{process_id}/")}
    (latest,) = (key for key in there if published(key) == f"results/{process_id}/manifest.json")
    manifest = json.loads(bucket.read(latest))
    listed = {entry["key"]: entry for entry in manifest["files"]}
    # What was submitted is the input, and no result.
    beside = {f"results/{process_id}/{name}" for name in ("manifest.json", "config.yaml")}
    assert set(listed) <= there
    assert {published(key) for key in there - set(listed)} <= beside
    for key, entry in listed.items():
        data = bucket.read(key)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (
            entry["size_bytes"], entry["sha256"],
        )  # fmt: skip
    return listed


def test_a_training_and_its_use_with_everything_in_the_bucket(
    bucket: Bucket, tmp_path: Path
) -> None:
    server = a_server(tmp_path / "one", bucket).start()
    try:
        health = server.call("/health").json()
        assert health["services"]["storage"]["kind"] == "s3"
        assert health["services"]["storage"]["circuit"]["state"] == "closed"
        assert health["services"]["storage"]["capabilities"]["conditional_replace"] is True
        upload(server, draw_dataset(tmp_path / "dataset"), "triangles")
        folders = server.ask(type="list_dataset_folders")
        assert folders["folders"] == ["triangles"]
        assert folders["prefix"] == f"s3://{bucket.name}/{PREFIX}/dataset"

        config = training("triangles", name="triangle", steps=30, seed=3, save_every=10)
        trained = server.submit(type="train", config=config)
        server.wait_until(trained, {"completed"})
        files = files_of(server, bucket, trained)
        kinds = [entry["kind"] for entry in files.values()]
        assert kinds.count("lora") == 1
        assert "checkpoint" in kinds
        assert not server.cli.objects.exists()

        # The link leads to the provider, needs no credentials, and gives the file.
        reply = server.ask(type="bulk_download", process_ids=[trained], include_images=False)
        (item,) = reply["download_items"]
        assert item["url"].startswith(f"{bucket.settings['S3_ENDPOINT_URL']}/{bucket.name}/")
        reply = httpx2.get(item["url"])
        assert hashlib.sha256(reply.content).hexdigest() == item["sha256"]
        assert "triangle.safetensors" in reply.headers["content-disposition"]

        (model,) = server.ask(type="list_models")["models"]
        assert model["path"] == f"s3://{bucket.name}/{PREFIX}/{model['s3_key']}"
        drawn = server.submit(type="generate", prompt="a sks triangle", lora=model["path"], steps=4)
        server.wait_until(drawn, {"completed"})
        assert len(files_of(server, bucket, drawn)) >= 1
        image = server.ask(type="download", process_id=drawn)
        assert image["content_type"] == "image/png"
        by_key = server.ask(type="download_by_key", s3_key=image["s3_key"])
        assert by_key["data"] == image["data"]
        listed = server.ask(type="list_files", path=f"results/{drawn}")
        assert [one["path"] for one in listed["image_files"]] == [
            f"s3://{bucket.name}/{PREFIX}/{image['s3_key']}"
        ]
        deleted = server.ask(type="delete_results", process_id=drawn, result_type="images")
        assert deleted["deleted"] == 1
        assert image["s3_key"] not in bucket.all_keys()
    finally:
        server.close()

    # Another machine, which knows only the bucket.
    other = a_server(tmp_path / "two", bucket).start()
    try:
        elsewhere = other.submit(type="generate", prompt="a sks triangle", lora=trained, steps=4)
        other.wait_until(elsewhere, {"completed"})
        assert len(files_of(other, bucket, elsewhere)) >= 1
    finally:
        other.close()


def test_an_endpoint_that_is_away_for_a_while_costs_a_training_nothing(
    bucket: Bucket, proxy: FaultProxy, tmp_path: Path
) -> None:
    """It ends while the endpoint is away, after having made checkpoints and previews meanwhile."""
    steps = 150
    server = a_server(tmp_path / "one", bucket, S3_ENDPOINT_URL=proxy.url).start()
    try:
        upload(server, draw_dataset(tmp_path / "dataset"), "triangles")
        config = training(
            "triangles", name="triangle", steps=steps, seed=3, save_every=25, sample_every=25,
            sample_prompts=["a sks triangle"],
        )  # fmt: skip
        process_id = server.submit(type="train", config=config)
        server.wait_until(process_id, lambda one: one["step"] >= 10)
        proxy.go_down()
        away_s = time.monotonic()
        waiting = server.wait_until(
            process_id, lambda one: "object store" in one["phase_detail"], 120
        )
        assert waiting["status"] == "running"
        assert waiting["step"] == steps  # the training went on to its end
        while time.monotonic() - away_s < AWAY_S:
            time.sleep(0.2)
        health = server.call("/health")
        assert health.status_code == 503
        storage = health.json()["services"]["storage"]
        assert storage["status"] == "unavailable"
        assert storage["circuit"]["state"] in ("open", "half_open")
        assert storage["circuit"]["failures"] >= 10
        assert server.process(process_id)["status"] == "running"

        proxy.come_back()
        done = server.wait_until(process_id, {"completed"}, 60)
        assert done["step"] == steps
        files = files_of(server, bucket, process_id)
        names = [published(key) for key in files]
        samples = [name for name in names if "/samples/step-" in name]
        assert len(samples) == steps // 25 + 1  # and one of the base model
        assert len({name.split("/")[3] for name in names if "/checkpoints/" in name}) >= 2
        rows = server.process(process_id, metrics_after=0)["metrics"]
        assert [row["step"] for row in rows] == list(range(1, steps + 1))
        health = server.call("/health").json()
        assert health["services"]["storage"]["circuit"]["state"] == "closed"
        log = server.log.read_text()
        assert "circuit_open" in log
        assert "circuit_closed" in log
    finally:
        proxy.come_back()
        server.close()
