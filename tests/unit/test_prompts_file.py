import pytest

from loradash.domain.prompts_file import is_prompts_file, read_prompts
from loradash.errors import InvalidConfig


def test_lines_are_prompts_with_their_options():
    read = read_prompts("p.txt", "\ufeffa fox --n ugly\n\n# a comment\n  a car --w 100\r\n")
    assert [one.text for one in read] == ["a fox", "a car"]
    assert read[0].settings.negative_prompt == "ugly"
    assert read[1].settings.width == 96
    assert read[1].notes == ("line 4: width 100 isn't a multiple of 8; 96 is used",)


def test_kohyas_toml_and_json_mean_the_same():
    toml = """
    [prompt]
    width = 64
    sample_steps = 5
    [[prompt.subset]]
    prompt = "a fox"
    scale = 3
    sample_sampler = "k_euler_a"
    [[prompt.subset]]
    prompt = "a car"
    seed = 1
    """
    json = """[{"prompt": "a fox", "width": 64, "sample_steps": 5, "scale": 3,
                "sample_sampler": "k_euler_a"},
               {"prompt": "a car", "width": 64, "sample_steps": 5, "seed": 1}]"""
    read = read_prompts("p.toml", toml)
    assert read == read_prompts("p.json", json)
    assert [one.text for one in read] == ["a fox", "a car"]
    assert (read[0].settings.scheduler, read[0].settings.guidance_scale) == ("euler_a", 3)
    assert (read[1].settings.steps, read[1].settings.seed) == (5, 1)


def test_each_line_that_cannot_be_read_is_named():
    with pytest.raises(InvalidConfig, match=r"p\.txt") as caught:
        read_prompts("p.txt", "a --w x\nb\nc --s 0")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["line 1", "line 3"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.txt", "\n# nothing\n", "there is no prompt in it"),
        ("p.json", "{", "p.json can't be read"),
        ("p.json", '{"prompt": "x"}', "it isn't a list of prompts"),
        ("p.json", "[1]", "entry 1: has no prompt"),
        ("p.json", '[{"prompt": "x", "width": "wide"}]', "entry 1: width: input should be"),
        ("p.toml", "[prompt]\nwidth = 1", "no [[prompt.subset]] tables"),
        ("p.toml", "= 1", "p.toml can't be read"),
    ],
)
def test_a_file_that_is_no_prompts_file_is_refused(name, text, words):
    with pytest.raises(InvalidConfig) as caught:
        read_prompts(name, text)
    assert words in str(caught.value)


def test_a_switch_is_no_value_of_a_prompt():
    with pytest.raises(InvalidConfig) as caught:
        read_prompts("p.json", '[{"prompt": "cat", "seed": true}]')
    assert caught.value.problems == ("entry 1: seed: must be a value, not true",)


def test_a_key_without_effect_is_told_with_the_nearest():
    (one,) = read_prompts("p.json", '[{"prompt": "x", "widht": 64, "enum": 1}]')
    assert one.notes[0] == "entry 1: widht has no effect here; did you mean 'width'?"


@pytest.mark.parametrize(
    ("text", "is_file"),
    [("prompts.txt", True), ("/a b/c.JSON", True), ("a fox", False), ("a\nb.txt", False)],
)
def test_a_text_that_names_a_file_is_told_from_a_prompt(text, is_file):
    assert is_prompts_file(text) is is_file
