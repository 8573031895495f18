"""How commands show what happens, and that showing costs nothing."""

import pytest
from structlog.testing import capture_logs

from loradash.cli.output import UnfailingReporter
from loradash.domain.events import PhaseChanged

EVENT = PhaseChanged(phase="training")


class Broken:
    """A display that fails at everything."""

    def __enter__(self):
        raise OSError(5, "Input/output error")

    def __exit__(self, *_):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter>")

    def event(self, event):
        raise ValueError("not a terminal")

    def note(self, text):
        raise UnicodeEncodeError("ascii", text, 0, 1, "not in range")


def test_a_display_that_fails_does_not_end_the_work_and_is_logged_once():
    with capture_logs() as logs, UnfailingReporter(Broken()) as shown:
        for _ in range(3):
            shown.event(EVENT)
            shown.note("text")
    assert [line["event"] for line in logs] == ["progress_not_shown"]


def test_the_end_of_the_work_itself_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt), UnfailingReporter(Broken()):
        raise KeyboardInterrupt
