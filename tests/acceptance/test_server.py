"""The server as its users meet it: a real process, asked over HTTP and by the command line."""

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from loradash.data import base_model_folder
from tests.acceptance.conftest import (
    CommandLine,
    Server,
    draw_dataset,
    engine_processes,
    scripted,
    training,
    upload,
)
from tests.servers.plain_http import curl

pytestmark = pytest.mark.slow

CLIENT = Path(__file__).with_name("runpod_client.py")
STEPS = 60
FOR_EVER = 4000
SHORT = training("triangles", name="triangle", steps=STEPS, seed=3, save_every=5)
LONG = scripted("triangles", name="long", steps=FOR_EVER, save_every=5)
REAL = training("triangles", name="long", steps=FOR_EVER, save_every=5)
"""For what depends on the built-in engine itself: how it ends, and why it fails."""
ENDED = {"completed", "failed", "cancelled"}


@pytest.fixture(scope="module")
def long_running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("shared")
    server = Server(CommandLine(root)).start()
    try:
        upload(server, draw_dataset(root / "dataset"), "triangles")
        yield server
        assert server.terminate() == 0
        assert engine_processes(root) == []
    finally:
        server.close()
        for pid in engine_processes(root):
            os.killpg(pid, signal.SIGKILL)


@pytest.fixture
def shared(long_running: Server) -> Iterator[Server]:
    """A server with a dataset, for all tests that need none of their own; it comes idle."""
    yield long_running
    long_running.call("/queue/resume", {})
    long_running.call("/v2/local/purge-queue", {})
    for one in long_running.ask(type="processes", status=["running"])["processes"]:
        long_running.ask(type="cancel", process_id=one["id"])
        long_running.wait_until(one["id"], ENDED, timeout_s=30)


@pytest.fixture(scope="module")
def undisturbed(long_running: Server) -> dict[str, Any]:
    """A training that ran from its start to its end."""
    return long_running.wait_until(long_running.submit(type="train", config=SHORT), {"completed"})


@pytest.fixture
def own(server: Server, dataset: Path) -> Server:
    """A running server of the test's own, with a dataset."""
    server.start()
    upload(server, dataset, "triangles")
    return server


def weights(server: Server, process: dict[str, Any]) -> dict[str, bytes]:
    from safetensors.numpy import load_file

    key = next(entry["key"] for entry in process["artifacts"] if entry["kind"] == "lora")
    tensors = load_file(server.cli.objects / key)
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


def wait_for_step(server: Server, process_id: str, step: int) -> dict[str, Any]:
    return server.wait_until(process_id, lambda one: one["step"] >= step)


def training_engines(server: Server) -> list[int]:
    found = []
    for pid in engine_processes(server.cli.workspace):
        with contextlib.suppress(OSError):
            if b"train" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


# The main job


def test_main_job_with_runpods_own_client(shared: Server, dataset: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(CLIENT), shared.url, str(dataset)],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    states = told["states"]
    assert states[0] in ("IN_QUEUE", "IN_PROGRESS")
    assert states[-1] == "COMPLETED"
    assert set(states) <= {"IN_QUEUE", "IN_PROGRESS", "COMPLETED"}
    seen = told["seen"]
    assert [one["step"] for one in seen] == sorted(one["step"] for one in seen)
    assert seen[-1] | {"status": "completed", "step": 20, "progress": 100} == seen[-1]
    assert any("completed" in line for one in seen for line in one["log"])
    for what in ("adapter", "image"):
        data = base64.b64decode(told[what].pop("data"))
        assert told[what] == told[f"{what}_listed"]
        assert told[what]["sha256"] == hashlib.sha256(data).hexdigest()
        stored = shared.cli.objects / told[what]["key"]
        # The adapter was deleted in the end, the image was not.
        assert not stored.exists() if what == "adapter" else stored.read_bytes() == data
    assert told["health"]["jobs"] | {"inProgress": 1, "inQueue": 1} == told["health"]["jobs"]
    assert told["health"]["workers"]["running"] == 1
    assert told["cancelled"] == ["CANCELLED"] * 3
    assert told["refused"] == "FAILED"
    assert told["deleted"] >= 5
    assert told["process_id"] not in told["models_left"]


def asked(url: str, body: Any = None, target: Path | None = None) -> Any:
    headers = {} if body is None else {"content-type": "application/json"}
    reply = curl(url, headers, body)
    return target.write_bytes(reply) if target else json.loads(reply)


def test_main_job_with_curl(shared: Server, dataset: Path, tmp_path: Path) -> None:

    def ask(**request: Any) -> Any:
        return asked(f"{shared.url}/v2/local/runsync", {"input": request})["output"]

    def finished(process_id: str) -> Any:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            job = asked(f"{shared.url}/v2/local/status/{process_id}")
            if job["status"] not in ("IN_QUEUE", "IN_PROGRESS"):
                return job
            time.sleep(0.3)
        raise AssertionError(job)

    files = [
        {"filename": path.name, "content": base64.b64encode(path.read_bytes()).decode()}
        for path in sorted(dataset.iterdir())
    ]
    ask(type="upload_training_data", training_name="curled", trigger_word="sks", files=files)
    assert "curled" in ask(type="list_dataset_folders")["folders"]
    config = training("curled", name="curled", steps=4)
    trained = asked(
        f"{shared.url}/v2/local/run",
        {"input": {"type": "train_with_yaml", "yaml_config": config}},
    )
    process_id = trained["id"]
    assert finished(process_id)["status"] == "COMPLETED"
    drawn = asked(
        f"{shared.url}/v2/local/run",
        {"input": {"prompt": "a sks triangle", "lora": process_id, "steps": 2, "num_images": 2}},
    )
    assert finished(drawn["id"])["status"] == "COMPLETED"
    reply = ask(type="bulk_download", process_ids=[process_id, drawn["id"]])
    links = [one for one in reply["download_items"] if "/samples/" not in one["key"]]
    assert [one["type"] for one in links] == ["lora", "image", "image"]
    for number, one in enumerate(links):
        target = tmp_path / f"{number}"
        asked(one["url"], target=target)
        assert hashlib.sha256(target.read_bytes()).hexdigest() == one["sha256"]
    with Image.open(tmp_path / "1") as image:
        assert image.size == (64, 64)


# Looking on, and cancelling


def test_processes_while_a_training_runs_and_cancelling(shared: Server) -> None:
    began_s = time.monotonic()
    reply = shared.call("/v2/local/runsync", {"input": {"type": "train", "config": REAL}}).json()
    assert time.monotonic() - began_s < 2
    assert reply["status"] == "COMPLETED"
    running = reply["output"]["process_id"]
    assert reply["output"]["data"]["process_id"] == running
    queued, next_one = (shared.submit(type="train", config=REAL) for _ in range(2))
    wait_for_step(shared, running, 5)

    listed = shared.ask(type="processes")
    assert "status" not in listed
    entry = next(one for one in listed["processes"] if one["id"] == running)
    assert entry["status"] == "running"
    assert entry["name"] == "long"
    assert 5 <= entry["step"] < entry["total_steps"] == FOR_EVER
    assert 0 < entry["progress"] < 50
    assert entry["eta"] > 0
    assert isinstance(entry["elapsed_time"], int) and entry["elapsed_ms"] > 0
    assert (entry["gpu_id"], entry["device"]) == (None, "cpu")
    assert entry["config"]["config"]["process"][0]["trigger_word"] == "sks"

    assert shared.ask(type="cancel", process_id=queued)["process_status"] == "cancelled"
    one = shared.process(queued)
    assert (one["status"], one["attempt"]) == ("cancelled", 0)

    [engine] = training_engines(shared)
    assert seconds_to_end(shared, running, engine) < 5
    one = shared.wait_until(running, ENDED)
    assert (one["status"], one["error_message"], one["resumable"]) == ("cancelled", None, True)
    assert one["attempts"][0]["ending"] == "cancelled"
    shared.wait_until(next_one, {"running"}, timeout_s=20)
    shared.ask(type="cancel", process_id=next_one)
    assert shared.wait_until(next_one, ENDED)["status"] == "cancelled"


def seconds_to_end(server: Server, process_id: str, engine: int) -> float:
    """Cancel a process; return how long its engine's group was there after that."""
    began_s = time.monotonic()
    server.ask(type="cancel", process_id=process_id)
    while time.monotonic() - began_s < 30:
        try:
            os.killpg(engine, 0)
        except ProcessLookupError:
            break
        time.sleep(0.02)
    return time.monotonic() - began_s


def test_cancelled_generation_frees_its_slot_at_once(shared: Server) -> None:
    wanted = {
        "type": "generate", "prompt": "a triangle", "base_model": "emoji-base", "steps": 2,
        "seed": 1,
    }  # fmt: skip
    running = shared.submit(**wanted, num_images=1000)
    following = shared.submit(**wanted)
    shared.wait_until(running, lambda one: one["step"] >= 2)
    began_s = time.monotonic()
    shared.ask(type="cancel", process_id=running)
    assert shared.wait_until(running, ENDED)["status"] == "cancelled"
    assert time.monotonic() - began_s < 5
    one = shared.wait_until(following, {"completed"})
    assert [entry["name"] for entry in one["artifacts"]] == ["image_0000.png"]


DEAF = """
import signal, sys

if "loradash.engines.diffusers" in sys.orig_argv:
    set_handler = signal.signal
    for number in (signal.SIGINT, signal.SIGTERM):
        set_handler(number, signal.SIG_IGN)

    def signal_unless_deaf(number, handler):
        if number not in (signal.SIGINT, signal.SIGTERM):
            return set_handler(number, handler)

    signal.signal = signal_unless_deaf
"""


def test_engine_that_hears_no_signal_is_killed(server: Server, dataset: Path) -> None:
    folder = server.cli.root / "deaf"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(DEAF)
    before = os.environ.get("PYTHONPATH", "")
    server.start(PYTHONPATH=os.pathsep.join([str(folder), before]))
    upload(server, dataset, "triangles")
    process_id = server.submit(type="train", config=REAL)
    wait_for_step(server, process_id, 1)
    [engine] = training_engines(server)
    os.killpg(engine, signal.SIGINT)
    os.killpg(engine, signal.SIGTERM)
    step = server.process(process_id)["step"]
    wait_for_step(server, process_id, step + 5)
    assert seconds_to_end(server, process_id, engine) < 5
    assert server.wait_until(process_id, ENDED)["status"] == "cancelled"


# Stopping and going on


def test_sigterm_saves_and_the_next_start_continues(
    own: Server, shared: Server, undisturbed: dict[str, Any]
) -> None:
    process_id = own.submit(type="train", config=SHORT)
    wait_for_step(own, process_id, 7)
    assert own.terminate() == 0
    assert engine_processes(own.cli.root) == []
    one = json.loads(own.cli.run("processes", process_id, "--json").out)
    assert one["status"] == "pending"
    [note] = one["attempts"]
    assert note["ending"] == "released"
    assert 7 <= note["to_step"] < STEPS
    checkpoint = f"step-{note['to_step']:09d}"
    folder = own.cli.workspace / "output/training" / process_id / "checkpoints"
    assert checkpoint in [path.name for path in folder.iterdir()]
    own.start()
    one = own.wait_until(process_id, {"completed"})
    assert [attempt["from_step"] for attempt in one["attempts"]] == [0, note["to_step"]]
    assert weights(own, one) == weights(shared, undisturbed)
    rows = own.process(process_id, metrics_after=0)["metrics"]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))


def test_second_server_in_a_workspace_says_what_to_do(shared: Server) -> None:
    second = shared.cli.run("up", "--port", "0", timeout_s=60)
    assert second.exit_code == 1
    assert "another loradash server is running in" in second.err
    assert "Stop it, or give this one another WORKSPACE_PATH." in second.err
    assert "Traceback" not in second.err
    assert shared.ask(type="health")["services"]["storage"]["status"] == "healthy"


def test_training_of_a_command_beside_the_server(
    shared: Server, undisturbed: dict[str, Any]
) -> None:
    cli = shared.cli
    few = {**SHORT, "steps": 20}
    (cli.root / "few.json").write_text(json.dumps(few))
    (cli.root / "short.json").write_text(json.dumps(SHORT))
    known = {one["id"] for one in shared.ask(type="processes", limit=200)["processes"]}

    def started(process: "subprocess.Popen[str]") -> str:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and process.poll() is None:
            for one in shared.ask(type="processes", status=["running"])["processes"]:
                if one["id"] not in known and one["gpu_id"] == "local" and one["step"] > 3:
                    known.add(one["id"])
                    return one["id"]
            time.sleep(0.1)
        raise AssertionError(process.communicate())

    command = cli.start("train", "few.json")
    own_id = started(command)
    by_server = shared.submit(type="train", config=few)
    known.add(by_server)
    out, err = command.communicate(timeout=180)
    assert command.returncode == 0, err
    assert own_id in out
    both = [shared.wait_until(one, {"completed"}) for one in (own_id, by_server)]
    assert [one["attempt"] for one in both] == [1, 1]
    assert weights(shared, both[0]) == weights(shared, both[1])

    command = cli.start("train", "short.json")
    orphaned = started(command)
    command.kill()
    command.communicate()
    one = shared.wait_until(orphaned, {"completed"})
    first, *others = one["attempts"]
    assert first["ending"] == "lost"
    assert others[-1]["ending"] == "completed"
    assert others[-1]["device"] == "cpu"
    assert weights(shared, one) == weights(shared, undisturbed)


# The queue


def test_queue_is_paused_ordered_and_remembered(own: Server) -> None:
    cli = own.cli
    assert "paused" in cli.run("queue", "pause").out
    low, high, middle = (
        own.submit(type="train", config={**LONG, "name": f"p{priority}"}, priority=priority)
        for priority in (-3, 5, 0)
    )
    assert own.terminate() == 0
    own.start()
    shown = json.loads(cli.run("queue", "--json").out)
    assert shown["paused"] is True
    assert [one["id"] for one in shown["order"]] == [high, middle, low]
    assert [own.process(one)["queue_position"] for one in (high, middle, low)] == [1, 2, 3]
    time.sleep(2)
    assert shown["running"] == own.call("/queue").json()["running"] == 0
    assert own.call(f"/queue/{low}/priority", {"priority": 9}).json()["priority"] == 9
    resumed = cli.run("queue", "resume", LORADASH_URL=own.url)
    assert resumed.exit_code == 0
    assert "paused" not in resumed.out
    own.wait_until(low, {"running"}, timeout_s=20)
    lines = cli.run("queue", "show", LORADASH_URL=own.url).out.splitlines()
    assert lines[0] == "1 running, 2 waiting"
    assert f"cpu training: {low}" in lines[1]
    assert [high in lines[-2], middle in lines[-1]] == [True, True]
    assert own.call("/v2/local/purge-queue", {}).json()["removed"] == 2
    assert own.process(high)["status"] == "cancelled"


# Commands


@pytest.fixture(params=["beside the server", "through the server"])
def command(request: pytest.FixtureRequest, shared: Server) -> Any:
    """Run a command against the shared server's workspace, or against the server itself."""
    environment = {"LORADASH_URL": shared.url} if request.param == "through the server" else {}

    def run(*arguments: str) -> Any:
        return shared.cli.run(*arguments, timeout_s=120, **environment)

    run.environment = environment  # type: ignore[attr-defined]
    return run


def test_commands_show_processes_datasets_and_models(
    shared: Server, undisturbed: dict[str, Any], command: Any, dataset: Path
) -> None:
    process_id = undisturbed["id"]
    row = re.search(rf"{process_id}\s+triangle\s+completed\s+60/60\s", command("processes").out)
    shown = command("processes", process_id).out
    assert row
    assert f"{process_id}  triangle (training)" in shown
    assert "attempt 1: steps 0 to 60, completed" in shown
    assert re.search(rf"results/{process_id}/lora/a1-[0-9a-f]+/triangle.safetensors", shown)
    none = command("processes", "train_00000000000000000000")
    assert none.exit_code == 1
    assert "there is no process" in none.err

    models = command("models").out
    # Beside others of its name it is told apart by the end of its id.
    named = rf"{process_id}\s+triangle( \(\w+\))?\s+triangle(-\w+)?.safetensors\s"
    assert re.search(rf"{named}.*\ssks\s+emoji-base\s", models)

    stored = command("datasets", "upload", str(dataset), "--name", "by command")
    assert stored.exit_code == 0, stored.err
    assert re.search(r"by-command\s+6\s+6\s", command("datasets", "list").out)
    empty = dataset / "empty"
    empty.mkdir()
    refused = command("datasets", "upload", str(empty))
    assert refused.exit_code == 1
    assert "holds no images" in refused.err


def test_logs_follow_to_the_end_and_tell_it(
    shared: Server, undisturbed: dict[str, Any], failed: str, command: Any
) -> None:
    followed = command("logs", "-f", undisturbed["id"])
    assert followed.exit_code == 0
    assert re.search(r"\d\d:\d\d:\d\d checkpoint at step 5 \(\d+ bytes\)\n", followed.out)
    assert followed.out.endswith(" completed\n")
    followed = command("logs", "-f", failed)
    assert followed.exit_code == 1
    assert "failed (dataset_invalid)" in followed.out

    running = shared.submit(type="train", config=LONG)
    log = shared.cli.start("logs", "-f", running, **command.environment)
    shared.wait_until(running, {"running"})
    asked = command("cancel", running)
    assert asked.exit_code == 0
    assert f"process {running} is being stopped" in asked.out
    out, err = log.communicate(timeout=60)
    assert log.returncode == 130, err
    assert "cancel requested" in out
    assert command("logs", running).exit_code == 0
    again = command("cancel", undisturbed["id"])
    assert again.exit_code == 1
    assert "already completed" in again.err

    resumed = command("resume", running)
    assert resumed.exit_code == 0
    assert f"{running} is queued" in resumed.out
    shared.wait_until(running, {"running"})
    command("cancel", running)
    one = shared.wait_until(running, ENDED)
    assert (one["status"], one["attempt"]) == ("cancelled", 2)


# Failures


@pytest.fixture(scope="module")
def failed(long_running: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A training whose dataset was damaged after the upload."""
    folder = draw_dataset(tmp_path_factory.mktemp("damaged") / "dataset")
    upload(long_running, folder, "damaged")
    stored = next((long_running.cli.objects / "dataset/damaged").rglob("2.png"))
    stored.write_bytes(stored.read_bytes()[:50])
    process_id = long_running.submit(type="train", config=training("damaged", steps=5))
    long_running.wait_until(process_id, {"failed"}, timeout_s=30)
    return process_id


def test_failed_trainings_say_why(shared: Server, failed: str) -> None:
    one = shared.process(failed)
    assert (one["error_code"], one["resumable"]) == ("dataset_invalid", True)
    assert "2.png" in one["error_message"] + " ".join(one["error_problems"])
    job = shared.call(f"/v2/local/status/{failed}").json()
    assert job["status"] == "FAILED"
    assert job["error"].startswith(one["error_message"])
    assert "output" not in job

    base = shared.cli.workspace / "base"
    shutil.copytree(base_model_folder("emoji-base"), base)
    shared.call("/queue/pause", {})
    process_id = shared.submit(type="train", config={**REAL, "base_model": str(base)})
    shutil.rmtree(base)
    shared.call("/queue/resume", {})
    one = shared.wait_until(process_id, {"failed"}, timeout_s=30)
    assert (one["error_code"], one["resumable"]) == ("base_model_invalid", True)
    assert str(base) in one["error_message"]

    process_id = shared.submit(type="train", config={**REAL, "learning_rate": 1e6})
    one = shared.wait_until(process_id, {"failed"})
    assert one["error_code"] == "loss_not_finite"
    assert "Lower the learning rate" in one["remedy"]
    assert shared.call(f"/v2/local/status/{process_id}").json()["status"] == "FAILED"


def test_refused_requests_have_an_error_and_nothing_else(shared: Server) -> None:
    for request in (
        {"type": "trian"},
        {"type": "train", "config": "dataset: nothing-there\nbase_model: emoji-base"},
        {"type": "train", "config": "steps: ["},
        {"type": "process_status", "process_id": "train_00000000000000000000"},
        {"type": "generate", "prompt": "x", "base_model": "/etc"},
    ):
        for route in ("run", "runsync"):
            job = shared.call(f"/v2/local/{route}", {"input": request}).json()
            assert job["status"] == "FAILED", job
            assert isinstance(job["error"], str)
            assert "\n" in job["error"], "no remedy"
            assert set(job) <= {"id", "status", "error", "delayTime", "executionTime"}


def test_timed_out_training_goes_on_after_a_retry(own: Server, undisturbed: dict[str, Any]) -> None:
    own.terminate()
    # Enough time for some steps, however slow the machine is.
    own.start(TRAINING_TIMEOUT=str(max(8, undisturbed["elapsed_time"])))
    process_id = own.submit(type="train", config=LONG)
    one = own.wait_until(process_id, {"failed"})
    job = own.call(f"/v2/local/status/{process_id}").json()
    assert job["status"] == "TIMED_OUT"
    assert "stopped after its time limit" in job["error"]
    assert (one["error_code"], one["resumable"]) == ("timed_out", True)
    step = one["attempts"][0]["to_step"]
    assert step > 0
    retried = own.call(f"/v2/local/retry/{process_id}", {}).json()
    assert retried == {"id": process_id, "status": "IN_QUEUE"}
    one = wait_for_step(own, process_id, step + 5)
    assert one["attempts"][1]["from_step"] == step
    own.ask(type="cancel", process_id=process_id)
    assert own.wait_until(process_id, ENDED)["status"] == "cancelled"


# Files, and who may ask


def raw(server: Server, path: str, **headers: str) -> tuple[int, bytes]:
    """Send a path as it is, which clients would tidy up."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    with contextlib.closing(connection):
        connection.putrequest("GET", path, skip_host=True)
        for name, value in ({"Host": urlsplit(server.url).netloc} | headers).items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.read()


def test_files_come_whole_and_by_range(shared: Server, undisturbed: dict[str, Any]) -> None:
    entry = next(one for one in undisturbed["artifacts"] if one["kind"] == "lora")
    data = (shared.cli.objects / entry["key"]).read_bytes()
    whole = shared.call(f"/files/{entry['key']}")
    assert whole.content == data
    assert hashlib.sha256(whole.content).hexdigest() == entry["sha256"]
    assert whole.headers["etag"] == f'"{entry["sha256"]}"'
    for wanted, expected in (
        ("bytes=0-0", data[:1]),
        ("bytes=100-199", data[100:200]),
        ("bytes=-7", data[-7:]),
        (f"bytes={len(data) - 3}-", data[-3:]),
    ):
        part = shared.call(f"/files/{entry['key']}", headers={"Range": wanted})
        assert (part.status_code, part.content) == (206, expected)
    beyond = shared.call(f"/files/{entry['key']}", headers={"Range": f"bytes={len(data)}-"})
    assert beyond.status_code == 416


def test_only_results_are_files(shared: Server, undisturbed: dict[str, Any]) -> None:
    process_id = undisturbed["id"]
    secret = shared.cli.objects / "results" / process_id / "lora/secret"
    secret.write_text("TOP SECRET")
    (shared.cli.objects.parent / "secret").write_text("TOP SECRET")
    drawn = shared.submit(type="generate", prompt="x", base_model="emoji-base", steps=1)
    shared.wait_until(drawn, {"completed"})
    try:
        for path in (
            "",
            "results",
            f"results/{process_id}",
            f"results/{process_id}/lora/",
            f"results/{process_id}/lora/secret",
            f"results/{process_id}/manifest.json",
            f"results/{drawn}/config.yaml",
            f"results/{process_id}/lora/nothing.safetensors",
            "results/train_00000000000000000000/lora/triangle.safetensors",
            "dataset/triangles/_training_info.json",
            "registry.sqlite3",
            "../workspace/registry.sqlite3",
            "..%2fworkspace%2fregistry.sqlite3",
            "..%2Fsecret",
            "%2e%2e/secret",
            "../secret",
            f"results/{process_id}/../../../secret",
            f"results/{process_id}/lora/..%2f..%2f..%2f..%2fsecret",
            f"results/{process_id}/lora/..%5c..%5csecret",
            f"results/{process_id}/lora/triangle.safetensors%00",
            f"results/{process_id}/lora/%00",
            "%00",
            "/etc/passwd",
            "%2fetc%2fpasswd",
            "file:%2f%2f%2fetc%2fpasswd",
            f"{shared.cli.objects}/results/{process_id}/lora/secret",
            "results/" + "a" * 5000,
            "%ff%fe",
        ):
            status, body = raw(shared, f"/files/{path}")
            assert status in (400, 404), path
            assert set(json.loads(body)) == {"error", "message"}, path
            assert b"SECRET" not in body
            assert b"SQLite" not in body
    finally:
        secret.unlink()


def test_foreign_pages_and_names_are_refused(shared: Server) -> None:
    body = {"input": {"type": "processes"}}
    own_host = urlsplit(shared.url).netloc

    def post(**headers: str) -> int:
        reply = shared.call("/v2/local/runsync", body, headers=headers)
        assert reply.status_code == 200 or set(reply.json()) == {"error", "message"}
        return reply.status_code

    assert post() == 200
    assert post(Origin=shared.url) == 200
    assert post(Origin="https://evil.example") == 403
    assert post(Origin="null") == 403
    assert post(Host="evil.example") == 403
    assert post(Host=f"evil.example:{own_host.partition(':')[2]}") == 403
    assert post(**{"Content-Type": "text/plain"}) == 400
    assert post(**{"Content-Type": "application/x-www-form-urlencoded"}) == 400
    assert raw(shared, "/queue", Host="evil.example")[0] == 403
    answer = shared.call(
        "/v2/local/runsync", method="OPTIONS",
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"},
    )  # fmt: skip
    assert "access-control-allow-origin" not in answer.headers
