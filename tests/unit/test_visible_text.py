import json

import pytest

from loradash.errors import LoradashError
from loradash.visible_text import ODD_CHARACTERS, is_plain, plain_json, visible, visible_lines
from tests.nasty_names import NASTY, NOT_UTF8, acts, harmful


def test_whatever_unicode_says_acts_on_its_surroundings_is_escaped():
    assert {code for code in range(0x110000) if acts(chr(code))} <= ODD_CHARACTERS


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"), ("\x9b31m", r"\x9b31m"), ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\u202egnp.exe", r"\u202egnp.exe"), (NOT_UTF8, r"\udc83\ cp932"),
        ("[b] ソ naïve 👨‍👩‍👧", "[b] ソ naïve 👨‍👩‍👧"),
    ],
)  # fmt: skip
def test_controls_are_shown_as_python_writes_them_and_letters_stay(text, shown):
    assert visible(text) == shown
    assert is_plain(text) == (text == shown)


def test_a_text_of_several_lines_keeps_its_lines():
    assert visible_lines("a\n\tb\x1b\r") == "a\n\tb\\x1b\\r"


@pytest.mark.parametrize("name", [*NASTY, NOT_UTF8])
def test_escaped_json_stands_for_the_same_text_and_can_be_shown(name):
    text = plain_json(json.dumps({"name": name}, ensure_ascii=False))
    assert json.loads(text) == {"name": name}
    assert not harmful(text)
    text.encode()


@pytest.mark.parametrize("name", [*NASTY, NOT_UTF8])
def test_an_error_quotes_a_name_without_harm(name):
    error = LoradashError(f"{name}: bad", problems=[f"{name}: worse"], remedy=f"Rename {name}.")
    assert not harmful(str(error))
    assert len(error.lines) == len(str(error).split("\n")) == 3
