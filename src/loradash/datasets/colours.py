"""From what an image's numbers stand for to sRGB on white: what browsers show on a white page.

- **Profile.** An embedded ICC profile is followed, by its perceptual intent, as browsers do (for
  the usual profiles of cameras and screens, a matrix and curves, it's the relative colorimetric
  one). One that means sRGB anyway changes no pixel. One that can't be read, or is for another
  kind of pixels, is left aside with a note. Without a profile, numbers are sRGB, and CMYK is the
  plain complement.
- **Transparency.** Transparent areas become white: most pictures with alpha are cut-outs meant for
  a light page, and dropping alpha would show whatever colour is stored beneath.
- **Depth.** 16-bit grey is scaled; of 16-bit colour, Pillow reads the higher byte.
- **No range.** What white is isn't defined for numbers of 32 bits: they are refused.
"""

import array
import io
import struct
from functools import lru_cache
from typing import IO

from PIL import Image, ImageChops, ImageCms, ImageFile

_MAX_PROFILE_BYTES = 16 * 2**20  # more don't fit into a JPEG either; printers' have about 2 MB
_CACHED = 4  # transforms; the images of a dataset mostly share one
_SAME = 1  # of 255: a difference that comes from rounding
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_GREY = ("1", "L", "LA", "La", *_GREY_16)
_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's, and Pillow's modes
_SHORT_GREY = {"L;2": 85, "L;4": 17}  # what Pillow has multiplied such greys by

CODE_POINTS = "cicp"
"""Under this name, what `read_code_points` has found stands in an image's ``info``."""

_PNG = b"\x89PNG\r\n\x1a\n"
_CHUNKS_LOOKED_AT = 100
_SRGB_PRIMARIES = (0, 1, 2)  # 2: not said
_SRGB_TRANSFERS = (0, 1, 2, 4, 6, 13, 14, 15)  # gammas of about 2.2
_SRGB_GAMMA = 1 / 2.2
_SRGB_CHROMATICITIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)


def correct_transparent_colour(image: Image.Image) -> None:
    """Give the colour that a PNG file calls transparent in the depth of the pixels.

    Pillow scales the pixels but not this colour. To be called before the image is decoded.
    """
    colour = image.info.get("transparency")
    if image.format != "PNG" or not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return
    raw = image.tile[0][3]
    if isinstance(colour, tuple) and raw == "RGB;16B":
        image.info["transparency"] = tuple(part >> 8 for part in colour)
    elif isinstance(colour, int) and isinstance(raw, str) and raw in _SHORT_GREY:
        image.info["transparency"] = colour * _SHORT_GREY[raw]


class Colours:
    """How a decoded image becomes sRGB, strip by strip."""

    def __init__(self, image: Image.Image) -> None:
        self.note = ""
        """What isn't followed of what the file says of its colours, as part of a sentence."""
        if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
            raise ValueError(
                "its numbers have 32 bits, and what is white isn't defined for them; save it with "
                "8 or 16 bits a channel"
            )
        self._source = _expected_mode(image.mode)
        self._transform = self._found_transform(image)
        self._key = image.info.get("transparency") if image.mode in _GREY_16 else None
        self._scale, self._inverted = _sixteen_bits(image)
        self.changes_nothing = (
            image.mode == "RGB" and self._transform is None and not image.has_transparency_data
        )
        """Whether the image's own pixels are what is wanted."""

    def rgb(self, strip: Image.Image) -> Image.Image:
        """Return a part of the image as RGB."""
        alpha, colour = self._parted(strip)
        if self._transform is None:
            shown = colour.convert("RGB")
        else:
            shown = _applied(self._transform, colour.convert(self._source))
        if alpha is None:
            return shown
        white = Image.new("RGB", shown.size, (255, 255, 255))
        white.paste(shown, mask=alpha)
        return white

    def _parted(self, strip: Image.Image) -> tuple[Image.Image | None, Image.Image]:
        """Return what is opaque, if not all is, and the colours without alpha."""
        if strip.mode in _GREY_16 or strip.mode == "I":
            alpha = None if self._key is None else _unlike(strip, self._key)
            return alpha, self._grey(strip)
        if not strip.has_transparency_data:
            return None, strip
        if strip.mode in ("LA", "La"):
            grey, alpha = strip.convert("LA").split()
            return alpha, grey
        rgba = strip.convert("RGBA")
        return rgba.getchannel("A"), rgba.convert("RGB")

    def _grey(self, strip: Image.Image) -> Image.Image:
        """Scale 16-bit grey to 8 bits; Pillow would clip it to white."""
        scale = self._scale
        grey = strip.convert("I").point(lambda value: value * scale).convert("L")
        return ImageChops.invert(grey) if self._inverted else grey

    def _found_transform(self, image: Image.Image) -> ImageCms.ImageCmsTransform | None:
        profile = image.info.get("icc_profile")
        if not profile or image.mode == "LAB":
            self.note = "" if profile else _unlike_srgb(image)
            return None
        if len(profile) > _MAX_PROFILE_BYTES:
            self.note = "its colour profile is too large and isn't followed"
            return None
        try:
            space, transform = _transform(bytes(profile), self._source)
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            self.note = "its colour profile can't be read; its colours are taken as sRGB"
            return None
        if space == "RGB" and self._source == "L":
            self._source = "RGB"
            space, transform = _transform(bytes(profile), "RGB")
        if space != self._source:
            self.note = (
                f"its colour profile is for {space} and its pixels are {self._source}; the profile "
                "isn't followed"
            )
            return None
        return transform


def _expected_mode(mode: str) -> str:
    if mode in _GREY or mode == "I":
        return "L"
    return "CMYK" if mode == "CMYK" else "RGB"


@lru_cache(_CACHED)
def _transform(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Return what pixels a profile is for, and how they become sRGB; `None` if they are already.

    For another mode than ``mode`` there is no transform.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space
    pixels = _SPACES.get(space, space.strip())
    if pixels != mode:
        return pixels, None
    transform = ImageCms.buildTransform(
        source, ImageCms.createProfile("sRGB"), mode, "RGB",
        ImageCms.Intent.PERCEPTUAL, ImageCms.Flags.NOCACHE,  # threads share it
    )  # fmt: skip
    return pixels, None if _is_srgb(transform, mode) else transform


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    try:
        changed = ImageCms.applyTransform(image, transform)
    except ImageCms.PyCMSError as error:
        raise ValueError(f"its colour profile fails ({error})") from error
    assert changed is not None  # it isn't done in place
    return changed


def _is_srgb(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether the transform changes colours by no more than rounding does."""
    if mode == "CMYK":
        return False
    levels = range(0, 256, 15)
    if mode == "L":
        colours = Image.frombytes("L", (256, 1), bytes(range(256)))
    else:
        every = [(r, g, b) for r in levels for g in levels for b in levels]
        colours = Image.frombytes("RGB", (len(every), 1), bytes(v for rgb in every for v in rgb))
    difference = ImageChops.difference(_applied(transform, colours), colours.convert("RGB"))
    return max(difference.tobytes()) <= _SAME


def _sixteen_bits(image: Image.Image) -> tuple[float, bool]:
    """Return what 16-bit grey is multiplied by, and whether 0 is white.

    Pillow reads TIFF files of 12 bits as 16 bits, and leaves those in which 0 is white as they are.
    """
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, (16,))
    in_12_bits = image.format == "TIFF" and bits == (12,)
    is_inverted = image.format == "TIFF" and image.mode in _GREY_16 and tags.get(262) == 0
    return 255 / 4095 if in_12_bits else 1 / 257, is_inverted


def _unlike(strip: Image.Image, key: int) -> Image.Image:
    """Return a mask of the 16-bit greys that aren't ``key``."""
    values = array.array("i", strip.convert("I").tobytes())
    return Image.frombytes("L", strip.size, bytes(0 if value == key else 255 for value in values))


def read_code_points(file: IO[bytes]) -> tuple[int, int] | None:
    """Return the primaries and the transfer function of a PNG file's ``cICP`` chunk, if it has one.

    They are numbers of ITU-T H.273. Pillow leaves the chunk out. The file is read from its start,
    and is there again afterwards.
    """
    found = None
    is_png = file.read(8) == _PNG
    for _ in range(_CHUNKS_LOOKED_AT if is_png else 0):
        head = file.read(8)
        if len(head) < 8 or head[4:] in (b"IDAT", b"IEND"):
            break
        if head == b"\0\0\0\4cICP":
            primaries, transfer = struct.unpack("2B", file.read(2).ljust(2, b"\0"))
            found = primaries, transfer
            break
        file.seek(int.from_bytes(head[:4]) + 4, 1)
    file.seek(0)
    return found


def _code_points(image: Image.Image) -> tuple[int, int] | None:
    profile = image.info.get("nclx_profile")  # of HEIF
    if isinstance(profile, dict):
        return profile.get("color_primaries", 2), profile.get("transfer_characteristics", 2)
    found: tuple[int, int] | None = image.info.get(CODE_POINTS)
    return found


def _unlike_srgb(image: Image.Image) -> str:
    """Say what a file without a profile tells of other colours than sRGB, if it does."""
    if points := _code_points(image):
        if points[0] in _SRGB_PRIMARIES and points[1] in _SRGB_TRANSFERS:
            return ""
        return (
            f"its code points (primaries {points[0]}, transfer {points[1]}) aren't followed; its "
            "colours are taken as sRGB"
        )
    if "srgb" in image.info:
        return ""
    gamma = image.info.get("gamma")
    if gamma and abs(gamma - _SRGB_GAMMA) > 0.02:
        return f"its gamma of {gamma:g} isn't followed; its colours are taken as sRGB"
    found = image.info.get("chromaticity")
    if found and any(
        abs(one - ours) > 0.01 for one, ours in zip(found, _SRGB_CHROMATICITIES, strict=False)
    ):
        return "its chromaticities aren't followed; its colours are taken as sRGB"
    return ""
