"""``loradash storage``: objects brought from a folder into a bucket."""

from pathlib import Path
from typing import Annotated

import typer

from loradash.cli.lines import say


def copy(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Folder that was the object store; default: LORADASH_OBJECTS_PATH.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Copy the datasets and results of a folder into the bucket that the settings name.

    What is there already isn't replaced; repeat it to copy what is missing. Exit code 1 if
    something wasn't copied.
    """
    from dataclasses import asdict

    from loradash.cli.output import print_result, to_stderr
    from loradash.domain.sizes import counted, size_text
    from loradash.errors import InvalidSettings, NotFound
    from loradash.services.system.store_copy import copy_objects
    from loradash.settings import load_settings
    from loradash.storage.disk import DiskGuard
    from loradash.storage.local import LocalStore
    from loradash.wiring.core import make_store

    settings = load_settings()
    if not settings.s3_bucket:
        raise InvalidSettings(
            "there is no bucket to copy to", remedy="Set S3_BUCKET and its credentials."
        )
    root = folder or settings.objects_path
    if not root.is_dir():
        raise NotFound(f"{root} isn't a folder", remedy="Name the folder of the old object store.")
    store = make_store(settings, DiskGuard())
    try:
        report = copy_objects(
            LocalStore(root), store, concurrency=settings.s3_concurrency,
            on_progress=None if as_json else lambda done, of: to_stderr(f"{done} of {of} objects"),
        )  # fmt: skip
    finally:
        store.close()
    if as_json:
        print_result(asdict(report))
    else:
        say(
            f"{counted(report.copied, 'object')} copied ({size_text(report.copied_bytes)}), "
            f"{report.there} already there, {len(report.problems)} not copied"
        )
        for problem in report.problems:
            to_stderr(problem)
    raise typer.Exit(1 if report.problems else 0)
