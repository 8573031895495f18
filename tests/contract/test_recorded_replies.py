"""The replies of the published protocols are those that were recorded, byte for byte."""

import pytest

from .recorded_replies import CONVERSATIONS, FOLDER, recorded_now


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_replies_are_those_that_were_recorded(name, tmp_path):
    recorded = FOLDER.joinpath(f"{name}.json").read_text(encoding="utf-8")
    assert recorded_now(name, tmp_path.resolve()) == recorded


def test_there_is_no_recording_of_nothing():
    assert {path.stem for path in FOLDER.iterdir()} == {*CONVERSATIONS}
