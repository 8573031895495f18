import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradash.domain.characters import find_unprintable
from loradash.domain.yaml_text import MAX_DEPTH, MAX_NODES, dump_mapping, load_mapping
from loradash.errors import InvalidConfig

TEXT = st.text().filter(lambda text: find_unprintable(text) is None)
# Values of these are names: a number or a null is read as the text that stands there.
NAMED = {"folder_path", "dataset_path", "dataset", "regularization", "name", "trigger_word"}
KEY = TEXT.filter(lambda key: key not in NAMED)
NESTED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEY, inner, max_size=4),
    max_leaves=15,
)


def refusal(text: str) -> InvalidConfig:
    with pytest.raises(InvalidConfig) as caught:
        load_mapping(text, "the config")
    assert caught.value.message.startswith("the config")
    assert caught.value.remedy
    return caught.value


@given(st.dictionaries(KEY, NESTED, max_size=5))
def test_what_is_dumped_is_loaded_again_as_it_was(data):
    assert load_mapping(dump_mapping(data)) == data


@pytest.mark.parametrize(
    "text", ["08", "1e4", "1e-4", "+08", ".5e3", "012", "1:30", "yes", "null", "\x85", "a\u2028b"]
)
def test_text_that_looks_like_a_value_stays_text_in_a_round_trip(text):
    assert load_mapping(dump_mapping({"name": text})) == {"name": text}


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("012", 12),
        ("08", 8),
        ("-3", -3),
        ("1:30", "1:30"),
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("5.", 5.0),
        (".5", 0.5),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("2024-01-02", "2024-01-02"),
        ("=", "="),
        (".inf", float("inf")),
        ("'012'", "012"),
    ],
)
def test_plain_scalars_mean_what_they_look_like(scalar, value):
    loaded = load_mapping(f"key: {scalar}")["key"]
    assert loaded == value
    assert type(loaded) is type(value)


def test_a_text_of_ten_megabytes_is_refused_fast_with_both_sizes():
    text = "key: " + "x" * 10_000_000
    started = time.perf_counter()
    error = refusal(text)
    assert time.perf_counter() - started < 0.5
    assert "10,000,005" in error.message
    assert "1,000,000" in error.message


def test_billion_laughs_are_refused_fast():
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    started = time.perf_counter()
    error = refusal("\n".join(lines))
    assert time.perf_counter() - started < 1
    assert "aliases" in error.message


def test_billion_laughs_through_merge_keys_are_refused_fast():
    lines = ["a0: &a0 {x: 1, y: 2, z: 3}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 30)]
    started = time.perf_counter()
    refusal("\n".join(lines))
    assert time.perf_counter() - started < 1


def test_aliases_of_a_long_text_count_with_its_length():
    """300 KB once and 3,000 aliases are 900 MB as soon as anybody writes or searches them."""
    refusal(f"text: &text {'x' * 300_000}\nlist: [{', '.join(['*text'] * 3000)}]")


def test_too_many_values_are_refused():
    assert f"{MAX_NODES:,}" in refusal(f"list: [{'1,' * (MAX_NODES + 1)}]").message


def test_moderate_aliases_are_expanded():
    assert load_mapping("a: &a [1, 2]\nb: *a\nc: [*a, *a]")["c"] == [[1, 2], [1, 2]]


def test_merge_keys_are_merged_and_the_own_keys_win():
    text = "base: &base {x: 1, y: 2}\nderived:\n  <<: *base\n  y: 3"
    assert load_mapping(text)["derived"] == {"x": 1, "y": 3}


@pytest.mark.parametrize("opening", ["[", "{a: "])
def test_deep_nesting_is_refused_with_its_line(opening):
    error = refusal("first: 1\nkey: " + opening * 5000)
    assert f"{MAX_DEPTH} levels" in error.message
    assert "line 2" in error.message


def test_nesting_up_to_the_limit_is_read():
    depth = MAX_DEPTH - 1
    value = load_mapping("key: " + "[" * depth + "]" * depth)["key"]
    for _ in range(depth - 1):
        (value,) = value
    assert value == []


def test_a_doubled_key_is_refused_with_its_place():
    error = refusal("steps: 1\nother: 2\nsteps: 3")
    assert "'steps'" in error.message
    assert "line 3, column 1" in error.message


def test_a_doubled_key_is_refused_in_nested_and_flow_mappings():
    assert "'a'" in refusal("outer: {list: [{a: 1, a: 2}]}").message


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}", "a: *later\nb: &later 1"])
def test_an_alias_inside_its_own_value_or_before_it_is_refused(text):
    assert "line 1" in refusal(text).message


def test_a_null_byte_is_refused_with_its_place():
    found = refusal("first: 1\nkey: \0value").message
    assert "line 2, column 6: the character U+0000 (a control character)" in found


@pytest.mark.parametrize(
    ("escape", "said"),
    [
        (r"\0", "U+0000 (a control character)"), (r"\x1b[2J", "U+001B"), (r"\e", "U+001B"),
        (r"\a", "U+0007"), (r"\b", "U+0008"), (r"\x7f", "U+007F"), (r"\u009b", "U+009B"),
        (r"\uD800", "U+D800 (half of a surrogate pair)"), (r"\uDC00\uD800", "U+DC00"),
        (r"\U0000DFFF", "U+DFFF"), (r"\uFFFE", "U+FFFE (not a character)"),
        (r"\U00110000", "beyond U+10FFFF"), (r"\UFFFFFFFF", "beyond U+10FFFF"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("text", ['a: 1\nb: "x%s"', 'a: 1\n"x%s": 1', 'a: 1\nb: ["%s"]'])
def test_an_escape_gives_no_character_that_could_not_stand_there(text, escape, said):
    found = refusal(text % escape).message
    assert "line 2, column" in found
    assert said in found


def test_json_in_yaml_may_write_emoji_as_surrogate_pairs_and_lines_as_escapes():
    assert load_mapping(r'{"a": "\uD83D\uDE00", "b": "x\ny\t\u00e9"}') == {
        "a": "😀",
        "b": "x\ny\té",
    }


@given(st.text(alphabet=r"\xuU0dD8efNLP_ \"\n", max_size=30))
def test_any_escapes_are_text_or_an_error_of_ours(text):
    try:
        value = load_mapping(f'a: "{text}"').get("a")
    except InvalidConfig:
        return
    assert not isinstance(value, str) or find_unprintable(value) is None


@pytest.mark.parametrize("character", ["\x07", "\x1b", "\ud800", "\ufffe"])
def test_characters_that_yaml_forbids_are_refused(character):
    refusal(f"key: a{character}b")


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "!!python/tuple [1, 2]",
        "!unknown 1",
        "!!int abc",
        "!!float abc",
        "!!bool abc",
        "!!timestamp abc",
        "!!timestamp 2024-99-99",
        "!!binary ä",
        "!!map [a, b]",
        "!!map abc",
        "!!seq {a: b}",
        "!!omap abc",
        "!!set [a]",
        "!!str {a: b}",
        "!!int [1]",
    ],
)
def test_tags_that_do_not_fit_their_value_are_refused(value):
    refusal(f"key: {value}")


@pytest.mark.parametrize("text", ["a: 1\n---\nb: 2", "a: 1\n...\n---\nb: 2", "---\na: 1\n---\n"])
def test_more_than_one_document_is_refused(text):
    assert "document" in refusal(text).message


@pytest.mark.parametrize(
    "text",
    [
        "[model]\nx = 1\n",
        "# mine\n\nnetwork_dim = 4\nseed = 1\n",
        "[[datasets]]\r\nresolution = 64",
    ],
)
def test_a_config_of_sd_scripts_in_toml_is_sent_to_its_conversion(text):
    assert "loradash convert-config" in refusal(text).remedy


@pytest.mark.parametrize("text", ["a: = b: c", "- a", "word", "# x = 1\n- y"])
def test_other_texts_are_not(text):
    assert "convert-config" not in refusal(text).remedy


@pytest.mark.parametrize(
    ("text", "kind"),
    [("", "empty"), ("# only a comment", "empty"), ("- a\n- b", "a list"), ("word", "a text")],
)
def test_a_document_that_is_not_a_mapping_is_refused_by_its_kind(text, kind):
    assert f"is {kind}" in refusal(text).message


@pytest.mark.parametrize("key", ["1", "true", "null", "1.5", "? [a]\n", "? {a: b}\n"])
def test_keys_must_be_text(key):
    refusal(f"outer:\n  {key}: value")


def test_a_syntax_error_names_line_and_column():
    assert "line 3, column 2" in refusal("a: 1\nb: [1, 2\nc: 3").message


def test_tabs_as_indentation_are_refused():
    assert "line 2" in refusal("a:\n\tb: 1").message


def test_a_number_of_more_than_100_digits_is_refused():
    assert "100 digits" in refusal(f"key: {'9' * 101}").message


def test_windows_line_ends_and_a_byte_order_mark_make_no_difference():
    assert load_mapping("\ufeffa: 1\r\nb:\r\n  - x\r\n") == {"a": 1, "b": ["x"]}


@given(st.text(alphabet="ab:-?[]{}&*!|>'\"%@`,#~<0123456789.eE+ \n\t", max_size=80))
def test_any_text_is_either_a_mapping_or_refused(text):
    try:
        assert isinstance(load_mapping(text), dict)
    except InvalidConfig as error:
        assert error.remedy


def test_a_megabyte_in_one_value_is_read_in_reasonable_time():
    started = time.perf_counter()
    assert len(load_mapping(f"key: {'x' * 900_000}")["key"]) == 900_000
    assert time.perf_counter() - started < 5
