"""Entry of the child process: ``python -m loradash.engines.diffusers train JOB | serve``.

Events go to the file descriptor named in the environment, or to standard output; whatever the
libraries print goes to standard error, and so to the log. The heavy imports come after the first
event, so that the parent sees at once that the child lives.
"""

import argparse
import os
from pathlib import Path

from loradash.engines.diffusers.child.emitter import Emitter
from loradash.engines.stop_signal import StopSignal
from loradash.streams import lossy_output


def main() -> int:
    """Run one training or the generator; return the exit code (0 done, 1 failed, 130 stopped)."""
    parser = argparse.ArgumentParser(prog="loradash.engines.diffusers")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="run or continue the training of a job file")
    train.add_argument("job", type=Path)
    serve = commands.add_parser("serve", help="generate, request after request, from stdin")
    serve.add_argument("--device", default="auto")
    serve.add_argument("--offline", action="store_true")
    arguments = parser.parse_args()
    stop = StopSignal()
    emitter = Emitter.from_environment(on_reader_gone=stop.request)
    stop.listen_to_signals()
    emitter.phase("starting")
    if arguments.command == "train":
        stop.listen_to_stdin()
        from loradash.engines.diffusers.child.run_training import run_training

        return run_training(arguments.job, emitter, stop)
    from loradash.engines.diffusers.child.run_generator import run_generator

    return run_generator(emitter, stop, arguments.device, arguments.offline)


if __name__ == "__main__":
    with lossy_output():  # what libraries print goes to a log, whose disk may be full
        exit_code = main()
    # Every result is on disk by now; unloading torch in good order would take another 1 to 2 s.
    os._exit(exit_code)
