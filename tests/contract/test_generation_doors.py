"""The same settings of a generation as a config, as a request and as options: equal outcomes."""

import pytest
from typer.testing import CliRunner

from loradash.cli import generate_command
from loradash.cli.app import app
from loradash.domain.generation import GenerationRequest, parse_generation_text
from loradash.domain.schema import validate
from loradash.domain.yaml_text import dump_mapping
from loradash.errors import LoradashError
from loradash.protocol.requests import parse_request

REFUSED = "refused"
LONG = "x" * 10_000

# What is given under the names of a request, and what is drawn.
INPUTS = {
    "a prompt": ({"prompt": "a cat"}, {"prompts": ("a cat",)}),
    "no words": ({"prompt": ""}, {"prompts": ("",)}),
    "white space": ({"prompt": "  "}, {"prompts": ("  ",)}),
    "a long prompt": ({"prompt": LONG}, {"prompts": (LONG,)}),
    "too long a prompt": ({"prompt": f"{LONG}x"}, REFUSED),
    "a negative prompt": ({"negative_prompt": LONG}, {"negative_prompt": LONG}),
    "too long a negative prompt": ({"negative_prompt": f"{LONG}x"}, REFUSED),
    "an adapter": ({"adapter": "a.safetensors"}, {"adapters": [("a.safetensors", 1.0)]}),
    "its weight": ({"adapter": "a.safetensors:0.5"}, {"adapters": [("a.safetensors", 0.5)]}),
    "of a training": ({"adapter": "train_1:-1"}, {"adapters": [("train_1", -1.0)]}),
    "colons in its path": ({"adapter": "/x:y/a.safetensors"},
                           {"adapters": [("/x:y/a.safetensors", 1.0)]}),
    "too large a weight": ({"adapter": "a.safetensors:11"}, REFUSED),
    "no adapter": ({"adapter": ":0.5"}, REFUSED),
    "a seed": ({"seed": 3}, {"seed": 3}),
    "a random seed": ({"seed": -1}, {"seed": None}),
    "a negative seed": ({"seed": -2}, REFUSED),
    "no images": ({"num_images": 0}, REFUSED),
    "too many images": ({"num_images": 1001}, REFUSED),
    "no steps": ({"steps": 0}, REFUSED),
    "guidance": ({"guidance_scale": 0}, {"guidance_scale": 0.0}),
    "too much guidance": ({"guidance_scale": 101}, REFUSED),
    "negative guidance": ({"guidance_scale": -1}, REFUSED),
    "a tiny picture": ({"width": 1}, REFUSED),
    "a huge picture": ({"height": 100_000}, REFUSED),
    "a scheduler": ({"scheduler": "ddim"}, {"scheduler": "ddim"}),
    "another program's scheduler": ({"scheduler": "Euler a"}, {"scheduler": "euler_a"}),
    "no scheduler": ({"scheduler": "nonsense"}, REFUSED),
}  # fmt: skip


def by_config(given):
    document = {"base_model": "emoji-base", **given, "prompts": [given["prompt"]]}
    if adapter := document.pop("adapter", None):
        document["adapters"] = [adapter]
    del document["prompt"]
    return parse_generation_text(dump_mapping(document))


def by_request(given, *, listed=False):
    adapter = given.get("adapter")
    fields = {name: value for name, value in given.items() if name != "adapter"}
    if adapter is not None:
        fields |= {"adapters": [adapter]} if listed else {"lora": adapter}
    request = parse_request({"type": "generate", "base_model": "emoji-base", **fields})
    return validate(GenerationRequest, request.fields(), "generate")


def by_listed_adapter(given):
    return by_request(given, listed=True)


@pytest.fixture
def by_options(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    sent = []

    def send(settings, merged, wanted):
        sent.append(validate(GenerationRequest, merged, "generation"))
        return 0

    monkeypatch.setattr(generate_command, "_elsewhere", send)

    def draw(given):
        options = [
            part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)
        ]
        result = CliRunner().invoke(
            app, ["generate", "--detach", "--base-model", "emoji-base", *map(str, options)]
        )
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0
        return sent.pop()

    return draw


@pytest.mark.parametrize("name", INPUTS)
def test_every_door_draws_and_refuses_the_same(name, by_options):
    given, expected = INPUTS[name]
    given = {"prompt": "a cat", **given}
    for door in (by_config, by_request, by_listed_adapter, by_options):
        try:
            request = door(given)
        except LoradashError as error:
            assert expected == REFUSED, (door, error)
            assert error.remedy
            continue
        assert expected != REFUSED, door
        found = {
            "prompts": request.prompts,
            "negative_prompt": request.negative_prompt,
            "adapters": [(use.path, use.weight) for use in request.adapters],
            "seed": request.seed,
            "guidance_scale": request.guidance_scale,
            "scheduler": request.scheduler,
        }
        assert {key: found[key] for key in expected} == expected, door


def test_an_empty_prompt_beside_a_config_is_none():
    request = parse_request({"type": "generate", "prompt": " ", "config": "prompts: [a cat]"})
    assert "prompts" not in request.fields()


def test_two_weights_for_one_adapter_are_refused():
    with pytest.raises(LoradashError, match="weight is given too"):
        validate(
            GenerationRequest,
            {"base_model": "x", "prompts": ["y"], "adapters": [{"path": "a:1", "weight": 0.5}]},
            "generate",
        )
