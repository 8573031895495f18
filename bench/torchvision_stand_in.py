"""The few image transforms that the reference script takes from torchvision, for PIL images.

torchvision has no build that fits every CPU build of torch. This module does what torchvision
documents for PIL images and nothing more; importing it is quicker than importing torchvision, so
the peer's start looks a little better than it is.
"""

import enum
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


class InterpolationMode(enum.Enum):
    """Names as in torchvision, values as in PIL."""

    NEAREST = Image.Resampling.NEAREST
    BILINEAR = Image.Resampling.BILINEAR
    BICUBIC = Image.Resampling.BICUBIC
    BOX = Image.Resampling.BOX
    HAMMING = Image.Resampling.HAMMING
    LANCZOS = Image.Resampling.LANCZOS


class Resize:
    """Scale the shorter side to ``size``; nothing happens to an image that has it already."""

    def __init__(self, size: int, interpolation: InterpolationMode) -> None:
        self._size = size
        self._resampling = interpolation.value

    def __call__(self, image: Image.Image) -> Image.Image:
        shorter = min(image.size)
        if shorter == self._size:
            return image
        width, height = (int(side * self._size / shorter) for side in image.size)
        return image.resize((width, height), self._resampling)


class _Crop:
    def __init__(self, size: int) -> None:
        self._size = size

    def _cut(self, image: Image.Image, left: int, top: int) -> Image.Image:
        return image.crop((left, top, left + self._size, top + self._size))


class CenterCrop(_Crop):
    """Cut a square from the middle."""

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top = (round((side - self._size) / 2) for side in image.size)
        return self._cut(image, left, top)


class RandomCrop(_Crop):
    """Cut a square from anywhere; nothing happens to an image that is that square."""

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.size == (self._size, self._size):
            return image
        left, top = (int(torch.randint(side - self._size + 1, (1,))) for side in image.size)
        return self._cut(image, left, top)


class RandomHorizontalFlip:
    """Mirror every second image."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.mirror(image) if torch.rand(1) < 0.5 else image


class Lambda:
    """Call a function."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, value: Any) -> Any:
        return self._function(value)


class ToTensor:
    """PIL image to (3, height, width) in 0..1."""

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image, copy=True))
        return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div_(255)


class Normalize:
    """Subtract a mean and divide by a deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean = torch.tensor(mean).view(-1, 1, 1)
        self._std = torch.tensor(std).view(-1, 1, 1)

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.sub(self._mean).div_(self._std)


class Compose:
    """Apply transforms one after another."""

    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self._transforms = transforms

    def __call__(self, value: Any) -> Any:
        for transform in self._transforms:
            value = transform(value)
        return value


def as_module() -> ModuleType:
    """Return a module that answers ``from torchvision import transforms``."""
    module = ModuleType("torchvision")
    transforms = ModuleType("torchvision.transforms")
    for item in (
        InterpolationMode, Resize, CenterCrop, RandomCrop, RandomHorizontalFlip, Lambda, ToTensor,
        Normalize, Compose,
    ):  # fmt: skip
        setattr(transforms, item.__name__, item)
    module.transforms = transforms  # type: ignore[attr-defined]
    return module
