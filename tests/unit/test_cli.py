"""The command line as a whole: help, options, completion."""

from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from loradash.cli import completion
from loradash.cli.app import app
from loradash.errors import InvalidSettings, ServerUnreachable
from loradash.services.datasets.summary import DatasetSummary
from loradash.services.results.views import FileView, ModelPage, ModelView

run = CliRunner().invoke


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKSPACE_PATH", str(tmp_path / "workspace"))
    monkeypatch.setenv("LORADASH_OBJECTS_PATH", str(tmp_path / "objects"))
    monkeypatch.delenv("LORADASH_URL", raising=False)


@pytest.mark.parametrize(
    "command", [[], ["train"], ["datasets"], ["datasets", "upload"], ["models"], ["dev", "queue"]]
)
def test_h_is_help(command):
    shown = run(app, [*command, "-h"])
    assert (shown.exit_code, shown.output) == (0, run(app, [*command, "--help"]).output)
    assert "Usage:" in shown.output


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "example.com"])
def test_a_server_without_accounts_is_not_opened_to_others_by_accident(host):
    refused = run(app, ["up", "--host", host])
    assert isinstance(refused.exception, InvalidSettings)
    assert "--allow-remote" in refused.exception.remedy


class Target:
    def __init__(self, reply):
        self.reply = reply

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, **_request):
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply

    def models(self, _limit, _cursor):
        return ModelPage(models=tuple(trained(*one) for one in self.reply))

    def datasets(self):
        return tuple(DatasetSummary(name=name, total_images=images) for name, images in self.reply)


def trained(process_id, name):
    file = FileView(
        process_id=process_id, kind="lora", key="k", address="k", name="x", filename="x",
        size_bytes=1, sha256="", created_at=datetime.now(UTC),
    )  # fmt: skip
    return ModelView(file=file, name=name)


@pytest.mark.parametrize(
    ("complete", "reply", "found"),
    [
        (
            completion.process_ids,
            {"processes": [
                {"id": "train_a", "name": "cats", "status": "running"},
                {"id": "gen_b", "name": "image", "status": "failed"},
            ]},
            [("train_a", "cats, running")],
        ),
        (
            completion.adapter_ids,
            [("train_a", "cats")],
            [("train_a", "cats")],
        ),
        (
            completion.adapter_names,
            [("train_a", "tray"), ("train_b", "cats")],
            [("train_a", "tray"), ("tray", "train_a"), ("train_b", "cats")],
        ),
        (
            completion.dataset_names,
            [("tra", 3), ("b", 1)],
            [("tra", "3 images")],
        ),
    ],
)  # fmt: skip
def test_ids_and_names_are_completed(monkeypatch, complete, reply, found):
    monkeypatch.setattr("loradash.cli.backend.backend", lambda *_, **__: Target(reply))
    assert complete("tra") == found


def test_a_server_that_is_away_completes_nothing_and_says_nothing(monkeypatch, capsys):
    away = Target(ServerUnreachable("no connection"))
    monkeypatch.setattr("loradash.cli.backend.backend", lambda *_, **__: away)
    assert completion.process_ids("") == []
    assert capsys.readouterr() == ("", "")


def test_the_shell_gets_completions_by_typer(monkeypatch):
    monkeypatch.setenv("_LORADASH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "loradash models re")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert "rename" in run(app, [], prog_name="loradash").output
