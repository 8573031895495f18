"""What does our generator cost next to a bare ``StableDiffusionPipeline``?

Ours is the engine's long-lived child behind `WarmPipeline`, with requests, events and PNG
metadata; its cost is that of the child and of the parent together. The peer is a process that holds
the pipeline, calls it and saves the image. Same base model, prompts, seeds, 20 steps, 64 px, fp32,
one thread; single images in turn, both processes warm. The pictures are compared pixel by pixel.

Also: switching between two adapters, each time with an image of one step, next to what the peer has
to do for it (load the base model again and the adapter; or unload and load adapters). And the cold
start: from nothing to the first image.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from PIL import Image

from bench.measure import Cost, cost_rows, judged, parser, reading, report
from bench.workload import (
    BASE_MODEL,
    BASE_MODEL_FOLDER,
    REPOSITORY,
    SIZE,
    make_engine,
    make_trainings,
    training_config,
    write_images,
)
from loradash.domain.events import Done, Event, ImageWritten
from loradash.domain.generation import AdapterUse, GenerationRequest
from loradash.runtime.supervisor import StopRequest
from loradash.runtime.warm_pipeline import WarmPipeline
from loradash.telemetry import logging

PROMPTS = ("a red apple", "a penguin", "a blue circle", "a green frog")
STEPS = 20
GUIDANCE_SCALE = 7.0
PIXEL_TOLERANCE = 2  # of 255: MKL's reproducible mode, which we set, changes the last bits
FORGIVEN = 1.05


@dataclass(frozen=True)
class Picture:
    """One image to draw."""

    prompt: str
    seed: int
    steps: int = STEPS
    lora: Path | None = None


class Ours:
    """Our generator and the parent that drives it."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "our-images"
        self._pipeline = WarmPipeline(make_engine(), root / "generator.txt", idle_unload_s=3600)
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pipeline.close()

    def draw(self, picture: Picture) -> tuple[Cost, Path]:
        """Draw; return the cost of child and parent, and the file."""
        self._number += 1
        adapters = (AdapterUse(path=str(picture.lora)),) if picture.lora else ()
        request = GenerationRequest(
            base_model=BASE_MODEL,
            prompts=(picture.prompt,),
            adapters=adapters,
            seed=picture.seed,
            steps=picture.steps,
            guidance_scale=GUIDANCE_SCALE,
            width=SIZE,
            height=SIZE,
            precision="fp32",
        )
        images: list[Path] = []

        def keep(event: Event) -> None:
            if isinstance(event, ImageWritten):
                images.append(Path(event.path))

        folder = self._folder / str(self._number)
        parent, child_cpu_s = reading(), self._child_cpu_s()
        ending = self._pipeline.generate(
            f"request-{self._number}", request, (picture.lora,) if picture.lora else (), folder,
            keep, StopRequest(), timeout_s=600, stall_s=600,
        )  # fmt: skip
        if not isinstance(ending, Done):
            raise RuntimeError(f"our generation failed: {ending}")
        spent = reading() - parent
        return Cost(spent.cpu_s + self._child_cpu_s() - child_cpu_s, spent.wall_s), images[0]

    def _child_cpu_s(self) -> float:
        return reading(self._pipeline.pid).cpu_s if self._pipeline.pid else 0.0


class Bare:
    """The peer's process."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "peer-images"
        self._folder.mkdir(exist_ok=True)
        self._log = root / "peer-log.txt"
        self._number = 0
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.bare_process", str(BASE_MODEL_FOLDER)],
                cwd=root,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def draw(self, picture: Picture, **more: Any) -> tuple[Cost, Path]:
        """Draw; return the cost of the process (not of this parent), and the file."""
        self._number += 1
        path = self._folder / f"{self._number}.png"
        request = {
            "prompt": picture.prompt, "seed": picture.seed, "steps": picture.steps, "size": SIZE,
            "guidance_scale": GUIDANCE_SCALE, "path": str(path),
            "lora": str(picture.lora) if picture.lora else None, **more,
        }  # fmt: skip
        before = reading(self._process.pid)
        _pipe(self._process.stdin).write(json.dumps(request) + "\n")
        _pipe(self._process.stdin).flush()
        if _pipe(self._process.stdout).readline() != "drawn\n":
            raise RuntimeError(f"the peer failed:\n{self._log.read_text()[-2000:]}")
        return reading(self._process.pid) - before, path

    def total_cpu_s(self) -> float:
        """CPU seconds since the process was started."""
        return reading(self._process.pid).cpu_s


def main() -> None:
    """Run all parts and report."""
    arguments = parser(__doc__, repeats=10).parse_args()
    logging.configure(None, "warning", as_json=False, stream=sys.stderr)
    repeats = arguments.repeats
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        adapters = train_adapters(root)
        cold = cold_starts(root, max(3, repeats // 2))
        with Ours(root) as ours, Bare(root) as bare:
            warm, difference = warm_images(ours, bare, repeats)
            switched, kept, reloaded, loaded_again = switches(ours, bare, adapters, repeats)
            after, never = without_adapter(ours, bare, repeats)
    cpu, wall = cost_rows("warm image", *warm)
    rows = [
        judged(cpu, "at most 1.05", lambda ratio: ratio <= FORGIVEN),
        wall,
        *cost_rows("switch adapter + 1 step; peer reloads base and adapter", switched, reloaded),
        *cost_rows("switch adapter + 1 step; peer unloads and loads adapter", switched,
                   loaded_again),
        *cost_rows("switch adapter + 1 step; peer: ours without a switch", switched, kept),
        *cost_rows("warm image without adapter, after adapters were in use", after, never),
        *cost_rows("cold start to first image", *cold),
    ]  # fmt: skip
    report(rows, arguments, largest_pixel_difference=difference)


def train_adapters(root: Path) -> list[Path]:
    """Train two adapters for a few steps: their size matters here, not their look."""
    write_images(root / "images", root / "unused")
    trainings = make_trainings(make_engine(), root / "workspace")
    paths = []
    for seed in (1, 2):
        process_id, _ = trainings.train(training_config(root / "images", 3, seed))
        paths.append(trainings.service.adapter(process_id))
    return paths


def cold_starts(root: Path, repeats: int) -> tuple[list[Cost], list[Cost]]:
    """From no process to the first image, in turn."""
    our_costs, peer_costs = [], []
    picture = Picture(PROMPTS[0], 0)
    for _ in range(repeats):
        with Ours(root) as ours:
            our_costs.append(ours.draw(picture)[0])
        started = reading().wall_s
        with Bare(root) as bare:
            bare.draw(picture)
            peer_costs.append(Cost(bare.total_cpu_s(), reading().wall_s - started))
    return our_costs, peer_costs


def warm_images(ours: Ours, bare: Bare, repeats: int) -> tuple[tuple[list[Cost], list[Cost]], int]:
    """Draw the same images in turn; return the costs, and the largest difference of a pixel.

    One repeat is one image of each prompt; its cost is their mean.
    """
    for seed in (1000, 1001):  # warm-up
        ours.draw(Picture(PROMPTS[0], seed))
        bare.draw(Picture(PROMPTS[0], seed))
    our_costs, peer_costs, differences = [], [], []
    for repeat in range(repeats):
        mine, theirs = [], []
        for prompt in PROMPTS:
            picture = Picture(prompt, repeat)
            cost, our_path = ours.draw(picture)
            mine.append(cost)
            cost, peer_path = bare.draw(picture)
            theirs.append(cost)
            differences.append(_largest_difference(our_path, peer_path))
        our_costs.append(_mean(mine))
        peer_costs.append(_mean(theirs))
    if max(differences) > PIXEL_TOLERANCE:
        raise RuntimeError(f"the images differ by up to {max(differences)} of 255")
    return (our_costs, peer_costs), max(differences)


def switches(
    ours: Ours, bare: Bare, adapters: list[Path], repeats: int
) -> tuple[list[Cost], list[Cost], list[Cost], list[Cost]]:
    """Images of one step, each with the other adapter than the one before.

    Returns our switch, our image without a switch, the peer's with the base model loaded again, and
    the peer's with the adapter unloaded and the other one loaded.
    """
    switched, kept, reloaded, loaded_again = [], [], [], []
    for lora in adapters:  # warm-up; ours keeps both in memory from here on
        ours.draw(Picture(PROMPTS[0], 0, 1, lora))
    for repeat in range(repeats):
        picture = Picture(PROMPTS[0], repeat, 1, adapters[repeat % 2])
        switched.append(ours.draw(picture)[0])
        kept.append(ours.draw(picture)[0])
        reloaded.append(bare.draw(picture, reload=True)[0])
        other = Picture(PROMPTS[0], repeat, 1, adapters[1 - repeat % 2])
        loaded_again.append(bare.draw(other, unload_lora=True)[0])
    bare.draw(Picture(PROMPTS[0], 0), reload=True)  # leave it as it was: without an adapter
    return switched, kept, reloaded, loaded_again


def without_adapter(ours: Ours, bare: Bare, repeats: int) -> tuple[list[Cost], list[Cost]]:
    """Warm images without an adapter, while ours still holds the two from before."""
    our_costs, peer_costs = [], []
    for repeat in range(repeats):
        pictures = [Picture(prompt, repeat) for prompt in PROMPTS[:2]]
        our_costs.append(_mean([ours.draw(picture)[0] for picture in pictures]))
        peer_costs.append(_mean([bare.draw(picture)[0] for picture in pictures]))
    return our_costs, peer_costs


def _mean(costs: list[Cost]) -> Cost:
    cpu, wall = zip(*costs, strict=True)
    return Cost(statistics.mean(cpu), statistics.mean(wall))


def _largest_difference(one: Path, other: Path) -> int:
    a, b = (np.asarray(Image.open(path), dtype=np.int16) for path in (one, other))
    return int(np.abs(a - b).max())


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


if __name__ == "__main__":
    main()
