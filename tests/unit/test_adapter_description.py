from datetime import UTC, datetime

from loradash.domain.adapter import AdapterDescription


def describe(**changes):
    facts = {
        "name": "mine", "process_id": "train_01k9x3q4zt8m2v7c0hde", "rank": 8, "alpha": 4.0,
        "created_at": datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC), "base_model": "emoji-base",
        "architecture": "stable-diffusion-v1", "trigger_word": "sks", "steps": 30, "batch_size": 2,
        "learning_rate": 1e-4, "resolution": 64, "prediction_type": "epsilon",
        "dataset_sha256": "ab", "dataset_images": 5, "seed": 3,
    }  # fmt: skip
    return AdapterDescription(**{**facts, **changes}).metadata("cd")


def test_metadata_is_text_only_as_safetensors_wants_it():
    metadata = describe()
    assert all(type(key) is type(value) is str for key, value in metadata.items())


def test_metadata_tells_other_programs_rank_alpha_and_architecture():
    metadata = describe()
    assert metadata["ss_network_dim"] == "8"
    assert metadata["ss_network_alpha"] == "4"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.date"] == "2025-01-02T03:04:05+00:00"
    assert metadata["modelspec.hash_sha256"] == "0xcd"
    assert metadata["modelspec.trigger_phrase"] == "sks"


def test_the_kind_of_prediction_is_named_as_modelspec_does():
    assert describe()["modelspec.prediction_type"] == "epsilon"
    assert describe(prediction_type="v_prediction")["modelspec.prediction_type"] == "v"
