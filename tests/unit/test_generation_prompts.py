import pytest
from typer.testing import CliRunner

from loradash.cli.app import app
from loradash.domain.generation import AdapterUse, GenerationRequest, parse_generation_text
from loradash.errors import InvalidAdapter, InvalidConfig
from loradash.services.generation.prompts import MAX_TOLD, with_prompts_read

ID = "train_01k9x3q4zt8m2v7c0hde"


def find(name):
    if name == "twice":
        raise InvalidAdapter("2 trained LoRAs are called 'twice'", remedy="Give the id of one.")
    return {"good": ID, "Good": ID}.get(name)


def read(*prompts, **fields):
    request = GenerationRequest(base_model="emoji-base", prompts=prompts, **fields)
    return with_prompts_read(request, find)


def test_a_prompt_without_anything_else_stays_as_it_is():
    request = GenerationRequest(base_model="emoji-base", prompts=("a  fox (red)", "b"), seed=1)
    assert with_prompts_read(request, find) == request


def test_an_adapter_that_is_named_in_the_prompt_is_used():
    request = read("a fox <lora:good:0.8> in snow")
    assert request.prompts == ("a fox in snow",)
    assert request.adapters == (AdapterUse(path=ID, weight=0.8),)
    assert request.warnings == ()


def test_the_text_that_we_write_into_images_draws_the_same_again():
    text = (
        "a fox <lora:good:0.8>\nNegative prompt: ugly\nSteps: 3, Sampler: dpm++_2m_karras, "
        "CFG scale: 2.5, Seed: 0, Size: 64x32, Model: emoji-base, Version: loradash 1"
    )
    request = read(text, steps=50, seed=9)
    own = request.settings_of(0)
    assert request.prompts == ("a fox",)
    assert request.adapters == (AdapterUse(path=ID, weight=0.8),)
    assert (own.steps, own.scheduler, own.guidance_scale) == (3, "dpm++_2m_karras", 2.5)
    assert (own.seed, own.width, own.height, own.negative_prompt) == (0, 64, 32, "ugly")
    assert request.warnings == ()


def test_an_adapter_of_the_request_is_meant_by_its_files_name():
    given = (AdapterUse(path="/x/style.safetensors", weight=1.0), AdapterUse(path=ID, weight=0.5))
    request = read("a <lora:Style:0.3> fox", adapters=given)
    assert [use.weight for use in request.adapters] == [0.3, 0.5]


def test_weights_that_differ_between_prompts_belong_to_each():
    request = read("a <lora:good:0.8>", "b", "c <lora:Good:-1>")
    assert request.adapters == (AdapterUse(path=ID, weight=0.0),)
    assert [one.adapter_weights for one in request.prompt_settings] == [(0.8,), (0.0,), (-1.0,)]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a <lora:unheard:0.8>", "<lora:unheard:0.8> is left out: no trained LoRA is called"),
        ("a <lora:twice:1>", "<lora:twice:1> is left out: 2 trained LoRAs are called 'twice'"),
        ("a <lora:good:much>", "its weight isn't a number from -10 to 10"),
        ("a <hypernet:x:1>", "hypernetworks can't be used"),
        ("a (red:1.5) fox BREAK b", "drawn as words: (red:1.5) (a weight), BREAK (a keyword)"),
        ("a --n ugly", "drawn as words: --n (an option); settings are fields of their own"),
    ],
)
def test_what_is_not_followed_is_told_with_its_prompt(prompt, words):
    request = read("fine", prompt)
    (warning,) = request.warnings
    assert warning.startswith("prompt 2: ")
    assert words in warning
    assert "<" not in request.prompts[1]


def test_negative_prompts_are_looked_at_too():
    request = read("a", negative_prompt="(bad:1.2) <lora:good:1>")
    assert request.negative_prompt == "(bad:1.2)"
    assert request.adapters == ()
    assert request.warnings == (
        "negative prompt: <lora:good:1> is left out of the negative prompt",
        "negative prompt: drawn as words: (bad:1.2) (a weight)",
    )


def test_warnings_of_many_prompts_are_counted_at_the_end():
    request = read(*["((x))"] * 200)
    assert len(request.warnings) == MAX_TOLD
    assert request.warnings[-1] == "and 151 more about prompts"


JOB = """
job: generate
config:
  name: gen
  process:
    - type: to_folder
      generate: {prompts: %s, width: 64, height: 64, sampler: lms}
      model: {name_or_path: emoji-base}
"""


def test_options_in_ai_toolkits_prompts_are_followed():
    request = parse_generation_text(JOB % '["a fox --n ugly --w 100 --seed 3", "a car"]')
    assert request.prompts == ("a fox", "a car")
    assert request.settings_of(0).negative_prompt == "ugly"
    assert (request.settings_of(0).width, request.settings_of(0).seed) == (96, 3)
    assert request.settings_of(1).seed is None
    assert request.warnings == (
        "prompts[0]: width 100 isn't a multiple of 8; 96 is used",
        "scheduler: 'lms' isn't there; euler, which comes nearest, is used",
    )


def test_options_that_cannot_be_read_are_refused_with_their_prompt():
    with pytest.raises(InvalidConfig) as caught:
        parse_generation_text(JOB % '["a", "b --w wide"]')
    assert caught.value.problems == ("prompts[1]: --w: 'wide' isn't a whole number",)


@pytest.mark.parametrize(
    "text", [JOB % "in/prompts.txt", "base_model: emoji-base\nprompts: in/prompts.txt"]
)
def test_a_file_of_prompts_is_read_by_commands_and_refused_in_requests(text):
    files = {"in/prompts.txt": "a red fox\na blue car --seed 4\n"}
    request = parse_generation_text(text, files.__getitem__)
    assert request.prompts == ("a red fox", "a blue car")
    assert request.settings_of(1).seed == 4
    with pytest.raises(InvalidConfig, match=r"in/prompts\.txt is a file"):
        parse_generation_text(text)


def test_one_prompt_of_our_own_form_needs_no_list():
    assert parse_generation_text("base_model: emoji-base\nprompts: a fox").prompts == ("a fox",)


def test_settings_for_another_number_of_prompts_are_refused():
    with pytest.raises(ValueError, match="1 prompt, but 2 prompt_settings"):
        GenerationRequest(base_model="x", prompts=("a",), prompt_settings=({}, {}))


def test_a_prompts_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "g.yaml").write_text("base_model: emoji-base\nprompts: missing.txt\n")
    result = CliRunner().invoke(app, ["generate", "g.yaml"])
    assert isinstance(result.exception, InvalidConfig)
    assert "prompts file missing.txt: No such file" in str(result.exception)


def test_a_prompts_file_is_found_beside_the_config_that_names_it(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbfa fox --s 0")
    (tmp_path / "g.yaml").write_text("base_model: emoji-base\nprompts: p.txt\n")
    result = CliRunner().invoke(app, ["generate", str(tmp_path / "g.yaml")])
    assert isinstance(result.exception, InvalidConfig)
    assert result.exception.problems[0].startswith("line 1: --s: ")


def test_prompts_and_a_file_of_prompts_are_not_mixed(tmp_path):
    result = CliRunner().invoke(app, ["generate", "-p", "a", "--prompts-file", "b.txt"])
    assert result.exit_code == 2
