import re

import pytest

from loradash import errors
from loradash.errors import InvalidConfig, LoradashError, OutOfMemory, by_code

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, LoradashError)
]


def test_codes_are_unique_and_stable_words():
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes) > 10
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_every_error_is_found_by_its_code(kind):
    assert by_code(kind.code) is kind


def test_an_unknown_code_is_a_plain_error():
    assert by_code("from_the_future") is LoradashError


def test_an_error_shows_its_message_all_problems_and_the_remedy():
    error = InvalidConfig("two problems", problems=["a: missing", "b: unknown"], remedy="Fix them.")
    assert str(error) == "two problems\n  - a: missing\n  - b: unknown\nFix them."


def test_an_error_with_a_message_alone_is_one_line():
    assert str(OutOfMemory("the GPU's memory ran out")) == "the GPU's memory ran out"
