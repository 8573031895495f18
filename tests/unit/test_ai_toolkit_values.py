"""Values that ai-toolkit takes: what each means there is what it means here."""

import copy
import json
from typing import Any

import pytest

from loradash.cli.train_command import read_config
from loradash.domain.generation import GenerationRequest, parse_generation_text
from loradash.domain.random_seeds import with_seeds_drawn
from loradash.domain.training_config import TrainingConfig
from loradash.domain.training_text import parse_training, parse_training_text, training_text
from loradash.engines.diffusers.engine import DiffusersEngine
from loradash.engines.diffusers.support import check
from loradash.engines.scripted.engine import ScriptedEngine
from loradash.errors import InvalidConfig
from tests.unit.test_training_config import full

NULLABLE = [
    "meta", "config.process.0.save", "config.process.0.sample", "config.process.0.logging",
    "config.process.0.name", "config.process.0.trigger_word", "config.process.0.training_seed",
    "config.process.0.train.ema_config", "config.process.0.train.optimizer_params",
    "config.process.0.train.lr_scheduler_params", "config.process.0.train.steps",
    "config.process.0.train.min_snr_gamma", "config.process.0.train.max_denoising_steps",
    "config.process.0.train.lr_scheduler", "config.process.0.train.unet_lr",
    "config.process.0.network.conv", "config.process.0.network.dropout",
    "config.process.0.network.network_kwargs", "config.process.0.network.pretrained_lora_path",
    "config.process.0.datasets.0.default_caption", "config.process.0.datasets.0.caption_ext",
    "config.process.0.datasets.0.resolution", "config.process.0.datasets.0.mask_path",
    "config.process.0.save.save_every", "config.process.0.save.push_to_hub",
    "config.process.0.sample.prompts", "config.process.0.sample.samples",
    "config.process.0.sample.seed", "config.process.0.sample.neg",
    "config.process.0.model.arch", "config.process.0.model.is_v_pred",
]  # fmt: skip


def with_value(path: str, value: Any) -> dict[str, Any]:
    """A small config with this value at a dotted path."""
    document = copy.deepcopy(full())
    target: Any = document
    *parents, last = path.split(".")
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target.setdefault(part, {})
    target[last] = value
    return document


@pytest.mark.parametrize("path", NULLABLE)
def test_null_means_that_a_key_is_not_given(path):
    given, missing = parse_training(with_value(path, None)), parse_training(full())
    plain = [config.model_dump(exclude_unset=False) for config in (given, missing)]
    assert _without_nulls(plain[0]) == _without_nulls(plain[1])
    assert parse_training_text(training_text(given)) == given


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", ["config.process.0.model.name_or_path", "config.name"])
def test_null_for_what_must_be_given_is_missing(path):
    with pytest.raises(InvalidConfig) as caught:
        parse_training(with_value(path, None))
    assert caught.value.problems[0].endswith(": missing")


VALUES: list[tuple[dict[str, Any], str, Any]] = [
    ({"sample": {"sample_every": 0}}, "sample.sample_every", 0),
    ({"save": {"save_every": 0}}, "save.save_every", 0),
    ({"save": {"max_step_saves_to_keep": "4"}}, "save.max_step_saves_to_keep", 4),
    ({"training_seed": -1}, "training_seed", -1),
    ({"sample": {"seed": -1}}, "sample.seed", -1),
    ({"train": {"max_denoising_steps": 1000}}, "train.max_denoising_steps", 999),
    ({"train": {"max_denoising_steps": "1000"}}, "train.max_denoising_steps", 999),
    ({"train": {"steps": 3000.0}}, "train.steps", 3000),
    ({"train": {"steps": "3000"}}, "train.steps", 3000),
    ({"train": {"lr": "1e-4"}}, "train.lr", 1e-4),
    ({"train": {"lr": "0.0001"}}, "train.lr", 1e-4),
    ({"train": {"batch_size": "2"}}, "train.batch_size", 2),
    ({"train": {"min_snr_gamma": 0}}, "train.min_snr_gamma", None),
    ({"train": {"snr_gamma": "0.0"}}, "train.snr_gamma", None),
    ({"train": {"noise_scheduler": "euler"}}, "train.noise_scheduler", "euler"),
    ({"train": {"noise_scheduler": "Euler_A"}}, "train.noise_scheduler", "euler_a"),
    ({"train": {"noise_scheduler": "lms"}}, "train.noise_scheduler", "lms"),
    ({"train": {"dtype": "BF16"}}, "train.dtype", "bf16"),
    ({"train": {"dtype": "single"}}, "train.dtype", "fp32"),
    ({"train": {"dtype": "torch.bfloat16"}}, "train.dtype", "bf16"),
    ({"train": {"ema_config": {"use_ema": False, "ema_decay": 0}}}, "train.ema_config.use_ema", 0),
    ({"train": {"ema_config": False}}, "train.ema_config.use_ema", False),
    ({"train": {"lr_scheduler": "Cosine"}}, "train.lr_scheduler", "cosine"),
    ({"train": {"optimizer": "AdamW8bit"}}, "train.optimizer", "adamw8bit"),
    ({"train": {"optimizer": "adamw8"}}, "train.optimizer", "adamw8bit"),
    ({"train": {"optimizer": "adam8"}}, "train.optimizer", "adam8bit"),
    ({"train": {"optimizer": "Prodigy"}}, "train.optimizer", "prodigy"),
    ({"train": {"optimizer": "prodigy", "lr": 1e-4}}, "train.unet_rate", 1.0),
    ({"train": {"optimizer": "prodigy", "lr": 0.5}}, "train.unet_rate", 0.5),
    ({"train": {"optimizer": "adamw", "lr": 1e-4}}, "train.unet_rate", 1e-4),
    ({"train": {"optimizer": "lion", "unet_lr": 1e-5}}, "train.unet_rate", 1e-5),
    (
        {"train": {"optimizer": "adafactor", "optimizer_params": {"eps": [1e-30, 1e-3]}}},
        "train.optimizer_params.eps",
        (1e-30, 1e-3),
    ),
    ({"save": {"dtype": "float32"}}, "save.dtype", "fp32"),
    ({"network": {"linear": "16"}}, "network.linear", 16),
    ({"network": {"linear": 8, "linear_alpha": 0}}, "network.linear_alpha", 8),
    ({"network": {"linear": 8, "linear_alpha": None}}, "network.linear_alpha", 8),
    ({"network": {"rank": 8, "alpha": None}}, "network.linear_alpha", 8),
    ({"network": {"rank": None, "linear": 8}}, "network.linear", 8),
    ({"network": {"linear": 8}}, "network.linear_alpha", 1.0),
    ({"network": {"conv": 0, "conv_alpha": 0}}, "network.conv", None),
    ({"network": {"type": "LoRA"}}, "network.type", "lora"),
    ({"network": {"type": "locon", "conv": 4}}, "network.type", "lora"),
    ({"sample": {"format": ".JPEG"}}, "sample.format", "jpg"),
    ({"sample": {"format": "PNG"}}, "sample.format", "png"),
    ({"sample": {"neg": False}}, "sample.neg", ""),
    ({"datasets": [{"folder_path": "a", "resolution": "512"}]}, "datasets.0.resolution", [512]),
    ({"datasets": [{"folder_path": "a", "resolution": ["64"]}]}, "datasets.0.resolution", [64]),
    ({"datasets": [{"folder_path": "a", "caption_ext": ""}]}, "datasets.0.caption_ext", "txt"),
    (
        {"datasets": [{"folder_path": "a", "caption_type": ".caption", "caption_ext": "txt"}]},
        "datasets.0.caption_suffix",
        ".caption",
    ),
    ({"network": {"network_kwargs": {"varbose": True}}}, "network.linear", 4),
    (
        {"datasets": [{"folder_path": "old", "dataset_path": "new"}]},
        "datasets.0.folder_path",
        "new",
    ),
    (
        {"datasets": [{"folder_path": "old", "dataset_path": None}]},
        "datasets.0.folder_path",
        "old",
    ),
]


@pytest.mark.parametrize(("sections", "path", "value"), VALUES)
def test_a_value_means_what_it_means_in_ai_toolkit(sections, path, value):
    config = parse_training(full(**sections))
    found: Any = config.process
    for part in path.split("."):
        found = found[int(part)] if isinstance(found, list) else getattr(found, part)
    assert found == value
    assert parse_training_text(training_text(config)) == config


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"save": {"push_to_hub": True}}, "object store"),
        ({"datasets": [{"folder_path": "a", "caption_ext": ".json"}]}, "JSON"),
    ],
)
def test_a_value_that_can_not_be_followed_is_refused_with_the_reason(sections, words):
    with pytest.raises(InvalidConfig) as caught:
        parse_training(full(**sections))
    (problem,) = caught.value.problems
    assert words in problem
    assert "input should be" not in problem


@pytest.mark.parametrize(
    ("sections", "place", "words"),
    [
        ({"network": {"type": "lokr"}}, "network.type", "lokr"),
        ({"network": {"type": "DoRA"}}, "network.type", "dora"),
        ({"train": {"loss_type": "wavelet"}}, "train.loss_type", "wavelet"),
        ({"train": {"noise_scheduler": "mean_flow"}}, "train.noise_scheduler", "mean_flow"),
        ({"train": {"optimizer": "automagic"}}, "train.optimizer", "ai-toolkit's own"),
        ({"train": {"optimizer": "DAdaptationLion"}}, "train.optimizer", "use prodigy"),
        ({"train": {"optimizer": "ademamix8bit"}}, "train.optimizer", "use adamw"),
        (
            {"train": {"optimizer": "adafactor", "optimizer_params": {"relative_step": True}}},
            "train.optimizer_params.relative_step",
            "give the rate in lr",
        ),
    ],
)
def test_what_other_trainers_have_reaches_the_engine_and_the_built_in_one_refuses_it(
    sections, place, words
):
    config = parse_training(full(**sections))
    assert parse_training_text(training_text(config)) == config
    assert ScriptedEngine().check_training(config)
    with pytest.raises(InvalidConfig, match="settings that this engine can't follow") as caught:
        check(config)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{place}: ")
    assert words in problem


def test_it_is_told_in_one_round_with_a_base_model_that_is_not_there():
    config = parse_training(full(network={"type": "lokr"}, model={"name_or_path": "/missing"}))
    engine = DiffusersEngine(device="cpu", threads=1, offline=True)
    with pytest.raises(InvalidConfig) as caught:
        engine.check_training(config)
    problems = caught.value.problems
    assert [sum(words in one for one in problems) for words in ("/missing", "lokr")] == [1, 1]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"job": "extract", "config": {"name": "x", "process": [{"type": "locon"}]}}, "fine-tuned"),
        ({"job": "mod", "config": {"name": "x", "process": []}}, "changes a LoRA file"),
        ({"job": "train", "config": {"name": "x", "process": []}}, "sliders"),
        (with_value("config.process.0.type", "concept_slider"), "slider"),
        (with_value("config.process.0.type", "textual_inversion_trainer"), "embedding"),
        (with_value("config.process.0.network", None), "only LoRAs"),
        (
            {
                "job": "extension",
                "config": {
                    "name": "x",
                    "process": [{"type": "sd_trainer", "adapter": {"type": "redux"}}],
                },
            },
            "'redux'",
        ),
        (
            {"job": "extension", "config": {"name": "x", "process": [{}, {}]}},
            "one config is one training",
        ),
    ],
)
def test_another_kind_of_job_is_refused_by_what_it_does_and_not_by_its_keys(document, words):
    with pytest.raises(InvalidConfig) as caught:
        parse_training(document)
    assert words in str(caught.value)
    assert caught.value.problems == ()
    assert caught.value.remedy


@pytest.mark.parametrize(
    "name",
    [
        "猫のスタイル", "Стиль", "My LoRA (v2) [final]", "été", "_draft", "a:b", "it's", "100%",
        "نمط", "🎨 palette", "#1", "x" * 100,
    ],
)  # fmt: skip
def test_a_name_may_have_letters_of_any_script_and_signs(name):
    document = full()
    document["config"]["name"] = name
    assert parse_training(document).name == name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a/b", "'/'"),
        ("..\\up", "'\\\\'"),
        (".hidden", "dot"),
        ("  ", "at least one"),
        ("a\x1b[2J", "U+001B"),
        ("a\u202egnp", "U+202E"),
        ("字" * 100, "300 bytes"),
        (["a"], "text"),
    ],
)
def test_a_name_that_can_not_be_a_file_says_which_character_is_wrong(name, words):
    document = full()
    document["config"]["name"] = name
    with pytest.raises(InvalidConfig) as caught:
        parse_training(document)
    assert words in str(caught.value)


def test_one_name_is_one_name_however_its_accents_are_written():
    document = full()
    document["config"]["name"] = "e\u0301te\u0301"
    assert parse_training(document).name == "été"


def test_the_name_is_put_where_a_text_says_so():
    document = full(sample={"prompts": ["a photo of [name]"]}, training_folder="out/[name]")
    document["meta"] = {"name": "[name]"}
    config = parse_training(document)
    assert config.process.sample.prompts == ["a photo of mine"]
    assert config.process.other_keys["training_folder"] == "out/mine"
    assert config.meta.model_dump()["name"] == "mine"


def test_an_override_fills_a_section_that_is_null():
    config = parse_training(full(train={"ema_config": None}), {"train.ema_config.use_ema": True})
    assert config.process.train.ema_config.use_ema


def test_a_random_seed_is_drawn_once_and_written_down():
    numbers = iter([5, 6, 7])
    document = full(
        training_seed=-1,
        sample={"seed": -1, "samples": [{"prompt": "a", "seed": -1}, {"prompt": "b", "seed": 3}]},
    )
    drawn = with_seeds_drawn(parse_training(document), lambda: next(numbers))
    assert (drawn.seed, drawn.process.sample.seed) == (5, 5)
    assert [item.seed for item in drawn.process.sample.samples] == [6, 3]
    again = parse_training_text(training_text(drawn))
    assert with_seeds_drawn(again, lambda: next(numbers)) is again


def test_a_seed_that_is_given_is_not_drawn():
    config = parse_training(full(training_seed=0))
    assert with_seeds_drawn(config, lambda: 9) is config


def test_a_random_seed_of_the_short_form_is_the_one_of_the_training_and_its_previews():
    short = {"dataset": "images", "base_model": "emoji-base", "seed": -1}
    drawn = with_seeds_drawn(parse_training(short), lambda: 8)
    assert (drawn.seed, drawn.process.sample.seed) == (8, 8)


def test_a_job_in_json_is_read_with_tabs_a_mark_and_letters_as_escapes():
    document = full(sample={"prompts": ["a 🎨 of [trigger]"]}, trigger_word="猫")
    text = "\ufeff" + json.dumps(document, indent="\t").replace("\n", "\r\n")
    assert "\\ud83c" in text
    config = parse_training_text(text)
    assert isinstance(config, TrainingConfig)
    assert config.process.sample.prompts == ["a 🎨 of [trigger]"]
    assert config == parse_training(document)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"job": "extension", "job": "mod"}', "'job' stands twice"),
        ('{"job": ' + "9" * 5000 + "}", "100 digits"),
        ('{"job": ' + "[" * 40 + "]" * 40 + "}", "20 levels"),
        ('{"job": [' + ",".join(["1"] * 30_000) + "]}", "20,000 values"),
        ("job: extension\nconfig:\n\tname: x", "a tab"),
    ],
)
def test_a_document_that_is_not_read_says_why(text, words):
    with pytest.raises(InvalidConfig) as caught:
        parse_training_text(text)
    assert words in str(caught.value)


YAML_JOB = """\
job: extension
config:
  name: mine
  process:
  - type: sd_trainer
    network: &size {linear: 8, linear_alpha: 8}
    datasets:
    - &photos {folder_path: a, resolution: 64}
    - <<: *photos
      folder_path: b
    train: {lr: 1e-4}
    model: {name_or_path: emoji-base}
"""


@pytest.mark.parametrize(
    "text",
    [
        YAML_JOB,
        "---\n" + YAML_JOB,
        "\ufeff" + YAML_JOB,
        YAML_JOB.replace("\n", "\r\n"),
        "%YAML 1.1\n---\n" + YAML_JOB + "...\n",
    ],
)
def test_a_job_in_yaml_is_read_with_marks_merged_keys_and_windows_line_ends(text):
    process = parse_training_text(text).process
    assert [(one.folder_path, one.resolution) for one in process.datasets] == [
        ("a", [64]),
        ("b", [64]),
    ]
    assert (process.train.lr, process.network.rank) == (1e-4, 8)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_config_file_is_read_in_the_encoding_that_its_mark_says(tmp_path, encoding):
    file = tmp_path / "job.yaml"
    file.write_bytes(YAML_JOB.replace("name: mine", "name: 猫").encode(encoding))
    assert parse_training_text(read_config(file)).name == "猫"


@pytest.mark.parametrize("data", [b"name: \xff\xfe", "name: x".encode("utf-16-le"), b"\x93\xfa: 1"])
def test_a_config_file_in_another_encoding_is_refused_by_the_cause(tmp_path, data):
    file = tmp_path / "job.yaml"
    file.write_bytes(data)
    with pytest.raises(InvalidConfig, match="UTF-8 text"):
        read_config(file)


GENERATION = """\
---
job: generate
config:
  name: "[name] of mine"
  process:
  - type: to_folder
    output_folder: output/gen
    device: cuda:0
    generate:
      sampler: ddpm
      width: 1024
      height: 1024
      neg: null
      seed: -1
      guidance_scale: 7
      sample_steps: 20
      ext: ".png"
      prompt_file: false
      prompts: ["a photo of a lighthouse"]
    model:
      name_or_path: emoji-base
      is_v2: false
      is_v_pred: false
      is_xl: false
      dtype: bf16
"""


def test_the_generation_form_of_ai_toolkit_takes_an_ending_with_a_dot_and_a_random_seed():
    request = parse_generation_text(GENERATION)
    assert request.seed is None
    assert (request.width, request.height, request.steps) == (1024, 1024, 20)
    assert request.negative_prompt == ""


def test_every_setting_of_a_generation_job_is_followed_or_named():
    text = GENERATION.replace(
        "      prompt_file: false\n",
        "      prompt_file: true\n      compile: false\n      guidance_rescale: 0.5\n"
        "      max_images: 10000\n      max_random_per_prompt: 1\n      size_list: [[64, 64]]\n",
    ).replace("      is_v2: false\n", "      vae_path: other/vae\n      qtype: uint4\n")
    assert parse_generation_text(GENERATION).warnings == ()
    assert set(parse_generation_text(text).warnings) == {
        "generate.prompt_file has no effect",
        "generate.guidance_rescale has no effect",
        "generate.size_list has no effect",
        "model.vae_path has no effect",
    }


def test_null_in_our_own_form_of_a_generation_is_not_given():
    text = "base_model: emoji-base\nprompts: [x]\nnegative_prompt: null\nsteps: null\nseed: null\n"
    assert parse_generation_text(text).steps == GenerationRequest.model_fields["steps"].default


def test_a_job_without_settings_of_the_training_has_the_defaults():
    document = full()
    del document["config"]["process"][0]["train"]
    assert parse_training(document).process.train.steps == 1000


@pytest.mark.parametrize("text", ['"a \\ud800 b"', '"a \\u0000 b"'])
def test_text_in_json_that_is_no_text_is_refused(text):
    document = json.dumps(full(trigger_word="WORD")).replace('"WORD"', text)
    with pytest.raises(InvalidConfig):
        parse_training_text(document)


@pytest.mark.parametrize("ending", [".PNG", "png", "Png"])
def test_the_ending_png_is_known_in_any_form(ending):
    assert parse_generation_text(GENERATION.replace('".png"', ending))


@pytest.mark.parametrize("ending", [".jpg", "jpeg", "webp"])
def test_an_ending_that_is_not_written_is_refused_with_the_reason(ending):
    with pytest.raises(InvalidConfig, match="written as png"):
        parse_generation_text(GENERATION.replace('".png"', ending))


@pytest.mark.parametrize("seed", [-1, "-1", None])
def test_a_generation_with_a_random_seed_has_none_yet(seed):
    request = {"base_model": "emoji-base", "prompts": ["x"], "seed": seed}
    assert GenerationRequest.model_validate(request).seed is None
