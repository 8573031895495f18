"""A RunPod endpoint on loopback: an emulated queue, a bucket, and workers as real processes."""

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
from botocore.exceptions import ClientError

from tests.servers.queue import RunpodQueue
from tests.servers.seaweedfs import SeaweedServer


class Endpoint:
    """A queue, a bucket, and workers that share nothing else: each has a disk of its own."""

    def __init__(
        self,
        queue: RunpodQueue,
        seaweedfs: SeaweedServer,
        folder: Path,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.queue = queue
        self._folder = folder
        self._s3 = seaweedfs.client()
        self.bucket = seaweedfs.new_bucket()
        self._settings = {
            "S3_BUCKET": self.bucket,
            "S3_ENDPOINT_URL": seaweedfs.endpoint_url,
            "AWS_ACCESS_KEY_ID": seaweedfs.access_key_id,
            "AWS_SECRET_ACCESS_KEY": seaweedfs.secret_access_key,
            "LORADASH_DEVICE": "cpu",
            "LORADASH_THREADS": "1",
            "LORADASH_LEASE": "4",
            **settings,
        }
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self, name: str, program: Sequence[str] = ("-m", "loradash")
    ) -> "subprocess.Popen[bytes]":
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ, **self.queue.worker_environment(name), **self._settings,
            "WORKSPACE_PATH": str(folder / "workspace"),
        }  # fmt: skip
        with (folder / "log").open("ab") as log:
            worker = subprocess.Popen(
                [sys.executable, *program, "worker"], cwd=folder, env=environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.workers[name] = worker
        return worker

    def control_plane_environment(self) -> dict[str, str]:
        """Return what a server needs to use these workers."""
        return {
            **self._settings,
            "LORADASH_EXECUTOR": "runpod",
            "RUNPOD_API_KEY": "test",
            "RUNPOD_ENDPOINT_ID": self.queue.endpoint,
            "RUNPOD_ENDPOINT_BASE_URL": self.queue.url,
        }

    def swallow_job(self, worker_id: str, *, fail: str = "") -> None:
        """Take a job as a worker that then does nothing, or fails."""
        address = f"/v2/{self.queue.endpoint}/job-{{}}/{worker_id}"
        job: dict[str, Any] = {}
        deadline = time.monotonic() + 30
        while not job:
            assert time.monotonic() < deadline, "no job came"
            reply = self.queue.call("GET", address.format("take") + "?job_in_progress=0")
            job = reply.json() if reply.status_code == 200 else {}
        if fail:
            self.queue.call("POST", f"{address.format('done')}/{job['id']}", {"error": fail})

    def objects(self, process_id: str) -> dict[str, str]:
        """Return the etags of all objects that hold this process's id in their keys."""
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return {
            entry["Key"]: entry["ETag"]
            for page in pages
            for entry in page.get("Contents", ())
            if process_id in entry["Key"]
        }

    def kill(self, name: str) -> None:
        """Lose a worker's machine, with its disk."""
        worker = self.workers.pop(name)
        family = psutil.Process(worker.pid).children(recursive=True)
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=10)
        shutil.rmtree(self._folder / name / "workspace", ignore_errors=True)

    def close(self) -> None:
        for name in list(self.workers):
            if self.workers[name].poll() is None:
                self.kill(name)

    def log(self, name: str) -> str:
        return (self._folder / name / "log").read_text(errors="replace")

    def ask(self, timeout_s: float = 60, **request: Any) -> dict[str, Any]:
        """Send a request as clients do, and return its output."""
        job = self.end_of(self.queue.submit(request), timeout_s)
        assert job["status"] == "COMPLETED", job
        output: dict[str, Any] = job["output"]
        return output

    def end_of(self, job_id: str, timeout_s: float = 120) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while (job := self.queue.status(job_id))["status"] in ("IN_QUEUE", "IN_PROGRESS"):
            assert time.monotonic() < deadline, (job, {n: self.log(n) for n in self.workers})
            time.sleep(0.1)
        return job

    def upload(self, folder: Path, name: str) -> None:
        files = [
            {"filename": path.name, "content": base64.b64encode(path.read_bytes()).decode()}
            for path in sorted(folder.iterdir())
        ]
        self.ask(
            type="upload_training_data", training_name=name, dataset_folder=name,
            trigger_word="sks", files=files,
        )  # fmt: skip

    def process_of(self, job_id: str) -> str:
        """The process that a running job's progress names."""
        deadline = time.monotonic() + 60
        while True:
            output = self.queue.status(job_id).get("output") or {}
            if "process_id" in output:
                return str(output["process_id"])
            assert time.monotonic() < deadline, {n: self.log(n) for n in self.workers}
            time.sleep(0.1)

    def wait_for_checkpoint(self, process_id: str) -> None:
        """Wait until a checkpoint is stored and listed."""
        deadline = time.monotonic() + 90
        manifests = f"results/{process_id}/manifest/"
        while True:
            for manifest in [key for key in self.objects(process_id) if key.startswith(manifests)]:
                with contextlib.suppress(ClientError):
                    content = self._s3.get_object(Bucket=self.bucket, Key=manifest)["Body"].read()
                    if b"/checkpoints/" in content:
                        return
            assert time.monotonic() < deadline, {n: self.log(n) for n in self.workers}
            time.sleep(0.1)
