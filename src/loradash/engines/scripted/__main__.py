"""Entry of the scripted child: ``python -m loradash.engines.scripted train JOB | serve``."""

import os
import sys
from pathlib import Path

from loradash.engines.scripted.channel import Channel
from loradash.engines.stop_signal import StopSignal


def main() -> int:
    """Run one training or the generator; return the exit code (0 done, 1 failed, 130 stopped)."""
    stop, channel = StopSignal(), Channel()
    stop.listen_to_signals()
    channel.send("phase", phase="starting")
    match sys.argv[1:]:
        case ["train", job]:
            from loradash.engines.scripted.training import run_training

            stop.listen_to_stdin()
            return run_training(Path(job), channel, stop)
        case ["serve"]:
            from loradash.engines.scripted.generator import run_generator

            return run_generator(channel, stop)
    sys.exit("usage: python -m loradash.engines.scripted train JOB | serve")


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    os._exit(exit_code)  # threads may wait on stdin
