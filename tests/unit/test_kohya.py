"""Configs of kohya's sd-scripts become ours: all of it is converted, named, or refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loradash.domain.dataset import DatasetReport, ImageFile
from loradash.domain.dataset_findings import findings
from loradash.domain.kohya.conversion import Conversion, convert
from loradash.domain.kohya.folders import repeats_and_caption
from loradash.domain.kohya.keys import NO_EFFECT, SUBSET_LEVEL, UNSUPPORTED
from loradash.domain.training_config import TrainingProcess
from loradash.domain.training_text import parse_training, parse_training_text
from loradash.errors import InvalidConfig, InvalidDataset, LoradashError
from loradash.services.adapters.kohya_files import convert_file

FOLDERS = {
    "/photos": ["10_sks dog", "2_a cat", "no repeats", "0_nothing"],
    "/prior": ["1_dog"],
    "/empty": [],
}
IMAGES = {"/photos/10_sks dog": 3, "/photos/2_a cat": 5, "/prior/1_dog": 7, "/one": 4}
PROMPTS = {"/prompts.txt": "# mine\na dog --n ugly --w 512 --h 768 --d 3 --s 20 --l 6.5\n\na cat\n"}


class Files:
    """A machine with a few folders."""

    def folders(self, path: str) -> list[str] | None:
        return FOLDERS.get(path)

    def images(self, path: str) -> int | None:
        return IMAGES.get(path)

    def images_beside(self, path: str) -> int:
        return {"/photos": 2}.get(path, 0)

    def text(self, path: str) -> str | None:
        return PROMPTS.get(path)


BASE: dict[str, Any] = {
    "pretrained_model_name_or_path": "emoji-base",
    "train_data_dir": "/photos",
    "resolution": "512,512",
    "enable_bucket": True,
    "network_module": "networks.lora",
    "network_dim": 8,
    "learning_rate": 1e-4,
    "max_train_steps": 100,
    "seed": 1,
}


def converted(dataset_config: dict[str, Any] | None = None, **settings: Any) -> Conversion:
    given = {key: value for key, value in {**BASE, **settings}.items() if value is not None}
    return convert(given, dataset_config, Files())


def process(dataset_config: dict[str, Any] | None = None, **settings: Any) -> TrainingProcess:
    return parse_training(converted(dataset_config, **settings).document).process


def problems(dataset_config: dict[str, Any] | None = None, **settings: Any) -> str:
    with pytest.raises(InvalidConfig) as caught:
        converted(dataset_config, **settings)
    assert caught.value.remedy
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("10_sks dog", (10, "sks dog")),
        ("1_a_b_c", (1, "a_b_c")),
        ("3", (3, "")),
        ("3_", (3, "")),
        ("0_x", None),
        ("x_10", None),
        ("sks", None),
        ("-1_x", None),
    ],
)
def test_a_folder_s_name_says_its_repeats_and_its_caption(name, meaning):
    assert repeats_and_caption(name) == meaning


def test_folders_with_repeats_become_datasets_and_the_others_are_named():
    result = converted(reg_data_dir="/prior")
    datasets = parse_training(result.document).process.datasets
    assert [(d.folder_path, d.num_repeats, d.default_caption, d.is_reg) for d in datasets] == [
        ("/photos/10_sks dog", 10, "sks dog", False),
        ("/photos/2_a cat", 2, "a cat", False),
        ("/prior/1_dog", 1, "dog", True),
    ]
    assert {d.caption_suffix for d in datasets} == {".caption"}
    assert "no repeats, 0_nothing" in result.notes[0] or "0_nothing" in result.notes[0]


DATASET_CONFIG = {
    "general": {"enable_bucket": True, "caption_extension": ".txt", "shuffle_caption": True},
    "datasets": [
        {
            "resolution": 512, "batch_size": 4, "keep_tokens": 1, "min_bucket_reso": 256,
            "subsets": [
                {"image_dir": "/one", "num_repeats": 3, "class_tokens": "sks"},
                {"image_dir": "/two", "is_reg": True, "flip_aug": True, "keep_tokens": 2},
            ],
        },
        {"resolution": [512, 768], "batch_size": 4, "subsets": [{"image_dir": "/three"}]},
    ],
}  # fmt: skip


def test_a_dataset_config_is_followed_from_the_subset_up_to_the_training():
    result = converted(DATASET_CONFIG, train_data_dir=None, caption_dropout_rate=0.1)
    found = parse_training(result.document).process
    one, two, three = found.datasets
    assert found.train.batch_size == 4
    assert (one.folder_path, one.num_repeats, one.default_caption) == ("/one", 3, "sks")
    assert (one.keep_tokens, two.keep_tokens, three.keep_tokens) == (1, 2, 0)
    assert (two.is_reg, two.flip_x, one.flip_x) == (True, True, False)
    assert {d.caption_suffix for d in found.datasets} == {".txt"}
    assert all(d.shuffle_tokens and d.caption_dropout_rate == 0.1 for d in found.datasets)
    assert (one.resolution, three.resolution) == ([512], [627])
    assert any("512x768 becomes 627" in note for note in result.notes)
    assert "min_bucket_reso" in result.without_effect


SETTINGS: list[tuple[dict[str, Any], str, Any]] = [
    ({}, "network.linear", 8),
    ({"network_dim": None}, "network.linear", 4),
    ({}, "network.linear_alpha", 1.0),
    ({"network_alpha": 0}, "network.linear_alpha", 8.0),
    ({"network_dropout": 0.1}, "network.dropout", 0.1),
    ({"network_args": ["conv_dim=4"]}, "network.conv", 4),
    ({"network_args": ["conv_dim=4"]}, "network.conv_alpha", 1.0),
    ({"network_args": ["conv_dim=4", "conv_alpha=2"]}, "network.conv_alpha", 2.0),
    ({"network_module": "lycoris.kohya", "network_args": ["algo=locon"]}, "network.conv", 8),
    ({"network_weights": "/a.safetensors"}, "network.pretrained_lora_path", "/a.safetensors"),
    ({}, "train.train_text_encoder", True),
    ({"network_train_unet_only": True}, "train.train_text_encoder", False),
    ({"network_train_text_encoder_only": True}, "train.train_unet", False),
    ({"text_encoder_lr": 5e-5}, "train.text_encoder_rate", 5e-5),
    ({"text_encoder_lr": 0}, "train.train_text_encoder", False),
    ({"text_encoder_lr": [1e-5, 2e-5]}, "train.text_encoder_rate", 1e-5),
    ({"unet_lr": 2e-4}, "train.unet_rate", 2e-4),
    ({"learning_rate": None}, "train.unet_rate", 2e-6),
    ({"max_train_steps": None}, "train.steps", 1600),
    ({"max_train_epochs": 2}, "train.steps", 80),
    ({"max_train_epochs": 2, "train_batch_size": 8}, "train.steps", 10),
    ({"max_train_epochs": 2, "gradient_accumulation_steps": 4}, "train.steps", 20),
    ({"max_train_epochs": 1, "reg_data_dir": "/prior"}, "train.steps", 80),
    ({"gradient_accumulation_steps": 2}, "train.accumulation", 2),
    ({"gradient_accumulation_steps": 2}, "train.updates", 100),
    ({}, "train.gradient_checkpointing", False),
    ({"mixed_precision": "bf16"}, "train.dtype", "bf16"),
    ({}, "train.dtype", "fp32"),
    ({"optimizer_type": "AdamW8bit"}, "train.optimizer", "adamw8bit"),
    ({"use_8bit_adam": True}, "train.optimizer", "adamw8bit"),
    ({"optimizer_type": "PagedAdamW8bit"}, "train.optimizer", "adamw8bit"),
    ({"optimizer_type": "Lion"}, "train.optimizer", "lion"),
    (
        {"optimizer_type": "prodigyopt.Prodigy", "learning_rate": 1.0,
         "optimizer_args": ["decouple=True", "betas=0.9,0.99", "d_coef=2"]},
        "train.optimizer_params.given",
        {"decouple": True, "betas": (0.9, 0.99), "d_coef": 2.0},
    ),
    (
        {"optimizer_type": "Adafactor",
         "optimizer_args": ["relative_step=False", "scale_parameter=False", "warmup_init=False"]},
        "train.optimizer",
        "adafactor",
    ),
    ({"lr_scheduler": "cosine", "lr_warmup_steps": 0.1}, "train.warmup_updates", 10),
    ({"lr_scheduler": "cosine", "lr_warmup_steps": 25}, "train.warmup_updates", 25),
    ({"lr_scheduler": "constant_with_warmup"}, "train.warmup_updates", 0),
    ({"lr_scheduler": "linear"}, "train.lr_scheduler_params.end_factor", 0.0),
    (
        {"lr_scheduler": "cosine_with_restarts", "lr_scheduler_num_cycles": 3},
        "train.lr_scheduler_params.num_cycles",
        3,
    ),
    (
        {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_min_lr_ratio": 0.1},
        "train.lr_scheduler_params.min_factor",
        0.1,
    ),
    ({"loss_type": "l1"}, "train.loss_type", "mae"),
    ({"min_snr_gamma": 5}, "train.min_snr_gamma", 5.0),
    ({"noise_offset": 0.05}, "train.noise_offset", 0.05),
    ({"min_timestep": 100, "max_timestep": 900}, "train.max_denoising_steps", 899),
    ({"max_timestep": 1000}, "train.max_denoising_steps", 999),
    ({"prior_loss_weight": 0.5, "reg_data_dir": "/prior"}, "train.reg_weight", 0.5),
    ({"seed": None}, "training_seed", -1),
    ({"save_precision": "bf16"}, "save.dtype", "bf16"),
    ({}, "save.dtype", "fp32"),
    ({"save_every_n_steps": 20}, "save.save_every", 20),
    ({"save_every_n_epochs": 2}, "save.save_every", 80),
    ({"v_parameterization": True, "v2": True}, "model.is_v_pred", True),
    ({"sample_prompts": "/prompts.txt", "sample_every_n_steps": 10}, "sample.sample_every", 10),
    ({"sample_prompts": "/prompts.txt"}, "sample.sample_every", 0),
    (
        {"sample_prompts": "/prompts.txt", "sample_every_n_steps": 9},
        "train.skip_first_sample",
        True,
    ),
    (
        {"sample_prompts": "/prompts.txt", "sample_at_first": True},
        "train.skip_first_sample",
        False,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "path", "value"), SETTINGS)
def test_a_setting_of_sd_scripts_means_the_same_here(settings, path, value):
    found: Any = process(**settings)
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value


def test_prompts_keep_their_own_settings():
    found = process(sample_prompts="/prompts.txt", sample_every_n_steps=10)
    first, second = found.sample.samples
    assert (first.prompt, first.neg, first.width, first.height) == ("a dog", "ugly", 512, 768)
    assert (first.seed, first.sample_steps, first.guidance_scale) == (3, 20, 6.5)
    assert (second.prompt, second.width) == ("a cat", None)
    assert (found.sample.sampler, found.sample.sample_steps) == ("ddim", 30)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"network_module": None}, "only LoRAs are trained here"),
        ({"network_module": "networks.lora_flux"}, "FLUX models"),
        ({"network_module": "networks.oft"}, "networks.oft isn't trained here"),
        (
            {"network_module": "lycoris.kohya", "network_args": ["algo=loha"]},
            "algo=loha is another kind of network",
        ),
        ({"network_args": ["rank_dropout=0.1"]}, "rank_dropout"),
        ({"network_args": ["magic=1"]}, "magic: isn't an argument that is known"),
        ({"optimizer_type": "Adafactor"}, "relative_step=False"),
        ({"optimizer_type": "DAdaptAdam"}, "train.optimizer"),
        ({"optimizer_type": "SGDNesterov"}, "SGD isn't available"),
        ({"lr_scheduler": "inverse_sqrt"}, "train.lr_scheduler"),
        ({"loss_type": "huber"}, "the loss huber isn't computed"),
        ({"multires_noise_iterations": 6}, "multires_noise_iterations: isn't supported"),
        ({"masked_loss": True}, "masked_loss"),
        ({"clip_skip": 2}, "clip_skip: 2"),
        ({"vae": "/vae.pt"}, "vae: another VAE"),
        ({"resume": "/state"}, "can't be continued"),
        ({"in_json": "/meta.json"}, "metadata files aren't read"),
        ({"t5xxl": "/t5"}, "FLUX and SD3"),
        ({"color_aug": True}, "color_aug"),
        ({"learning_rate": "fast"}, "learning_rate: not a number"),
        ({"max_train_steps": 1.5}, "not a whole number"),
        ({"resolution": None}, "resolution is missing"),
        ({"train_data_dir": None}, "train_data_dir: missing"),
        ({"train_data_dir": "/elsewhere"}, "isn't on this machine"),
        ({"train_data_dir": "/empty"}, "no folder such as 10_name"),
        ({"pretrained_model_name_or_path": None}, "pretrained_model_name_or_path: missing"),
        ({"sample_prompts": "/missing.txt", "sample_every_n_steps": 5}, "sample_prompts"),
        ({"sample_prompts": "a --w wide", "sample_every_n_steps": 5}, "--w: 'wide' isn't"),
        ({"mixed_precision": "fp8"}, "mixed_precision: 'fp8' isn't followed"),
        ({"save_precision": "int4"}, "save_precision: 'int4' isn't followed"),
        ({"network_dim": True}, "network_dim: not a number (got 'True')"),
        ({"learning_rate": [1e-4, 1e-5]}, "learning_rate: not a number"),
        ({"gradient_checkpointing": "maybe"}, "gradient_checkpointing: neither true nor false"),
    ],
)
def test_what_would_be_another_training_is_refused_by_name(settings, words):
    assert words in problems(**settings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metadata_file": "/m.json"}, "metadata files aren't read"),
        ({"conditioning_data_dir": "/c"}, "ControlNets"),
        ({"caption_tag_dropout_rate": 0.1}, "caption_tag_dropout_rate"),
        ({"caption_separator": "|"}, "caption_separator"),
        ({"image_dirs": "/x"}, "image_dirs: sd-scripts knows no such setting"),
    ],
)
def test_what_a_dataset_config_asks_for_beyond_that_is_refused_by_name(change, words):
    subset = {"image_dir": "/one", **change}
    config = {"datasets": [{"resolution": 64, "subsets": [subset]}]}
    assert words in problems(config, train_data_dir=None)


def test_all_problems_are_told_at_once():
    found = problems(clip_skip=2, masked_loss=True, network_module="x", learning_rate="y")
    assert len(found.splitlines()) == 4


def test_values_that_no_training_can_have_are_told_with_the_settings_that_are_refused():
    found = problems(clip_skip=2, optimizer_type="CAME", pretrained_model_name_or_path=None)
    assert "clip_skip" in found
    assert "train.optimizer" in found
    assert found.count("missing") == 1


def test_prompts_that_are_never_drawn_are_named():
    assert any("no previews are drawn" in note for note in converted(sample_prompts="a").notes)


def test_a_switch_may_be_a_word():
    assert converted(gradient_checkpointing="on").document["config"]["process"][0]["train"][
        "gradient_checkpointing"
    ]


def test_the_old_name_of_the_caption_ending_is_followed():
    sections = converted(caption_extention=".txt").document["config"]["process"][0]["datasets"]
    assert {section["caption_ext"] for section in sections} == {"txt"}


def test_of_the_rates_of_two_text_encoders_the_first_is_used_and_that_is_told():
    found = converted(text_encoder_lr=[5e-5, 1e-5])
    assert found.document["config"]["process"][0]["train"]["text_encoder_lr"] == 5e-5
    assert any("text_encoder_lr" in note for note in found.notes)


def test_images_beside_the_folders_with_repeats_are_named():
    assert any("2 images beside these folders left out" in note for note in converted().notes)


def test_other_settings_in_a_dataset_config_are_refused_by_name():
    config = {"datasets": [{"resolution": 64, "subsets": [{"image_dir": "/one"}]}], "steps": 3}
    assert "steps: sd-scripts knows no such setting" in problems(config, train_data_dir=None)


def test_epochs_that_can_not_be_counted_are_a_problem():
    config = {"datasets": [{"resolution": 64, "subsets": [{"image_dir": "/unknown"}]}]}
    assert "give max_train_steps" in problems(config, train_data_dir=None, max_train_epochs=3)


@pytest.mark.parametrize("key", sorted(NO_EFFECT))
def test_a_setting_without_effect_is_named(key):
    assert key in converted(**{key: "something"}).without_effect


@pytest.mark.parametrize("key", sorted(UNSUPPORTED))
def test_an_unsupported_setting_is_refused_by_its_name(key):
    assert key in problems(**{key: "something"})


@pytest.mark.parametrize("key", sorted(SUBSET_LEVEL - {"image_dir"}))
def test_every_setting_of_a_subset_is_followed_named_or_refused(key):
    def outcome(extra: dict[str, Any]) -> Any:
        config = {"datasets": [{"resolution": 64, "subsets": [{"image_dir": "/one", **extra}]}]}
        try:
            return converted(config, train_data_dir=None)
        except InvalidConfig as error:
            return str(error)

    values = {"num_repeats": 7, "keep_tokens": 7, "caption_dropout_rate": 0.5,
              "caption_separator": ";", "caption_extension": ".cap"}  # fmt: skip
    assert outcome({key: values.get(key, True)}) != outcome({})


def test_what_is_not_known_is_named():
    assert any("max_trian_steps" in note for note in converted(max_trian_steps=5).notes)


def test_empty_and_false_settings_ask_for_nothing():
    nothing: dict[str, Any] = dict.fromkeys(UNSUPPORTED, False)
    result = converted(**{**nothing, "vae": ""}, xformers=False, clip_skip=1)
    assert result.without_effect == ()


GUI = {
    "LoRA_type": "Kohya LoCon", "pretrained_model_name_or_path": "emoji-base",
    "model_list": "custom", "train_data_dir": "/photos", "reg_data_dir": "",
    "max_resolution": "512,512", "enable_bucket": True, "epoch": 2, "max_train_steps": 0,
    "max_train_epochs": 0, "train_batch_size": 2, "optimizer": "Lion",
    "optimizer_args": "weight_decay=0.1 betas=.9,.95", "lr_scheduler": "cosine", "lr_warmup": 10,
    "learning_rate": 1e-4, "unet_lr": 0.0, "text_encoder_lr": 0.0, "network_dim": 16,
    "network_alpha": 8, "conv_dim": 4, "conv_alpha": 2, "seed": "", "sdxl": False, "vae": "",
    "clip_skip": 1, "caption_extension": ".txt", "num_cpu_threads_per_process": 2, "xformers": "x",
    "sample_prompts": "", "additional_parameters": "", "scale_weight_norms": 0,
}  # fmt: skip


def test_the_gui_s_json_is_the_same_under_other_names():
    result = convert(GUI, None, Files())
    found = parse_training(result.document).process
    assert (found.network.linear, found.network.conv, found.network.conv_alpha) == (16, 4, 2)
    assert found.train.optimizer == "lion"
    assert found.train.optimizer_params.given == {"weight_decay": 0.1, "betas": (0.9, 0.95)}
    assert (found.train.steps, found.train.warmup_updates) == (40, 4)
    assert found.train.train_text_encoder
    assert "num_cpu_threads_per_process" in result.without_effect
    with pytest.raises(InvalidConfig, match="LyCORIS/LoHa"):
        convert({**GUI, "LoRA_type": "LyCORIS/LoHa"}, None, Files())


def test_the_text_has_its_notes_as_comments_and_is_the_config():
    result = converted(max_token_length=225, xformers=True)
    text = result.text("a\nb.toml")
    assert text.startswith("# Converted by loradash convert-config from a b.toml\n")
    assert "# No effect here: xformers" in text
    assert parse_training_text(text) == parse_training(result.document)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 3000), st.floats(), st.text(max_size=8),
    st.lists(st.text(max_size=8) | st.integers(), max_size=3),
)  # fmt: skip
KEYS = sorted({*BASE, *NO_EFFECT, *UNSUPPORTED, *SUBSET_LEVEL, "network_args", "optimizer_args",
               "optimizer_type", "lr_scheduler", "lr_warmup_steps", "sample_prompts",
               "sample_every_n_steps", "max_train_epochs", "text_encoder_lr", "unet_lr",
               "train_batch_size", "save_precision", "seed", "clip_skip"})  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6))
def test_arbitrary_settings_are_converted_or_refused(settings):
    try:
        parse_training(convert({**BASE, **settings}, None, Files()).document)
    except LoradashError as error:
        assert str(error)


@given(
    st.dictionaries(st.sampled_from(sorted(SUBSET_LEVEL | {"batch_size", "resolution"})), VALUES)
)
def test_arbitrary_datasets_are_converted_or_refused(subset):
    config = {"general": subset, "datasets": [{**subset, "subsets": [{"image_dir": "/one"}]}]}
    try:
        converted(config, train_data_dir=None)
    except LoradashError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (["10_sks dog/a.png", "2_cat/b/c.png"], ["10_sks dog", "2_cat"]),
        (["10_sks dog/a.png", "b.png"], []),
        (["10_sks dog/a.png", "other/b.png"], []),
        (["2024/a.png"], []),
        (["a.png"], []),
        ([], []),
    ],
)
def test_repeats_in_names_of_folders_are_named_where_all_images_are_in_such_folders(paths, named):
    images = tuple(
        ImageFile(relative_path=path, width=8, height=8, size_bytes=1, sha256="a", caption="x")
        for path in paths
    )
    report = DatasetReport(folder="photos", images=images, problems=(), sha256="b")
    found = [one.text for one in findings(report) if one.code == "repeats_not_followed"]
    assert len(found) == (1 if named else 0)
    assert all(", ".join(named) in text and "convert-config" in text for text in found)


# Files


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos" / "10_sks dog"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (64, 64), (number * 50, 0, 0)).save(folder / f"{number}.png")
    return tmp_path / "photos"


TOML = """\
[model]
pretrained_model_name_or_path = "emoji-base"
[data]
train_data_dir = "{folder}"
resolution = 64
enable_bucket = true
[training]
network_module = "networks.lora"
learning_rate = 1e-4
max_train_epochs = 2
seed = 3
"""


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_training_config_in_toml_is_read_with_its_sections(tmp_path, photos, mark):
    file = tmp_path / "train.toml"
    file.write_text(mark + TOML.format(folder=photos).replace("\n", "\r\n"), encoding="utf-8")
    found = parse_training(convert_file(file, None, "").document).process
    assert found.train.steps == 60
    assert found.datasets[0].num_repeats == 10


def test_a_dataset_config_beside_the_training_config_is_found(tmp_path, photos):
    (tmp_path / "data.toml").write_text(
        f'[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "{photos}"\n'
    )
    file = tmp_path / "train.toml"
    text = TOML.format(folder=photos).replace("[data]", '[data]\ndataset_config = "data.toml"')
    file.write_text(text)
    found = parse_training(convert_file(file, None, "").document).process
    assert found.datasets[0].folder_path == str(photos)


def test_a_dataset_config_or_a_folder_alone_needs_a_base_model(tmp_path, photos):
    file = tmp_path / "data.toml"
    file.write_text(
        f'[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "{photos}"\n'
    )
    for path in (file, photos):
        with pytest.raises(InvalidConfig) as caught:
            convert_file(path, None, "")
        assert "--base-model" in caught.value.remedy
        found = parse_training(convert_file(path, None, "emoji-base").document).process
        assert found.model.name_or_path == "emoji-base"
        assert found.network.rank == 16


def test_a_config_that_holds_its_datasets_is_used_whole(tmp_path, photos):
    file = tmp_path / "all.toml"
    text = TOML.format(folder=photos).replace(f'train_data_dir = "{photos}"\n', "")
    subset = f'[[datasets]]\n[[datasets.subsets]]\nimage_dir = "{photos}"\nnum_repeats = 2\n'
    file.write_text(text + subset)
    found = parse_training(convert_file(file, None, "").document).process
    assert (found.model.name_or_path, found.train.steps) == ("emoji-base", 12)
    assert found.datasets[0].num_repeats == 2
    with pytest.raises(InvalidConfig, match="--dataset-config is given too"):
        convert_file(file, file, "")


def test_a_folder_without_repeats_is_refused(photos):
    with pytest.raises(InvalidDataset, match="no folder such as 10_name"):
        convert_file(photos / "10_sks dog", None, "emoji-base")


@pytest.mark.parametrize("content", [b"a = = 3", b"\xff\xfe", b"job: extension\n", b"{1: 2}"])
def test_a_file_that_is_no_config_is_refused(tmp_path, content):
    file = tmp_path / "x.toml"
    file.write_bytes(content)
    with pytest.raises(InvalidConfig, match=r"x\.toml"):
        convert_file(file, None, "")
    with pytest.raises(InvalidConfig):
        convert_file(tmp_path / "missing.toml", None, "")


def test_a_config_of_ai_toolkit_is_not_converted(tmp_path):
    file = tmp_path / "job.json"
    file.write_text('{"job": "extension", "config": {"name": "x", "process": []}}')
    with pytest.raises(InvalidConfig, match="needs no conversion"):
        convert_file(file, None, "")


def test_the_command_writes_a_file_once_and_says_what_differs(tmp_path, photos):
    file, out = tmp_path / "train.toml", tmp_path / "ours.yaml"
    file.write_text(TOML.format(folder=photos) + "xformers = true\n")
    command = [sys.executable, "-m", "loradash", "convert-config", str(file), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no effect here: xformers" in done.stderr
    assert "note: max_train_epochs" in done.stderr
    assert parse_training_text(out.read_text()).process.train.steps == 60
    again = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "exists, and no file" in json.loads(again.stdout.splitlines()[-1])["message"]
