import json

import pytest

from loradash.domain.generation import parse_generation_text
from loradash.domain.schema import nearest, path_text
from loradash.domain.training_text import parse_training_text
from loradash.errors import InvalidConfig


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ((), "(top level)"),
        (("name",), "name"),
        (("config", "process", 0, "train", "lr"), "config.process[0].train.lr"),
        (("datasets", 1, "resolution", 2), "datasets[1].resolution[2]"),
    ],
)
def test_a_place_is_written_as_in_a_program(location, text):
    assert path_text(location) == text


def test_the_nearest_word_is_proposed_and_nothing_far_fetched():
    assert nearest("stesp", ["steps", "seed"]) == "; did you mean 'steps'?"
    assert nearest("entirely", ["steps", "seed"]) == ""


SHORT = "dataset: /photos\nbase_model: emoji-base\n"


@pytest.mark.parametrize(
    ("parse", "text", "key"),
    [
        (parse_training_text, SHORT + "steps: true", "steps"),
        (parse_training_text, SHORT + "alpha: true", "alpha"),
        (parse_training_text, SHORT + "min_snr_gamma: true", "min_snr_gamma"),
        (parse_generation_text, "base_model: x\nprompts: [cat]\nsteps: true", "steps"),
        (parse_generation_text, "base_model: x\nprompts: [cat]\nseed: true", "seed"),
        (
            parse_generation_text,
            "base_model: x\nprompts: [cat]\nadapters: [{path: a, weight: true}]",
            "adapters[0].weight",
        ),
    ],
)
def test_a_switch_is_no_number(parse, text, key):
    with pytest.raises(InvalidConfig) as caught:
        parse(text)
    assert caught.value.problems[0].startswith(f"{key}: ")
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lr_scheduler: cosin", "lr_scheduler: input should be 'constant'"),
        ("optimizer: magic", "optimizer: input should be 'adamw'"),
        ("sample_steps: 100000", "sample_steps: input should be less"),
        ("resolution: []", "resolution: must have at least 1 item"),
    ],
)
def test_a_problem_of_the_short_form_has_its_key(text, problem):
    with pytest.raises(InvalidConfig) as caught:
        parse_training_text(SHORT + text)
    assert [one[: len(problem)] for one in caught.value.problems] == [problem]


def test_a_path_that_was_given_stays_in_its_problem():
    with pytest.raises(InvalidConfig) as caught:
        parse_training_text(SHORT, {"train.lr_scheduler": "cosin"})
    assert caught.value.problems[0].startswith("config.process[0].train.lr_scheduler: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [("- a", "the document is a list,"), ("hello", "is a text,"), ("5", "is a single value,")],
)
def test_what_is_no_mapping_is_told_in_plain_words(text, words):
    with pytest.raises(InvalidConfig, match=words):
        parse_training_text(text)


def test_the_nearest_key_of_a_generation_is_proposed():
    with pytest.raises(InvalidConfig) as caught:
        parse_generation_text("base_model: x\nprompts: [cat]\nstep: 3")
    assert caught.value.problems == ("step: unknown key; did you mean 'steps'?",)


def test_too_many_entries_are_told_in_plain_words():
    with pytest.raises(InvalidConfig) as caught:
        parse_generation_text(json.dumps({"base_model": "x", "prompts": ["cat"] * 1001}))
    assert caught.value.problems == ("prompts: must have at most 1,000 items",)


def test_an_entry_that_must_be_a_mapping_says_so():
    job = {"job": "generate", "config": {"name": "x", "process": ["to_folder"]}}
    with pytest.raises(InvalidConfig) as caught:
        parse_generation_text(json.dumps(job))
    assert caught.value.problems == (
        "config.process[0]: must be a mapping of keys to values (got 'to_folder')",
    )


def test_a_switch_that_is_off_is_zero_and_a_switch_stays_one():
    process = parse_training_text(
        SHORT + "save_every: false\nmin_snr_gamma: false\ngradient_checkpointing: true"
    ).process
    assert (process.save.save_every, process.train.min_snr_gamma) == (0, None)
    assert process.train.gradient_checkpointing is True
