"""Aspect-ratio buckets: at which size an image is trained, so that little of it is cut off.

The area of a bucket is that of the square of the chosen resolution; both sides are multiples of a
step that the base model's autoencoder and denoiser can divide. Images are scaled down, never up.
"""

import math


def bucket_size(width: int, height: int, resolution: int, step: int) -> tuple[int, int]:
    """Return width and height in pixels at which an image of the given size is trained.

    An image smaller than one step is the exception to "never up": it is trained at one step, and
    named (`loradash.domain.dataset_findings.images_enlarged`).
    """
    scale = min(1.0, math.sqrt(resolution * resolution / (width * height)))
    longest = max(step, resolution * resolution // step)  # of a sliver, whose short side is a step
    bucket_width = min(_floor(width * scale, step), _floor(longest, step))
    bucket_height = min(_floor(height * scale, step), _floor(longest, step))
    return bucket_width, bucket_height


def _floor(pixels: float, step: int) -> int:
    # The small term keeps 512 * sqrt(512**2 / 512**2) from falling to the next lower multiple.
    return max(step, int((pixels + 1e-6) // step) * step)
