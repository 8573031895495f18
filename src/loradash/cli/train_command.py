"""``loradash train``: from a config or a few options to an adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import structlog
import typer

from loradash.cli.completion import adapter_names, process_ids
from loradash.cli.elsewhere import Wanted
from loradash.cli.lines import say
from loradash.domain.kinds import TRAINING

if TYPE_CHECKING:
    from loradash.cli.output_folder import OutputFolder
    from loradash.domain.events import Terminal
    from loradash.domain.process import Origin, ProcessRecord
    from loradash.domain.training_config import TrainingConfig
    from loradash.services.training.service import TrainingService
    from loradash.settings import Settings
    from loradash.wiring.core import Core

log = structlog.get_logger("loradash.train")


def train(
    config: Annotated[
        Path | None, typer.Argument(help="Config in YAML: ai-toolkit's form or the short form.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Folder with images and .txt captions, or a stored dataset.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(help="Folder, .safetensors file, hub id, or 'emoji-base'.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the adapter file.")] = None,
    trigger_word: Annotated[str | None, typer.Option(help="Trigger word, e.g. sks.")] = None,
    regularization: Annotated[
        str | None, typer.Option(help="Folder with regularization images.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Number of training steps.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of the LoRA.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Alpha of the LoRA; default: rank.")] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    resolution: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    from_adapter: Annotated[
        str | None,
        typer.Option(
            help="Start from this adapter: a .safetensors file, or the id or name of a training. "
            "Rank and alpha are its own unless they are given.",
            autocompletion=adapter_names,
        ),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="What trains it; default: LORADASH_ENGINE.")
    ] = None,
    sample_prompt: Annotated[
        list[str] | None, typer.Option(help="Preview prompt; may be given several times.")
    ] = None,
    sample_every: Annotated[int | None, typer.Option(help="Steps between previews.")] = None,
    save_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any setting of the config, e.g. train.steps=500."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Also copy adapter and pictures into this folder; nothing there is written over: "
            "a name that is taken gets a number.",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Continue the training with this id, which failed or was stopped.",
            autocompletion=process_ids,
        ),
    ] = None,
    extend: Annotated[
        str | None,
        typer.Option(
            help="Give a completed training more steps, by its id or name: give --steps, the steps "
            "in all, and perhaps --name. A new training goes on where that one ended.",
            autocompletion=adapter_names,
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the trainings and exit.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Check everything on this machine, train nothing.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Queue it, print its id, and exit.")
    ] = False,
    here: Annotated[
        bool, typer.Option("--here", help="Train on this machine, whatever the settings say.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Events and result as JSON lines.")
    ] = False,
) -> None:
    """Train a LoRA: on this machine, or where LORADASH_URL or LORADASH_EXECUTOR=runpod says.

    On this machine, Ctrl-C writes a checkpoint and prints the command that continues. Elsewhere it
    only ends the display. A closed terminal ends nothing.
    """
    from loradash.cli.backend import open_core
    from loradash.cli.elsewhere import runs_elsewhere
    from loradash.cli.output_folder import OutputFolder
    from loradash.settings import load_settings

    if list_:
        _list(as_json)
        return
    options = {
        "dataset": dataset, "base_model": base_model, "name": name, "trigger_word": trigger_word,
        "regularization": regularization, "steps": steps, "rank": rank, "alpha": alpha,
        "learning_rate": learning_rate, "batch_size": batch_size, "resolution": resolution,
        "seed": seed, "sample_prompts": sample_prompt, "sample_every": sample_every,
        "save_every": save_every, "from_adapter": from_adapter, "engine": engine,
    }  # fmt: skip
    given = {key: value for key, value in options.items() if value is not None and value != []}
    if extend:
        _require_extension(given, config, set_, resume)
    if resume and (config or given or set_):
        raise typer.BadParameter("a resumed training keeps its settings: give only --resume")
    if detach and here:
        raise typer.BadParameter("give --detach or --here, not both")
    if detach and output:
        raise typer.BadParameter("--detach waits for no results: give it or --output, not both")
    folder = OutputFolder(output) if output else None
    if folder:
        folder.check()
    settings = load_settings()
    asked = _Asked(config, given, tuple(set_ or ()), resume, extend)
    if not check and (detach or runs_elsewhere(settings, here=here)):
        raise typer.Exit(_elsewhere(settings, asked, Wanted(detach, folder, as_json)))
    core = open_core(settings)
    try:
        if resume:
            process_id = resume
            ending = run(core, resume, as_json)
        else:
            record = _submit(core, asked, check, as_json)
            if record is None:
                return
            process_id = record.id
            ending = run(core, record, as_json)
        exit_code = finish(core.training, process_id, ending, folder, as_json)
    finally:
        core.close()
    raise typer.Exit(exit_code)


def run(core: "Core", what: "ProcessRecord | str", as_json: bool) -> "Terminal":
    """Run a training that is ours, or take the one with this id; with progress and Ctrl-C."""
    from loradash.cli.output import reporter, stop_on_signals
    from loradash.runtime.supervisor import StopRequest

    stop = StopRequest()
    with reporter(as_json, "training") as shown, stop_on_signals(stop, shown.note):
        if isinstance(what, str):
            return core.runner.run_here(what, shown.event, stop, shown.note)
        return core.runner.run(what, None, stop, shown.event)


class _Asked(NamedTuple):
    """What the command line says about a training."""

    config: Path | None
    given: dict[str, Any]
    assignments: tuple[str, ...]
    resume: str | None
    extend: str | None


def _require_extension(
    given: dict[str, Any], config: Path | None, assignments: list[str] | None, resume: str | None
) -> None:
    """Raise `typer.BadParameter` unless just what an extension needs is given."""
    if resume:
        raise typer.BadParameter(
            "--resume goes on with a training that failed or was stopped, --extend with a "
            "completed one: give one of them"
        )
    others = sorted(given.keys() - {"steps", "name"})
    others = [f"--{name.replace('_', '-').removesuffix('s')}" for name in others]
    others += ["--set"] if assignments else []
    others += ["a config"] if config else []
    if others:
        raise typer.BadParameter(
            f"an extended training keeps its settings, so {', '.join(others)} can't be given; to "
            "train with others, start a new training with --from-adapter"
        )
    if "steps" not in given:
        raise typer.BadParameter("--extend needs --steps, the number of steps in all")


def _elsewhere(settings: "Settings", asked: _Asked, wanted: Wanted) -> int:
    """Send a training to where the settings say; return the exit code."""
    from loradash.cli.backend import backend
    from loradash.cli.elsewhere import for_elsewhere, runs_elsewhere, send, send_again
    from loradash.cli.output import to_stderr
    from loradash.domain.training_text import training_text

    with backend(settings) as target:
        if asked.resume:
            return send_again(target, settings, wanted, asked.resume)
        if asked.extend:
            extend = {"process_id": asked.extend, **asked.given}
            return send(target, settings, wanted, type="train", extend=extend)
        parsed = _parsed(asked.config, asked.given, list(asked.assignments))
        if runs_elsewhere(settings, here=False):
            parsed = for_elsewhere(target, parsed, to_stderr)
        return send(target, settings, wanted, type="train", config=training_text(parsed))


def _parsed(config: Path | None, given: dict[str, Any], assignments: list[str]) -> "TrainingConfig":
    from loradash.domain.training_text import parse_training, parse_training_text
    from loradash.errors import InvalidConfig

    overrides = _parse_assignments(assignments)
    if config:
        return parse_training_text(read_config(config), {**_paths(config, given), **overrides})
    if "dataset" in given and "base_model" in given:
        return parse_training(given, overrides)
    raise InvalidConfig(
        "nothing to train: there is neither a config nor both --dataset and --base-model",
        remedy="See `loradash train --help`, or run `loradash demo`.",
    )


def _submit(core: "Core", asked: _Asked, check_only: bool, as_json: bool) -> "ProcessRecord | None":
    from loradash.cli.output import print_result, to_stderr
    from loradash.domain.dataset_findings import check_warnings
    from loradash.domain.sizes import counted

    if asked.extend:
        given = asked.given
        checked = core.training.check_extension(asked.extend, given["steps"], given.get("name", ""))
    else:
        config = _parsed(asked.config, asked.given, list(asked.assignments))
        checked = core.training.check(config, thoroughly=check_only)
    parsed = checked.config
    # A training that runs tells of its datasets itself.
    warnings = [*checked.warnings, *(check_warnings(checked.reports) if check_only else ())]
    for warning in warnings:
        to_stderr(f"warning: {warning}")
    images = checked.images()
    if check_only:
        if as_json:
            print_result(
                {
                    "status": "ok",
                    "images": images,
                    "datasets": [
                        {"kind": one.kind, "name": one.name, "images": one.images}
                        for one in checked.found()
                    ],
                    "warnings": warnings,
                }
            )
        else:
            say(f"{parsed.name}: ready to train{_on(images, checked.origin)}")
            for one in checked.found():
                say(f"  dataset   {one.text()}")
        return None
    record = core.training.submit(checked, taking=core.runner.taking("local"))
    if not as_json:
        steps = counted(parsed.process.train.updates, "step")
        say(f"{record.id}: {parsed.name}{_on(images, checked.origin)}, {steps}")
        for one in checked.found():
            say(f"  dataset   {one.text()}")
    return record


def _on(images: int, origin: "Origin | None") -> str:
    """What is trained on, as far as it was looked at, and what it goes on from."""
    from loradash.domain.sizes import counted

    if origin and origin.kind == "extends":
        return f" from step {origin.step} of {origin.process_id}"
    start = f", from the adapter {origin.name}" if origin else ""
    return f" on {counted(images, 'image')}{start}"


def read_config(path: Path) -> str:
    """Return a config file's text. Raises `InvalidConfig`."""
    from loradash.domain.text_files import decoded
    from loradash.errors import InvalidConfig

    try:
        return decoded(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidConfig(f"config {path}: {reason}", remedy="Check the file.") from error


_FULL_FORM = {
    "dataset": "datasets.0.folder_path", "base_model": "model.name_or_path", "name": "name",
    "trigger_word": "trigger_word", "steps": "train.steps", "rank": "network.linear",
    "alpha": "network.linear_alpha", "learning_rate": "train.lr", "batch_size": "train.batch_size",
    "resolution": "datasets.0.resolution", "seed": "training_seed",
    "sample_prompts": "sample.prompts", "sample_every": "sample.sample_every",
    "save_every": "save.save_every", "from_adapter": "network.pretrained_lora_path",
    "engine": "engine",
}  # fmt: skip


def _paths(config: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Where the options stand in a config of the full form."""
    from loradash.domain.yaml_text import load_mapping
    from loradash.errors import InvalidConfig

    if "job" not in load_mapping(read_config(config), str(config)):
        return given
    if "regularization" in given:
        raise InvalidConfig(
            "--regularization can't be combined with a config of the full form",
            remedy="Add a dataset with is_reg: true to the config.",
        )
    return {_FULL_FORM[key]: value for key, value in given.items()}


def _parse_assignments(assignments: list[str]) -> dict[str, Any]:
    from loradash.domain.yaml_text import load_mapping
    from loradash.errors import InvalidConfig

    values: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InvalidConfig(
                f"--set {text}: not of the form key=value", remedy="Write it as train.steps=500."
            )
        values[key.strip()] = load_mapping(f"value: {value}", f"--set {key}")["value"]
    return values


def finish(
    service: "TrainingService",
    process_id: str,
    ending: "Terminal",
    output: "OutputFolder | None",
    as_json: bool,
) -> int:
    """Say how a training ended, write its pictures, and return the exit code."""
    from loradash.cli.output import (
        ENDINGS,
        duration_text,
        fail_lines,
        print_result,
        program,
        to_stderr,
    )
    from loradash.cli.output_folder import copied
    from loradash.domain.events import Done, Failed
    from loradash.domain.sizes import size_text
    from loradash.services.results.pictures import loss_curve, sample_sheet

    folder = service.folder(process_id)
    history = service.history(process_id)
    elapsed_s = service.elapsed_s(process_id)
    drawings: tuple[Callable[[], Path | None], ...] = (
        lambda: loss_curve(history.steps, folder / "loss.png", process_id),
        lambda: sample_sheet(history.samples, folder / "samples.png"),
    )
    pictures = []
    for draw in drawings:
        try:
            pictures += [path] if (path := draw()) else []
        except Exception:  # the training is over, whatever becomes of its pictures
            log.warning("picture_not_drawn", process_id=process_id, exc_info=True)
    resume = f"{program()} train --resume {process_id}"
    wanted = (service.adapter(process_id), *pictures) if isinstance(ending, Done) else ()
    copies, not_copied = copied(output, wanted, f"The originals are in {folder}.")
    if as_json:
        facts: dict[str, Any] = {
            "process_id": process_id,
            "status": ENDINGS[ending.type].status,
            "folder": folder,
            "pictures": pictures,
            "files": copies,
            "output_error": str(not_copied) if not_copied else None,
            "elapsed_time": round(elapsed_s),
            "ending": ending.model_dump(exclude={"time_s", "request_id"}),
        }
        print_result(facts)
    elif isinstance(ending, Done):
        loss = f", loss {history.steps[-1].loss:.4f}" if history.steps else ""
        say("", f"completed in {duration_text(elapsed_s)}{loss}")
        say(f"  adapter   {ending.path} ({size_text(ending.size_bytes or 0)})")
        for path in pictures:
            say(f"  picture   {path}")
        for path in copies:
            say(f"  copy      {path}")
        say(f'  use it    {program()} generate --adapter {process_id} --prompt "..."')
    elif isinstance(ending, Failed):
        to_stderr(*fail_lines(ending.code, ending.message, ending.remedy, ending.problems))
        if ending.resumable:
            to_stderr(f"Continue with: {resume}")
    else:
        where = f" at step {ending.step}" if ending.step is not None else ""
        to_stderr(f"stopped{where}. Continue with: {resume}")
    if not_copied:
        to_stderr(*not_copied.lines)
    return ENDINGS[ending.type].exit_code or (1 if not_copied else 0)


def _list(as_json: bool) -> None:
    from loradash.cli.process_commands import processes

    processes(None, kind=TRAINING.name, status=None, limit=200, as_json=as_json)
