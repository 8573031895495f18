"""The VAE: 64 x 64 pixels to 16 x 16 x 4 latents, so that the denoiser works on a 12th of the data.

StableDiffusionPipeline only knows one scaling factor, but the channels of a young VAE differ in
mean and spread. So the normalisation is folded into the VAE's own 1 x 1 convolutions afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from PIL import Image

from .captions import COLOURS
from .checkpoint import load_checkpoint, save_checkpoint
from .icons import Icons, on_colour

_CROP = 32  # training on quarters of a picture costs a quarter, and the VAE is local anyway


@dataclass(frozen=True, slots=True)
class AutoencoderPlan:
    """What makes a run the run it is. A checkpoint may be continued only with an equal plan."""

    steps: int
    learning_rate: float = 2e-3
    batch_size: int = 32
    seed: int = 0


def new_autoencoder() -> AutoencoderKL:
    """Make an untrained VAE: factor 4, 4 channels, no attention, 0.92 M parameters."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def train_autoencoder(
    plan: AutoencoderPlan,
    icons: Icons,
    checkpoint: Path,
    *,
    save_every: int,
    report: Callable[[str], None],
) -> AutoencoderKL:
    """Train from the start or from ``checkpoint``; returns the VAE with normalised latents."""
    torch.manual_seed(plan.seed)
    vae = new_autoencoder().train()
    optimizer = torch.optim.AdamW(
        vae.parameters(), lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True
    )
    settings = {**asdict(plan), "pictures": len(icons)}
    first = 0
    if found := load_checkpoint(checkpoint, settings):
        first, state = found
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        report(f"continuing at step {first} of {plan.steps}")
    pictures = torch.from_numpy(icons.rgba).permute(0, 3, 1, 2).contiguous()
    for step in range(first, plan.steps):
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate_at(plan, step)
        loss, error = _loss(vae, _crops(pictures, plan.batch_size, generator), generator)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % 50 == 0 or done == plan.steps:
            report(f"step {done}/{plan.steps} loss {loss.item():.4f} psnr {_psnr(error):.1f} dB")
        if done % save_every == 0 or done == plan.steps:
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict()}
            save_checkpoint(checkpoint, settings, done, state)
    vae.eval()
    normalise_latents(vae, icons)
    return vae


@torch.inference_mode()
def normalise_latents(vae: AutoencoderKL, icons: Icons) -> None:
    """Shift and scale each latent channel to mean 0 and deviation 1, decoding the same pictures.

    The encoder's last convolution writes (mean, log variance); the decoder's first one undoes the
    change. Checked on a sample: the decoded pictures must agree to 0.001.
    """
    pictures = _sample(icons)
    latents = vae.encode(pictures).latent_dist.mean
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    before = vae.decode(latents[:8]).sample
    encoder, decoder, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    encoder.weight[:channels] /= deviation[:, None, None, None]
    encoder.bias[:channels] = (encoder.bias[:channels] - mean) / deviation
    encoder.bias[channels:] -= 2 * deviation.log()
    decoder.bias += decoder.weight[:, :, 0, 0] @ mean
    decoder.weight *= deviation[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)
    after = vae.decode(vae.encode(pictures[:8]).latent_dist.mean).sample
    if (after - before).abs().max() > 1e-3:
        raise RuntimeError("normalising the latents changed what the VAE decodes")


@torch.inference_mode()
def reconstruction(
    vae: AutoencoderKL, icons: Icons, columns: int = 16
) -> tuple[float, Image.Image]:
    """Encode and decode a sample; returns the PSNR in dB and a sheet, originals above results."""
    pictures = _sample(icons, limit=256)
    decoded = torch.cat(
        [vae.decode(vae.encode(part).latent_dist.mean).sample for part in torch.split(pictures, 64)]
    ).clamp(-1, 1)
    error = (decoded - pictures).pow(2).mean()
    rows = [
        part
        for first in range(0, columns * 3, columns)
        for part in (pictures[first : first + columns], decoded[first : first + columns])
    ]
    sheet = np.concatenate([np.concatenate(list(_pixels(row)), axis=1) for row in rows], axis=0)
    return _psnr(error), Image.fromarray(sheet)


def _learning_rate_at(plan: AutoencoderPlan, step: int) -> float:
    progress = step / plan.steps
    decay = 1 - max(0.0, progress - 0.3) / 0.7 * 0.97
    return plan.learning_rate * min(1.0, (step + 1) / 50) * decay


def _crops(pictures: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw pictures on named (mostly) or arbitrary colours, and one window of them, in -1..1."""
    chosen = torch.randint(0, len(pictures), (size,), generator=generator)
    rgba = pictures[chosen].float() / 255
    colours = torch.tensor(list(COLOURS.values())).float() / 255
    named = colours[torch.randint(0, len(colours), (size,), generator=generator)]
    arbitrary = torch.rand((size, 3), generator=generator)
    use_named = torch.rand((size, 1), generator=generator) < 0.7
    background = torch.where(use_named, named, arbitrary)[:, :, None, None]
    alpha = rgba[:, 3:]
    whole = (rgba[:, :3] * alpha + background * (1 - alpha)) * 2 - 1
    limit = whole.shape[-1] - _CROP + 1
    top, left = torch.randint(0, limit, (2,), generator=generator).tolist()
    window = whole[:, :, top : top + _CROP, left : left + _CROP]
    return window.contiguous(memory_format=torch.channels_last)


def _loss(
    vae: AutoencoderKL, pictures: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the training loss and the mean squared error.

    The gradient term keeps outlines crisp; the small KL term only keeps latents near the origin.
    """
    with torch.autocast("cpu", torch.bfloat16):  # twice as fast here; no loss in quality seen
        latents = vae.encode(pictures).latent_dist
        noise = torch.randn(latents.mean.shape, generator=generator)
        decoded = vae.decode(latents.mean + noise * torch.exp(0.5 * latents.logvar)).sample
    difference = decoded.float() - pictures
    squared = difference.pow(2).mean()
    gradient = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
    divergence = latents.kl().float().mean() / latents.mean[0].numel()
    loss = squared + difference.abs().mean() + 0.5 * gradient + 2e-3 * divergence
    return loss, squared.detach()


def _sample(icons: Icons, limit: int = 600) -> torch.Tensor:
    """Take pictures evenly over the set, each on the next colour, (n, 3, h, w) in -1..1."""
    rows = icons.rgba[:: max(1, len(icons) // limit)][:limit]
    names = list(COLOURS)
    pictures = [on_colour(row, names[place % len(names)]) for place, row in enumerate(rows)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1


def _pixels(pictures: torch.Tensor) -> npt.NDArray[np.uint8]:
    scaled = ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    pixels: npt.NDArray[np.uint8] = scaled.numpy()
    return pixels


def _psnr(squared_error: torch.Tensor) -> float:
    return 10 * math.log10(4 / squared_error.item())  # the range -1..1 has a peak of 2
