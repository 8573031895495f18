"""``loradash adapters``: the trained LoRAs, listed, shown, renamed, deleted, downloaded."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loradash.cli.completion import adapter_names
from loradash.cli.lines import say, say_json
from loradash.visible_text import visible

if TYPE_CHECKING:
    from loradash.cli.backend import Backend

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

    more = {"cursor": cursor} if cursor else {}
    with _backend() as backend:
        reply = backend.ask(type="list_models", limit=limit, **more)
    if as_json:
        say_json(reply)
        return
    rows = [
        (
            one["process_id"], one["name"], one["filename"], size_text(one["size"]),
            one["metadata"]["trigger_word"] or "", one["metadata"]["base_model"] or "",
            one["created_at"][:16].replace("T", " "),
        )
        for one in reply["models"]
    ]  # fmt: skip
    heads = ("process id", "name", "file", "size", "trigger word", "base model", "made")
    print_table(heads, rows, "no trained LoRAs yet")
    if note := reply.get("note"):
        to_stderr(note)
    if reply["next_cursor"]:
        to_stderr(f"more with --cursor {reply['next_cursor']!r}")


def show(adapter: Adapter, as_json: Json = False) -> None:
    """Show what a trained LoRA is: its settings, its file, and which programs read it."""
    with _backend() as backend:
        one = backend.adapter(adapter)
    if as_json:
        say_json(one)
    else:
        say(*(f"{label:<12}  {text}" for label, text in _facts(one) if text))


def rename(
    adapter: Adapter,
    name: Annotated[str, typer.Argument(help="The new name, which no other one has.")],
    as_json: Json = False,
) -> None:
    """Change the name that a trained LoRA is shown with. Its files keep theirs."""
    with _backend() as backend:
        reply = backend.rename_adapter(adapter, name)
    if as_json:
        say_json(reply)
    else:
        say(f"{reply['process_id']}: {reply['name']}")


def delete(
    adapter: Adapter,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask for confirmation.")] = False,
    as_json: Json = False,
) -> None:
    """Delete a trained LoRA, unless a process that waits or runs needs it.

    The training's record, previews and checkpoints stay.
    """
    with _backend() as backend:
        if not yes:
            one = backend.adapter(adapter)
            what = f"Delete the LoRA {one['name']} of {one['process_id']}?"
            typer.confirm(visible(what), abort=True, err=True)
            adapter = one["process_id"]
        reply = backend.delete_adapter(adapter)
    if as_json:
        say_json(reply)
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
        wanted = [backend.adapter(adapter) for adapter in adapters]
        for one in wanted:
            fetch = partial(backend.fetch, one["s3_key"])
            if isinstance(target, NamedFile):
                path = target.write(fetch, one["sha256"])
            else:
                path = target.write(one["filename"], fetch, one["sha256"])
            files.append({key: one[key] for key in ("process_id", "name", "sha256", "size")})
            files[-1]["path"] = str(path)
            if not as_json:
                say(f"{path}: {size_text(one['size'])}")
    if as_json:
        say_json({"files": files})


def _backend() -> "Backend":
    from loradash.cli.backend import backend
    from loradash.settings import load_settings

    return backend(load_settings())


def _facts(one: dict[str, Any]) -> list[tuple[str, str]]:
    from loradash.domain.sizes import size_text

    told = one["metadata"]
    dimensions = " ".join(
        f"{name} {told[name]}" for name in ("rank", "alpha") if told[name] is not None
    )
    base = told["base_model"] or ""
    return [
        ("name", one["name"]),
        ("process", one["process_id"]),
        ("base model", f"{base} ({told['family']})" if told["family"] else base),
        ("trigger word", told["trigger_word"] or ""),
        ("dimensions", dimensions),
        ("steps", str(told["steps"] or "")),
        ("made", one["created_at"][:19].replace("T", " ")),
        ("file", f"{one['filename']}, {size_text(one['size'])}"),
        ("tensors", f"{told['layers']} layers, {told['dtype']}, {told['key_names']} names"),
        ("SHA-256", one["sha256"]),
        ("stored as", one["path"]),
        ("works in", ", ".join(one["works_in"])),
        ("used by", ", ".join(one["used_by"])),
    ]
