"""The warm generator, as a real child process."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loradash.domain.events import Event
from loradash.domain.generation import AdapterUse, GenerationRequest
from loradash.domain.schedulers import SCHEDULERS
from loradash.engines.diffusers.engine import DiffusersEngine
from loradash.runtime.supervisor import StopRequest
from loradash.runtime.warm_pipeline import WarmPipeline
from tests.engine.conftest import LocalTraining

Start = Callable[..., LocalTraining]
pytestmark = pytest.mark.slow


class Generator:
    """A warm pipeline and the shortest way to ask it for images."""

    def __init__(self, base: Path, folder: Path) -> None:
        engine = DiffusersEngine(device="cpu", threads=1, offline=True)
        self.pipeline = WarmPipeline(engine, folder / "generator.txt", idle_unload_s=120)
        self._base = base
        self._folder = folder
        self._count = 0
        self.events: list[Event] = []

    def ask(
        self,
        *adapters: tuple[Path, float],
        stop: StopRequest | None = None,
        done: tuple[int, ...] = (),
        **fields: Any,
    ) -> Any:
        self._count += 1
        request_id = f"request-{self._count}"
        self.folder = self._folder / request_id
        request = GenerationRequest(
            **{
                "base_model": str(self._base),
                "prompts": ("a sks blob",),
                "steps": 3,
                "width": 32,
                "height": 32,
                "seed": 5,
                "guidance_scale": 3,
                "adapters": tuple(AdapterUse(path=str(p), weight=w) for p, w in adapters),
                **fields,
            }
        )
        self.events = []
        return self.pipeline.generate(
            request_id, request, tuple(path for path, _ in adapters), self.folder,
            self.events.append, stop or StopRequest(), 120, 120, done,
        )  # fmt: skip

    def images(self) -> list[np.ndarray]:
        return [
            np.asarray(Image.open(path), np.int16) for path in sorted(self.folder.glob("*.png"))
        ]

    def image(self, *adapters: tuple[Path, float], **fields: Any) -> np.ndarray:
        ending = self.ask(*adapters, **fields)
        assert ending.type == "done", ending
        return self.images()[0]


@pytest.fixture(scope="module")
def generator(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generator]:
    generator = Generator(tiny_base, tmp_path_factory.mktemp("generator"))
    yield generator
    generator.pipeline.close()


@pytest.fixture
def two_adapters(start: Start, tiny_base: Path, square_dataset: Path) -> tuple[Path, Path]:
    common = {"dataset": str(square_dataset), "base_model": str(tiny_base), "steps": 10}
    one = start(**common)
    other = start(**common, seed=3, text_encoder_learning_rate=1e-2, alpha=1)
    one.run()
    other.run()
    return one.adapter, other.adapter


def test_adapters_come_and_go_without_a_trace(
    generator: Generator, two_adapters: tuple[Path, Path]
) -> None:
    one, other = two_adapters
    plain = generator.image()
    with_one = generator.image((one, 1.0))
    with_other = generator.image((other, 1.0))
    with_both = generator.image((one, 0.5), (other, 0.5))
    assert not np.array_equal(plain, with_one)
    assert not np.array_equal(with_one, with_other)
    assert not np.array_equal(with_both, with_one)
    assert np.array_equal(generator.image((one, 1.0)), with_one)
    assert np.array_equal(generator.image((other, 1.0)), with_other)
    assert np.array_equal(generator.image(), plain)
    assert np.array_equal(generator.image((other, 0.0)), plain)
    assert generator.pipeline.starts == 1


def test_image_depends_on_its_seed_and_not_on_its_place(generator: Generator) -> None:
    assert generator.ask(prompts=("a", "b"), num_images=2, seed=40).type == "done"
    images = generator.images()
    assert len(images) == 4
    assert np.array_equal(generator.image(prompts=("b",), seed=41), images[3])
    assert not np.array_equal(images[0], images[1])


def test_images_that_are_there_already_are_not_drawn_and_the_others_stay_the_same(
    generator: Generator,
) -> None:
    wanted: dict[str, Any] = {"prompts": ("a", "b"), "num_images": 2, "seed": 40}
    assert generator.ask(**wanted).type == "done"
    images = generator.images()
    seeds = [event.seed for event in generator.events if event.type == "image"]
    assert generator.ask(**wanted, done=(0, 2)).type == "done"
    drawn = [event for event in generator.events if event.type == "image"]
    assert [(event.index, event.seed) for event in drawn] == [(1, seeds[1]), (3, seeds[3])]
    for event, pixels in zip(drawn, generator.images(), strict=True):
        assert np.array_equal(pixels, images[event.index])
    phases = [event for event in generator.events if event.type == "phase"]
    counts = [(event.done, event.total) for event in phases if event.phase == "generating"]
    assert (counts[0], counts[-1]) == ((2, 4), (4, 4))
    assert generator.ask(**wanted, done=(0, 1, 2, 3)).type == "done"
    assert generator.images() == []


def test_png_says_how_it_was_made(generator: Generator, two_adapters: tuple[Path, Path]) -> None:
    generator.image((two_adapters[0], 0.7), negative_prompt="ugly", scheduler="euler")
    with Image.open(next(generator.folder.glob("*.png"))) as image:
        facts = json.loads(image.text["loradash"])
        text = image.text["parameters"]
    assert facts["seed"] == 5
    assert facts["adapters"] == [["tiny", 0.7]]
    assert "Negative prompt: ugly" in text
    assert "Sampler: euler" in text
    assert "<lora:tiny:0.7>" in text


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_draws_nearly_the_same(
    generator: Generator, two_adapters: tuple[Path, Path], precision: str
) -> None:
    """The autoencoder stays in float32 while the rest computes in half precision."""
    full = generator.image((two_adapters[0], 1.0))
    half = generator.image((two_adapters[0], 1.0), precision=precision)
    assert np.abs(full - half).mean() < 6
    assert np.abs(full - generator.image((two_adapters[0], 1.0))).max() == 0


def test_random_seed_is_reported(generator: Generator) -> None:
    image = generator.image(seed=None)
    seed = next(event.seed for event in generator.events if event.type == "image")
    assert np.array_equal(generator.image(seed=seed), image)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_draws(generator: Generator, scheduler: str) -> None:
    assert generator.image(scheduler=scheduler, steps=4).std() > 0


def test_adapter_for_another_model_is_refused_and_the_next_request_works(
    generator: Generator, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import save_file

    plain = generator.image()
    wrong = tmp_path / "wrong.safetensors"
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file(
        {f"{name}.lora_down.weight": torch.ones(4, 77), f"{name}.lora_up.weight": torch.ones(99, 4),
         f"{name}.alpha": torch.tensor(4.0)},
        wrong,
    )  # fmt: skip
    ending = generator.ask((wrong, 1.0))
    assert ending.type == "failed"
    assert ending.code == "adapter_invalid"
    assert np.array_equal(generator.image(), plain)


def test_cancel_stops_between_two_denoising_steps_and_keeps_the_pipeline(
    generator: Generator,
) -> None:
    plain = generator.image()
    pid = generator.pipeline.pid
    stop = StopRequest()
    stop()
    ending = generator.ask(stop=stop, steps=400)
    assert ending.type == "stopped"
    assert generator.images() == []
    assert generator.pipeline.pid == pid
    assert np.array_equal(generator.image(), plain)
