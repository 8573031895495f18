"""The commands of ``loradash``."""

import functools
from collections.abc import Callable
from typing import Annotated

import typer

from loradash import __version__
from loradash.cli import (
    adapters_command,
    convert_command,
    dataset_edit_commands,
    datasets_command,
    demo_command,
    dev_command,
    doctor_command,
    generate_command,
    process_commands,
    registry_command,
    storage_command,
    train_command,
    up_command,
    worker_command,
)
from loradash.streams import lossy_output, outlive_the_terminal

Command = Callable[..., None]
_HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="loradash",
    help="Train LoRA adapters and generate images with them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=True,
    context_settings=_HELP,
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


def _works(command: Command) -> Command:
    """A command that does more than show something, and does it to its end if nobody looks."""

    @functools.wraps(command)
    def run(*arguments: object, **options: object) -> None:
        with lossy_output():
            command(*arguments, **options)

    return run


def _works_on(command: Command) -> Command:
    """One that also goes on when its terminal is closed."""

    @functools.wraps(command)
    def run(*arguments: object, **options: object) -> None:
        outlive_the_terminal()
        command(*arguments, **options)

    return _works(run)


app.command("demo")(_works_on(demo_command.demo))
app.command("train")(_works_on(train_command.train))
app.command("generate")(_works_on(generate_command.generate))
app.command("convert-config")(_works(convert_command.convert_config))
app.command("doctor")(doctor_command.doctor)
app.command("up")(_works(up_command.up))
app.command("worker")(_works(worker_command.worker))
app.command("processes")(process_commands.processes)
app.command("logs")(process_commands.logs)
app.command("cancel")(_works(process_commands.cancel))
app.command("resume")(_works(process_commands.resume))
app.command("queue")(_works(process_commands.queue))
adapters = typer.Typer(
    help="List, show, rename, delete and download trained LoRAs.", no_args_is_help=True,
    rich_markup_mode=None, context_settings=_HELP,
)  # fmt: skip
adapters.command("list")(adapters_command.list_)
adapters.command("show")(adapters_command.show)
adapters.command("rename")(_works(adapters_command.rename))
adapters.command("delete")(_works(adapters_command.delete))
adapters.command("download")(_works(adapters_command.download))
app.add_typer(adapters, name="adapters")
models = typer.Typer(invoke_without_command=True, rich_markup_mode=None, context_settings=_HELP)
models.callback()(adapters_command.models)  # the former name
models.command("rename")(_works(adapters_command.rename))
models.command("rm")(_works(adapters_command.delete))
app.add_typer(models, name="models")
datasets = typer.Typer(
    help="Check, upload and edit datasets.", no_args_is_help=True, rich_markup_mode=None,
    context_settings=_HELP,
)  # fmt: skip
datasets.command("check")(datasets_command.check)
datasets.command("upload")(_works(datasets_command.upload))
datasets.command("list")(datasets_command.list_)
datasets.command("show")(dataset_edit_commands.show)
datasets.command("caption")(_works(dataset_edit_commands.caption))
datasets.command("rm")(_works(dataset_edit_commands.rm))
datasets.command("zip")(_works(dataset_edit_commands.zip_))
datasets.command("import")(_works(dataset_edit_commands.import_))
app.add_typer(datasets, name="datasets")
storage = typer.Typer(
    help="Move to another object store.", no_args_is_help=True, rich_markup_mode=None
)
storage.callback()(lambda: None)  # one command alone would have no name
storage.command("copy")(storage_command.copy)
app.add_typer(storage, name="storage")
registry = typer.Typer(
    help="Move to another registry.", no_args_is_help=True, rich_markup_mode=None
)
registry.callback()(lambda: None)  # one command alone would have no name
registry.command("copy")(_works_on(registry_command.copy))
app.add_typer(registry, name="registry")
app.add_typer(dev_command.dev, name="dev")
