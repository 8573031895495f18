"""``loradash demo``: see within minutes that a LoRA learned something."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loradash.cli.lines import say

if TYPE_CHECKING:
    from PIL.Image import Image

    from loradash.services.system.demo import DemoMeasures


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
    from loradash.cli.output import print_result, program, reporter, stop_on_signals
    from loradash.cli.output_folder import OutputFolder
    from loradash.cli.train_command import finish, run
    from loradash.domain.events import Done, Terminal
    from loradash.errors import Interrupted, by_code
    from loradash.runtime.supervisor import StopRequest
    from loradash.services.results.pictures import loss_curve
    from loradash.services.system import demo as script
    from loradash.settings import load_settings

    settings = load_settings()
    folder = OutputFolder(output)
    folder.check()
    core = open_core(settings, threads=script.THREADS)
    training = core.training

    def require_done(ending: Terminal) -> None:
        if ending.type == "failed":
            raise by_code(ending.code)(
                ending.message, remedy=ending.remedy, problems=ending.problems
            )
        if ending.type == "stopped":
            raise Interrupted("stopped")

    def draw(adapter: str | None, what: str) -> "list[Image]":
        stop = StopRequest()
        with reporter(as_json, what) as shown, stop_on_signals(stop, shown.note):
            ending, images = script.draw(
                core.generation, core.runner, adapter, shown.event, stop, quiet=not as_json
            )
        require_done(ending)
        return images

    def tell(text: str) -> None:
        if not as_json:
            say(text)

    try:
        tell("1/3  Drawing the prompts with the base model alone")
        before = draw(None, "before")
        tell("2/3  Training a LoRA on ten images of a logo")
        config = script.demo_config(steps)
        record = training.submit(training.check(config), taking=core.runner.taking("local"))
        process_id = record.id
        ending = run(core, record, as_json)
        if not isinstance(ending, Done):
            raise typer.Exit(finish(training, process_id, ending, None, as_json))
        tell("3/3  Drawing the same prompts with the same seeds and the LoRA")
        after = draw(process_id, "after")
    finally:
        core.close()

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
    raise typer.Exit(0 if measures.holds else 1)


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
