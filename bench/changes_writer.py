"""Another program that changes processes: one after the other, at random times, for `changes.py`.

It reads its settings from the environment, as any program does, and gets the ids on standard input.
After each change that is committed it prints the id and the time of the monotonic clock, which all
programs of a machine share.
"""

import random
import sys
import time

from loradash.settings import load_settings
from loradash.wiring.core import make_core


def main() -> None:
    """Change each process once."""
    shortest_s, longest_s = map(float, sys.argv[1:])
    core = make_core(load_settings())
    try:
        for process_id in sys.stdin.read().split():
            time.sleep(random.uniform(shortest_s, longest_s))
            core.registry.change(
                process_id, lambda one: one.model_copy(update={"name": one.name[::-1]})
            )
            print(process_id, time.monotonic(), flush=True)
    finally:
        core.close()


if __name__ == "__main__":
    main()
