"""Pictures of the scripted engine: a colour of the seed, the word "scripted" and the prompt."""

import hashlib
from pathlib import Path

from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from loradash.engines.scripted.plan import Picture

_MARGIN = 4


def draw(picture: Picture, path: Path, step: int = 0) -> None:
    """Write a PNG, whole or not at all; equal input gives equal bytes."""
    text = f"{picture.prompt}/{picture.seed}/{step}"
    red, green, blue = hashlib.sha256(text.encode()).digest()[:3]
    image = Image.new("RGB", (picture.width, picture.height), (red, green, blue))
    ImageDraw.Draw(image).text(
        (_MARGIN, _MARGIN), f"scripted\n{picture.prompt[:60]}\nseed {picture.seed}", "white",
    )  # fmt: skip
    notes = PngInfo()
    notes.add_itxt(
        "parameters", f"{picture.prompt}\nSeed: {picture.seed}, Drawn by: the scripted engine"
    )
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(partial, "PNG", pnginfo=notes, compress_level=1)
    partial.replace(path)
