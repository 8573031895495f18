"""The command line. Modules here import nothing heavy at the top: ``--help`` must be instant."""

import contextlib
import os
import sys

from loradash.cli.app import app
from loradash.cli.lines import say, say_json
from loradash.errors import Interrupted, LoradashError
from loradash.streams import lossy_output, open_standard_files


def main() -> None:
    """Run the command line; what users can cause becomes one clear message and an exit code."""
    open_standard_files()
    _warn_of_unknown_settings()
    try:
        app()
    except Interrupted as error:
        say(error.message, to=sys.stderr)
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
        from loradash.storage.disk import as_disk_full

        where = f"{error.filename}: " if error.filename else ""
        _report(
            as_disk_full(error)
            or LoradashError(
                f"{where}{error.strerror or error}",
                remedy="Check the path, its permissions, and the space on its disk.",
            )
        )
        sys.exit(1)


def _warn_of_unknown_settings() -> None:
    """A setting that is misspelt would have no effect, without a word."""
    asks_for_help = len(sys.argv) < 2 or {"-h", "--help", "--version"} & set(sys.argv)
    completes = any(name.endswith("_COMPLETE") for name in os.environ)
    if asks_for_help or completes:
        return  # these must be fast, and print nothing else
    from loradash.settings import unknown_settings

    with contextlib.suppress(OSError, ValueError), lossy_output():
        for sentence in unknown_settings():
            say(f"warning: {sentence}", to=sys.stderr)


def _report(error: LoradashError) -> None:
    with lossy_output():  # the exit code says it too
        _print_error(error)


def _print_error(error: LoradashError) -> None:
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
        say_json(facts)
        return
    first, *others = error.lines
    say(f"error: {first}", *others, to=sys.stderr)


def _debug() -> bool:
    from loradash.errors import InvalidSettings
    from loradash.settings import load_settings

    try:
        return load_settings().debug
    except InvalidSettings:
        return False
