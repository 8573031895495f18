"""Following a process that runs elsewhere."""

import contextlib
import hashlib
import json
import signal
from pathlib import Path

import pytest

from loradash.cli import elsewhere
from loradash.cli.elsewhere import Wanted, follow, for_elsewhere, runs_elsewhere, send
from loradash.cli.output_folder import OutputFolder
from loradash.domain.training_text import parse_training
from loradash.errors import InvalidDataset, ServerUnreachable
from loradash.settings import Settings

ID = "train_01k9x3q4zt8m2v7c0hde"
SHA256 = hashlib.sha256(b"file").hexdigest()
SHOWN = Wanted(detach=False, output=None, as_json=False)


def settings(**fields):
    return Settings(_env_file=None, **fields)


def view(status="running", **fields):
    return {
        "process_id": ID, "type": "training", "status": status, "step": 0, "total_steps": 4,
        "loss": None, "learning_rate": None, "steps_per_s": None, "eta": None, "phase": "",
        "phase_detail": "", "queue_position": None, "log": [], "elapsed_time": 3, "artifacts": [],
        "error_code": None, "error_message": None, "error_problems": [], "remedy": None, **fields,
    }  # fmt: skip


def line(number, text):
    return {"number": number, "time": "2026-01-01T00:00:00Z", "text": text}


def artifact(kind="lora", name="a.safetensors", sha256=SHA256):
    return {"kind": kind, "key": f"results/{ID}/{kind}/{name}", "name": name, "sha256": sha256}


class Target:
    """Answers what a test says, one thing after the other; an exception is raised."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []
        self.fetched = []
        self.resumed = []
        self.waits = 0

    def ask(self, **request):
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def fetch(self, key, path):
        self.fetched.append(key)
        path.write_bytes(b"file")

    def resume(self, process_id):
        self.resumed.append(process_id)

    @contextlib.contextmanager
    def watching(self, process_id):
        def wait():
            self.waits += 1

        yield wait


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(elsewhere, "POLL_S", 0)


@pytest.fixture
def server(monkeypatch):
    return settings(LORADASH_URL="http://127.0.0.1:1")


def test_where_a_command_works_is_what_the_settings_say():
    assert not runs_elsewhere(settings(), here=False)
    assert runs_elsewhere(settings(LORADASH_URL="http://127.0.0.1:1"), here=False)
    assert runs_elsewhere(settings(LORADASH_EXECUTOR="runpod"), here=False)
    assert not runs_elsewhere(settings(LORADASH_EXECUTOR="runpod"), here=True)


@pytest.mark.parametrize(
    ("status", "exit_code"), [("completed", 0), ("failed", 1), ("cancelled", 130)]
)
def test_the_exit_code_says_how_the_process_ended(server, capsys, status, exit_code):
    failed = {"error_code": "engine_crashed", "error_message": "it broke", "remedy": "Look."}
    end = view(status, **(failed if status == "failed" else {}))
    assert follow(Target(view(), end), server, SHOWN, ID) == exit_code
    shown = capsys.readouterr()
    assert ("it broke" in shown.err) == (status == "failed")
    assert (f"resume {ID}" in shown.err) == (status != "completed")


def test_log_and_progress_are_shown_once(server, capsys):
    target = Target(
        view("pending", queue_position=2),
        view(log=[line(1, "first"), line(2, "second")], step=1, loss=0.5, learning_rate=1e-4),
        view("completed", log=[line(3, "third")], step=4, loss=0.25, learning_rate=1e-4),
    )
    assert follow(target, server, SHOWN, ID) == 0
    shown = capsys.readouterr().out
    for text in ("position 2", "first", "second", "third", "step 1/4", "step 4/4"):
        assert shown.count(text) == 1, shown
    assert [request["log_after"] for request in target.asked] == [0, 0, 2]
    assert target.waits == 2


def test_a_server_that_is_away_for_a_moment_is_asked_again(server, capsys):
    away = ServerUnreachable("no connection")
    assert follow(Target(view(), away, away, view("completed")), server, SHOWN, ID) == 0
    assert capsys.readouterr().out.count("no connection") == 1


def test_a_server_that_stays_away_ends_the_following_and_not_the_process(
    server, capsys, monkeypatch
):
    monkeypatch.setattr(elsewhere, "PATIENCE_S", -1)
    with pytest.raises(ServerUnreachable):
        follow(Target(ServerUnreachable("no connection")), server, SHOWN, ID)
    assert f"logs -f {ID}" in capsys.readouterr().err


def test_ctrl_c_ends_the_following_and_says_how_to_go_on(server, capsys):
    target = Target(view(), KeyboardInterrupt())
    assert follow(target, server, SHOWN, ID) == 128 + signal.SIGINT
    shown = capsys.readouterr().err
    assert f"logs -f {ID}" in shown
    assert f"cancel {ID}" in shown
    assert all(request["type"] == "process_status" for request in target.asked)


def test_the_results_are_fetched_into_the_folder_that_is_named(server, tmp_path):
    target = Target(view("completed", artifacts=[artifact(), artifact("checkpoint", "b")]))
    wanted = SHOWN._replace(output=OutputFolder(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.safetensors").write_text("another one")
    assert follow(target, server, wanted, ID) == 0
    assert target.fetched == [f"results/{ID}/lora/a.safetensors"]
    assert (tmp_path / "out" / "a.safetensors").read_text() == "another one"
    assert (tmp_path / "out" / "a-2.safetensors").read_bytes() == b"file"


def test_results_that_cannot_be_fetched_are_named_and_the_exit_code_says_so(
    server, tmp_path, capsys
):
    artifacts = [artifact(sha256="0" * 64), artifact("image", "b.png")]
    target = Target(view("completed", artifacts=artifacts))
    wanted = SHOWN._replace(output=OutputFolder(tmp_path / "out"), as_json=True)
    assert follow(target, server, wanted, ID) == 1
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert result["status"] == "completed"
    assert [Path(path).name for path in result["files"]] == ["b.png"]
    assert "a.safetensors isn't what was stored" in result["output_error"]
    assert "1 of 2 files" in shown.err


def test_a_detached_process_is_queued_and_its_id_is_all_of_stdout(server, capsys):
    target = Target({"process_id": ID, "warnings": ["mind this"]})
    wanted = SHOWN._replace(detach=True)
    assert send(target, server, wanted, type="train", config="steps: 1") == 0
    shown = capsys.readouterr()
    assert shown.out == f"{ID}\n"
    assert "mind this" in shown.err
    assert target.asked == [{"type": "train", "config": "steps: 1"}]


def test_without_a_control_plane_on_this_machine_that_is_said(tmp_path, capsys):
    runpod = settings(LORADASH_EXECUTOR="runpod", WORKSPACE_PATH=tmp_path)
    send(Target({"process_id": ID}), runpod, SHOWN._replace(detach=True), type="train", config="")
    assert "No control plane is running on this machine" in capsys.readouterr().err


def test_a_folder_whose_captions_can_not_be_uploaded_is_refused(tmp_path):
    config = parse_training(
        {"dataset": str(tmp_path), "base_model": "emoji-base"},
        {"datasets.0.caption_ext": "tags"},
    )
    with pytest.raises(InvalidDataset, match=r"\.tags") as caught:
        for_elsewhere(Target(), config, lambda _text: None)
    assert "--here" in caught.value.remedy
