"""No text from outside is markup, and none acts on the terminal: what the command line shows."""

import ast
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

import loradash
from loradash.cli import main, output, terminal
from loradash.cli.app import app
from loradash.domain.events import ImageWritten, PhaseChanged, Warned
from loradash.protocol.reply_reading import models_of
from loradash.visible_text import visible
from tests.nasty_names import BRACKETS, NASTY, NOT_UTF8, harmful

SOURCE = Path(loradash.__file__).parent
NAMES = [*NASTY, NOT_UTF8]
ON_DISK = [name for name in NAMES if name not in ("a \\", "\\[a]")]


@pytest.fixture
def screen(monkeypatch):
    """What a terminal gets."""
    shown = io.StringIO()

    def make_console(*, stderr=False):
        return Console(
            file=shown, force_terminal=True, color_system=None, width=300, highlight=False,
            markup=False, emoji=False, legacy_windows=False,
        )  # fmt: skip

    monkeypatch.setattr(terminal, "make_console", make_console)
    return shown


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_only_one_module_uses_rich_and_nothing_there_reads_markup():
    users = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if any(name == "rich" or name.startswith("rich.") for name in imports(path))
    }
    assert users - {"cli/output.py"} == {"cli/terminal.py"}
    for path in (SOURCE / "cli/terminal.py", SOURCE / "cli/output.py"):
        found = set(imports(path))
        assert not {"rich.print", "rich.markup", "rich.progress.TextColumn"} & found
        assert "from_markup" not in path.read_text()
    for call in ast.walk(ast.parse((SOURCE / "cli/terminal.py").read_text())):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "Console":
            given = {one.arg: ast.unparse(one.value) for one in call.keywords}
            assert (given["markup"], given["emoji"], given["highlight"]) == ("False",) * 3


def test_every_text_that_is_given_to_rich_goes_through_the_one_function():
    """Also text that stands in the program: it is by its place that one sees that all does."""
    tree = ast.parse((SOURCE / "cli/terminal.py").read_text())
    texts = [
        ast.unparse(call)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("Text", "Text.assemble")
    ]
    assert texts == [
        "Text(visible(text), style=style)",
        "Text(f'{task.completed:.0f}/{task.total:.0f}' if task.total else '')",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_tables_show_names_as_they_are(screen, name):
    terminal.print_table(("name", name), [(name, "x"), ("y", name)], "nothing")
    terminal.print_table(("name",), [], name)
    terminal.print_facts([("ok", name), ((name, "red"), "x")])
    terminal.print_labelled("bad", "red", name)
    text = screen.getvalue()
    assert text.count(visible(name)) >= 7
    assert not harmful(text)


RICH_DRAWS = ("\x1b[?25l", "\x1b[?25h", "\x1b[2K", "\x1b[1A", "\r")


def without_drawing(text):
    for own in RICH_DRAWS:
        text = text.replace(own, "")
    return text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["live", "lines"])
def test_events_show_names_as_they_are(screen, capsys, name, kind):
    events = (
        PhaseChanged(phase="loading", detail=name, done=1, total=2),
        Warned(code="x", message=name),
        ImageWritten(index=0, path=name, prompt=name, seed=1, duration_s=1.0),
    )
    live = kind == "live"
    shown = output.LiveReporter(terminal.make_console(), name) if live else output.LineReporter("")
    with shown:
        for event in events:
            shown.event(event)
        shown.note(name)
    text = without_drawing(screen.getvalue()) if live else capsys.readouterr().out
    assert text.count(visible(name)) >= 3
    assert not harmful(text)


@pytest.mark.parametrize("name", NAMES)
def test_live_bars_show_names_as_they_are(screen, name):
    with terminal.work_progress(terminal.make_console()) as bars:
        bars.add_task(name, total=2, rest=name)
    with terminal.transfer_progress() as bars:
        bars.add_task(name, total=2)
        bars.refresh()
    text = without_drawing(screen.getvalue())
    assert text.count(visible(name)) >= 3
    assert not harmful(text)


@pytest.mark.parametrize("name", NAMES)
def test_programs_get_ascii_only(capsys, name):
    output.JsonReporter().event(Warned(code="x", message=name.encode("utf-8", "replace").decode()))
    output.print_result({"name": name})
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[1])["name"] == name
    assert all(line.isascii() and line.isprintable() for line in lines)


class Fake:
    """A server whose every text is the same."""

    def __init__(self, text):
        self.text = text

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def models(self, _limit, _cursor):
        text = self.text
        model = {
            "process_id": "train_a", "name": text, "filename": text, "size": 1, "path": text,
            "s3_key": text, "sha256": text, "created_at": "2026-01-01T00:00:00Z",
            "metadata": {"trigger_word": text, "base_model": text, "steps": None},
        }  # fmt: skip
        return models_of({"models": [model], "missing": [text], "next_cursor": text})

    def ask(self, **request):
        text = self.text
        shown = {
            "id": "train_a", "name": text, "type": "training", "status": "failed", "lost": False,
            "cancel_requested": False, "phase": text, "phase_detail": text, "step": 1,
            "total_steps": 2, "loss": None, "elapsed_time": 1, "eta": None, "attempt": 1,
            "queue_position": None, "error_code": "x", "error_message": text,
            "error_problems": [text], "remedy": text, "artifacts": [{"kind": "lora", "key": text}],
            "attempts": [{"number": 1, "ending": text, "from_step": 0, "to_step": 1}],
            "log": [{"number": 1, "time": "2026-01-01T00:00:00Z", "text": text}],
            "process": {"warnings": [text]},
        }  # fmt: skip
        if request["type"] == "processes":
            return {"processes": [shown]}
        return shown


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "command", [["processes"], ["processes", "train_a"], ["logs", "train_a"], ["models"]]
)
def test_commands_show_what_a_server_says_as_it_is(monkeypatch, screen, name, command):
    monkeypatch.setattr("loradash.cli.backend.backend", lambda *_a, **_k: Fake(name))
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.exception
    text = screen.getvalue() + result.output
    assert visible(name) in text
    assert not harmful(text)


@pytest.mark.parametrize("name", NAMES)
def test_errors_quote_what_was_given_as_it_is(monkeypatch, capsys, name):
    monkeypatch.setattr("sys.argv", ["loradash", "train", f"{name}.yaml"])
    with pytest.raises(SystemExit):
        main()
    text = capsys.readouterr().err
    assert "//" in name or visible(f"{name}.yaml") in text  # paths have no double slashes
    assert not harmful(text)


def test_a_dataset_with_nasty_names_is_reported_by_name(tmp_path, screen):
    Image.new("RGB", (8, 8), "red").save(picture := io.BytesIO(), "PNG")
    for name in ON_DISK:
        whole, broken = tmp_path / f"{name}.png", tmp_path / f"{name}.jpg"
        try:
            whole.write_bytes(picture.getvalue())
            broken.write_bytes(b"no image")
        except FileNotFoundError:  # it has a slash
            continue
    result = CliRunner().invoke(app, ["datasets", "check", str(tmp_path)])
    assert result.exit_code == 1, result.exception
    text = screen.getvalue() + result.output
    assert not harmful(text)
    assert f"{BRACKETS}.jpg: not" in text
    for name in ON_DISK:
        assert "/" in name or visible(f"{name}.jpg") in text


def test_facts_are_not_cut_off_for_programs(capsys):
    terminal.print_facts([("stored as", "results/" + "x" * 300), ("size", "1 MB")])
    assert "x" * 300 in capsys.readouterr().out


def test_facts_are_folded_at_a_terminal_and_not_cut_off(screen):
    terminal.print_facts([("stored as", "x" * 500)])
    assert screen.getvalue().count("x") == 500
