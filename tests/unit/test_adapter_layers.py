"""Which files are adapters, told by their headers: layers by any program's names, or a reason."""

import json
import struct

import pytest

from loradash.engines.diffusers.adapters.layers import read_adapter_layout
from loradash.engines.diffusers.adapters.tensor_files import (
    NotTensors,
    not_finite,
    read_tensor_file,
)
from loradash.errors import InvalidAdapter
from tests.unit.tensor_bytes import file_of, lora, tensors

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = LAYER.replace(".", "_")
TEXT = "text_model.encoder.layers.0.self_attn.q_proj"
GOOD = lora(f"lora_unet_{FLAT}")


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "a.safetensors"
        path.write_bytes(content)
        return path

    return write


def pair(down, up):
    return tensors({down: (2, 3), up: (5, 2)})


@pytest.mark.parametrize(
    ("content", "component", "flat_name"),
    [
        (lora(f"lora_unet_{FLAT}"), "unet", FLAT),
        (lora(f"lycoris_{FLAT}"), "", FLAT),
        (lora(f"lora_te_{TEXT.replace('.', '_')}"), "text_encoder",
         "encoder_layers_0_self_attn_q_proj"),
        (lora("lora_te2_text_model_encoder_layers_0_mlp_fc1"), "text_encoder_2",
         "encoder_layers_0_mlp_fc1"),
        (lora("lora_unet_input_blocks_7_1_transformer_blocks_9_attn1_to_q"), "unet",
         "input_blocks_7_1_transformer_blocks_9_attn1_to_q"),
        (lora("diffusion_model.middle_block.1.proj_in"), "unet", "middle_block_1_proj_in"),
        (pair(f"unet.{LAYER}.lora_A.weight", f"unet.{LAYER}.lora_B.weight"), "unet", FLAT),
        (pair(f"unet.{LAYER}.lora.down.weight", f"unet.{LAYER}.lora.up.weight"), "unet", FLAT),
        (pair(f"{LAYER}.lora_A.default.weight", f"{LAYER}.lora_B.default.weight"), "", FLAT),
        (pair(f"base_model.model.{LAYER}.lora_A.weight",
              f"base_model.model.{LAYER}.lora_B.weight"), "", FLAT),
        (pair(f"base_model.model.unet.{LAYER}.lora_A.weight",
              f"base_model.model.unet.{LAYER}.lora_B.weight"), "unet", FLAT),
        (pair("mid_block.attn1.processor.to_out_lora.down.weight",
              "mid_block.attn1.processor.to_out_lora.up.weight"), "", "mid_block_attn1_to_out_0"),
        (pair("text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight",
              "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight"),
         "text_encoder", "encoder_layers_0_self_attn_q_proj"),
        (pair(f"text_encoder.{TEXT}.lora_linear_layer.down.weight",
              f"text_encoder.{TEXT}.lora_linear_layer.up.weight"),
         "text_encoder", "encoder_layers_0_self_attn_q_proj"),
    ],
)  # fmt: skip
def test_the_names_of_all_programs_mean_the_same_layers(written, content, component, flat_name):
    layout = read_adapter_layout(written(content))
    (layer,) = layout.layers
    assert (layer.component, layer.flat_name) == (component, flat_name)
    assert layout.rank(layer) == 2
    assert layout.unknown == ()


def test_a_whole_adapter_gives_its_metadata(written):
    layout = read_adapter_layout(written(lora(metadata={"ss_network_dim": "2"})))
    assert layout.file.metadata == {"ss_network_dim": "2"}


NAME = f"lora_unet_{FLAT}"


@pytest.mark.parametrize(
    ("content", "words", "remedy"),
    [
        (tensors({"emb_params": (2, 768)}), "textual inversion embedding", "embeddings"),
        (tensors({"<my-cat>": (1, 768)}), "textual inversion embedding", "embeddings"),
        (tensors({"clip_l": (2, 768), "clip_g": (2, 1280)}), "textual inversion", "embeddings"),
        (tensors({"model.diffusion_model.out.2.weight": (4, 4),
                  "first_stage_model.decoder.conv_in.weight": (4, 4)}), "whole checkpoint", "base"),
        (tensors({"down_blocks.0.resnets.0.conv1.weight": (4, 4)}), "the UNet", "base model"),
        (tensors({"decoder.conv_in.weight": (4, 4)}), "VAE", "base model"),
        (tensors({"text_model.embeddings.token_embedding.weight": (4, 4)}), "text encoder", "base"),
        (tensors({"control_model.input_blocks.0.weight": (4, 4)}), "ControlNet", "program"),
        (tensors({"parameter/unet.mid.lora_A.weight": (4, 4)}), "state of a training",
         "adapter.safetensors"),
        (tensors({f"{NAME}.weight": (1, 3), f"{NAME}.on_input": ()}), "(IA)3", "LoRA"),
        (tensors({f"{NAME}.oft_blocks": (2, 2, 2)}), "OFT", "LoRA"),
        (tensors({f"{NAME}.a1.weight": (2, 2)}), "GLoRA", "LoRA"),
        (lora("lora_unet_double_blocks_0_img_attn_qkv"), "FLUX", "1.x, 2.x or XL"),
        (pair("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
              "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight"), "FLUX", "1.x"),
        (lora("lora_unet_joint_blocks_0_x_block_attn_qkv"), "Stable Diffusion 3", "1.x, 2.x or XL"),
        (lora("diffusion_model.blocks.0.cross_attn.k"), "Wan", "1.x, 2.x or XL"),
        (lora("base_model.model.model.layers.0.self_attn.q_proj"), "language model", "1.x"),
        (tensors({f"{NAME}.lora_down.weight": (2, 3)}), "has no up", "complete"),
        (tensors({f"{NAME}.hada_w1_a": (2, 3)}), "has no hada_w1_b", "complete"),
        (tensors({f"{NAME}.lokr_w1": (2, 3)}), "has no lokr_w2_a", "complete"),
        (tensors({f"{NAME}.lora_down.weight": (2, 3), f"{NAME}.lora_up.weight": (5, 4)}),
         "don't go together", "copy"),
        (tensors({f"{NAME}.lora_down.weight": (0, 3), f"{NAME}.lora_up.weight": (5, 0)}),
         "is empty", "damaged"),
        (tensors({f"{NAME}.lora_down.weight": (2, 3), f"{NAME}.lora_up.weight": (5, 2),
                  f"{NAME}.alpha": (2,)}), "isn't one number", "one number as alpha"),
        (tensors({f"{NAME}.lora_down.weight": (2, 3), f"{NAME}.lora_up.weight": (5, 2),
                  f"{NAME}.alpha": ()}, dtypes={f"{NAME}.alpha": "BOOL"}),
         "type BOOL", "one number as alpha"),
        (tensors({f"{NAME}.lora_down.weight": (2, 3), f"{NAME}.lora_up.weight": (5, 2),
                  f"{NAME}.alpha": ()}, dtypes={f"{NAME}.alpha": "C64"}),
         "type C64", "one number as alpha"),
        (lora(NAME, dtype="I8"), "type I8", "fp16"),
        (tensors({f"{NAME}.lora_down.weight": (2, 3), f"{NAME}.lora_up.weight": (5, 2),
                  f"{NAME}.dora_scale": ()}), "is a single number", "damaged"),
        (tensors({f"{NAME}.lora_down.weight": (2, 3), f"{NAME}.lora_up.weight": (5, 2),
                  f"{NAME}.lora_A.weight": (2, 3)}), "the same part of one layer", "once"),
        (tensors({f"{NAME}.lora_down.weight": (2, 3), f"{NAME}.lora_up.weight": (5, 2),
                  f"{NAME}.diff": (5, 3)}), "has down, up beside the parts of full", "one kind"),
        (tensors({"something.else": (2, 2)}), "its tensors are called something.else", "LoRA"),
        (file_of({}), "holds no LoRA weights", "LoRA"),
        (b"", "the file is empty", "size"),
        (b"short", "only 5 bytes", "size"),
        (GOOD[:-1], "cut off", "size"),
        (GOOD + b"!", "its header says", "size"),
        (GOOD[:60], "ends within its header", "size"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS", "git lfs pull"),
        (b"<!DOCTYPE html><html><title>Log in</title>" + bytes(600), "web page", "login"),
        (b"\n <html lang=en>", "web page", "login"),
        (b'{"error": "Access to model is restricted"}', "JSON", "login"),
        (b"PK\x03\x04 a zip file that was renamed", "zip file", "safetensors"),
        (b"\x80\x02}q\x00", "pickle", "safetensors"),
        (b"GGUF\x03\0\0\0\0", "GGUF", "safetensors"),
        (b"\x89PNG\r\n\x1a\n", "PNG", "weights"),
        (b"\xde\xad\xbe\xef" * 40, "not a .safetensors file", "size"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_with_what_to_do(written, content, words, remedy):
    with pytest.raises(InvalidAdapter, match=r"a\.safetensors") as caught:
        read_adapter_layout(written(content))
    assert words in caught.value.message
    assert remedy in caught.value.remedy


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}" + bytes(9),
        struct.pack("<Q", 50) + b"{}",
        file_of(b"not json"),
        file_of(b"\xff\xfe"),
        file_of([1, 2]),
        file_of(b"[" * 200_000),
        file_of({"a": 5}),
        file_of({"a": {}}),
        file_of({"a": {"data_offsets": "ab"}}),
        file_of({"a": {"data_offsets": [0]}}),
        file_of({"a": entry(dtype="F31")}, bytes(8)),
        file_of({"a": entry(dtype=["F32"])}, bytes(8)),
        file_of({"a": entry(shape=(-2,))}, bytes(8)),
        file_of({"a": entry(shape=(2.0,))}, bytes(8)),
        file_of({"a": entry(shape=(3,))}, bytes(8)),
        file_of({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)),
        file_of({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
        file_of({"__metadata__": 5, "a": entry()}, bytes(8)),
        file_of({"__metadata__": ["a"], "a": entry()}, bytes(8)),
        file_of({"__metadata__": {"a": 5}, "a": entry()}, bytes(8)),
    ],
    ids=range(20),
)
def test_a_damaged_header_is_refused(written, content):
    with pytest.raises(NotTensors):
        read_tensor_file(written(content))


def test_a_header_whose_length_looks_like_a_pickle_is_read(written):
    """640 is 80 02 in the file's first bytes, as a pickle of protocol 2 begins."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path = written(file_of(header.ljust(640), bytes(8)))
    assert path.read_bytes().startswith(b"\x80\x02")
    assert list(read_tensor_file(path).tensors) == ["a"]


@pytest.mark.parametrize("name", ["missing.safetensors", "."])
def test_an_adapter_that_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(InvalidAdapter) as caught:
        read_adapter_layout(tmp_path / name)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("dtype", "finite", "infinite"),
    [
        ("F32", b"\xff\xff\x7f\x7f", b"\x00\x00\x80\x7f"),
        ("F32", b"\xff\xff\x7f\xff", b"\x01\x00\x80\xff"),
        ("BF16", b"\x7f\x7f", b"\x80\x7f"),
        ("BF16", b"\x7f\xff", b"\xc0\xff"),
        ("F16", b"\xff\x7b", b"\x00\x7c"),
        ("F16", b"\xff\xfb", b"\x00\xfe"),
        ("F64", struct.pack("<d", 1.7e308), struct.pack("<d", float("inf"))),
        ("F64", struct.pack("<d", -1.7e308), struct.pack("<d", float("nan"))),
        ("F8_E4M3", b"\x7e", b"\x7f"),
        ("F8_E5M2", b"\xfb", b"\xfc"),
        ("I8", b"\x7f", None),
    ],
)
def test_values_that_are_not_finite_are_found_by_their_bits(written, dtype, finite, infinite):
    for value, expected in ((finite, []), (infinite, ["b"])):
        if value is None:
            continue
        width = len(value)
        content = tensors(
            {"a": (3,), "b": (4,)}, dtype=dtype, values={"b": bytes(3 * width) + value}
        )
        assert not_finite(read_tensor_file(written(content))) == expected


def peft_metadata(**settings):
    return {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in settings.items()})}


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 1.0),
        ({"lora_alpha": 1}, 0.5),
        ({"lora_alpha": 1, "use_rslora": True}, 2**-0.5),
        ({"lora_alpha": 1, "alpha_pattern": {"attn1.to_q": 8}}, 4.0),
        ({"lora_alpha": 1, "alpha_pattern": {LAYER.replace(".", r"\."): 8}}, 4.0),
        ({"lora_alpha": 1, "alpha_pattern": {"attn2.to_q": 8}}, 0.5),
    ],
)
def test_pefts_settings_tell_the_strength_of_layers_without_alpha(written, settings, scale):
    shapes = {f"unet.{LAYER}.lora_A.weight": (2, 3), f"unet.{LAYER}.lora_B.weight": (5, 2)}
    layout = read_adapter_layout(written(tensors(shapes, peft_metadata(**settings))))
    assert layout.told_scale(layout.layers[0], 2) == pytest.approx(scale)


@pytest.mark.parametrize(
    "settings", [{"lora_alpha": "x"}, {"alpha_pattern": {".*q": 3}}, {"alpha_pattern": [1]}]
)
def test_settings_that_cannot_be_followed_are_refused(written, settings):
    shapes = {f"unet.{LAYER}.lora_A.weight": (2, 3), f"unet.{LAYER}.lora_B.weight": (5, 2)}
    layout = read_adapter_layout(written(tensors(shapes, peft_metadata(**settings))))
    with pytest.raises(InvalidAdapter, match="alpha"):
        layout.told_scale(layout.layers[0], 2)
