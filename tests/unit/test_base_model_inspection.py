"""Every broken base model that people have: the text names the file and what to do, unloaded."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loradash.data import base_model_folder
from loradash.engines.diffusers.base_models import inspection
from loradash.engines.diffusers.base_models.families import find_base_model
from loradash.engines.diffusers.base_models.inspection import inspect
from loradash.errors import InvalidBaseModel

EMOJI = base_model_folder("emoji-base")
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 13468464\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"


def safetensors(shapes: dict[str, tuple[int, ...]], dtype: str = "F32") -> bytes:
    """A whole file of zeros with these tensors."""
    header: dict[str, Any] = {}
    end = 0
    item_bytes = {"F32": 4, "F16": 2, "U8": 1}[dtype]
    for key, shape in shapes.items():
        size = item_bytes
        for side in shape:
            size *= side
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def header_of(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return dict(json.loads(file.read(length)))


def without(path: Path, part: str) -> bytes:
    """The file's tensors as zeros, without those whose names hold ``part``."""
    header = header_of(path)
    header.pop("__metadata__", None)
    return safetensors(
        {key: tuple(one["shape"]) for key, one in header.items() if part not in key}, "F16"
    )


class Model:
    """A copy of the embedded base model whose files can be replaced; whole ones are links."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for path in EMOJI.rglob("*"):
            if path.is_file():
                target = root / path.relative_to(EMOJI)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path)

    def write(self, name: str, content: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content)

    def remove(self, name: str) -> None:
        path = self.root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def rename(self, name: str, other: str) -> None:
        (self.root / name).rename(self.root / other)

    def edit(self, name: str, **values: Any) -> None:
        document = json.loads((self.root / name).read_text())
        self.write(name, json.dumps({**document, **values}).encode())


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return Model(tmp_path / "model")


def refusal(path: Path, extras: Path | None = None) -> str:
    with pytest.raises(InvalidBaseModel) as caught:
        inspect(find_base_model(str(path), extras=str(extras) if extras else None))
    assert caught.value.remedy
    return str(caught.value)


def test_the_embedded_base_model_passes_and_tells_its_size() -> None:
    found = inspect(find_base_model("emoji-base"))
    assert found.native_size == 64
    assert found.layout
    assert set(found.layout.needed) == {
        path.relative_to(EMOJI).as_posix() for path in EMOJI.rglob("*") if path.is_file()
    }


def cut(name: str, size: int) -> Callable[[Model], None]:
    return lambda model: model.write(name, (EMOJI / name).read_bytes()[:size])


def written(name: str, content: bytes) -> Callable[[Model], None]:
    return lambda model: model.write(name, content)


def removed(name: str) -> Callable[[Model], None]:
    return lambda model: model.remove(name)


def edited(name: str, **values: Any) -> Callable[[Model], None]:
    return lambda model: model.edit(name, **values)


def renamed(name: str, other: str) -> Callable[[Model], None]:
    return lambda model: model.rename(name, other)


BROKEN: dict[str, tuple[Callable[[Model], None], list[str]]] = {
    **{
        f"truncated {name}": (cut(name, 100_000), [name, "cut off: 100,000 of", "again"])
        for name in (UNET, VAE, TEXT)
    },
    "cut within the header": (cut(UNET, 3000), [UNET, "cut off within its header"]),
    "cut after four bytes": (cut(UNET, 4), [UNET, "cut off after 4 bytes"]),
    "longer than its header": (
        lambda model: model.write(UNET, (EMOJI / UNET).read_bytes() + b"!"),
        [UNET, "where its header tells of"],
    ),
    **{f"missing {name}": (removed(name), [name, "is missing"]) for name in (UNET, VAE, TEXT)},
    **{
        f"missing folder {name}": (removed(name), [f"{name}/", "missing"])
        for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    },
    "empty weights": (written(UNET, b""), [UNET, "is empty"]),
    "LFS pointer": (written(UNET, POINTER), [UNET, "Git LFS pointer", "git lfs pull"]),
    "LFS pointer of the VAE": (written(VAE, POINTER), [VAE, "Git LFS pointer"]),
    "web page": (written(TEXT, PAGE), [TEXT, "web page"]),
    "JSON error": (written(UNET, b'{"error":"Access denied"}'), [UNET, "JSON text"]),
    "renamed pickle": (written(UNET, b"PK\x03\x04" + bytes(900)), [UNET, "pickle", "run code"]),
    "renamed old pickle": (written(UNET, b"\x80\x02" + bytes(900)), [UNET, "pickle"]),
    "GGUF": (written(UNET, b"GGUF" + bytes(900)), [UNET, "GGUF"]),
    "noise": (written(UNET, bytes(range(1, 255)) * 9), [UNET, "isn't a .safetensors file"]),
    "no tensors": (written(UNET, safetensors({})), [UNET, "holds no tensor"]),
    "only pickled weights": (
        renamed(UNET, "unet/diffusion_pytorch_model.bin"),
        ["unet: its weights are only there as diffusion_pytorch_model.bin", "run code"],
    ),
    "only weights for other programs": (
        renamed(UNET, "unet/model.onnx"), ["other programs (model.onnx)"],
    ),
    "weights of another name": (
        renamed(TEXT, "text_encoder/text.safetensors"), [TEXT, "there is text.safetensors"],
    ),
    "shards without an index": (
        renamed(UNET, "unet/diffusion_pytorch_model-00001-of-00002.safetensors"),
        ["diffusion_pytorch_model.safetensors.index.json is missing"],
    ),
    "a missing block": (
        lambda model: model.write(UNET, without(EMOJI / UNET, "mid_block")),
        [UNET, "lacks", "mid_block.resnets.0"],
    ),
    "a missing layer of text": (
        lambda model: model.write(TEXT, without(EMOJI / TEXT, "layers.2.")),
        [TEXT, "encoder.layers.2"],
    ),
    "a VAE without decoder": (
        lambda model: model.write(VAE, without(EMOJI / VAE, "decoder")),
        [VAE, "decoder.conv_in"],
    ),
    "quantised weights": (
        lambda model: model.write(
            UNET,
            safetensors(
                {key: tuple(one["shape"]) for key, one in header_of(EMOJI / UNET).items()
                 if key != "__metadata__"}, "U8",
            ),
        ),
        [UNET, "quantised (U8)"],
    ),
    "a quantised config": (
        edited("unet/config.json", quantization_config={"load_in_4bit": True}),
        ["unet/config.json", "quantised"],
    ),
    "inpainting": (
        edited("unet/config.json", in_channels=9), ["unet/config.json", "inpainting"],
    ),
    "pix2pix": (edited("unet/config.json", in_channels=8), ["InstructPix2Pix"]),
    "latents of another VAE": (
        edited("vae/config.json", latent_channels=16), ["takes 4 channels", "have 16"],
    ),
    "text of another width": (
        edited("text_encoder/config.json", hidden_size=768), ["width 128", "gives 768"],
    ),
    "another vocabulary": (
        edited("text_encoder/config.json", vocab_size=100), ["the text encoder knows 100"],
    ),
    "config of another size": (
        edited("unet/config.json", layers_per_block=2), [UNET, "resnets.1"],
    ),
    "config of another class": (
        edited("unet/config.json", _class_name="FluxTransformer2DModel"),
        ["unet/config.json", "FluxTransformer2DModel"],
    ),
    "unknown prediction": (
        edited("scheduler/scheduler_config.json", prediction_type="sample"),
        ["scheduler/scheduler_config.json", "'sample'"],
    ),
    "a flow scheduler's config": (
        edited(SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler"),
        [SCHEDULER, "FlowMatchEulerDiscreteScheduler", "flow models"],
    ),
    **{
        f"a schedule with {key} {value!r:.20}": (edited(SCHEDULER, **{key: value}), [key, words])
        for key, value, words in (
            ("beta_schedule", "foo", "'foo' isn't known"),
            ("beta_schedule", None, "None isn't known"),
            ("num_train_timesteps", -5, "-5 isn't a number of steps"),
            ("num_train_timesteps", True, "True isn't a number of steps"),
            ("beta_end", "0.012", "isn't a number between 0 and 1"),
            ("beta_start", 1.5, "1.5 isn't a number between 0 and 1"),
            ("beta_start", float("nan"), "nan isn't a number between 0 and 1"),
            ("trained_betas", [0.1, 2.0], "aren't numbers between 0 and 1"),
            ("trained_betas", [0.1, 0.2], "there are 2 trained_betas for 1000 timesteps"),
        )
    },
    **{
        f"damaged {name}": (written(name, content), [name, words])
        for name, content, words in (
            ("unet/config.json", b"{", "JSON"),
            ("unet/config.json", b"", "empty"),
            ("unet/config.json", b"[]", "isn't a JSON object"),
            ("vae/config.json", PAGE, "web page"),
            ("text_encoder/config.json", POINTER, "LFS"),
            ("text_encoder/config.json", b"\xff\xfe\x00", "UTF-8"),
            ("scheduler/scheduler_config.json", b"nope", "JSON"),
            ("tokenizer/tokenizer.json", b"{", "JSON"),
            ("tokenizer/tokenizer.json", b"{}", "no vocabulary"),
            ("tokenizer/tokenizer.json", b'{"a": 1}', "no vocabulary"),
            ("model_index.json", b"", "empty"),
            ("model_index.json", PAGE, "web page"),
        )
    },
    **{
        f"missing {name}": (removed(name), [name, "missing"])
        for name in ("unet/config.json", "vae/config.json", "text_encoder/config.json",
                     "scheduler/scheduler_config.json")
    },
    "no vocabulary": (
        removed("tokenizer/tokenizer.json"),
        ["tokenizer/vocab.json and tokenizer/merges.txt are missing"],
    ),
    "no model_index": (removed("model_index.json"), ["there is no model_index.json"]),
    **{
        f"a {kind}": (
            edited("model_index.json", _class_name=kind), [kind, "StableDiffusionPipeline"],
        )
        for kind in (
            "FluxPipeline", "StableDiffusionXLInpaintPipeline", "StableDiffusion3Pipeline",
            "StableDiffusionInpaintPipeline", "StableDiffusionInstructPix2PixPipeline",
        )
    },
    "a tiny VAE": (
        edited("model_index.json", vae=["diffusers", "AutoencoderTiny"]),
        ["vae is a AutoencoderTiny, not a AutoencoderKL"],
    ),
    "no text encoder named": (
        edited("model_index.json", text_encoder=[None, None]), ["names no text_encoder"],
    ),
    "a flow scheduler": (
        edited("model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]),
        ["flow models"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_told_by_file_and_remedy(kind: str, model: Model) -> None:
    damage, words = BROKEN[kind]
    damage(model)
    text = refusal(model.root)
    assert [word for word in words if word not in text] == [], text


def test_all_that_is_wrong_is_told_at_once(model: Model) -> None:
    model.write(UNET, POINTER)
    model.remove(VAE)
    model.write("scheduler/scheduler_config.json", b"{")
    with pytest.raises(InvalidBaseModel) as caught:
        inspect(find_base_model(str(model.root)))
    assert "3 things are wrong" in caught.value.message
    told = " ".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    assert all(name in told for name in (UNET, VAE, "scheduler_config.json", "git lfs pull"))


def test_another_family_is_told_before_its_weights_are_looked_at(model: Model) -> None:
    model.edit("model_index.json", _class_name="FluxPipeline")
    model.write(UNET, b"")
    assert UNET not in refusal(model.root)


def test_half_precision_files_are_chosen_where_there_are_no_others(model: Model) -> None:
    for name in (UNET, VAE, TEXT):
        model.rename(name, name.replace(".safetensors", ".fp16.safetensors"))
    layout = inspect(find_base_model(str(model.root))).layout
    assert layout
    assert {weights.variant for weights in layout.weights.values()} == {"fp16"}


def test_plain_files_are_chosen_and_no_duplicates_are_needed(model: Model) -> None:
    model.write(UNET.replace(".safetensors", ".fp16.safetensors"), b"")
    model.write("unet/diffusion_pytorch_model.bin", b"")
    model.write("safety_checker/model.safetensors", b"")
    layout = inspect(find_base_model(str(model.root))).layout
    assert layout
    assert [name for name in layout.needed if name.startswith(("unet", "safety"))] == [
        "unet/config.json", UNET,
    ]  # fmt: skip


def sharded(model: Model) -> None:
    header = header_of(EMOJI / UNET)
    header.pop("__metadata__", None)
    keys = sorted(header)
    shards = {"a": keys[::2], "b": keys[1::2]}
    model.remove(UNET)
    for shard, names in shards.items():
        shapes = {key: tuple(header[key]["shape"]) for key in names}
        model.write(f"unet/{shard}.safetensors", safetensors(shapes, "F16"))
    index = {key: f"{shard}.safetensors" for shard, names in shards.items() for key in names}
    model.write(f"{UNET}.index.json", json.dumps({"weight_map": index}).encode())


def test_shards_are_looked_at_by_their_index(model: Model) -> None:
    sharded(model)
    layout = inspect(find_base_model(str(model.root))).layout
    assert layout
    assert layout.weights["unet"].files == ("unet/a.safetensors", "unet/b.safetensors")
    model.write("unet/a.safetensors", (model.root / "unet/a.safetensors").read_bytes()[:9000])
    model.remove("unet/b.safetensors")
    assert "unet/b.safetensors is missing" in refusal(model.root)
    model.write("unet/b.safetensors", POINTER)
    text = refusal(model.root)
    assert "unet/a.safetensors is cut off" in text
    assert "unet/b.safetensors is a Git LFS pointer" in text


@pytest.mark.parametrize("content", [b"{}", b'{"weight_map": {}}', b'{"weight_map": 5}', b"["])
def test_a_damaged_index_of_shards_is_told(model: Model, content: bytes) -> None:
    sharded(model)
    model.write(f"{UNET}.index.json", content)
    assert f"{UNET}.index.json" in refusal(model.root)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "adapter (LoRA)"),
        (["pytorch_lora_weights.safetensors"], "adapter (LoRA)"),
        (["sd15.safetensors"], "give the path of that file on this machine (sd15.safetensors)"),
        (["flux-Q4.gguf"], "GGUF"),
        (["model.ckpt"], "pickle"),
        (["config.json"], "top folder"),
        ([], "isn't a diffusers pipeline"),
    ],
)
def test_a_folder_of_something_else_is_told_by_what_it_is(
    tmp_path: Path, files: list[str], words: str
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    assert words.lower() in refusal(tmp_path).lower()


# Single files

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
ATTENTION = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
WHOLE = {
    FIRST: (8, 4, 3, 3), ATTENTION: (8, 768),
    "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (9, 8),
}  # fmt: skip


def test_a_whole_checkpoint_passes_and_tells_the_size_of_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "can_ask", lambda: False)
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(WHOLE))
    assert inspect(find_base_model(str(path))).native_size == 512
    path.write_bytes(safetensors({**WHOLE, ATTENTION: (8, 1024)}))
    assert inspect(find_base_model(str(path))).native_size == 768
    assert inspect(find_base_model(str(path), extras=str(EMOJI))).native_size == 64
    path.write_bytes(safetensors({**WHOLE, "model.diffusion_model.label_emb.0.0.weight": (8, 8)}))
    assert inspect(find_base_model(str(path))).native_size == 1024
    assert "the file is of Stable Diffusion XL" in refusal(path, EMOJI)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (safetensors(WHOLE)[:-5], "cut off"),
        (b"", "is empty"),
        (POINTER, "Git LFS pointer"),
        (PAGE, "web page"),
        (b"PK\x03\x04" + bytes(600), "pickle"),
        (b"GGUF" + bytes(600), "GGUF"),
        (safetensors({"lora_unet_down_blocks_0.lora_down.weight": (4, 8)}), "adapter (LoRA)"),
        (safetensors({"unet.down_blocks.0.attn.to_q.lora_A.weight": (4, 8)}), "adapter (LoRA)"),
        (safetensors({"lora_unet_mid.hada_w1_a": (4, 8)}), "adapter (LoRA)"),
        (safetensors({**WHOLE, "conditioner.embedders.0.model.ln_final.weight": (8,)}), "refiner"),
        (safetensors({"double_blocks.0.img_attn.qkv.weight": (8, 8)}), "FLUX"),
        (
            safetensors({"model.diffusion_model.double_blocks.0.img_mod.lin.bias": (8,)}),
            "FLUX",
        ),
        (safetensors({"model.diffusion_model.joint_blocks.0.x.weight": (8,)}), "SD3"),
        (safetensors({**WHOLE, FIRST: (8, 9, 3, 3)}), "inpainting"),
        (safetensors({**WHOLE, FIRST: (8, 8, 3, 3)}), "InstructPix2Pix"),
        (safetensors({"encoder.conv_in.weight": (8,), "decoder.conv_in.weight": (8,)}), "a VAE"),
        (safetensors({"first_stage_model.decoder.conv_in.weight": (8,)}), "only a VAE"),
        (safetensors({FIRST: (8, 4, 3, 3)}), "no VAE"),
        (
            safetensors({"conv_in.weight": (8,), "down_blocks.0.x": (8,), "up_blocks.0.x": (8,)}),
            "only the UNet",
        ),
        (safetensors({"text_model.embeddings.position_ids": (1,)}), "only a text encoder"),
        (safetensors({"control_model.input_blocks.0.0.weight": (8,)}), "ControlNet"),
        (safetensors({"emb_params": (4, 8)}), "embedding"),
        (safetensors({"layers.0.weight": (4, 8)}), "layers.0.weight"),
        (safetensors({**WHOLE, FIRST: (8, 4, 3, 3)}, "U8"), "quantised"),
    ],
    ids=range(24),
)
def test_a_single_file_of_another_kind_is_told_by_what_it_is(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    text = refusal(path)
    assert words in text
    assert "internal" not in text


def test_a_gguf_file_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "flux-Q4.gguf"
    path.write_bytes(b"GGUF")
    assert "quantised" in refusal(path)


def test_the_folder_with_a_single_files_configs_is_looked_through_too(
    tmp_path: Path, model: Model
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors(WHOLE))
    model.remove(UNET)  # not needed: the file has them
    inspect(find_base_model(str(path), extras=str(model.root)))
    model.write("scheduler/scheduler_config.json", b"{")
    text = refusal(path, model.root)
    assert f"extras_name_or_path {model.root}: scheduler/scheduler_config.json" in text
    assert "there is no model_index.json" in refusal(path, tmp_path)


def test_a_checkpoint_without_text_encoder_needs_one_in_the_other_folder(
    tmp_path: Path, model: Model
) -> None:
    path = tmp_path / "model.safetensors"
    shapes = {key: shape for key, shape in WHOLE.items() if "cond_stage" not in key}
    path.write_bytes(safetensors(shapes))
    inspect(find_base_model(str(path), extras=str(model.root)))
    model.remove(TEXT)
    assert TEXT in refusal(path, model.root)
