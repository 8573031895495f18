import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradash.datasets.captions import decode_caption, shuffled, with_trigger


@pytest.mark.parametrize(
    ("text", "trigger", "result"),
    [
        ("a cat", "sks", "sks a cat"),
        ("a sks cat", "sks", "a sks cat"),
        ("sks", "sks", "sks"),
        ("", "sks", "sks"),
        ("a cat", "", "a cat"),
        ("a [trigger] cat", "sks", "a sks cat"),
        ("a [name] cat", "sks", "a sks cat"),
        ("[trigger], [name]", "sks", "sks, sks"),
        ("[trigger] cat", "", "cat"),
        ("portrait of sks, smiling", "sks", "portrait of sks, smiling"),
        ("a cat", "sks person", "sks person a cat"),
    ],
)
def test_a_caption_holds_the_trigger_word(text, trigger, result):
    assert with_trigger(text, trigger, add=True) == result


@pytest.mark.parametrize(("text", "trigger"), [("a woman asks", "man"), ("a dog asks", "sks")])
def test_a_trigger_word_inside_another_word_does_not_count(text, trigger):
    assert with_trigger(text, trigger, add=True) == f"{trigger} {text}"


def test_a_sample_prompt_is_filled_and_nothing_is_added():
    assert with_trigger("a cat", "sks", add=False) == "a cat"
    assert with_trigger("a [trigger] cat", "sks", add=False) == "a sks cat"


@given(st.lists(st.text("abc d", min_size=1).map(str.strip), min_size=1), st.integers(0, 12))
def test_shuffling_keeps_all_tags_and_the_first_ones_in_place(tags, keep):
    result = shuffled(",".join(tags), keep, random.Random(0)).split(", ")
    assert sorted(result) == sorted(tags)
    assert result[:keep] == tags[:keep]


def test_shuffling_depends_on_the_random_source_alone():
    caption = "a, b, c, d, e, f"
    results = {shuffled(caption, 1, random.Random(seed)) for seed in range(20)}
    assert shuffled(caption, 1, random.Random(3)) == shuffled(caption, 1, random.Random(3))
    assert len(results) > 10


@pytest.mark.parametrize("character", ["\x1b", "\x9b", "\x7f", "\b", "\ufffe"])
def test_a_caption_with_a_control_character_is_refused_with_its_line(character):
    with pytest.raises(ValueError, match=rf"line 2: the character U\+{ord(character):04X} .*"):
        decode_caption(f"a\nb{character}".encode())


def test_white_space_and_line_ends_of_all_kinds_are_fine_in_captions():
    text = "a\x0bb\x0cc\x85d\u2028e\r\nf\u200fg"
    assert decode_caption(text.encode()) == text
