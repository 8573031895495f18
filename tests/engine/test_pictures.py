"""Pictures that went wrong: told by name, in generations and in previews."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from loradash.domain.generation import GenerationRequest
from loradash.engines.diffusers.base_models.families import find_base_model
from loradash.engines.diffusers.child import previews
from loradash.engines.diffusers.child.run_generator import LoadedPipeline
from loradash.engines.diffusers.engine import DiffusersEngine
from loradash.engines.diffusers.job import Generate, TrainingJob
from loradash.engines.stop_signal import StopSignal
from loradash.errors import ImageNotFinite
from loradash.services.datasets.folders import check_for_training
from tests.engine.conftest import LocalTraining, Recorder

Start = Callable[..., LocalTraining]
Draw = Callable[..., Recorder]


@pytest.fixture(scope="module")
def loaded(tiny_base: Path) -> tuple[LoadedPipeline, Recorder]:
    recorder = Recorder()
    return LoadedPipeline("cpu", True, recorder), recorder  # type: ignore[arg-type]


@pytest.fixture
def draw(loaded: tuple[LoadedPipeline, Recorder], tiny_base: Path, tmp_path: Path) -> Draw:
    pipeline, recorder = loaded

    def ask(**fields: Any) -> Recorder:
        recorder.events.clear()
        request = GenerationRequest(
            **{
                "base_model": str(tiny_base), "prompts": ("a blob",), "steps": 2, "width": 32,
                "height": 32, "seed": 1, "guidance_scale": 3, **fields,
            }
        )  # fmt: skip
        line = Generate(
            request_id="one", request=request, base_model=find_base_model(str(tiny_base)),
            adapters=(), folder=tmp_path,
        )  # fmt: skip
        pipeline.generate(line, StopSignal())
        return recorder

    return ask


@pytest.fixture
def damaged(loaded: tuple[LoadedPipeline, Recorder], draw: Draw) -> Iterator[Callable[..., None]]:
    """Set a weight of the loaded base model; put back afterwards."""
    draw()
    kept: list[tuple[Any, Any]] = []

    def damage(part: str, name: str, value: float) -> None:
        architecture = loaded[0]._architecture
        assert architecture is not None
        weight = dict(getattr(architecture.pipeline, part).named_parameters())[name]
        kept.append((weight, weight.detach().clone()))
        with torch.no_grad():
            weight.fill_(value)

    yield damage
    for weight, before in kept:
        with torch.no_grad():
            weight.copy_(before)


def test_latents_that_become_nan_fail_by_name_at_their_first_step(
    draw: Draw, damaged: Callable[..., None], tmp_path: Path
) -> None:
    before = list(tmp_path.iterdir())
    damaged("unet", "conv_in.bias", float("nan"))
    with pytest.raises(ImageNotFinite, match="'a blob' became NaN or infinite at step 1 of 2"):
        draw()
    assert list(tmp_path.iterdir()) == before


def test_pixels_that_become_nan_fail_by_name(draw: Draw, damaged: Callable[..., None]) -> None:
    damaged("vae", "decoder.conv_out.bias", float("nan"))
    with pytest.raises(ImageNotFinite, match="in the autoencoder"):
        draw()


def test_an_image_of_one_color_is_a_warning_with_its_name(
    draw: Draw, damaged: Callable[..., None]
) -> None:
    assert draw().of("warning") == []
    damaged("vae", "decoder.conv_out.bias", 50.0)
    (warning,) = draw().of("warning")
    assert warning.code == "image_one_color"
    assert warning.message == "image_0000.png: every pixel is #ffffff"


def test_a_preview_that_becomes_nan_costs_itself_alone(
    start: Start, tiny_base: Path, square_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = previews.draw

    def broken(architecture: Any, drawing: Any, *rest: Any) -> Any:
        if drawing.prompt == "bad":
            raise ImageNotFinite("the image became NaN")
        return drawn(architecture, drawing, *rest)

    monkeypatch.setattr(previews, "draw", broken)
    recorder = start(
        dataset=str(square_dataset), base_model=str(tiny_base), steps=1, sample_steps=1,
        sample_prompts=["bad", "good"], sample_size=32,
    ).run()  # fmt: skip
    assert [event.prompt for event in recorder.of("sample")] == ["good", "good"]
    failed = [event for event in recorder.of("warning") if event.code == "sampling_failed"]
    assert [event.message for event in failed] == [
        "step-000000000-0.png: the image became NaN", "step-000000001-0.png: the image became NaN"
    ]  # fmt: skip
    assert recorder.of("done")


def test_a_prompts_own_settings_hold_for_it_alone(draw: Draw, tmp_path: Path) -> None:
    def pixels(name: str) -> bytes:
        with Image.open(tmp_path / name) as image:
            return image.tobytes() + bytes(image.size)

    draw(prompts=("a", "b"), name="plain")
    own = {"negative_prompt": "x", "seed": 0, "width": 16, "steps": 3, "scheduler": "euler"}
    recorder = draw(prompts=("a", "b"), prompt_settings=(own, {}), num_images=2, name="own")
    assert [event.seed for event in recorder.of("image")] == [0, 1, 1, 2]
    assert pixels("own_0002.png") == pixels("plain_0001.png")
    with Image.open(tmp_path / "own_0000.png") as image:
        assert image.size == (16, 32)
        assert "Negative prompt: x\nSteps: 3, Sampler: euler," in image.text["parameters"]


def test_prompts_beyond_the_text_encoders_limit_are_told_with_their_end(draw: Draw) -> None:
    long = "a red fox that jumps over a lazy dog in the deep snow of a cold winter night"
    recorder = draw(prompts=(long, "a fox"), negative_prompt=long + " ugly")
    warnings = recorder.of("warning")
    assert [event.code for event in warnings] == ["text_cut", "text_cut"]
    assert warnings[0].message.startswith("the prompt 'a red fox")
    assert "longer than the 14 tokens" in warnings[0].message
    assert warnings[1].message.startswith("the negative prompt ")


def test_captions_and_sample_prompts_beyond_the_limit_are_told_by_the_training(
    start: Start, tiny_base: Path, square_dataset: Path
) -> None:
    """What the check counts without torch is what the text encoder's own tokenizer says."""
    long = "a red fox that jumps over a lazy dog in the deep snow of a cold winter night"
    training = start(
        dataset=str(square_dataset), base_model=str(tiny_base), steps=1, sample_steps=1,
        sample_prompts=[long], sample_size=32, sample_every=9, trigger_word=f"{long} sks",
    )  # fmt: skip
    warnings = {event.code: event.message for event in training.run().of("warning")}
    assert warnings["captions_cut"].startswith("4 of 4 captions are longer than the 14 tokens")
    assert warnings["text_cut"].startswith("sample.prompts[0] is longer than the 14 tokens")
    config = TrainingJob.model_validate_json((training.folder / "job.json").read_bytes()).config
    section = config.process.datasets[0]
    report = check_for_training(config)[0]
    engine = DiffusersEngine(device="cpu", threads=1, offline=True)
    told = engine.check_texts(config, [(section, report)])
    assert set(told) == {warnings["captions_cut"], warnings["text_cut"]}
