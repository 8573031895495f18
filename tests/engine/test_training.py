"""What a training does: failures that are told, files that appear, settings that act."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from loradash.engines.diffusers.child import previews
from loradash.engines.diffusers.child import run_training as run_module
from loradash.engines.diffusers.child.stable_diffusion import StableDiffusion
from loradash.engines.stop_signal import StopSignal
from tests.engine.conftest import LocalTraining, write_dataset

Start = Callable[..., LocalTraining]


@pytest.fixture
def common(tiny_base: Path, square_dataset: Path) -> dict[str, Any]:
    return {"dataset": str(square_dataset), "base_model": str(tiny_base)}


def test_events_tell_the_whole_training(start: Start, common: dict[str, Any]) -> None:
    training = start(**common)
    recorder = training.run()
    steps = recorder.of("step")
    assert [event.step for event in steps] == list(range(1, 9))
    assert {event.total_steps for event in steps} == {8}
    assert all(event.loss > 0 and event.grad_norm > 0 for event in steps)
    assert [event.step for event in recorder.of("checkpoint")] == [3, 6, 8]
    assert recorder.events[-1].type == "done"
    done = recorder.events[-1]
    assert Path(done.path) == training.adapter
    assert done.size_bytes == training.adapter.stat().st_size


def test_checkpoint_can_be_asked_for_at_any_step(start: Start, common: dict[str, Any]) -> None:
    stop = StopSignal()
    training = start(**common)
    training.run(
        lambda event: stop.request_save() if event.type == "step" and event.step == 4 else None,
        stop,
    )
    assert training.checkpoints == [3, 4, 6, 8]


def test_without_intervals_there_are_no_previews_and_only_the_last_checkpoint(
    start: Start, common: dict[str, Any]
) -> None:
    training = start(
        **{**common, "save_every": 0, "sample_every": 0}, sample_prompts=["x"], sample_size=16
    )
    recorder = training.run()
    assert recorder.of("sample") == []
    assert training.checkpoints == [8]


def test_loss_that_is_not_finite_stops_and_says_so(start: Start, common: dict[str, Any]) -> None:
    training = start({"train.max_grad_norm": 0}, **common, learning_rate=1e6, steps=50)
    recorder = training.run()
    failed = recorder.of("failed")[0]
    assert failed.code == "loss_not_finite"
    assert "learning rate" in failed.remedy
    assert not (training.folder / "lora").exists()
    assert len(recorder.of("step")) < 50


def test_out_of_memory_is_told_with_a_remedy_and_keeps_the_checkpoint(
    start: Start, common: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    predict = StableDiffusion.predict

    def run_out_at_fifth(self: StableDiffusion, *arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return predict(self, *arguments)

    monkeypatch.setattr(StableDiffusion, "predict", run_out_at_fifth)
    training = start(**common)
    failed = training.run().of("failed")[0]
    assert failed.code == "out_of_memory"
    assert "batch_size" in failed.remedy
    assert failed.resumable
    assert training.run().of("done")


def test_full_disk_is_told_and_leaves_no_half_checkpoint(
    start: Start, common: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    training = start(**common)
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "write_adapter", no_space)
        failed = training.run().of("failed")[0]
    assert failed.code == "disk_full"
    assert training.checkpoints == []
    assert training.run().of("done")


def test_failing_preview_costs_the_preview_and_not_the_training(
    start: Start, common: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(previews, "draw", fail)
    recorder = start(**common, sample_prompts=["x"], sample_every=4).run()
    assert "sampling_failed" in recorder.codes
    assert recorder.of("done")


def test_samples_carry_their_parameters(start: Start, common: dict[str, Any]) -> None:
    training = start(
        **common, sample_prompts=["a [trigger] blob", "a thing"], sample_every=4, sample_steps=2,
        sample_size=16,
    )  # fmt: skip
    samples = training.run().of("sample")
    assert [(event.step, event.index) for event in samples] == [
        (0, 0), (0, 1), (4, 0), (4, 1), (8, 0), (8, 1)
    ]  # fmt: skip
    assert samples[0].prompt == "a sks blob"
    assert samples[1].prompt == "a thing"
    with Image.open(samples[0].path) as image:
        assert image.size == (16, 16)
        facts = json.loads(image.text["loradash"])
        assert facts["prompt"] == "a sks blob"
        assert "Seed: 11" in image.text["parameters"]


def test_preview_multiplier_is_how_strongly_the_adapter_acts(
    start: Start, common: dict[str, Any]
) -> None:
    samples = [
        {"prompt": "a sks blob", "network_multiplier": multiplier} for multiplier in (0, 1, 1, 0)
    ]
    training = start(
        {"sample.samples": samples, "sample.walk_seed": False}, **common, sample_steps=2,
        sample_size=16, sample_every=8,
    )  # fmt: skip
    written = {(e.step, e.index): e.path for e in training.run().of("sample")}
    pixels = {key: np.asarray(Image.open(path)) for key, path in written.items()}
    assert np.array_equal(pixels[8, 0], pixels[0, 0])
    assert np.array_equal(pixels[8, 3], pixels[0, 0])
    assert not np.array_equal(pixels[8, 1], pixels[8, 0])
    assert np.array_equal(pixels[8, 1], pixels[8, 2])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_previews(
    start: Start, common: dict[str, Any], precision: str
) -> None:
    training = start(
        **common, precision=precision, sample_prompts=["x"], sample_every=8, sample_steps=2,
        sample_size=16, ema_decay=0.9,
    )  # fmt: skip
    recorder = training.run()
    assert [event.step for event in recorder.of("sample")] == [0, 8]
    assert recorder.of("done")
    with Image.open(recorder.of("sample")[1].path) as image:
        assert np.asarray(image).std() > 0


def test_previews_that_a_killed_attempt_missed_are_drawn_at_resume(
    start: Start, common: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = start(**common, sample_prompts=["x"], sample_every=3, sample_steps=1, sample_size=16)
    with monkeypatch.context() as patched:
        patched.setattr(previews.Previews, "draw_if_due", lambda self: None)
        training.stop_after(6)
    recorder = training.run()
    assert [event.step for event in recorder.of("sample")] == [6, 8]


def test_gradient_checkpointing_gives_the_same_training(
    start: Start, common: dict[str, Any]
) -> None:
    plain, saving = start(**common), start(**common, gradient_checkpointing=True)
    first = [event.loss for event in plain.run().of("step")]
    second = [event.loss for event in saving.run().of("step")]
    np.testing.assert_allclose(first, second, rtol=1e-4)


def test_accumulation_of_two_batches_is_one_batch_of_twice_the_size(
    start: Start, common: dict[str, Any]
) -> None:
    recorder = start(**common, gradient_accumulation=2, steps=4).run()
    assert [event.step for event in recorder.of("step")] == [1, 2, 3, 4]
    counted_in_batches = start({"train.gradient_accumulation_steps": 2}, **common, steps=8).run()
    assert [event.loss for event in counted_in_batches.of("step")] == [
        event.loss for event in recorder.of("step")
    ]


def test_average_of_the_weights_is_what_is_saved(start: Start, common: dict[str, Any]) -> None:
    plain, averaged = start(**common), start(**common, ema_decay=0.99)
    assert [e.loss for e in plain.run().of("step")] == [e.loss for e in averaged.run().of("step")]
    first, second = load_file(plain.adapter), load_file(averaged.adapter)
    assert any(not np.array_equal(first[key], second[key]) for key in first)


def test_text_encoder_is_trained_only_if_asked_for(start: Start, common: dict[str, Any]) -> None:
    without, with_text = start(**common), start(**common, text_encoder_learning_rate=1e-3)
    without.run()
    with_text.run()
    assert not any(key.startswith("lora_te") for key in load_file(without.adapter))
    up = {
        key: value
        for key, value in load_file(with_text.adapter).items()
        if key.startswith("lora_te_text_model_") and key.endswith("lora_up.weight")
    }
    assert up
    assert all(np.abs(value).max() > 0 for value in up.values())


def test_only_text_encoder_can_be_trained(start: Start, common: dict[str, Any]) -> None:
    training = start({"train.train_unet": False}, **common, text_encoder_learning_rate=1e-3)
    training.run()
    assert all(key.startswith("lora_te_text_model_") for key in load_file(training.adapter))


def test_learning_rates_of_unet_and_text_encoder_are_separate(
    start: Start, common: dict[str, Any]
) -> None:
    training = start(
        {"train.text_encoder_lr": 1e-12, "train.unet_lr": 1e-2}, **common,
        text_encoder_learning_rate=1.0,
    )  # fmt: skip
    training.run()
    weights = load_file(training.adapter)
    text = [v for k, v in weights.items() if k.startswith("lora_te") and "lora_up" in k]
    assert max(np.abs(value).max() for value in text) < 1e-6


def test_eight_bit_optimizer_without_gpu_falls_back_and_says_so(
    start: Start, common: dict[str, Any]
) -> None:
    recorder = start(**common, optimizer="adamw8bit", steps=2).run()
    assert "optimizer_fallback" in recorder.codes
    assert recorder.of("done")


def test_pretrained_adapter_is_where_the_training_starts(
    start: Start, common: dict[str, Any], tmp_path: Path
) -> None:
    first = start({"save.dtype": "float32"}, **common, steps=4)
    first.run()
    second = start(
        {"network.pretrained_lora_path": str(first.adapter), "save.dtype": "float32"}, **common,
        steps=1, learning_rate=1e-9,
    )  # fmt: skip
    second.run()
    old, new = load_file(first.adapter), load_file(second.adapter)
    for key in old:
        np.testing.assert_allclose(old[key], new[key], atol=1e-6)


def test_missing_captions_are_mentioned_and_the_default_is_used(
    start: Start, tiny_base: Path, tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path / "data", [(32, 32)] * 2)
    (dataset / "image_01.txt").unlink()
    recorder = start(dataset=str(dataset), base_model=str(tiny_base), steps=1).run()
    warning = next(event for event in recorder.of("warning") if event.code == "captions_missing")
    assert "image_01.png" in warning.message


def test_an_image_smaller_than_a_step_of_the_model_is_enlarged_and_named(
    start: Start, tiny_base: Path, tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path / "data", [(32, 32)] * 2)
    Image.new("RGB", (1, 32)).save(dataset / "image_01.png")
    (dataset / "image_00.txt").unlink()
    recorder = start(dataset=str(dataset), base_model=str(tiny_base), steps=1).run()
    told = {event.code: event.message for event in recorder.of("warning")}
    assert "1 image is enlarged, since its shorter side has fewer than" in told["images_enlarged"]
    assert told["images_enlarged"].endswith(" pixels: image_01.png")
    assert told["captions_missing"].startswith(f"1 of 2 images in {dataset} has no .txt file")


def test_images_of_every_format_are_trained_on_and_what_is_left_out_is_told(
    start: Start, tiny_base: Path, tmp_path: Path
) -> None:
    dataset = write_dataset(tmp_path / "data", [(32, 32)])
    whole = Image.open(dataset / "image_00.png")
    for ending in ("gif", "tiff", "avif", "jfif"):
        whole.convert("RGB").save(dataset / f"more.{ending}")
    heic = Path(__file__).parents[1] / "data" / "half.heic"
    (dataset / "photo.HEIC").write_bytes(heic.read_bytes())
    (dataset / "photo.caption").write_text("half red, half blue")
    (dataset / "empty.txt").write_text("")
    (dataset / "more.jxl").write_bytes(b"x")
    (dataset / "_controls").mkdir()
    (dataset / "_controls" / "image_00.png").write_bytes(b"x")
    training = start(dataset=str(dataset), base_model=str(tiny_base), steps=1)
    recorder = training.run()
    assert recorder.events[-1].type == "done"
    told = {event.code: event.message for event in recorder.of("warning")}
    assert "empty.txt" in told["captions_without_image"]
    left_out = [event.message for event in recorder.of("warning")
                if event.code == "files_left_out"]  # fmt: skip
    assert any("_controls/" in text for text in left_out)
    assert any("more.jxl" in text for text in left_out)
    assert told["captions_missing"].startswith("4 of 6 images")
    assert "photo" not in told["captions_missing"]


def test_prior_images_keep_the_base_model_where_the_trigger_is_absent(
    start: Start, tiny_base: Path, square_dataset: Path, tmp_path: Path
) -> None:
    """With preservation, the prediction for the prior's caption moves less than without."""
    prior = write_dataset(tmp_path / "prior", [(32, 32)] * 4, "a thing")
    common = {"dataset": str(square_dataset), "base_model": str(tiny_base), "steps": 30}
    plain = start(**common)
    kept = start(**common, regularization=str(prior))
    assert plain.run().of("done")
    assert kept.run().of("done")
    assert _change(tiny_base, kept.adapter) < 0.7 * _change(tiny_base, plain.adapter)


def _change(base: Path, adapter: Path) -> float:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
    hidden = pipeline.encode_prompt("a thing, tag1, round, yellow", "cpu", 1, False)[0]
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = pipeline.unet(noisy, 500, hidden).sample
        pipeline.load_lora_weights(str(adapter.parent), weight_name=adapter.name)
        after = pipeline.unet(noisy, 500, hidden).sample
    return float((before - after).square().mean().sqrt())
