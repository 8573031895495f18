"""The emulated queue with RunPod's own SDK: its client here, its worker loop as processes."""

import os
import signal
import socket
import subprocess
import sys
import time

import httpx2
import pytest

from tests.servers.queue import RunpodQueue

pytestmark = pytest.mark.slow

HANDLER = """
import asyncio
import os
import runpod

async def handler(job):
    wanted = job["input"]
    runs = os.path.join(os.path.dirname(__file__), "runs")
    with open(runs, "a") as file:
        file.write(job["id"] + "\\n")
    if wanted.get("progress"):
        runpod.serverless.progress_update(job, {"step": wanted["progress"]})
    try:
        await asyncio.sleep(wanted.get("sleep", 0))
    except asyncio.CancelledError:
        with open(runs, "a") as file:
            file.write("cancelled " + job["id"] + "\\n")
        raise
    if wanted.get("fail"):
        return {"error": "as wanted", "kept": 1}
    return {"echo": wanted, "worker": os.environ["RUNPOD_POD_ID"]}

runpod.serverless.start({"handler": handler})
"""


@pytest.fixture(scope="module")
def queue():
    with RunpodQueue(requeue_after=2.5, poll_hold=2) as queue:
        yield queue


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("handler") / "worker.py"
    path.write_text(HANDLER)
    return path


@pytest.fixture(scope="module")
def workers(queue, script):
    """Two workers that take jobs."""
    started = {name: queue.start_worker(script, name) for name in ("w1", "w2")}
    deadline = time.monotonic() + 40
    while sum(queue.health()["workers"][state] for state in ("idle", "running")) < 2:
        assert time.monotonic() < deadline, queue.worker_log("w1") + queue.worker_log("w2")
        time.sleep(0.05)
    return started


@pytest.fixture
def endpoint(queue, workers, monkeypatch):
    import runpod

    monkeypatch.setattr(runpod, "endpoint_url_base", queue.url)
    return runpod.Endpoint(queue.endpoint, api_key="any")


def ran(script):
    return (script.parent / "runs").read_text().splitlines()


def test_client_and_workers_understand_each_other(queue, endpoint):
    job = endpoint.run({"input": {"a": 1}})
    assert job.output(timeout=15)["echo"] == {"a": 1}
    assert job.status() == "COMPLETED"
    status = queue.status(job.job_id)
    assert status["workerId"] in ("w1", "w2") and status["executionTime"] >= 0
    assert endpoint.run_sync({"input": {"b": 2}}, timeout=15)["echo"] == {"b": 2}
    assert endpoint.health()["jobs"]["completed"] >= 2


def test_an_error_of_the_handler_fails_the_job_and_keeps_its_output(queue, workers):
    job = queue.wait_for(queue.submit({"fail": True}), lambda job: job["status"] == "FAILED")
    assert (job["error"], job["output"]) == ("as wanted", {"kept": 1})


def test_progress_is_seen_and_a_cancelled_handler_hears_of_it(queue, endpoint, script):
    job = endpoint.run({"input": {"sleep": 30, "progress": 7}})
    queue.wait_for(job.job_id, lambda job: job.get("output") == {"step": 7})
    assert job.status() == "IN_PROGRESS"
    assert job.cancel()["status"] == "CANCELLED"
    deadline = time.monotonic() + 5
    while f"cancelled {job.job_id}" not in ran(script):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert queue.status(job.job_id)["status"] == "CANCELLED"


def test_a_job_that_runs_too_long_is_stopped(queue, workers, script):
    job_id = queue.submit({"sleep": 30}, policy={"executionTimeout": 500})
    queue.wait_for(job_id, lambda job: job["status"] == "TIMED_OUT")
    deadline = time.monotonic() + 5
    while f"cancelled {job_id}" not in ran(script):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_swallowed_job_is_given_to_another_worker_in_the_end(queue, workers, script):
    queue.fault("take", "swallow")
    job_id = queue.submit({"c": 3})
    job = queue.wait_for(job_id, lambda job: job["status"] == "COMPLETED")
    assert job["deliveries"] == 2 and job["swallowed"] == 1
    assert ran(script).count(job_id) == 1


def test_a_duplicate_runs_twice_and_its_second_result_is_late(queue, workers, script):
    queue.fault("take", "duplicate")
    job_id = queue.submit({"sleep": 1})
    job = queue.wait_for(job_id, lambda job: job["status"] == "COMPLETED" and job["latePosts"])
    assert sorted(job["workers"]) == ["w1", "w2"]
    assert ran(script).count(job_id) == 2


def test_a_result_whose_connection_breaks_is_never_sent_again(queue, workers):
    # The SDK repeats a result after a 5xx only: here the job must be done once more.
    queue.fault("done", "drop_before")
    lost = queue.submit({"d": 4})
    job = queue.wait_for(lost, lambda job: job["status"] == "COMPLETED")
    assert (job["deliveries"], job["latePosts"]) == (2, 0)
    queue.fault("done", "drop_after")
    arrived = queue.submit({"d": 5})
    job = queue.wait_for(arrived, lambda job: job["status"] == "COMPLETED")
    assert job["deliveries"] == 1


def test_a_result_is_sent_again_after_a_server_error(queue, workers):
    queue.fault("done", "status", status=503)
    job = queue.wait_for(queue.submit({"e": 6}), lambda job: job["status"] == "COMPLETED")
    assert job["deliveries"] == 1 and job["executionTime"] > 1000


def test_a_job_of_a_killed_worker_is_finished_by_another(queue, workers):
    job_id = queue.submit({"sleep": 2})
    job = queue.wait_for(job_id, lambda job: job["worker"])
    victim = workers.pop(job["worker"])
    queue.kill(victim)
    job = queue.wait_for(job_id, lambda job: job["status"] == "COMPLETED")
    (survivor,) = workers
    assert job["deliveries"] == 2 and job["worker"] == survivor


def test_a_poll_whose_client_has_gone_takes_no_job(queue):
    host, port = queue.base_url.removeprefix("http://").split(":")
    url = f"/v2/other/job-take/gone?gpu=none HTTP/1.1\r\nHost: {host}\r\nAuthorization: a\r\n\r\n"
    for _ in range(20):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"GET " + url.encode())
            time.sleep(0.02)
        reply = queue.call("POST", "/v2/other/run", {"input": 1}).json()
        taken = queue.call("GET", "/v2/other/job-take/here").json()
        assert taken["id"] == reply["id"]


def test_a_dropped_request_was_done_or_not(queue):
    headers = {"Authorization": "a"}
    for action, jobs in (("drop_before", 0), ("drop_after", 1)):
        queue.fault("run", action)
        with pytest.raises(httpx2.RemoteProtocolError):
            httpx2.post(f"{queue.url}/{action}/run", json={"input": 1}, headers=headers)
        assert sum(job["endpoint"] == action for job in queue.jobs().values()) == jobs


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["end", "hangup"])
def test_it_says_what_workers_need_and_ends_in_good_order(tmp_path, number):
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "loradash", "dev", "queue", "--port", "0"], stdout=said
        )
    try:
        deadline = time.monotonic() + 30
        while "RUNPOD_SKIP_GPU_CHECK" not in (text := (tmp_path / "said").read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        assert "export RUNPOD_WEBHOOK_GET_JOB='http://127.0.0.1:" in text
        os.kill(process.pid, number)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
