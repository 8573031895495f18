"""Rank and alpha that a training takes over from the adapter it starts from."""

import struct

import pytest

from loradash.engines.diffusers.adapters.dimensions import network_settings
from loradash.engines.diffusers.adapters.layers import read_adapter_layout

from .tensor_bytes import tensors


def settings(tmp_path, layers, values=None, dtype="F32", metadata=None):
    shapes = {}
    for name, (rank, kernel, has_alpha) in layers.items():
        shapes[f"{name}.lora_down.weight"] = (rank, 4, *kernel)
        shapes[f"{name}.lora_up.weight"] = (5, rank, *(1 for _ in kernel))
        shapes |= {f"{name}.alpha": ()} if has_alpha else {}
    path = tmp_path / "a.safetensors"
    path.write_bytes(tensors(shapes, metadata, dtype=dtype, values=values))
    return network_settings(read_adapter_layout(path))


@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        ("F64", struct.pack("<d", 2.5)),
        ("F32", struct.pack("<f", 2.5)),
        ("F16", struct.pack("<e", 2.5)),
        ("BF16", struct.pack("<f", 2.5)[2:]),
    ],
)
def test_alpha_is_read_in_every_type(tmp_path, dtype, data):
    found = settings(tmp_path, {"lora_unet_a": (8, (), True)}, {"lora_unet_a.alpha": data}, dtype)
    assert found == {"linear": 8, "linear_alpha": 2.5}


def test_without_an_alpha_the_change_is_as_strong_as_it_stands(tmp_path):
    assert settings(tmp_path, {"lora_unet_a": (8, (), False)}) == {"linear": 8, "linear_alpha": 8}


def test_convolutions_have_their_own_and_those_of_one_pixel_count_as_linear(tmp_path):
    layers = {
        "lora_unet_a": (8, (), False), "lora_unet_b": (8, (1, 1), False),
        "lora_unet_c": (2, (3, 3), False),
    }  # fmt: skip
    assert settings(tmp_path, layers) == {
        "linear": 8, "linear_alpha": 8, "conv": 2, "conv_alpha": 2,
    }  # fmt: skip


def test_of_several_ranks_the_greatest_counts_with_its_most_common_alpha(tmp_path):
    layers = {f"lora_unet_{n}": (rank, (), True) for n, rank in enumerate((4, 8, 8, 8))}
    alphas = dict(enumerate((4.0, 2.0, 3.0, 3.0)))
    values = {f"lora_unet_{n}.alpha": struct.pack("<f", alpha) for n, alpha in alphas.items()}
    assert settings(tmp_path, layers, values) == {"linear": 8, "linear_alpha": 3}
