"""Tables and progress for people at a terminal: the one module that uses rich.

rich reads text in square brackets as markup (``[sks]`` vanishes, ``[/b]`` raises), replaces
``:smile:``, and sends control characters on to the terminal. So no text gets to rich but by
`plain_text`, and nothing that is made here reads markup.
"""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from loradash.visible_text import visible

_PROGRAM_WIDTH = 1000  # columns, for programs that read lines


def plain_text(text: str, style: str = "") -> Text:
    """Return one line that is shown as it is, in one style; control characters are escaped."""
    return Text(visible(text), style=style)


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that takes text for text."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def print_labelled(label: str, style: str, text: str, width: int = 9) -> None:
    """Print a line that begins with a coloured word. Nothing is cut off."""
    line = plain_text(label.ljust(width), style).append_text(plain_text(text))
    make_console().print(line, soft_wrap=True)


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]], nothing: str) -> None:
    """Print rows below their heads, or what to say if there are none. Nothing is cut off."""
    console = _console_for_tables()
    if not rows:
        console.print(plain_text(nothing))
        return
    table = Table(box=None)
    for number, head in enumerate(heads):
        table.add_column(plain_text(head), overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(plain_text(cell) for cell in row))
    console.print(table)


def print_facts(rows: Iterable[Sequence[str | tuple[str, str]]]) -> None:
    """Print rows without heads; a cell is a text, or a text and its style. Nothing is cut off."""
    console = _console_for_tables()
    lines = [[(cell, "") if isinstance(cell, str) else cell for cell in row] for row in rows]
    table = Table(box=None, show_header=False, padding=(0, 1))
    for _ in range(max(map(len, lines), default=0)):
        table.add_column(overflow="fold")
    for line in lines:
        table.add_row(*(plain_text(text, style) for text, style in line))
    console.print(table)


def _console_for_tables() -> Console:
    console = make_console()
    if not console.is_terminal:
        console.width = _PROGRAM_WIDTH
    return console


class _Description(ProgressColumn):
    """What a task is about. rich's own column of text reads markup."""

    def render(self, task: Task) -> Text:
        return plain_text(task.description)


class _Count(ProgressColumn):
    """How many of how many, where that is known."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:.0f}/{task.total:.0f}" if task.total else "")


class _Rest(ProgressColumn):
    """Loss, speed and remaining time of a step, or how many items are done."""

    def render(self, task: Task) -> Text:
        text = plain_text(task.fields.get("rest", ""), "dim")
        text.overflow, text.no_wrap = "ellipsis", True
        return text


def work_progress(console: Console) -> Progress:
    """Return a live display of tasks that are counted; the field ``rest`` is said at the end."""
    return Progress(
        SpinnerColumn(), _Description(), BarColumn(bar_width=None), _Count(), _Rest(),
        console=console, expand=True,
    )  # fmt: skip


def transfer_progress() -> Progress:
    """Return a live display of bytes that are sent, on standard error; it vanishes at the end."""
    return Progress(
        _Description(), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        console=make_console(stderr=True), transient=True,
    )  # fmt: skip
