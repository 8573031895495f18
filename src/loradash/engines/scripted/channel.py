"""Events of the scripted child: one JSON object a line, on the pipe that the parent has passed.

The names are those of `loradash.domain.events`, which takes longer to import than the whole child
may take to start; the contract tests of the engines parse what is sent here.
"""

import contextlib
import json
import os
import sys
import time

_VARIABLE = "LORADASH_EVENTS_FD"


class Channel:
    """Where events go."""

    def __init__(self) -> None:
        self._fd = int(os.environ.pop(_VARIABLE, "1"))  # a child of this one must not hold it
        if self._fd > 2:
            os.set_inheritable(self._fd, False)
        self.request_id = ""

    def send(self, kind: str, **fields: object) -> None:
        """Send one event; nothing happens once the parent reads no more."""
        event = {"type": kind, "time_s": time.time(), "request_id": self.request_id, **fields}
        data = json.dumps(event).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[os.write(self._fd, data) :]


def log(text: str) -> None:
    """Write a line into the run's log, which is what the child prints."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
