"""``loradash convert-config``: configs of kohya's sd-scripts as ours."""

from pathlib import Path
from typing import Annotated

import typer


def convert_config(
    config: Annotated[
        Path,
        typer.Argument(
            help="TOML of sd-scripts, JSON of its GUI, or a folder with folders such as 10_name."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write, which must not exist; default: print it."
        ),
    ] = None,
    dataset_config: Annotated[
        Path | None, typer.Option(help="The file of sd-scripts' --dataset_config.")
    ] = None,
    base_model: Annotated[
        str, typer.Option(help="Base model, where the config names none or another is wanted.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Result as one JSON line.")] = False,
) -> None:
    """Convert a config of kohya's sd-scripts into one for `loradash train`.

    What is followed in another way, and what has no effect, is said; what would be another training
    is refused.
    """
    from loradash.cli.lines import say
    from loradash.cli.output import print_result, to_stderr
    from loradash.cli.output_folder import NamedFile
    from loradash.domain.kohya.conversion import named
    from loradash.services.adapters.kohya_files import convert_file

    converted = convert_file(config, dataset_config, base_model)
    text = converted.text(config.name)
    if output:
        NamedFile(output).write(lambda path: path.write_text(text, encoding="utf-8"))
    if as_json:
        print_result(
            {
                "status": "ok",
                "config": text,
                "notes": list(converted.notes),
                "without_effect": list(converted.without_effect),
            }
        )
        return
    for note in converted.notes:
        to_stderr(f"note: {note}")
    if converted.without_effect:
        to_stderr(f"no effect here: {named(converted.without_effect)}")
    say(*([f"written to {output}"] if output else text.removesuffix("\n").split("\n")))
