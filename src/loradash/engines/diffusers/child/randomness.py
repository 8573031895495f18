"""Random numbers as a function of the seed and of what they are for.

No generator lives longer than one use, so there is no state to save: a training that is continued
at step n draws the numbers that it would have drawn there without the interruption. Numbers are
drawn on the CPU in float32, so they are the same on every device.
"""

import hashlib
import random

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator for one purpose, such as ``generator(seed, "noise", step)``."""
    return torch.Generator("cpu").manual_seed(_derive(seed, purpose))


def python_random(seed: int, *purpose: str | int) -> random.Random:
    """As `generator`, for Python's own random numbers."""
    return random.Random(_derive(seed, purpose))


def seed_everything(seed: int, *purpose: str | int) -> None:
    """Seed torch's global generators, for code that takes no generator (dropout, layer init)."""
    torch.manual_seed(_derive(seed, purpose))


def _derive(seed: int, purpose: tuple[str | int, ...]) -> int:
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1
