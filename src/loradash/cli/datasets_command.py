"""``loradash datasets``: look at a dataset before training on it."""

from pathlib import Path
from typing import Annotated

import typer

from loradash.cli.lines import say


def check(
    folder: Annotated[Path, typer.Argument(help="Folder with images and captions.")],
    resolution: Annotated[int, typer.Option(help="Show the buckets for this resolution.")] = 512,
    step: Annotated[int, typer.Option(help="Multiple of pixels of the buckets.")] = 64,
    caption_ext: Annotated[str, typer.Option(help="Ending of the caption files.")] = "txt",
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    """Read every image and caption, and say what can't be used. Exit code 1 if something can't."""
    from loradash.cli.output import print_result
    from loradash.domain.dataset_files import IMAGE_KINDS
    from loradash.domain.dataset_findings import findings
    from loradash.domain.sizes import size_text
    from loradash.services.datasets.folders import bucket_counts, check_folder

    report = check_folder(folder, caption_ext)
    usable = bool(report.images) and not report.problems
    if as_json:
        print_result(
            {
                **report.model_dump(),
                "missing_captions": report.missing_captions,
                "duplicates": report.duplicates,
                "empty_captions": report.empty_captions,
                "only_first_frames": report.only_first_frames,
                "warnings": [finding.text for finding in findings(report)],
                "usable": usable,
            }
        )
        raise typer.Exit(0 if usable else 1)
    from loradash.cli.terminal import print_facts, print_labelled

    left = sum(one.count for one in report.left_out)
    print_facts(
        [
            ("images", str(len(report.images))),
            ("size", size_text(sum(image.size_bytes for image in report.images))),
            ("without caption", str(len(report.missing_captions))),
            *([("left out", f"{left:,}")] if left else []),
            ("with alpha", str(sum(image.has_alpha for image in report.images))),
            *(
                (f"bucket {size[0]}x{size[1]}", str(count))
                for size, count in bucket_counts(report, resolution, step).items()
            ),
            ("dataset hash", report.sha256[:16]),
        ]
    )
    for problem in report.problems:
        print_labelled("bad", "red", f"{problem.relative_path}: {problem.message}")
    for name in report.missing_captions[:10]:
        print_labelled("caption", "yellow", f"{name} has no .{caption_ext} file")
    for note in report.colour_notes[:10]:
        print_labelled("colours", "yellow", note)
    for group in report.duplicates[:10]:
        print_labelled("same", "yellow", ", ".join(group))
    for finding in findings(report):
        print_labelled("note", "yellow", finding.text)
    if not report.images:
        print_labelled("nothing", "red", f"no usable image: put {IMAGE_KINDS} files there")
    raise typer.Exit(0 if usable else 1)


def upload(
    folder: Annotated[Path, typer.Argument(help="Folder with images and captions.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the dataset; default: the folder's.")
    ] = None,
    trigger_word: Annotated[str, typer.Option()] = "",
    add: Annotated[
        bool, typer.Option("--add", help="Add to the dataset instead of replacing it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The reply as JSON.")] = False,
) -> None:
    """Store a folder's images and captions as a dataset that trainings can name.

    Repeated after a failure, it sends only what hasn't arrived.
    """
    from loradash.cli.backend import backend
    from loradash.cli.dataset_upload import files_to_upload, upload_files
    from loradash.cli.output import print_result, to_stderr
    from loradash.settings import load_settings

    wanted = files_to_upload(folder)
    title = name or folder.resolve().name
    with backend(load_settings()) as target:
        reply = upload_files(target, wanted, name=title, trigger_word=trigger_word, add=add)
    for warning in reply["warnings"]:
        to_stderr(f"warning: {warning}")
    if as_json:
        print_result(reply)
    else:
        say(f"{reply['dataset_folder']}: {reply['detailed_message']}")


def list_(
    as_json: Annotated[bool, typer.Option("--json", help="The reply as JSON.")] = False,
) -> None:
    """List the stored datasets."""
    from loradash.cli.backend import backend
    from loradash.cli.output import print_result
    from loradash.cli.terminal import print_table
    from loradash.domain.sizes import size_text
    from loradash.settings import load_settings

    with backend(load_settings()) as source:
        if as_json:
            print_result(source.ask(type="list_dataset_folders"))
            return
        datasets = source.datasets()
    rows = [
        (
            one.name, str(one.total_images), str(one.total_captions), size_text(one.size_bytes),
            one.trigger_word,
        )
        for one in datasets
    ]  # fmt: skip
    print_table(("dataset", "images", "captions", "size", "trigger word"), rows, "no datasets yet")
