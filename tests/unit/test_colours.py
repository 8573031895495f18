"""What each kind of pixels becomes: sRGB on white, with the right values."""

import io
import re
import struct
import zlib

import pytest
from PIL import Image, ImageCms
from typer.testing import CliRunner

from loradash.cli.app import app
from loradash.datasets.decoding import DecodingBudget
from loradash.datasets.folder import scan
from loradash.datasets.images import inspect_image, open_image, open_small
from loradash.errors import InvalidDataset
from loradash.services.datasets.upload_checks import check_file
from tests.icc import ADOBE, P3, SRGB, grey_profile, in_srgb, rgb_profile

ENOUGH = DecodingBudget(64 * 2**20)
WHITE = (255, 255, 255)
P3_PROFILE, ADOBE_PROFILE = rgb_profile(P3), rgb_profile(ADOBE)
COLOURS = [
    (230, 60, 40), (0, 255, 0), (0, 0, 255), (128, 128, 128), (0, 0, 0), WHITE, (12, 200, 99),
]  # fmt: skip


def saved(image, kind="PNG", **how):
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def plain(colour, mode="RGB", size=(16, 8)):
    return Image.new(mode, size, colour)


def shown(data, at=(0, 0)):
    return open_image(data, "a", ENOUGH).pixels.getpixel(at)


def note(data):
    return inspect_image(data, "a", ENOUGH).colour_note


def near(found, expected, by=1):
    return all(abs(a - b) <= by for a, b in zip(found, expected, strict=True))


def _chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(depth, kind, row, *chunks, width=2):
    head = struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0)
    body = (_chunk(b"IHDR", head), *chunks, _chunk(b"IDAT", zlib.compress(b"\0" + row)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + _chunk(b"IEND", b"")


def transparent(*values):
    return _chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("primaries", [P3, ADOBE], ids=["Display P3", "Adobe RGB"])
@pytest.mark.parametrize("colour", COLOURS)
def test_a_profile_is_followed_in_every_format(kind, primaries, colour):
    how = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "PNG": {}}[kind]
    data = saved(plain(colour), kind, icc_profile=rgb_profile(primaries), **how)
    with Image.open(io.BytesIO(data)) as image:
        stored = image.convert("RGB").getpixel((0, 0))
    expected = in_srgb(stored, primaries)
    assert near(shown(data), expected, 2)
    assert near(open_small(data, "a", 4, ENOUGH).getpixel((0, 0)), expected, 2)
    assert note(data) == ""


def test_the_values_are_those_of_the_colour_engine_at_its_defaults():
    image = Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * n) for n in range(3)])
    expected = ImageCms.profileToProfile(
        image,
        ImageCms.ImageCmsProfile(io.BytesIO(P3_PROFILE)),
        ImageCms.createProfile("sRGB"),
        outputMode="RGB",
    )
    found = open_image(saved(image, icc_profile=P3_PROFILE), "a", ENOUGH).pixels
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize(
    "profile",
    [b"", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()],
    ids=["no profile", "sRGB"],
)
def test_without_a_profile_and_with_that_of_srgb_no_pixel_changes(profile, colour):
    assert shown(saved(plain(colour), icc_profile=profile)) == colour


def test_a_colour_that_is_transparent_in_part_is_converted_and_then_laid_on_white():
    data = saved(plain((230, 60, 40, 128), "RGBA"), icc_profile=P3_PROFILE)
    opaque = in_srgb((230, 60, 40), P3)
    assert near(shown(data), [(v * 128 + 255 * 127) / 255 for v in opaque], 2)


def test_a_palette_is_converted_by_its_colours():
    image = Image.new("P", (4, 4))
    image.putpalette([230, 60, 40, 0, 0, 0])
    assert near(shown(saved(image, icc_profile=P3_PROFILE)), in_srgb((230, 60, 40), P3), 2)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_profile_for_grey_is_followed(mode):
    value = {"L": 100, "LA": (100, 255), "I;16": 100 * 257}[mode]
    data = saved(plain(value, mode), icc_profile=grey_profile(1.0))
    assert near(shown(data), in_srgb((100, 100, 100), SRGB, 1.0), 2)
    assert note(data) == ""


def test_a_grey_image_with_a_profile_for_colours_is_read_as_colours():
    data = saved(plain(100, "L"), "JPEG", icc_profile=rgb_profile(SRGB, 1.0), quality=100)
    assert near(shown(data), in_srgb((100, 100, 100), SRGB, 1.0), 2)


@pytest.mark.parametrize(
    ("image", "profile", "said"),
    [
        (plain((9, 8, 7)), b"no profile at all", "can't be read"),
        (plain((9, 8, 7)), P3_PROFILE[:200], "can't be read"),
        (plain((9, 8, 7)), P3_PROFILE[:16] + b"XXXX" + P3_PROFILE[20:], "can't be read|is for"),
        (plain((9, 8, 7)), grey_profile(2.2), "is for L and its pixels are RGB"),
        (plain((9, 8, 7, 6), "CMYK"), P3_PROFILE, "is for RGB and its pixels are CMYK"),
        (plain((9, 8, 7)), P3_PROFILE + bytes(17 * 2**20), "is too large"),
    ],
)
def test_a_profile_that_can_not_be_followed_changes_nothing_and_is_told(image, profile, said):
    data = saved(image, "TIFF", icc_profile=profile)
    assert shown(data) == shown(saved(image, "TIFF"))
    assert re.search(said, note(data))


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 255, WHITE),
        ("1", 0, (0, 0, 0)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 255), (77, 77, 77)),
        ("LA", (77, 0), WHITE),
        ("LA", (0, 128), (127, 127, 127)),
        ("PA", (0, 0), WHITE),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 255), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), WHITE),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("RGBX", (1, 2, 3, 4), (1, 2, 3)),
        ("CMYK", (0, 0, 0, 0), WHITE),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("CMYK", (51, 0, 0, 51), (163, 204, 204)),
        ("YCbCr", (76, 85, 255), (254, 0, 0)),
        ("LAB", (128, 128, 128), (119, 119, 119)),
        ("I;16", 0, (0, 0, 0)),
        ("I;16", 65535, WHITE),
        ("I;16", 0x8080, (128, 128, 128)),
        ("I;16B", 0x8080, (128, 128, 128)),
    ],
)
def test_each_mode_becomes_what_it_stands_for(mode, value, expected):
    image = plain(value, mode)
    data = saved(image, "TIFF")
    assert near(shown(data), expected, 1 if mode in ("YCbCr", "LAB") else 0)
    assert open_small(data, "a", 4, ENOUGH).getpixel((0, 0)) == shown(data)
    assert inspect_image(data, "a", ENOUGH).colour_note == ""


@pytest.mark.parametrize(("mode", "value"), [("I", 70000), ("I", 200), ("F", 0.5), ("F", 200.0)])
def test_numbers_without_a_range_are_refused_by_every_door(mode, value):
    data = saved(plain(value, mode), "TIFF")
    for look in (inspect_image, open_image, lambda *a: open_small(a[0], a[1], 4, a[2])):
        with pytest.raises(InvalidDataset, match=r"32 bits.*save it with 8 or 16"):
            look(data, "a.tif", ENOUGH)


PNG_KINDS = [
    ("16-bit colour", png(16, 2, struct.pack(">6H", 0x1234, 0xFFFF, 0x80FF, 0, 0, 0)),
     (0x12, 0xFF, 0x80)),
    ("16-bit grey with alpha", png(16, 4, struct.pack(">4H", 0, 0x8000, 0, 0)),
     (127, 127, 127)),
    ("4-bit grey", png(4, 0, b"\x78"), (0x77, 0x77, 0x77)),
    ("2-bit grey", png(2, 0, b"\x60"), (0x55, 0x55, 0x55)),
    ("a transparent colour", png(8, 2, bytes(6), transparent(0, 0, 0)), WHITE),
    ("another transparent colour", png(8, 2, bytes(6), transparent(1, 0, 0)), (0, 0, 0)),
    ("a transparent 16-bit colour",
     png(16, 2, struct.pack(">6H", 0x1234, 0xFFFF, 0x80FF, 0, 0, 0),
         transparent(0x1234, 0xFFFF, 0x80FF)), WHITE),
    ("a transparent grey", png(8, 0, b"\7\0", transparent(7)), WHITE),
    ("a transparent 4-bit grey", png(4, 0, b"\x78", transparent(7)), WHITE),
    ("a transparent 2-bit grey", png(2, 0, b"\x60", transparent(1)), WHITE),
    ("another transparent 4-bit grey", png(4, 0, b"\x78", transparent(8)), (0x77, 0x77, 0x77)),
    ("a transparent black", png(1, 0, b"\0", transparent(0)), WHITE),
    ("a transparent 16-bit grey",
     png(16, 0, struct.pack(">2H", 0x1234, 0), transparent(0x1234)),
     WHITE),
    ("another transparent 16-bit grey",
     png(16, 0, struct.pack(">2H", 0x8080, 0), transparent(0x1234)), (128, 128, 128)),
    ("a palette with alpha",
     png(8, 3, b"\0\1", _chunk(b"PLTE", bytes([255, 0, 0, 9, 9, 9])), _chunk(b"tRNS", b"\x80")),
     (255, 127, 127)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "data", "expected"), PNG_KINDS, ids=[what for what, *_ in PNG_KINDS]
)
def test_each_kind_of_png_becomes_what_it_stands_for(what, data, expected):
    assert shown(data) == expected
    assert inspect_image(data, "a", ENOUGH).has_alpha == ("transparent" in what or "alpha" in what)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (2048, 127), (4095, 255)])
def test_grey_of_12_bits_is_scaled(value, expected):
    """Two pixels in three bytes; Pillow reads such files and doesn't write them."""
    pixels = bytes([value >> 4, (value & 15) << 4 | value >> 8, value & 255])
    tags = [
        (256, 3, 2), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
        (278, 3, 1), (279, 4, 3),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", number) for tag, kind, number in tags
    )
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    data = b"II*\0" + struct.pack("<I", 12) + pixels + b"\0" + directory
    assert shown(data) == (expected,) * 3


@pytest.mark.parametrize(("photometric", "expected"), [(0, WHITE), (1, (0, 0, 0))])
def test_in_a_16_bit_tiff_file_0_may_be_white(photometric, expected):
    data = saved(plain(0, "I;16"), "TIFF", tiffinfo={262: photometric})
    with Image.open(io.BytesIO(data)) as image:
        assert image.tag_v2[262] == photometric
    assert shown(data) == expected


def test_a_cmyk_jpeg_of_adobe_programs_is_not_inverted():
    data = saved(plain((255, 0, 0, 0), "CMYK"), "JPEG", quality=100)
    assert b"Adobe" in data  # its numbers stand there inverted
    assert near(shown(data), (0, 255, 255), 2)


@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        (_chunk(b"gAMA", struct.pack(">I", 100000)), "gamma of 1 isn't followed"),
        (_chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)),
         "chromaticities aren't followed"),
        (_chunk(b"gAMA", struct.pack(">I", 45455)), ""),
        (_chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)),
         ""),
        (_chunk(b"cICP", bytes([12, 13, 0, 1])), "code points (primaries 12, transfer 13)"),
        (_chunk(b"gAMA", struct.pack(">I", 45455)) + _chunk(b"cICP", bytes([9, 16, 0, 1])),
         "code points (primaries 9, transfer 16)"),
        (_chunk(b"cICP", bytes([1, 13, 0, 1])), ""),
        (_chunk(b"cICP", b""), ""),
        (_chunk(b"sRGB", b"\0") + _chunk(b"gAMA", struct.pack(">I", 100000)), ""),
    ],
)  # fmt: skip
def test_other_words_for_colours_than_a_profile_are_told(chunk, said):
    data = png(8, 2, bytes([9, 8, 7, 0, 0, 0]), chunk)
    assert shown(data) == (9, 8, 7)
    assert (said in note(data)) if said else note(data) == ""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright_in_every_format(kind, orientation):
    upright = Image.new("RGB", (48, 32))
    upright.paste((255, 0, 0), (0, 0, 16, 16))
    # what a camera stores, so that turning it as the tag says gives the upright image
    stored = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright if stored is None else upright.transpose(stored)
    data = saved(image, kind, exif=exif if kind == "TIFF" else exif.tobytes())
    for opened in (open_image(data, "a", ENOUGH).pixels, open_small(data, "a", 48, ENOUGH)):
        assert opened.size == (48, 32)
        assert near(opened.getpixel((4, 4)), (255, 0, 0), 24)
        assert near(opened.getpixel((44, 28)), (0, 0, 0), 24)
    assert inspect_image(data, "a", ENOUGH)[:2] == (48, 32)


def test_what_is_not_followed_is_told_of_folders_and_uploads(tmp_path):
    data = saved(plain((9, 8, 7)), icc_profile=b"no profile")
    (tmp_path / "a.png").write_bytes(data)
    (report,) = [scan(tmp_path)]
    said = "a.png: its colour profile can't be read; its colours are taken as sRGB"
    assert report.colour_notes == [said]
    assert check_file("a.png", data).warning == said
    assert said in CliRunner().invoke(app, ["datasets", "check", str(tmp_path)]).output
