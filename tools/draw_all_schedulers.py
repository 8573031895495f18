"""Draw with every scheduler x 1 to 100 steps x guidance 0, 1, 7 on the embedded base model.

    python tools/draw_all_schedulers.py [--size 64] [--minutes 60] [--schedulers a,b]

Counts pictures, refusals, pictures that became NaN and pictures of one colour; anything else that
is raised is listed, and makes the exit code 1. The order is spread over all combinations, so that
what is done when the time is over is a sample of the whole.
"""

import argparse
import os
import sys
import time
from collections import Counter
from itertools import product

import torch

from loradash.domain.schedulers import SCHEDULERS
from loradash.engines.diffusers.base_models.families import find_base_model
from loradash.engines.diffusers.child.base_model import load_base_model
from loradash.engines.diffusers.child.emitter import Emitter
from loradash.engines.diffusers.child.sampling import Drawing, draw, one_color
from loradash.engines.stop_signal import StopSignal
from loradash.errors import ImageNotFinite, InvalidConfig

GUIDANCES = (0.0, 1.0, 7.0)
_STRIDE = 2741  # a prime, which shares no factor with any number of combinations here


def main() -> int:
    """Draw, print the figures, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="pixels of both sides")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--schedulers", default=",".join(SCHEDULERS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stop = StopSignal()
    emitter = Emitter(os.open(os.devnull, os.O_WRONLY), stop.request)
    architecture = load_base_model(
        find_base_model("emoji-base"), torch.float32, torch.device("cpu"), emitter, stop,
        offline=True,
    )  # fmt: skip
    own = architecture.pipeline.scheduler
    wanted = list(product(arguments.schedulers.split(","), range(1, 101), GUIDANCES))
    counts: Counter[str] = Counter()
    until = time.monotonic() + arguments.minutes * 60
    for number in range(len(wanted)):
        if time.monotonic() > until:
            break
        name, steps, guidance = wanted[number * _STRIDE % len(wanted)]
        drawing = Drawing(
            "a red fox", "", 1, steps, guidance, arguments.size, arguments.size, name, "emoji-base"
        )
        try:
            outcome = "one colour" if one_color(
                draw(architecture, drawing, own, torch.float32, stop)
            ) else "picture"  # fmt: skip
        except InvalidConfig:
            outcome = "refused"
        except ImageNotFinite:
            outcome = "not finite"
        except Exception as error:  # noqa: BLE001 - every kind is looked for
            outcome = "error"
            print(f"{name}, {steps} steps, guidance {guidance:g}: {error!r}", flush=True)
        counts[outcome] += 1
        if outcome in ("refused", "not finite", "one colour"):
            print(f"{name}, {steps} steps, guidance {guidance:g}: {outcome}", flush=True)
    figures = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    print(f"{counts.total()} of {len(wanted)}: {figures}", flush=True)
    return 1 if counts["error"] else 0


if __name__ == "__main__":
    sys.exit(main())
