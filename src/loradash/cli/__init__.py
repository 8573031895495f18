"""The command line. Modules here import nothing heavy at the top: ``--help`` must be instant."""

import sys

from loradash.cli.app import app
from loradash.errors import Interrupted, LoradashError


def main() -> None:
    """Run the command line; errors of ours become one clear message and exit code 1."""
    try:
        app()
    except Interrupted as error:
        print(error.message, file=sys.stderr)
        sys.exit(130)
    except LoradashError as error:
        _report(error)
        sys.exit(1)


def _report(error: LoradashError) -> None:
    import json
    import traceback

    if _debug():
        traceback.print_exc()
    if "--json" in sys.argv:
        facts = {
            "type": "error",
            "code": error.code,
            "message": error.message,
            "problems": list(error.problems),
            "remedy": error.remedy,
        }
        print(json.dumps(facts))
        return
    print(f"error: {error}", file=sys.stderr)


def _debug() -> bool:
    from loradash.errors import InvalidSettings
    from loradash.settings import load_settings

    try:
        return load_settings().debug
    except InvalidSettings:
        return False
