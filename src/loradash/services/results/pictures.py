"""Pictures for people: contact sheets and loss curves, as PNG."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from loradash.domain.events import SampleWritten, StepDone
from loradash.storage.disk import arriving

_MARGIN = 8
_LABEL = 15
_INK = (40, 40, 46)
_PAPER = (255, 255, 255)
_MIN_CELL = 112
_MAX_CELL = 256


class Row(NamedTuple):
    """One line of a contact sheet."""

    label: str
    images: Sequence[Image.Image | None]


def contact_sheet(rows: Sequence[Row], columns: Sequence[str], path: Path, title: str = "") -> Path:
    """Write a sheet with one labelled row after the other; ``columns`` are the heads."""
    sizes = [image.size for row in rows for image in row.images if image]
    if not sizes:
        raise ValueError("a contact sheet needs an image")
    longest = max(max(size) for size in sizes)
    scale = (
        max(1, round(_MIN_CELL / longest)) if longest < _MIN_CELL else min(1, _MAX_CELL / longest)
    )
    cell = round(longest * scale)
    font, small = ImageFont.load_default(15), ImageFont.load_default(11)
    left = _MARGIN * 2 + round(max(font.getlength(row.label) for row in rows))
    heads = [_wrapped(text, small, cell) for text in columns]
    top = _MARGIN * 2 + (24 if title else 0) + _LABEL * max(len(lines) for lines in heads)
    width = left + len(columns) * (cell + _MARGIN) + _MARGIN
    width = max(width, round(font.getlength(title)) + 2 * _MARGIN)
    sheet = Image.new("RGB", (width, top + len(rows) * (cell + _MARGIN) + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((_MARGIN, _MARGIN), title, _INK, font)
    for column, lines in enumerate(heads):
        x = left + column * (cell + _MARGIN)
        for number, line in enumerate(reversed(lines), start=1):
            pen.text((x, top - _MARGIN // 2 - number * _LABEL), line, _INK, small)
    for number, row in enumerate(rows):
        y = top + number * (cell + _MARGIN)
        pen.text((_MARGIN, y + cell // 2 - 8), row.label, _INK, font)
        for column, image in enumerate(row.images):
            if image:
                factor = cell / max(image.size)
                size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
                resample = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
                scaled = image.convert("RGB").resize(size, resample)
                sheet.paste(scaled, (left + column * (cell + _MARGIN), y))
    with arriving(path) as descriptor, os.fdopen(descriptor, "wb", closefd=False) as file:
        sheet.save(file, "PNG", optimize=True)
    return path


def sample_sheet(samples: Sequence[SampleWritten], path: Path) -> Path | None:
    """Write a training's previews as a sheet, steps down, prompts across; None without any.

    Of many steps, the first, the last and an even choice between them are shown.
    """
    if not samples:
        return None
    prompts = {sample.index: sample.prompt for sample in samples}
    by_place = {(sample.step, sample.index): sample for sample in samples}
    steps = sorted({sample.step for sample in samples})
    if len(steps) > 10:
        steps = [steps[round(n * (len(steps) - 1) / 9)] for n in range(10)]
    rows = []
    for step in steps:
        places = [by_place.get((step, index)) for index in sorted(prompts)]
        rows.append(Row(f"step {step}", [_open(sample) for sample in places]))
    if not any(image for row in rows for image in row.images):
        return None
    return contact_sheet(rows, [prompts[index] for index in sorted(prompts)], path)


def loss_curve(steps: Sequence[StepDone], path: Path, title: str = "") -> Path | None:
    """Write the loss with its running mean, and the learning rate; None without steps."""
    if not steps:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    numbers = [step.step for step in steps]
    losses = [step.loss for step in steps]
    figure = Figure(figsize=(8, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(numbers, losses, color="#c9ccd6", linewidth=0.8, label="loss")
    axes.plot(numbers, _running_mean(losses), color="#0aa39a", linewidth=2, label="running mean")
    axes.set(xlabel="step", ylabel="loss")
    axes.set_title(title, parse_math=False)  # a dollar sign is one
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    rates = axes.twinx()
    rates.plot(
        numbers,
        [step.learning_rate for step in steps],
        color="#e11e8c",
        linewidth=1,
        linestyle=":",
        label="learning rate",
    )
    rates.set_ylabel("learning rate")
    rates.set_ylim(bottom=0)
    axes.legend(handles=[*axes.get_lines(), *rates.get_lines()], loc="upper right", frameon=False)
    with arriving(path) as descriptor, os.fdopen(descriptor, "wb", closefd=False) as file:
        figure.savefig(file, format="png")
    return path


def _running_mean(values: Sequence[float]) -> list[float]:
    weight = max(0.02, min(0.2, 10 / len(values)))
    means: list[float] = []
    for value in values:
        means.append(value if not means else means[-1] + weight * (value - means[-1]))
    return means


def _open(sample: SampleWritten | None) -> Image.Image | None:
    if sample is None or not Path(sample.path).is_file():
        return None
    with Image.open(sample.path) as image:
        image.thumbnail((2 * _MAX_CELL, 2 * _MAX_CELL))  # a sheet may have a hundred of them
        return image.convert("RGB")


def _wrapped(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [line if font.getlength(line) <= width else f"{line[:14]}…" for line in lines[:4]]
