"""Replies of the published protocols, recorded: what a client was answered, byte for byte.

Each conversation asks a small server of its own a fixed list of questions, good and bad ones. What
differs from run to run (ids, times, durations, this machine) is replaced by names of the same form.
The recordings in ``recorded/`` are JSON, so keys keep their order and numbers their kind.

A change of a reply that is meant is recorded with

    python -m tests.contract.recorded_replies [NAME ...]

and its diff belongs to the commit that makes it.
"""

import base64
import json
import re
import struct
import sys
import tempfile
import zlib
from datetime import timedelta
from pathlib import Path

import loradash
from loradash.domain import process as changes
from loradash.executors.state import EndpointState, ExecutorState, LaneState, SlotState
from loradash.protocol.job_json import ended_job
from loradash.runtime.gpu import Disk, Gpu, Machine, Memory
from loradash.runtime.owner import this_owner
from tests.unit.world import MISSING, TOKEN, TRAINING, World, tensors

FOLDER = Path(__file__).parent / "recorded"

_MEASURED = {
    "total_s", "avg_s", "max_s", "uptime_s", "elapsed_ms", "elapsed_time", "executionTime",
    "delayTime",
}  # fmt: skip
_OPAQUE = {"cursor", "next_cursor"}
_PATTERNS = (
    (re.compile(r"\b((?:train|gen|upload)_)[0-9a-z]{20}(?![0-9a-z])"), "id"),
    (re.compile(r"\b(req_)[0-9a-f]{16}\b"), "id"),
    (re.compile(r"(/config/)[0-9a-f]{16}(?=/)"), "mark"),
    (re.compile(r"\b\d{4}-\d\d-\d\d([T ])\d\d:\d\d:\d\d"), "time"),
)


class FixedMachine(Machine):
    """A machine with one GPU."""

    def __init__(self):
        super().__init__(None)

    def gpus(self):
        return (Gpu(0, "NVIDIA H100 80GB HBM3", "GPU-1", 81_559, 80_000, 1_559, 3),)

    def memory(self):
        return Memory(64_000, 32_000, 50.0)

    def disk(self, path):
        return Disk(500.0, 123.4)


class Conversation:
    """A small server that is asked one thing after the other."""

    def __init__(self, root, **options):
        self.world = World(root, machine=FixedMachine(), **options)
        self.root = root
        self.entries = []
        self._names = {}

    def ask(self, kind, /, **fields):
        """Send a request as the worker and the command line do."""
        request = {"type": kind, **fields}
        return self.put(request)

    def put(self, request):
        """Send anything at all."""
        reply = self.world.dispatcher.answer(request, base_url="http://127.0.0.1:8000")
        self.note(request, reply)
        return reply

    def http(self, client, method, path, body=None):
        """Send a request over HTTP."""
        response = client.request(method, path, json=body)
        request = f"{method} {path}"
        if response.headers.get("content-type") == "application/json":
            content = response.json()
        else:
            content = f"{len(response.content)} bytes of {response.headers.get('content-type')}"
        self.note(
            {"request": request, **({} if body is None else {"body": body})},
            {"status": response.status_code, "content": content},
        )
        return response

    def note(self, request, reply):
        self.entries.append({"request": _shortened(request), "reply": reply})

    def text(self):
        """Return what was said as JSON, without what differs from run to run."""
        text = json.dumps([_without_measures(entry) for entry in self.entries], indent=1)
        for value, name in (
            (json.dumps(str(self.root))[1:-1], "/ROOT"), (this_owner(), "OWNER"),
            (f'"version": "{loradash.__version__}"', '"version": "VERSION"'),
        ):  # fmt: skip
            text = text.replace(value, name)
        for pattern, what in _PATTERNS:
            text = pattern.sub(lambda match, what=what: self._named(match, what), text)
        for value, number in self._names.items():
            text = re.sub(rf"(?<=[-(]){value[-6:]}\b", f"{number:06d}", text)  # in names
        return _without_fractions(text) + "\n"

    def _named(self, match, what):
        """The same text is always the same name; a time is only a time."""
        if what == "time":
            return f"2000-01-01{match[1]}00:00:00"
        number = self._names.setdefault(match[0], len(self._names) + 1)
        return f"{match[1]}{number:0{len(match[0]) - len(match[1])}d}"


def _shortened(value):
    """A request without long contents."""
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    is_long = isinstance(value, str) and len(value) > 200
    return f"{len(value)} characters" if is_long else value


def _without_fractions(text):
    """Fractions of seconds are zeros; pydantic's times have none where they are zero."""
    text = re.sub(r"(00:00:00)\.\d+(?=Z)", r"\1", text)
    return re.sub(r"(00:00:00)\.(\d+)", lambda found: f"{found[1]}.{'0' * len(found[2])}", text)


def _without_measures(value):
    if isinstance(value, dict):
        return {key: _steady(key, item) for key, item in value.items()}
    return [_without_measures(item) for item in value] if isinstance(value, list) else value


def _steady(key, value):
    if key in _MEASURED and value is not None:
        return type(value)()
    if key == "data" and isinstance(value, str) and value.startswith("UEsD"):
        return f"{len(value)} characters of a zip file"  # which holds times
    return "CURSOR" if key in _OPAQUE and value else _without_measures(value)


def picture(number=0, size=8):
    """A PNG that is the same under every version of every library."""

    def chunk(kind, data):
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    raw = b"".join(b"\0" + bytes((number % 256, 30, 40)) * size for _ in range(size))
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(raw), 0xFFFF ^ len(raw)) + raw
    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        + chunk(b"IDAT", stored + struct.pack(">I", zlib.adler32(raw))) + chunk(b"IEND", b"")
    )  # fmt: skip


def encoded(data):
    return base64.b64encode(data).decode()


def dataset_files():
    return [
        {"filename": "a.png", "content": encoded(picture(1, 64)), "content_type": "image/png"},
        {"filename": "a.txt", "content": encoded(b"a cat")},
    ]


def trained(world, name="cat", *, hours=1, base_model="emoji-base"):
    """A completed training with all kinds of results."""
    process_id = world.running("training", name, step=10, age=timedelta(hours=hours)).id
    metadata = {"loradash.base_model": base_model, "ss_network_dim": "1"}
    shapes = {"unet.x.lora_A.weight": (1, 2), "unet.x.lora_B.weight": (2, 1)}
    world.keep(process_id, "config", "config.yaml", TRAINING.encode())
    world.keep(process_id, "job", "job.json", b"{}")
    world.keep(process_id, "lora", f"{name}.safetensors", tensors(shapes, metadata))
    world.keep(process_id, "sample", "step-000000010-0.png", picture(2), step=10, index=0)
    for part in ("adapter.safetensors", "state.safetensors", "checkpoint.json"):
        world.keep(process_id, "checkpoint", f"step-000000010/{part}", part.encode(), step=10)
    world.keep(process_id, "log", "log.txt", b"step 10\n")
    return world.completed(process_id).id


def drawn(world, images=1, *, hours=1):
    """A completed generation."""
    process_id = world.running("generation", "image", age=timedelta(hours=hours)).id
    for index in range(images):
        world.keep(process_id, "image", f"image_{index:04d}.png", picture(index), index=index)
    return world.completed(process_id).id


def everything(world):
    """A process of each status; return their ids."""
    found = {
        "completed": trained(world, hours=9),
        "drawn": drawn(world, hours=8),
        "failed": world.failed(world.running(age=timedelta(hours=7)).id).id,
        "cancelled": world.cancelled(world.running(age=timedelta(hours=6)).id).id,
        "running": world.running(step=4, age=timedelta(hours=5)).id,
        "waiting": world.waiting(age=timedelta(hours=4), priority=3).id,
        "to_draw": world.waiting("generation", "image", age=timedelta(hours=3)).id,
    }
    running = found["running"]
    world.said(running, "loading the base model", "step 4")
    world.measured(running, 2, 4)
    world.registry.change(
        running,
        lambda one: changes.renewed(
            one, TOKEN, now=one.updated_at, lease_s=600,
            progress=one.progress.model_copy(
                update={"detail": "bucket 64x64", "eta_s": 12.3, "steps_per_s": 2.5,
                        "learning_rate": 0.0001}
            ),
        ),
    )  # fmt: skip
    return found


def parsing(talk):
    """Inputs that are no request."""
    for wrong in (None, 7, "processes", [], {}, {"type": None}, {"type": 7}, {"type": "procesess"},
                  {"type": "run_process", "process_id": MISSING}):  # fmt: skip
        talk.put(wrong)


def health(talk):
    """Health, before and after other requests, and with fields that don't exist."""
    talk.ask("health")
    talk.ask("process_status", process_id=MISSING)
    everything(talk.world)
    talk.ask("health", deep=True)
    talk.world.registry.pause(True)
    talk.ask("health")


def processes(talk):
    """Lists, single processes, and cancelling them."""
    talk.ask("processes")
    ids = everything(talk.world)
    talk.ask("processes")
    first = talk.ask("processes", limit=2)
    talk.ask("processes", limit=2, cursor=first["next_cursor"])
    talk.ask("processes", kind="generation")
    talk.ask("processes", process_type="training", status=["failed", "cancelled"])
    talk.ask("processes", status="completed")
    for process_id in ids.values():
        talk.ask("process_status", process_id=process_id)
    talk.ask("process_status", process_id=ids["running"], log_after=0, metrics_after=0)
    talk.ask("process_status", process_id=ids["running"], log_after=1, metrics_after=2)
    talk.ask("process_status", process_id=MISSING)
    talk.ask("process_status", process_id="a b")
    talk.ask("process_status")
    talk.ask("processes", limit=0, status=["gone"], kind="caption")
    talk.ask("processes", cursor="nonsense")
    for name in ("waiting", "running", "running", "completed", "failed", "cancelled"):
        talk.ask("cancel", process_id=ids[name])
    talk.ask("cancel", process_id=MISSING)
    talk.ask("processes", surprise=1)


def training(talk):
    """Starting trainings, and what is wrong with some."""
    talk.ask("upload_training_data", dataset_folder="cats", files=dataset_files())
    talk.ask("train", config=TRAINING)
    talk.ask("train_with_yaml", yaml_config=TRAINING, priority=5, idempotency_key="monday")
    talk.ask("train", config=TRAINING, idempotency_key="monday")
    sections = {
        "type": "sd_trainer", "model": {"name_or_path": "emoji-base"}, "train": {"steps": 3},
        "network": {"type": "lora"}, "datasets": [{"folder_path": "cats"}],
    }  # fmt: skip
    document = {"job": "extension", "config": {"name": "x", "process": [sections]}}
    started = talk.ask("train", config=document, unheard="of")
    talk.ask("process_status", process_id=started["process_id"])
    talk.ask("train")
    talk.ask("train", config="  ")
    talk.ask("train", config=TRAINING, yaml_config=TRAINING)
    talk.ask("train", config="dataset: [")
    talk.ask("train", config=TRAINING.replace("cats", "dogs"))
    talk.ask("train", config=TRAINING.replace("steps: 10", "stepps: 10"))
    talk.ask("train", config=TRAINING, priority=1_000_000)
    trained(talk.world)
    talk.ask("train", extend={"process_id": MISSING, "steps": 20})
    talk.ask("train", extend={"process_id": "cat", "steps": 0})


def generation(talk):
    """Starting generations, and what is wrong with some."""
    adapter = trained(talk.world)
    talk.ask("generate", prompt="a cat", base_model="emoji-base")
    talk.put({"prompt": "a cat", "lora": adapter, "seed": 3})
    started = talk.ask(
        "generate", config=f"base_model: emoji-base\nprompts: [a, b]\nadapters: [{adapter}]\n",
        seed=1, priority=2, idempotency_key="monday",
    )  # fmt: skip
    talk.ask("generate", prompt="other", idempotency_key="monday", base_model="emoji-base")
    talk.ask("process_status", process_id=started["process_id"])
    talk.ask("generate", prompt="(red:1.5) fox <lora:unheard:1>", base_model="emoji-base", seed=1)
    talk.ask("generate", prompt="a cat")
    talk.ask("generate")
    talk.ask("generate", prompt="a cat", lora=MISSING, base_model="emoji-base")
    talk.ask("generate", prompt="a cat", base_model="emoji-base", steps="many", width=7)
    talk.ask("generate", prompt="a cat", base_model="emoji-base", lora="x", adapters=["x"])
    talk.ask("generate", config="job: nonsense")


def results(talk):
    """Lists of results, downloads and deletions."""
    talk.ask("list_models")
    talk.ask("list_files")
    world = talk.world
    first, second, dog = (
        trained(world, name, hours=hours) for name, hours in (("cat", 4), ("cat", 3), ("dog", 2))
    )
    images = drawn(world, 3)
    talk.ask("lora")
    page = talk.ask("list_models", limit=2)
    talk.ask("list_models", limit=2, cursor=page["next_cursor"])
    talk.ask("list_files")
    page = talk.ask("list_files", path=f"results/{images}", limit=2)
    talk.ask("list_files", path=f"results/{images}", limit=2, cursor=page["next_cursor"])
    talk.ask("list_files", path="elsewhere")
    key = f"results/{images}/images/image_0001.png"
    for process_id in (first, dog, images, key):
        talk.ask("download", process_id=process_id)
    talk.ask("download", process_id=images, s3_key=key)
    talk.ask("download", process_id=key, s3_key=f"results/{images}/images/image_0002.png")
    talk.ask("download_by_key", s3_key=key)
    talk.ask("download_by_key", s3_key="results/nothing")
    talk.ask("download_file", file_path=f"results/{dog}/lora/dog.safetensors")
    talk.ask("download_file", file_path="../../etc/passwd")
    talk.ask("download", process_id=MISSING)
    talk.ask("download", process_id=world.waiting(age=timedelta(minutes=1)).id)
    talk.ask("bulk_download", process_ids=[first, second, images])
    talk.ask("bulk_download", process_ids=[first, images], include_images=False)
    talk.ask("bulk_download", process_ids=[])
    talk.ask("delete_results")
    talk.ask("delete_results", process_id=first, result_type="samples")
    talk.ask("delete_results", process_ids=[first, images])
    talk.ask("delete_results", process_id=MISSING)
    talk.ask("delete_results", process_id=dog, result_type="weights")


def large_results(talk):
    """Files that are too large for a reply come as links."""
    world = talk.world
    trained_id, images = trained(world, hours=2), drawn(world, 2)
    talk.ask("download", process_id=trained_id)
    talk.ask("download", process_id=images)
    with world.client() as client:
        body = {"input": {"type": "download", "process_id": trained_id}}
        talk.http(client, "POST", "/api.runpod.ai/v2/local/runsync", body)


def datasets(talk):
    """Uploads in one request and in several, lists of datasets, and logs."""
    talk.ask("list_dataset_folders")
    talk.ask("upload_training_data", dataset_folder="cats", files=dataset_files(),
             training_name="Cats", trigger_word="sks")  # fmt: skip
    talk.ask("upload_training_data", training_name="dogs",
             files=[*dataset_files(), {"filename": "b.psd", "content": encoded(b"x")},
                    {"filename": "c.png", "content": encoded(b"no picture")}])  # fmt: skip
    talk.ask("upload_training_data", dataset_folder="cats", cleanup_existing=False,
             files=[{"filename": "a.txt", "content": encoded(b"two cats")}])  # fmt: skip
    talk.ask("upload_training_data", dataset_folder="_x", files=[])
    talk.ask("upload_training_data", files=[{"filename": "a.png", "content": "!"}])
    announced = [{"filename": "a.png", "size": len(picture())}]
    upload = talk.ask("create_upload", dataset_folder="birds", files=announced)
    upload_id = upload["upload_id"]
    talk.ask("complete_upload", dataset_folder="birds", upload_id=upload_id)
    talk.world.store.put(upload["files"][0]["key"], picture())
    talk.ask("create_upload", dataset_folder="birds", files=announced)
    talk.ask("complete_upload", dataset_folder="birds", upload_id=upload_id)
    talk.ask("complete_upload", dataset_folder="birds", upload_id=upload_id)
    second = talk.ask("create_upload", dataset_folder="fish", files=announced)["upload_id"]
    talk.ask("abort_upload", dataset_folder="fish", upload_id=second)
    talk.ask("abort_upload", dataset_folder="fish", upload_id=second)
    talk.ask("create_upload", files=[{"filename": "a.txt", "size": -1}])
    talk.ask("list_dataset_folders")
    talk.world.workspace.logs.joinpath("requests.log").write_text("one\ntwo\n")
    talk.ask("clear_logs", log_type="requests")
    talk.ask("clear_logs", log_type="all")
    talk.ask("clear_logs", log_type="everything")


def dataset_routes(talk):
    """The JSON routes of datasets."""
    talk.ask("upload_training_data", dataset_folder="cats", files=dataset_files())
    with talk.world.client() as client:

        def send(method, path, body=None):
            return talk.http(client, method, path, body)

        send("GET", "/datasets")
        send("GET", "/datasets?limit=0")
        send("GET", "/datasets/cats")
        send("GET", "/datasets/dogs")
        send("POST", "/datasets", {"name": "dogs", "trigger_word": "sks"})
        send("POST", "/datasets", {"name": "dogs"})
        send("POST", "/datasets", {"name": "_x", "surprise": 1})
        send("PATCH", "/datasets/dogs", {"trigger_word": "dog", "training_name": "Dogs"})
        send("PATCH", "/datasets/dogs", {"trigger_word": "dog", "if_version": "old"})
        send("GET", "/datasets/cats/captions/a.png")
        send("PUT", "/datasets/cats/captions/a.png", {"text": "a black cat"})
        send("PUT", "/datasets/cats/captions/a.png", {"text": "x", "if_version": "old"})
        send("GET", "/datasets/cats/statistics")
        send("GET", "/datasets/cats/duplicates")
        send("GET", "/datasets/cats/files/a.png")
        send("GET", "/datasets/cats/files/b.png")
        send("POST", "/datasets/cats/import", {"url": "ftp://example.org/x.zip"})
        send("POST", "/datasets/cats/remove", {"files": ["a.txt", "b.txt"]})
        send("DELETE", "/datasets/cats/files/a.txt")
        send("DELETE", "/datasets/cats")
        send("DELETE", "/datasets/cats")
        send("GET", "/datasets")


def server_routes(talk):
    """Health, queue, models and files over HTTP."""
    ids = everything(talk.world)
    with talk.world.client() as client:

        def send(method, path, body=None):
            return talk.http(client, method, path, body)

        send("GET", "/health")
        send("GET", "/queue")
        send("POST", "/queue/pause")
        send("GET", "/queue")
        send("POST", "/queue/resume")
        send("POST", f"/queue/{ids['waiting']}/priority", {"priority": 7})
        send("POST", f"/queue/{ids['waiting']}/priority", {"priority": 10**6})
        send("POST", f"/queue/{ids['completed']}/priority", {"priority": 1})
        send("POST", f"/queue/{MISSING}/priority", {"priority": 1})
        send("GET", "/models/cat")
        send("GET", f"/models/{ids['completed']}")
        send("GET", "/models/dog")
        send("PATCH", "/models/cat", {"name": "my cat"})
        send("PATCH", "/models/cat", {"name": " "})
        send("GET", f"/files/results/{ids['drawn']}/images/image_0000.png")
        send("GET", f"/files/results/{ids['drawn']}/images/image_0001.png")
        send("GET", "/download/zip")
        send("DELETE", f"/models/{ids['completed']}")
        send("DELETE", "/models/cat")
        send("GET", "/nothing")
        send("PUT", "/queue")


def jobs(talk):
    """RunPod's job API."""
    talk.ask("upload_training_data", dataset_folder="cats", files=dataset_files())
    ids = everything(talk.world)
    with talk.world.client() as client:

        def send(method, path, body=None):
            return talk.http(client, method, f"/v2/local/{path}", body)

        def run(route, **request):
            return send("POST", route, {"input": request}).json()

        send("GET", "health")
        run("runsync", type="processes", limit=1)
        run("runsync", type="process_status", process_id=MISSING)
        run("run", type="train", config=TRAINING)
        run("run", type="train", config="steps: 1")
        run("runsync", type="train", config=TRAINING)
        run("runsync", type="generate", prompt="a cat", base_model="emoji-base")
        light = run("run", type="list_models")["id"]
        send("GET", f"status/{light}")
        send("GET", f"stream/{light}")
        send("GET", f"stream/{light}")
        send("POST", f"cancel/{light}")
        send("POST", f"retry/{light}")
        failed = run("run", type="cancel", process_id=MISSING)["id"]
        send("GET", f"status/{failed}")
        send("POST", f"retry/{failed}")
        for process_id in ids.values():
            send("GET", f"status/{process_id}")
        send("POST", f"status/{ids['running']}")
        send("GET", f"stream/{ids['running']}")
        send("GET", f"stream/{ids['running']}")
        send("POST", f"cancel/{ids['running']}")
        send("POST", f"cancel/{ids['completed']}")
        send("POST", f"retry/{ids['failed']}")
        send("POST", f"retry/{ids['completed']}")
        send("GET", f"status/{MISSING}")
        send("GET", "status/req_0")
        send("POST", "run", {"type": "processes"})
        send("POST", "runsync", {"input": {"type": "cancel"}, "webhook": "https://example.org"})
        send("POST", "purge-queue")
        send("GET", "health")
        talk.http(client, "POST", "/v2/x%20y/run", {"input": {"type": "health"}})


def dashboard(talk):
    """The routes of the published dashboard in its RunPod mode."""
    talk.ask("upload_training_data", dataset_folder="cats", files=dataset_files())
    ids = everything(talk.world)
    with talk.world.client() as client:

        def run(route, **request):
            return talk.http(
                client, "POST", f"/api.runpod.ai/v2/local/{route}", {"input": request}
            ).json()

        run("runsync", type="processes")
        run("runsync", type="list_models")
        run("runsync", type="train_with_yaml", config=TRAINING)
        run("runsync", type="train_with_yaml", config="steps: 1")
        run("run", type="generate", config="base_model: emoji-base\nprompts: [a cat]\n")
        run("run", type="generate", config="")
        run("runsync", type="download", process_id=ids["completed"])
        run("runsync", type="cancel", process_id=ids["waiting"])
        run("runsync", type="cancel", process_id=MISSING)
        run("runsync", type="process_status", process_id=ids["failed"])
        run("runsync", type="bulk_download", process_ids=[ids["drawn"]])
        run("runsync", type="list_files")
        run("runsync", type="download_file", file_path="s3://x/y")
        run("runsync", type="clear_logs", log_type="app")
        run("run", type="upload_training_data", training_name="cats 2", files=dataset_files())
        talk.http(client, "GET", "/api.runpod.ai/v2/local/health")


def executors(talk):
    """What is shown of this machine's slots, and of a RunPod endpoint."""
    lanes = (
        LaneState(name="training", waiting_reason="Waiting for memory"),
        LaneState(name="generation", process_id=MISSING),
    )
    here = ExecutorState(slots=(SlotState(name="cuda:0", lanes=lanes),), error="no answer")
    endpoint = EndpointState(
        id="ep1", jobs={"inQueue": 1}, workers={"throttled": 2, "idle": 0},
        waiting_reason="RunPod has no worker for it yet",
    )  # fmt: skip
    with talk.world.client() as client:
        for state in (here, ExecutorState(endpoint=EndpointState(id="ep1")),
                      ExecutorState(endpoint=endpoint, error="RunPod is away")):  # fmt: skip
            talk.world.executor.state = lambda state=state: state
            for path in ("/queue", "/health", "/v2/local/health"):
                talk.http(client, "GET", path)


def job_outcomes(talk):
    """The last reply of a worker's job, for each state of its process."""
    for name, process_id in everything(talk.world).items():
        talk.note(name, ended_job(talk.world.registry.get(process_id)))


CONVERSATIONS = {
    "parsing": parsing, "health": health, "processes": processes, "training": training,
    "generation": generation, "results": results, "large_results": large_results,
    "datasets": datasets, "dataset_routes": dataset_routes, "server_routes": server_routes,
    "jobs": jobs, "dashboard": dashboard, "job_outcomes": job_outcomes, "executors": executors,
}  # fmt: skip


def recorded_now(name, root):
    """Have a conversation, and return it as its recording is written."""
    options = {"max_inline_bytes": 50} if name == "large_results" else {}
    talk = Conversation(root, **options)
    CONVERSATIONS[name](talk)
    return talk.text()


def main(names):
    """Record these conversations, or all."""
    FOLDER.mkdir(exist_ok=True)
    for name in names or CONVERSATIONS:
        with tempfile.TemporaryDirectory() as root:
            text = recorded_now(name, Path(root).resolve())
        FOLDER.joinpath(f"{name}.json").write_text(text, encoding="utf-8")
        print(name, len(text))


if __name__ == "__main__":
    main(sys.argv[1:])
