"""``python -m tests.chaos``: exit code 0 only if every promise held."""

import argparse
import shutil
import signal
import sys
from pathlib import Path

from tests.chaos.report import as_json, report
from tests.chaos.run import Wanted, run


def main() -> int:
    """Run, report, and clean up if nothing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    for name, default in Wanted._field_defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--json", type=Path, help="write everything that was found there, too")
    arguments = vars(parser.parse_args())
    json_path = arguments.pop("json")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left running
    outcome = run(Wanted(**arguments), lambda text: print(text, flush=True))
    print(report(outcome))
    if json_path:
        json_path.write_text(as_json(outcome), encoding="utf-8")
    if outcome.problems:
        return 1
    shutil.rmtree(outcome.folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
