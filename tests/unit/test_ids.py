import re
import time

import pytest
from pydantic import TypeAdapter, ValidationError

from loradash.domain.ids import (
    PROCESS_ID_PATTERN,
    ProcessId,
    is_process_id,
    new_process_id,
    new_upload_id,
    upload_time_s,
)


@pytest.mark.parametrize(("kind", "prefix"), [("training", "train"), ("generation", "gen")])
def test_a_new_id_has_the_form_of_an_id(kind, prefix):
    process_id = new_process_id(kind)
    assert re.match(PROCESS_ID_PATTERN, process_id)
    assert process_id.startswith(f"{prefix}_")
    assert is_process_id(process_id)
    assert TypeAdapter(ProcessId).validate_python(process_id) == process_id


def test_ids_sort_by_the_time_of_their_creation():
    times = [0, 0.001, 1, 31.999, 32, 1_700_000_000, 1_700_000_000.001, 4_000_000_000]
    ids = [new_process_id("training", now_s=now) for now in times]
    assert ids == sorted(ids)


def test_ids_of_the_same_moment_differ():
    assert len({new_process_id("generation", now_s=1.0) for _ in range(5000)}) == 5000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "train_",
        "train_01k9x3q4zt8m2v7c0hd",
        "train_01k9x3q4zt8m2v7c0hdee",
        "TRAIN_01k9x3q4zt8m2v7c0hde",
        "train_01K9X3Q4ZT8M2V7C0HDE",
        "job_01k9x3q4zt8m2v7c0hde",
        "train_01k9x3q4zt8m2v7c0hde\n",
        " train_01k9x3q4zt8m2v7c0hde",
        "train_../../../../../../etc",
        "train_01k9x3q4zt8m2v7c0hdé",
    ],
)
def test_other_texts_are_no_ids(text):
    assert not is_process_id(text)
    with pytest.raises(ValidationError):
        TypeAdapter(ProcessId).validate_python(text)


def test_an_upload_id_tells_its_time_and_sorts_by_it():
    first, second = new_upload_id(1_700_000_000.123), new_upload_id(1_700_000_000.124)
    assert first < second
    assert upload_time_s(first) == 1_700_000_000.123
    assert new_upload_id() != new_upload_id()
    assert upload_time_s(new_upload_id()) == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("text", ["", "upload_", "upload_x", "sub", f"upload_{'u' * 20}", "upload"])
def test_other_texts_are_no_upload_ids(text):
    assert upload_time_s(text) is None
    assert upload_time_s(new_upload_id() + "0") is None
    assert upload_time_s(new_upload_id() + "\n") is None
