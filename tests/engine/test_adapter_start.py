"""A training that starts from an adapter acts as its file does at step 0, or is refused before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from loradash.engines.diffusers.child.adapter_reading import read_adapter
from loradash.engines.diffusers.child.architecture import AdaptedModule
from loradash.engines.diffusers.child.stable_diffusion import StableDiffusion
from loradash.errors import InvalidAdapter
from tests.engine.conftest import LocalTraining
from tests.engine.foreign_adapters import ForeignAdapter, make
from tests.engine.test_adapter_file import our_image

Start = Callable[..., LocalTraining]


@pytest.fixture(scope="module")
def pipeline(tiny_base: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True)


def parts(pipeline: StableDiffusionPipeline) -> list[AdaptedModule]:
    architecture = StableDiffusion(pipeline)
    return [architecture.denoiser(), *architecture.text_encoders()]


@pytest.fixture
def begin(
    start: Start, tiny_base: Path, square_dataset: Path, tmp_path: Path
) -> Callable[..., LocalTraining]:
    def submit(made: ForeignAdapter, full: dict[str, Any], **short: Any) -> LocalTraining:
        path = made.write(tmp_path / "begin.safetensors")
        return start(
            {"network.pretrained_lora_path": str(path), "save.dtype": "float32", **full},
            dataset=str(square_dataset), base_model=str(tiny_base), steps=1, learning_rate=1e-9,
            **short,
        )  # fmt: skip

    return submit


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("kohya LoRA", {"train.train_text_encoder": True}),
        ("kohya LoRA", {"train.train_text_encoder": True, "network.linear_alpha": 3}),
        ("LoCon", {"train.train_text_encoder": True, "network.conv": 2, "network.conv_alpha": 7}),
        ("LoCon with a core (lora_mid)", {"network.conv": 4}),
        ("diffusers with alpha in its metadata", {"train.train_text_encoder": True}),
        ("peft", {"train.train_text_encoder": False}),
    ],
)
def test_what_was_started_from_acts_as_strongly_as_the_file_whatever_the_alphas(
    kind: str, settings: dict[str, Any], begin: Callable[..., LocalTraining],
    pipeline: StableDiffusionPipeline,
) -> None:  # fmt: skip
    made = make(kind, pipeline)
    for name in [name for name in made.deltas if "conv_shortcut" in name]:
        del made.deltas[name]  # 1x1: sd-scripts gives it the rank of linear layers, as we do
    for name in [name for name in made.tensors if "conv_shortcut" in name]:
        del made.tensors[name]
    training = begin(made, settings)
    assert training.run().of("done")
    read = read_adapter(training.adapter, parts(pipeline))
    deltas = {
        f"{part}.{name}": change.delta()
        for part, changes in read.changes.items()
        for name, change in changes.items()
    }
    assert set(made.deltas) <= set(deltas)
    for name, expected in made.deltas.items():
        change = deltas.pop(name).reshape(expected.shape).double()
        assert torch.allclose(change, expected, atol=2e-6), name
    assert all(change.abs().max() < 1e-6 for change in deltas.values())


def test_the_preview_of_step_0_is_what_the_file_draws(
    begin: Callable[..., LocalTraining], pipeline: StableDiffusionPipeline, tiny_base: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    made = make("kohya LoRA, resized", pipeline)
    for name in [key for key in made.tensors if key.endswith("lora_down.weight")]:
        layer = name.removesuffix(".lora_down.weight")
        made.tensors[name] = made.tensors[name][:1].contiguous()
        up = made.tensors[f"{layer}.lora_up.weight"]
        made.tensors[f"{layer}.lora_up.weight"] = up[:, :1].contiguous()
    sample = {"prompt": "a sks blob", "width": 32, "height": 32}
    training = begin(
        made,
        {"train.train_text_encoder": True, "network.linear": 1, "network.linear_alpha": 4,
         "sample.samples": [sample], "sample.sample_steps": 4, "sample.guidance_scale": 3,
         "sample.seed": 5, "sample.sampler": "ddim", "train.skip_first_sample": False},
    )  # fmt: skip
    training.run()
    with Image.open(training.folder / "samples/step-000000000-0.png") as image:
        preview = np.asarray(image, dtype=np.float32) / 255
    drawn = our_image(tiny_base, tmp_path / "begin.safetensors", tmp_path / "drawn")
    assert np.abs(drawn - preview).max() <= 1 / 255


@pytest.mark.parametrize(
    ("kind", "settings", "problem"),
    [
        ("kohya LoRA", {}, "set train.train_text_encoder to true"),
        ("kohya LoRA, text encoder only", {}, "set train.train_text_encoder to true"),
        ("kohya LoRA", {"train.train_text_encoder": True, "train.train_unet": False},
         "set train.train_unet"),
        ("kohya LoRA", {"train.train_text_encoder": True, "network.linear": 8},
         "set network.linear to 4"),
        ("LoCon", {"train.train_text_encoder": True}, "set network.conv to 2"),
        ("LoCon", {"train.train_text_encoder": True, "network.conv": 4}, "set network.conv to 2"),
        ("kohya LoRA, resized", {"train.train_text_encoder": True}, "ranks of its layers differ"),
        ("LoHa", {}, "it is LoHa"),
        ("LoKr", {}, "it is LoKr"),
        ("DoRA", {}, "it is DoRA"),
    ],
)  # fmt: skip
def test_a_start_that_would_lose_something_is_refused_before_anything_is_loaded(
    kind: str, settings: dict[str, Any], problem: str, begin: Callable[..., LocalTraining],
    pipeline: StableDiffusionPipeline,
) -> None:  # fmt: skip
    with pytest.raises(InvalidAdapter) as caught:
        begin(make(kind, pipeline), settings)
    assert any(problem in one for one in caught.value.problems)


def test_layers_that_the_settings_leave_out_are_named_and_stop_the_start(
    begin: Callable[..., LocalTraining], pipeline: StableDiffusionPipeline
) -> None:
    run = begin(make("peft", pipeline), {"network.target_modules": ["to_k", "to_v"]}).run()
    (failed,) = run.of("failed")
    assert failed.code == "adapter_invalid"
    assert "not trained with these settings" in failed.message
    assert "unet.down_blocks.1.attentions.0.proj_in" in failed.message


def test_layers_that_the_file_has_not_start_anew_and_are_named(
    begin: Callable[..., LocalTraining], pipeline: StableDiffusionPipeline
) -> None:
    made = make("kohya LoRA, text encoder only", pipeline)
    run = begin(made, {"train.train_text_encoder": True}).run()
    assert run.of("done")
    (warning,) = [one for one in run.of("warning") if one.code == "adapter_partly_used"]
    assert "start anew: unet." in warning.message


def test_a_file_of_zeros_says_so_and_its_layers_learn(
    begin: Callable[..., LocalTraining], pipeline: StableDiffusionPipeline
) -> None:
    made = make("kohya LoRA", pipeline)
    for name in made.tensors:
        if not name.endswith("alpha"):
            made.tensors[name] = torch.zeros_like(made.tensors[name])
    training = begin(made, {"train.train_text_encoder": True})
    recorder = training.run()
    assert any("has no effect" in one.message for one in recorder.of("warning"))
    tensors = load_file(training.adapter)
    assert all(tensor.any() for name, tensor in tensors.items() if "lora_down" in name)
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_up" in name)


def test_a_file_that_holds_nan_is_refused(
    begin: Callable[..., LocalTraining], pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    made = make("peft", pipeline)
    path = made.write(tmp_path / "nan.safetensors")
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, path)
    made.tensors = tensors
    with pytest.raises(InvalidAdapter, match="NaN or infinity"):
        begin(made, {})
