"""Opening one image of a dataset: upright, without alpha, and under limits.

What an image takes in memory is known from its header, and reserved before it is decoded
(`loradash.datasets.decoding`). Nothing here makes full copies that it can do without: where only
the facts are wanted nothing is converted, where a small picture is wanted no large one is made, and
what must be converted is converted in strips.
"""

import contextlib
import functools
import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from loradash.datasets.colours import (
    CODE_POINTS,
    Colours,
    correct_transparent_colour,
    read_code_points,
)
from loradash.datasets.decoding import DecodingBudget, process_budget
from loradash.domain.dataset_files import IMAGE_KINDS
from loradash.errors import InvalidDataset

MAX_PIXELS = 178_000_000
"""No image may have more: Pillow itself reads hardly more (twice its `MAX_IMAGE_PIXELS`). Where
memory is small, or a format takes much, it is less."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF")
_FORMAT_NAMES = {name: name.lower() for name in (*_FORMATS, "HEIF")}
_FORMAT_NAMES |= {"MPO": "jpeg", "DIB": "bmp"}
_ANIMATED = frozenset({"PNG", "WEBP", "GIF", "TIFF", "AVIF", "HEIF"})  # a phone's MPO is a jpeg
_STRIP_BYTES = 2**20
_RGB_BYTES = 4  # Pillow keeps three bytes in four
_COEFFICIENT_BYTES = 8  # of a pixel of a progressive JPEG: all are kept until its last scan
_DECODER_BYTES = {"WEBP": 12, "GIF": 4, "TIFF": 8, "AVIF": 14, "HEIF": 12}
"""What decoders take of a pixel beside the image: canvases, planes of up to 16 bits, and what they
hand over."""
_PROFILE_COPIES = 3  # the file's, the colour engine's, and the tables that it makes of it
_CODED_PIXELS = "loradash_coded_pixels"  # a key of Pillow's `info`
_SPATIAL_EXTENTS = re.compile(rb"\0\0\0\x14ispe\0{4}(.{4})(.{4})", re.DOTALL)
_SMALL_BYTES = {"1": 1, "L": 1, "P": 1}
_DRAFT = 8  # what libjpeg can leave out at most, in each direction


class ImageTooLarge(InvalidDataset):
    """An image has more pixels than may be decoded."""


class ImageFacts(NamedTuple):
    """What there is to know of a whole image; its size in pixels is that of the upright image."""

    width: int
    height: int
    has_alpha: bool
    format: str
    """What the file really is, whatever its name says: ``jpeg``, ``png``, ``webp``, ``bmp``,
    ``gif``, ``tiff``, ``avif`` or ``heif``."""
    has_more_frames: bool = False
    """Whether there is more in the file than the first frame or page, which is what is used."""
    colour_note: str = ""
    """What isn't followed of what the file says of its colours."""


@dataclass(frozen=True)
class OpenedImage:
    """An image in sRGB, rotated as its EXIF tag says."""

    pixels: Image.Image
    has_alpha: bool
    format: str = ""


def inspect_image(
    source: bytes | Path, name: str, budget: DecodingBudget | None = None
) -> ImageFacts:
    """Decode an image completely, to see whether it is whole, and return what it is.

    Raises as `open_image` does, and `OSError` if a file can't be opened.
    """
    with _opened(source, name) as image:
        width, height = image.size
        _reduce(image, 1)  # libjpeg reads the whole file in any case
        with _room(image, (width, height), name, 0, budget):
            has_more_frames = _has_more_frames(image)
            image.load()
            has_alpha = image.has_transparency_data
            colours = Colours(image)
            colours.rgb(image.crop((0, 0, 1, 1)))  # else it couldn't be trained
            turned = _upright(image)
            if turned is not image and (turned.width < turned.height) != (width < height):
                width, height = height, width
            kind = _FORMAT_NAMES.get(image.format or "", "")
            return ImageFacts(width, height, has_alpha, kind, has_more_frames, colours.note)


def open_image(data: bytes, name: str, budget: DecodingBudget | None = None) -> OpenedImage:
    """Decode an image completely.

    Its colours become sRGB on white (`loradash.datasets.colours`). Raises `InvalidDataset` that
    names the file for anything but a whole image of a kind that is read, and `ImageTooLarge` for
    one of more than `MAX_PIXELS`, or that takes more memory than ``budget`` has; the process's by
    default.
    """
    with _opened(data, name) as image, _room(image, image.size, name, _RGB_BYTES, budget):
        image.load()
        has_alpha, kind = image.has_transparency_data, _FORMAT_NAMES.get(image.format or "", "")
        colours = Colours(image)
        upright = _upright(image)
        if upright is not image:
            image.close()  # frees its pixels
        return OpenedImage(_rgb(upright, colours, 1), has_alpha, kind)


def open_small(
    data: bytes, name: str, side: int, budget: DecodingBudget | None = None
) -> Image.Image:
    """Return an image as `open_image` does, with its longest side of at most ``side`` pixels.

    A large one never becomes a large RGB image on the way. Raises as `open_image` does.
    """
    with _opened(data, name) as image:
        size = image.size
        _reduce(image, 2 * side)  # twice as much as is wanted, so that scaling stays smooth
        factor = max(1, max(image.size) // (2 * side))
        with _room(image, size, name, 0 if factor > 1 else _RGB_BYTES, budget):
            image.load()
            small = _rgb(image, Colours(image), factor)
            small.info, orientation = {}, _orientation(image)
            if orientation != 1:
                small.getexif()[ExifTags.Base.Orientation] = orientation
            small.thumbnail((side, side))
            return _upright(small)


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale and centre-crop to exactly ``width`` x ``height`` pixels."""
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)


@contextlib.contextmanager
def _opened(source: bytes | Path, name: str) -> Iterator[Image.Image]:
    """Read an image's header; what goes wrong with it from then on is an `InvalidDataset`."""
    with contextlib.ExitStack() as stack:
        # opened here, so that a file that can't be read isn't taken for a bad image
        file = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
        stack.enter_context(file)
        formats: tuple[str, ...] = _FORMATS
        code_points = read_code_points(file)
        if _may_be_heif(file):
            _register_heif()
            formats = (*_FORMATS, "HEIF")
        try:
            image = stack.enter_context(Image.open(file, formats=formats))
            correct_transparent_colour(image)
            if image.format in ("AVIF", "HEIF"):
                image.info[_CODED_PIXELS] = _coded_pixels(file)
            if code_points:
                image.info[CODE_POINTS] = code_points
            yield image
        except InvalidDataset:
            raise
        except Image.DecompressionBombError as error:
            raise _too_large(name, "its", MAX_PIXELS) from error
        except (
            UnidentifiedImageError,
            OSError,
            SyntaxError,
            ValueError,
            EOFError,
            struct.error,
        ) as error:
            reason = str(error)
            if isinstance(error, UnidentifiedImageError):
                is_heif = len(formats) > len(_FORMATS)
                reason = "a damaged heic image" if is_heif else f"not a {IMAGE_KINDS} image"
            raise InvalidDataset(
                f"{name}: {reason}", remedy="Replace or remove the file, or set on_bad_image: skip."
            ) from error


def _may_be_heif(file: IO[bytes]) -> bool:
    head = file.read(12)
    file.seek(0)
    return head[4:8] == b"ftyp" and head[8:12] not in (b"avif", b"avis")


def _coded_pixels(file: IO[bytes]) -> int:
    """Return how many pixels the largest picture in an AVIF or HEIC file has (``ispe`` boxes).

    What is shown may be a small part of it (``clap``), but all of it is decoded. Of pictures that
    aren't of the size that their box says, libheif refuses larger ones; libavif scales them, and
    decodes none of more than 16,384 x 16,384 pixels.
    """
    file.seek(0)
    sizes = _SPATIAL_EXTENTS.findall(file.read())
    file.seek(0)
    return max((int.from_bytes(w) * int.from_bytes(h) for w, h in sizes), default=0)


@functools.cache
def _register_heif() -> None:
    """Let Pillow read HEIC files, which it doesn't by itself; only what is trained of them."""
    from pi_heif import register_heif_opener

    register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


def _has_more_frames(image: Image.Image) -> bool:
    """Whether a file holds more than its first frame; frames aren't decoded or counted."""
    return image.format in _ANIMATED and bool(getattr(image, "is_animated", False))


def _room(
    image: Image.Image,
    size: tuple[int, int],
    name: str,
    more_bytes: int,
    budget: DecodingBudget | None,
) -> contextlib.AbstractContextManager[None]:
    """Hold the memory that an opened image takes when it is decoded.

    ``size`` is the one that its file has, ``more_bytes`` a pixel come to what decoding takes.
    """
    budget = budget or process_budget()
    pixels, decoded = size[0] * size[1], image.width * image.height
    stored = _SMALL_BYTES.get(image.mode, 2 if image.mode.startswith("I;16") else 4)
    wanted = decoded * (stored + max(stored, more_bytes))  # it may have to be turned
    wanted += _PROFILE_COPIES * len(image.info.get("icc_profile") or b"")
    if image.format in _DECODER_BYTES:
        coded = image.info.get(_CODED_PIXELS, 0)
        wanted += _DECODER_BYTES[image.format] * max(decoded, coded)
        pixels = max(pixels, coded)
    elif "progressive" in image.info:
        wanted += _COEFFICIENT_BYTES * pixels
    if pixels > MAX_PIXELS or wanted > budget.size_bytes:
        raise _too_large(
            name, f"{size[0]}x{size[1]}", min(MAX_PIXELS, budget.size_bytes * pixels // wanted)
        )
    return budget.reserved(wanted)


def _too_large(name: str, pixels: str, limit: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"{name}: {pixels} pixels are more than {limit:,}", remedy="Scale the image down."
    )


def _reduce(image: Image.Image, side: int) -> None:
    """Let a JPEG be decoded smaller, with at least ``side`` pixels on its longest side."""
    scale = min(_DRAFT, max(image.size) // side)
    if scale > 1:
        image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (struct.error, SyntaxError, ValueError, KeyError, TypeError, OSError):
        return 1
    return found if isinstance(found, int) else 1


def _upright(image: Image.Image) -> Image.Image:
    """Turn the image as its EXIF tag says; one whose EXIF data is damaged stays as it is."""
    if _orientation(image) == 1:
        return image  # Pillow would copy it
    try:
        return ImageOps.exif_transpose(image)
    except (struct.error, SyntaxError, ValueError, KeyError, TypeError):
        return image


def _rgb(image: Image.Image, colours: Colours, factor: int) -> Image.Image:
    """Convert a decoded image, strip by strip, and make it ``factor`` times smaller by the way."""
    if colours.changes_nothing:
        if factor > 1:
            return image.reduce(factor)
        return image if type(image) is Image.Image else image.copy()  # no file hangs on it
    rows = max(1, _STRIP_BYTES // (image.width * 4) // factor) * factor
    width, height = image.size
    whole = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        strip = colours.rgb(image.crop((0, top, width, min(height, top + rows))))
        whole.paste(strip.reduce(factor) if factor > 1 else strip, (0, top // factor))
    return whole
