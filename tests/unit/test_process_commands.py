"""What ``loradash processes ID`` shows of a process's attempts."""

import contextlib

import pytest
from typer.testing import CliRunner

from loradash.cli import process_commands
from loradash.cli.app import app

ID = "train_01k9x3q4zt8m2v7c0hde"


class Answering(contextlib.nullcontext):
    """A backend that has one process."""

    def __init__(self, **fields):
        super().__init__(self)
        self.view = {
            "id": ID, "name": "cat", "type": "training", "status": "running", "lost": False,
            "cancel_requested": False, "phase": "", "phase_detail": "", "step": 10,
            "total_steps": 40, "elapsed_time": 8, "queue_position": None, "error_code": None,
            "process": {}, "artifacts": [], **fields,
        }  # fmt: skip

    def ask(self, **request):
        return self.view


def note(number, from_step, to_step, ending):
    return {"number": number, "from_step": from_step, "to_step": to_step, "ending": ending}


@pytest.mark.parametrize(
    ("fields", "state"),
    [({}, "running"), ({"lost": True}, "lost"), ({"cancel_requested": True}, "stopping")],
)
def test_an_attempt_that_goes_on_has_no_last_step_yet(monkeypatch, fields, state):
    attempts = [note(1, 0, 24, "cancelled"), note(2, 24, 24, None)]
    monkeypatch.setattr(
        process_commands, "_backend", lambda: Answering(attempts=attempts, **fields)
    )
    shown = CliRunner().invoke(app, ["processes", ID]).output
    assert "attempt 1: steps 0 to 24, cancelled\n" in shown
    assert f"attempt 2: from step 24, {state}\n" in shown
