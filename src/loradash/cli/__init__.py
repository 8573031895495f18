"""The command line. Modules here import nothing heavy at the top: ``--help`` must be instant."""

import os
import sys

from loradash.cli.app import app
from loradash.errors import Interrupted, LoradashError
from loradash.streams import lossy_output, open_standard_files


def main() -> None:
    """Run the command line; what users can cause becomes one clear message and an exit code."""
    open_standard_files()
    try:
        app()
    except Interrupted as error:
        print(error.message, file=sys.stderr)
        sys.exit(130)
    except LoradashError as error:
        _report(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _report(
            LoradashError(
                f"{where}{error.strerror or error}",
                remedy="Check the path, its permissions, and the space on its disk.",
            )
        )
        sys.exit(1)


def _report(error: LoradashError) -> None:
    with lossy_output():  # the exit code says it too
        _print_error(error)


def _print_error(error: LoradashError) -> None:
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
