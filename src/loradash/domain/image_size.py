"""Sides of images that are drawn: multiples of 8, which is what autoencoders and pipelines take."""

from typing import Annotated

from pydantic import AfterValidator, Field

MULTIPLE = 8
_SMALLEST_ROUNDED = 64


def _drawable(side: int) -> int:
    if side % MULTIPLE:
        lower = side // MULTIPLE * MULTIPLE
        raise ValueError(f"isn't a multiple of {MULTIPLE}: give {lower} or {lower + MULTIPLE}")
    return side


ImageSide = Annotated[int, Field(ge=8, le=8192), AfterValidator(_drawable)]


def rounded_side(side: int) -> int:
    """Return the side of an image for one that was asked for by a config of ai-toolkit.

    As there, what isn't a multiple of 8 is rounded down, though not below 64 pixels
    (``GenerateImageConfig`` in ``toolkit/config_modules.py``). Sides that need no rounding stay.
    """
    return max(_SMALLEST_ROUNDED, side - side % MULTIPLE) if side % MULTIPLE else side
