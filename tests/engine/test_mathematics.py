"""Objective, schedules, averages: against the libraries that define them, and against formulas."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_snr

from loradash.domain.training_config import TrainSection
from loradash.engines.diffusers.child.ema import MovingAverage
from loradash.engines.diffusers.child.objective import DiffusionObjective
from loradash.engines.diffusers.child.randomness import generator
from loradash.engines.diffusers.child.schedules import factor

SHAPE = torch.Size((6, 4, 8, 8))
TIMESTEPS = torch.tensor([0, 1, 250, 500, 900, 999])


def scheduler(prediction_type: str, **options: Any) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type=prediction_type, **options,
    )  # fmt: skip


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_and_targets_are_those_of_diffusers(prediction_type: str, zero_snr: bool) -> None:
    theirs = scheduler(prediction_type, rescale_betas_zero_snr=zero_snr)
    ours = DiffusionObjective(theirs, TrainSection(), torch.device("cpu"))
    latents, noise = torch.randn(SHAPE), torch.randn(SHAPE)
    torch.testing.assert_close(
        ours.add_noise(latents, noise, TIMESTEPS), theirs.add_noise(latents, noise, TIMESTEPS)
    )
    expected = (
        noise if prediction_type == "epsilon" else theirs.get_velocity(latents, noise, TIMESTEPS)
    )
    torch.testing.assert_close(ours.target(latents, noise, TIMESTEPS), expected)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights_follow_the_paper(prediction_type: str) -> None:
    theirs = scheduler(prediction_type)
    ours = DiffusionObjective(theirs, TrainSection(min_snr_gamma=5.0), torch.device("cpu"))
    predicted, target = torch.randn(SHAPE), torch.randn(SHAPE)
    snr = compute_snr(theirs, TIMESTEPS)
    weights = snr.clamp(max=5.0) / (snr + 1 if prediction_type == "v_prediction" else snr)
    expected = weights * (predicted - target).square().flatten(1).mean(1)
    torch.testing.assert_close(ours.loss(predicted, target, TIMESTEPS), expected)


def test_min_snr_is_finite_at_zero_terminal_snr() -> None:
    for prediction_type in ("epsilon", "v_prediction"):
        theirs = scheduler(prediction_type, rescale_betas_zero_snr=True)
        ours = DiffusionObjective(theirs, TrainSection(min_snr_gamma=5.0), torch.device("cpu"))
        loss = ours.loss(torch.randn(SHAPE), torch.randn(SHAPE), TIMESTEPS)
        assert torch.isfinite(loss).all()


def test_timesteps_stay_between_the_given_ones() -> None:
    train = TrainSection(min_denoising_steps=200, max_denoising_steps=300)
    ours = DiffusionObjective(scheduler("epsilon"), train, torch.device("cpu"))
    _, timesteps = ours.draw(torch.Size((5000, 1, 1, 1)), generator(0, "test"))
    assert (timesteps.min().item(), timesteps.max().item()) == (200, 300)


@pytest.mark.parametrize(
    ("preference", "share_of_noisy"), [("balanced", 0.5), ("content", 0.79), ("style", 0.21)]
)
def test_content_prefers_steps_with_much_noise_and_style_those_with_little(
    preference: Any, share_of_noisy: float
) -> None:
    train = TrainSection(content_or_style=preference, min_denoising_steps=100)
    ours = DiffusionObjective(scheduler("epsilon"), train, torch.device("cpu"))
    _, timesteps = ours.draw(torch.Size((20_000, 1, 1, 1)), generator(0, "test"))
    noisy = (timesteps >= 550).float().mean().item()
    assert noisy == pytest.approx(share_of_noisy, abs=0.02)  # 0.79 is half to the power of a third
    assert (timesteps.min().item(), timesteps.max().item()) == (100, 999)


def test_noise_offset_moves_whole_channels() -> None:
    train = TrainSection(noise_offset=0.5)
    ours = DiffusionObjective(scheduler("epsilon"), train, torch.device("cpu"))
    noise, _ = ours.draw(torch.Size((400, 4, 16, 16)), generator(0, "test"))
    assert noise.mean((2, 3)).std().item() == pytest.approx(math.sqrt(0.25 + 1 / 256), rel=0.05)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("constant", {}),
        ("constant_with_warmup", {"num_warmup_steps": 10}),
        ("linear", {"num_warmup_steps": 10}),
        ("cosine", {"num_warmup_steps": 10}),
        ("cosine_with_restarts", {"num_warmup_steps": 10, "num_cycles": 3}),
        ("polynomial", {"num_warmup_steps": 10, "power": 2.0}),
    ],
)
def test_learning_rate_follows_the_schedule_of_diffusers(
    name: str, options: dict[str, Any]
) -> None:
    steps = 100
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    cycles = {"num_cycles": options["num_cycles"]} if "num_cycles" in options else {}
    theirs = get_scheduler(
        name, optimizer, num_warmup_steps=options.get("num_warmup_steps", 0),
        num_training_steps=steps, power=options.get("power", 1.0), **cycles,
    )  # fmt: skip
    train = TrainSection(steps=steps, lr_scheduler=name, lr_scheduler_params=options)  # type: ignore[arg-type]
    warm = options.get("num_warmup_steps", 0)
    for step in range(steps):
        if step >= warm:  # theirs starts the rise at 0, which wastes the first update
            floor = 1e-7 if name == "polynomial" else 0.0
            assert factor(step, train) == pytest.approx(theirs.get_last_lr()[0], abs=1e-6 + floor)
        optimizer.step()
        theirs.step()
    assert factor(0, train) > 0


@pytest.mark.parametrize(
    ("name", "options", "theirs", "arguments"),
    [
        ("cosine", {"eta_min": 1e-5}, "CosineAnnealingLR", {"T_max": 50, "eta_min": 1e-5}),
        (
            "linear",
            {"start_factor": 0.25, "end_factor": 0.75},
            "LinearLR",
            {"start_factor": 0.25, "end_factor": 0.75, "total_iters": 50},
        ),
        ("constant", {"factor": 0.5}, "ConstantLR", {"factor": 0.5, "total_iters": 50}),
    ],
)
def test_learning_rate_follows_the_schedule_of_torch_that_ai_toolkit_takes(
    name: Any, options: dict[str, Any], theirs: str, arguments: dict[str, Any]
) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedule = getattr(torch.optim.lr_scheduler, theirs)(optimizer, **arguments)
    train = TrainSection(steps=50, lr_scheduler=name, lr_scheduler_params=options)  # type: ignore[arg-type]
    for step in range(50):
        assert 1e-4 * factor(step, train) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        schedule.step()


def test_a_warm_up_without_a_length_has_that_of_ai_toolkit() -> None:
    train = TrainSection(steps=2000, lr_scheduler="constant_with_warmup")
    assert [factor(step, train) for step in (0, 499, 999, 1500)] == [0.001, 0.5, 1.0, 1.0]


def test_schedule_ends_at_its_smallest_factor() -> None:
    train = TrainSection(
        steps=50, lr_scheduler="cosine", lr_scheduler_params={"min_factor": 0.1}  # type: ignore[arg-type]
    )  # fmt: skip
    assert factor(49, train) == pytest.approx(0.1, abs=0.002)


def test_moving_average_follows_and_gives_the_weights_back() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    average = MovingAverage([parameter], decay=0.9)
    parameter.data.fill_(1.0)
    average.update(1)
    torch.testing.assert_close(average.shadow[0], torch.full((3,), 9 / 11))
    with average.applied():
        torch.testing.assert_close(parameter.data, torch.full((3,), 9 / 11))
    torch.testing.assert_close(parameter.data, torch.ones(3))


def test_random_numbers_depend_on_seed_and_purpose_alone() -> None:
    def draw(*purpose: Any) -> torch.Tensor:
        return torch.randn(4, generator=generator(*purpose))

    assert torch.equal(draw(1, "noise", 5), draw(1, "noise", 5))
    different = [draw(1, "noise", 5), draw(2, "noise", 5), draw(1, "noise", 6), draw(1, "other", 5)]
    assert len({tuple(value.tolist()) for value in different}) == 4


def test_latents_are_scaled_as_the_pipeline_decodes_them(tiny_base: Path) -> None:
    from loradash.engines.diffusers.child.stable_diffusion import StableDiffusion

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True)
    architecture = StableDiffusion(pipeline)
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    posterior = architecture.encode_images(pixels)
    latents = architecture.normalise(posterior.sample(torch.zeros(1, 4, 16, 16)))
    with torch.no_grad():
        expected = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
    torch.testing.assert_close(latents, expected)
    assert architecture.bucket_step() == 4
