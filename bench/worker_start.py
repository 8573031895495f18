"""How long does a worker take from its start to its first answer, and how much memory has it then?

A job waits in the emulated queue; the worker is started as RunPod starts it, and the time runs
until the queue has its answer. Ours reads its processes from a bucket on loopback (SeaweedFS).
The peers are the least that can be built on RunPod's SDK: a handler that returns its input, and
``import runpod`` alone. Start from bytecode and a warm disk cache.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from tests.servers.queue import RunpodQueue
from tests.servers.seaweedfs import SeaweedServer

from bench.measure import Cost, Row, judged, parser, reading, report

AT_MOST_S = 1.0
_LOOK_EVERY_S = 0.005
_PATIENCE_S = 60.0

OURS = [sys.executable, "-m", "loradash", "worker"]
ECHO = """
import runpod
async def handler(job):
    return job["input"]
runpod.serverless.start({"handler": handler})
"""
IMPORT = [sys.executable, "-c", "import runpod"]


class Start(NamedTuple):
    """From the start of a worker to its first answer."""

    cost: Cost
    rss_mb: float


def main() -> None:
    """Run all in turn and report."""
    arguments = parser(__doc__, repeats=11).parse_args()
    with tempfile.TemporaryDirectory() as name, SeaweedServer() as s3, RunpodQueue() as queue:
        folder = Path(name)
        echo = folder / "echo.py"
        echo.write_text(ECHO, encoding="utf-8")
        peer = [sys.executable, str(echo)]
        settings = {
            "S3_BUCKET": s3.new_bucket(),
            "S3_ENDPOINT_URL": s3.endpoint_url,
            "AWS_ACCESS_KEY_ID": s3.access_key_id,
            "AWS_SECRET_ACCESS_KEY": s3.secret_access_key,
            "LORADASH_DEVICE": "cpu",
            "WORKSPACE_PATH": str(folder / "workspace"),
        }
        starts = [
            (
                first_answer(OURS, queue, f"ours{n}", folder, settings),
                first_answer(peer, queue, f"peer{n}", folder, {}),
                imported(),
            )
            for n in range(arguments.repeats + 1)  # the first time warms the disk cache
        ]
    ours, echoes, imports = zip(*starts[1:], strict=True)
    ours_s = [start.cost.wall_s for start in ours]
    rows = [
        judged(Row("worker's first answer, wall", "s", ours_s), "at most 1.0 s",
               lambda seconds: seconds <= AT_MOST_S),
        Row("... peer: echo on the SDK, wall", "s", ours_s, [one.cost.wall_s for one in echoes]),
        Row("... peer: import runpod alone, wall", "s", ours_s, imports),
        Row("... CPU", "s", [one.cost.cpu_s for one in ours], [one.cost.cpu_s for one in echoes]),
        Row("memory then (RSS, with its ping)", "MB", [one.rss_mb for one in ours],
            [one.rss_mb for one in echoes]),
    ]  # fmt: skip
    report(rows, arguments)


def first_answer(
    command: Sequence[str], queue: RunpodQueue, worker_id: str, folder: Path,
    settings: Mapping[str, str],
) -> Start:  # fmt: skip
    """Start a worker for a job that waits; return what it took to answer, and end it."""
    job_id = queue.submit({"type": "processes"})
    environment = {**os.environ, **queue.worker_environment(worker_id), **settings}
    with (folder / f"{worker_id}.log").open("wb") as log:
        began_s = time.monotonic()
        worker = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            while (job := queue.status(job_id))["status"] != "COMPLETED":
                if time.monotonic() - began_s > _PATIENCE_S:
                    raise RuntimeError(f"no answer: {job}")
                time.sleep(_LOOK_EVERY_S)
            took_s = time.monotonic() - began_s
            process = psutil.Process(worker.pid)
            family = [process, *process.children(recursive=True)]
            rss_mb = sum(one.memory_info().rss for one in family) / 2**20
            return Start(Cost(reading(worker.pid).cpu_s, took_s), rss_mb)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def imported() -> float:
    """Return the seconds that ``import runpod`` takes, with the interpreter's start."""
    began_s = time.monotonic()
    subprocess.run(IMPORT, check=True, capture_output=True)
    return time.monotonic() - began_s


if __name__ == "__main__":
    main()
