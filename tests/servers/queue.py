"""``loradash dev queue`` as a real process on loopback, and real workers for it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

_DIE_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
)
_READY_S = 60.0
_STOP_S = 10.0


class RunpodQueue:
    """The emulator of RunPod's queue. A context manager.

    ``options`` are those of the command, with underscores: ``requeue_after=3``.
    """

    endpoint = "ep"

    def __init__(self, **options: object) -> None:
        self.url = ""
        """With ``/v2``: what clients take for RunPod's."""
        self.base_url = ""
        self._options = [
            word
            for name, value in options.items()
            for word in (f"--{name.replace('_', '-')}", str(value))
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="loradash-queue-")
        self._workers: list[subprocess.Popen[bytes]] = []
        self._http = httpx2.Client(timeout=30, trust_env=False, headers={"Authorization": "test"})

    @property
    def folder(self) -> Path:
        return Path(self._folder.name)

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End its workers, then the emulator."""
        for worker in list(self._workers):
            self.kill(worker)
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._http.close()
        self._folder.cleanup()

    def worker_environment(self, worker_id: str, home: Path | None = None) -> dict[str, str]:
        """Return what a worker process needs, beside the environment that tests have."""
        from loradash.dev.environment import worker_environment

        home = home or self.folder / f"home-{worker_id}"
        home.mkdir(exist_ok=True)
        return worker_environment(self.base_url, self.endpoint, worker_id, home)

    def start_worker(
        self, script: Path, worker_id: str, **environment: str
    ) -> "subprocess.Popen[bytes]":
        """Run a handler script as a worker, in a process group of its own."""
        # Its pings outlive it if only it is killed: a pipe would stay open.
        with (self.folder / f"{worker_id}.log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, str(script)],
                cwd=script.parent,
                env={**os.environ, **self.worker_environment(worker_id), **environment},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._workers.append(worker)
        return worker

    def worker_log(self, worker_id: str) -> str:
        return (self.folder / f"{worker_id}.log").read_text(errors="replace")

    def kill(self, worker: "subprocess.Popen[bytes]") -> None:
        """End a worker's whole group at once, as the loss of its machine would.

        Once only: afterwards the number of the group may be somebody else's.
        """
        if worker not in self._workers:
            return
        self._workers.remove(worker)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()

    def submit(self, request: Any, **body: Any) -> str:
        """Queue a job; return its id."""
        reply = self.call("POST", f"/v2/{self.endpoint}/run", {"input": request, **body})
        return str(reply.json()["id"])

    def status(self, job_id: str) -> dict[str, Any]:
        reply = self.call("GET", f"/v2/{self.endpoint}/status/{job_id}")
        return dict(reply.json())

    def cancel(self, job_id: str) -> None:
        self.call("POST", f"/v2/{self.endpoint}/cancel/{job_id}")

    def health(self) -> dict[str, dict[str, int]]:
        return dict(self.call("GET", f"/v2/{self.endpoint}/health").json())

    def jobs(self) -> dict[str, dict[str, Any]]:
        """Return all jobs by id, with deliveries, workers and late posts."""
        return {job["id"]: job for job in self.call("GET", "/_emulator/jobs").json()}

    def log(self) -> list[dict[str, Any]]:
        return list(self.call("GET", "/_emulator/log").json())

    def fault(self, operation: str, action: str, **details: Any) -> None:
        """Have the next calls of an operation meet a fault."""
        wanted = {"operation": operation, "action": action, **details}
        self.call("POST", "/_emulator/faults", wanted)

    def clear_faults(self) -> None:
        self.call("DELETE", "/_emulator/faults")

    def wait_for(
        self, job_id: str, condition: Callable[[dict[str, Any]], Any], timeout_s: float = 20
    ) -> dict[str, Any]:
        """Return the job, as tests see it, as soon as something is true of it."""
        deadline = time.monotonic() + timeout_s
        while True:
            job = self.jobs()[job_id]
            if condition(job):
                return job
            assert time.monotonic() < deadline, (job, self.log())
            time.sleep(0.05)

    def call(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        options = {} if body is None else {"json": body}
        reply = self._http.request(method, self.base_url + path, **options)
        assert reply.status_code < 400, (reply.status_code, reply.text)
        return reply

    def _start(self) -> None:
        command = [sys.executable, "-m", "loradash", "dev", "queue", "--port", "0", *self._options]
        if threading.current_thread() is threading.main_thread():
            # Linux takes the thread for the parent, so one that may end must not ask for it.
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, *command]
        said = self.folder / "queue.log"
        with said.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _READY_S
        while not (found := re.search(r"dev queue is ready: (\S+)\n", said.read_text())):
            assert self._process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, "the queue isn't ready within the time"
            time.sleep(0.02)
        self.base_url = found[1]
        self.url = f"{self.base_url}/v2"
