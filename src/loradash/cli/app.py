"""The commands of ``loradash``."""

from typing import Annotated

import typer

from loradash import __version__
from loradash.cli import (
    dataset_edit_commands,
    datasets_command,
    demo_command,
    dev_command,
    doctor_command,
    generate_command,
    process_commands,
    train_command,
    up_command,
    worker_command,
)

app = typer.Typer(
    name="loradash",
    help="Train LoRA adapters and generate images with them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=True,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"loradash {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Train LoRA adapters and generate images with them."""


app.command("demo")(demo_command.demo)
app.command("train")(train_command.train)
app.command("generate")(generate_command.generate)
app.command("doctor")(doctor_command.doctor)
app.command("up")(up_command.up)
app.command("worker")(worker_command.worker)
for name in ("processes", "logs", "cancel", "resume", "queue", "models"):
    app.command(name)(getattr(process_commands, name))
datasets = typer.Typer(
    help="Check, upload and edit datasets.", no_args_is_help=True, rich_markup_mode=None
)
datasets.command("check")(datasets_command.check)
datasets.command("upload")(datasets_command.upload)
datasets.command("list")(datasets_command.list_)
datasets.command("show")(dataset_edit_commands.show)
datasets.command("caption")(dataset_edit_commands.caption)
datasets.command("rm")(dataset_edit_commands.rm)
datasets.command("zip")(dataset_edit_commands.zip_)
datasets.command("import")(dataset_edit_commands.import_)
app.add_typer(datasets, name="datasets")
app.add_typer(dev_command.dev, name="dev")
