"""The one place where commands print: text as it can do no harm, and JSON for programs."""

import json
import sys
from typing import Any, TextIO

from loradash.visible_text import visible


def say(*lines: str, to: TextIO | None = None) -> None:
    """Write lines, to standard output by default.

    A line end within one is shown and not followed, as are other control characters: names and
    messages from outside can't forge lines.
    """
    print(*map(visible, lines), sep="\n", file=to or sys.stdout, flush=True)


def say_json(value: Any) -> None:
    """Write a value as one line of JSON, all of it ASCII, to standard output."""
    print(json.dumps(value, default=str), flush=True)
