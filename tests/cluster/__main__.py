"""``python -m tests.cluster``: exit code 0 only if every promise held."""

import argparse
import shutil
import signal
import sys

from tests.cluster.run import LEASE_S, Outcome, Wanted, run


def report(outcome: Outcome) -> str:
    """Return what was done and found."""
    wanted = outcome.wanted
    trainings = f"{len(outcome.attempts)} trainings of {wanted.steps} steps by {wanted.engine}"
    kills = ", ".join(f"{what} {n}" for what, n in outcome.kills.most_common())
    failures = ", ".join(f"{what} {n}" for what, n in outcome.failures.most_common())
    most = max(outcome.attempts, default=0)
    lines = [
        f"seed {wanted.seed}: {wanted.servers} servers, {trainings}, lease {LEASE_S} s",
        f"undisturbed {outcome.undisturbed_s:.0f} s, disturbed {outcome.disturbed_s:.0f} s",
        f"killed: {kills}",
        f"database: {failures}",
        f"attempts: {sum(outcome.attempts)}, at most {most} of one training",
        f"server processes that took one: {len(outcome.takers)}",
    ]
    lines += [f"BROKEN: {problem}" for problem in outcome.problems]
    if outcome.problems:
        return "\n".join([*lines, f"NOT HELD: see {outcome.folder}"])
    held = "completed once, with the weights of undisturbed ones"
    return "\n".join([*lines, f"HELD: all {len(outcome.attempts)} trainings {held}"])


def main() -> int:
    """Run, report, and clean up if nothing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    for name, default in Wanted._field_defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left running
    outcome = run(Wanted(**vars(parser.parse_args())), lambda text: print(text, flush=True))
    print(report(outcome))
    if outcome.problems:
        return 1
    shutil.rmtree(outcome.folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
