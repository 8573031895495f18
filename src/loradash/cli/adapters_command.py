"""``loradash adapters``: the trained LoRAs, listed, shown, renamed, deleted, downloaded."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loradash.cli.completion import adapter_names
from loradash.cli.lines import say, say_json
from loradash.visible_text import visible

if TYPE_CHECKING:
    from loradash.cli.backend import Backend
    from loradash.services.adapters.views import AdapterView

Json = Annotated[bool, typer.Option("--json", help="The reply as JSON.")]
Adapter = Annotated[
    str,
    typer.Argument(help="Id of the training, or the name.", autocompletion=adapter_names),
]


def models(context: typer.Context, as_json: Json = False) -> None:
    """List the trained LoRAs, the newest first; the same as `loradash adapters`."""
    if not context.invoked_subcommand:
        list_(as_json=as_json)


def list_(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000)] = 100,
    cursor: Annotated[str, typer.Option(help="Continue after this one.")] = "",
    as_json: Json = False,
) -> None:
    """List the trained LoRAs, the newest first."""
    from loradash.cli.output import to_stderr
    from loradash.cli.terminal import print_table
    from loradash.domain.sizes import size_text
    from loradash.protocol.result_json import missing_note

    with _backend() as backend:
        if as_json:
            more = {"cursor": cursor} if cursor else {}
            say_json(backend.ask(type="list_models", limit=limit, **more))
            return
        page = backend.models(limit, cursor)
    rows = [
        (
            one.file.process_id, one.name, one.file.filename, size_text(one.file.size_bytes),
            one.trigger_word or "", one.base_model or "", f"{one.file.created_at:%Y-%m-%d %H:%M}",
        )
        for one in page.models
    ]  # fmt: skip
    heads = ("process id", "name", "file", "size", "trigger word", "base model", "made")
    print_table(heads, rows, "no trained LoRAs yet")
    if page.missing:
        to_stderr(missing_note(page.missing))
    if page.next_cursor:
        to_stderr(f"more with --cursor {page.next_cursor!r}")


def show(adapter: Adapter, as_json: Json = False) -> None:
    """Show what a trained LoRA is: its settings, its file, and which programs read it."""
    from loradash.protocol.result_json import adapter_json

    with _backend() as backend:
        one = backend.adapter(adapter)
    if as_json:
        say_json(adapter_json(one))
    else:
        say(*(f"{label:<12}  {text}" for label, text in _facts(one) if text))


def rename(
    adapter: Adapter,
    name: Annotated[str, typer.Argument(help="The new name, which no other one has.")],
    as_json: Json = False,
) -> None:
    """Change the name that a trained LoRA is shown with. Its files keep theirs."""
    with _backend() as backend:
        renamed = backend.rename_adapter(adapter, name)
    if as_json:
        say_json(renamed.model_dump(mode="json"))
    else:
        say(f"{renamed.process_id}: {renamed.name}")


def delete(
    adapter: Adapter,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Delete a trained LoRA, unless a process that waits or runs needs it.

    The training's record, previews and checkpoints stay.
    """
    from loradash.protocol.result_json import deletion_reply

    with _backend() as backend:
        if not yes:
            one = backend.adapter(adapter).model
            what = f"Delete the LoRA {one.name} of {one.file.process_id}?"
            typer.confirm(visible(what), abort=True, err=True)
            adapter = one.file.process_id
        report = backend.delete_adapter(adapter)
    if as_json:
        say_json(deletion_reply(report))
    else:
        say(f"deleted the LoRA of {adapter}")


def download(
    adapters: Annotated[
        list[str],
        typer.Argument(help="Ids or names; several may be given.", autocompletion=adapter_names),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Folder, in which a name that is taken gets a number; or a .safetensors file, "
            "which must not exist.",
        ),
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Bring trained LoRAs to this machine, verified; no file is written over."""
    from loradash.cli.output_folder import NamedFile, OutputFolder
    from loradash.domain.sizes import size_text

    is_file = output.suffix == ".safetensors" and not output.is_dir()
    if is_file and len(adapters) > 1:
        raise typer.BadParameter("--output is one file, and several adapters are given")
    target = NamedFile(output) if is_file else OutputFolder(output)
    target.check()
    files = []
    with _backend() as backend:
        wanted = [backend.adapter(adapter).model for adapter in adapters]
        for one in wanted:
            fetch = partial(backend.fetch, one.file.key)
            if isinstance(target, NamedFile):
                path = target.write(fetch, one.file.sha256)
            else:
                path = target.write(one.file.filename, fetch, one.file.sha256)
            files.append(
                {
                    "process_id": one.file.process_id,
                    "name": one.name,
                    "sha256": one.file.sha256,
                    "size": one.file.size_bytes,
                    "path": str(path),
                }
            )
            if not as_json:
                say(f"{path}: {size_text(one.file.size_bytes)}")
    if as_json:
        say_json({"files": files})


def _backend() -> "Backend":
    from loradash.cli.backend import backend
    from loradash.settings import load_settings

    return backend(load_settings())


def _facts(adapter: "AdapterView") -> list[tuple[str, str]]:
    from loradash.domain.sizes import size_text

    model, file = adapter.model, adapter.model.file
    dimensions = (("rank", adapter.rank), ("alpha", adapter.alpha))
    base = model.base_model or ""
    return [
        ("name", model.name),
        ("process", file.process_id),
        ("base model", f"{base} ({adapter.family})" if adapter.family else base),
        ("trigger word", model.trigger_word or ""),
        ("dimensions", " ".join(f"{name} {size}" for name, size in dimensions if size is not None)),
        ("steps", str(model.steps or "")),
        ("made", f"{file.created_at:%Y-%m-%d %H:%M:%S}"),
        ("file", f"{file.filename}, {size_text(file.size_bytes)}"),
        ("tensors", f"{adapter.layers} layers, {adapter.dtype}, {adapter.key_names} names"),
        ("SHA-256", file.sha256),
        ("stored as", file.address),
        ("works in", ", ".join(adapter.works_in)),
        ("used by", ", ".join(adapter.used_by)),
    ]
