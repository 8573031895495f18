"""The adapter file works elsewhere: in a bare diffusers script and in readers of kohya's format."""

import base64
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from loradash.domain.generation import AdapterUse, GenerationRequest
from loradash.engines.diffusers.base_models.families import find_base_model
from loradash.engines.diffusers.child.adapter_header import HASHES, finish_header
from loradash.engines.diffusers.child.run_generator import LoadedPipeline
from loradash.engines.diffusers.engine import read_adapter_header
from loradash.engines.diffusers.job import Generate, ResolvedAdapter
from loradash.engines.stop_signal import StopSignal
from tests.engine.conftest import CREATED_AT, LocalTraining, Recorder

Start = Callable[..., LocalTraining]
TOLERANCE = 2 / 255  # adapters are saved in fp16

VARIANTS = [
    pytest.param({}, {}, id="alpha-equals-rank"),
    pytest.param({"alpha": 1}, {}, id="alpha-1-rank-4"),
    pytest.param({"alpha": 16}, {}, id="alpha-16-rank-4"),
    pytest.param({"alpha": 2, "text_encoder_learning_rate": 1e-2}, {}, id="text-encoder"),
    pytest.param({"alpha": 2}, {"network.conv": 2, "network.conv_alpha": 5}, id="convolutions"),
    pytest.param(
        {"alpha": 2, "text_encoder_learning_rate": 1e-2},
        {"save.save_format": "diffusers", "network.conv": 2, "network.conv_alpha": 5},
        id="diffusers-format",
    ),
]


@pytest.fixture
def train(start: Start, tiny_base: Path, square_dataset: Path) -> Callable[..., LocalTraining]:
    def run(full: dict[str, Any] | None = None, **short: Any) -> LocalTraining:
        training = start(
            full, dataset=str(square_dataset), base_model=str(tiny_base), **{"steps": 12, **short}
        )
        assert training.run().of("done")
        return training

    return run


def bare_image(base: Path, adapter: Path | None) -> np.ndarray:
    """What a user's own script draws, with nothing of ours in it."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    if adapter:
        pipeline.load_lora_weights(str(adapter.parent), weight_name=adapter.name)
    image = pipeline(
        "a sks blob", num_inference_steps=4, guidance_scale=3.0, width=32, height=32,
        generator=torch.Generator("cpu").manual_seed(5), output_type="np",
    ).images[0]  # fmt: skip
    return np.asarray(image)


def our_image(base: Path, adapter: Path, folder: Path, weight: float = 1.0) -> np.ndarray:
    pipeline = LoadedPipeline("cpu", True, Recorder())  # type: ignore[arg-type]
    request = GenerationRequest(
        base_model=str(base), prompts=("a sks blob",), steps=4, guidance_scale=3.0, width=32,
        height=32, seed=5, adapters=(AdapterUse(path=str(adapter), weight=weight),),
    )  # fmt: skip
    line = Generate(
        request_id="gen", request=request, base_model=find_base_model(str(base)), folder=folder,
        adapters=(ResolvedAdapter(path=adapter, weight=weight),),
    )  # fmt: skip
    pipeline.generate(line, StopSignal())
    with Image.open(folder / "image_0000.png") as image:
        return np.asarray(image, dtype=np.float32) / 255


@pytest.mark.parametrize(("short", "full"), [VARIANTS[0], VARIANTS[-1]])
def test_the_bytes_of_the_file_depend_on_the_process_alone(
    train: Callable[..., LocalTraining], short: dict[str, Any], full: dict[str, Any]
) -> None:
    """Neither on when an attempt wrote it, nor on the order that safetensors gives metadata."""
    training = train({**full, "save.dtype": "float32"}, **short)
    data = training.adapter.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header["__metadata__"]
    assert list(metadata) == sorted(metadata)
    assert metadata["modelspec.date"] == CREATED_AT.isoformat(timespec="seconds")
    assert load_file(training.adapter)  # its tensors are where its header says


@pytest.mark.parametrize(("short", "full"), VARIANTS)
def test_bare_diffusers_script_draws_the_same_image_as_we_do(
    train: Callable[..., LocalTraining],
    tiny_base: Path,
    tmp_path: Path,
    short: dict[str, Any],
    full: dict[str, Any],
) -> None:
    training = train(full, **short)
    elsewhere = bare_image(tiny_base, training.adapter)
    ours = our_image(tiny_base, training.adapter, tmp_path)
    assert np.abs(elsewhere - ours).max() <= TOLERANCE
    assert np.abs(elsewhere - bare_image(tiny_base, None)).max() > 5 * TOLERANCE


@pytest.mark.parametrize(("short", "full"), VARIANTS)
def test_file_draws_what_the_trained_model_drew_in_memory(
    train: Callable[..., LocalTraining],
    tiny_base: Path,
    short: dict[str, Any],
    full: dict[str, Any],
) -> None:
    """The last preview comes from the model in training; so a lost alpha or layer shows here."""
    training = train(
        {**full, "sample.sampler": "default"}, **short, sample_prompts=["a sks blob"],
        sample_every=12, sample_steps=4, guidance_scale=3.0, sample_size=32, seed=5,
    )  # fmt: skip
    with Image.open(training.folder / "samples/step-000000012-0.png") as image:
        trained = np.asarray(image, dtype=np.float32) / 255
    with Image.open(training.folder / "samples/step-000000000-0.png") as image:
        untrained = np.asarray(image, dtype=np.float32) / 255
    from_file = bare_image(tiny_base, training.adapter)
    assert np.abs(from_file - trained).max() <= TOLERANCE
    assert np.abs(untrained - trained).max() > 5 * TOLERANCE


@pytest.mark.parametrize(("short", "full"), VARIANTS[:5])
def test_kohya_reader_merges_the_file_to_what_was_trained(
    train: Callable[..., LocalTraining],
    tiny_base: Path,
    short: dict[str, Any],
    full: dict[str, Any],
) -> None:
    """Merge as ComfyUI and A1111 do: W + alpha / rank * up @ down, found by the key alone."""
    training = train({**full, "save.dtype": "float32"}, **short)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True)
    layers = {
        **_layers_by_kohya_name("lora_unet", pipeline.unet, ""),
        **_layers_by_kohya_name("lora_te", pipeline.text_encoder, "text_model."),
    }
    tensors = load_file(training.adapter)
    names = {key.rsplit(".lora_", 1)[0] for key in tensors if ".lora_" in key}
    assert {key for key in tensors if key.endswith(".alpha")} == {f"{n}.alpha" for n in names}
    for name in names:
        down = tensors[f"{name}.lora_down.weight"]
        up = tensors[f"{name}.lora_up.weight"]
        scale = tensors[f"{name}.alpha"].item() / down.shape[0]
        delta = (up.flatten(1) @ down.flatten(1)).reshape(layers[name].weight.shape)
        layers[name].weight.data += scale * delta
    merged = pipeline(
        "a sks blob", num_inference_steps=4, guidance_scale=3.0, width=32, height=32,
        generator=torch.Generator("cpu").manual_seed(5), output_type="np",
    ).images[0]  # fmt: skip
    assert np.abs(merged - bare_image(tiny_base, training.adapter)).max() < 1e-3


def _layers_by_kohya_name(prefix: str, module: torch.nn.Module, level: str) -> dict[str, Any]:
    names = {}
    for name, layer in module.named_modules():
        full = f"{level}{name.removeprefix(level)}"
        names[f"{prefix}_{full.replace('.', '_')}"] = layer
    return names


def test_metadata_says_what_it_is_and_what_it_was_trained_on(
    train: Callable[..., LocalTraining],
) -> None:
    training = train(alpha=2, name="my adapter")
    metadata = read_adapter_header(training.adapter)
    expected = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "my adapter",
        "modelspec.trigger_phrase": "sks",
        "modelspec.prediction_type": "epsilon",
        "ss_network_dim": "4",
        "ss_network_alpha": "2",
        "loradash.rank": "4",
        "loradash.alpha": "2",
        "loradash.trigger_word": "sks",
        "loradash.steps": "12",
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert metadata["loradash.base_model"].endswith("tiny-sd")
    job = json.loads((training.folder / "job.json").read_text())
    assert metadata["loradash.dataset_sha256"] == job["dataset_sha256"]
    assert metadata["ss_num_train_images"] == "4"
    tags = json.loads(metadata["ss_tag_frequency"])["square"]
    assert tags == {"a sks blob": 4, "round": 4, "yellow": 4, **{f"tag{n}": 1 for n in range(4)}}
    buckets = json.loads(metadata["ss_bucket_info"])["buckets"]
    assert buckets == {"0": {"resolution": [32, 32], "count": 4}}
    assert metadata["ss_optimizer"].startswith("torch.optim.adamw.AdamW(weight_decay=0.01,")
    assert metadata["ss_num_batches_per_epoch"] == "2"
    assert metadata["ss_max_token_length"] == "14"
    assert "modelspec.thumbnail" not in metadata


def test_diffusers_format_names_layers_as_diffusers_and_comfyui_look_them_up(
    train: Callable[..., LocalTraining],
) -> None:
    """ComfyUI knows attention by its processor, and text encoders with the level text_model."""
    full = {"save.save_format": "diffusers", "network.conv": 2}
    training = train(full, text_encoder_learning_rate=1e-2, steps=1)
    keys = set(load_file(training.adapter))
    layers = {key.rsplit(".", 2)[0] for key in keys}
    assert keys == {f"{layer}.{part}.weight" for layer in layers for part in ("down", "up")}
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora" in layers
    assert "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2.lora" in layers
    assert "unet.mid_block.resnets.0.conv1.lora" in layers
    text = "text_encoder.text_model.encoder.layers.1.self_attn.k_proj.lora_linear_layer"
    assert text in layers
    assert not [layer for layer in layers if ".to_" in layer and ".processor.to_" not in layer]


def test_diffusers_format_says_the_alpha_that_its_weights_have(
    train: Callable[..., LocalTraining],
) -> None:
    training = train({"save.save_format": "diffusers"}, steps=1, alpha=1)
    metadata = read_adapter_header(training.adapter)
    assert metadata["ss_network_alpha"] == metadata["ss_network_dim"] == "4"
    assert metadata["loradash.alpha"] == "1"


def test_preview_of_the_last_step_is_the_thumbnail_whichever_attempt_ends_the_training(
    start: Start, tiny_base: Path, square_dataset: Path
) -> None:
    def submit() -> LocalTraining:
        return start(
            dataset=str(square_dataset), base_model=str(tiny_base), sample_prompts=["a sks blob"],
            sample_every=5, sample_steps=2, sample_size=32,
        )  # fmt: skip

    straight, resumed = submit(), submit()
    assert straight.run().of("done")
    resumed.crash_at(7)
    shutil.rmtree(resumed.folder / "samples")  # as on another machine
    assert resumed.run().of("done")
    ours, other = (read_adapter_header(one.adapter) for one in (straight, resumed))
    kind, _, data = ours["modelspec.thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (32, 32)
    assert other["modelspec.thumbnail"] == ours["modelspec.thumbnail"]
    assert other["modelspec.hash_sha256"] == ours["modelspec.hash_sha256"]


def test_hash_is_of_the_tensors_alone(train: Callable[..., LocalTraining]) -> None:
    adapter = train(steps=1).adapter
    data = adapter.read_bytes()
    tensors = data[8 + int.from_bytes(data[:8], "little") :]
    metadata = read_adapter_header(adapter)
    assert metadata["sshs_model_hash"] == hashlib.sha256(tensors).hexdigest()
    assert metadata["modelspec.hash_sha256"] == f"0x{metadata['sshs_model_hash']}"


@pytest.mark.parametrize("tags", [10, 1_200_000], ids=["small header", "header over 1 MiB"])
def test_legacy_hash_is_of_what_sd_scripts_would_have_written(tmp_path: Path, tags: int) -> None:
    """64 KiB after the first MiB of the file that has the same tensors and only ``ss_`` fields."""
    noise = torch.rand(600_000, generator=torch.Generator().manual_seed(1))
    tensors = {"b": noise, "a": noise[:5].half()}
    kept = {"ss_tag_frequency": "ä" * (tags // 2)}
    path = tmp_path / "adapter.safetensors"
    save_file(tensors, path, metadata={"modelspec.title": "\x1b t", **kept, **HASHES})
    finish_header(path)
    as_there = save(tensors, kept)
    expected = hashlib.sha256(as_there[0x100000:0x110000]).hexdigest()[:8]
    with safe_open(path, "pt") as file:
        assert file.metadata()["sshs_legacy_hash"] == expected
    assert torch.equal(load_file(path)["b"], noise)


def test_saved_precision_is_the_one_asked_for(train: Callable[..., LocalTraining]) -> None:
    for name, dtype in (("float16", torch.float16), ("bf16", torch.bfloat16)):
        training = train({"save.dtype": name}, steps=1)
        weights = load_file(training.adapter)
        assert {value.dtype for value in weights.values()} == {dtype}


def test_checkpoint_holds_an_adapter_that_loads(
    start: Start, tiny_base: Path, square_dataset: Path
) -> None:
    training = start(dataset=str(square_dataset), base_model=str(tiny_base))
    training.crash_at(4)
    adapter = training.folder / "checkpoints/step-000000003/adapter.safetensors"
    assert np.abs(bare_image(tiny_base, adapter) - bare_image(tiny_base, None)).max() > 0
    with safe_open(adapter, "pt") as file:
        assert file.metadata()["loradash.steps"] == "3"


def test_target_modules_choose_the_layers(train: Callable[..., LocalTraining]) -> None:
    attention = train(target_modules=["to_k", "to_v"], steps=1)
    names = {key.split(".")[0] for key in load_file(attention.adapter)}
    assert names
    assert all(name.endswith(("to_k", "to_v")) for name in names)
    cross = train({"network.network_kwargs": {"only_if_contains": ["attn2"]}}, steps=1)
    assert all("attn2" in key for key in load_file(cross.adapter))
