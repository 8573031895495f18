import re

import pytest

from loradash import errors
from loradash.errors import InvalidConfig, LoradashError, OutOfMemory, by_code, error_told

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


def test_what_an_error_quotes_is_cut_in_its_middle_and_its_problems_are_counted():
    error = InvalidConfig("x" * 10**6 + "end", problems=["y" * 10**6] * 1000, remedy="z" * 10**6)
    assert len(str(error)) < 60_000
    assert len(error.message) <= errors.MAX_MESSAGE
    assert error.message.startswith("xxx")
    assert error.message.endswith("end")
    assert len(error.problems) == errors.MAX_PROBLEMS + 1
    assert max(map(len, error.problems)) <= errors.MAX_PROBLEM
    assert error.problems[-1] == "and 900 more"


def test_an_error_with_a_message_alone_is_one_line():
    assert str(OutOfMemory("the GPU's memory ran out")) == "the GPU's memory ran out"


@pytest.mark.parametrize(
    "error",
    [
        LoradashError("one"),
        LoradashError("one", remedy="do"),
        LoradashError("one", problems=["a: b", "c"], remedy="do"),
    ],
)
def test_an_error_is_the_same_after_its_text_was_sent(error):
    told = error_told(str(error))
    assert (told.message, told.problems, told.remedy) == (
        error.message, error.problems, error.remedy,
    )  # fmt: skip


def test_a_traceback_behind_an_error_is_kept():
    told = error_told("one\ndo\nTraceback:\n  File x\n")
    assert (told.remedy, told.problems) == ("do", ("Traceback:", "  File x"))
