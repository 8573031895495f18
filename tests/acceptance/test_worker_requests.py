"""Every type of request at real workers, by RunPod's own client and by curl, good and bad."""

import base64
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from safetensors.numpy import load

from loradash.protocol.requests import REQUEST_TYPES
from tests.acceptance.conftest import draw_dataset, training
from tests.servers.endpoint import Endpoint
from tests.servers.plain_http import RefusedError, curl
from tests.servers.queue import RunpodQueue
from tests.servers.seaweedfs import SeaweedServer

pytestmark = pytest.mark.slow

Reply = dict[str, Any]
Ask = Callable[..., Reply]

QUEUE_CARRIES = 10_000_000
NOBODY = "train_00000000000000000000"
FOLDER = "from-the-page"


def yaml_text(document: Reply) -> str:
    """A config as the published page sends it, with the line ends of Windows."""
    return yaml.safe_dump(document).replace("\n", "\r\n")


SMALL = training(  # its adapter of 6.1 MB is about as large as a reply may bring
    FOLDER, name="shape", rank=100, steps=2, save_every=2, sample_every=2, sample_steps=1,
    sample_size=64, sample_prompts=["a sks triangle"],
)  # fmt: skip
LARGE = yaml_text(training(FOLDER, name="large", rank=128, steps=1))  # 7.8 MB
ENDLESS = yaml_text(training(FOLDER, steps=4000, save_every=4000))
DRAWING = {"type": "generate", "prompt": "a sks triangle", "steps": 1, "num_images": 2, "seed": 5}


def drawing_with(adapter: str) -> Reply:
    model = {"name_or_path": "emoji-base", "lora_path": adapter}
    wanted = {"prompts": ["a sks triangle"], "width": 64, "height": 64, "sample_steps": 1}
    process = [{"type": "to_folder", "model": model, "generate": wanted}]
    return {"job": "generate", "config": {"name": "drawn", "process": process}}


class World:
    """Workers with a dataset, two trainings and two generations; asked by two clients."""

    def __init__(self, endpoint: Endpoint, sdk: Any) -> None:
        self.endpoint, self.sdk = endpoint, sdk
        self._url = f"{endpoint.queue.url}/{endpoint.queue.endpoint}"

    def make(self, dataset: Path) -> None:
        """Let both workers work at the same time, to save some of it."""
        self.by_sdk(**upload(dataset, "from the page"))
        began_s = time.monotonic()
        self.started = self.by_sdk(type="train", config=SMALL)
        self.waited_s = time.monotonic() - began_s
        process_id = self.started["process_id"]
        self.running = self.wait_until(process_id, "running")
        self.health_meanwhile = self.by_curl(type="health")
        large = {"type": "train_with_yaml", "config": LARGE, "idempotency_key": "large"}
        too_large = self.sdk.run({"input": large})
        self.trained = self.wait_until(process_id, "completed")
        drawn = self.sdk.run({"input": {**DRAWING, "lora": process_id}})
        by_config = {"type": "generate", "config": yaml_text(drawing_with(process_id))}
        self.ended = [self.by_curl(**by_config), drawn.output(120), too_large.output(120)]
        self.by_config, self.drawn, self.too_large = (
            self.by_sdk(type="process_status", process_id=one["process_id"]) for one in self.ended
        )

    def call(self, path: str, body: Any = None) -> Reply:
        headers = {"authorization": "Bearer any", "content-type": "application/json"}
        return json.loads(curl(f"{self._url}/{path}", headers, body))

    def end_of(self, request: Any) -> Reply:
        job = self.call("run", {"input": request})
        deadline = time.monotonic() + 120
        while (job := self.call(f"status/{job['id']}"))["status"] in ("IN_QUEUE", "IN_PROGRESS"):
            assert time.monotonic() < deadline, job
            time.sleep(0.2)
        return job

    def by_curl(self, **request: Any) -> Reply:
        job = self.end_of(request)
        assert job["status"] == "COMPLETED", job
        return sendable(job["output"])

    def by_sdk(self, **request: Any) -> Reply:
        reply = self.sdk.run_sync({"input": request}, timeout=60)
        assert reply is not None, f"the job failed: {request}"
        return sendable(reply)

    def wait_until(self, process_id: str, status: str) -> Reply:
        deadline = time.monotonic() + 120
        look = {"type": "process_status", "process_id": process_id, "metrics_after": 0}
        while (shown := self.by_curl(**look))["status"] != status:
            assert shown["status"] in ("pending", "running"), shown
            assert time.monotonic() < deadline, shown
        return shown


def sendable(reply: Reply) -> Reply:
    assert len(json.dumps(reply)) < QUEUE_CARRIES
    assert "error" not in reply
    return reply


def upload(folder: Path, name: str, count: int = 99) -> Reply:
    """What the published page sends: no dataset_folder."""
    files = [
        {"filename": path.name, "content": base64.b64encode(path.read_bytes()).decode()}
        for path in sorted(folder.iterdir())[:count]
    ]
    page = {"type": "upload_training_data", "trigger_word": "", "cleanup_existing": True}
    return {**page, "training_name": name, "files": files}


def artifacts(process: Reply, *kinds: str) -> list[Reply]:
    return [one for one in process["artifacts"] if one["kind"] in kinds]


def is_stored(data: bytes, stored: Reply) -> bool:
    return hashlib.sha256(data).hexdigest() == stored["sha256"] and len(data) == stored["size"]


def content(reply: Reply) -> bytes:
    """The bytes of a reply that brings a file."""
    assert reply["type"] == "file_data"
    assert reply["filename"] and reply["content_type"]
    data = base64.b64decode(reply["data"], validate=True)
    assert len(data) == reply["size"]
    return data


def is_picture(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.size == (64, 64)


@pytest.fixture(scope="module")
def world(seaweedfs: SeaweedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    import runpod  # takes more than a second

    root = tmp_path_factory.mktemp("requests")
    with RunpodQueue(requeue_after=3) as queue, pytest.MonkeyPatch.context() as patch:
        patch.setattr(runpod, "endpoint_url_base", queue.url)
        patch.setenv("RUNPOD_API_KEY", "any")  # workers can send a training on
        patch.setenv("RUNPOD_ENDPOINT_BASE_URL", queue.url)
        endpoint = Endpoint(queue, seaweedfs, root / "workers")
        world = World(endpoint, runpod.Endpoint(queue.endpoint, api_key="any"))
        try:
            # Two, since RunPod's SDK lets a worker take one job a second at most.
            endpoint.start("a")
            endpoint.start("b")
            world.make(draw_dataset(root / "dataset"))
            yield world
        finally:
            world.sdk.rp_client.rp_session.close()
            endpoint.close()


@pytest.fixture(params=["runpod", "curl"])
def ask(world: World, request: pytest.FixtureRequest) -> Ask:
    return {"runpod": world.by_sdk, "curl": world.by_curl}[request.param]


# What takes its time


def test_a_job_ends_with_its_process_and_what_became_of_it(world: World) -> None:
    for output, process in zip(
        world.ended, (world.by_config, world.drawn, world.too_large), strict=True
    ):
        assert output["status"] == output["process_status"] == process["status"] == "completed"
        assert output["process_id"] == output["data"]["process_id"] == process["id"]
        assert output["output_path"] == process["output_path"] == f"results/{process['id']}"
    again = world.by_curl(type="train", config=LARGE, idempotency_key="large")
    assert (again["process_id"], again["status"]) == (world.too_large["id"], "completed")


def test_a_client_that_waits_has_the_process_at_once_and_others_are_answered_while_it_runs(
    world: World,
) -> None:
    assert world.started["data"] == {"process_id": world.running["id"]}
    assert world.waited_s < 60
    health = world.health_meanwhile
    assert health["services"]["process_manager"]["counts"]["running"] == 1
    assert health["worker_id"] != world.running["worker_id"]
    assert [row["step"] for row in world.trained["metrics"]] == [1, 2]
    kinds = {one["kind"] for one in world.trained["artifacts"]}
    assert kinds == {"lora", "sample", "checkpoint", "config", "job", "log", "metrics"}


def test_a_training_that_is_cancelled_ends(world: World) -> None:
    job = world.call("runsync", {"input": {"type": "train_with_yaml", "config": ENDLESS}})
    process_id = job["output"]["data"]["process_id"]
    world.wait_until(process_id, "running")
    assert process_id in world.by_sdk(type="cancel", process_id=process_id)["message"]
    assert world.wait_until(process_id, "cancelled")["error_message"] is None
    assert "was cancelled" in world.by_curl(type="cancel", process_id=process_id)["message"]


def test_an_upload_is_a_dataset_under_the_name_that_its_reply_gives(
    ask: Ask, tmp_path: Path
) -> None:
    reply = ask(**upload(draw_dataset(tmp_path / "images"), "one more", 2))
    assert (reply["training_folder"], reply["total_size_formatted"][-1]) == ("one-more", "B")
    assert (reply["total_images"], reply["total_captions"]) == (1, 1)
    assert reply["file_types_summary"] == {"images": 1, "captions": 1, "other": 0}
    assert reply["message"] and reply["detailed_message"]
    image, caption = reply["uploaded_files"]
    assert (image["file_type"], caption["file_type"]) == ("image", "caption")
    assert image["filename"] == "0.png" and image["size"] > 0 and image["size_formatted"]
    assert image["folder"] == "one-more" and image["path"].startswith("s3://")
    listed = ask(type="list_dataset_folders")
    assert listed["folders"] == [FOLDER, "one-more"]
    assert listed["prefix"].startswith("s3://") and listed["prefix"].endswith("/dataset")


# What is answered at once


def test_health_tells_the_state_of_each_part(ask: Ask) -> None:
    reply = ask(type="health")
    assert (reply["status"], reply["environment"]) == ("healthy", "serverless")
    parts = reply["services"]
    assert {"process_manager", "storage", "gpu_manager"} <= parts.keys()
    assert {one["status"] for one in parts.values()} == {"healthy"}
    assert parts["gpu_manager"]["count"] == len(parts["gpu_manager"]["gpus"])
    assert reply["worker_id"][:2] in ("a-", "b-")


def test_processes_have_what_the_page_shows(world: World, ask: Ask) -> None:
    reply = ask(type="processes")
    assert "status" not in reply, "the page would drop most fields"
    listed = {one["id"]: one for one in reply["processes"]}
    trained, drawn = listed[world.trained["id"]], listed[world.by_config["id"]]
    for one in (trained, drawn):
        assert (one["status"], one["progress"], one["error"]) == ("completed", 100, None)
        assert one["created_at"] < one["updated_at"] and one["elapsed_ms"] > 0
        assert one["step"] == one["total_steps"] > 0
        assert {"eta", "gpu_id", "output_path", "error_message"} <= one.keys()
    assert (trained["type"], trained["name"], drawn["type"]) == ("training", "shape", "generation")
    assert trained["config"]["config"]["process"][0]["trigger_word"] == "sks"
    assert drawn["config"]["config"]["process"][0]["model"]["lora_path"] == trained["id"]


def test_the_status_of_a_process_is_its_record_and_holds_it(world: World, ask: Ask) -> None:
    reply = ask(type="process_status", process_id=world.trained["id"], log_after=0)
    names = {"name", "type", "created_at", "updated_at", "progress", "output_path", "error"}
    assert names <= reply["process"].keys()
    assert reply["id"] == reply["process"]["id"] == world.trained["id"]
    assert reply["status"] == reply["process"]["status"] == "completed"
    assert [line["number"] for line in reply["log"]] == list(range(1, len(reply["log"]) + 1))


@pytest.mark.parametrize("kind", ["lora", "list_models"])
def test_adapters_are_listed(world: World, ask: Ask, kind: str) -> None:
    models = {one["process_id"]: one for one in ask(type=kind)["models"]}
    model, [stored] = models[world.trained["id"]], artifacts(world.trained, "lora")
    assert (model["size"], model["sha256"]) == (stored["size"], stored["sha256"])
    assert model["size_mb"] == pytest.approx(stored["size"] / 2**20, abs=0.1)
    assert (model["filename"], model["name"]) == ("shape.safetensors", "shape")
    assert model["path"].startswith("s3://") and model["path"].endswith(stored["key"])
    assert model["id"] and model["modified_date"] and model["status"] == "ready"


def test_listed_files_can_be_downloaded_by_their_paths(world: World, ask: Ask) -> None:
    reply = ask(type="list_files")
    listed = {one["s3_key"]: one for one in reply["lora_files"] + reply["image_files"]}
    assert reply["total_files"] == len(listed)
    for one in listed.values():
        assert one["id"] and one["filename"] and one["size_formatted"] and one["created_at"]
    adapter, *samples = artifacts(world.trained, "lora", "sample")
    images = artifacts(world.drawn, "image")
    assert {one["key"] for one in (adapter, *samples, *images)} <= listed.keys()
    for stored in (adapter, images[0]):
        reply = ask(type="download_file", file_path=listed[stored["key"]]["path"])
        assert is_stored(content(reply), stored)


def test_a_download_is_the_adapter_itself_or_all_images(world: World, ask: Ask) -> None:
    reply, [stored] = (
        ask(type="download", process_id=world.trained["id"]), artifacts(world.trained, "lora")
    )  # fmt: skip
    data = content(reply)
    assert is_stored(data, stored) and len(data) > 6_000_000
    assert reply["filename"] == "shape.safetensors"
    assert all("lora" in name for name in load(data))
    assert is_picture(content(ask(type="download", process_id=world.by_config["id"])))
    zipped = content(ask(type="download", process_id=world.drawn["id"]))
    images = artifacts(world.drawn, "image")
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        assert archive.namelist() == [one["name"] for one in images]
        for one in images:
            data = archive.read(one["name"])
            assert is_stored(data, one) and is_picture(data)


def test_a_download_by_key_is_that_file(world: World, ask: Ask) -> None:
    sample, checkpoint = (artifacts(world.trained, kind)[0] for kind in ("sample", "checkpoint"))
    data = content(ask(type="download", process_id=world.trained["id"], s3_key=sample["key"]))
    assert is_stored(data, sample) and is_picture(data)
    data = content(ask(type="download_by_key", s3_key=checkpoint["key"]))
    assert is_stored(data, checkpoint) and load(data)


def test_a_bulk_download_is_links_to_the_bucket(world: World, ask: Ask) -> None:
    reply = ask(type="bulk_download", process_ids=[world.drawn["id"], world.trained["id"]])
    items = reply["download_items"]
    previews = len(artifacts(world.trained, "sample"))
    assert sorted(one["type"] for one in items) == ["image"] * (2 + previews) + ["lora"]
    assert (reply["total_files"], reply["zip_url"]) == (3 + previews, None)
    assert reply["total_size"] == sum(one["size"] for one in items)
    for one in items:
        assert one["filename"] and is_stored(curl(one["url"]), one)


def test_logs_are_cleared(ask: Ask) -> None:
    reply = ask(type="clear_logs", log_type="app")
    assert reply["message"] and reply["log_type"] == "app"
    [cleared] = reply["cleared"]
    assert cleared["name"] == "app.log" and cleared["size"] > 0


def test_what_is_too_large_for_a_reply_is_a_link_and_is_gone_once_deleted(world: World) -> None:
    process_id, [stored] = world.too_large["id"], artifacts(world.too_large, "lora")
    bucket = world.by_sdk(type="list_dataset_folders")["prefix"].removesuffix("/dataset")
    links = [
        world.by_sdk(type="download", process_id=process_id),
        world.by_curl(type="download_by_key", s3_key=stored["key"]),
        world.by_sdk(type="download_file", file_path=f"{bucket}/{stored['key']}"),
    ]
    for one in links:
        assert (one["type"], one["filename"]) == ("url", "large.safetensors")
        assert is_stored(curl(one["url"]), stored)

    delete = {"type": "delete_results", "process_id": process_id}
    deleted = world.by_curl(**delete, result_type="lora")
    assert (deleted["deleted"], deleted["found"], deleted["result_type"]) == (1, 1, "lora")
    with pytest.raises(RefusedError, match="NoSuchKey"):
        curl(links[0]["url"])
    models = world.by_sdk(type="list_models")["models"]
    assert process_id not in [one["process_id"] for one in models]
    assert "were deleted" in world.end_of({"type": "download", "process_id": process_id})["error"]
    assert world.by_sdk(**delete)["deleted"] > 1
    assert not [key for key in world.endpoint.objects(process_id) if key.startswith("results/")]


# What is wrong

BROKEN = [{"filename": "a.png", "content": "!!!!"}]
BAD = [
    ("steps", {"type": "train", "config": training(FOLDER, steps="many")}),
    ("'nowhere'", {"type": "train", "config": training("nowhere", steps=2)}),
    ("line 1", {"type": "train_with_yaml", "config": "steps: [1, 2"}),
    ("stesp", {"type": "train_with_yaml", "yaml_config": yaml_text(training(FOLDER, stesp=3))}),
    ("width", {"type": "generate", "prompt": "x", "base_model": "emoji-base", "width": -5}),
    (NOBODY, {"type": "generate", "prompt": "x", "lora": NOBODY}),
    ("limit", {"type": "processes", "limit": 0}),
    (NOBODY, {"type": "process_status", "process_id": NOBODY}),
    (NOBODY, {"type": "cancel", "process_id": NOBODY}),
    ("limit", {"type": "lora", "limit": "x"}),
    ("cursor", {"type": "list_models", "cursor": "x"}),
    ("process_id", {"type": "download", "process_id": 7}),
    ("s3://other/results/x", {"type": "download_by_key", "s3_key": "s3://other/results/x"}),
    ("a.png", {"type": "upload_training_data", "training_name": "bad", "files": BROKEN}),
    ("process_ids", {"type": "bulk_download", "process_ids": []}),
    ("../x", {"type": "list_files", "path": "../x"}),
    ("/etc/passwd", {"type": "download_file", "file_path": "/etc/passwd"}),
    ("process_id", {"type": "delete_results", "result_type": "lora"}),
    ("log_type", {"type": "clear_logs", "log_type": "x"}),
    ("'train'", {"type": "trian"}),
    ("type", {"typ": "health"}),
    ("mapping", "health"),
    ("mapping", [{"type": "health"}]),
]
WITHOUT_FIELDS = ("health", "list_dataset_folders")
TESTED_ELSEWHERE = ("create_upload", "complete_upload", "abort_upload")


def test_bad_input_fails_the_job_with_nothing_but_a_text_that_names_the_field(world: World) -> None:
    types = {request.get("type") for _, request in BAD if isinstance(request, dict)}
    assert {*types, *WITHOUT_FIELDS, *TESTED_ELSEWHERE} >= set(REQUEST_TYPES)
    for named, request in BAD:
        job = world.end_of(request)
        assert job["status"] == "FAILED" and "output" not in job, (request, job)
        assert named in job["error"] and "Traceback" not in job["error"], (request, job)
    assert "bad" not in world.by_sdk(type="list_dataset_folders")["folders"]
    for kind in WITHOUT_FIELDS:
        assert "'verbose'" in world.by_curl(type=kind, verbose=True)["warnings"][0]


def test_clients_that_wait_hear_of_bad_input_too(world: World) -> None:
    job = world.call("runsync", {"input": {"type": "cancel"}})
    assert job["status"] == "FAILED" and "output" not in job
    assert "process_id" in job["error"]
    assert world.sdk.run_sync({"input": {"type": "cancel"}}, timeout=60) is None
    job = world.sdk.run({"input": {"type": "train", "config": "steps: many"}})
    assert job.output(timeout=60) is None
    assert job.status() == "FAILED"
