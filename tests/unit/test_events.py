import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from loradash.domain.events import (
    CheckpointWritten,
    Done,
    Failed,
    ImageWritten,
    PhaseChanged,
    Ready,
    Resumed,
    SampleWritten,
    StepDone,
    Stopped,
    Warned,
    parse_event,
)

EVENTS = [
    PhaseChanged(phase="loading", detail="unet", done=1, total=4),
    PhaseChanged(phase="starting"),
    StepDone(
        step=3, total_steps=9, loss=0.25, learning_rate=1e-4, grad_norm=1.5, steps_per_s=2, eta_s=3
    ),
    StepDone(step=3, total_steps=9, loss=math.inf, learning_rate=1e-4, grad_norm=-math.inf),
    SampleWritten(step=3, index=0, path="samples/a.png", prompt='a "quoted"\ncat', seed=2**63 - 1),
    ImageWritten(index=1, path="a.png", prompt="\u2028 ünïcode 🐈", seed=0, duration_s=0.1),
    CheckpointWritten(step=3, path="checkpoints/step-3", size_bytes=10**12),
    Resumed(step=3, path="checkpoints/step-3"),
    Warned(code="slow", message="it is slow"),
    Done(step=9, path="lora/a.safetensors", sha256="ab" * 32, size_bytes=7, duration_s=1.5),
    Done(),
    Failed(code="out_of_memory", message="no", remedy="buy", problems=("a", "b"), resumable=True),
    Stopped(step=3, checkpoint="checkpoints/step-3"),
    Stopped(),
    Ready(loaded_base_model="emoji-base"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
def test_an_event_survives_the_pipe(event):
    event = event.model_copy(update={"time_s": 1_700_000_000.25, "request_id": "gen_x"})
    line = event.model_dump_json()
    assert "\n" not in line
    assert parse_event(line) == event
    assert parse_event(line.encode()) == event


def test_every_kind_of_event_is_tried_here():
    kinds = {kind for base in StepDone.__bases__ for kind in base.__subclasses__()}
    assert {type(event) for event in EVENTS} == kinds


def test_a_loss_that_is_not_a_number_survives_the_pipe():
    event = StepDone(step=1, total_steps=2, loss=math.nan, learning_rate=0.1)
    parsed = parse_event(event.model_dump_json())
    assert isinstance(parsed, StepDone)
    assert math.isnan(parsed.loss)


def test_a_field_of_a_later_version_is_ignored():
    assert parse_event('{"type": "ready", "colour": "red"}') == Ready()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Loading weights: 100%",
        "{}",
        "[]",
        "null",
        "NaN",
        '{"type": "unheard_of"}',
        '{"type": "step"}',
        '{"type": "step", "step": "x", "total_steps": 2, "loss": 1, "learning_rate": 1}',
        '{"type": "phase", "phase": "sleeping"}',
        '{"type": "ready"',
        '{"type": "ready"} {"type": "ready"}',
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_event_is_an_error(line):
    with pytest.raises(ValidationError):
        parse_event(line)


@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_an_error_of_one_kind(line):
    with pytest.raises(ValidationError):
        parse_event(line)


@given(prompt=st.text(), loss=st.floats(allow_nan=False))
def test_text_and_numbers_arrive_exactly(prompt, loss):
    sample = SampleWritten(step=1, index=0, path="p", prompt=prompt, seed=0)
    step = StepDone(step=1, total_steps=1, loss=loss, learning_rate=0)
    assert parse_event(sample.model_dump_json()) == sample
    assert parse_event(step.model_dump_json()) == step
    assert json.loads(sample.model_dump_json())["prompt"] == prompt
