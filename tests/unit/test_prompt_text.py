import pytest

from loradash.domain.parameters_text import read_parameters
from loradash.domain.prompt_text import PromptSettings, read_as_words, read_options, take_tags


def test_options_of_kohyas_scripts_and_ai_toolkit_are_read():
    read = read_options(
        "a fox, red --n ugly, bad --w 512 --h 768 --d 42 --s 20 --l 7.5 --ss dpmsolver++ --m -0.5"
    )
    assert read.text == "a fox, red"
    assert read.settings == PromptSettings(
        negative_prompt="ugly, bad", width=512, height=768, seed=42, steps=20, guidance_scale=7.5,
        scheduler="dpm++_2m", multiplier=-0.5,
    )  # fmt: skip
    assert read.notes == ()


def test_second_names_and_capitals_of_options_mean_the_same():
    read = read_options("x --seed 1 --cfg 2 --steps 3 --network_multiplier 4 --W 64")
    assert read.settings == PromptSettings(
        seed=1, guidance_scale=2, steps=3, multiplier=4, width=64
    )


def test_options_for_other_models_and_unknown_ones_are_left_out_and_told():
    read = read_options("x --ctrl_img /a b/c.png --w 64 --sparkle much")
    assert read.text == "x"
    assert read.notes == (
        "--ctrl_img has no effect here and is left out",
        "--sparkle has no effect here and is left out",
    )


def test_a_negative_prompt_without_text_leaves_that_of_all_prompts():
    read = read_options("a fox --n --w 64")
    assert read.settings == PromptSettings(width=64)
    assert read.notes == ("--n has no text and is left out",)


@pytest.mark.parametrize(
    "text", ["a man -- a legend", "well--known", "a -w 5", "--", "x --very good", "a --5 b", ""]
)
def test_dashes_of_prose_are_no_options(text):
    assert read_options(text) == (text, PromptSettings(), ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x --w wide", "--w: 'wide' isn't a whole number"),
        ("x --w", "--w: '' isn't a whole number"),
        ("x --w 512, red", "--w: '512, red' isn't a whole number"),
        ("x --s 0", "--s: input should be greater than or equal to 1"),
        ("x --l nan", "--l: input should be a finite number"),
        ("x --d -2", "--d: input should be greater than or equal to 0"),
        ("x --ss euler_x", "--ss: 'euler_x' isn't a scheduler; did you mean 'euler"),
    ],
)
def test_an_option_that_cannot_be_read_is_refused_with_its_name(text, words):
    with pytest.raises(ValueError, match="--") as caught:
        read_options(text)
    assert words in str(caught.value)


def test_all_options_that_cannot_be_read_are_told_at_once():
    with pytest.raises(ValueError, match=r"--w: .*; --s: "):
        read_options("x --w a --s b")


def test_a_random_seed_is_none_of_its_own_and_sides_are_rounded():
    read = read_options("x --seed -1 --w 100")
    assert read.settings == PromptSettings(width=96)
    assert read.notes == ("width 100 isn't a multiple of 8; 96 is used",)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(red:1.5) fox", "(red:1.5) (a weight)"),
        ("(red fox, tail:0.8)", "(red fox, tail:0.8) (a weight)"),
        ("((red)) fox", "((red)) (a weight)"),
        ("[red] fox", "[red] (a weight)"),
        ("[[red]] fox", "[[red]] (a weight)"),
        ("a fox BREAK a dog", "BREAK (a keyword)"),
        ("a fox AND a dog", "AND (a keyword)"),
        ("[fox|dog]", "[fox|dog] (words that take turns)"),
        ("[fox:dog:0.5]", "[fox:dog:0.5] (words from a step on)"),
        ("[fox:10]", "[fox:10] (words from a step on)"),
        ("[fox::10]", "[fox::10] (words from a step on)"),
        ("{fox|dog}", "{fox|dog} (variants)"),
        ("{2$$fox|dog}", "{2$$fox|dog} (variants)"),
        ("a __animal__", "__animal__ (a wildcard)"),
        ("a __beasts/animal__", "__beasts/animal__ (a wildcard)"),
        ("embedding:easynegative", "embedding:easynegative (an embedding)"),
        ("a fox --n ugly", "--n (an option)"),
        ("a fox \u2014w 512", "\u2014w (an option)"),
    ],
)
def test_what_other_programs_would_follow_is_named(text, found):
    assert read_as_words(text) == [found]


@pytest.mark.parametrize(
    "text",
    [
        "a dog (golden retriever) in the snow",
        "hatsune miku (vocaloid), looking at viewer, 1girl",
        "a man (left) and a woman (right)",
        "wide shot (16:9), at night (22:30), chapter (3:16)",
        "portrait of [trigger], [name], smiling",
        "a neon sign that says \"[OPEN]\", rain",
        "a list with items [1], [2] and [...]",
        r"naruto \(series\), sharingan",
        "CATS AND DOGS, a poster in bold letters",
        "rock and roll, break dance, a broken window",
        "smiling :) with friends (: and a {curly} brace",
        "a photo of a man -- a legend -- walking his dog",
        "snake_case_name on a whiteboard, 50% off, #1, $5, a/b, <3",
        "Mercedes-Benz 300 SL, f/1.8, 85mm, ISO 100; 8k!",
        "a fox \u2014 a legend", "a fox \u2014a legend", "a fox\u2014n", "pages 3\u20135",
        "日本の庭園、桜", "кот (рыжий) на крыше", "",
    ],
)  # fmt: skip
def test_ordinary_prompts_give_no_alarm(text):
    assert read_as_words(text) == []
    assert take_tags(text) == (text, ())


def test_adapter_tags_are_taken_out_of_a_prompt():
    text, tags = take_tags(
        "a fox <lora:good one:0.8>, snow <LoRA:b> <lora:c:much> <lora:d:11> <lora:e:5e-1>"
    )
    assert text == "a fox , snow"
    assert [(tag.name, tag.weight) for tag in tags] == [
        ("good one", 0.8), ("b", 1.0), ("c", None), ("d", None), ("e", 0.5)
    ]  # fmt: skip


def test_the_parameters_of_an_image_are_read_back():
    read = read_parameters(
        "a fox, <lora:good:0.8>\nby night\nNegative prompt: ugly\nbad\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 5, "
        'Size: 64x100, Model hash: ab, Model: m, Clip skip: 2, Lora hashes: "a: b, c: d", '
        "Version: v1"
    )
    assert read is not None
    assert read.text == "a fox, <lora:good:0.8>\nby night"
    assert read.settings == PromptSettings(
        negative_prompt="ugly\nbad", steps=20, scheduler="dpm++_2m_karras", guidance_scale=7.5,
        seed=5, width=64, height=96,
    )  # fmt: skip
    assert read.notes == (
        "clip skip 2 isn't followed", "height 100 isn't a multiple of 8; 96 is used"
    )  # fmt: skip


@pytest.mark.parametrize(
    "text", ["a fox", "", "Steps: 3 of them", "a fox\nSteps: 20, please", "Steps: up, Seed: down"]
)
def test_a_prompt_is_not_taken_for_parameters(text):
    assert read_parameters(text) is None
