"""Adapters of every make act as their format says, layer by layer, or are refused by name."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from loradash.engines.diffusers.adapters.layers import read_adapter_layout
from loradash.engines.diffusers.base_models.families import BaseModelSource, find_base_model
from loradash.engines.diffusers.child.adapter_reading import (
    ReadAdapter,
    put_adapter,
    read_adapter,
)
from loradash.engines.diffusers.child.architecture import AdaptedModule
from loradash.engines.diffusers.child.base_model import load_base_model
from loradash.engines.stop_signal import StopSignal
from loradash.errors import InvalidAdapter
from tests.engine.adapter_table import documented_outcomes
from tests.engine.conftest import Recorder
from tests.engine.foreign_adapters import KINDS, kohya_lora, make

DOCUMENTED = documented_outcomes()
REFUSED = {kind: words for kind, words in DOCUMENTED.items() if words is not None}


def loaded(source: BaseModelSource, dtype: torch.dtype) -> Any:
    emitter: Any = Recorder()
    return load_base_model(source, dtype, torch.device("cpu"), emitter, StopSignal(), offline=True)


@pytest.fixture(scope="module")
def architecture(tiny_base: Path) -> Any:
    source = find_base_model(str(tiny_base))
    return loaded(source, torch.float32)


@pytest.fixture
def modules(architecture: Any) -> Iterator[list[AdaptedModule]]:
    parts = [architecture.denoiser(), *architecture.text_encoders()]
    yield parts
    architecture.pipeline.unload_lora_weights()


def acting(modules: list[AdaptedModule], name: str = "new") -> dict[str, Tensor]:
    """What each layer of the loaded model adds to its weight, as peft itself tells it."""
    return {
        f"{module.name}.{path}": layer.get_delta_weight(name).detach()
        for module in modules
        for path, layer in module.module.named_modules()
        if isinstance(layer, BaseTunerLayer) and name in layer.lora_A
    }


def put(path: Path, modules: list[AdaptedModule]) -> ReadAdapter:
    read = read_adapter(path, modules)
    put_adapter(read, modules, "new")
    return read


def test_the_table_in_the_documents_has_every_kind_and_no_other() -> None:
    assert set(DOCUMENTED) == set(KINDS)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in REFUSED])
def test_every_layer_changes_by_what_the_format_says(
    kind: str, architecture: Any, modules: list[AdaptedModule], tmp_path: Path
) -> None:
    made = make(kind, architecture.pipeline)
    read = put(made.write(tmp_path / "adapter_model.safetensors"), modules)
    assert read.warnings == ()
    changes = acting(modules)
    assert set(changes) == set(made.deltas)
    for name, expected in made.deltas.items():
        difference = (changes[name].double() - expected).abs().max()
        assert difference <= 1e-6 * max(1.0, float(expected.abs().max())), name


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_adapter_for_this_base_model_is_refused_by_name(
    kind: str, architecture: Any, modules: list[AdaptedModule], tmp_path: Path
) -> None:
    path = make(kind, architecture.pipeline).write(tmp_path / "a.safetensors")
    with pytest.raises(InvalidAdapter, match=re.escape(REFUSED[kind] or "")) as caught:
        read_adapter(path, modules)
    assert caught.value.remedy


def test_half_the_weight_acts_half_as_strongly_whatever_the_make(
    architecture: Any, modules: list[AdaptedModule], tmp_path: Path
) -> None:
    made = make("DoRA", architecture.pipeline)
    put(made.write(tmp_path / "a.safetensors"), modules)
    for weight in (0.5, 0.0, -1.0):
        architecture.pipeline.set_adapters(["new"], [weight])
        for name, change in acting(modules).items():
            assert torch.allclose(change.double(), weight * made.deltas[name], atol=1e-6)


def changed(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return path


@pytest.fixture
def kohya(architecture: Any, tmp_path: Path) -> Path:
    return kohya_lora(architecture.pipeline).write(tmp_path / "good.safetensors")


def renamed(tensors: dict[str, Tensor], layers: list[str]) -> None:
    for key in list(tensors):
        if key.split(".")[0] in layers:
            tensors[key.replace("_attn", "_bttn").replace("ff", "gg")] = tensors.pop(key)


def names_of(path: Path) -> list[str]:
    return sorted({key.split(".")[0] for key in load_file(path)})


def test_layers_without_a_place_are_counted_and_named(
    kohya: Path, modules: list[AdaptedModule]
) -> None:
    names = [name for name in names_of(kohya) if "_attn" in name]
    total = len(names_of(kohya))
    changed(kohya, lambda tensors: renamed(tensors, names[:2]))
    read = put(kohya, modules)
    assert len(acting(modules)) == total - 2
    (warning,) = read.warnings
    assert f"2 of its {total} layers are not used" in warning
    assert "bttn" in warning


def test_an_adapter_of_which_nearly_nothing_fits_is_refused(
    kohya: Path, modules: list[AdaptedModule]
) -> None:
    names = names_of(kohya)
    keep = next(name for name in names if "_attn" in name)
    changed(
        kohya,
        lambda tensors: [
            tensors.update({f"x{key}": tensors.pop(key)})
            for key in list(tensors)
            if not key.startswith(keep)
        ],
    )
    with pytest.raises(InvalidAdapter, match=f"only 1 of the adapter's {len(names)} layers"):
        read_adapter(kohya, modules)
    assert not any(isinstance(one, BaseTunerLayer) for one in modules[0].module.modules())


def test_tensors_that_nothing_is_known_of_are_named(
    kohya: Path, modules: list[AdaptedModule]
) -> None:
    name = names_of(kohya)[0]
    changed(kohya, lambda tensors: tensors.update({f"{name}.lora_up.bias": torch.ones(4)}))
    (warning,) = read_adapter(kohya, modules).warnings
    assert "1 tensor of" in warning
    assert f"{name}.lora_up.bias" in warning


@pytest.mark.parametrize("part", ["lora_up.weight", "lora_down.weight", "alpha"])
def test_an_adapter_that_changes_nothing_is_named(
    kohya: Path, modules: list[AdaptedModule], part: str
) -> None:
    changed(kohya, lambda tensors: [tensors[key].zero_() for key in tensors if key.endswith(part)])
    (warning,) = read_adapter(kohya, modules).warnings
    assert "good.safetensors has no effect: every layer's change is zero" in warning


def test_a_layer_that_changes_nothing_beside_others_is_usual(
    kohya: Path, modules: list[AdaptedModule]
) -> None:
    name = names_of(kohya)[0]
    changed(kohya, lambda tensors: tensors[f"{name}.lora_up.weight"].zero_())
    assert read_adapter(kohya, modules).warnings == ()


def test_an_adapter_of_one_layer_without_a_place_is_refused(
    kohya: Path, modules: list[AdaptedModule]
) -> None:
    first = names_of(kohya)[0]
    tensors = {
        key.replace(first, f"{first}_x"): value
        for key, value in load_file(kohya).items()
        if key.startswith(f"{first}.")
    }
    save_file(tensors, kohya)
    with pytest.raises(InvalidAdapter, match="has no place for the adapter's only layer"):
        read_adapter(kohya, modules)


def test_peft_without_its_settings_says_that_alpha_is_unknown(
    architecture: Any, modules: list[AdaptedModule], tmp_path: Path
) -> None:
    made = make("peft", architecture.pipeline)
    made.beside = {}
    (warning,) = read_adapter(made.write(tmp_path / "a.safetensors"), modules).warnings
    assert "alpha is taken to be equal to the rank" in warning


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_that_are_not_finite_are_refused_with_and_without_torch(
    kohya: Path, modules: list[AdaptedModule], value: float, dtype: torch.dtype
) -> None:
    key = f"{names_of(kohya)[3]}.lora_up.weight"

    def spoil(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(dtype)
        tensors[key].view(-1)[-1] = value

    changed(kohya, spoil)
    for read in (lambda: read_adapter(kohya, modules),
                 lambda: read_adapter_layout(kohya, values=True)):  # fmt: skip
        with pytest.raises(InvalidAdapter, match="NaN or infinity") as caught:
            read()
        assert key in caught.value.message


def test_a_shape_of_another_base_model_is_told_with_both_shapes(
    kohya: Path, modules: list[AdaptedModule]
) -> None:
    key = next(
        f"{name}.lora_down.weight" for name in names_of(kohya) if name.endswith("attn2_to_k")
    )
    changed(kohya, lambda tensors: tensors.update({key: torch.ones(4, 1024)}))
    with pytest.raises(InvalidAdapter, match=r"down \[4, 1024\].*is \[32, 32\]"):
        read_adapter(kohya, modules)


def test_values_too_large_for_half_precision_are_refused_before_anything_is_loaded(
    tiny_base: Path, kohya: Path
) -> None:
    source = find_base_model(str(tiny_base))
    half = loaded(source, torch.float16)
    parts = [half.denoiser(), *half.text_encoders()]
    key = f"{names_of(kohya)[0]}.lora_up.weight"
    changed(kohya, lambda tensors: tensors[key].view(-1)[:1].fill_(1e6))
    read = read_adapter(kohya, parts)
    with pytest.raises(InvalidAdapter, match="too large for float16"):
        put_adapter(read, parts, "new")


def test_two_adapters_stand_beside_each_other(
    architecture: Any, modules: list[AdaptedModule], tmp_path: Path
) -> None:
    one = make("LoHa", architecture.pipeline)
    other = make("kohya LoRA, text encoder only", architecture.pipeline)
    put(one.write(tmp_path / "one.safetensors"), modules)
    read = read_adapter(other.write(tmp_path / "other.safetensors"), modules)
    put_adapter(read, modules, "other")
    assert set(acting(modules)) == set(one.deltas)
    assert set(acting(modules, "other")) == set(other.deltas)
    architecture.pipeline.set_adapters(["new", "other"], [1.0, 0.5])
    architecture.pipeline.delete_adapters("new")
    assert set(acting(modules, "other")) == set(other.deltas)


@pytest.mark.parametrize("kind", ["lora", "diff", "lokr"])
def test_a_change_of_another_width_is_refused_even_if_it_has_as_many_numbers(
    kind: str, architecture: Any, modules: list[AdaptedModule], tmp_path: Path
) -> None:
    name = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    weight = architecture.pipeline.text_encoder.encoder.layers[0].self_attn.q_proj.weight
    width = weight.shape[0]
    tensors = {
        "lora": {"lora_down.weight": (4, 2 * width), "lora_up.weight": (2 * width, 4)},
        "diff": {"diff": (2 * width, width // 2)},
        "lokr": {"lokr_w1": (2, 2), "lokr_w2": (width, width // 4)},
    }[kind]
    path = tmp_path / "a.safetensors"
    save_file({f"{name}.{part}": torch.ones(shape) for part, shape in tensors.items()}, path)
    with pytest.raises(InvalidAdapter, match="doesn't fit this base model"):
        read_adapter(path, modules)
