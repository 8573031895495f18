"""The client of RunPod's API: against replies made up for it, and against the emulated queue."""

import json
import math
import threading
import traceback
import types
import uuid

import httpx2
import pytest

import loradash
from loradash.errors import (
    ExecutorRefused,
    ExecutorUnavailable,
    InvalidRequest,
    InvalidSettings,
)
from loradash.executors import runpod_client
from loradash.executors.runpod_client import EndpointHealth, JobStatus, RunpodClient, RunpodJob
from tests.servers.queue import RunpodQueue

KEY = "rpa_4f9sVeryMuchASecret"
TIMES = {"execution_timeout_s": 60, "ttl_s": 600}
DAYS_7_MS = 7 * 24 * 3600 * 1000
HEALTH = {"jobs": {"inQueue": 1}, "workers": {"idle": 2}}


class Api:
    """Replies in this order, the last one again and again; an error is raised instead."""

    def __init__(self, *replies):
        self.requests = []
        self._replies = list(replies)

    def __call__(self, request):
        request.read()
        self.requests.append(request)
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply(request) if callable(reply) else reply

    @property
    def calls(self):
        return [f"{request.method} {request.url.path}" for request in self.requests]

    @property
    def body(self):
        return json.loads(self.requests[-1].content)


@pytest.fixture
def waits(monkeypatch):
    """The waits between tries, which don't happen."""
    found = []
    monkeypatch.setattr("tenacity.nap.time", types.SimpleNamespace(sleep=found.append))
    return found


def client_of(*replies, **options):
    api = Api(*replies)
    options = {"api_key": KEY, "endpoint_id": "ep", **options}
    return RunpodClient(**options, transport=httpx2.MockTransport(api)), api


def reply(status=200, content=None, **options):
    """Return what makes a new reply each time: one can be read once only."""
    options = {"json": content} if content is not None else options
    return lambda _request: httpx2.Response(status, **options)


def operations(client):
    return {
        "run": lambda: client.run({"n": 1}, **TIMES),
        "status": lambda: client.status("job-1"),
        "cancel": lambda: client.cancel("job-1"),
        "retry": lambda: client.retry("job-1"),
        "purge_queue": client.purge_queue,
        "health": client.health,
    }


ALL = ["run", "status", "cancel", "retry", "purge_queue", "health"]


# What is sent


def test_a_run_sends_input_policy_and_headers():
    client, api = client_of(reply(content={"id": "a-u1", "status": "IN_QUEUE"}))
    payload = types.MappingProxyType({"n": "ä"})
    assert client.run(payload, **TIMES) == "a-u1"
    request = api.requests[0]
    assert str(request.url) == "https://api.runpod.ai/v2/ep/run"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["user-agent"] == f"loradash/{loradash.__version__}"
    assert request.headers["content-type"] == "application/json"
    assert api.body == {"input": {"n": "ä"}, "policy": {"executionTimeout": 60_000, "ttl": 600_000}}


def test_a_webhook_is_sent_if_there_is_one():
    client, api = client_of(reply(content={"id": "a"}))
    client.run({}, **TIMES, webhook="https://here/hook")
    assert api.body["webhook"] == "https://here/hook"


@pytest.mark.parametrize(
    ("execution_timeout_s", "ttl_s", "policy_ms"),
    [
        (0, 0, (5_000, 10_000)),
        (-math.inf, -3, (5_000, 10_000)),
        (math.nan, math.nan, (5_000, 10_000)),
        (7.0004, 20.4996, (7_000, 20_500)),
        (3600, 60, (3_600_000, 3_600_000)),
        (math.inf, 10, (DAYS_7_MS, DAYS_7_MS)),
        (5, 1e12, (5_000, DAYS_7_MS)),
    ],
)
def test_times_become_milliseconds_within_the_limits(execution_timeout_s, ttl_s, policy_ms):
    client, api = client_of(reply(content={"id": "a"}))
    client.run({}, execution_timeout_s=execution_timeout_s, ttl_s=ttl_s)
    policy = api.body["policy"]
    assert (policy["executionTimeout"], policy["ttl"]) == policy_ms
    assert all(type(value) is int for value in policy.values())


def test_the_base_url_may_end_with_a_slash():
    client, api = client_of(reply(content=HEALTH), base_url="http://127.0.0.1:8100/v2/")
    client.health()
    assert str(api.requests[0].url) == "http://127.0.0.1:8100/v2/ep/health"


def test_a_job_id_is_quoted():
    client, api = client_of(reply(404))
    assert client.status("a?b#%2e+") is None
    assert api.requests[0].url.raw_path == b"/v2/ep/status/a%3Fb%23%252e%2B"


@pytest.mark.parametrize("job_id", ["", ".", "..", "a/b", "a b", "a\n", "ä", "x" * 201])
@pytest.mark.parametrize("operation", ["status", "cancel", "retry"])
def test_what_is_no_job_id_is_never_sent(operation, job_id):
    client, api = client_of(reply(404))
    with pytest.raises(InvalidRequest):
        getattr(client, operation)(job_id)
    assert api.requests == []


# What is understood


def test_a_job_that_has_ended_tells_everything():
    document = {
        "id": "a", "status": "COMPLETED", "output": {"ok": [1]}, "delayTime": 20,
        "executionTime": 30, "workerId": "w",
    }  # fmt: skip
    client, _ = client_of(reply(content=document))
    assert client.status("a") == RunpodJob("a", JobStatus.COMPLETED, {"ok": [1]}, "", "w", 20, 30)


def test_a_job_that_waits_tells_its_status_alone():
    client, _ = client_of(reply(content={"id": "a", "status": "IN_QUEUE", "delayTime": "soon"}))
    assert client.status("a") == RunpodJob("a", JobStatus.IN_QUEUE)


@pytest.mark.parametrize(
    ("word", "status", "final"),
    [
        ("IN_QUEUE", JobStatus.IN_QUEUE, False),
        ("IN_PROGRESS", JobStatus.IN_PROGRESS, False),
        ("RUNNING", JobStatus.IN_PROGRESS, False),
        ("running", JobStatus.IN_PROGRESS, False),
        ("in-progress", JobStatus.IN_PROGRESS, False),
        ("Completed", JobStatus.COMPLETED, True),
        ("CANCELED", JobStatus.CANCELLED, True),
        ("COMPLETED", JobStatus.COMPLETED, True),
        ("FAILED", JobStatus.FAILED, True),
        ("CANCELLED", JobStatus.CANCELLED, True),
        ("TIMED_OUT", JobStatus.TIMED_OUT, True),
        ("FROZEN", JobStatus.UNKNOWN, False),
        ("", JobStatus.UNKNOWN, False),
    ],
)
def test_each_word_for_a_status_is_understood(word, status, final):
    client, _ = client_of(reply(content={"status": word}))
    job = client.status("a")
    assert job.status is status
    assert job.status.final is final
    assert job.word == (word if status is JobStatus.UNKNOWN else "")


@pytest.mark.parametrize(
    ("error", "text"), [("boom", "boom"), (None, ""), ({"type": "E"}, '{"type": "E"}')]
)
def test_an_error_is_text_whatever_the_worker_sent(error, text):
    client, _ = client_of(reply(content={"status": "FAILED", "error": error}))
    assert client.status("a").error == text


def test_health_keeps_the_numbers_only():
    document = {"jobs": {"inQueue": 1, "x": "y"}, "workers": {"idle": 2, "ok": True}, "more": 1}
    client, _ = client_of(reply(content=document))
    assert client.health() == EndpointHealth({"inQueue": 1}, {"idle": 2})


@pytest.mark.parametrize("operation", ["cancel", "retry", "status"])
def test_an_unknown_job_is_no_error(operation, waits):
    client, api = client_of(reply(404, {"error": "job not found"}))
    assert not operations(client)[operation]()
    assert len(api.calls) == 1


def test_cancel_of_a_job_that_has_ended_is_no_error():
    client, api = client_of(reply(400, {"error": "done"}), reply(content={"status": "COMPLETED"}))
    assert client.cancel("a") is True
    assert api.calls == ["POST /v2/ep/cancel/a", "GET /v2/ep/status/a"]


def test_a_retry_whose_first_reply_was_lost_is_no_error(waits):
    client, api = client_of(
        httpx2.ReadError("reset"), reply(400, {"error": "IN_QUEUE"}),
        reply(content={"status": "IN_QUEUE"}),
    )  # fmt: skip
    assert client.retry("a") is True
    assert len(api.calls) == 3


@pytest.mark.parametrize(
    ("operation", "status"),
    [("cancel", "IN_PROGRESS"), ("cancel", "?"), ("retry", "COMPLETED"), ("retry", "?")],
)
def test_a_refused_change_that_didnt_happen_is_an_error(operation, status):
    client, _ = client_of(reply(400, {"error": "I won't"}), reply(content={"status": status}))
    with pytest.raises(ExecutorRefused, match="I won't"):
        getattr(client, operation)("a")


@pytest.mark.parametrize("operation", ["cancel", "retry"])
def test_a_refused_change_of_a_job_that_is_gone_is_an_unknown_job(operation):
    client, _ = client_of(reply(400, {"error": "no"}), reply(404))
    assert getattr(client, operation)("a") is False


# Errors


@pytest.mark.parametrize("operation", ALL)
@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 524])
def test_a_busy_api_is_asked_again_until_the_tries_are_used_up(operation, status, waits):
    client, api = client_of(reply(status, text="later, please"), retries=2)
    with pytest.raises(ExecutorUnavailable, match=f"{status}.*later, please"):
        operations(client)[operation]()
    assert len(api.calls) == 3
    assert len(waits) == 2


@pytest.mark.parametrize("operation", ALL)
@pytest.mark.parametrize(
    "error",
    [
        httpx2.ConnectError("refused"), httpx2.ConnectTimeout("slow"), httpx2.ReadTimeout(""),
        httpx2.RemoteProtocolError("cut"),
    ],
)  # fmt: skip
def test_a_broken_connection_is_tried_again_until_the_tries_are_used_up(operation, error, waits):
    client, api = client_of(error, retries=2)
    with pytest.raises(ExecutorUnavailable, match=str(error) or "ReadTimeout") as raised:
        operations(client)[operation]()
    assert raised.value.__cause__ is error
    assert len(api.calls) == 3


def test_a_call_succeeds_as_soon_as_a_try_does(waits):
    client, api = client_of(httpx2.ReadError("reset"), reply(503), reply(content={"id": "a"}))
    assert client.run({"n": 1}, **TIMES) == "a"
    assert [json.loads(each.content)["input"] for each in api.requests] == [{"n": 1}] * 3


def test_without_retries_there_is_one_try(waits):
    client, api = client_of(reply(500), retries=0)
    with pytest.raises(ExecutorUnavailable):
        client.health()
    assert (len(api.calls), waits) == (1, [])


def test_waits_grow_and_are_never_the_same(waits):
    client, _ = client_of(reply(500), retries=3)
    for _ in range(2):
        with pytest.raises(ExecutorUnavailable):
            client.health()
    for least_s, wait_s in zip([0.5, 1, 2, 0.5, 1, 2], waits, strict=True):
        assert least_s <= wait_s <= least_s + 0.5
    assert len(set(waits)) == 6


@pytest.mark.parametrize(
    ("header", "least_s", "most_s"),
    [
        ("4", 4, 4.5), ("10", 10, 10.5), ("3600", 10, 10.5), ("9" * 5000, 10, 10.5),
        ("0", 0.5, 1), ("-4", 0.5, 1), ("soon", 0.5, 1), ("nan", 0.5, 1),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 0.5, 1),
    ],
)  # fmt: skip
def test_the_wait_that_runpod_asks_for_is_kept_up_to_ten_seconds(header, least_s, most_s, waits):
    busy = reply(429, headers={"retry-after": header})
    client, _ = client_of(busy, reply(content=HEALTH))
    client.health()
    assert len(waits) == 1
    assert least_s <= waits[0] <= most_s


def test_those_who_are_told_the_same_wait_dont_come_back_at_once(waits):
    client, _ = client_of(reply(429, headers={"retry-after": "4"}), retries=3)
    with pytest.raises(ExecutorUnavailable):
        client.health()
    assert len(set(waits)) == 3


@pytest.mark.parametrize("operation", ALL)
@pytest.mark.parametrize(
    ("status", "named"),
    [(401, "RUNPOD_API_KEY"), (403, "RUNPOD_API_KEY"), (400, "objects"), (413, "objects")],
)
def test_a_refusal_says_what_to_correct_and_isnt_tried_again(operation, status, named, waits):
    client, api = client_of(reply(status, text="because"))
    with pytest.raises(ExecutorRefused, match=f"{status}.*because") as raised:
        operations(client)[operation]()
    assert named in raised.value.remedy
    assert waits == []
    assert len(api.calls) <= 2  # a change that is refused looks at the job


@pytest.mark.parametrize("operation", ["run", "health", "purge_queue"])
def test_an_unknown_endpoint_is_named(operation):
    client, _ = client_of(reply(404))
    with pytest.raises(ExecutorRefused) as raised:
        operations(client)[operation]()
    assert "RUNPOD_ENDPOINT_ID" in raised.value.remedy


def test_a_long_reply_is_quoted_in_part():
    client, _ = client_of(reply(400, text="x" * 5000))
    with pytest.raises(ExecutorRefused) as raised:
        client.health()
    assert raised.value.message.count("x") == 300


@pytest.mark.parametrize("operation", ALL)
@pytest.mark.parametrize(
    "content",
    [
        b"", b"<html>", b'{"id": ', b"\xff\xfe", b"[" * 100_000, b"[]", b"null", b'"COMPLETED"',
    ],
)  # fmt: skip
def test_a_reply_that_isnt_the_apis_is_unavailable(operation, content, waits):
    client, api = client_of(lambda _: httpx2.Response(200, content=content))
    with pytest.raises(ExecutorUnavailable, match="isn't a reply of RunPod's API"):
        operations(client)[operation]()
    assert len(api.calls) == 1  # a job that was queued isn't queued again


@pytest.mark.parametrize(
    ("operation", "document"),
    [
        ("run", {}), ("run", {"id": ""}), ("run", {"id": 3}), ("run", {"id": "../x"}),
        ("status", {"id": "a"}), ("status", {"status": 1}), ("status", {"status": None}),
        ("purge_queue", {"status": "completed"}), ("purge_queue", {"removed": True}),
        ("health", {"jobs": {}}), ("health", {"jobs": [], "workers": {}}),
    ],
)  # fmt: skip
def test_a_reply_without_what_was_asked_for_is_unavailable(operation, document):
    client, _ = client_of(reply(content=document))
    with pytest.raises(ExecutorUnavailable, match="isn't a reply of RunPod's API"):
        operations(client)[operation]()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_isnt_followed(status, waits):
    client, api = client_of(reply(status, {"id": "a"}, headers={"location": "https://elsewhere"}))
    with pytest.raises(ExecutorUnavailable):
        client.run({}, **TIMES)
    assert len(api.calls) == 1


def test_a_reply_that_is_too_large_isnt_read_to_its_end(monkeypatch, waits):
    monkeypatch.setattr(runpod_client, "_MAX_REPLY_BYTES", 1000)
    sent = []

    def pieces():
        for number in range(100):
            sent.append(number)
            yield b"x" * 300

    client, api = client_of(lambda _: httpx2.Response(200, content=pieces()))
    with pytest.raises(ExecutorUnavailable, match="too large"):
        client.health()
    assert len(sent) == 4
    assert len(api.calls) == 1


def test_a_reply_that_trickles_is_given_up(waits):
    gate = threading.Event()

    def pieces():
        while True:
            gate.wait(0.02)
            yield b" "

    client, api = client_of(
        lambda _: httpx2.Response(200, content=pieces()), timeout_s=0.1, retries=1
    )
    with pytest.raises(ExecutorUnavailable, match="too slowly"):
        client.health()
    assert len(api.calls) == 2


def test_a_closed_client_says_so_and_tries_nothing(waits):
    client, api = client_of(reply(content=HEALTH))
    client.close()
    with pytest.raises(ExecutorUnavailable, match="closed"):
        client.health()
    assert (api.calls, waits) == ([], [])


def test_nothing_is_tried_again_once_the_client_is_closed(waits):
    def close(_request):
        client.close()
        return httpx2.Response(503)

    client, api = client_of(close)
    with pytest.raises(ExecutorUnavailable):
        client.health()
    assert (len(api.calls), waits) == (1, [])


# Secrets


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: httpx2.Response(400, text=f"{request.headers['authorization']} is bad"),
        lambda request: httpx2.Response(503, text=f"key={request.headers['authorization'][7:]}"),
        lambda request: httpx2.Response(200, text=f"{'x' * 290}{KEY}"),
        lambda request: httpx2.Response(200, json={"error": KEY}),
        httpx2.ConnectError("no route"),
    ],
)
@pytest.mark.parametrize("operation", ALL)
def test_the_key_stands_in_no_error(operation, answer, waits):
    client, _ = client_of(answer, retries=1)
    try:
        operations(client)[operation]()
    except (ExecutorUnavailable, ExecutorRefused) as error:
        said = f"{error!r} {error} {error.remedy} {''.join(traceback.format_exception(error))}"
        assert KEY[:8] not in said
    else:
        assert operation in ("cancel", "retry")


def test_the_key_stands_in_no_repr():
    client, _ = client_of(reply(200))
    assert KEY not in repr(client) + str(client) + repr(client._http) + repr(client._http.headers)


# Settings


@pytest.mark.parametrize("key", ["", " ", f"{KEY}\n", f"{KEY} x", "schlüssel-secret"])
def test_a_key_that_cant_be_one_is_refused_without_showing_it(key):
    with pytest.raises(InvalidSettings, match="RUNPOD_API_KEY") as raised:
        client_of(reply(200), api_key=key)
    assert "secret" not in str(raised.value).lower()


@pytest.mark.parametrize("endpoint_id", ["", "a/b", "..", "a b", "ä", "a\n"])
def test_an_endpoint_id_that_cant_be_one_is_refused(endpoint_id):
    with pytest.raises(InvalidSettings, match="RUNPOD_ENDPOINT_ID"):
        client_of(reply(200), endpoint_id=endpoint_id)


@pytest.mark.parametrize(
    "base_url",
    [
        "", "api.runpod.ai/v2", "ftp://host/v2", "http://", "http://u:p@host/v2", "http://host/?a=1",
        "http://host/#a", "http://höst/", "http://ho st/", "http://host:port/", "https://host/v2\n",
    ],
)  # fmt: skip
def test_a_base_url_that_cant_be_one_is_refused(base_url):
    with pytest.raises(InvalidSettings, match="RUNPOD_ENDPOINT_BASE_URL"):
        client_of(reply(200), base_url=base_url)


@pytest.mark.parametrize(
    "base_url", ["http://[::1]:8100/v2", "https://a-b.c_d.example", "http://h"]
)
def test_a_base_url_may_be_any_host(base_url):
    client, api = client_of(reply(content=HEALTH), base_url=base_url)
    client.health()
    assert str(api.requests[0].url) == f"{base_url}/ep/health"


def test_an_address_that_cant_be_used_is_unavailable():
    client, api = client_of(reply(content=HEALTH), base_url="http://256.1.1.1/v2")
    with pytest.raises(ExecutorUnavailable, match=r"can't be reached: .*256\.1\.1\.1"):
        client.health()
    assert api.calls == []


# The emulated queue


@pytest.fixture(scope="module")
def queue():
    with RunpodQueue(api_key=KEY, poll_hold=0.1) as queue:
        yield queue


class Endpoint:
    """An endpoint of its own, with a worker that does what it is told."""

    def __init__(self, queue):
        self.queue = queue
        self.id = f"ep-{uuid.uuid4().hex[:8]}"
        self._clients = []
        self.client = self.client_with(KEY)

    def client_with(self, key, **options):
        client = RunpodClient(api_key=key, endpoint_id=self.id, base_url=self.queue.url, **options)
        self._clients.append(client)
        return client

    def close(self):
        for client in self._clients:
            client.close()

    def take(self):
        return self.queue.call("GET", f"/v2/{self.id}/job-take/w?gpu=none").json()

    def post(self, job_id, **result):
        path = f"/v2/{self.id}/job-done/w/{job_id}?gpu=none&isStream=false"
        self.queue.call("POST", path, result)


@pytest.fixture
def endpoint(queue):
    endpoint = Endpoint(queue)
    yield endpoint
    queue.clear_faults()
    endpoint.close()


def test_a_job_goes_the_whole_way(endpoint):
    client = endpoint.client
    job_id = client.run({"n": 1}, **TIMES)
    assert client.status(job_id) == RunpodJob(job_id, JobStatus.IN_QUEUE)
    assert endpoint.take() == {"id": job_id, "input": {"n": 1}}
    endpoint.post(job_id, status="IN_PROGRESS", output="half")
    assert client.status(job_id) == RunpodJob(job_id, JobStatus.IN_PROGRESS, "half")
    endpoint.post(job_id, output={"ok": True})
    job = client.status(job_id)
    assert (job.status, job.output, job.worker_id) == (JobStatus.COMPLETED, {"ok": True}, "w")
    assert job.delay_ms >= 0
    assert job.execution_ms >= 0
    assert client.cancel(job_id) is True  # it has ended already
    assert client.status(job_id).status is JobStatus.COMPLETED
    with pytest.raises(ExecutorRefused, match="only failed ones"):
        client.retry(job_id)


def test_a_job_is_cancelled(endpoint):
    job_id = endpoint.client.run({}, **TIMES)
    assert endpoint.client.cancel(job_id) is True
    assert endpoint.client.status(job_id).status is JobStatus.CANCELLED


def test_a_failed_job_is_queued_again(endpoint):
    client = endpoint.client
    job_id = client.run({"n": 1}, **TIMES)
    endpoint.take()
    endpoint.post(job_id, error="boom")
    assert client.status(job_id).error == "boom"
    assert client.retry(job_id) is True
    assert client.status(job_id) == RunpodJob(job_id, JobStatus.IN_QUEUE)
    assert client.retry(job_id) is True  # it waits already
    assert endpoint.take() == {"id": job_id, "input": {"n": 1}}


def test_the_queue_is_purged_of_what_waits(endpoint):
    client = endpoint.client
    running = client.run({}, **TIMES)
    endpoint.take()
    waiting = [client.run({}, **TIMES) for _ in range(2)]
    assert client.purge_queue() == 2
    assert client.purge_queue() == 0
    assert client.status(running).status is JobStatus.IN_PROGRESS
    assert client.status(waiting[0]).status is JobStatus.CANCELLED


def test_health_counts_jobs_and_workers(endpoint):
    endpoint.client.run({}, **TIMES)
    endpoint.client.run({}, **TIMES)
    endpoint.take()
    jobs, workers = endpoint.client.health()
    assert (jobs["inQueue"], jobs["inProgress"], jobs["completed"]) == (1, 1, 0)
    assert (workers["running"], workers["idle"]) == (1, 0)


def test_a_job_that_runpod_doesnt_know_is_none(endpoint):
    client = endpoint.client
    assert client.status("nobody-u1") is None
    assert client.cancel("nobody-u1") is False
    assert client.retry("nobody-u1") is False


def test_a_wrong_key_is_refused(endpoint):
    client = endpoint.client_with("rpa_wrong")
    with pytest.raises(ExecutorRefused, match="401") as raised:
        client.run({}, **TIMES)
    assert "RUNPOD_API_KEY" in raised.value.remedy


def test_a_real_dropped_connection_is_tried_again(endpoint, waits):
    endpoint.queue.fault("status", "drop", count=2)
    job_id = endpoint.client.run({}, **TIMES)
    assert endpoint.client.status(job_id).status is JobStatus.IN_QUEUE
    assert len(waits) == 2


def test_a_run_whose_reply_is_lost_is_queued_twice(endpoint, waits):
    endpoint.queue.fault("run", "drop")
    job_id = endpoint.client.run({"n": 1}, **TIMES)
    first, second = endpoint.take(), endpoint.take()
    assert job_id in (first["id"], second["id"])
    assert first["input"] == second["input"] == {"n": 1}
    assert len(waits) == 1


def test_a_real_timeout_ends_a_call(endpoint, waits):
    endpoint.queue.fault("status", "delay", seconds=1.5, count=2)
    client = endpoint.client_with(KEY, timeout_s=0.2, retries=1)
    with pytest.raises(ExecutorUnavailable, match="timed out"):
        client.status("nobody-u1")
    assert len(waits) == 1


def test_nobody_at_the_address_is_unavailable(waits):
    client = RunpodClient(api_key=KEY, endpoint_id="ep", base_url="http://127.0.0.1:1", retries=1)
    with pytest.raises(ExecutorUnavailable, match="can't be reached"):
        client.health()
    assert len(waits) == 1


def test_threads_share_a_client(endpoint):
    ids, lock = [], threading.Lock()

    def work():
        for _ in range(5):
            job_id = endpoint.client.run({}, **TIMES)
            assert endpoint.client.status(job_id).id == job_id
            with lock:
                ids.append(job_id)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == 30
    assert endpoint.client.health().jobs["inQueue"] == 30
