"""``loradash datasets show``, ``rm``, ``caption``, ``zip`` and ``import``."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loradash.cli.completion import dataset_names
from loradash.cli.lines import say
from loradash.domain.sizes import counted
from loradash.visible_text import visible

if TYPE_CHECKING:
    from loradash.cli.dataset_target import DatasetTarget
    from loradash.services.datasets.details import Caption, ImageEntry
    from loradash.services.datasets.summary import DatasetSummary

_CAPTION_SHOWN = 60

Json = Annotated[bool, typer.Option("--json", help="The reply as JSON.")]
Dataset = Annotated[str, typer.Argument(help="Name of the dataset.", autocompletion=dataset_names)]


def show(
    name: Dataset,
    text: Annotated[str, typer.Option(help="Only images whose name or caption contains it.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=500)] = 50,
    cursor: Annotated[str, typer.Option(help="Continue after this image.")] = "",
    as_json: Json = False,
) -> None:
    """Show a stored dataset's images with their captions."""
    from loradash.cli.output import print_result
    from loradash.cli.terminal import print_table

    with _target() as target:
        page = target.images(name, limit=limit, cursor=cursor, text=text)
    if as_json:
        print_result(page.model_dump(mode="json"))
        return
    say(_described(page.dataset))
    rows = [
        (one.name, _pixels(one), _size(one.size_bytes), _caption(one.caption))
        for one in page.images
    ]
    print_table(("image", "pixels", "size", "caption"), rows, "no such images")
    if page.next_cursor:
        say(f"more with --cursor {page.next_cursor!r}")


def rm(
    name: Dataset,
    files: Annotated[
        list[str] | None, typer.Argument(help="Files to delete; without any, the whole dataset.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Remove files from a stored dataset, images with their captions, or delete all of it."""
    from loradash.cli.output import print_result

    what = f"{counted(len(files), 'file')} from {name}" if files else f"the whole dataset {name}"
    if not yes:
        typer.confirm(visible(f"Remove {what}?"), abort=True, err=True)
    with _target() as target:
        removed = target.remove(name, files) if files else ()
        deleted_files = 0 if files else target.delete(name)
    if as_json:
        deleted = {"name": name, "deleted_files": deleted_files}
        print_result({"removed": list(removed)} if files else deleted)
    elif files:
        say(f"removed {', '.join(removed)}")
    else:
        say(f"deleted {name} with {counted(deleted_files, 'file')}")


def caption(
    name: Dataset,
    file: Annotated[str, typer.Argument(help="The image.")],
    text: Annotated[
        str | None, typer.Argument(help="The new caption; without it the current one is shown.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print or write the caption of an image."""
    from loradash.cli.output import print_result, to_stderr
    from loradash.errors import InvalidDataset

    with _target() as target:
        if text is None:
            shown = target.caption(name, file)
        else:
            shown = target.write_caption(name, file, text)
    if as_json:
        print_result(shown.model_dump(mode="json"))
    elif shown.problem:
        raise InvalidDataset(f"{shown.name}: {shown.problem}", remedy="Write the caption again.")
    elif text is not None:
        say(f"wrote {shown.name}")
    elif shown.text is None:
        to_stderr(f"{file} has no caption")
    else:
        say(*shown.text.splitlines())


def zip_(
    name: Dataset,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The file, which must not exist; default: <name>.zip, with a number if there is "
            "one.",
        ),
    ] = None,
) -> None:
    """Write a stored dataset into a zip file; no file is written over."""
    from loradash.cli.output_folder import NamedFile, OutputFolder

    named = NamedFile(output) if output else None
    (named or OutputFolder(Path())).check()
    with _target() as target:

        def fill(path: Path) -> None:
            with path.open("wb") as file:
                target.zip(name, file.write)

        path = named.write(fill) if named else OutputFolder(Path()).write(f"{name}.zip", fill)
    say(f"{path}: {_size(path.stat().st_size)}")


def import_(
    name: Dataset,
    source: Annotated[
        str, typer.Argument(metavar="URL_OR_ZIP", help="A zip file, or the address of one.")
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the dataset instead of adding to it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Store the images and captions of a zip file, or what is at a public web address."""
    from loradash.cli.output import print_result, to_stderr
    from loradash.errors import InvalidRequest

    is_address = source.lower().startswith(("http://", "https://"))
    if not is_address and not Path(source).is_file():
        raise InvalidRequest(
            f"there is no file {source}", remedy="Give a zip file, or an http or https address."
        )
    with _target() as target:
        if is_address:
            result = target.import_url(name, source, replace=replace)
        else:
            result = target.import_zip(name, Path(source), replace=replace)
    for warning in result.warnings:
        to_stderr(f"warning: {warning}")
    if as_json:
        print_result(result.model_dump(mode="json"))
    else:
        say(f"{result.dataset_folder}: {result.detailed_message}")


def _target() -> "AbstractContextManager[DatasetTarget]":
    from loradash.cli.dataset_target import dataset_target
    from loradash.settings import load_settings

    return dataset_target(load_settings())


def _described(one: "DatasetSummary") -> str:
    parts = [
        f"{one.name}: {counted(one.total_images, 'image')}",
        counted(one.total_captions, "caption"),
        _size(one.size_bytes),
        *([f"trigger word {one.trigger_word}"] if one.trigger_word else []),
    ]
    return ", ".join(parts)


def _pixels(one: "ImageEntry") -> str:
    return f"{one.width}x{one.height}" if one.width else "?"


def _caption(one: "Caption") -> str:
    if one.text is None:
        return f"({one.problem or 'none'})"
    text = " ".join(one.text.split())
    return text if len(text) <= _CAPTION_SHOWN else f"{text[: _CAPTION_SHOWN - 3]}..."


def _size(size_bytes: int) -> str:
    from loradash.domain.sizes import size_text

    return size_text(size_bytes)
