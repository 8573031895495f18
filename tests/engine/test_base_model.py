"""Base models in every form that people have them, and what is said when one can't be loaded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from loradash.engines.diffusers.child.architecture import Architecture
from loradash.engines.diffusers.child.base_model import load_base_model
from loradash.engines.diffusers.families import BaseModelSource, find_base_model
from loradash.errors import InvalidBaseModel
from tests.engine.conftest import LocalTraining
from tests.engine.original_format import write_single_file

CPU = torch.device("cpu")


def load(source: BaseModelSource) -> Architecture:
    return load_base_model(source, torch.float32, CPU, offline=True)


def prediction(architecture: Architecture) -> torch.Tensor:
    conditioning = architecture.encode_captions(["a red apple"])[0]
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return architecture.predict(noisy, torch.tensor([400]), conditioning)


@pytest.fixture
def single_file(tiny_base: Path, tmp_path: Path) -> Path:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True)
    return write_single_file(pipeline, tmp_path / "model.safetensors")


def test_single_file_is_the_same_model_as_the_folder(tiny_base: Path, single_file: Path) -> None:
    from_file = load(find_base_model(str(single_file), extras=str(tiny_base)))
    from_folder = load(find_base_model(str(tiny_base)))
    torch.testing.assert_close(prediction(from_file), prediction(from_folder))


def test_single_file_trains(
    start: Callable[..., LocalTraining], tiny_base: Path, single_file: Path, square_dataset: Path
) -> None:
    training = start(
        {"model.extras_name_or_path": str(tiny_base)}, dataset=str(square_dataset),
        base_model=str(single_file), steps=2,
    )  # fmt: skip
    assert training.run().of("done")


def test_single_file_without_configuration_and_network_says_what_to_do(single_file: Path) -> None:
    with pytest.raises(InvalidBaseModel, match="extras_name_or_path"):
        load(find_base_model(str(single_file)))


def test_folder_of_half_precision_files_is_loaded(tiny_base: Path, tmp_path: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True)
    pipeline.to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    architecture = load(find_base_model(str(tmp_path / "half")))
    full = prediction(load(find_base_model(str(tiny_base))))
    torch.testing.assert_close(prediction(architecture), full, atol=5e-3, rtol=5e-2)


def test_pickled_weights_are_never_read(tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_base, folder)
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), folder / "unet/diffusion_pytorch_model.bin")
    weights.unlink()
    with pytest.raises(InvalidBaseModel):
        load(find_base_model(str(folder)))


def test_parts_that_a_single_file_lacks_are_not_read_from_pickles(
    tiny_base: Path, single_file: Path, tmp_path: Path
) -> None:
    """The loaders read them by a road of their own, which knows nothing of `use_safetensors`."""
    extras = tmp_path / "extras"
    shutil.copytree(tiny_base, extras)
    weights = extras / "text_encoder/model.safetensors"
    torch.save(load_file(weights), extras / "text_encoder/pytorch_model.bin")
    (extras / "text_encoder/diffusion_pytorch_model.bin").touch()  # whose presence they look for
    weights.unlink()
    parts = load_file(single_file)
    without_text = {key: part for key, part in parts.items() if "cond_stage_model" not in key}
    assert len(without_text) < len(parts)
    save_file(without_text, single_file)
    with pytest.raises(InvalidBaseModel, match="can run code when they are read") as caught:
        load(find_base_model(str(single_file), extras=str(extras)))
    assert ".safetensors" in caught.value.remedy


@pytest.mark.parametrize("name", ["model.SAFETENSORS", "model.ckpt", "model"])
def test_a_pickle_under_another_name_is_never_read(
    tiny_base: Path, single_file: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    torch.save({"state_dict": load_file(single_file)}, path)
    with pytest.raises(InvalidBaseModel, match=r"\.safetensors"):
        find_base_model(str(path), extras=str(tiny_base))
    source = BaseModelSource(
        name=name, kind="single_file", location=str(path), extras=str(tiny_base)
    )
    with pytest.raises(InvalidBaseModel, match="can run code when they are read"):
        load(source)


def test_a_link_to_a_file_of_the_hubs_cache_is_loaded(
    tiny_base: Path, single_file: Path, tmp_path: Path
) -> None:
    blob = single_file.rename(tmp_path / "0a1b2c")
    link = tmp_path / "linked.safetensors"
    link.symlink_to(blob)
    load(find_base_model(str(link), extras=str(tiny_base)))


def test_text_encoder_whose_names_do_not_match_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """The loader itself only logs a line and goes on with random weights."""
    folder = tmp_path / "renamed"
    shutil.copytree(tiny_base, folder)
    weights = folder / "text_encoder/model.safetensors"
    tensors = {f"other.{key}": value for key, value in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InvalidBaseModel, match="text encoder"):
        load(find_base_model(str(folder)))


@pytest.mark.parametrize("prefixed", [True, False])
def test_both_layouts_of_clip_keys_load(tiny_base: Path, tmp_path: Path, prefixed: bool) -> None:
    folder = tmp_path / "layout"
    shutil.copytree(tiny_base, folder)
    weights = folder / "text_encoder/model.safetensors"
    tensors = {
        f"{'text_model.' if prefixed else ''}{key.removeprefix('text_model.')}": value
        for key, value in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})
    assert torch.equal(
        prediction(load(find_base_model(str(folder)))),
        prediction(load(find_base_model(str(tiny_base)))),
    )


def test_hub_model_offline_names_the_ways_out() -> None:
    with pytest.raises(InvalidBaseModel, match="HF_HUB_OFFLINE"):
        load(find_base_model("somebody/some-model"))


def test_v_prediction_is_believed_where_the_config_says_so(tiny_base: Path) -> None:
    architecture = load(find_base_model(str(tiny_base)))
    assert architecture.training_schedule(None).config.prediction_type == "epsilon"
    assert architecture.training_schedule(True).config.prediction_type == "v_prediction"
