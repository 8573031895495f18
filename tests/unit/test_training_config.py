import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from loradash.domain.short_training_config import ShortTrainingConfig
from loradash.domain.training_config import TrainingConfig, TrainingProcess
from loradash.domain.training_text import parse_training, parse_training_text, training_text
from loradash.errors import InvalidConfig

TEMPLATE = Path(__file__).parents[1] / "data" / "training_flux.yaml"
SHORT = {"dataset": "images", "base_model": "emoji-base"}


def template_text() -> str:
    with TEMPLATE.open(encoding="utf-8", newline="") as file:
        return file.read()


def full(**sections: Any) -> dict[str, Any]:
    """A small document of the full form, with these keys added to or put into its process."""
    process: dict[str, Any] = {
        "type": "sd_trainer",
        "network": {},
        "datasets": [{"folder_path": "images"}],
        "train": {},
        "model": {"name_or_path": "emoji-base"},
    }
    for name, value in sections.items():
        if isinstance(value, dict) and isinstance(process.get(name), dict):
            process[name].update(value)
        else:
            process[name] = value
    return {"job": "extension", "config": {"name": "mine", "process": [process]}}


def problems(document: dict[str, Any], overrides: dict[str, Any] | None = None) -> tuple[str, ...]:
    with pytest.raises(InvalidConfig) as caught:
        parse_training(document, overrides)
    assert caught.value.remedy
    return caught.value.problems or (caught.value.message,)


def test_the_published_template_is_accepted_with_its_windows_line_ends():
    text = template_text()
    assert text.count("\r\n") == text.count("\n") > 50
    config = parse_training_text(text)
    process = config.process
    assert config.name == "my_new_dataset"
    assert process.model.name_or_path == "black-forest-labs/FLUX.1-dev"
    assert (process.network.rank, process.network.alpha) == (16, 16)
    assert process.datasets[0].folder_path == "/workspace/training_data"
    assert process.datasets[0].resolution == [512, 768, 1024, 1280]
    assert process.datasets[0].caption_suffix == ".txt"
    assert (process.train.steps, process.train.batch_size, process.train.lr) == (2000, 2, 1e-4)
    assert process.train.optimizer == "adamw8bit"
    assert process.train.dtype == "bf16"
    assert process.train.ema_config.use_ema
    assert process.save.dtype == "fp16"
    assert (process.sample.width, process.sample.height) == (1024, 1280)
    assert process.sample.prompts == ["portrait photo of sks person"]
    assert process.sample.walk_seed


def test_keys_of_ai_toolkit_without_a_meaning_here_are_kept_as_given():
    process = parse_training_text(template_text()).process
    assert process.other_keys == {"training_folder": "/workspace/output", "device": "cuda:0"}
    assert process.model.other_keys == {"is_flux": True, "quantize": True}


def test_a_written_config_is_read_back_equal():
    config = parse_training(full(train={"steps": 7, "lr": 1e-5}, trigger_word="sks"))
    assert parse_training_text(training_text(config)) == config


def test_a_written_config_keeps_the_keys_of_ai_toolkit():
    config = parse_training_text(template_text())
    assert parse_training_text(training_text(config)).process.model.other_keys["is_flux"] is True


def test_a_written_config_has_the_keys_that_were_given_and_no_others():
    document = full(train={"steps": 7})
    written = yaml.safe_load(training_text(parse_training(document)))
    assert written["config"]["process"][0]["train"] == {"steps": 7}


@pytest.mark.parametrize(
    ("sections", "path", "hint"),
    [
        ({"train": {"stepss": 5}}, "config.process[0].train.stepss", "'steps'"),
        ({"train": {"learning_rte": 5}}, "config.process[0].train.learning_rte", None),
        ({"train": {"gradient_acumulation": 2}}, "train.gradient_acumulation", "accumulation"),
        ({"network": {"linaer": 4}}, "config.process[0].network.linaer", "'linear'"),
        ({"save": {"save_evry": 4}}, "config.process[0].save.save_evry", "'save_every'"),
        ({"sample": {"promts": []}}, "config.process[0].sample.promts", "'prompts'"),
        ({"trigger_wrd": "x"}, "config.process[0].trigger_wrd", "'trigger_word'"),
        ({"model": {"name_or_pth": "x"}}, "config.process[0].model.name_or_pth", "'name_or_path'"),
        (
            {"datasets": [{"folder_path": "a"}, {"folder_path": "b", "num_repeat": 3}]},
            "config.process[0].datasets[1].num_repeat",
            "'num_repeats'",
        ),
        ({"train": {"ema_config": {"ema_deca": 1}}}, "train.ema_config.ema_deca", "'ema_decay'"),
        (
            {"train": {"optimizer_params": {"wight_decay": 1}}},
            "train.optimizer_params.wight_decay",
            "'weight_decay'",
        ),
        (
            {"sample": {"samples": [{"prompt": "x", "hight": 64}]}},
            "sample.samples[0].hight",
            "'height'",
        ),
    ],
)
def test_an_unknown_key_is_named_with_its_path_and_the_nearest_known_key(sections, path, hint):
    (problem,) = problems(full(**sections))
    assert path in problem
    assert "unknown key" in problem
    if hint:
        assert hint in problem.split("did you mean")[1]


def test_an_unknown_key_at_the_top_is_named():
    (problem,) = problems({**full(), "metta": {}})
    assert problem.startswith("metta: unknown key")
    assert "'meta'" in problem


def test_the_place_where_we_keep_other_keys_is_not_a_key_itself():
    (problem,) = problems(full(train={"other_keys": {"lr": 1}}))
    assert "train.other_keys" in problem


@pytest.mark.parametrize(
    ("sections", "path"),
    [
        ({"network": {"linear": 0}}, "network.linear"),
        ({"network": {"rank": 0}}, "network.linear"),
        ({"network": {"linear": -4}}, "network.linear"),
        ({"network": {"linear": 5000}}, "network.linear"),
        ({"network": {"linear": "many"}}, "network.linear"),
        ({"network": {"linear_alpha": -1}}, "network.linear_alpha"),
        ({"network": {"type": "magic"}}, "network.type"),
        ({"network": {"dropout": 1.0}}, "network.dropout"),
        ({"train": {"steps": 0}}, "train.steps"),
        ({"train": {"steps": 1.5}}, "train.steps"),
        ({"train": {"batch_size": 0}}, "train.batch_size"),
        ({"train": {"lr": 0}}, "train.lr"),
        ({"train": {"lr": -1e-4}}, "train.lr"),
        ({"train": {"lr": "fast"}}, "train.lr"),
        ({"train": {"optimizer": "magic"}}, "train.optimizer"),
        ({"train": {"dtype": "int8"}}, "train.dtype"),
        ({"train": {"lr_scheduler": "magic"}}, "train.lr_scheduler"),
        ({"train": {"optimizer_params": {"betas": [0.9, 1.0]}}}, "train.optimizer_params.betas"),
        ({"train": {"optimizer_params": {"betas": [0.9]}}}, "train.optimizer_params.betas"),
        ({"train": {"ema_config": {"ema_decay": 1}}}, "train.ema_config.ema_decay"),
        ({"save": {"push_to_hub": True}}, "save.push_to_hub"),
        ({"save": {"save_every": -1}}, "save.save_every"),
        ({"sample": {"sample_every": -1}}, "sample.sample_every"),
        ({"save": {"dtype": "auto"}}, "save.dtype"),
        ({"datasets": []}, "datasets"),
        ({"datasets": [{}]}, "datasets[0].folder_path"),
        ({"datasets": [{"folder_path": ""}]}, "datasets[0].folder_path"),
        (
            {"datasets": [{"folder_path": "a", "caption_ext": "../x"}]},
            "datasets[0].caption_ext",
        ),
        ({"datasets": [{"folder_path": "a", "resolution": []}]}, "datasets[0].resolution"),
        ({"datasets": [{"folder_path": "a", "resolution": [4]}]}, "datasets[0].resolution[0]"),
        ({"datasets": [{"folder_path": "a", "caption_dropout_rate": 2}]}, "caption_dropout_rate"),
        ({"training_seed": -2}, "training_seed"),
        ({"training_seed": 2**63}, "training_seed"),
        ({"type": "dreambooth"}, "process[0].type"),
        ({"sample": {"prompts": "one text"}}, "sample.prompts"),
        ({"sample": {"format": "gif"}}, "sample.format"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_path(sections, path):
    (problem,) = problems(full(**sections))
    assert path in problem.partition(": ")[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("train", "lr"),
        ("train", "max_grad_norm"),
        ("train", "noise_offset"),
        ("train", "min_snr_gamma"),
        ("network", "linear_alpha"),
        ("sample", "guidance_scale"),
    ],
)
def test_a_number_that_is_not_finite_is_refused(section, key, value):
    (problem,) = problems(full(**{section: {key: value}}))
    assert f"{section}.{key}" in problem


def test_all_problems_are_listed_at_once():
    document = full(train={"steps": 0, "lr": -1, "stepz": 1}, network={"linear": 0})
    assert len(problems(document)) == 4


def test_a_long_wrong_value_is_shortened_in_the_message():
    (problem,) = problems(full(train={"optimizer": "x" * 5000}))
    assert len(problem) < 300


def test_a_missing_section_is_named():
    document = full()
    del document["config"]["process"][0]["model"]
    (problem,) = problems(document)
    assert problem == "config.process[0].model: missing"


def test_a_second_process_is_refused():
    document = full()
    document["config"]["process"] *= 2
    (problem,) = problems(document)
    assert "config.process" in problem


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a\\b", "x" * 101, "a\nb"])
def test_a_name_that_is_no_file_name_is_refused(name):
    document = full()
    document["config"]["name"] = name
    (problem,) = problems(document)
    assert problem.startswith("config.name")


def test_a_generation_config_is_sent_to_the_right_command():
    with pytest.raises(InvalidConfig, match="generate") as caught:
        parse_training({"job": "generate", "config": {}})
    assert "loradash generate" in caught.value.remedy


@pytest.mark.parametrize(
    ("document", "place"),
    [
        (full(sample={"prompts": ["cat", "a ${HOME} cat"]}), "sample.prompts[1]"),
        (full(trigger_word="${HF_TOKEN"), "process[0].trigger_word"),
        (full(model={"name_or_path": "${X:-y}"}), "model.name_or_path"),
        (full(train={"${HOME}": 1}), "train"),
        ({**full(), "meta": {"a": {"b": ["${AWS_SECRET}"]}}}, "meta.a.b[0]"),
        ({**SHORT, "sample_prompts": ["${HOME}"]}, "sample_prompts[0]"),
    ],
)
def test_a_reference_to_the_environment_is_refused_with_its_place(document, place):
    (problem,) = problems(document)
    assert place in problem
    assert "${" in problem


def test_a_reference_to_the_environment_in_an_override_is_refused():
    (problem,) = problems(dict(SHORT), {"trigger_word": "${HOME}"})
    assert "trigger_word" in problem


def test_dollar_signs_and_braces_alone_are_plain_text():
    config = parse_training(full(sample={"prompts": ["$5 {bill}", "[trigger] costs $"]}))
    assert config.process.sample.prompts[0] == "$5 {bill}"


def test_the_short_form_expands_to_the_same_config_as_the_full_form():
    short = {**SHORT, "name": "mine", "rank": 8, "steps": 30, "trigger_word": "sks", "seed": 3}
    config = parse_training(short)
    expanded = ShortTrainingConfig.model_validate(short).expanded()
    assert config == parse_training(expanded)
    assert parse_training_text(training_text(config)) == config
    process = config.process
    assert (config.name, config.trigger_word, config.seed) == ("mine", "sks", 3)
    assert (process.network.rank, process.network.alpha) == (8, 8)
    assert (process.train.steps, process.train.updates) == (30, 30)
    assert process.model.name_or_path == "emoji-base"
    assert process.datasets[0].folder_path == "images"
    assert process.datasets[0].resolution == [512]


def test_every_key_of_the_short_form_changes_the_expanded_config():
    values = {
        "dataset": "other", "base_model": "other", "name": "other", "trigger_word": "sks",
        "regularization": "more", "prior_preservation": False,
        "regularization_weight": 2.0, "steps": 7, "rank": 3,
        "alpha": 5.0, "target_modules": ["to_q"],
        "learning_rate": 1e-3, "text_encoder_learning_rate": 1e-5, "lr_scheduler": "linear",
        "warmup_steps": 4, "optimizer": "adam", "batch_size": 2, "gradient_accumulation": 2,
        "gradient_checkpointing": False, "precision": "bf16", "resolution": [64, 128],
        "num_repeats": 3, "caption_dropout_rate": 0.5, "min_snr_gamma": 5.0, "ema_decay": 0.9,
        "seed": 9, "save_every": 3, "keep_checkpoints": 2, "on_bad_image": "skip",
        "from_adapter": "train_x",
        "sample_prompts": ["x"], "sample_every": 3, "sample_size": 64, "sample_steps": 3,
        "guidance_scale": 1.5, "sampler": "ddim", "metadata": "minimal", "description": "d",
        "author": "a", "license": "MIT", "usage_hint": "u", "tags": ["t"], "engine": "other",
    }  # fmt: skip
    assert set(values) == set(ShortTrainingConfig.known_keys())
    short = {**SHORT, "regularization": "prior"}
    plain = parse_training(dict(short))
    for key, value in values.items():
        assert parse_training({**short, key: value}) != plain, key


def test_regularisation_of_the_short_form_becomes_a_second_dataset():
    config = parse_training({**SHORT, "regularization": "prior"})
    assert [(d.folder_path, d.is_reg) for d in config.process.datasets] == [
        ("images", False),
        ("prior", True),
    ]


def test_a_short_config_without_a_dataset_says_so():
    (problem,) = problems({"base_model": "emoji-base"})
    assert problem == "dataset: missing"


def test_a_typo_in_the_short_form_is_answered_with_the_nearest_key():
    (problem,) = problems({**SHORT, "lerning_rate": 1})
    assert problem == "lerning_rate: unknown key; did you mean 'learning_rate'?"


def test_overrides_of_the_full_form_start_below_the_process():
    config = parse_training(
        full(),
        {"train.steps": 5, "network.linear": 2, "datasets.0.resolution": 64, "sample.seed": 3},
    )
    assert config.process.train.steps == 5
    assert config.process.network.rank == 2
    assert config.process.datasets[0].resolution == [64]
    assert config.process.sample.seed == 3


def test_overrides_of_the_short_form_are_its_own_keys():
    assert parse_training(dict(SHORT), {"steps": 5, "rank": 2}).process.train.steps == 5


@pytest.mark.parametrize("document", [full(), full(name="inner"), dict(SHORT)])
def test_an_override_of_the_name_is_the_name(document):
    assert parse_training(document, {"name": "another"}).name == "another"


def test_overrides_leave_the_given_document_as_it_was():
    document = full()
    before = copy.deepcopy(document)
    parse_training(document, {"train.steps": 5, "datasets.0.resolution": 64})
    assert document == before


@pytest.mark.parametrize(
    "dotted",
    [
        "train.stepz",
        "datasets.7.resolution",
        "datasets.x.resolution",
        "datasets.²",
        "model.name_or_path.x",
        "train.steps.more.still",
        "nothing",
        "",
        ".",
    ],
)
def test_an_override_without_a_place_is_refused_by_name(dotted):
    with pytest.raises(InvalidConfig) as caught:
        parse_training(full(train={"steps": 3}), {dotted: 5})
    assert dotted.split(".")[-1] in str(caught.value)


@pytest.mark.parametrize("config", [None, [], "text", {}, {"process": []}, {"process": {}}])
def test_overrides_of_a_document_without_a_process_are_refused(config):
    with pytest.raises(InvalidConfig):
        parse_training({"job": "extension", "config": config}, {"train.steps": 5})


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"gradient_accumulation": 2, "gradient_accumulation_steps": 2}, "not both"),
        ({"min_snr_gamma": 5, "snr_gamma": 4}, "min_snr_gamma or snr_gamma"),
        ({"min_denoising_steps": 500, "max_denoising_steps": 400}, "min_denoising_steps"),
        ({"min_denoising_steps": 400, "max_denoising_steps": 400}, "min_denoising_steps"),
        ({"train_unet": False}, "nothing to train"),
        ({"optimizer_params": {"d_coef": 2}}, "d_coef is a setting of prodigy, not of adamw"),
        ({"optimizer": "lion", "optimizer_params": {"eps": 1e-8}}, "eps is a setting of"),
        ({"optimizer_params": {"eps": [1e-30, 1e-3]}}, "adafactor has two values"),
        ({"optimizer": "adafactor", "optimizer_params": {"eps": 1e-8}}, "adafactor has two"),
        ({"optimizer": "prodigy", "train_text_encoder": True, "lr": 1, "unet_lr": 0.5}, "one rate"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(train, words):
    (problem,) = problems(full(train=train))
    assert words in problem


def test_rank_and_alpha_are_other_names_of_linear_and_linear_alpha():
    network = parse_training(full(network={"rank": 8, "alpha": 4})).process.network
    assert (network.rank, network.alpha) == (8, 4)


def test_two_names_of_one_setting_with_different_values_are_refused():
    (problem,) = problems(full(network={"rank": 8, "linear": 4}))
    assert "rank and linear" in problem


@pytest.mark.parametrize(
    ("train", "updates", "batches_per_update"),
    [
        ({"steps": 100}, 100, 1),
        ({"steps": 100, "gradient_accumulation": 4}, 100, 4),
        ({"steps": 100, "gradient_accumulation_steps": 4}, 25, 4),
        ({"steps": 101, "gradient_accumulation_steps": 4}, 26, 4),
        ({"steps": 1, "gradient_accumulation_steps": 4}, 1, 4),
        ({"steps": 100, "gradient_accumulation": 4, "gradient_accumulation_steps": 1}, 100, 4),
    ],
)
def test_only_the_old_accumulation_key_makes_steps_count_batches(
    train, updates, batches_per_update
):
    section = parse_training(full(train=train)).process.train
    assert section.updates == updates
    assert section.accumulation == batches_per_update


@pytest.mark.parametrize(
    ("name", "precision"),
    [("float16", "fp16"), ("half", "fp16"), ("bfloat16", "bf16"), ("float", "fp32")],
)
def test_the_names_of_precisions_in_ai_toolkit_are_understood(name, precision):
    assert parse_training(full(train={"dtype": name})).process.train.dtype == precision


@pytest.mark.parametrize(("word", "value"), [("no", False), ("off", False), ("yes", True)])
def test_switches_may_be_written_as_words(word, value):
    text = (
        "job: extension\nconfig:\n  name: x\n  process:\n  - type: sd_trainer\n    network: {}\n"
        f"    datasets: [{{folder_path: a}}]\n    train: {{gradient_checkpointing: {word}}}\n"
        "    model: {name_or_path: b}\n"
    )
    assert parse_training_text(text).process.train.gradient_checkpointing is value


def test_a_single_resolution_is_a_list_of_one():
    document = full(datasets=[{"folder_path": "a", "resolution": 768}])
    assert parse_training(document).process.datasets[0].resolution == [768]


def test_dataset_path_is_another_name_of_folder_path():
    document = full(datasets=[{"dataset_path": "a"}])
    assert parse_training(document).process.datasets[0].folder_path == "a"


def test_a_caption_ending_may_be_given_with_or_without_its_dot():
    for ending in ("caption", ".caption"):
        document = full(datasets=[{"folder_path": "a", "caption_ext": ending}])
        assert parse_training(document).process.datasets[0].caption_suffix == ".caption"


def test_the_name_of_the_process_comes_before_the_name_of_the_job():
    assert parse_training(full(name="inner")).name == "inner"
    assert parse_training(full()).name == "mine"


def test_a_config_can_not_be_changed_after_it_was_checked():
    config = parse_training(full())
    with pytest.raises(ValueError, match="frozen"):
        config.process.train.steps = 5


KNOWN = sorted(
    {
        key
        for section in {*TrainingConfig.sections.values(), TrainingProcess, ShortTrainingConfig}
        for key in section.model_fields
    }
    | {"job", "config", "meta", "rank", "alpha", "dataset_path", "is_flux", "lorm"}
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2000)
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["extension", "sd_trainer", "lora", "fp16", "images", "${HOME}", "\0"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KNOWN) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=20,
)
KEYS = st.sampled_from(KNOWN) | st.text(max_size=5)
DOTTED = st.lists(KEYS | st.sampled_from(["0", "-1", "1", "²"]), max_size=3).map(".".join)


@given(st.dictionaries(KEYS, VALUES, max_size=6), st.dictionaries(DOTTED, VALUES, max_size=2))
def test_arbitrary_data_is_a_config_or_an_invalid_config(document, overrides):
    try:
        assert isinstance(parse_training(document, overrides), TrainingConfig)
    except InvalidConfig as error:
        assert str(error)


@given(
    st.dictionaries(st.sampled_from(sorted(TrainingProcess.model_fields)), VALUES, max_size=4),
    st.dictionaries(DOTTED, VALUES, max_size=2),
)
def test_a_process_of_arbitrary_values_is_a_config_or_an_invalid_config(sections, overrides):
    try:
        config = parse_training(full(**sections), overrides)
        assert config.process.train.updates >= 1
        assert isinstance(training_text(config), str)
    except InvalidConfig as error:
        assert str(error)


def test_a_short_config_can_be_overridden_by_its_keys_and_by_paths_of_the_full_form():
    config = parse_training(dict(SHORT), {"steps": 9, "network.dropout": 0.25})
    assert config.process.train.steps == 9
    assert config.process.network.dropout == 0.25
    with pytest.raises(InvalidConfig, match=r"network\.rnak"):
        parse_training(dict(SHORT), {"network.rnak": 3})


def test_an_override_cannot_bring_in_an_environment_variable():
    with pytest.raises(InvalidConfig, match=r"\$\{HOME\}"):
        parse_training(dict(SHORT), {"sample.prompts": ["${HOME}"]})
