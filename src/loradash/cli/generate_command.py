"""``loradash generate``: images from prompts, with any number of adapters."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loradash.cli.completion import adapter_ids
from loradash.cli.lines import say

if TYPE_CHECKING:
    from loradash.cli.elsewhere import Wanted
    from loradash.cli.output_folder import OutputFolder
    from loradash.services.processes.running import DrawnHere
    from loradash.settings import Settings


def generate(
    config: Annotated[
        Path | None,
        typer.Argument(help="Config in YAML: our fields, or ai-toolkit's job: generate."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="May be given several times.")
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            help="A prompt a line, with options such as --n and --w; or kohya's TOML or JSON."
        ),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            "-a",
            help="Process id or .safetensors file, with :WEIGHT; repeatable.",
            autocompletion=adapter_ids,
        ),
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Default: the one that the first adapter was trained on.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="What draws them; default: LORADASH_ENGINE.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option()] = None,
    num_images: Annotated[
        int | None, typer.Option("--num-images", "-n", help="Per prompt.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Image n of a prompt uses seed + n.")] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    guidance_scale: Annotated[float | None, typer.Option()] = None,
    width: Annotated[int | None, typer.Option()] = None,
    height: Annotated[int | None, typer.Option()] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="default, ddim, euler, dpm++_2m, ...")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Prefix of the file names.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Also copy the images into this folder; nothing there is written over: a name "
            "that is taken gets a number.",
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Queue it, print its id, and exit.")
    ] = False,
    here: Annotated[
        bool, typer.Option("--here", help="Generate on this machine, whatever the settings say.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Events and result as JSON lines.")
    ] = False,
) -> None:
    """Generate images: on this machine, or where LORADASH_URL or LORADASH_EXECUTOR=runpod says."""
    from loradash.cli.elsewhere import Wanted, runs_elsewhere
    from loradash.cli.output_folder import OutputFolder
    from loradash.services.generation.service import parse_adapter_use
    from loradash.settings import load_settings

    for option, is_given, other in (
        ("--prompt", prompt and prompts_file, "--prompts-file, not both"),
        ("--detach", detach and here, "--here, not both"),
        ("--detach", detach and output, "--output, not both: it waits for no results"),
    ):
        if is_given:
            raise typer.BadParameter(f"give {option} or {other}")
    options: dict[str, Any] = {
        "prompts": prompt, "base_model": base_model, "negative_prompt": negative_prompt,
        "num_images": num_images, "seed": seed, "steps": steps, "guidance_scale": guidance_scale,
        "width": width, "height": height, "scheduler": scheduler, "name": name,
        "engine": engine,
    }  # fmt: skip
    given = {key: value for key, value in options.items() if value is not None and value != []}
    if adapter:
        given["adapters"] = [parse_adapter_use(text).model_dump() for text in adapter]
    folder = OutputFolder(output) if output else None
    if folder:
        folder.check()
    merged = _merged(given, prompts_file, config)
    settings = load_settings()
    if detach or runs_elsewhere(settings, here=here):
        raise typer.Exit(_elsewhere(settings, merged, Wanted(detach, folder, as_json)))
    raise typer.Exit(_here(settings, merged, folder, as_json))


def _merged(
    given: dict[str, Any], prompts_file: Path | None, config: Path | None
) -> dict[str, Any]:
    """The request as the config, the prompts file and the options make it; the last one wins.

    Raises `InvalidConfig`.
    """
    from loradash.cli.train_command import read_config
    from loradash.domain.generation import fields_of, parse_generation_text
    from loradash.domain.prompts_file import read_prompts
    from loradash.errors import InvalidConfig

    merged: dict[str, Any] = {}
    if config:
        request = parse_generation_text(read_config(config), partial(_file_beside, config))
        merged = request.model_dump(mode="json")
        if "prompts" in given:
            merged["prompt_settings"] = []  # of the config's own prompts
    merged |= given
    if prompts_file:
        merged |= fields_of(read_prompts(str(prompts_file), _prompts_text(prompts_file)))
    if "prompts" not in merged:
        raise InvalidConfig(
            "no prompt", remedy="Give --prompt, --prompts-file, or a config with prompts."
        )
    return merged


def _here(
    settings: "Settings", merged: dict[str, Any], folder: "OutputFolder | None", as_json: bool
) -> int:
    """Generate on this machine; return the exit code."""
    from loradash.cli.backend import open_core
    from loradash.cli.output import reporter, stop_on_signals
    from loradash.runtime.supervisor import StopRequest
    from loradash.services.processes.running import generate_here

    core = open_core(settings)
    stop = StopRequest()
    try:
        request = core.generation.request(merged)
        with reporter(as_json, "generating") as shown, stop_on_signals(stop, shown.note):
            result = generate_here(core.generation, core.runner, request, shown.event, stop)
    finally:
        core.close()
    return _report(result, folder, as_json)


def _report(result: "DrawnHere", folder: "OutputFolder | None", as_json: bool) -> int:
    """Copy the images into the folder, say how it ended, and return the exit code."""
    from loradash.cli.output import ENDINGS, fail_lines, print_result, to_stderr
    from loradash.cli.output_folder import copied
    from loradash.domain.events import Done, Failed
    from loradash.domain.sizes import counted

    paths = [Path(image.path) for image in result.images]
    copies, not_copied = copied(folder, paths, "The originals are in the workspace.")
    ending = result.ending
    if as_json:
        print_result(
            {
                "process_id": result.process_id,
                "status": ENDINGS[ending.type].status,
                "images": [image.path for image in result.images],
                "files": copies,
                "output_error": str(not_copied) if not_copied else None,
                "ending": ending.model_dump(exclude={"time_s", "request_id"}),
            }
        )
    elif isinstance(ending, Done):
        say(f"{result.process_id}: {counted(len(result.images), 'image')}")
        for path in copies:
            say(f"  copy      {path}")
    elif isinstance(ending, Failed):
        to_stderr(*fail_lines(ending.code, ending.message, ending.remedy, ending.problems))
    else:
        to_stderr(f"stopped after {counted(len(result.images), 'image')}")
    if not_copied:
        to_stderr(*not_copied.lines)
    return ENDINGS[ending.type].exit_code or (1 if not_copied else 0)


def _file_beside(config: Path, name: str) -> str:
    """The text of a prompts file: from here, or else from the config's folder."""
    path = Path(name)
    return _prompts_text(path if path.is_file() else config.parent / path)


def _prompts_text(path: Path) -> str:
    """The text of a prompts file. Raises `InvalidConfig`."""
    from loradash.domain.text_files import decoded
    from loradash.errors import InvalidConfig

    try:
        return decoded(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidConfig(
            f"prompts file {path}: {reason}",
            remedy="Give a file with a prompt a line, or the prompts themselves as a list.",
        ) from error


def _elsewhere(settings: "Settings", merged: dict[str, Any], wanted: "Wanted") -> int:
    """Send a generation to where the settings say; return the exit code."""
    from loradash.cli.backend import backend
    from loradash.cli.elsewhere import base_model_of, check_adapters, runs_elsewhere, send
    from loradash.domain.generation import GenerationRequest
    from loradash.domain.schema import validate

    adapters = merged.get("adapters") or []
    with backend(settings) as target:
        if runs_elsewhere(settings, here=False):
            check_adapters([one["path"] for one in adapters], settings)
        if "base_model" not in merged and adapters:
            merged["base_model"] = base_model_of(target, adapters[0]["path"])
        request = validate(GenerationRequest, merged, "generation")
        document = request.model_dump(mode="json", exclude_none=True, exclude_unset=True)
        return send(target, settings, wanted, type="generate", config=document)
