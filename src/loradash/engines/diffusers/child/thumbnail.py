"""A preview as a small picture inside the adapter's file (ModelSpec's ``thumbnail``)."""

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

SIDE = 256
"""Pixels, as ModelSpec recommends; a square JPEG of it takes some 10 to 30 KB."""


def thumbnail(path: Path) -> str | None:
    """Return the picture in ``path`` as a data URL, or None if there is none that can be read.

    It is cut to a square in the middle, and made smaller but never larger.
    """
    try:
        with Image.open(path) as picture:
            side = min(SIDE, *picture.size)
            square = ImageOps.fit(picture.convert("RGB"), (side, side))
    except OSError:
        return None
    buffer = io.BytesIO()
    square.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
