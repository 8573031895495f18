import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradash.telemetry.masking import MASK, cleaned, is_secret_name, without_secrets


@pytest.mark.parametrize(
    "name",
    [
        "token", "lease_token", "HF_TOKEN", "accessToken", "secret", "client_secret", "password",
        "db_passwd", "api_key", "apiKey", "X-Api-Key", "Authorization", "proxy-authorization",
        "AWS_REGION", "aws_access_key_id", "s3_access_key", "credentials", "Set-Cookie",
    ],
)  # fmt: skip
def test_these_names_are_secret(name):
    assert is_secret_name(name)
    assert cleaned(name, "value") == MASK


@pytest.mark.parametrize(
    "name", ["event", "process_id", "tokens", "token_count", "tokenizer", "key", "path", "laws_x"]
)
def test_these_names_are_not_secret(name):
    assert not is_secret_name(name)
    assert cleaned(name, "value") == "value"


@pytest.mark.parametrize("value", ["abc", 12345, 1.5, ["abc"], {"a": "abc"}, b"abc", Path("abc")])
def test_a_secret_of_any_kind_is_masked(value):
    assert cleaned("token", value) == MASK


@pytest.mark.parametrize("value", [None, "", True])
def test_it_shows_whether_a_secret_is_set(value):
    assert cleaned("token", value) == value


def test_secrets_deep_inside_are_masked():
    value = {"headers": [{"Authorization": "Bearer abcdefgh", "Accept": "*/*"}]}
    assert cleaned("request", value) == {"headers": [{"Authorization": MASK, "Accept": "*/*"}]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET /events?token=abc&page=2", f"GET /events?token={MASK}&page=2"),
        ("https://s3/x?X-Amz-Signature=ab12&a=b", f"https://s3/x?X-Amz-Signature={MASK}&a=b"),
        ("Authorization: Bearer abc.def-123", f"Authorization: Bearer {MASK}"),
        ("postgresql://me:pa55@db/x", f"postgresql://me:{MASK}@db/x"),
        ("nothing to hide at 10:30 in http://host:80/x", None),
        ("the bearer of news", None),
    ],
)
def test_secrets_within_texts_are_masked(text, expected):
    assert without_secrets(text) == (expected or text)


def test_a_long_text_is_cut_and_says_how_long_it_was():
    text = cleaned("text", "x" * 5_000)
    assert text == "x" * 2_000 + "… (5000 characters)"
    assert cleaned("text", "x" * 2_000) == "x" * 2_000


def test_a_secret_that_the_cut_goes_through_is_masked():
    text = without_secrets("x" * 1_985 + "token=" + "abc" * 100)
    assert "abc" not in text


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_json_does_not_know_become_texts(number):
    assert cleaned("loss", number) == str(number)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | st.integers() | st.none(), inner)
        | st.sets(st.integers() | st.text())
    ),
)


@given(anything)
def test_whatever_comes_becomes_json(value):
    json.dumps(cleaned("value", value), allow_nan=False)


def test_a_structure_that_contains_itself_comes_to_an_end():
    value: list[object] = []
    value.append(value)
    assert len(str(cleaned("value", value))) < 3_000
