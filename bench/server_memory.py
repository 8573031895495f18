"""Does the server's memory grow under requests that are made to fill it, and does it still answer?

No peer: a target. An hour's worth of requests that hold, decode, parse or wait for as much as
they can is sent to a real ``loradash up`` within minutes, round after round, several at a time.
Memory is that of the server and its children; meanwhile somebody else asks ``GET /health`` all the
time, over a new connection each, and the longest that this took is the worst latency.
"""

import base64
import contextlib
import http.client
import io
import json
import multiprocessing
import os
import resource
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

import psutil
from PIL import Image

from bench.gateway import our_server
from bench.measure import Row, judged, parser, report

MB = 2**20
SIDE = 13_000  # pixels: 169 million, in a file of some kilobytes
CONNECTIONS = 1100
_LOOK_EVERY_S = 0.05
_SETTLE_S = 5.0

answers: Counter[str] = Counter()


def main() -> None:
    """Send the rounds and print the table."""
    options = parser(__doc__, 1)
    options.add_argument("--rounds", type=int, default=6)
    arguments = options.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    grown, peaks, worst, median, unanswered = [], [], [], [], []
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as root, our_server(Path(root)) as (port, pid):
            ask(port, "GET", "/health")
            before = memory_mb(pid)
            with watched(port, pid) as seen:
                for number in range(arguments.rounds):
                    one_round(port)
                    time.sleep(_SETTLE_S)
                    print(f"round {number + 1}: {memory_mb(pid):.0f} MB (began with {before:.0f})")
            grown.append(memory_mb(pid) - before)
            peaks.append(max(seen.memory_mb) - before)
            worst.append(max(seen.latencies_s))
            median.append(sorted(seen.latencies_s)[len(seen.latencies_s) // 2])
            unanswered.append(float(seen.unanswered))
    rows = [
        judged(Row("memory at the end, more than at the start", "MB", grown),
               "less than 100 MB", lambda value: value < 100),
        Row("... at its peak", "MB", peaks),
        Row("GET /health, p50", "s", median),
        Row("... worst", "s", worst),
        Row("... without an answer", "", unanswered),
    ]  # fmt: skip
    report(rows, arguments, load=os.getloadavg(), rounds=arguments.rounds, answers=dict(answers))


class Seen:
    """What was seen from outside while the requests came."""

    def __init__(self) -> None:
        self.memory_mb: list[float] = []
        self.latencies_s: list[float] = []
        self.unanswered = 0


@contextlib.contextmanager
def watched(port: int, pid: int) -> Iterator[Seen]:
    """Measure latency and memory until the context ends, each in a thread of its own."""
    seen, over = Seen(), threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_EVERY_S):
            seen.memory_mb.append(memory_mb(pid))

    # a process of its own: what is sent is made here, and would hold up a thread
    spawning = multiprocessing.get_context("spawn")
    enough, knocked = spawning.Event(), spawning.SimpleQueue()
    looking = threading.Thread(target=look)
    knocking = spawning.Process(target=knock, args=(port, enough, knocked))
    looking.start()
    knocking.start()
    try:
        yield seen
    finally:
        over.set()
        enough.set()
        seen.latencies_s, seen.unanswered = knocked.get()
        looking.join()
        knocking.join()


def knock(port: int, enough: Event, knocked: "SimpleQueue[tuple[list[float], int]]") -> None:
    """Ask for the server's health until it is enough, and tell how long each answer took."""
    latencies_s, unanswered = [], 0
    while not enough.wait(_LOOK_EVERY_S):
        began_s = time.monotonic()
        status = ask(port, "GET", "/health").status
        latencies_s.append(time.monotonic() - began_s)
        unanswered += status not in (200, 503)
    knocked.put((latencies_s, unanswered))


def one_round(port: int) -> None:
    """Send each kind of request, all kinds at once."""
    kinds = [many_inputs, small_files_of_large_images, values, idle_connections, long_errors,
             too_large]  # fmt: skip
    with ThreadPoolExecutor(len(kinds)) as threads:
        for done in [threads.submit(kind, port) for kind in kinds]:
            done.result()


def many_inputs(port: int) -> None:
    """72 MB in requests whose replies are small."""
    for number in range(72):
        run(port, {"type": "processes", "cursor": str(number) + "x" * MB})


def small_files_of_large_images(port: int) -> None:
    """A palette image as an upload, four times at once; its thumbnails and hashes."""
    buffer = io.BytesIO()
    Image.new("P", (SIDE, SIDE)).save(buffer, "PNG", transparency=0)
    content = base64.b64encode(buffer.getvalue()).decode()
    names = [f"{number}.png" for number in range(4)]
    files = [{"filename": name, "content": content} for name in names]
    run(port, {"type": "upload_training_data", "training_name": "large", "trigger_word": "sks",
               "dataset_folder": "large", "files": files})  # fmt: skip
    names += [f"{name}?size=256" for name in names]
    paths = [f"/datasets/large/thumbnails/{name}" for name in names]
    paths.append("/datasets/large/duplicates")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda path: ask(port, "GET", path), paths))


def values(port: int) -> None:
    """48 MB of empty lists, twice at once; and brackets without end."""
    lists = b'{"input": [' + b"[]," * (16 * MB) + b"[]]}"
    deep = b'{"input": ' + b"[" * (4 * MB)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda body: send(port, body), [lists, lists, deep]))


def idle_connections(port: int) -> None:
    """More than most systems allow by default; half of them have begun a request."""
    with contextlib.ExitStack() as stack:
        for number in range(CONNECTIONS):
            with contextlib.suppress(OSError):  # the server may have closed it already
                client = socket.create_connection(("127.0.0.1", port), 30)
                stack.enter_context(client)
                if number % 2:
                    client.sendall(b"POST /v2/local/run HTTP/1.1\r\nhost: 127.0.0.1\r\n")


def long_errors(port: int) -> None:
    """Configs of which every line is wrong, and the errors stay for a while."""
    config = "dataset: x\n" + "".join(f"{'k' * 200}{number}: 1\n" for number in range(4500))
    for _ in range(10):
        run(port, {"type": "train", "config": config})


def too_large(port: int) -> None:
    """More than is read at all."""
    send(port, b" " * (300 * MB))


class Answer(NamedTuple):
    """The status, 0 if there was none."""

    status: int


def run(port: int, data: dict[str, object]) -> Answer:
    """Start a job."""
    return send(port, json.dumps({"input": data}).encode())


def send(port: int, body: bytes) -> Answer:
    """Start a job with a body as it is."""
    return ask(port, "POST", "/v2/local/run", body)


def ask(port: int, method: str, path: str, body: bytes | None = None) -> Answer:
    """Ask over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body, {"content-type": "application/json"})
        reply = connection.getresponse()
        reply.read()
        answers[f"{path.split('?')[0].rpartition('/')[0]} {reply.status}"] += 1
        return Answer(reply.status)
    except (OSError, http.client.HTTPException):
        return Answer(0)
    finally:
        connection.close()


def memory_mb(pid: int) -> float:
    """Resident memory of a process and of all below it."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    total = 0
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += one.memory_info().rss
    return total / MB


if __name__ == "__main__":
    main()
