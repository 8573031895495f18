"""The emulated queue: what happens to jobs, and the routes around it."""

import http.server
import json
import threading
import time

import pytest
from fastapi.testclient import TestClient

from loradash.dev.app import create_app
from loradash.dev.environment import worker_environment
from loradash.dev.faults import Faults
from loradash.dev.jobs import Status
from loradash.dev.queue import Queue, Refused, Rules

EP = "ep"
SLOW = {"policy": {"executionTimeout": 3_600_000}}


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(clock):
    return Queue(Rules(requeue_after_s=30, max_deliveries=3), clock)


def pass_time(queue, clock, seconds):
    clock.now_s += seconds
    queue.tick()


def put(queue, value=1, *, sync=False, **body):
    return queue.submit(EP, {"input": value, **body}, sync=sync)


def state(queue, job_id):
    return queue.status(EP, job_id)["status"]


def looked_at(queue, job_id):
    return next(job for job in queue.inspect() if job["id"] == job_id)


def test_a_job_goes_through_in_order_and_tells_its_times(queue, clock):
    first, second = put(queue, {"n": 1}), put(queue, {"n": 2})
    clock.now_s += 2
    assert queue.take(EP, "w") == {"id": first, "input": {"n": 1}}
    assert state(queue, first) == "IN_PROGRESS"
    clock.now_s += 3
    assert queue.done(EP, "w", first, {"output": 5})
    assert queue.status(EP, first) == {
        "id": first, "status": "COMPLETED", "output": 5, "delayTime": 2000, "executionTime": 3000,
        "workerId": "w",
    }  # fmt: skip
    assert queue.take(EP, "w")["id"] == second
    assert queue.take(EP, "w") is None


def test_ids_tell_how_the_job_was_sent(queue):
    assert put(queue).endswith("-u1")
    assert put(queue, sync=True).startswith("sync-")


def test_no_output_of_the_worker_is_no_output_of_the_job(queue):
    job = put(queue)
    queue.take(EP, "w")
    queue.progress(EP, "w", job, "half")
    assert queue.status(EP, job)["output"] == "half"
    queue.done(EP, "w", job, {"stopPod": True})
    assert "output" not in queue.status(EP, job)


def test_an_error_fails_and_keeps_the_output(queue):
    job = put(queue)
    queue.take(EP, "w")
    queue.done(EP, "w", job, {"output": 1, "error": "no"})
    reply = queue.status(EP, job)
    assert (reply["status"], reply["output"], reply["error"]) == ("FAILED", 1, "no")


def test_a_lost_worker_is_replaced_and_pings_prevent_that(queue, clock):
    job = put(queue, **SLOW)
    queue.take(EP, "w1")
    for _ in range(5):
        pass_time(queue, clock, 29)
        queue.ping(EP, "w1", ["other", job])
    queue.ping(EP, "w2", [job])
    pass_time(queue, clock, 29)
    queue.ping(EP, "w1", [])
    assert state(queue, job) == "IN_PROGRESS"
    pass_time(queue, clock, 1)
    assert state(queue, job) == "IN_QUEUE"
    queue.take(EP, "w2")
    assert looked_at(queue, job)["workers"] == ["w1", "w2"]
    assert queue.health(EP)["jobs"]["retried"] == 1


def test_a_requeued_job_comes_before_those_that_came_after_it(queue, clock):
    job, _ = put(queue, **SLOW), put(queue)
    queue.take(EP, "w1")
    pass_time(queue, clock, 30)
    assert queue.take(EP, "w2")["id"] == job


def test_a_job_that_loses_every_worker_fails(queue, clock):
    job = put(queue, **SLOW)
    for number in range(3):
        queue.take(EP, f"w{number}")
        pass_time(queue, clock, 30)
    assert state(queue, job) == "FAILED"
    assert "3 times" in queue.status(EP, job)["error"]
    assert queue.retry(EP, job)["status"] == "IN_QUEUE"
    queue.take(EP, "w0")
    pass_time(queue, clock, 30)
    assert state(queue, job) == "IN_QUEUE"  # a new run counts from the beginning


def test_the_result_of_a_slow_worker_counts_while_another_runs_the_job(queue, clock):
    job = put(queue, **SLOW)
    queue.take(EP, "slow")
    pass_time(queue, clock, 30)
    assert not queue.done(EP, "slow", job, {"output": "in queue"})
    queue.take(EP, "fast")
    assert not queue.progress(EP, "slow", job, "old")
    assert not queue.done(EP, "stranger", job, {"output": "?"})
    assert queue.done(EP, "slow", job, {"output": "slow"})
    assert not queue.done(EP, "fast", job, {"output": "fast"})
    seen = looked_at(queue, job)
    assert (seen["output"], seen["latePosts"], seen["overtakenResults"]) == ("slow", 4, 1)
    assert seen["workerId"] == "slow"


def test_late_progress_doesnt_revive_a_job(queue):
    job = put(queue)
    queue.take(EP, "w")
    queue.done(EP, "w", job, {"output": 1})
    assert not queue.progress(EP, "w", job, 0)
    assert not queue.done(EP, "w", "unknown", {})
    assert state(queue, job) == "COMPLETED"
    assert [entry["status"] for entry in queue.log() if entry["event"] == "late post"] == [
        "COMPLETED",
        "unknown",
    ]


def test_cancel_tells_the_worker_once(queue):
    waiting, running = put(queue), put(queue)
    queue.cancel(EP, waiting)
    assert queue.take(EP, "w")["id"] == running
    assert queue.cancel(EP, running) == {"id": running, "status": Status.CANCELLED}
    assert queue.stops(EP, "other") == []
    assert queue.stops(EP, "w") == [running]
    assert queue.stops(EP, "w") == []
    assert not queue.done(EP, "w", running, {"output": 1})
    assert queue.cancel(EP, running)["status"] == "CANCELLED"


def test_a_timeout_ends_the_job_and_stops_the_worker(queue, clock):
    job = put(queue, policy={"executionTimeout": 5000})
    clock.now_s += 100
    queue.take(EP, "w")
    pass_time(queue, clock, 4.9)
    assert state(queue, job) == "IN_PROGRESS"
    pass_time(queue, clock, 0.1)
    assert state(queue, job) == "TIMED_OUT"
    assert queue.retry(EP, job)["status"] == "IN_QUEUE"
    assert queue.stops(EP, "w") == []  # it would stop the new run


def test_after_its_ttl_a_job_is_gone_even_if_it_runs(queue, clock):
    waiting, running = put(queue, policy={"ttl": 9000}), put(queue, policy={"ttl": 10_000})
    assert queue.take(EP, "w")["id"] == waiting
    assert queue.take(EP, "v")["id"] == running
    queued = put(queue, policy={"ttl": 10_000})
    pass_time(queue, clock, 10)
    for job in (waiting, running, queued):
        with pytest.raises(Refused) as refused:
            queue.status(EP, job)
        assert refused.value.status == 404
    assert queue.stops(EP, "v") == [running]
    assert queue.take(EP, "w") is None
    assert not queue.done(EP, "v", running, {"output": 1})
    assert looked_at(queue, running)["removed"] == "ttl"


@pytest.mark.parametrize(("sync", "kept_s"), [(False, 1800), (True, 60)])
def test_results_are_kept_for_a_while(queue, clock, sync, kept_s):
    job = put(queue, sync=sync)
    queue.take(EP, "w")
    queue.done(EP, "w", job, {"output": 1})
    pass_time(queue, clock, kept_s - 1)
    assert state(queue, job) == "COMPLETED"
    pass_time(queue, clock, 1)
    with pytest.raises(Refused):
        queue.status(EP, job)
    with pytest.raises(Refused):
        queue.retry(EP, job)


def test_retry_is_for_failed_jobs_only(queue):
    job = put(queue, {"n": 1})
    with pytest.raises(Refused):
        queue.retry(EP, job)
    queue.take(EP, "w")
    queue.done(EP, "w", job, {"output": 1, "error": "no"})
    queue.retry(EP, job)
    assert queue.status(EP, job) == {"id": job, "status": "IN_QUEUE"}
    assert queue.take(EP, "w") == {"id": job, "input": {"n": 1}}


def test_purge_leaves_what_runs(queue):
    running = put(queue)
    queue.take(EP, "w")
    put(queue), put(queue)
    assert queue.purge(EP) == 2
    assert queue.take(EP, "v") is None
    assert state(queue, running) == "IN_PROGRESS"


def test_a_job_left_in_the_queue_goes_to_somebody_else(queue):
    job = put(queue)
    assert queue.take(EP, "w1", leave=True)
    assert queue.take(EP, "w1") is None
    assert queue.take(EP, "w2")["id"] == job
    assert queue.take(EP, "w3") is None


def test_one_of_two_workers_keeps_a_job_running(queue, clock):
    job = put(queue, **SLOW)
    queue.take(EP, "w1", leave=True)
    queue.take(EP, "w2")
    for _ in range(3):
        queue.ping(EP, "w1", [job])
        pass_time(queue, clock, 20)
    assert state(queue, job) == "IN_PROGRESS"


def test_a_swallowed_job_comes_back(queue, clock):
    job = put(queue)
    queue.take(EP, "w", swallow=True)
    assert state(queue, job) == "IN_PROGRESS"
    pass_time(queue, clock, 30)
    assert queue.take(EP, "w")["id"] == job
    assert looked_at(queue, job)["swallowed"] == 1


def test_endpoints_are_strangers(queue):
    job = put(queue)
    assert queue.take("other", "w") is None
    with pytest.raises(Refused):
        queue.status("other", job)


def test_health_counts_workers_that_were_heard_lately(queue, clock):
    job = put(queue)
    queue.take(EP, "busy")
    queue.ping(EP, "idle", [])
    queue.ping(EP, "ill", [], "no GPU")
    health = queue.health(EP)
    assert health["workers"] == {
        "idle": 1, "running": 1, "ready": 1, "initializing": 0, "throttled": 0, "unhealthy": 1,
    }  # fmt: skip
    assert health["jobs"]["inProgress"] == 1
    clock.now_s += 16
    with queue.polling(EP, "idle"):
        clock.now_s += 16
        assert queue.health(EP)["workers"]["idle"] == 1
    queue.done(EP, "busy", job, {})
    assert queue.health(EP)["jobs"]["completed"] == 1


def test_a_job_taken_by_many_threads_is_taken_once(queue):
    ids = [put(queue, number) for number in range(200)]
    taken = []

    def work(name):
        while job := queue.take(EP, name):
            taken.append(job["id"])

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(ids)


@pytest.mark.parametrize(
    "body",
    [
        [], {}, {"input": 1, "policy": 3}, {"input": 1, "policy": {"ttl": "1"}},
        {"input": 1, "policy": {"ttl": -1}}, {"input": 1, "policy": {"executionTimeout": 1e12}},
        {"input": 1, "webhook": 3},
    ],
)  # fmt: skip
def test_wrong_requests_are_refused(queue, body):
    with pytest.raises(Refused) as refused:
        queue.submit(EP, body, sync=False)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "fault",
    [
        [], {"operation": "x", "action": "drop"}, {"operation": "take", "action": "x"},
        {"operation": "done", "action": "swallow"},
        {"operation": "take", "action": "status", "status": 200},
        {"operation": "take", "action": "delay", "seconds": -1},
        {"operation": "take", "action": "drop", "count": 0},
        {"operation": "take", "action": "drop", "colour": 1},
    ],
)  # fmt: skip
def test_wrong_faults_are_refused(fault):
    with pytest.raises(Refused):
        Faults().add(fault)


def test_faults_happen_as_often_as_wanted_and_to_whom():
    faults = Faults()
    faults.add({"operation": "done", "action": "drop", "count": 2, "worker": "w"})
    assert faults.documents()[0]["action"] == "drop_after"
    assert faults.next("done", "v", ("drop_after",)) is None
    assert faults.next("done", "w", ("drop_before",)) is None
    assert faults.next("done", "w", ("drop_after",))
    assert faults.next("done", "w", ("drop_after",))
    assert faults.next("done", "w", ("drop_after",)) is None


def test_the_environment_of_a_worker_has_question_marks():
    found = worker_environment("http://h:1/v2", "ep", "w", "/home")
    assert found["RUNPOD_WEBHOOK_GET_JOB"] == "http://h:1/v2/ep/job-take/$ID?gpu=none"
    assert found["RUNPOD_WEBHOOK_POST_OUTPUT"].endswith("/job-done/$RUNPOD_POD_ID/$ID?gpu=none")
    assert found == worker_environment("http://h:1/", "ep", "w", "/home")


# The routes


@pytest.fixture
def api():
    app = create_app(Queue(Rules(requeue_after_s=30)), poll_hold_s=0.3, webhook_pause_s=0.01)
    headers = {"Authorization": "any"}
    with TestClient(app, base_url="http://127.0.0.1:8001", headers=headers) as client:
        yield client


def run(api, value=1, **body):
    reply = api.post("/v2/ep/run", json={"input": value, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()["id"]


def fault(api, operation, action, **details):
    wanted = {"operation": operation, "action": action, **details}
    assert api.post("/_emulator/faults", json=wanted).status_code == 200


def post_result(api, job, result, worker="w"):
    url = f"/v2/ep/job-done/{worker}/{job}?gpu=none&isStream=false"
    kind = {"content-type": "application/x-www-form-urlencoded"}
    return api.post(url, content=json.dumps(result), headers=kind)


def test_without_authorization_nothing_goes(api):
    del api.headers["Authorization"]
    assert api.get("/v2/ep/health").status_code == 401
    assert api.get("/v2/ep/job-take/w").status_code == 401


def test_a_key_can_be_asked_for():
    app = create_app(Queue(), api_key="secret")
    with TestClient(app, base_url="http://127.0.0.1:8001") as api:
        wrong, right = {"Authorization": "Bearer x"}, {"Authorization": "Bearer secret"}
        assert api.get("/v2/ep/health", headers=wrong).status_code == 401
        assert api.get("/v2/ep/health", headers=right).status_code == 200


def test_the_whole_way_of_a_job(api):
    job = run(api, {"n": 1})
    assert api.get("/v2/ep/job-take/w?gpu=none").json() == {"id": job, "input": {"n": 1}}
    post_result(api, job, {"status": "IN_PROGRESS", "output": "half"})
    assert api.get(f"/v2/ep/status/{job}").json()["output"] == "half"
    assert api.get(f"/v2/ep/ping/w?job_id={job},b").status_code == 200
    api.post(f"/v2/ep/job-stream/w/{job}?isStream=false", content='{"output": "piece"}')
    assert api.get(f"/v2/ep/stream/{job}").json()["stream"] == [{"output": "piece"}]
    assert api.get(f"/v2/ep/stream/{job}").json()["stream"] == []
    assert post_result(api, job, {"output": [1]}).status_code == 200
    assert api.post(f"/v2/ep/status/{job}").json()["output"] == [1]
    assert api.post(f"/v2/ep/retry/{job}").status_code == 400
    assert api.get("/v2/ep/status/none").status_code == 404
    assert api.post("/v2/ep/purge-queue").json() == {"removed": 0, "status": "completed"}
    assert {"taken", "progress", "ended"} <= {e["event"] for e in api.get("/_emulator/log").json()}


def test_polls_are_held_and_then_empty(api):
    for path in ("job-take/w", "job-stop/w", "job-take-batch/w?batch_size=2"):
        began = time.monotonic()
        assert api.get(f"/v2/ep/{path}").status_code == 204
        assert time.monotonic() - began >= 0.25


def test_a_batch_is_a_list(api):
    ids = [run(api) for _ in range(3)]
    taken = api.get("/v2/ep/job-take-batch/w?gpu=none&batch_size=2").json()
    assert [job["id"] for job in taken] == ids[:2]


def test_a_cancel_is_told_on_the_stop_channel(api):
    job = run(api)
    api.get("/v2/ep/job-take/w")
    assert api.post(f"/v2/ep/cancel/{job}").json()["status"] == "CANCELLED"
    assert api.get("/v2/ep/job-stop/w").json() == {"jobsToStop": [job]}


def test_runsync_waits_and_returns_what_there_is(api):
    replies = []

    def ask():
        replies.append(api.post("/v2/ep/runsync?wait=1000", json={"input": 1}).json())

    asking = threading.Thread(target=ask)
    asking.start()
    job = None
    while not job:
        reply = api.get("/v2/ep/job-take/w")
        job = reply.json()["id"] if reply.status_code == 200 else None
    post_result(api, job, {"status": "IN_PROGRESS", "output": "half"})
    asking.join()
    assert replies[0] == {"id": job, "status": "IN_PROGRESS", "output": "half"}
    assert api.post("/v2/ep/runsync?wait=10", json={"input": 1}).status_code == 422


def test_too_large_requests_and_results_are_refused(api):
    large = "x" * 10_000_001
    assert api.post("/v2/ep/run", json={"input": large}).status_code == 413
    job = run(api)
    api.get("/v2/ep/job-take/w")
    assert post_result(api, job, {"output": large}).status_code == 400
    assert api.get(f"/v2/ep/status/{job}").json()["status"] == "IN_PROGRESS"
    assert api.post("/v2/ep/run", content="no JSON").status_code == 400


def test_faults_of_a_take(api):
    fault(api, "take", "status", status=503)
    assert api.get("/v2/ep/job-take/w").status_code == 503
    fault(api, "take", "swallow")
    job = run(api)
    assert api.get("/v2/ep/job-take/w").status_code == 204
    assert api.get(f"/v2/ep/status/{job}").json()["status"] == "IN_PROGRESS"
    fault(api, "take", "duplicate")
    job = run(api)
    assert [api.get(f"/v2/ep/job-take/{w}").json()["id"] for w in ("a", "b")] == [job, job]
    fault(api, "take", "drop_after")
    job = run(api)
    with pytest.raises(ConnectionResetError):
        api.get("/v2/ep/job-take/w")
    assert api.get(f"/v2/ep/status/{job}").json()["status"] == "IN_PROGRESS"


def test_faults_of_other_calls(api):
    job = run(api)
    api.get("/v2/ep/job-take/w")
    fault(api, "done", "drop")
    post_result(api, job, {"status": "IN_PROGRESS", "output": 1})  # is no "done"
    with pytest.raises(ConnectionResetError):
        post_result(api, job, {"output": 2})
    assert api.get(f"/v2/ep/status/{job}").json()["output"] == 2
    fault(api, "status", "delay", seconds=0.3)
    began = time.monotonic()
    api.get(f"/v2/ep/status/{job}")
    assert time.monotonic() - began >= 0.3
    fault(api, "cancel", "status", count=5)
    assert api.delete("/_emulator/faults").status_code == 204
    assert api.get("/_emulator/faults").json() == []
    assert api.post(f"/v2/ep/cancel/{job}").status_code == 200
    assert api.post("/_emulator/faults", json={"operation": "no"}).status_code == 400


class Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told.append(json.loads(body))
        self.send_response(200 if len(self.server.told) == 3 else 500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_webhook_is_told_until_it_answers_200(api):
    with http.server.HTTPServer(("127.0.0.1", 0), Hook) as server:
        server.told = []
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            job = run(api, webhook=f"http://127.0.0.1:{server.server_port}/")
            assert "webhook" in api.get("/v2/ep/job-take/w").json()
            post_result(api, job, {"output": 1})
            deadline = time.monotonic() + 5
            while len(server.told) < 3:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(0.2)
        finally:
            server.shutdown()
            thread.join()
    assert [told["status"] for told in server.told] == ["COMPLETED"] * 3
    assert server.told[0] == api.get(f"/v2/ep/status/{job}").json()


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"}, {"origin": "null"},
        {"host": "evil.example"}, {"host": "evil.example:8001", "origin": "http://evil.example:8001"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate"},
    ],
)  # fmt: skip
def test_web_pages_reach_nothing(api, headers):
    """Else any page that is open somewhere could send jobs, with webhooks that are called."""
    for path in ("/v2/ep/run", "/v2/ep/purge-queue", "/_emulator/faults"):
        response = api.post(path, content=b'{"input": 1}', headers=headers)
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
    assert api.get("/_emulator/jobs").json() == []
