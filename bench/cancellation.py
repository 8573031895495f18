"""How soon is a process cancelled, asked by a control plane or through another worker?

Trainings that would take minutes run on a worker behind the emulated queue, with their records in a
bucket on loopback (SeaweedFS). The time runs from the request to the moment when the record says
``cancelled`` and no process of the engine's group is alive.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from tests.acceptance.conftest import CommandLine, Server, draw_dataset, training, upload
from tests.servers.endpoint import Endpoint
from tests.servers.queue import RunpodQueue
from tests.servers.seaweedfs import SeaweedServer

from bench.measure import Row, judged, parser, report

AT_MOST_S = 5.0
_PATIENCE_S = 60.0


def main() -> None:
    """Cancel again and again, and report; the target is for the 95th percentile."""
    arguments = parser(__doc__, repeats=20).parse_args()
    with tempfile.TemporaryDirectory() as name, SeaweedServer() as s3, RunpodQueue() as queue:
        folder = Path(name)
        endpoint = Endpoint(queue, s3, folder / "workers")
        plane = Server(CommandLine(folder), **endpoint.control_plane_environment())
        try:
            plane.start()
            upload(plane, draw_dataset(folder / "dataset"), "shapes")
            waiting = [cancelled_waiting(plane, endpoint) for _ in range(arguments.repeats)]
            endpoint.start("a")

            def by_plane(process_id: str) -> None:
                plane.ask(type="cancel", process_id=process_id)

            running = [running_cancelled(plane, endpoint, by_plane)
                       for _ in range(arguments.repeats)]  # fmt: skip
            endpoint.start("b")

            def by_worker(process_id: str) -> None:
                endpoint.ask(type="cancel", process_id=process_id)

            through_worker = [running_cancelled(plane, endpoint, by_worker)
                              for _ in range(arguments.repeats)]  # fmt: skip
        finally:
            plane.close()
            endpoint.close()
    rows = [
        row(name, values)
        for name, values in (
            ("waiting, by the control plane", waiting),
            ("running, by the control plane", running),
            ("running, through another worker", through_worker),
        )
    ]
    report(rows, arguments)


def row(name: str, values: list[float]) -> Row:
    """A line of the table, judged by its 95th percentile."""
    p95 = sorted(values)[max(0, round(0.95 * len(values)) - 1)]
    target = f"p95 under {AT_MOST_S:g} s ({p95:.1f} s)"
    return judged(Row(f"cancelled while {name}", "s", values), target, lambda _: p95 < AT_MOST_S)


def cancelled_waiting(plane: Server, endpoint: Endpoint) -> float:
    """Cancel a training whose job is in RunPod's queue; until the job is out of it, too."""
    before = set(endpoint.queue.jobs())
    process_id = plane.submit(type="train", config=training("shapes", steps=5000))
    wait(lambda: set(endpoint.queue.jobs()) - before)
    (job_id,) = set(endpoint.queue.jobs()) - before
    began_s = time.monotonic()
    plane.ask(type="cancel", process_id=process_id)
    wait(lambda: plane.process(process_id)["status"] == "cancelled")
    wait(lambda: endpoint.queue.status(job_id)["status"] == "CANCELLED")
    return time.monotonic() - began_s


def running_cancelled(plane: Server, endpoint: Endpoint, cancel: Callable[[str], None]) -> float:
    """Cancel a training that runs."""
    process_id = plane.submit(type="train", config=training("shapes", steps=5000))
    wait(lambda: plane.process(process_id)["step"] >= 1)
    began_s = time.monotonic()
    cancel(process_id)
    wait(lambda: plane.process(process_id)["status"] == "cancelled")
    wait(lambda: not engines(endpoint))
    return time.monotonic() - began_s


def engines(endpoint: Endpoint) -> list[int]:
    """Engine processes below the workers."""
    return [
        child.pid
        for worker in endpoint.workers.values()
        for child in psutil.Process(worker.pid).children(recursive=True)
        if "loradash.engines.diffusers" in child.cmdline() and "train" in child.cmdline()
    ]


def wait(is_so: Callable[[], object]) -> None:
    """Wait until something is so."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while not is_so():
        if time.monotonic() > deadline_s:
            raise RuntimeError("it didn't happen within the time")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
