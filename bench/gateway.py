"""How many requests a second does the gateway answer, next to the RunPod SDK's local server?

The peer is the SDK's own ``--rp_serve_api`` with a handler that returns a constant. Ours is
``loradash up``, asked for the newest page of processes of an empty registry: the smallest request
that a dashboard sends all the time. Ours validates the request, reads SQLite, counts and logs it;
the peer does nothing of that. Both are asked by the same client over connections that stay open.
"""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench.measure import ENVIRONMENT, Cost, Row, parser, reading, report

PEER = """
import runpod
runpod.serverless.start({"handler": lambda job: {"answer": 42}})
"""
_READY_S = 60.0


def main() -> None:
    """Measure both in turn and print the table."""
    options = parser(__doc__, 3)
    options.add_argument("--requests", type=int, default=1000, help="per connection and repeat")
    arguments = options.parse_args()
    rows = []
    for connections in (1, 8):
        ours, peers, our_cpu, peer_cpu = [], [], [], []
        for _ in range(arguments.repeats):
            with tempfile.TemporaryDirectory() as root:
                with our_server(Path(root)) as (port, pid):
                    rate, cpu_s = load(
                        port, pid, "/v2/local/runsync", {"type": "processes"}, connections,
                        arguments.requests,
                    )  # fmt: skip
                    ours.append(rate)
                    our_cpu.append(cpu_s)
                with peer_server(Path(root)) as (port, pid):
                    rate, cpu_s = load(
                        port, pid, "/runsync", {"n": 1}, connections, arguments.requests
                    )
                    peers.append(rate)
                    peer_cpu.append(cpu_s)
        name = f"{connections} connection{'s' if connections > 1 else ''}"
        rows.append(Row(f"requests per second, {name}", "", ours, peers))
        rows.append(Row(f"server's CPU time of a request, {name}", "s", our_cpu, peer_cpu))
    report(rows, arguments)


def load(
    port: int, pid: int, path: str, data: dict[str, object], connections: int, requests: int
) -> tuple[float, float]:
    """Return requests per second, and CPU seconds of the server for one."""
    body = json.dumps({"input": data})
    headers = {"content-type": "application/json"}

    def ask(count: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for _ in range(count):
            connection.request("POST", path, body, headers)
            reply = json.loads(connection.getresponse().read())
            if reply["status"] != "COMPLETED":
                raise RuntimeError(f"not answered: {reply}")
        connection.close()

    ask(50)  # warm
    before = reading(pid)
    threads = [threading.Thread(target=ask, args=(requests,)) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cost: Cost = reading(pid) - before
    count = connections * requests
    return count / cost.wall_s, cost.cpu_s / count


@contextlib.contextmanager
def our_server(root: Path) -> Iterator[tuple[int, int]]:
    """Start ``loradash up``; yield its port and pid."""
    environment = {
        "WORKSPACE_PATH": str(root / "workspace"), "LORADASH_OBJECTS_PATH": str(root / "objects"),
        "LORADASH_DEVICE": "cpu",
    }  # fmt: skip
    command = [sys.executable, "-m", "loradash", "up", "--port", "0"]
    with _running(command, root, environment, r"ready: http://127.0.0.1:(\d+)") as found:
        yield found


@contextlib.contextmanager
def peer_server(root: Path) -> Iterator[tuple[int, int]]:
    """Start the SDK's local server; yield its port and pid."""
    (root / "handler.py").write_text(PEER, encoding="utf-8")
    arguments = ["--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", "18231"]
    environment = {"RUNPOD_DEBUG_LEVEL": "ERROR", "HOME": str(root)}
    command = [sys.executable, "handler.py", *arguments]
    with _running(command, root, environment, r"running on http://127.0.0.1:(\d+)") as found:
        yield found


@contextlib.contextmanager
def _running(
    command: list[str], root: Path, environment: dict[str, str], ready: str
) -> Iterator[tuple[int, int]]:
    log = root / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=root, env={**os.environ, **ENVIRONMENT, **environment}, stdout=output,
            stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _READY_S
        while not (found := re.search(ready, log.read_text(errors="replace"))):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"not started:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield int(found[1]), process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


if __name__ == "__main__":
    main()
