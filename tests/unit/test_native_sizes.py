"""Sizes that a config leaves open come from the base model; those far from it are mentioned."""

import pytest

from loradash.domain.generation import parse_generation_text
from loradash.domain.native_sizes import far_from_native, sizes_left_open, users_text
from loradash.domain.training_text import parse_training, parse_training_text, training_text
from loradash.engines.diffusers.engine import DiffusersEngine

SHORT = {"dataset": "cats", "base_model": "emoji-base"}


def full(resolution=None, **sample):
    section = {"folder_path": "cats"} | ({"resolution": resolution} if resolution else {})
    process = {
        "type": "sd_trainer", "network": {"linear": 4}, "train": {"lr": 1e-4},
        "datasets": [section], "model": {"name_or_path": "emoji-base"},
        **({"sample": sample} if sample else {}),
    }  # fmt: skip
    return {"job": "extension", "config": {"name": "x", "process": [process]}}


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (SHORT, ([64], 64, 64)),
        ({**SHORT, "resolution": None}, ([64], 64, 64)),
        ({**SHORT, "resolution": 32}, ([32], 32, 32)),
        ({**SHORT, "resolution": [96, 32]}, ([96, 32], 96, 96)),
        ({**SHORT, "sample_size": 32}, ([64], 32, 32)),
        ({**SHORT, "resolution": 32, "sample_size": 96}, ([32], 96, 96)),
        (full(), ([64], 64, 64)),
        (full(512), ([512], 64, 64)),
        (full(512, width=512, height=256), ([512], 512, 256)),
        (full(width=32), ([64], 32, 64)),
    ],
)
def test_a_size_that_is_not_given_is_the_base_models_own(document, expected):
    config = parse_training(document)
    config = parse_training(
        config.model_dump(mode="json", exclude_unset=True), sizes_left_open(config, 64)
    )
    stored = parse_training_text(training_text(config))
    process = stored.process
    sizes = (process.datasets[0].resolution, process.sample.width, process.sample.height)
    assert sizes == expected
    assert sizes_left_open(stored, 4096) == {}  # what is stored doesn't change any more


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("# mine\ndataset: cats\nbase_model: emoji-base\nresolution: 64", True),
        ("# mine\ndataset: cats\nbase_model: emoji-base", True),
        ("{dataset: cats, base_model: emoji-base}  # mine", False),
        (training_text(parse_training(full())), False),
        (training_text(parse_training(full(64, width=64, height=64))), True),
    ],
)
def test_a_text_of_the_users_keeps_its_comments_where_the_size_can_be_added(text, kept):
    config = parse_training_text(text)
    document = config.model_dump(mode="json", exclude_unset=True)
    with_sizes = parse_training(document, sizes_left_open(config, 64))
    stored = users_text(text, with_sizes)
    assert stored.startswith(text) if kept else stored == ""
    assert not kept or parse_training_text(stored) == with_sizes


def test_prior_images_have_the_same_size():
    config = parse_training({**SHORT, "regularization": "dogs"})
    assert sizes_left_open(config, 64)["datasets.1.resolution"] == [64]


def test_without_a_known_size_it_is_512_as_in_earlier_releases():
    process = parse_training(SHORT).process
    assert (process.datasets[0].resolution, process.sample.width) == ([512], 512)


@pytest.mark.parametrize(
    ("resolution", "words"),
    [
        (512, "datasets[0].resolution: 512 is far from 64"),
        (128, "some 4 times as long"),
        (32, "32 is far from 64"),
        (96, ""),
        (64, ""),
        (48, ""),
    ],
)
def test_a_resolution_far_from_the_models_own_is_mentioned(resolution, words):
    told = far_from_native(parse_training({**SHORT, "resolution": resolution}), 64)
    assert len(told) == bool(words)
    assert words in " ".join(told)


def test_the_size_of_previews_is_mentioned_if_there_are_any():
    config = parse_training(
        {**SHORT, "resolution": 64, "sample_size": 512, "sample_prompts": ["x"]}
    )
    told = far_from_native(config, 64)
    assert [text.split(":")[0] for text in told] == ["sample.width", "sample.height"]
    assert (
        far_from_native(parse_training({**SHORT, "resolution": 64, "sample_size": 512}), 64) == ()
    )


def test_the_embedded_base_models_own_size_is_64():
    engine = DiffusersEngine(device="cpu", threads=1, offline=True)
    assert engine.native_size(parse_training(SHORT)) == 64


def test_a_generation_of_ai_toolkits_form_leaves_the_size_to_the_base_model():
    text = """
job: generate
config:
  name: x
  process:
    - type: to_folder
      model: {name_or_path: emoji-base}
      generate: {prompts: [a fox], sampler: ddim%s}
"""
    request = parse_generation_text(text % "")
    assert (request.width, request.height) == (None, None)
    assert parse_generation_text(text % ", width: 65").width == 64
