"""RunPod's job API and what stands before it, in process: requests go through the whole app."""

import asyncio
import json
import math
import re
import threading
from datetime import timedelta
from typing import get_args

import pytest

from loradash.api import jobs as jobs_module
from loradash.api.app import create_app
from loradash.api.examples import EXAMPLES
from loradash.domain.process import Status
from loradash.protocol.requests import REQUEST_TYPES, AnyRequest
from loradash.registry.sql import SqlRegistry
from loradash.storage.local import LocalStore

from .world import MISSING, BrokenRegistry, HeldRegistry, World, logged

JSON = {"content-type": "application/json"}
PROCESSES = {"input": {"type": "processes"}}


@pytest.fixture(autouse=True)
def log():
    with logged() as stream:
        yield stream


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
def client(world):
    with world.client() as client:
        yield client


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One for all requests that change nothing."""
    with World(tmp_path_factory.mktemp("shared")).client() as client:
        yield client


@pytest.fixture
def clock(monkeypatch):
    """The time by which replies are kept; tests move it."""

    class Clock:
        now_s = 1000.0

        def monotonic(self):
            return self.now_s

    clock = Clock()
    monkeypatch.setattr(jobs_module, "time", clock)
    return clock


def runsync(client, kind, /, **fields):
    return client.post("/v2/local/runsync", json={"input": {"type": kind, **fields}})


def is_error(response, status, words=""):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error", "message"]
    assert response.json()["message"] == response.json()["error"]
    assert words in response.json()["error"]
    return True


def asgi(app, *, method="POST", path="/v2/local/runsync", headers=(), chunks=(b"",)):
    """Send a request that no client would send; return its status and body."""
    messages = [
        {"type": "http.request", "body": chunk, "more_body": n < len(chunks) - 1}
        for n, chunk in enumerate(chunks)
    ]
    sent = []
    taken = 0

    async def receive():
        nonlocal taken
        taken += 1
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
        "root_path": "", "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 5000),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], json.loads(body), taken


# Running


def test_runsync_answers_with_the_output(client):
    response = runsync(client, "processes")
    job = response.json()
    assert response.status_code == 200
    assert job["status"] == "COMPLETED"
    assert job["output"]["processes"] == []
    assert job["output"]["request_id"] == job["id"] == response.headers["x-request-id"]
    assert {"delayTime", "executionTime"} <= set(job)


def test_runsync_tells_an_error_at_the_top_and_sends_no_output(client):
    job = runsync(client, "cancel").json()
    assert job["status"] == "FAILED"
    assert "process_id: missing" in job["error"]
    assert "output" not in job


def test_run_carries_the_output_of_what_was_answered_at_once(client):
    job = client.post("/v2/local/run", json=PROCESSES).json()
    assert job["status"] == "COMPLETED"
    assert job["output"]["processes"] == []


def test_run_of_a_training_names_its_process_and_is_in_the_queue(world, client):
    upload(world)
    job = client.post("/v2/local/run", json={"input": TRAIN}).json()
    record = world.registry.get(job["id"])
    assert job == {
        "id": record.id, "status": "IN_QUEUE", "data": {"process_id": record.id},
        "request_id": record.request_id,
    }  # fmt: skip
    assert record.status is Status.PENDING


def test_runsync_of_a_training_answers_at_once_with_its_process(world, client):
    upload(world)
    output = client.post("/v2/local/runsync", json={"input": TRAIN}).json()["output"]
    assert output["data"] == {"process_id": output["process_id"]}
    assert world.registry.get(output["process_id"]).status is Status.PENDING


def test_run_of_a_training_that_is_refused_fails(client):
    job = client.post("/v2/local/run", json={"input": {"type": "train"}}).json()
    assert job["status"] == "FAILED"
    assert "config: missing" in job["error"]


@pytest.mark.parametrize("wait", ["999", "300001", "0", "-1", "x", "1e4", ""])
def test_a_wait_out_of_bounds_is_refused(shared, wait):
    assert is_error(shared.post(f"/v2/local/runsync?wait={wait}", json=PROCESSES), 400, "wait")


@pytest.mark.parametrize("wait", [1000, 300_000])
def test_a_wait_within_the_bounds_is_taken(client, wait):
    job = client.post(f"/v2/local/runsync?wait={wait}", json=PROCESSES).json()
    assert job["status"] == "COMPLETED"


def test_a_reply_that_takes_longer_than_the_wait_can_be_fetched_later(tmp_path):
    world = World(tmp_path, registry=HeldRegistry())
    with world.client() as client:
        job = client.post("/v2/local/runsync?wait=1000", json=PROCESSES).json()
        assert (job["status"], set(job)) == ("IN_PROGRESS", {"id", "status"})
        shown = client.get(f"/v2/local/status/{job['id']}").json()
        assert shown["status"] == "IN_PROGRESS"
        assert client.get(f"/v2/local/stream/{job['id']}").json()["stream"] == []
        world.registry.released.set()
        while shown["status"] == "IN_PROGRESS":
            shown = client.get(f"/v2/local/status/{job['id']}").json()
        assert shown["output"]["processes"] == []


def test_fields_of_runpod_without_effect_are_told(client):
    job = client.post(
        "/v2/local/runsync", json={**PROCESSES, "webhook": "http://x", "policy": {}}
    ).json()
    assert job["warnings"] == [
        "webhook has no effect on this server",
        "policy has no effect on this server",
    ]


def test_the_published_clients_address_is_the_same_api(world, client):
    upload(world)
    base = "/api.runpod.ai/v2/local"
    started = client.post(f"{base}/runsync", json={"input": TRAIN}).json()
    process_id = started["output"]["data"]["process_id"]
    assert client.get(f"{base}/status/{process_id}").json()["status"] == "IN_QUEUE"
    assert client.get(f"{base}/health").json()["jobs"]["inQueue"] == 1
    assert client.post(f"{base}/cancel/{process_id}", json={}).json()["status"] == "CANCELLED"


@pytest.mark.parametrize("endpoint", ["a b", "x" * 65, "ä", "%00"])
def test_an_endpoint_has_a_plain_name(shared, endpoint):
    assert is_error(shared.get(f"/v2/{endpoint}/health"), 400, "endpoint")


# Status


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_status_can_be_got_and_posted(client, method):
    job_id = runsync(client, "processes").json()["id"]
    job = client.request(method, f"/v2/local/status/{job_id}").json()
    assert (job["id"], job["status"]) == (job_id, "COMPLETED")
    assert job["output"]["request_id"] == job_id


@pytest.mark.parametrize("job_id", ["nope", "req_0", MISSING, "gen_" + "0" * 20, "..", "%00"])
@pytest.mark.parametrize(
    ("method", "route"),
    [("GET", "status"), ("POST", "status"), ("GET", "stream"), ("POST", "cancel"),
     ("POST", "retry")],
)  # fmt: skip
def test_an_unknown_job_is_not_found(shared, method, route, job_id):
    assert is_error(shared.request(method, f"/v2/local/{route}/{job_id}"), 404)


def test_the_id_of_a_job_has_a_bounded_length(client):
    assert is_error(client.get(f"/v2/local/status/{'x' * 101}"), 400, "job_id")


def test_each_status_of_a_process_has_its_state(world, client):
    def state(process_id):
        return client.get(f"/v2/local/status/{process_id}").json()

    process_id = world.waiting().id
    assert state(process_id)["status"] == "IN_QUEUE"
    assert "delayTime" not in state(process_id)
    world.started(process_id, step=3)
    job = state(process_id)
    assert (job["status"], job["output"]["step"], job["workerId"]) == ("IN_PROGRESS", 3, "host/1")
    assert job["output"]["data"] == {"process_id": process_id}
    world.completed(process_id)
    job = state(process_id)
    assert (job["status"], job["output"]["status"]) == ("COMPLETED", "completed")
    assert {"delayTime", "executionTime"} <= set(job)

    failed = world.failed(world.running().id, "no memory", "out_of_memory").id
    job = state(failed)
    assert (job["status"], job["error"]) == ("FAILED", "no memory\nLook at its log.")
    assert "output" not in job

    late = world.failed(world.running().id, "too slow", "timed_out").id
    assert (state(late)["status"], "output" in state(late)) == ("TIMED_OUT", False)

    cancelled = world.cancelled(world.running().id).id
    assert state(cancelled)["status"] == "CANCELLED"


def test_a_process_is_a_job_of_every_later_server_on_its_registry(tmp_path):
    url = f"sqlite:///{tmp_path}/registry.sqlite3"
    first = World(tmp_path, registry=SqlRegistry(url), store=LocalStore(tmp_path / "objects"))
    upload(first)
    with first.client() as client:
        process_id = client.post("/v2/local/run", json={"input": TRAIN}).json()["id"]
        job_id = runsync(client, "processes").json()["id"]
    first.registry.close()
    second = World(tmp_path, registry=SqlRegistry(url), store=LocalStore(tmp_path / "objects"))
    with second.client() as client:
        assert client.get(f"/v2/local/status/{process_id}").json()["status"] == "IN_QUEUE"
        assert is_error(client.get(f"/v2/local/status/{job_id}"), 404)
        assert client.post(f"/v2/local/cancel/{process_id}").json()["status"] == "CANCELLED"
    second.registry.close()


# How long replies are kept


@pytest.mark.parametrize(("route", "kept_s"), [("run", 30 * 60), ("runsync", 60)])
def test_replies_are_kept_as_long_as_runpod_keeps_them(world, clock, route, kept_s):
    with world.client() as client:
        job_id = client.post(f"/v2/local/{route}", json=PROCESSES).json()["id"]
        clock.now_s += kept_s - 1
        assert client.get(f"/v2/local/status/{job_id}").json()["status"] == "COMPLETED"
        clock.now_s += 2
        assert is_error(client.get(f"/v2/local/status/{job_id}"), 404, "30 minutes")


def test_processes_are_never_forgotten(world, clock):
    process_id = world.waiting().id
    with world.client() as client:
        clock.now_s += 10**9
        assert client.get(f"/v2/local/status/{process_id}").json()["status"] == "IN_QUEUE"


def test_the_oldest_replies_make_room_for_new_ones(world, monkeypatch):
    monkeypatch.setattr(jobs_module, "MAX_KEPT_BYTES", 50_000)
    with world.client() as client:
        ids = [runsync(client, "processes").json()["id"] for _ in range(30)]
        client.post("/v2/local/runsync", json=PROCESSES)
        states = [client.get(f"/v2/local/status/{job_id}").status_code for job_id in ids]
    assert states[0] == 404
    assert states[-1] == 200
    assert states == sorted(states, reverse=True)


# Stream


def test_a_stream_brings_each_log_line_once(world, client):
    process_id = world.running(step=1).id
    world.said(process_id, "one", "two")

    def chunks():
        reply = client.get(f"/v2/local/stream/{process_id}").json()
        return [chunk["output"] for chunk in reply["stream"]]

    (first,) = chunks()
    assert (first["step"], first["log"]) == (1, ["one", "two"])
    assert chunks() == []
    world.said(process_id, "three")
    (second,) = chunks()
    assert second["log"] == ["three"]
    world.progressed(process_id, 2)
    (third,) = chunks()
    assert (third["step"], third["log"]) == (2, [])
    world.completed(process_id)
    (last,) = chunks()
    assert (last["status"], last["log"]) == ("completed", [])
    assert chunks() == []
    assert client.get(f"/v2/local/stream/{process_id}").json()["status"] == "COMPLETED"


def test_a_long_log_is_streamed_in_parts(world, client):
    process_id = world.running().id
    world.said(process_id, *(f"line {n}" for n in range(1201)))
    found, sizes = [], []
    while chunks := client.post(f"/v2/local/stream/{process_id}").json()["stream"]:
        lines = chunks[0]["output"]["log"]
        sizes.append(len(lines))
        found += lines
    assert found == [f"line {n}" for n in range(1201)]
    assert max(sizes) == 500


def test_the_stream_of_a_request_has_its_output_once(client):
    job_id = runsync(client, "processes").json()["id"]
    stream = client.get(f"/v2/local/stream/{job_id}").json()
    assert stream["status"] == "COMPLETED"
    assert [set(chunk) for chunk in stream["stream"]] == [{"output"}]
    assert client.get(f"/v2/local/stream/{job_id}").json()["stream"] == []


# Cancel, retry, purge


def test_cancelling_ends_what_waits_and_asks_what_runs(world, client):
    waiting, running = world.waiting().id, world.running().id
    for process_id in (waiting, running):
        reply = client.post(f"/v2/local/cancel/{process_id}").json()
        assert reply == {"id": process_id, "status": "CANCELLED"}
    assert world.registry.get(waiting).status is Status.CANCELLED
    assert world.registry.get(running).status is Status.RUNNING
    assert world.registry.get(running).cancel_requested_at is not None
    assert client.get(f"/v2/local/status/{running}").json()["status"] == "IN_PROGRESS"


@pytest.mark.parametrize("kind", ["process", "request"])
def test_what_has_ended_can_not_be_cancelled(world, client, kind):
    job_id = world.trained().id if kind == "process" else runsync(client, "processes").json()["id"]
    assert is_error(client.post(f"/v2/local/cancel/{job_id}"), 409)
    assert client.get(f"/v2/local/status/{job_id}").json()["status"] == "COMPLETED"


def test_a_request_that_waits_for_a_thread_can_be_cancelled_and_is_forgotten(
    tmp_path, clock, monkeypatch
):
    monkeypatch.setattr(jobs_module, "_THREADS", 1)
    world = World(tmp_path, registry=HeldRegistry())
    service = jobs_module.JobService(world.dispatcher, world.services.processes)
    try:
        first, running = service.start({"type": "processes"}, "", "run")
        second, _ = service.start({"type": "processes"}, "", "run")
        assert service.shown(second)["status"] == "IN_QUEUE"
        assert service.cancel(second) == {"id": second, "status": "CANCELLED"}
        assert service.cancel(second)["status"] == "CANCELLED"
        assert service.shown(second)["status"] == "CANCELLED"
        assert service.cancel(first)["status"] == "IN_PROGRESS"
        world.registry.released.set()
        assert "processes" in running.result(30)
        clock.now_s += 30 * 60 + 1
        service.start({"type": "health"}, "", "run")[1].result(30)
        assert len(service._jobs) == 1
    finally:
        world.registry.released.set()
        service.close()


def test_a_failed_request_can_be_retried_under_its_id(world, client):
    process_id = world.waiting().id
    job_id = runsync(client, "download", process_id=process_id).json()["id"]
    assert client.get(f"/v2/local/status/{job_id}").json()["status"] == "FAILED"
    world.started(process_id)
    world.keep(process_id, "lora", "cat.safetensors", b"weights")
    world.completed(process_id)
    assert client.post(f"/v2/local/retry/{job_id}").json() == {"id": job_id, "status": "IN_QUEUE"}
    job = {"status": "IN_QUEUE"}
    while job["status"].startswith("IN_"):
        job = client.get(f"/v2/local/status/{job_id}").json()
    assert job["output"]["filename"] == "cat.safetensors"
    assert job["output"]["request_id"] == job_id
    assert client.get("/v2/local/health").json()["jobs"]["retried"] == 1


def test_retrying_a_process_resumes_it(world, client):
    process_id = world.failed(world.running(step=5).id).id
    assert client.post(f"/v2/local/retry/{process_id}").json()["status"] == "IN_QUEUE"
    record = world.registry.get(process_id)
    assert (record.status, record.error, record.progress.step) == (Status.PENDING, None, 5)


def test_what_did_not_fail_can_not_be_retried(world, client):
    job_id = runsync(client, "processes").json()["id"]
    for one in (job_id, world.trained().id, world.waiting().id, world.running().id):
        before = world.everything()
        assert is_error(client.post(f"/v2/local/retry/{one}"), 409)
        assert world.everything() == before


def test_a_large_input_is_not_kept_for_a_retry(client):
    job_id = runsync(client, "cancel", process_id="x" * 2**21).json()["id"]
    assert is_error(client.post(f"/v2/local/retry/{job_id}"), 409, "too large")


def test_purging_cancels_what_waits_and_counts_it(world, client):
    waiting = [world.waiting(kind).id for kind in ("training", "generation") for _ in range(60)]
    running = world.running().id
    assert client.post("/v2/local/purge-queue").json() == {"removed": 120, "status": "completed"}
    assert {world.registry.get(one).status for one in waiting} == {Status.CANCELLED}
    assert world.registry.get(running).status is Status.RUNNING
    assert client.post("/v2/local/purge-queue").json()["removed"] == 0


def test_health_counts_jobs_and_workers(world, client):
    world.waiting()
    world.running()
    world.trained()
    world.failed(world.running().id)
    health = client.get("/v2/local/health").json()
    assert health["jobs"] == {
        "completed": 1, "failed": 1, "inProgress": 1, "inQueue": 1, "retried": 0,
    }  # fmt: skip
    assert health["workers"]["running"] == health["workers"]["idle"] == 0


# The server's own routes


def test_the_servers_health_is_told_by_its_status(world, client, monkeypatch):
    assert client.get("/health").json()["status"] == "healthy"
    monkeypatch.setattr(world.services.health._machine, "disk", lambda path: None)
    response = client.get("/health")
    assert (response.status_code, response.json()["problems"]) == (503, ["disk"])


def test_metrics_count_what_was_answered(client):
    runsync(client, "processes")
    runsync(client, "nonsense")
    text = client.get("/metrics").text
    assert 'loradash_requests_total{outcome="ok",type="processes"} 1.0' in text
    assert 'loradash_requests_total{outcome="invalid",type="unknown"} 1.0' in text


def test_the_queue_can_be_looked_at_paused_and_ordered(world, client):
    first, second = world.waiting(name="first"), world.waiting(name="second")
    assert [one["name"] for one in client.get("/queue").json()["order"]] == ["first", "second"]
    assert client.post("/queue/pause").json() == {"paused": True}
    assert client.get("/queue").json()["paused"] is True
    assert client.post("/queue/resume").json() == {"paused": False}
    reply = client.post(f"/queue/{second.id}/priority", json={"priority": 5}).json()
    assert reply == {"id": second.id, "priority": 5}
    assert [one["name"] for one in client.get("/queue").json()["order"]] == ["second", "first"]
    for bad in (11, "5", 1.5, True, None):
        assert is_error(client.post(f"/queue/{first.id}/priority", json={"priority": bad}), 400)
    assert is_error(client.post(f"/queue/{MISSING}/priority", json={"priority": 1}), 404)
    done = world.trained().id
    assert is_error(client.post(f"/queue/{done}/priority", json={"priority": 1}), 409)


@pytest.mark.parametrize("local", [True, False])
def test_result_files_come_whole_or_in_part(tmp_path, local):
    world = World(tmp_path, store=LocalStore(tmp_path / "objects") if local else None)
    process_id = world.trained().id
    (entry,) = world.registry.artifacts(process_id, ["sample"])
    with world.client() as client:
        response = client.get(f"/files/{entry.key}")
        assert response.content == world.store.get(entry.key)
        assert response.headers["etag"] == f'"{entry.sha256}"'
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-disposition"].startswith("inline")
        part = client.get(f"/files/{entry.key}", headers={"range": "bytes=1-3"})
        assert (part.status_code, part.content) == (206, b"PNG")


@pytest.mark.parametrize(
    ("key", "status"),
    [
        ("results/x", 404), (f"results/{MISSING}/lora/x", 404), ("..%2f..%2fetc/passwd", 400),
        ("%2e%2e/%2e%2e/etc/passwd", 400), ("/etc/passwd", 400), ("a%00b", 400),
        ("dataset/cats/_training_info.json", 404), ("%ff%fe", 404), ("x" * 1001, 400),
    ],
)  # fmt: skip
def test_only_results_are_files(world, client, key, status):
    upload(world)
    assert is_error(client.get(f"/files/{key}"), status)


def test_starting_and_stopping_frame_the_life(world):
    said = []
    with world.client(start=lambda: said.append("start"), stop=lambda: said.append("stop")):
        assert said == ["start"]
    assert said == ["start", "stop"]


# Errors


def test_routes_that_are_not_there_are_told_as_errors(client):
    assert is_error(client.get("/nothing"), 404)
    assert is_error(client.get("/v2/local/run"), 405)
    assert is_error(client.delete("/queue"), 405)


def test_an_error_of_our_own_is_told_without_its_traceback(tmp_path, log):
    registry = BrokenRegistry()
    world = World(tmp_path, registry=registry)
    with world.client() as client:
        registry.broken = True
        for path in ("/queue", f"/v2/local/status/{MISSING}"):
            response = client.get(path)
            assert is_error(response, 500, "internal error (RuntimeError)")
            assert "the bug of the registry" not in response.text
    assert "the bug of the registry" in log.getvalue()


def test_numbers_that_json_lacks_become_null(world, client):
    process_id = world.running(step=1).id
    world.progressed(process_id, 2, loss=math.nan)
    world.measured(process_id, 1, loss=math.inf)
    response = runsync(client, "process_status", process_id=process_id, metrics_after=0)
    output = json.loads(response.text, parse_constant=lambda name: pytest.fail(name))["output"]
    assert output["loss"] is None
    assert output["metrics"][0]["step"] == 1
    assert client.get(f"/v2/local/status/{process_id}").json()["output"]["loss"] is None
    assert client.get(f"/v2/local/stream/{process_id}").json()["stream"][0]["output"]["step"] == 2


# Bodies


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"nonsense", b"[" * 100_000, b'{"input":' * 100_000, b"\0" * 100,
     b'{"input": ' + b"9" * 5000 + b"}"],
    ids=lambda body: f"{body[:10]!r} {len(body)}",
)  # fmt: skip
@pytest.mark.parametrize("route", ["run", "runsync"])
def test_a_body_that_is_no_json_is_refused(shared, route, body):
    response = shared.post(f"/v2/local/{route}", content=body, headers=JSON)
    assert is_error(response, 400, "isn't JSON")
    assert len(response.text) < 500


@pytest.mark.parametrize("body", ["null", "[]", "3", '"input"', "{}", '{"Input": {}}'])
def test_a_body_without_an_input_is_refused(shared, body):
    assert is_error(shared.post("/v2/local/run", content=body, headers=JSON), 400, "input: missing")


@pytest.mark.parametrize("value", ["null", "[]", "3", "NaN", "-Infinity", "1e400", '"x"'])
def test_an_input_that_is_no_mapping_fails_as_a_job(client, value):
    body = f'{{"input": {value}}}'
    job = client.post("/v2/local/runsync", content=body, headers=JSON).json()
    assert job["status"] == "FAILED"
    assert "not a mapping" in job["error"]


@pytest.mark.parametrize("depth", [100, 500, 900])
@pytest.mark.parametrize("route", ["run", "runsync"])
def test_deep_nesting_that_json_can_hold_is_refused_by_name(shared, route, depth):
    config = '{"a":' * depth + "1" + "}" * depth
    body = f'{{"input": {{"type": "train", "config": {config}}}}}'
    response = shared.post(f"/v2/local/{route}", content=body, headers=JSON)
    if response.status_code == 400:  # deeper than any body may be
        words = response.json()["error"]
        assert "deep" in words or "isn't JSON" in words
    else:
        assert response.status_code == 200
        assert "config: is nested more than 20 levels deep" in response.json()["error"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_a_number_that_json_lacks_is_refused_by_name(shared, number):
    body = f'{{"input": {{"type": "generate", "prompt": "x", "seed": {number}}}}}'
    job = shared.post("/v2/local/runsync", content=body, headers=JSON).json()
    assert job["status"] == "FAILED"
    assert "seed: " in job["error"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"]
)
def test_what_a_foreign_form_can_send_is_refused(shared, kind):
    body = json.dumps(PROCESSES)
    response = shared.post("/v2/local/run", content=body, headers={"content-type": kind})
    assert is_error(response, 400, "content-type")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_a_content_type_may_have_parameters(client, kind):
    body = json.dumps(PROCESSES)
    response = client.post("/v2/local/run", content=body, headers={"content-type": kind})
    assert response.json()["status"] == "COMPLETED"


def test_of_two_content_types_none_opens_a_door(world):
    app = create_app(world.server())
    host = ("host", "127.0.0.1:8000")
    body = [json.dumps(PROCESSES).encode()]
    plain, typed = ("content-type", "text/plain"), ("content-type", "application/json")
    assert asgi(app, headers=[host, plain, typed], chunks=body)[0] == 400
    status, reply, _ = asgi(app, headers=[host, typed, plain], chunks=body)
    assert status in (200, 400)
    assert "processes" in json.dumps(reply) or "error" in reply


def test_what_still_comes_of_a_body_that_says_it_is_too_large_is_discarded(world):
    app = create_app(world.server(max_request_bytes=2**20))
    headers = [("host", "localhost"), *JSON.items(), ("content-length", str(2**20 + 1))]
    status, reply, taken = asgi(app, headers=headers, chunks=[b"x"] * 10)
    assert (status, list(reply), taken) == (413, ["error", "message"], 10)
    assert "more than 1 MB" in reply["error"]


def test_a_refused_body_without_end_is_read_for_a_bounded_while(world, monkeypatch):
    monkeypatch.setattr("loradash.page_guard._DISCARDED_BYTES", 2**20)
    app = create_app(world.server(max_request_bytes=2**20))
    headers = [("host", "evil.example"), *JSON.items()]
    status, _, taken = asgi(app, headers=headers, chunks=[b"x" * 2**18] * 100)
    assert (status, taken) == (403, 4)


@pytest.mark.parametrize("path", [f"/queue/{MISSING}/priority", "/datasets/a/remove"])
def test_only_job_requests_may_have_large_bodies(world, path):
    app = create_app(world.server())
    headers = [("host", "localhost"), *JSON.items(), ("content-length", str(2**20 + 1))]
    assert asgi(app, path=path, headers=headers, chunks=[b"[" * (2**20 + 1)])[0] == 413


def test_a_body_of_more_values_than_memory_is_for_is_not_parsed(client):
    body = b"[" + b"[]," * 300_000 + b"1]"
    response = client.post("/v2/local/run", content=body, headers=JSON)
    assert is_error(response, 400, "values, and 250,000 are read")


PUBLISHED = "/api.runpod.ai/v2/local"


@pytest.mark.parametrize("route", ["run", "runsync"])
@pytest.mark.parametrize(
    "data",
    [
        {"type": "train_with_yaml", "config": "job: extension"},
        {"type": "generate", "config": "job: nothing"},
        {"type": "cancel", "process_id": MISSING},
        {"type": "clear_logs", "log_type": "none"},
    ],
    ids=lambda data: data["type"],
)
def test_the_published_dashboard_hears_of_a_refusal_by_its_status(client, data, route):
    response = client.post(f"{PUBLISHED}/{route}", json={"input": data})
    assert is_error(response, 400)
    runpods = client.post(f"/v2/local/{route}", json={"input": data})
    assert (runpods.status_code, runpods.json()["status"]) == (200, "FAILED")
    assert runpods.json()["error"] == response.json()["error"]


def test_errors_that_the_published_dashboard_reads_stay_in_the_reply(client):
    for kind in ("download", "bulk_download", "process_status"):
        data = {"type": kind, "process_id": MISSING, "process_ids": [MISSING]}
        response = client.post(f"{PUBLISHED}/runsync", json={"input": data})
        assert response.status_code == 200
        assert response.json()["error"]


def test_the_published_dashboard_is_told_what_to_do_about_a_file_that_is_too_large(tmp_path):
    world = World(tmp_path, max_inline_bytes=1000)
    process_id = world.waiting().id
    world.started(process_id)
    world.keep(process_id, "lora", "cat.safetensors", b"x" * 2000)
    world.completed(process_id)
    with world.client() as client:
        data = {"input": {"type": "download", "process_id": process_id}}
        told = client.post(f"{PUBLISHED}/runsync", json=data).json()
        linked = client.post("/v2/local/runsync", json=data).json()
    assert "bulk" in told["error"]
    assert linked["output"]["type"] == "url"


def test_half_a_character_is_no_json(client):
    body = '{"input": {"type": "\\ud800"}}'
    assert is_error(client.post("/v2/local/run", content=body, headers=JSON), 400, "isn't JSON")


def test_of_an_answered_request_only_the_reply_is_kept_and_an_input_only_to_retry_it(world):
    service = jobs_module.JobService(world.dispatcher, world.services.processes)
    try:
        for kind in ("processes", "no_such_type"):
            before = service._kept_bytes
            data = {"type": kind, "x": "y" * 200_000}
            for _ in range(5):
                job_id, future = service.start(data, "", "run")
                future.result(30)
            kept = service._kept_bytes - before
            wanted = 5 * 200_000 if service.shown(job_id)["status"] == "FAILED" else 0
            assert wanted <= kept < wanted + 5 * 10_000
    finally:
        service.close()


@pytest.mark.parametrize("path", ["/v2/local/run", f"/queue/{MISSING}/priority"])
@pytest.mark.parametrize("length", [None, "0", "-1", "x", "9" * 30])
def test_a_body_without_an_honest_length_is_cut_off(world, path, length):
    app = create_app(world.server(max_request_bytes=2**20))
    headers = [("host", "localhost"), *JSON.items()]
    headers += [("content-length", length)] if length else [("transfer-encoding", "chunked")]
    chunks = [b"[" * 2**18] * 100
    status, reply, taken = asgi(app, path=path, headers=headers, chunks=chunks)
    assert (status, list(reply)) == (413, ["error", "message"])
    assert taken <= 5


def test_a_body_of_the_allowed_size_is_read_in_any_number_of_chunks(world):
    text = json.dumps({"input": {"type": "processes", "x": "y" * 1000}}).encode()
    app = create_app(world.server(max_request_bytes=len(text)))
    headers = [("host", "localhost"), *JSON.items()]
    chunks = [text[n : n + 7] for n in range(0, len(text), 7)]
    assert asgi(app, headers=headers, chunks=chunks)[1]["status"] == "COMPLETED"
    assert asgi(app, headers=headers, chunks=[*chunks, b" "])[0] == 413


# Who may ask


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "LocalHost", "[::1]", "[::1]:8000"],
)
def test_this_machines_own_names_are_served(world, host):
    app = create_app(world.server())
    assert asgi(app, method="GET", path="/queue", headers=[("host", host)])[0] == 200


@pytest.mark.parametrize(
    "host",
    ["", "evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example",
     "[::2]", "::1", "0.0.0.0", "10.0.0.1", "127.0.0.1 ", "\xe4"],
)  # fmt: skip
def test_another_name_is_refused_since_any_page_could_bring_it(world, host):
    app = create_app(world.server())
    for headers in ([("host", host)], [("host", host), ("origin", f"http://{host}")]):
        status, reply, _ = asgi(app, method="GET", path="/queue", headers=headers)
        assert (status, list(reply)) == (403, ["error", "message"])


def test_a_request_without_a_host_is_refused(world):
    assert asgi(create_app(world.server()), method="GET", path="/queue")[0] == 403


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:9000", "http://localhost:8000",
     "http://[evil", "https://dash.example.evil", "x" * 5000],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_a_foreign_page_is_refused(world, method, origin):
    with world.client(cors_origins=("https://dash.example",)) as client:
        headers = {"origin": origin, "access-control-request-method": "POST"}
        response = client.request(method, "/queue/pause", headers=headers)
        assert is_error(response, 403, "may not use this server")
        assert "access-control-allow-origin" not in response.headers
    assert not world.registry.paused()


def test_our_own_page_may_ask(client):
    response = client.post("/queue/pause", headers={"origin": "http://127.0.0.1:8000"})
    assert response.json() == {"paused": True}


def test_an_allowed_page_gets_what_it_asks_for_before_it_asks(world):
    with world.client(cors_origins=("https://dash.example",)) as client:
        wanted = ["authorization", "content-type", "x-runpod-token"]
        for method in ("GET", "POST", "DELETE"):
            response = client.options(
                "/v2/local/runsync",
                headers={
                    "origin": "https://dash.example",
                    "access-control-request-method": method,
                    "access-control-request-headers": ", ".join(wanted),
                },
            )
            assert response.status_code == 200
            headers = response.headers
            assert headers["access-control-allow-origin"] == "https://dash.example"
            allowed = headers["access-control-allow-headers"].lower()
            assert all(name in allowed for name in wanted)
            assert method in headers["access-control-allow-methods"]
        response = client.post(
            "/v2/local/runsync", json=PROCESSES, headers={"origin": "https://dash.example"}
        )
        assert response.headers["access-control-allow-origin"] == "https://dash.example"
        assert response.headers["access-control-expose-headers"] == "X-Request-ID"


def test_an_allowed_page_can_read_that_its_upload_is_too_large(world):
    with world.client(cors_origins=("https://dash.example",), max_request_bytes=100) as client:
        for content in (b"x" * 200, iter([b"x" * 200])):
            headers = {"origin": "https://dash.example", **JSON}
            response = client.post("/v2/local/run", content=content, headers=headers)
            assert is_error(response, 413)
            assert response.headers["access-control-allow-origin"] == "https://dash.example"


ELSEWHERE = ("cross-site", "same-site")
EXPENSIVE = ["/queue", "/metrics", "/health", "/datasets/cats/thumbnails/a.png", "/files/a",
             "/datasets/cats/zip", "/", "/v2/local/status/x"]  # fmt: skip


@pytest.mark.parametrize("path", EXPENSIVE)
@pytest.mark.parametrize("site", ELSEWHERE)
@pytest.mark.parametrize(
    ("mode", "dest"),
    [("no-cors", "image"), ("no-cors", "script"), ("no-cors", "style"), ("no-cors", "empty"),
     ("navigate", "iframe"), ("navigate", "object"), ("navigate", "embed"), ("cors", "font"),
     ("", "")],
)  # fmt: skip
def test_what_a_foreign_page_embeds_is_refused_though_it_names_no_origin(
    shared, path, site, mode, dest
):
    headers = {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": dest}
    assert is_error(shared.get(path, headers=headers), 403, "pages of other sites may not use")
    headers["referer"] = "https://evil.example/page"
    assert is_error(shared.get(path, headers=headers), 403, "pages of https://evil.example may not")


VISIT = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.mark.parametrize("path", ["/", "/docs", "/queue"])
@pytest.mark.parametrize("site", [*ELSEWHERE, "none", "same-origin"])
def test_a_link_of_another_page_leads_to_ours(shared, path, site):
    assert shared.get(path, headers={**VISIT, "sec-fetch-site": site}).status_code == 200


@pytest.mark.parametrize("site", ELSEWHERE)
def test_a_form_of_another_page_changes_nothing(client, world, site):
    response = client.post("/queue/pause", headers={**VISIT, "sec-fetch-site": site})
    assert is_error(response, 403)
    assert not world.registry.paused()


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_our_own_page_may_embed(shared, site):
    headers = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    assert shared.get("/queue", headers=headers).status_code == 200


@pytest.mark.parametrize("site", ELSEWHERE)
def test_a_page_of_an_allowed_origin_may_embed_and_ask(world, site):
    with world.client(cors_origins=("https://dash.example",)) as client:
        image = {"sec-fetch-site": site, "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
        shown = client.get("/queue", headers={**image, "referer": "https://dash.example/x"})
        assert shown.status_code == 200
        assert shown.headers["cross-origin-resource-policy"] == "cross-origin"
        asked = {"sec-fetch-site": site, "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}
        asked |= {"origin": "https://dash.example"}
        assert client.get("/queue", headers=asked).status_code == 200
        for page in ("https://dash.example.evil/", "http://dash.example/", "x", "http://[", ""):
            assert is_error(client.get("/queue", headers={**image, "referer": page}), 403)


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/", {}), ("/queue", {}), ("/nowhere", {}), ("/files/nothing", {}),
     ("/queue", {"origin": "https://evil.example"}), ("/queue", {"host": "evil.example"})],
)  # fmt: skip
def test_every_reply_says_that_no_other_page_may_embed_it(shared, path, headers):
    got = shared.get(path, headers=headers).headers
    assert got["cross-origin-resource-policy"] == "same-origin"
    assert got["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in got["content-security-policy"]
    assert got["x-frame-options"] == "DENY"
    assert len(got.get_list("x-content-type-options")) == 1


# The description


def test_the_description_has_the_requests_and_an_example_of_each(client, recwarn):
    schema = client.get("/openapi.json").json()
    assert not [one for one in recwarn if "Duplicate Operation ID" in str(one.message)]
    parts = schema["components"]["schemas"]
    assert len(parts["Request"]["oneOf"]) == len(get_args(AnyRequest))
    for name in ("run", "runsync"):
        body = schema["paths"][f"/v2/{{endpoint}}/{name}"]["post"]["requestBody"]
        content = body["content"]["application/json"]
        assert content["schema"]["properties"]["input"] == {"$ref": "#/components/schemas/Request"}
        assert set(content["examples"]) == set(REQUEST_TYPES)
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(schema)))
    assert references <= set(parts)
    assert not any(path.startswith("/api.runpod.ai") for path in schema["paths"])


def test_the_documentation_page_is_there(client):
    assert client.get("/docs").status_code == 200


@pytest.mark.parametrize("kind", REQUEST_TYPES)
def test_each_example_of_the_description_can_be_sent(client, kind):
    job = client.post("/v2/local/runsync", json=EXAMPLES[kind]["value"]).json()
    assert EXAMPLES[kind]["value"]["input"]["type"] == kind
    assert "unknown" not in job.get("error", "")
    always = {
        "health", "upload_training_data", "list_dataset_folders", "processes", "list_models",
        "lora", "clear_logs", "create_upload",
    }  # fmt: skip
    if kind in always:
        assert job["status"] == "COMPLETED", job
        assert "warnings" not in job["output"] or kind == "upload_training_data"
    else:
        assert job["status"] == "FAILED"
        assert "there is no" in job["error"] or "has no finished adapter" in job["error"]


def test_a_training_can_be_started_with_the_examples_in_their_order(client):
    for kind in ("upload_training_data", "train", "train_with_yaml"):
        job = client.post("/v2/local/runsync", json=EXAMPLES[kind]["value"]).json()
        assert job["status"] == "COMPLETED", job


# At once


def test_many_requests_at_once_get_a_reply_of_their_own(world, client):
    replies = []

    def ask():
        replies.append(runsync(client, "processes").json())

    threads = [threading.Thread(target=ask) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({reply["id"] for reply in replies}) == 40
    assert all(reply["output"]["request_id"] == reply["id"] for reply in replies)


def test_jobs_are_kept_apart_from_processes_of_long_ago(world, client):
    old = world.waiting(age=timedelta(days=400)).id
    assert client.get(f"/v2/local/status/{old}").json()["status"] == "IN_QUEUE"


TRAIN = {"type": "train", "config": "dataset: cats\nbase_model: emoji-base\n"}


def upload(world):
    value = EXAMPLES["upload_training_data"]["value"]["input"]
    reply = world.dispatcher.answer({**value, "dataset_folder": "cats"})
    assert "error" not in reply
