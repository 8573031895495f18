"""Opening one training image: upright, without alpha, and under limits."""

import io
import struct
from dataclasses import dataclass

from PIL import Image, ImageOps, UnidentifiedImageError

from loradash.errors import InvalidDataset

MAX_PIXELS = 200_000_000
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_FORMAT_NAMES = {"MPO": "jpeg", "DIB": "bmp", **{name: name.lower() for name in _FORMATS}}


class ImageTooLarge(InvalidDataset):
    """An image has more pixels than may be decoded."""


@dataclass(frozen=True)
class OpenedImage:
    """An RGB image, rotated as its EXIF tag says."""

    pixels: Image.Image
    has_alpha: bool
    format: str = ""
    """What the file really is, whatever its name says: ``jpeg``, ``png``, ``webp`` or ``bmp``."""


def open_image(data: bytes, name: str) -> OpenedImage:
    """Decode an image completely.

    Transparent areas become white: most pictures with alpha are cut-outs meant for a light page,
    and dropping alpha would show whatever colour is stored beneath. Raises `InvalidDataset` that
    names the file for anything but a whole jpg, png, webp or bmp of at most `MAX_PIXELS`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(name, f"{image.width}x{image.height}")
            image.load()
            upright = _upright(image)
            has_alpha = upright.has_transparency_data
            pixels = _flatten(upright) if has_alpha else _to_rgb(upright)
            return OpenedImage(pixels, has_alpha, _FORMAT_NAMES.get(image.format or "", ""))
    except InvalidDataset:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(name, "its") from error
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
    ) as error:
        reason = (
            "not a jpg, png, webp or bmp image"
            if isinstance(error, UnidentifiedImageError)
            else str(error)
        )
        raise InvalidDataset(
            f"{name}: {reason}", remedy="Replace or remove the file, or set on_bad_image: skip."
        ) from error


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale and centre-crop to exactly ``width`` x ``height`` pixels."""
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)


def _too_large(name: str, pixels: str) -> ImageTooLarge:
    return ImageTooLarge(
        f"{name}: {pixels} pixels are more than {MAX_PIXELS:,}", remedy="Scale the image down."
    )


def _upright(image: Image.Image) -> Image.Image:
    """Turn the image as its EXIF tag says; one whose EXIF data is damaged stays as it is."""
    try:
        return ImageOps.exif_transpose(image)
    except (struct.error, SyntaxError, ValueError, KeyError, TypeError):
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey to white
        image = _grey(image)
    return image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits."""
    return image.convert("I").point(lambda value: value * (1 / 257)).convert("L")


def _flatten(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")
