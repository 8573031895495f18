"""Base models in every form that people have them, and what is said when one can't be loaded."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from loradash.domain.training_config import TrainSection
from loradash.engines.diffusers.base_models.families import BaseModelSource, find_base_model
from loradash.engines.diffusers.child.architecture import Architecture, ImageFacts
from loradash.engines.diffusers.child.base_model import load_base_model
from loradash.engines.stop_signal import StopSignal
from loradash.errors import Interrupted, InvalidBaseModel
from tests.engine.conftest import LocalTraining, Recorder
from tests.engine.original_format import write_single_file
from tests.hub_stand_in import HubStandIn, in_place_of_the_hub

CPU = torch.device("cpu")


def load(
    source: BaseModelSource,
    dtype: torch.dtype = torch.float32,
    *,
    recorder: Recorder | None = None,
    stop: StopSignal | None = None,
    offline: bool = True,
) -> Architecture:
    emitter: Any = recorder or Recorder()
    return load_base_model(source, dtype, CPU, emitter, stop or StopSignal(), offline=offline)


def prediction(architecture: Architecture) -> torch.Tensor:
    captions = architecture.encode_captions(["a red apple"])
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        facts = ImageFacts((16, 16), (0, 0), (16, 16))
        return architecture.predict(noisy, torch.tensor([400]), captions, [facts])


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
    with pytest.raises(InvalidBaseModel, match="run code when it is read"):
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
    with pytest.raises(InvalidBaseModel, match="text_encoder"):
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


@pytest.mark.parametrize("told", [None, 10**30])
def test_texts_are_cut_at_the_text_encoders_last_position(
    tiny_base: Path, tmp_path: Path, told: int | None
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_base, folder)
    path = folder / "tokenizer/tokenizer_config.json"
    config = json.loads(path.read_text())
    path.unlink()
    if told is not None:
        path.write_text(json.dumps({**config, "model_max_length": told}))
    architecture = load(find_base_model(str(folder)))
    (encoded,) = architecture.encode_captions(["a red fox " * 20])
    assert encoded["text"].shape[-2] == 16
    assert architecture.cut("a red fox " * 20) is not None


def rewritten(base: Path, folder: Path, part: str, change: Callable[[dict], None]) -> Path:
    """A copy of the base model with other tensors in one of its networks."""
    shutil.copytree(base, folder)
    (weights,) = (folder / part).glob("*.safetensors")
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_told_by_name(
    tiny_base: Path, tmp_path: Path, part: str, value: float
) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        key = next(key for key in sorted(tensors) if "layers.1" in key or "resnets.0" in key)
        tensors[key].view(-1)[0] = value

    folder = rewritten(tiny_base, tmp_path / "broken", part, damage)
    with pytest.raises(InvalidBaseModel, match="holds NaN or infinite values") as caught:
        load(find_base_model(str(folder)))
    assert f"{part}: " in caught.value.message
    assert "resnets.0" in caught.value.message or "layers.1" in caught.value.message


def test_values_that_do_not_fit_into_fp16_name_the_other_precisions(
    tiny_base: Path, tmp_path: Path
) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["conv_in.weight"].view(-1)[0] = 1e6

    folder = rewritten(tiny_base, tmp_path / "broken", "unet", damage)
    with pytest.raises(InvalidBaseModel, match=r"conv_in\.weight can't be held in fp16") as caught:
        load(find_base_model(str(folder)), torch.float16)
    assert "bf16" in caught.value.remedy
    load(find_base_model(str(folder)))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_missing_tensor_is_told_by_name_and_never_left_random(
    tiny_base: Path, tmp_path: Path, part: str
) -> None:
    missing: list[str] = []

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        missing.append(next(key for key in sorted(tensors) if "1" in key and "norm" in key))
        del tensors[missing[0]]

    folder = rewritten(tiny_base, tmp_path / "broken", part, damage)
    with pytest.raises(InvalidBaseModel) as caught:
        load(find_base_model(str(folder)))
    assert missing[0].removeprefix("text_model.") in caught.value.message
    assert f"{part}/" in caught.value.message


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_tensor_of_another_shape_is_told_by_name(
    tiny_base: Path, tmp_path: Path, part: str
) -> None:
    changed: list[str] = []

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        changed.append(next(key for key in sorted(tensors) if "norm" in key))
        tensors[changed[0]] = torch.zeros(3)

    folder = rewritten(tiny_base, tmp_path / "broken", part, damage)
    with pytest.raises(InvalidBaseModel) as caught:
        load(find_base_model(str(folder)))
    assert changed[0].removeprefix("text_model.") in caught.value.message


# On the hub


@pytest.fixture
def hub(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with in_place_of_the_hub(tmp_path / "cache", monkeypatch) as served:
        root = tmp_path / "served"
        shutil.copytree(tiny_base, root)
        for name in (
            "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
            "safety_checker/model.safetensors", "v1-5-pruned.ckpt", "v1-5.safetensors", "README.md",
        ):  # fmt: skip
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(b"not needed")
        served.repositories["fake/tiny"] = root
        yield served


def test_of_a_repository_only_what_is_needed_is_downloaded(
    hub: HubStandIn, tiny_base: Path
) -> None:
    recorder = Recorder()
    phases: list[str] = []
    recorder.phase = lambda phase, detail="", done=None, total=None: phases.append(detail)  # type: ignore[method-assign]
    architecture = load(find_base_model("fake/tiny"), recorder=recorder, offline=False)
    assert torch.equal(prediction(architecture), prediction(load(find_base_model(str(tiny_base)))))
    fetched = {path for path, size in hub.sent.items() if size and path}
    assert fetched == {
        path.relative_to(tiny_base).as_posix() for path in tiny_base.rglob("*") if path.is_file()
    }
    assert phases[-1].startswith("fake/tiny: ")
    assert phases[-1].endswith(" downloaded")
    before = len(hub.requests)
    load(find_base_model("fake/tiny"))
    assert len(hub.requests) == before  # it is whole in the cache, and downloads are off


def test_a_download_that_breaks_off_goes_on(hub: HubStandIn) -> None:
    unet = "unet/diffusion_pytorch_model.safetensors"
    hub.cut[unet] = 1
    load(find_base_model("fake/tiny"), offline=False)
    assert hub.cut[unet] == 0


def test_a_stop_ends_a_download_and_the_next_one_goes_on_with_the_files_that_lack(
    hub: HubStandIn,
) -> None:
    stop = StopSignal()
    recorder = Recorder()
    recorder.phase = lambda *told, **more: stop.request()  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        load(find_base_model("fake/tiny"), recorder=recorder, stop=stop, offline=False)
    hub.sent.clear()
    load(find_base_model("fake/tiny"), offline=False)
    assert "model_index.json" not in hub.sent


def test_a_download_that_fails_is_told_with_its_file_and_cause(hub: HubStandIn) -> None:
    with pytest.raises(InvalidBaseModel) as caught:
        name = "unet/diffusion_pytorch_model.safetensors"
        recorder = Recorder()
        recorder.phase = lambda *told, **more: hub.failing_files.update({name: (503, {})})  # type: ignore[method-assign]
        load(find_base_model("fake/tiny"), recorder=recorder, offline=False)
    assert "unet/diffusion_pytorch_model.safetensors broke off" in caught.value.message
    assert "error of its own (503)" in caught.value.message


def test_a_single_file_takes_its_configs_from_the_hub(
    hub: HubStandIn, single_file: Path, tiny_base: Path
) -> None:
    architecture = load(find_base_model(str(single_file), extras="fake/tiny"), offline=False)
    torch.testing.assert_close(
        prediction(architecture), prediction(load(find_base_model(str(tiny_base))))
    )
    assert hub.bytes_of(".safetensors") == 0


def test_v_prediction_is_believed_where_the_config_says_so(tiny_base: Path) -> None:
    for told, kind in ((None, "epsilon"), (True, "v_prediction"), (False, "epsilon")):
        architecture = load(find_base_model(str(tiny_base), is_v_pred=told))
        assert architecture.objective(TrainSection(), CPU).prediction_type == kind
        assert architecture.pipeline.scheduler.config.prediction_type == kind
