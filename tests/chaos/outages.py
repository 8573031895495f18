"""``python -m tests.chaos.outages``: real outages of the bucket, under workers and control planes.

Several groups run side by side, each a worker (some with a control plane) that reaches its own
bucket of one SeaweedFS through a proxy of its own, with records and files in the bucket. Each
training meets one outage: a refusal, a hang (connections are accepted and never answered) or 503,
at its delivery, start, middle or end, or as it is cancelled. The clocks of the machines are up to
ten minutes apart. Exit code 0 only if no training failed, none was begun twice, and all weights are
those of an undisturbed training.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from loradash.domain.ids import key_of_job, process_id_of
from loradash.domain.process import ProcessRecord
from loradash.errors import NotFound
from loradash.registry.objects import ObjectRegistry
from loradash.storage.s3.store import S3Store
from tests.acceptance.conftest import CommandLine, Server, draw_dataset, training
from tests.chaos.scene import weights_hash
from tests.contract.buckets import config_of
from tests.servers.endpoint import Endpoint
from tests.servers.fault_proxy import FaultProxy
from tests.servers.queue import RunpodQueue
from tests.servers.seaweedfs import SeaweedServer

KINDS = ("hang", "refused", "503")
MOMENTS = ("delivery", "start", "middle", "end", "cancel")
DURATIONS_S = (600, 300, 120, 60, 30, 10)
CLOCKS_S = (0, -600, 25, 600, -120, 300, -30, 450)
ENGINES = 2
_AFTER_S = 400.0
"""After its outage a training has so long: longer than a hung request and a lost lease."""


class Case(NamedTuple):
    """One training and its outage."""

    number: int
    moment: str
    kind: str
    duration_s: float


class Found(NamedTuple):
    """What became of it."""

    case: Case
    group: str
    clock_s: int
    process_id: str
    status: str
    endings: tuple[str, ...]
    steps: int
    weights: str
    outage_s: float
    to_end_s: float
    """From the end of the outage to the end of the process."""
    problem: str = ""


class _SharedQueue(RunpodQueue):
    """Another endpoint of an emulator that runs already."""

    def __init__(self, other: RunpodQueue, endpoint: str) -> None:
        super().__init__()
        self.base_url, self.url, self.endpoint = other.base_url, other.url, endpoint


class Group:
    """A worker, perhaps a control plane, and their way to their bucket."""

    def __init__(
        self, name: str, s3: SeaweedServer, queue: RunpodQueue, folder: Path, clock_s: int,
        shim: Path, *, has_plane: bool,
    ) -> None:  # fmt: skip
        self.name, self.clock_s, self.folder = name, clock_s, folder
        self.proxy = FaultProxy(s3.endpoint_url, stall_s=900)
        self.proxy.start()
        settings = {"S3_ENDPOINT_URL": self.proxy.url, "LORADASH_LEASE": "30"}
        shifted = {"LD_PRELOAD": str(shim), "CHAOS_CLOCK_SHIFT_S": str(clock_s)}
        self.endpoint = Endpoint(
            _SharedQueue(queue, name), s3, folder / "workers", {**settings, **shifted}
        )
        self.store = S3Store(config_of(s3, bucket=self.endpoint.bucket))
        self.registry = ObjectRegistry(self.store)
        self.plane: Server | None = None
        if has_plane:  # its clock is right, or at least another one
            environment = self.endpoint.control_plane_environment()
            environment["CHAOS_CLOCK_SHIFT_S"] = "0"
            self.plane = Server(CommandLine(folder), **environment)

    def start(self, dataset: Path) -> None:
        self.endpoint.start("w")
        if self.plane:
            self.plane.start()
        self.endpoint.upload(dataset, "shapes")

    def close(self) -> None:
        if self.plane:
            self.plane.close()
        self.endpoint.close()
        self.store.close()
        self.proxy.stop()

    @contextmanager
    def outage(self, kind: str) -> Iterator[None]:
        if kind == "refused":
            self.proxy.go_down()
        else:
            self.proxy.disturb(1.0, ["stall_before" if kind == "hang" else "503"])
        try:
            yield
        finally:
            self.proxy.calm()
            self.proxy.come_back()

    def record(self, process_id: str) -> ProcessRecord | None:
        try:
            return self.registry.get(process_id)
        except NotFound:
            return None

    def events(self, process_id: str) -> list[dict[str, Any]]:
        """What the engine has said, from the worker's own disk, and so at once."""
        path = self.folder / f"workers/w/workspace/output/training/{process_id}/events.jsonl"
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        events = []
        for line in lines:
            try:
                events.append(json.loads(line))
            except ValueError:
                continue  # the last one, half written
        return events


class Run:
    """All cases over all groups."""

    def __init__(self, steps: int) -> None:
        self._config = training("shapes", name="outage", seed=11, steps=steps, save_every=8)
        self._steps = steps
        self._engines = threading.Semaphore(ENGINES)
        self._lock = threading.Lock()
        self.found: list[Found] = []
        self.began_s = time.monotonic()

    def work(self, group: Group, cases: list[Case]) -> None:
        for case in cases:
            began_s = time.monotonic()
            try:
                one = self._one(group, case)
            except Exception as error:  # noqa: BLE001 - whatever it was, it is reported
                problem = f"{type(error).__name__}: {error}"[:300]
                one = Found(case, group.name, group.clock_s, "", "", (), 0, "",
                            time.monotonic() - began_s, 0.0, problem)  # fmt: skip
            with self._lock:
                self.found.append(one)
                print(f"{time.monotonic() - self.began_s:6.0f} s", *one, flush=True)

    def undisturbed(self, group: Group) -> Found:
        """The same training without an outage: what all others are compared with."""
        return self._one(group, Case(0, "never", "none", 0.0))

    def _one(self, group: Group, case: Case) -> Found:
        with ExitStack() as engine, ExitStack() as away:
            if case.moment == "delivery" and not group.plane:
                away.enter_context(group.outage(case.kind))
            else:
                engine.enter_context(self._engines)
            outage_s = time.monotonic()
            job_id, process_id = self._submit(group)
            if case.moment not in ("delivery", "never"):
                _until(lambda: self._is_at(group, process_id, case.moment), 240)
            if case.moment == "cancel":
                self._cancel(group, job_id, process_id)
            if case.moment != "never" and not (case.moment == "delivery" and not group.plane):
                outage_s = time.monotonic()
                away.enter_context(group.outage(case.kind))
            if case.moment in ("start", "delivery"):  # its engine begins when the outage is over
                engine.close()
            until_s = outage_s + case.duration_s
            while time.monotonic() < until_s:
                if self._engine_has_ended(group, process_id):
                    engine.close()
                time.sleep(0.1)
            if case.moment in ("start", "delivery"):
                engine.enter_context(self._engines)
            outage_s = time.monotonic() - outage_s
            away.close()
            over_s = time.monotonic()
            _until(lambda: self._has_ended(group, process_id), _AFTER_S)
            to_end_s = time.monotonic() - over_s
        record = group.record(process_id)
        assert record
        adapters = [one for one in group.registry.artifacts(process_id) if one.kind == "lora"]
        return Found(
            case, group.name, group.clock_s, process_id, str(record.status),
            tuple(note.ending for note in record.attempts),
            len({row.step for row in group.registry.metrics(process_id, limit=100_000)}),
            weights_hash(group.store.get(adapters[-1].key)) if adapters else "",
            round(outage_s, 1), round(to_end_s, 1),
        )  # fmt: skip

    def _submit(self, group: Group) -> tuple[str, str]:
        if group.plane:
            return "", group.plane.submit(type="train", config=self._config)
        job_id = group.endpoint.queue.submit({"type": "train", "config": self._config})
        return job_id, process_id_of("training", key_of_job(job_id))

    def _cancel(self, group: Group, job_id: str, process_id: str) -> None:
        if group.plane:
            group.plane.ask(type="cancel", process_id=process_id)
        else:
            group.endpoint.queue.cancel(job_id)

    def _is_at(self, group: Group, process_id: str, moment: str) -> bool:
        if moment == "start":
            record = group.record(process_id)
            return bool(record and record.lease)
        steps = [one["step"] for one in group.events(process_id) if one["type"] == "step"]
        wanted = self._steps if moment == "end" else self._steps // 3
        return bool(steps) and max(steps) >= wanted

    def _engine_has_ended(self, group: Group, process_id: str) -> bool:
        return any(one["type"] == "step" and one["step"] == self._steps
                   for one in group.events(process_id))  # fmt: skip

    def _has_ended(self, group: Group, process_id: str) -> bool:
        record = group.record(process_id)
        return bool(record and record.status.is_end)


def cases(count: int, cancels: int, seed: int, longest_s: float) -> list[Case]:
    """Every moment with every kind; short outages are more than long ones."""
    chance = random.Random(seed)
    shares = {600: 1, 300: 2, 120: 3, 60: 8, 30: 12, 10: 14}
    durations = [s for s in DURATIONS_S for _ in range(shares[s])]
    durations = [min(s, longest_s) for s in durations]
    pairs = [(moment, kind) for kind in KINDS for moment in MOMENTS if moment != "cancel"]
    chance.shuffle(pairs)
    made = [
        Case(n + 1, *pairs[n % len(pairs)], durations[n % len(durations)]) for n in range(count)
    ]
    made += [
        Case(count + n + 1, "cancel", KINDS[n % len(KINDS)], min((10, 30, 120)[n % 3], longest_s))
        for n in range(cancels)
    ]
    return sorted(made, key=lambda one: -one.duration_s)


def problems_of(found: list[Found], undisturbed: Found) -> list[str]:
    """What doesn't hold."""
    problems = []
    for one in found:
        name = f"case {one.case.number} ({one.case.moment}, {one.case.kind})"
        if one.problem:
            problems.append(f"{name}: {one.problem}")
        elif one.case.moment == "cancel":
            # A training that gets done before its worker could hear of the cancel is done.
            if one.endings not in (("cancelled",), ("completed",)):
                problems.append(f"{name}: {one.status}, attempts {one.endings}")
        elif (one.status, one.endings) != ("completed", ("completed",)):
            problems.append(f"{name}: {one.status}, attempts {one.endings}")
        elif (one.weights, one.steps) != (undisturbed.weights, undisturbed.steps):
            problems.append(f"{name}: other weights or {one.steps} measurements")
    return problems


def main() -> int:
    """Run, report, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.outages", description=__doc__)
    parser.add_argument("--trainings", type=int, default=40)
    parser.add_argument("--cancels", type=int, default=6)
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--planes", type=int, default=4, help="groups with a control plane")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--longest", type=float, default=600, help="no outage lasts longer (s)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="loradash-outages-"))
    shim = folder / "clock_shift.so"
    source = Path(__file__).with_name("clock_shift.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"], check=True)
    plan = cases(wanted.trainings, wanted.cancels, wanted.seed, wanted.longest)
    run = Run(wanted.steps)
    with ExitStack() as stack:
        s3 = stack.enter_context(SeaweedServer())
        queue = stack.enter_context(RunpodQueue(requeue_after=20, max_deliveries=1000))
        dataset = draw_dataset(folder / "dataset")
        groups = []
        for n in range(wanted.groups):
            place = folder / f"g{n}"
            place.mkdir()
            group = Group(
                f"g{n}", s3, queue, place, CLOCKS_S[n % len(CLOCKS_S)], shim,
                has_plane=n < wanted.planes,
            )  # fmt: skip
            stack.callback(group.close)
            groups.append(group)
            group.start(dataset)
        undisturbed = run.undisturbed(groups[-1])
        print("undisturbed:", *undisturbed, flush=True)
        waiting: list[list[Case]] = [[] for _ in groups]
        for case in plan:  # the longest first, each to the group with the least to do
            min(waiting, key=lambda one: sum(c.duration_s + 60 for c in one)).append(case)
        threads = [
            threading.Thread(target=run.work, args=(group, mine))
            for group, mine in zip(groups, waiting, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    problems = problems_of(run.found, undisturbed)
    print(report(run.found, time.monotonic() - run.began_s))
    for problem in problems:
        print("BROKEN:", problem)
    if wanted.json:
        facts = [{**one._asdict(), "case": one.case._asdict()} for one in run.found]
        wanted.json.write_text(json.dumps({"problems": problems, "found": facts}, indent=1))
    print(f"NOT HELD; see {folder}" if problems else "HELD")
    return 1 if problems else 0


def report(found: list[Found], seconds: float) -> str:
    """Return the figures of a run."""
    lines = ["| moment | hang | refused | 503 |", "| --- | --- | --- | --- |"]
    for moment in MOMENTS:
        row = []
        for kind in KINDS:
            some = [one for one in found if (one.case.moment, one.case.kind) == (moment, kind)]
            longest = max((one.outage_s for one in some), default=0)
            after = max((one.to_end_s for one in some), default=0)
            row.append(f"{len(some)}, up to {longest:.0f} s, ended {after:.0f} s after it")
        lines.append(f"| {moment} | {' | '.join(row)} |")
    clocks = sorted({one.clock_s for one in found})
    lines.append(f"clocks of workers: {clocks} s; {sum(one.outage_s for one in found):.0f} s of "
                 f"outages within {seconds:.0f} s")  # fmt: skip
    return "\n".join(lines)


def _until(condition: Any, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError("it didn't come")
        time.sleep(0.1)


if __name__ == "__main__":
    os.environ.pop("LD_PRELOAD", None)
    sys.exit(main())
