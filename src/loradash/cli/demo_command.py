"""``loradash demo``: see within minutes that a LoRA learned something."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from loradash.cli.lines import say

if TYPE_CHECKING:
    from PIL.Image import Image

    from loradash.cli.output_folder import OutputFolder
    from loradash.services.system.demo import DemoMeasures
    from loradash.services.training.service import TrainingService
    from loradash.wiring.core import Core


def demo(
    output: Annotated[
        Path,
        typer.Option(
            help="Folder for the pictures and the adapter; nothing there is written over: a name "
            "that is taken gets a number.",
        ),
    ] = Path("demo-output"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 220,
    as_json: Annotated[
        bool, typer.Option("--json", help="Events and result as JSON lines.")
    ] = False,
) -> None:
    """Train a LoRA on ten images of a logo and show the same prompts before and after."""
    from loradash.cli.backend import open_core
    from loradash.cli.output_folder import OutputFolder
    from loradash.services.system import demo as script
    from loradash.settings import load_settings

    settings = load_settings()
    folder = OutputFolder(output)
    folder.check()
    core = open_core(settings, threads=script.THREADS)
    try:
        drawn = _train_and_draw(core, steps, as_json)
    finally:
        core.close()
    raise typer.Exit(_show(core.training, drawn, folder, as_json))


class _Drawn(NamedTuple):
    """The adapter's process, and the same prompts without and with it."""

    process_id: str
    before: "list[Image]"
    after: "list[Image]"


def _train_and_draw(core: "Core", steps: int, as_json: bool) -> _Drawn:
    """Draw, train, and draw again. Raises what ended a step, and `typer.Exit` for the training."""
    from loradash.cli.train_command import finish, run
    from loradash.domain.events import Done
    from loradash.services.system.demo import demo_config

    def announce(text: str) -> None:
        if not as_json:
            say(text)

    announce("1/3  Drawing the prompts with the base model alone")
    before = _draw(core, None, "before", as_json)
    announce("2/3  Training a LoRA on ten images of a logo")
    training = core.training
    record = training.submit(
        training.check(demo_config(steps)), taking=core.runner.taking("local")
    )  # fmt: skip
    ending = run(core, record, as_json)
    if not isinstance(ending, Done):
        raise typer.Exit(finish(training, record.id, ending, None, as_json))
    announce("3/3  Drawing the same prompts with the same seeds and the LoRA")
    return _Drawn(record.id, before, _draw(core, record.id, "after", as_json))


def _draw(core: "Core", adapter: str | None, what: str, as_json: bool) -> "list[Image]":
    """The prompts' images, in their order. Raises the error that kept them from being drawn."""
    from loradash.cli.output import reporter, stop_on_signals
    from loradash.errors import Interrupted, by_code
    from loradash.runtime.supervisor import StopRequest
    from loradash.services.system.demo import draw

    stop = StopRequest()
    with reporter(as_json, what) as shown, stop_on_signals(stop, shown.note):
        ending, images = draw(
            core.generation, core.runner, adapter, shown.event, stop, quiet=not as_json
        )
    if ending.type == "failed":
        raise by_code(ending.code)(ending.message, remedy=ending.remedy, problems=ending.problems)
    if ending.type == "stopped":
        raise Interrupted("stopped")
    return images


def _show(training: "TrainingService", drawn: _Drawn, folder: "OutputFolder", as_json: bool) -> int:
    """Write the pictures and the adapter, say what was measured, and return the exit code."""
    from loradash.cli.output import print_result, program
    from loradash.services.results.pictures import loss_curve
    from loradash.services.system import demo as script

    process_id, before, after = drawn
    measures = script.measure(before, after)
    sheet = folder.write("demo.png", lambda path: script.sheet(before, after, path))
    adapter = folder.copy(training.adapter(process_id))
    steps_done = training.history(process_id).steps
    curve = folder.write("loss.png", lambda path: loss_curve(steps_done, path, "demo_logo"))
    seconds = steps_done[-1].time_s - steps_done[0].time_s if len(steps_done) > 1 else 0.0
    if as_json:
        print_result(
            {
                "process_id": process_id,
                "status": "completed",
                "measures": measures._asdict(),
                "approach": measures.approach,
                "holds": measures.holds,
                "training_s": seconds,
                "sheet": sheet,
                "adapter": adapter,
            }
        )
    else:
        say(*_report(measures, seconds, len(steps_done)))
        say(f"  sheet     {sheet}")
        say(f"  loss      {curve}")
        say(f"  adapter   {adapter}")
        say(f'  next      {program()} generate --adapter {process_id} -p "a sks logo" -n 4')
    return 0 if measures.holds else 1


def _report(measures: "DemoMeasures", seconds: float, steps: int) -> list[str]:
    from loradash.services.system.demo import ALLOWED_CHANGE, REQUIRED_APPROACH

    logo = f"{measures.logo_before:.3f} -> {measures.logo_after:.3f}"
    approach = f"{measures.approach:.0%} nearer, at least {REQUIRED_APPROACH:.0%} wanted"
    in_mix, not_in_mix = measures.change_in_the_mix, measures.change_not_in_the_mix
    limit = f"at most {ALLOWED_CHANGE:.2f} wanted; two subjects differ by "
    limit += f"{measures.between_subjects:.2f}"
    lines = (
        (measures.approach >= REQUIRED_APPROACH, "logo to its training images", logo, approach),
        (in_mix <= ALLOWED_CHANGE, "no trigger word, in the mix", f"{in_mix:.3f}", limit),
        (not_in_mix <= ALLOWED_CHANGE, "no trigger word, not in it", f"{not_in_mix:.3f}", limit),
    )
    head = f"{steps} steps in {seconds:.0f} s. Distances of pixels, 0 is equal, 1 black to white:"
    rows = (
        f"  {'ok ' if holds else 'BAD'} {what:<29}{figure:<16} ({wanted})"
        for holds, what, figure, wanted in lines
    )
    return ["", head, *rows]
