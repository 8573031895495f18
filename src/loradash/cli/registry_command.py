"""``loradash registry``: records brought into another registry."""

from typing import TYPE_CHECKING, Annotated

import typer

from loradash.cli.lines import say

if TYPE_CHECKING:
    from loradash.services.system.registry_copy import Registry
    from loradash.settings import Settings
    from loradash.storage.store import ObjectStore

_NAMES = (
    "a database's URL (sqlite:////folder/file, postgresql://user@host/database), `database` for "
    "that of DATABASE_URL or the workspace, or `objects` for the bucket or folder of the settings"
)


def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help=f"The registry to read: {_NAMES}.")],
    target: Annotated[
        str, typer.Argument(metavar="TO", help="The registry to fill, which is empty; as FROM.")
    ],
    with_running: Annotated[
        bool,
        typer.Option(
            "--with-running",
            help="Copy processes that stand as running, too: their workers have ended for good.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Copy all records of one registry into another one, and verify them.

    Stop all servers and workers first. A copy that was interrupted goes on when it is repeated.
    FROM isn't changed, except that an older schema is brought up to date.
    """
    from contextlib import closing

    from loradash.cli.output import print_result, to_stderr
    from loradash.domain.sizes import counted
    from loradash.errors import InvalidSettings
    from loradash.services.system.registry_copy import copy_registry
    from loradash.settings import load_settings
    from loradash.storage.disk import DiskGuard
    from loradash.wiring.core import make_store

    if source == target:
        raise InvalidSettings("FROM and TO are the same registry", remedy="Name two of them.")

    def show(done: int, total: int) -> None:
        if done % 100 == 0 or done == total:
            to_stderr(f"{done} of {total} processes")

    settings = load_settings()
    with (
        closing(make_store(settings, DiskGuard())) as store,
        closing(_opened(source, settings, store)) as old,
        closing(_opened(target, settings, store)) as new,
    ):
        copied = copy_registry(
            old, new, with_running=with_running, on_progress=None if as_json else show
        )
    if as_json:
        print_result(copied._asdict())
    else:
        say(
            f"processes: {copied.processes:,} copied with "
            f"{counted(copied.metrics, 'measurement')}, {counted(copied.log_lines, 'log line')} "
            f"and {counted(copied.artifacts, 'file')}; {copied.there} already there; all verified"
        )


def _opened(name: str, settings: "Settings", store: "ObjectStore") -> "Registry":
    if name == "objects":
        from loradash.registry.objects import ObjectRegistry

        return ObjectRegistry(store)
    from loradash.registry.opening import open_database_registry

    return open_database_registry(settings.registry_url if name == "database" else name)
