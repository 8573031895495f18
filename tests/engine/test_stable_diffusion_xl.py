"""Stable Diffusion XL: predictions, conditioning, trainings, adapter files, generation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from loradash.domain.training_config import TrainSection
from loradash.engines.diffusers.adapters.original_names import original_name
from loradash.engines.diffusers.base_models.families import find_base_model
from loradash.engines.diffusers.child.architecture import Architecture, ImageFacts
from loradash.engines.diffusers.child.base_model import load_base_model
from loradash.engines.stop_signal import StopSignal
from tests.engine.conftest import LocalTraining, Recorder
from tests.engine.original_format import write_single_file_xl
from tests.engine.test_resume import EVERYTHING, EVERYTHING_FULL, assert_equal_weights
from tests.engine.tiny_models import build_stable_diffusion_xl

Start = Callable[..., LocalTraining]
SIZE = (48, 32)  # width, height
FACTS = ImageFacts(original=SIZE[::-1], crop=(0, 0), target=SIZE[::-1])
TEXT = {"train.train_text_encoder": True, "train.text_encoder_lr": 5e-3}


def load(folder: Path, extras: Path | None = None, is_v_pred: bool | None = None) -> Architecture:
    emitter: Any = Recorder()
    cpu = torch.device("cpu")
    source = find_base_model(
        str(folder), extras=str(extras) if extras else None, is_v_pred=is_v_pred
    )
    return load_base_model(source, torch.float32, cpu, emitter, StopSignal(), offline=True)


def plain(folder: Path) -> Any:
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(pipeline: Any) -> np.ndarray:
    result = pipeline(
        prompt="a red apple", negative_prompt="blue", width=SIZE[0], height=SIZE[1],
        num_inference_steps=2, guidance_scale=4.0, output_type="np",
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    return np.asarray(result.images[0])


def test_a_prediction_is_what_the_pipelines_own_loop_computes(tiny_xl_base: Path) -> None:
    architecture = load(tiny_xl_base)
    pipeline: Any = plain(tiny_xl_base)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    seen = []
    step = pipeline.scheduler.step

    def spy(output: torch.Tensor, time: Any, sample: torch.Tensor, *rest: Any, **more: Any) -> Any:
        seen.append((output.clone(), time.clone(), sample.clone()))
        return step(output, time, sample, *rest, **more)

    pipeline.scheduler.step = spy
    pipeline(
        prompt="a red apple", width=SIZE[0], height=SIZE[1], num_inference_steps=3,
        guidance_scale=1.0, output_type="latent",
    )  # fmt: skip
    with torch.no_grad():
        captions = architecture.encode_captions(["a red apple"])
        for output, time, noisy in seen:
            ours = architecture.predict(noisy, time[None], captions, [FACTS])
            torch.testing.assert_close(ours, output, atol=1e-5, rtol=0)
    assert len(seen) == 3


def test_captions_of_one_batch_do_not_change_each_other(tiny_xl_base: Path) -> None:
    architecture = load(tiny_xl_base)
    noisy = torch.randn(2, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([100, 700])
    facts = [FACTS, ImageFacts((640, 333), (0, 7), (32, 48))]
    with torch.no_grad():
        rows = architecture.encode_captions(["a red apple", "a dog in the snow, blue sky"])
        both = architecture.predict(noisy, times, rows, facts)
        for n in range(2):
            alone = architecture.predict(noisy[n : n + 1], times[n : n + 1], rows[n : n + 1],
                                         facts[n : n + 1])  # fmt: skip
            torch.testing.assert_close(both[n : n + 1], alone, atol=1e-5, rtol=0)


def test_the_unet_is_told_sizes_as_the_pipeline_does(tiny_xl_base: Path) -> None:
    architecture = load(tiny_xl_base)
    pipeline: Any = architecture.pipeline
    given: dict[str, Any] = {}
    pipeline.unet.register_forward_pre_hook(
        lambda _unet, _args, kwargs: given.update(kwargs["added_cond_kwargs"]), with_kwargs=True
    )
    facts = ImageFacts(original=(640, 333), crop=(0, 7), target=(32, 48))
    with torch.no_grad():
        rows = architecture.encode_captions(["x"])
        architecture.predict(torch.randn(1, 4, 16, 24), torch.tensor([5]), rows, [facts])
    expected = pipeline._get_add_time_ids(
        facts.original, facts.crop, facts.target, torch.float32,
        pipeline.text_encoder_2.config.projection_dim,
    )  # fmt: skip
    assert torch.equal(given["time_ids"], expected)


def test_velocity_is_the_target_where_the_base_model_predicts_it(tmp_path: Path) -> None:
    base = build_stable_diffusion_xl(tmp_path / "v", "v_prediction")
    objective = load(base).objective(TrainSection(), torch.device("cpu"))
    latents, noise = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = torch.cumprod(1 - betas, 0)[300]
    expected = signal.sqrt() * noise - (1 - signal).sqrt() * latents
    torch.testing.assert_close(
        objective.target(latents, noise, torch.tensor([300])).double(), expected.double(),
        atol=1e-4, rtol=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("short", "full"),
    [pytest.param({}, {}, id="plain"), pytest.param(EVERYTHING, EVERYTHING_FULL, id="everything")],
)
def test_a_training_that_died_ends_with_the_same_weights(
    start: Start, tiny_xl_base: Path, mixed_dataset: Path, short: dict[str, Any],
    full: dict[str, Any],
) -> None:  # fmt: skip
    both = [
        start(full, base_model=str(tiny_xl_base), dataset=str(mixed_dataset), steps=8, **short)
        for _ in range(2)
    ]
    events = both[0].run()
    both[1].crash_at(5)
    both[1].run()
    assert_equal_weights(both[0].adapter, both[1].adapter)
    assert len(events.of("step")) == 8


def test_an_adapter_draws_the_same_in_plain_diffusers(
    start: Start, tiny_xl_base: Path, square_dataset: Path
) -> None:
    training = start(TEXT, base_model=str(tiny_xl_base), dataset=str(square_dataset), steps=4)
    training.run()
    tensors = load_file(training.adapter)
    prefixes = {key.split("_")[1] for key in tensors}
    assert prefixes == {"unet", "te1", "te2"}
    theirs = plain(tiny_xl_base)
    theirs.load_lora_weights(training.adapter)
    used = sum(
        1 for part in (theirs.unet, theirs.text_encoder, theirs.text_encoder_2)
        for name, _ in part.named_parameters() if ".lora_" in name
    )  # fmt: skip
    assert used == sum(1 for key in tensors if not key.endswith("alpha"))
    ours: Any = load_with(tiny_xl_base, [training.adapter])
    assert np.array_equal(drawn(theirs), drawn(ours))
    assert not np.array_equal(drawn(ours), drawn(plain(tiny_xl_base)))


def load_with(base: Path, adapters: list[Path]) -> Any:
    from loradash.engines.diffusers.child.adapter_reading import put_adapter, read_adapter

    architecture = load(base)
    modules = [architecture.denoiser(), *architecture.text_encoders()]
    for number, path in enumerate(adapters):
        read = read_adapter(path, modules)
        assert read.warnings == ()
        put_adapter(read, modules, f"adapter_{number}")
    names = [f"adapter_{number}" for number in range(len(adapters))]
    architecture.pipeline.set_adapters(names, [1.0] * len(names))
    return architecture.pipeline


def test_names_of_the_original_code_are_the_same_layers(
    start: Start, tiny_xl_base: Path, square_dataset: Path, tmp_path: Path
) -> None:
    training = start(
        {"network.conv": 2}, base_model=str(tiny_xl_base), dataset=str(square_dataset), steps=3
    )
    training.run()
    tensors = load_file(training.adapter)

    unet = plain(tiny_xl_base).unet
    names = {
        f"lora_unet_{name.replace('.', '_')}": original_name(name, 1, frozenset({0}))
        for name, _ in unet.named_modules()
    }
    renamed = {
        f"lora_unet_{names[layer].replace('.', '_')}.{part}": value  # type: ignore[union-attr]
        for key, value in tensors.items()
        for layer, _, part in [key.partition(".")]
    }
    assert not renamed.keys() & tensors.keys()
    save_file(renamed, tmp_path / "original.safetensors")
    one = load_with(tiny_xl_base, [tmp_path / "original.safetensors"])
    other = load_with(tiny_xl_base, [training.adapter])
    assert np.array_equal(drawn(one), drawn(other))
    theirs = plain(tiny_xl_base)  # diffusers reads attention only under these names
    attention = {key: value for key, value in renamed.items() if "transformer_blocks" in key}
    theirs.load_lora_weights(attention)
    save_file(attention, tmp_path / "attention.safetensors")
    ours = load_with(tiny_xl_base, [tmp_path / "attention.safetensors"])
    assert np.array_equal(drawn(theirs), drawn(ours))


def prediction(architecture: Architecture) -> torch.Tensor:
    noisy = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows = architecture.encode_captions(["a red apple"])
        return architecture.predict(noisy, torch.tensor([400]), rows, [FACTS])


def test_a_single_file_is_the_same_model_as_the_folder(tiny_xl_base: Path, tmp_path: Path) -> None:
    path = write_single_file_xl(plain(tiny_xl_base), tmp_path / "model.safetensors")
    from_file, from_folder = load(path, tiny_xl_base), load(tiny_xl_base)
    torch.testing.assert_close(prediction(from_file), prediction(from_folder))
    assert from_file.pipeline.scheduler.config.prediction_type == "epsilon"


def test_a_single_file_says_by_its_marks_that_it_predicts_v(
    tiny_xl_base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    write_single_file_xl(plain(tiny_xl_base), path, "v_pred", "ztsnr")
    architecture = load(path, tiny_xl_base)
    objective = architecture.objective(TrainSection(), torch.device("cpu"))
    assert objective.prediction_type == "v_prediction"
    assert objective.zero_terminal_snr
    assert architecture.pipeline.scheduler.config.prediction_type == "v_prediction"


def test_previews_are_drawn_with_the_prediction_that_the_config_names(tiny_xl_base: Path) -> None:
    pipeline: Any = load(tiny_xl_base, is_v_pred=True).pipeline
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def test_a_single_file_without_text_encoders_takes_those_of_its_extras(
    tiny_xl_base: Path, tmp_path: Path
) -> None:
    whole = write_single_file_xl(plain(tiny_xl_base), tmp_path / "whole.safetensors")
    tensors = {k: v for k, v in load_file(whole).items() if not k.startswith("conditioner.")}
    save_file(tensors, tmp_path / "part.safetensors")
    from_file = load(tmp_path / "part.safetensors", tiny_xl_base)
    torch.testing.assert_close(prediction(from_file), prediction(load(tiny_xl_base)))
