from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from loradash.domain.generation import (
    MAX_IMAGES,
    GenerationRequest,
    image_name,
    parse_generation_text,
)
from loradash.errors import InvalidAdapter, InvalidConfig, LoradashError
from loradash.services.generation.service import parse_adapter_use

TEMPLATE = Path(__file__).parents[1] / "data" / "generation_flux.yaml"
OWN = {"base_model": "emoji-base", "prompts": ["a cat"]}


def parse(**fields: Any) -> GenerationRequest:
    return parse_generation_text(yaml.safe_dump({**OWN, **fields}))


def ai_toolkit(generate: dict[str, Any] | None = None, model: dict[str, Any] | None = None) -> str:
    return yaml.safe_dump(
        {
            "job": "generate",
            "config": {
                "name": "mine",
                "process": [
                    {
                        "type": "to_folder",
                        "output_folder": "out",
                        "generate": {"prompts": ["a cat"], **(generate or {})},
                        "model": {"name_or_path": "emoji-base", **(model or {})},
                    }
                ],
            },
        }
    )


def refusal(text: str) -> str:
    with pytest.raises(InvalidConfig) as caught:
        parse_generation_text(text)
    assert caught.value.remedy
    return str(caught.value)


def test_the_published_template_is_accepted():
    request = parse_generation_text(TEMPLATE.read_text(encoding="utf-8"))
    assert request.name == "flux_gen"
    assert request.base_model == "/workspace/models/FLUX.1-dev"
    assert len(request.prompts) == 2
    assert (request.width, request.height) == (896, 896)
    assert (request.guidance_scale, request.steps) == (2, 20)
    (adapter,) = request.adapters
    assert adapter.path.endswith("my_lora_v1/my_lora_v1.safetensors")
    assert adapter.weight == 1.0
    assert request.seed is None
    assert request.scheduler == "default"


def test_both_forms_mean_the_same_request():
    generate = {
        "width": 64, "height": 96, "neg": "blur", "seed": 5, "guidance_scale": 3, "sample_steps": 4,
        "sampler": "ddim", "num_repeats": 2,
    }  # fmt: skip
    model = {"lora_path": "a.safetensors", "lora_scale": 0.5}
    assert parse_generation_text(ai_toolkit(generate, model)) == parse(
        name="mine", width=64, height=96, negative_prompt="blur", seed=5, guidance_scale=3,
        steps=4, scheduler="ddim", num_images=2,
        adapters=[{"path": "a.safetensors", "weight": 0.5}],
    )  # fmt: skip


def test_a_single_prompt_of_ai_toolkit_may_be_plain_text():
    assert parse_generation_text(ai_toolkit({"prompts": "a dog"})).prompts == ("a dog",)


@pytest.mark.parametrize(("seed", "meaning"), [(-1, None), (0, 0), (7, 7)])
def test_seed_minus_one_of_ai_toolkit_means_a_random_seed(seed, meaning):
    assert parse_generation_text(ai_toolkit({"seed": seed})).seed == meaning


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"prompts": []}, "prompts"),
        ({"prompts": ["x"] * (MAX_IMAGES + 1)}, "prompts"),
        ({"prompts": 5}, "prompts"),
        ({"prompts": ["x" * 10_001]}, "prompts[0]"),
        ({"num_images": 0}, "num_images"),
        ({"num_images": MAX_IMAGES + 1}, "num_images"),
        ({"seed": -2}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "steps"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"width": 4}, "width"),
        ({"height": 10_000}, "height"),
        ({"scheduler": "magic"}, "scheduler"),
        ({"precision": "int8"}, "precision"),
        ({"name": "../x"}, "name"),
        ({"base_model": ""}, "base_model"),
        ({"adapters": [{"path": "a", "weight": 11}]}, "adapters[0].weight"),
        ({"adapters": [{"path": "a", "weight": float("nan")}]}, "adapters[0].weight"),
        ({"adapters": [{"weight": 1}]}, "adapters[0].path: missing"),
        ({"adapters": [{"path": "a"}] * 17}, "adapters"),
        ({"stepz": 5}, "stepz: unknown key"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_path(fields, path):
    assert f"- {path}" in refusal(yaml.safe_dump({**OWN, **fields}))


def test_prompts_times_images_are_limited():
    assert parse(prompts=["x"] * 100, num_images=10).num_images == 10
    assert "100 prompts x 11 images" in refusal(
        yaml.safe_dump({**OWN, "prompts": ["x"] * 100, "num_images": 11})
    )


@pytest.mark.parametrize(
    ("generate", "words"),
    [
        ({"sample_stepz": 1}, "sample_stepz: unknown key; did you mean 'sample_steps'?"),
        ({"ext": "jpg"}, "generate.ext"),
        ({"seed": -2}, "generate.seed"),
        ({"seed": 2**70}, "seed"),
        ({"prompts": []}, "generate.prompts"),
    ],
)
def test_problems_of_the_ai_toolkit_form_are_named_with_their_path(generate, words):
    assert words in refusal(ai_toolkit(generate))


@pytest.mark.parametrize(
    "text",
    [yaml.safe_dump({**OWN, "prompts": ["${HOME}"]}), ai_toolkit({"prompts": ["x", "${HOME}"]})],
)
def test_a_reference_to_the_environment_is_refused_with_its_place(text):
    assert "prompts[" in refusal(text)


def test_a_training_config_is_sent_to_the_right_command():
    assert "loradash train" in refusal("job: extension\nconfig: {}")


def test_a_scheduler_is_known_by_the_names_of_other_programs():
    assert parse(scheduler="DPM++ 2M Karras").scheduler == "dpm++_2m_karras"
    assert parse_generation_text(ai_toolkit({"sampler": "k_dpmsolver++"})).scheduler == (
        "dpm++_2m_karras"
    )


def test_an_unheard_of_scheduler_is_refused_with_the_nearest():
    text = refusal(yaml.safe_dump({**OWN, "scheduler": "dpm++_2m_karas"}))
    assert "did you mean 'dpm++_2m_karras'" in text
    assert "did you mean 'heun'" in refusal(ai_toolkit({"sampler": "heum"}))


def test_a_side_that_is_no_multiple_of_8_is_refused_with_the_two_nearest():
    text = refusal(yaml.safe_dump({**OWN, "width": 65, "height": 33}))
    assert "width: isn't a multiple of 8: give 64 or 72" in text
    assert "height: isn't a multiple of 8: give 32 or 40" in text


@pytest.mark.parametrize(("given", "drawn"), [(512, 512), (100, 96), (60, 64), (20, 64), (8, 8)])
def test_a_side_in_ai_toolkits_job_is_rounded_as_there(given, drawn):
    assert parse_generation_text(ai_toolkit({"width": given})).width == drawn


def test_image_names_stay_in_their_folder_and_sort_by_number():
    assert image_name("cat", 7) == "cat_0007.png"
    assert image_name("../../cat", 7) == "cat_0007.png"


@given(
    st.dictionaries(
        st.sampled_from([*GenerationRequest.model_fields, "job", "config"]) | st.text(max_size=4),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
        max_size=5,
    )
)
def test_arbitrary_data_is_a_request_or_an_invalid_config(fields):
    try:
        parse_generation_text(yaml.safe_dump({**OWN, **fields}))
    except InvalidConfig as error:
        assert str(error)


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        ("/x/y:z/a.safetensors", "/x/y:z/a.safetensors", 1.0),
        ("/x/y:z/a.safetensors:2", "/x/y:z/a.safetensors", 2.0),
        ("C:\\loras\\a.safetensors", "C:\\loras\\a.safetensors", 1.0),
        ("C:\\loras\\a.safetensors:0.75", "C:\\loras\\a.safetensors", 0.75),
        ("C:/loras/a.safetensors:10", "C:/loras/a.safetensors", 10.0),
        ("train_01k9x3q4zt8m2v7c0hde:0", "train_01k9x3q4zt8m2v7c0hde", 0.0),
        ("a b.safetensors:0.5", "a b.safetensors", 0.5),
        ("a.safetensors:.8", "a.safetensors", 0.8),
        ("a.safetensors:+1.", "a.safetensors", 1.0),
        ("a.safetensors:5E-1", "a.safetensors", 0.5),
        ("A.SAFETENSORS:.8", "A.SAFETENSORS", 0.8),
        ("my:1st.safetensors", "my:1st.safetensors", 1.0),
        ("s3://ours/results/a.safetensors", "s3://ours/results/a.safetensors", 1.0),
    ],
)
def test_an_adapter_is_a_reference_with_an_optional_weight(text, path, weight):
    use = parse_adapter_use(text)
    assert (use.path, use.weight) == (path, weight)


@pytest.mark.parametrize("text", ["a.safetensors:11", "a.safetensors:-10.5", "a:99999"])
def test_an_adapter_weight_out_of_range_is_refused(text):
    with pytest.raises(InvalidAdapter, match="between -10 and 10"):
        parse_adapter_use(text)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("a.safetensors:0,8", "write 0.8 with a point"),
        ("cat:,8", "write .8 with a point"),
        ("a.safetensors:", "give a number"),
        ("a.safetensors:strong", "give a number"),
        ("a.safetensors:80%", "give a number"),
        ("a.safetensors:1e", "give a number"),
        ("cat:nan", "give a number"),
        ("cat:-inf", "give a number"),
        ("a.safetensors:0.8.1", "give a number"),
    ],
)
def test_an_adapter_weight_that_is_no_number_is_told_as_a_weight(text, remedy):
    with pytest.raises(InvalidAdapter, match="isn't a number") as caught:
        parse_adapter_use(text)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n", "a\nb", "x" * 5000])
def test_a_text_that_is_no_reference_is_refused(text):
    with pytest.raises(LoradashError) as caught:
        parse_adapter_use(text)
    assert caught.value.remedy
