"""The documented table of ai-toolkit's configs: each row is what happens to such a config.

The configs are written here, from facts about those files: which kind of job, base model and keys
each has. None is a copy.
"""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from loradash.domain import ai_toolkit_keys
from loradash.domain.generation import parse_generation_text
from loradash.domain.training_config import (
    DatasetSection,
    ModelSection,
    NetworkSection,
    SampleItem,
    SampleSection,
    TrainingProcess,
    TrainSection,
)
from loradash.domain.training_text import parse_training_text
from loradash.engines.diffusers.support import check
from loradash.errors import InvalidConfig

DOCUMENT = Path(__file__).parents[2] / "docs" / "ai-toolkit-configs.md"


def example(*, kind: str = "sd_trainer", job: str = "extension", **process: Any) -> dict[str, Any]:
    """A job as the examples have it."""
    sections: dict[str, Any] = {
        "type": kind,
        "training_folder": "output",
        "device": "cuda:0",
        "network": {"type": "lora", "linear": 16, "linear_alpha": 16},
        "save": {"dtype": "float16", "save_every": 250, "max_step_saves_to_keep": 4,
                 "push_to_hub": False},
        "datasets": [{"folder_path": "/path/to/images", "caption_ext": "txt",
                      "caption_dropout_rate": 0.05, "shuffle_tokens": False,
                      "cache_latents_to_disk": True, "resolution": [512, 768, 1024]}],
        "train": {"batch_size": 1, "steps": 2000, "gradient_accumulation_steps": 1,
                  "train_unet": True, "train_text_encoder": False, "gradient_checkpointing": True,
                  "noise_scheduler": "flowmatch", "optimizer": "adamw8bit", "lr": 1e-4,
                  "ema_config": {"use_ema": True, "ema_decay": 0.99}, "dtype": "bf16"},
        "model": {"name_or_path": "owner/model", "quantize": True},
        "sample": {"sampler": "flowmatch", "sample_every": 250, "width": 1024, "height": 1024,
                   "prompts": ["[trigger] in a forest"], "neg": "", "seed": 42, "walk_seed": True,
                   "guidance_scale": 4, "sample_steps": 20},
    }  # fmt: skip
    for name, value in process.items():
        if isinstance(value, dict) and isinstance(sections.get(name), dict):
            sections[name].update(value)
        elif value is None:
            sections.pop(name)
        else:
            sections[name] = value
    return {
        "job": job,
        "config": {"name": "my_first_lora_v1", "process": [sections]},
        "meta": {"name": "[name]", "version": "1.0"},
    }


def with_dataset(document: dict[str, Any], **keys: Any) -> dict[str, Any]:
    document["config"]["process"][0]["datasets"][0].update(keys)
    return document


EMBEDDING = example(
    kind="textual_inversion_trainer", network=None, embedding={"trigger": "x", "tokens": 12},
    train={"max_denoising_steps": 1000, "noise_scheduler": "ddpm", "weight_jitter": 0.0},
)  # fmt: skip
SLIDER = example(
    kind="image_reference_slider_trainer", train={"max_denoising_steps": 1000, "lr": 5e-5},
    slider={"datasets": [{"pair_folder": "/pairs"}]}, datasets=None,
)  # fmt: skip
GENERATION = {
    "job": "generate",
    "config": {"name": "generate", "process": [{
        "type": "to_folder", "output_folder": "output/gen", "device": "cuda:0",
        "generate": {"sampler": "ddpm", "width": 1024, "height": 1024, "neg": "cartoon",
                     "seed": -1, "guidance_scale": 7, "sample_steps": 20, "ext": ".png",
                     "prompt_file": False, "prompts": ["a photo of a lighthouse"]},
        "model": {"name_or_path": "/models/one.safetensors", "is_v2": False, "is_v_pred": False,
                  "is_xl": False, "dtype": "bf16"},
    }]},
}  # fmt: skip
EXAMPLES: dict[str, Any] = {
    "extract.example.yml": {
        "job": "extract",
        "config": {"name": "x", "base_model": "a", "extract_model": "b", "output_folder": "c",
                   "is_v2": False, "dtype": "fp16", "device": "cpu",
                   "process": [{"type": "locon", "filename": "x"}, {"type": "lora"}]},
    },
    "generate.example.yaml": GENERATION,
    "mod_lora_scale.yaml": {
        "job": "mod",
        "config": {"name": "x", "process": [{"type": "rescale_lora", "input_path": "a",
                                             "output_path": "b", "scale_target": "up_down"}]},
    },
    "modal/modal_train_lora_flux_24gb.yaml": example(model={"is_flux": True}),
    "modal/modal_train_lora_flux_schnell_24gb.yaml": example(
        model={"is_flux": True, "assistant_lora_path": "owner/adapter"}
    ),
    "train_flex_redux.yaml": example(
        network=None, adapter={"type": "redux", "train": True, "test_img_path": ["/a.jpg"]}
    ),
    "train_full_fine_tune_flex.yaml": example(
        network=None, model={"is_flux": True}, train={"optimizer": "adafactor", "lr": 3e-5}
    ),
    "train_full_fine_tune_lumina.yaml": example(
        network=None, model={"is_lumina2": True}, train={"optimizer": "adafactor"}
    ),
    "train_lora_chroma_24gb.yaml": example(model={"arch": "chroma"}),
    "train_lora_flex2_24gb.yaml": with_dataset(
        example(
            model={"arch": "flex2", "quantize_te": True,
                   "model_kwargs": {"invert_inpaint_mask_chance": 0.5}},
            train={"timestep_type": "flux_shift", "bypass_guidance_embedding": True},
        ),
        controls=["depth", "line", "pose", "inpaint"],
    ),
    "train_lora_flex_24gb.yaml": example(
        model={"is_flux": True, "quantize_kwargs": {"exclude": ["*time_text_embed*"]}},
        train={"bypass_guidance_embedding": True},
    ),
    "train_lora_flux_24gb.yaml": example(model={"is_flux": True}),
    "train_lora_flux_kontext_24gb.yaml": with_dataset(
        example(
            model={"arch": "flux_kontext"}, train={"timestep_type": "weighted"},
            sample={"prompts": ["make it green --ctrl_img /a.jpg"]},
        ),
        control_path="/path/to/control",
    ),
    "train_lora_flux_schnell_24gb.yaml": example(
        model={"is_flux": True, "assistant_lora_path": "owner/adapter"}
    ),
    "train_lora_hidream_48.yaml": example(
        model={"arch": "hidream", "quantize_te": True, "model_kwargs": {"llama": "owner/llama"}},
        network={"network_kwargs": {"ignore_if_contains": ["ff_i.experts"]}},
        train={"timestep_type": "shift"},
    ),
    "train_lora_lumina.yaml": example(model={"is_lumina2": True, "quantize_te": True}),
    "train_lora_omnigen2_24gb.yaml": (
        "job: extension\nconfig:\n  name: x\n  process:\n  - type: sd_trainer\n"
        "    train: {lr: 1e-4}\n    network: {linear: 4}\n    datasets: []\n    model:\n"
        '      name_or_path: "owner/model\n      arch: "omnigen2"\n'
    ),
    "train_lora_qwen_image_24gb.yaml": example(
        model={"arch": "qwen_image", "qtype": "uint3|owner/recovery.safetensors",
               "qtype_te": "qfloat8", "low_vram": True, "quantize_te": True},
        train={"cache_text_embeddings": True, "timestep_type": "weighted"},
    ),
    "train_lora_qwen_image_edit_2509_32gb.yaml": with_dataset(
        example(
            model={"arch": "qwen_image_edit_plus"},
            sample={"samples": [{"prompt": "x", "ctrl_img_1": "/a.jpg", "ctrl_img_2": "/b.jpg"}]},
        ),
        control_path=["/one", "/two"],
    ),
    "train_lora_qwen_image_edit_32gb.yaml": with_dataset(
        example(model={"arch": "qwen_image_edit"}), control_path="/one"
    ),
    "train_lora_sd35_large_24gb.yaml": example(
        model={"is_v3": True}, train={"timestep_type": "linear"}
    ),
    "train_lora_wan21_14b_24gb.yaml": example(
        model={"arch": "wan21", "low_vram": True}, sample={"num_frames": 40, "fps": 15}
    ),
    "train_lora_wan21_1b_24gb.yaml": example(
        model={"arch": "wan21"}, sample={"num_frames": 40, "fps": 15}
    ),
    "train_lora_wan22_14b_24gb.yaml": example(
        model={"arch": "wan22_14b", "model_kwargs": {"train_high_noise": True}},
        train={"switch_boundary_every": 10},
    ),
    "train_slider.example.yml": {
        "job": "train",
        "config": {"name": "x", "training_folder": "o", "device": 0, "log_dir": "l",
                   "process": [{"type": "slider", "network": {"type": "lierla"}}]},
    },
    "advanced_generator/config/train.example.yaml": EMBEDDING,
    "concept_replacer/config/train.example.yaml": EMBEDDING,
    "image_reference_slider_trainer/config/train.example.yaml": SLIDER,
    "sd_trainer/config/train.example.yaml": EMBEDDING,
    "ultimate_slider_trainer/config/train.example.yaml": SLIDER,
    "example/config/config.example.yaml": {
        "job": "extension",
        "config": {"name": "x", "process": [{"type": "example_merge_extension",
                                             "save_path": "a", "dtype": "fp16",
                                             "models_to_merge": []}]},
    },
}  # fmt: skip


def ui_job(arch: str = "sd15") -> dict[str, Any]:
    """A job as the UI writes it."""
    return {
        "job": "extension",
        "config": {"name": "my_first_lora_v1", "process": [{
            "type": "diffusion_trainer", "training_folder": "/app/output",
            "sqlite_db_path": "./aitk_db.db", "device": "cuda", "trigger_word": None,
            "performance_log_every": 10,
            "network": {"type": "lora", "linear": 32, "linear_alpha": 32, "conv": 16,
                        "conv_alpha": 16, "lokr_full_rank": True, "lokr_factor": -1,
                        "network_kwargs": {"ignore_if_contains": []}},
            "save": {"dtype": "bf16", "save_every": 250, "max_step_saves_to_keep": 4,
                     "save_format": "diffusers", "push_to_hub": False},
            "datasets": [{"folder_path": "/data", "mask_path": None, "mask_min_value": 0.1,
                          "default_caption": "", "caption_ext": "txt",
                          "caption_dropout_rate": 0.05, "cache_latents_to_disk": False,
                          "is_reg": False, "network_weight": 1, "resolution": [512, 768, 1024],
                          "controls": [], "shrink_video_to_frames": True, "num_frames": 1,
                          "flip_x": False, "flip_y": False, "num_repeats": 1,
                          "control_path_1": None, "control_path_2": None, "do_i2v": False}],
            "train": {"batch_size": 1, "bypass_guidance_embedding": True, "steps": 3000,
                      "gradient_accumulation": 1, "train_unet": True, "train_text_encoder": False,
                      "gradient_checkpointing": True, "noise_scheduler": "ddpm",
                      "optimizer": "adamw8bit", "timestep_type": "sigmoid",
                      "content_or_style": "balanced", "optimizer_params": {"weight_decay": 1e-4},
                      "unload_text_encoder": False, "cache_text_embeddings": False, "lr": 1e-4,
                      "ema_config": {"use_ema": False, "ema_decay": 0.99},
                      "skip_first_sample": False, "force_first_sample": False,
                      "disable_sampling": False, "dtype": "bf16",
                      "diff_output_preservation": False, "max_loss": None,
                      "diff_output_preservation_multiplier": 1.0,
                      "diff_output_preservation_class": "person", "switch_boundary_every": 1,
                      "loss_type": "mse"},
            "logging": {"log_every": 1, "use_ui_logger": True},
            "model": {"name_or_path": "owner/model", "quantize": False, "qtype": "qfloat8",
                      "quantize_te": False, "qtype_te": "qfloat8", "arch": arch,
                      "low_vram": False, "model_kwargs": {}, "compile": False},
            "sample": {"sampler": "ddpm", "sample_every": 250, "sample_start_step": 0,
                       "width": 512, "height": 512,
                       "samples": [{"prompt": "a horse is a DJ at a night club"},
                                   {"prompt": "[trigger]", "ctrl_img": None, "ctrl_idx": 0}],
                       "neg": "", "seed": 42, "walk_seed": True, "guidance_scale": 6,
                       "sample_steps": 30, "num_frames": 1, "fps": 1},
        }]},
        "meta": {"name": "[name]", "version": "1.0"},
    }  # fmt: skip


def outcome(document: Any) -> str:
    """What happens to a config, as text."""
    text = document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False)
    try:
        if isinstance(document, dict) and document["job"] == "generate":
            parse_generation_text(text)
            return "passes"
        mentioned = check(parse_training_text(text))
    except InvalidConfig as error:
        return f"refused: {error}"
    return f"passes, mentioned: {'; '.join(mentioned)}" if mentioned else "passes"


def rows(title: str) -> list[tuple[str, str]]:
    """The rows of the table under a heading of the document."""
    section = DOCUMENT.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \| (.+) \|$", section, flags=re.MULTILINE)


def test_the_table_of_examples_is_whole():
    assert [name for name, _ in rows("Its examples")] == list(EXAMPLES)


@pytest.mark.parametrize(("name", "documented"), rows("Its examples"))
def test_an_example_of_ai_toolkit_has_the_outcome_that_is_documented(name, documented):
    found = outcome(copy.deepcopy(EXAMPLES[name]))
    kind, _, reason = documented.partition(": ")
    assert found.partition(":")[0] == kind
    assert "unknown key" not in found
    assert "input should be" not in found
    if name == "train_lora_omnigen2_24gb.yaml":
        assert "line 1" in found
    else:
        assert reason in found


def ui_archs() -> list[str]:
    text = (
        DOCUMENT.read_text(encoding="utf-8").split("## Jobs of its UI")[1].split("Its choices")[0]
    )
    return re.findall(r"`([a-z0-9_.:]+)`", text)


def test_a_job_of_the_ui_for_stable_diffusion_passes_without_a_word():
    assert outcome(ui_job()) == outcome(ui_job("sdxl")) == "passes"
    assert "passes for `sd15` and `sdxl`" in DOCUMENT.read_text(encoding="utf-8")


def test_a_job_of_an_older_ui_which_switches_on_what_only_videos_have_passes_without_a_word():
    job = ui_job()
    job["config"]["process"][0]["datasets"][0]["do_i2v"] = True
    assert outcome(job) == "passes"


def test_a_job_of_the_ui_for_every_other_model_is_refused_for_its_model():
    archs = [name for name in ui_archs() if name not in ("sd15", "sdxl")]
    assert len(archs) > 40
    for arch in archs:
        assert f"model.arch: '{arch}' can't be trained" in outcome(ui_job(arch)), arch


@pytest.mark.parametrize(("choice", "documented"), rows("Jobs of its UI"))
def test_a_choice_in_the_ui_has_the_outcome_that_is_documented(choice, documented):
    path, _, value = choice.partition(": ")
    document = ui_job()
    target: Any = document["config"]["process"][0]
    *parents, last = path.split(".")
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target[part]
    target[last] = yaml.safe_load(value)
    found = outcome(document)
    if "prodigy" in choice:
        assert found.startswith("passes")
        assert "finds the rate itself" in found
        return
    kind, _, reason = documented.partition(": ")
    assert found.partition(":")[0] == kind
    assert reason in found


def test_the_ui_s_job_in_json_is_the_same_config():
    text = json.dumps(ui_job(), indent=2)
    assert parse_training_text(text) == parse_training_text(yaml.safe_dump(ui_job()))


# Every key of ai-toolkit's config classes: what its default and its off values ask for


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "noise_multiplier", 1), ("train", "noise_multiplier", 1.0),
        ("train", "content_or_style_reg", "balanced"), ("train", "num_train_timesteps", 1000),
        ("train", "start_step", None), ("train", "max_loss", None), ("train", "do_cfg", "no"),
        ("train", "negative_prompt", ""), ("datasets", "network_weight", 1),
        ("datasets", "num_frames", 1), ("datasets", "controls", [""]),
        ("datasets", "type", "image"),
        ("network", "transformer_only", True), ("model", "qtype", "qfloat8"),
        ("sample", "num_frames", 1), ("train.ema_config", "param_multiplier", 1.0),
    ],
)  # fmt: skip
def test_a_default_of_ai_toolkit_asks_for_nothing(section, key, value):
    assert not ai_toolkit_keys.asks_for_something(section, key, value)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "noise_multiplier", 1.1), ("train", "num_train_timesteps", 500),
        ("train", "start_step", 10), ("train", "do_cfg", "yes"), ("datasets", "network_weight", 0),
        ("datasets", "controls", ["depth"]), ("network", "transformer_only", False),
        ("datasets", "buckets", False), ("train.ema_config", "param_multiplier", 0.9),
    ],
)  # fmt: skip
def test_another_value_asks_for_something(section, key, value):
    assert ai_toolkit_keys.asks_for_something(section, key, value)


@pytest.mark.parametrize(
    ("section", "model", "unset"),
    [
        ("network", NetworkSection, ai_toolkit_keys.NETWORK),
        ("datasets", DatasetSection, ai_toolkit_keys.DATASETS),
        ("train", TrainSection, ai_toolkit_keys.TRAIN),
        ("model", ModelSection, ai_toolkit_keys.MODEL),
        ("sample", SampleSection, ai_toolkit_keys.SAMPLE),
        ("samples", SampleItem, ai_toolkit_keys.SAMPLES),
        ("process", TrainingProcess, ai_toolkit_keys.PROCESS),
    ],
)
def test_null_and_no_value_of_every_key_pass_without_a_word(section, model, unset):
    for key in sorted(unset):
        assert key in model.known_keys()
        assert not ai_toolkit_keys.asks_for_something(section, key, None), key


def test_every_null_in_a_job_of_the_ui_passes():
    document = ui_job()
    process = document["config"]["process"][0]
    for name, section in process.items():
        if not isinstance(section, dict):
            continue
        for key in section:
            if (name, key) == ("model", "name_or_path"):
                continue
            changed = copy.deepcopy(document)
            changed["config"]["process"][0][name][key] = None
            assert outcome(changed).startswith("passes"), (name, key)
