"""The HTTP API of one RunPod Serverless endpoint: queue a job, ask for it, end it.

Calls wait for their reply and are tried again where that may help. RunPod forgets a job half an
hour after its end, and at once when its ``ttl`` is over, so it is no record of anything.
Source: RunPod's documentation, "Operation reference" and "Send requests".
"""

import json
import random
import re
import time
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx2
import stamina

import loradash
from loradash.errors import ExecutorRefused, ExecutorUnavailable, InvalidRequest, InvalidSettings
from loradash.telemetry.masking import MASK, without_secrets

_FIRST_WAIT_S, _LONGEST_WAIT_S, _JITTER_S = 0.5, 10.0, 0.5
_MIN_EXECUTION_S, _MIN_TTL_S, _MAX_POLICY_S = 5.0, 10.0, 7 * 86_400.0
_MAX_REPLY_BYTES = 12_000_000  # an output has 10 MB at most
_MAX_SHOWN = 300
_TRY_AGAIN = frozenset({408, 425, 429, *range(500, 600)})
_REMEDIES = {
    401: "Correct RUNPOD_API_KEY.",
    403: "Correct RUNPOD_API_KEY, or give the key the right to use this endpoint.",
    404: "Correct RUNPOD_ENDPOINT_ID: RunPod knows no such endpoint.",
}
_API_KEY = r"[!-~]+"  # anything else would be quoted by errors about bad headers
_ENDPOINT_ID = r"[A-Za-z0-9_-]+"
# No name and no password: they would take the place of the key.
_BASE_URL = r"https?://([\w-]{1,63}(\.[\w-]{1,63})*|\[[\da-fA-F:]+\])(:\d{1,5})?(/[\w./~-]*)?"
_JOB_ID = re.compile(r"(?!\.+$)[!-.0-~]{1,200}")  # printable, no slash, not only dots


class JobStatus(StrEnum):
    """States of a job, by RunPod's names."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"
    UNKNOWN = "UNKNOWN"
    """RunPod uses a word that isn't known here; `RunpodJob.word` has it."""

    @property
    def final(self) -> bool:
        """Whether nothing happens to the job any more."""
        return self not in (JobStatus.IN_QUEUE, JobStatus.IN_PROGRESS, JobStatus.UNKNOWN)


class RunpodJob(NamedTuple):
    """What RunPod says of a job. The times are known when it has ended."""

    id: str
    status: JobStatus
    output: Any = None
    """As the worker sent it: its last progress, then its result."""
    error: str = ""
    worker_id: str = ""
    delay_ms: int | None = None
    execution_ms: int | None = None
    word: str = ""
    """RunPod's word for a status that isn't known here."""


class EndpointHealth(NamedTuple):
    """How many jobs and workers are in which state, by RunPod's names: `inQueue`, `idle`."""

    jobs: Mapping[str, int]
    workers: Mapping[str, int]


class RunpodClient:
    """Calls to one endpoint. Thread-safe.

    Every call raises `ExecutorUnavailable` for what may pass by itself, and else `ExecutorRefused`.
    A try may take ``timeout_s`` until the reply begins, and as long again until its end.
    """

    def __init__(
        self,
        *,
        api_key: str,
        endpoint_id: str,
        base_url: str = "https://api.runpod.ai/v2",
        timeout_s: float = 15.0,
        retries: int = 3,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        _check("RUNPOD_API_KEY", api_key, _API_KEY, "a key of RunPod's console")
        _check("RUNPOD_ENDPOINT_ID", endpoint_id, _ENDPOINT_ID, "the id on the endpoint's page")
        _check("RUNPOD_ENDPOINT_BASE_URL", base_url, _BASE_URL, "like https://api.runpod.ai/v2")
        self._endpoint_url = f"{base_url.rstrip('/')}/{endpoint_id}"
        self._api_key = api_key
        self._timeout_s = timeout_s
        self._retries = retries
        self._http = httpx2.Client(
            headers={
                "authorization": f"Bearer {api_key}",
                "user-agent": f"loradash/{loradash.__version__}",
            },
            timeout=timeout_s, follow_redirects=False, transport=transport,
        )  # fmt: skip
        stamina.instrumentation.set_on_retry_hooks([])  # as circuits do

    def close(self) -> None:
        """Close the connections. Nothing is tried again from now on."""
        self._http.close()

    def run(
        self,
        payload: Mapping[str, Any],
        *,
        execution_timeout_s: float,
        ttl_s: float,
        webhook: str = "",
    ) -> str:
        """Queue a job; return its id. Times beyond RunPod's limits become the limits.

        It is tried again after a broken connection, even if the job may have arrived. Then the job
        is in the queue twice, and only one id is known. Callers must make that harmless: ours do by
        the lease of the process, which only one job gets.
        """
        execution_ms = _milliseconds(execution_timeout_s, _MIN_EXECUTION_S)
        # The ttl counts from now on, and ends a running job as well.
        ttl_ms = max(_milliseconds(ttl_s, _MIN_TTL_S), execution_ms)
        policy = {"executionTimeout": execution_ms, "ttl": ttl_ms}
        body = {"input": dict(payload), "policy": policy}
        reply = self._send("POST", "run", {**body, "webhook": webhook} if webhook else body)
        job_id = self._document(reply).get("id")
        if not isinstance(job_id, str) or not _JOB_ID.fullmatch(job_id):
            raise self._unreadable(reply)
        return job_id

    def status(self, job_id: str) -> RunpodJob | None:
        """Return what RunPod says of a job, or None if it has forgotten it or never knew it."""
        reply = self._send("GET", _path("status", job_id))
        if reply.status == 404:
            return None
        document = self._document(reply)
        if not isinstance(document.get("status"), str):
            raise self._unreadable(reply)
        status = _status(document["status"])
        return RunpodJob(
            job_id,
            status,
            document.get("output"),
            _text(document.get("error")),
            _text(document.get("workerId")),
            _count(document.get("delayTime")),
            _count(document.get("executionTime")),
            document["status"][:40] if status is JobStatus.UNKNOWN else "",
        )

    def cancel(self, job_id: str) -> bool:
        """End a job, unless it has ended already; False if RunPod doesn't know it."""
        return self._change("cancel", job_id, is_final=True)

    def retry(self, job_id: str) -> bool:
        """Queue a job again that is FAILED or TIMED_OUT; False if RunPod doesn't know it."""
        return self._change("retry", job_id, is_final=False)

    def purge_queue(self) -> int:
        """Remove all jobs that wait, not those that run; return how many the last try removed."""
        reply = self._send("POST", "purge-queue")
        removed = _count(self._document(reply).get("removed"))
        if removed is None:
            raise self._unreadable(reply)
        return removed

    def health(self) -> EndpointHealth:
        """Return how many jobs and workers the endpoint has."""
        reply = self._send("GET", "health")
        document = self._document(reply)
        jobs, workers = document.get("jobs"), document.get("workers")
        if not isinstance(jobs, dict) or not isinstance(workers, dict):
            raise self._unreadable(reply)
        return EndpointHealth(_counts(jobs), _counts(workers))

    def _change(self, operation: str, job_id: str, *, is_final: bool) -> bool:
        reply = self._send("POST", _path(operation, job_id))
        if reply.status == 404:
            return False
        try:
            self._document(reply)
        except ExecutorRefused:
            # It may be so already: by itself, or by an earlier try whose reply was lost.
            if (job := self.status(job_id)) is None:
                return False
            if job.status is JobStatus.UNKNOWN or job.status.final != is_final:
                raise
        return True

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> "_Reply":
        """Return the reply, of any status that another try wouldn't change."""
        what = f"{method} {path}"
        content = b"" if body is None else json.dumps(body, allow_nan=False).encode()
        try:
            for attempt in stamina.retry_context(
                on=self._wait_after, attempts=self._retries + 1, timeout=None,
                wait_initial=_FIRST_WAIT_S, wait_max=_LONGEST_WAIT_S, wait_jitter=_JITTER_S,
            ):  # fmt: skip
                with attempt:
                    return self._send_once(what, method, path, content)
        except _Busy as busy:
            said = f"RunPod replies {busy.reply.status} to {what}{self._quoted(busy.reply)}"
            raise ExecutorUnavailable(said, remedy="It may pass by itself.") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ExecutorUnavailable(
                f"RunPod can't be reached: {what}: {str(error) or type(error).__name__}",
                remedy="It may pass by itself; check the network, and RUNPOD_ENDPOINT_BASE_URL.",
            ) from error
        raise AssertionError("stamina yields until a try succeeds or raises")

    def _send_once(self, what: str, method: str, path: str, content: bytes) -> "_Reply":
        if self._http.is_closed:
            raise ExecutorUnavailable(f"{what}: the client was closed", remedy="Start again.")
        headers = {"content-type": "application/json"} if content else {}
        url, read = f"{self._endpoint_url}/{path}", bytearray()
        with self._http.stream(method, url, content=content, headers=headers) as response:
            deadline_s = time.monotonic() + self._timeout_s
            for piece in response.iter_bytes():
                read += piece
                if len(read) > _MAX_REPLY_BYTES:
                    raise ExecutorUnavailable(f"RunPod's reply to {what} is too large")
                if time.monotonic() > deadline_s:  # httpx2 limits single waits only
                    raise httpx2.ReadTimeout("the reply comes too slowly")
        reply = _Reply(what, response.status_code, bytes(read))
        if reply.status in _TRY_AGAIN:
            raise _Busy(reply, response.headers.get("retry-after", ""))
        return reply

    def _wait_after(self, error: Exception) -> bool | float:
        """Say whether another try may help; a number is the wait that RunPod asks for."""
        if self._http.is_closed:
            return False
        if isinstance(error, _Busy) and error.wait_s:
            return error.wait_s + random.uniform(0, _JITTER_S)
        return isinstance(error, _Busy | httpx2.TransportError)

    def _document(self, reply: "_Reply") -> dict[str, Any]:
        """Return the object in a reply of 2xx; raise what another reply means."""
        if reply.status >= 400:
            said = f"RunPod replies {reply.status} to {reply.what}{self._quoted(reply)}"
            remedy = _REMEDIES.get(reply.status, "Correct what RunPod objects to.")
            raise ExecutorRefused(said, remedy=remedy)
        try:
            document = json.loads(reply.body) if reply.status < 300 else None  # no redirects
        except (ValueError, RecursionError) as error:
            raise self._unreadable(reply) from error
        if not isinstance(document, dict):
            raise self._unreadable(reply)
        return document

    def _unreadable(self, reply: "_Reply") -> ExecutorUnavailable:
        return ExecutorUnavailable(
            f"{reply.what}: {reply.status} isn't a reply of RunPod's API{self._quoted(reply)}",
            remedy="It may pass by itself; check RUNPOD_ENDPOINT_BASE_URL.",
        )

    def _quoted(self, reply: "_Reply") -> str:
        text = reply.body.decode(errors="replace").replace(self._api_key, MASK).strip()
        return f": {without_secrets(text)[:_MAX_SHOWN]}" if text else ""


class _Reply(NamedTuple):
    what: str
    status: int
    body: bytes


class _Busy(Exception):
    """A reply after which another try may help."""

    def __init__(self, reply: _Reply, retry_after: str) -> None:
        super().__init__(reply.status)
        self.reply = reply
        # HTTP allows a date as well: then the usual waits do.
        self.wait_s = min(_LONGEST_WAIT_S, float(retry_after)) if retry_after.isdecimal() else 0.0


def _check(name: str, value: str, pattern: str, wanted: str) -> None:
    if not re.fullmatch(pattern, value, re.ASCII):
        wrong = "holds something else" if value else "isn't set"
        raise InvalidSettings(f"{name} {wrong}", remedy=f"Set it: {wanted}.")


def _path(operation: str, job_id: str) -> str:
    if not _JOB_ID.fullmatch(job_id):
        raise InvalidRequest(f"{job_id[:80]!r} isn't the id of a RunPod job")
    return f"{operation}/{quote(job_id, safe='')}"


def _milliseconds(seconds: float, low_s: float) -> int:
    return round(min(_MAX_POLICY_S, max(low_s, seconds)) * 1000)


def _status(word: str) -> JobStatus:
    """Return what a word means; `RUNNING` is documented beside `IN_PROGRESS`."""
    word = re.sub(r"[\s-]", "_", word.strip().upper())
    word = {"RUNNING": "IN_PROGRESS", "CANCELED": "CANCELLED"}.get(word, word)
    return JobStatus(word) if word in JobStatus.__members__ else JobStatus.UNKNOWN


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _counts(value: Mapping[str, object]) -> dict[str, int]:
    return {name: count for name, each in value.items() if (count := _count(each)) is not None}
