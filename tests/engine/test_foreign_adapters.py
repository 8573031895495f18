"""The adapters that the tests make mean what diffusers reads out of them, where it reads them."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer

from tests.engine.foreign_adapters import KINDS, make

READ_BY_DIFFUSERS = [
    "kohya LoRA", "kohya LoRA without alpha", "kohya LoRA, text encoder only", "LoCon",
    "diffusers (lora_A, lora_B)", "diffusers with alpha in its metadata",
    "diffusers (lora.down, lora.up)", "diffusers before peft", "diffusers DoRA",
]  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tiny_base: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True)


@pytest.mark.parametrize("kind", READ_BY_DIFFUSERS)
def test_diffusers_reads_the_stated_change_of_every_layer(
    kind: str, pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    made = make(kind, pipeline)
    path = made.write(tmp_path / "foreign.safetensors")
    before = _weights(pipeline)
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)
    try:
        pipeline.fuse_lora(components=["unet", "text_encoder"])
        changes = {name: weight - before[name] for name, weight in _weights(pipeline).items()}
    finally:
        pipeline.unfuse_lora()
        pipeline.unload_lora_weights()
    changed = {name for name, change in changes.items() if change.abs().max() > 1e-4}
    assert changed == set(made.deltas)
    for name, expected in made.deltas.items():
        assert torch.allclose(changes[name], expected.float(), atol=1e-5), name


def test_every_kind_is_a_file_that_fits_the_base_model(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    weights = _weights(pipeline)
    for kind in KINDS:
        made = make(kind, pipeline)
        assert made.write(tmp_path / kind / "adapter_model.safetensors").stat().st_size
        for name, delta in made.deltas.items():
            assert delta.shape == weights[name].shape
            assert delta.isfinite().all()
            assert delta.abs().max() > 0


def _weights(pipeline: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    weights = {}
    for module in ("unet", "text_encoder"):
        for name, layer in getattr(pipeline, module).named_modules():
            base = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
            if isinstance(base, torch.nn.Linear | torch.nn.Conv2d) and "lora_" not in name:
                weights[f"{module}.{name.removesuffix('.base_layer')}"] = (
                    base.weight.detach().clone()
                )
    return weights
