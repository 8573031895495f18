"""The learning part: a UNet and a text encoder, trained together to undo noise.

Latents are computed once, for every picture on every background colour. What a step sees is a
function of the seed and the step alone, so that a killed and resumed run is the same run.
"""

from __future__ import annotations

import copy
import hashlib
import math
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .captions import COLOURS, training_caption
from .checkpoint import load_checkpoint, save_checkpoint
from .icons import Icons, on_colour
from .pipeline import make_scheduler

_COLOUR_NAMES = tuple(COLOURS)
_WARMUP_STEPS = 100
_FINAL_RATE = 0.01  # the cosine ends at this part of the learning rate


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What makes a run the run it is. A checkpoint may be continued only with an equal plan."""

    steps: int
    learning_rate: float
    batch_size: int = 32
    ema_decay: float = 0.999
    weight_decay: float = 0.01
    white_share: float = 0.5  # half of the pictures on white: what short prompts get
    seed: int = 0


def new_models(tokenizer: CLIPTokenizer) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Make untrained models: 6.7 M + 1.0 M parameters, cross-attention on the lower two levels."""
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        cross_attention_dim=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=16,
    )
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return unet, CLIPTextModel(config)


def encode_latents(vae: AutoencoderKL, icons: Icons, cache: Path | None = None) -> torch.Tensor:
    """Encode each picture on each colour: (pictures, colours, channels, h, w), fp32.

    With ``cache`` the result is kept in that file, and read back if the VAE and the pictures are
    still the same.
    """
    fingerprint = _fingerprint(vae, icons)
    if cache is not None and cache.exists():
        stored = load_file(cache)
        if stored["fingerprint"].tolist() == list(fingerprint):
            return torch.as_tensor(stored["latents"])
    with torch.inference_mode():
        by_colour = []
        for colour in _COLOUR_NAMES:
            pictures = torch.from_numpy(on_colour(icons.rgba, colour)).permute(0, 3, 1, 2) * 2 - 1
            means = [vae.encode(part).latent_dist.mean for part in torch.split(pictures, 64)]
            by_colour.append(torch.cat(means))
        latents = torch.stack(by_colour, dim=1).contiguous()
        latents *= vae.config.scaling_factor
    if cache is not None:
        partial = cache.with_name(f"{cache.name}.partial")
        save_file(
            {"latents": latents, "fingerprint": torch.tensor(list(fingerprint)).byte()}, partial
        )
        partial.replace(cache)
    return latents


class DenoiserTraining:
    """One training run: models, their averages, the optimizer, and how far it got."""

    def __init__(
        self,
        plan: TrainingPlan,
        icons: Icons,
        latents: torch.Tensor,
        tokenizer: CLIPTokenizer,
        models: tuple[UNet2DConditionModel, CLIPTextModel],
    ) -> None:
        self.plan = plan
        self.step = 0
        self._icons = icons
        self._latents = latents
        self._tokenizer = tokenizer
        self._alphas = make_scheduler().alphas_cumprod
        unet, text_encoder = models
        self._unet = unet.train().to(memory_format=torch.channels_last)
        self._text_encoder = text_encoder.train()
        self.averaged_unet = copy.deepcopy(self._unet).eval().requires_grad_(False)
        self.averaged_text_encoder = copy.deepcopy(self._text_encoder).eval().requires_grad_(False)
        self._parameters = [*self._unet.parameters(), *self._text_encoder.parameters()]
        self._averages = [
            *self.averaged_unet.parameters(),
            *self.averaged_text_encoder.parameters(),
        ]
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=plan.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=plan.weight_decay,
            fused=True,
        )

    def advance(self) -> float:
        """Do one step and return its loss."""
        plan = self.plan
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate_at(plan, self.step)
        rows, colours, captions, noise, timesteps = self._batch()
        clean = self._latents[rows, colours].contiguous(memory_format=torch.channels_last)
        alpha = self._alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        words = self._text_encoder(token_ids(self._tokenizer, captions))[0]
        loss: torch.Tensor = (self._unet(noisy, timesteps, words).sample - velocity).pow(2).mean()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.step += 1
        # The average starts short and grows to its full length, or it would remember the start.
        decay = min(plan.ema_decay, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._parameters, 1 - decay)
        return float(loss.detach())

    def save(self, path: Path) -> None:
        """Write everything that the next step depends on."""
        state = {
            "unet": self._unet.state_dict(),
            "text_encoder": self._text_encoder.state_dict(),
            "averaged_unet": self.averaged_unet.state_dict(),
            "averaged_text_encoder": self.averaged_text_encoder.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        save_checkpoint(path, self._settings(), self.step, state)

    def restore(self, path: Path) -> bool:
        """Continue where :meth:`save` stopped; False if there is nothing to continue."""
        found = load_checkpoint(path, self._settings())
        if found is None:
            return False
        self.step, state = found
        self._unet.load_state_dict(state["unet"])
        self._text_encoder.load_state_dict(state["text_encoder"])
        self.averaged_unet.load_state_dict(state["averaged_unet"])
        self.averaged_text_encoder.load_state_dict(state["averaged_text_encoder"])
        self._optimizer.load_state_dict(state["optimizer"])
        return True

    def _settings(self) -> dict[str, Any]:
        data = hashlib.sha256(self._latents.numpy().tobytes())
        data.update(repr(sorted(self._tokenizer.get_vocab().items())).encode())
        return {**asdict(self.plan), "data": data.hexdigest()[:16]}

    def _batch(
        self,
    ) -> tuple[torch.Tensor, torch.Tensor, list[str], torch.Tensor, torch.Tensor]:
        """Draw pictures, background colours, captions, noise and timesteps of the current step."""
        plan, size = self.plan, self.plan.batch_size
        generator = torch.Generator().manual_seed(_mix(plan.seed, "step", self.step))
        rows = self._rows()
        colours = torch.randint(1, len(_COLOUR_NAMES), (size,), generator=generator)
        colours[torch.rand(size, generator=generator) < plan.white_share] = 0
        rng = random.Random(_mix(plan.seed, "caption", self.step))
        captions = [
            training_caption(
                self._icons.names[row], self._icons.styles[row], _COLOUR_NAMES[colour], rng
            )
            for row, colour in zip(rows.tolist(), colours.tolist(), strict=True)
        ]
        noise = torch.randn((size, *self._latents.shape[2:]), generator=generator)
        # One timestep from each of `size` equal parts: the same mean, less noise in the gradient.
        strata = torch.arange(size) + torch.rand(size, generator=generator)
        timesteps = (strata / size * len(self._alphas)).long().clamp(max=len(self._alphas) - 1)
        return rows, colours, captions, noise, timesteps

    def _rows(self) -> torch.Tensor:
        """Pick the pictures: every picture once per epoch, in an order that the epoch decides."""
        total, size = len(self._icons), self.plan.batch_size
        first = self.step * size
        rows = torch.empty(0, dtype=torch.long)
        for epoch in range(first // total, (first + size - 1) // total + 1):
            generator = torch.Generator().manual_seed(_mix(self.plan.seed, "epoch", epoch))
            order = torch.randperm(total, generator=generator)
            rows = torch.cat([rows, order[max(0, first - epoch * total) :][: size - len(rows)]])
        return rows


def learning_rate_at(plan: TrainingPlan, step: int) -> float:
    """Warm up, then follow half a cosine that ends with the last step (not with the clock)."""
    warmup = min(1.0, (step + 1) / _WARMUP_STEPS)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / plan.steps)))
    return plan.learning_rate * warmup * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)


def train(
    training: DenoiserTraining,
    checkpoint: Path,
    *,
    save_every: int,
    report: Callable[[str], None],
    after_save: Callable[[DenoiserTraining], None],
) -> None:
    """Run to the plan's last step, saving on the way; continues ``checkpoint`` if it exists."""
    if training.restore(checkpoint):
        report(f"continuing at step {training.step} of {training.plan.steps}")
        if training.step == training.plan.steps:
            after_save(training)  # it may have been killed between the two
    last = training.plan.steps
    losses: list[float] = []
    started, started_cpu = time.monotonic(), time.process_time()
    first = training.step
    while training.step < last:
        losses.append(training.advance())
        step = training.step
        if step % 50 == 0 or step == last:
            done = step - first
            pace = (time.monotonic() - started) / done
            cpu = (time.process_time() - started_cpu) / done
            report(
                f"step {step}/{last} loss {sum(losses) / len(losses):.4f} "
                f"lr {learning_rate_at(training.plan, step):.2e} "
                f"{pace:.3f} s/step ({cpu:.3f} cpu) left {(last - step) * pace / 60:.0f} min"
            )
            losses.clear()
        if step % save_every == 0 or step == last:
            training.save(checkpoint)
            after_save(training)


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Turn captions into ids (captions, context), as StableDiffusionPipeline does."""
    encoded = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    ids: torch.Tensor = encoded.input_ids
    return ids


def _mix(*parts: object) -> int:
    """Hash to a 63-bit seed, so that neighbouring steps don't get related random streams."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _fingerprint(vae: AutoencoderKL, icons: Icons) -> bytes:
    digest = hashlib.sha256(icons.rgba.tobytes())
    for weight in vae.state_dict().values():
        digest.update(weight.float().numpy().tobytes())
    digest.update(repr((COLOURS, vae.config.scaling_factor)).encode())
    return digest.digest()
