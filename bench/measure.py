"""Clocks, medians and reports that every benchmark uses.

CPU seconds come first: they hardly depend on what else the machine does. Ratios are formed within
one repeat, whose two sides run right after each other, and then summarised over the repeats.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # start from bytecode, as an installed package does
}
"""What all processes run with: one thread and no network. Our engine sets some more by itself."""

PACKAGES = ("torch", "diffusers", "peft", "transformers", "accelerate", "datasets", "pydantic")


class Cost(NamedTuple):
    """CPU and wall time of one piece of work, in seconds."""

    cpu_s: float
    wall_s: float

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.cpu_s - other.cpu_s, self.wall_s - other.wall_s)

    def per(self, count: int) -> "Cost":
        """Cost of one of ``count`` equal pieces."""
        return Cost(self.cpu_s / count, self.wall_s / count)


def reading(pid: int | None = None) -> Cost:
    """CPU seconds that a process (default: this one) has used until now, and the wall clock.

    All its threads count, its children don't. Linux builds the id of another process's CPU clock
    from its pid (``clock_getcpuclockid``), with nanoseconds where /proc has 10 ms.
    """
    clock = ((~pid) << 3) | 2 if pid else time.CLOCK_PROCESS_CPUTIME_ID
    return Cost(time.clock_gettime(clock), time.monotonic())


@dataclass(frozen=True)
class Row:
    """One line of the table: the same quantity of ours and of the peer, one value a repeat."""

    name: str
    unit: str
    ours: Sequence[float]
    peer: Sequence[float] | None = None
    target: str = ""
    met: bool | None = None

    @property
    def ratios(self) -> list[float]:
        """Ours / peer, repeat by repeat."""
        return [a / b for a, b in zip(self.ours, self.peer or [], strict=bool(self.peer))]


def cost_rows(name: str, ours: Sequence[Cost], peer: Sequence[Cost]) -> list[Row]:
    """Return a CPU row and a wall row."""
    return [
        Row(f"{name}, CPU", "s", [c.cpu_s for c in ours], [c.cpu_s for c in peer]),
        Row(f"{name}, wall", "s", [c.wall_s for c in ours], [c.wall_s for c in peer]),
    ]


def judged(row: Row, target: str, holds: Callable[[float], bool]) -> Row:
    """Return the row with its target, held against the median ratio (or value, without a peer)."""
    value = statistics.median(row.ratios or row.ours)
    return Row(row.name, row.unit, row.ours, row.peer, target, holds(value))


def span(values: Sequence[float], unit: str = "") -> str:
    """Median and range: ``1.32 (1.28-1.35)``; times below 0.1 s in ms."""
    if unit == "s" and statistics.median(values) < 0.1:
        values, unit = [value * 1000 for value in values], "ms"
    digits = _digits(statistics.median(values))
    low, high = min(values), max(values)
    text = f"{statistics.median(values):.{digits}f}"
    if len(values) > 1:
        text += f" ({low:.{digits}f}-{high:.{digits}f})"
    return f"{text} {unit}".strip()


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a markdown table."""
    lines = [
        "| measured | loradash | peer | ratio | target |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        verdict = "" if row.met is None else (": met" if row.met else ": MISSED")
        lines.append(
            f"| {row.name} | {span(row.ours, row.unit)} "
            f"| {span(row.peer, row.unit) if row.peer else ''} "
            f"| {span(row.ratios) if row.peer else ''} | {row.target}{verdict} |"
        )
    return "\n".join(lines)


def parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """Prepare the environment of all children; return a parser with the common options."""
    os.environ.update(ENVIRONMENT)
    result = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    result.add_argument("--repeats", type=int, default=repeats, help=f"default: {repeats}")
    result.add_argument("--json", type=Path, help="also write all values to this file")
    return result


def report(rows: Sequence[Row], arguments: argparse.Namespace, **facts: Any) -> None:
    """Print the table and write the JSON file that was asked for."""
    print(table(rows))
    for key, value in facts.items():
        print(f"{key}: {value}")
    if arguments.json:
        document = {
            "environment": environment(),
            "repeats": arguments.repeats,
            "facts": facts,
            "rows": [
                {
                    "name": row.name, "unit": row.unit, "ours": list(row.ours),
                    "peer": list(row.peer) if row.peer else None,
                    "ratios": row.ratios, "target": row.target, "met": row.met,
                }
                for row in rows
            ],
        }  # fmt: skip
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def environment() -> dict[str, str]:
    """What the numbers depend on: machine class and versions."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _digits(value: float) -> int:
    """Decimal places that show at least two significant digits of a value."""
    digits = 0 if abs(value) >= 100 else 2
    while value and abs(value) < 10 ** (1 - digits) and digits < 7:
        digits += 1
    return digits
