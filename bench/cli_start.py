"""How long does ``loradash --help`` take, and does it stay free of torch?

CPU seconds of the whole process (``wait4``), in turn with two peers of the same environment: the
interpreter alone (``python -c pass``), which is the floor, and ``diffusers-cli --help``. Whether
torch is imported is read from the interpreter's own list of imports (``-X importtime``).
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from bench.measure import Cost, Row, judged, parser, reading, report

AT_MOST_S = 0.4
HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "matplotlib")
HELP = [sys.executable, "-m", "loradash", "--help"]
BARE = [sys.executable, "-c", "pass"]
PEER = [sys.executable, str(Path(sys.executable).with_name("diffusers-cli")), "--help"]


def main() -> None:
    """Run all in turn and report."""
    arguments = parser(__doc__, repeats=15).parse_args()
    for command in (HELP, BARE, PEER):
        run(command)  # warm the disk cache and the bytecode
    costs = [(run(HELP), run(BARE), run(PEER)) for _ in range(arguments.repeats)]
    ours, bare, peer = ([row[column] for row in costs] for column in range(3))
    ours_cpu = [cost.cpu_s for cost in ours]
    rows = [
        judged(Row("loradash --help, CPU", "s", ours_cpu), "under 0.4 s",
               lambda seconds: seconds < AT_MOST_S),
        Row("... peer: python -c pass, CPU", "s", ours_cpu, [cost.cpu_s for cost in bare]),
        Row("... peer: diffusers-cli --help, CPU", "s", ours_cpu, [cost.cpu_s for cost in peer]),
        Row("... peer: diffusers-cli --help, wall", "s", [cost.wall_s for cost in ours],
            [cost.wall_s for cost in peer]),
    ]  # fmt: skip
    report(rows, arguments, heavy_imports=", ".join(heavy_imports()) or "none")


def run(command: list[str]) -> Cost:
    """Run a command to its end; return what it cost, with its children."""
    started = reading().wall_s
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed")
    return Cost(usage.ru_utime + usage.ru_stime, reading().wall_s - started)


def heavy_imports() -> list[str]:
    """Which of the heavy packages ``loradash --help`` imports."""
    command = [HELP[0], "-X", "importtime", *HELP[1:]]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    imported = set(re.findall(r"\|\s*(\w+)(?:\.[\w.]+)?$", output, re.MULTILINE))
    return [name for name in HEAVY if name in imported]


if __name__ == "__main__":
    main()
