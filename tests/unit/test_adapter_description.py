"""What an adapter file says about itself."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from loradash.domain.adapter import AdapterDescription, BaseModelNames, DatasetSummary
from loradash.domain.adapter_metadata import adapter_metadata
from loradash.domain.engine_use import EngineUse
from loradash.domain.kohya.conversion import convert
from loradash.domain.training_text import parse_training
from loradash.errors import InvalidConfig

SD1 = BaseModelNames(modelspec="stable-diffusion-v1", kohya="sd_v1", is_v2=False)
SD2_V = BaseModelNames(modelspec="stable-diffusion-v2-768-v", kohya="sd_v2_v", is_v2=True)


def job(meta=None, datasets=None, trigger_word="sks", **sections):
    process = {
        "type": "sd_trainer", "trigger_word": trigger_word, "training_seed": 3,
        "network": {"linear": 8, "linear_alpha": 4}, "model": {"name_or_path": "/home/ann/base"},
        "datasets": datasets or [{"folder_path": "/home/ann/photos", "resolution": 64}],
        "train": {"steps": 30, "batch_size": 2, "lr": 1e-4},
    }  # fmt: skip
    for name, section in sections.items():
        process[name] = {**process.get(name, {}), **section}
    document = {"job": "extension", "config": {"name": "mine", "process": [process]}}
    return parse_training({**document, **({"meta": meta} if meta else {})})


def describe(config=None, **changes):
    config = config or job()
    summaries = tuple(
        DatasetSummary(
            section=section, images=5 - n, items_per_epoch=(5 - n) * section.num_repeats,
            buckets=(((64, 48), 2), ((64, 64), 3)), tags=(("sks blob", 4), ("rot, grün"[5:], 1)),
        )
        for n, section in enumerate(config.process.datasets)
    )  # fmt: skip
    facts = {
        "engine": EngineUse(name="diffusers", version="7.1"),
        "process_id": "train_01k9x3q4zt8m2v7c0hde", "config": config,
        "created_at": datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC), "base_model": "/home/ann/base",
        "base_model_is_local": True, "names": SD1, "prediction_type": "epsilon",
        "zero_terminal_snr": False, "precision": "fp16", "caption_tokens": 75, "steps": 30,
        "optimizer": "torch.optim.adamw.AdamW(weight_decay=0.01)", "dataset_sha256": "ab",
        "datasets": summaries,
    }  # fmt: skip
    return adapter_metadata(AdapterDescription(**{**facts, **changes}))


def test_metadata_names_the_engine_and_the_version_that_wrote_the_job():
    metadata = describe()
    assert (metadata["loradash.engine"], metadata["loradash.engine_version"]) == (
        "diffusers",
        "7.1",
    )
    of_an_older_job = describe(engine=EngineUse())
    assert of_an_older_job["loradash.engine"] == "diffusers"
    assert "loradash.engine_version" not in of_an_older_job


def test_metadata_is_text_only_as_safetensors_wants_it():
    metadata = describe(job(meta={"version": 2, "trigger_words": ["sks"], "any": {"of": None}}))
    assert all(type(key) is type(value) is str for key, value in metadata.items())


def test_metadata_tells_other_programs_rank_alpha_and_architecture():
    metadata = describe()
    assert metadata["ss_network_dim"] == "8"
    assert metadata["ss_network_alpha"] == "4"
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.implementation"] == "diffusers"
    assert metadata["modelspec.date"] == "2025-01-02T03:04:05+00:00"
    assert metadata["modelspec.trigger_phrase"] == "sks"
    assert metadata["ss_v2"] == "False"
    assert metadata["ss_base_model_version"] == "sd_v1"


def test_an_adapter_of_stable_diffusion_2_says_so_in_every_place():
    metadata = describe(names=SD2_V, prediction_type="v_prediction")
    assert metadata["ss_v2"] == "True"
    assert metadata["ss_base_model_version"] == "sd_v2_v"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert metadata["modelspec.prediction_type"] == "v"


def test_nothing_is_said_of_what_is_not_there():
    metadata = describe(job(trigger_word=None))
    assert "modelspec.trigger_phrase" not in metadata
    for name in ("description", "author", "license", "tags", "thumbnail", "timestep_range"):
        assert f"modelspec.{name}" not in metadata
    assert "ss_network_args" not in metadata
    assert "ss_training_finished_at" not in metadata


def test_images_are_counted_with_repeats_and_apart_from_regularisation_images():
    config = job(
        datasets=[
            {"folder_path": "/home/ann/photos", "num_repeats": 3, "resolution": 64},
            {"folder_path": "C:\\dogs\\", "is_reg": True},
        ]
    )
    metadata = describe(config)
    assert metadata["ss_num_train_images"] == "15"
    assert metadata["ss_num_reg_images"] == "4"
    assert json.loads(metadata["ss_dataset_dirs"]) == {"photos": {"n_repeats": 3, "img_count": 5}}
    assert json.loads(metadata["ss_reg_dataset_dirs"]) == {"dogs": {"n_repeats": 1, "img_count": 4}}
    first, second = json.loads(metadata["ss_datasets"])
    assert (first["num_train_images"], first["num_reg_images"]) == (15, 0)
    assert second["subsets"][0]["is_reg"] is True
    # 15 of one kind and as many of the other, in batches of two, are an epoch.
    assert metadata["ss_num_batches_per_epoch"] == "15"
    assert (metadata["ss_epoch"], metadata["ss_num_epochs"]) == ("2", "2")
    assert describe(config, steps=15)["ss_epoch"] == "1"


def test_folders_of_the_same_name_are_told_apart():
    config = job(datasets=[{"folder_path": "/a/photos"}, {"folder_path": "/b/photos"}])
    assert list(json.loads(describe(config)["ss_dataset_dirs"])) == ["photos", "photos (2)"]


def test_a1111_reads_tags_sizes_date_and_model_out_of_the_metadata():
    metadata = describe()
    tags = json.loads(metadata["ss_tag_frequency"])
    assert tags == {"photos": {"sks blob": 4, "grün": 1}}
    buckets = json.loads(metadata["ss_bucket_info"])["buckets"]
    assert [bucket["resolution"] for bucket in buckets.values()] == [[64, 48], [64, 64]]
    assert [bucket["count"] for bucket in buckets.values()] == [2, 3]
    assert datetime.fromtimestamp(float(metadata["ss_training_started_at"]), UTC).year == 2025
    assert metadata["ss_sd_model_name"] == "base"
    assert metadata["ss_resolution"] == "(64, 64)"
    assert metadata["ss_clip_skip"] == "None"


def test_settings_of_the_training_stand_in_the_words_of_sd_scripts():
    config = job(
        train={"text_encoder_lr": 5e-5, "train_text_encoder": True, "noise_offset": 0.1,
               "min_snr_gamma": 5, "loss_type": "mae", "gradient_accumulation": 4,
               "lr_scheduler": "cosine", "min_denoising_steps": 100},
        network={"conv": 2, "conv_alpha": 1},
    )  # fmt: skip
    metadata = describe(config)
    expected = {
        "ss_learning_rate": "0.0001", "ss_unet_lr": "0.0001", "ss_text_encoder_lr": "5e-05",
        "ss_noise_offset": "0.1", "ss_min_snr_gamma": "5.0", "ss_loss_type": "l1",
        "ss_gradient_accumulation_steps": "4", "ss_total_batch_size": "8",
        "ss_lr_scheduler": "cosine", "ss_mixed_precision": "fp16", "ss_max_token_length": "75",
        "ss_network_args": '{"conv_dim": "2", "conv_alpha": "1"}', "ss_seed": "3",
        "ss_cache_latents": "True", "modelspec.timestep_range": "100,999",
        "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.01)",
    }  # fmt: skip
    assert {key: metadata.get(key) for key in expected} == expected


def test_alpha_that_is_multiplied_into_the_weights_is_told_as_the_rank():
    config = job(network={"conv": 2, "conv_alpha": 1})
    metadata = describe(config, scale_in_weights=True)
    assert metadata["ss_network_alpha"] == "8"
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "2"}
    assert metadata["loradash.alpha"] == "4"


def test_what_the_user_says_gets_its_place_and_keeps_its_own_name():
    meta = {
        "title": "My [name]", "description": "# Blobs\nfor all", "license": "CC0", "tags": "a, b",
        "usage_hint": "say sks", "creator": {"name": "Ann", "email": "ann@example.org"},
        "version": "1.0", "trigger_words": ["sks"], "name": "[name]",
    }  # fmt: skip
    metadata = describe(job(meta=meta))
    assert metadata["modelspec.title"] == "My mine"
    assert metadata["modelspec.description"] == "# Blobs\nfor all"
    assert metadata["modelspec.author"] == "Ann"
    assert metadata["modelspec.tags"] == "a, b"
    assert metadata["modelspec.usage_hint"] == "say sks"
    assert metadata["modelspec.license"] == "CC0"
    assert metadata["version"] == "1.0"
    assert metadata["name"] == "mine"
    assert json.loads(metadata["trigger_words"]) == ["sks"]


def test_the_short_form_takes_what_the_file_shall_say():
    config = parse_training(
        {"dataset": "d", "base_model": "b", "author": "Ann", "tags": "a,b", "metadata": "minimal"}
    )
    assert (config.meta.author, config.meta.tags) == ("Ann", ["a", "b"])
    assert config.process.save.metadata == "minimal"


def test_what_sd_scripts_was_told_to_write_or_not_is_written_or_not_here_too():
    settings = {
        "pretrained_model_name_or_path": "/base.safetensors", "train_data_dir": "/photos",
        "network_module": "networks.lora", "max_train_steps": 10, "no_metadata": True,
        "metadata_title": "My blob",
        "metadata_author": "Ann", "resolution": "512",
    }  # fmt: skip
    files = SimpleNamespace(
        folders=lambda path: ["10_sks"], images=lambda path: 3, text=lambda path: None,
        images_beside=lambda path: 0,
    )  # fmt: skip
    config = parse_training(convert(settings, None, files).document)
    assert config.process.save.metadata == "minimal"
    assert (config.meta.title, config.meta.author) == ("My blob", "Ann")


@pytest.mark.parametrize(
    ("meta", "named"),
    [
        ({"modelspec.author": "x"}, "modelspec.author"),
        ({"ss_v2": "True"}, "ss_v2"),
        ({"format": "x"}, "format"),
        ({"description": "x" * 50_001}, "description"),
        ({"notes": "x" * 100_001}, "100000 characters"),
        ({"number": float("nan")}, "JSON"),
    ],
)
def test_what_the_file_cannot_say_is_refused_by_name(meta, named):
    with pytest.raises(InvalidConfig) as refused:
        job(meta=meta)
    assert named in str(refused.value.problems)


def test_minimal_metadata_tells_nothing_of_the_data():
    metadata = describe(
        job(save={"metadata": "minimal"}, network={"conv": 2}, meta={"author": "Ann"}),
        thumbnail="data:image/jpeg;base64,AAAA",
    )
    text = json.dumps(metadata)
    for told in ("photos", "ann/base", "sks blob", "AAAA", "dataset"):
        assert told not in text
    assert {key for key in metadata if key.startswith("ss_")} == {
        "ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim",
        "ss_network_alpha", "ss_network_args",
    }  # fmt: skip
    assert metadata["modelspec.author"] == "Ann"
    assert metadata["loradash.rank"] == "8"
