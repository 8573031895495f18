import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradash.telemetry.masking import MASK, cleaned, is_secret_name, masked, without_secrets


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
        ("{'api_key': 'abcdef', 'a': 1}", f"{{'api_key': '{MASK}', 'a': 1}}"),
        ('{"api_key": "ab cd", "a": 1}', f'{{"api_key": "{MASK}", "a": 1}}'),
        ('{"apiKey":"abc"}', f'{{"apiKey":"{MASK}"}}'),
        ("x-api-key: abc123", f"x-api-key: {MASK}"),
        (r'"{\"token\": \"abc\"}"', rf'"{{\"token\": \"{MASK}\"}}"'),
        ("password: hunter2", f"password: {MASK}"),
        ("password: geheim\nname: me", f"password: {MASK}\nname: me"),
        ("Password = geheim", f"Password = {MASK}"),
        ("db_passwd: 1234, port: 5432", f"db_passwd: {MASK}, port: 5432"),
        ("AWS_SECRET_ACCESS_KEY=ab/c+d", f"AWS_SECRET_ACCESS_KEY={MASK}"),
        ("export AWS_SESSION_TOKEN='ab/c'", f"export AWS_SESSION_TOKEN='{MASK}'"),
        ("Authorization: Basic dXNlcjpwYXNz", f"Authorization: Basic {MASK}"),
        ("authorization: basic YTpi", f"authorization: basic {MASK}"),
        ("Authorization: rpa_0", f"Authorization: {MASK}"),
        ("key rpa_ABCDEFGH12345678ABCDEFGH refused", f"key {MASK} refused"),
        ("hf_abcdefghijABCDEFGHIJ0123456789abcd", MASK),
        ("id AKIAIOSFODNN7EXAMPLE, ASIAIOSFODNN7EXAMPLE", f"id {MASK}, {MASK}"),
        (
            "https://hf_abcdefghijABCDEFGHIJ012345@huggingface.co/x",
            f"https://{MASK}@huggingface.co/x",
        ),
        ("ghp_abcdefghijABCDEFGHIJ0123456789", MASK),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmN", MASK),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIB\nAAAA\n-----END RSA PRIVATE KEY-----", MASK),
        ("password: correct horse battery", f"password: {MASK}"),
        ("me: x\n  db_password: my old dog\nport: 1", f"me: x\n  db_password: {MASK}\nport: 1"),
        ("- passphrase: Tor zur Welt, oder so", f"- passphrase: {MASK}"),
        ("password: must be longer than 3", None),
        ("  - secret: the field is required", None),
        ("a sticky note with a password on it, photo", None),
        ("a door, password: please speak friend and enter", None),
        ("a cat with the secret: she can fly", None),
        ("api_key: missing", None),
        ("model.hf_token: unknown key; did you mean model.name_or_path?", None),
        ("S3_BUCKET is set, but AWS_SECRET_ACCESS_KEY is missing", None),
        ("token: 77 of 77 tokens: 12", None),
        ("the basic training of a basic Trainer", None),
        ("hf_transfer and hf_hub_download, rpa_x", None),
        ("sk-learn, task-oriented, AKIA, a tokenizer: CLIP", None),
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


@pytest.mark.parametrize(
    "piece", ["token", "password: ", "a" * 50, "'", "\\", "://", "eyJ", "-----BEGIN "]
)
def test_long_texts_take_no_time(piece):
    """Engines print what they like; a search that goes back and forth would stand still here."""
    text = piece * (300_000 // len(piece))
    began_s = time.process_time()
    masked(text)
    assert time.process_time() - began_s < 10
