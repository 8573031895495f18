"""Decoding images: under a budget of memory, without full copies, with the same pixels."""

import io
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from loradash.datasets.decoding import DecodingBudget, budget_bytes
from loradash.datasets.images import (
    ImageTooLarge,
    fit,
    inspect_image,
    open_image,
    open_small,
)
from loradash.errors import InvalidDataset

MB = 2**20
ENOUGH = DecodingBudget(64 * MB)


def saved(image, kind="PNG", **how):
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def colourful(size=(301, 203)):
    ramp = Image.linear_gradient("L").resize(size)
    turned = ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return Image.merge("RGB", (ramp, turned, Image.radial_gradient("L").resize(size)))


def turned_by(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def all_alphas():
    image = Image.new("RGBA", (256, 256))
    image.putdata([(v, 255 - v, v // 2, a) for a in range(256) for v in range(256)])
    return image


def with_alpha(image):
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def wide_grey():
    image = Image.new("I;16", (256, 256))
    image.putdata(list(range(65536)))
    return image


def scaled_to_8_bits(image):
    return image.convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")


EXAMPLES = {
    "colour": (colourful(), lambda image: image),
    "grey": (colourful().convert("L"), lambda image: image.convert("RGB")),
    "palette": (colourful().quantize(64), lambda image: image.convert("RGB")),
    "alpha": (all_alphas(), with_alpha),
    "black and white": (colourful().convert("1"), lambda image: image.convert("RGB")),
    "grey of 16 bits": (wide_grey(), scaled_to_8_bits),
}


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("what", EXAMPLES)
def test_strips_give_the_pixels_of_the_whole(what, orientation, monkeypatch):
    monkeypatch.setattr("loradash.datasets.images._STRIP_BYTES", 7000)
    image, converted = EXAMPLES[what]
    expected = ImageOps.exif_transpose(converted(image))
    exif = turned_by(orientation)
    expected = {
        1: lambda: expected,
        3: lambda: expected.transpose(Image.Transpose.ROTATE_180),
        6: lambda: expected.transpose(Image.Transpose.ROTATE_270),
    }[orientation]()
    data = saved(image, exif=exif)
    opened = open_image(data, "a.png", ENOUGH)
    assert opened.pixels.size == expected.size
    assert opened.pixels.tobytes() == expected.tobytes()
    facts = inspect_image(data, "a.png", ENOUGH)
    assert facts == (*expected.size, opened.has_alpha, "png", False, "")
    assert opened.has_alpha == (what == "alpha")


def test_a_transparent_palette_lies_on_white():
    image = colourful().quantize(16)
    data = saved(image, transparency=3)
    with Image.open(io.BytesIO(data)) as read:
        expected = with_alpha(read)
    assert open_image(data, "a.png", ENOUGH).pixels.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("side", [128, 512, 1000])
def test_a_small_picture_looks_like_the_large_one_made_small(kind, side):
    how = {} if kind == "BMP" else {"exif": turned_by(6)}
    data = saved(colourful((1203, 801)), kind, **how)
    small = open_small(data, "a", side, ENOUGH)
    large = open_image(data, "a", ENOUGH).pixels
    large.thumbnail((side, side))
    assert small.mode == "RGB"
    assert small.size == large.size
    differences = [abs(a - b) for a, b in zip(small.tobytes(), large.tobytes(), strict=True)]
    assert sum(differences) / len(differences) < 4


def test_a_jpeg_that_breaks_off_is_found_without_decoding_it_at_full_size():
    data = saved(colourful((2000, 1500)), "JPEG", quality=95)
    budget = DecodingBudget(MB)  # 12 MB would be the whole
    assert inspect_image(data, "a.jpg", budget)[:2] == (2000, 1500)
    with pytest.raises(InvalidDataset, match=r"a\.jpg: "):
        inspect_image(data[: len(data) * 3 // 4], "a.jpg", budget)


def test_what_is_whole_but_can_not_be_converted_is_refused_by_all_doors():
    image = Image.new("I;16", (4, 4))
    data = saved(image, transparency=0)
    outcomes = []
    for look in (inspect_image, open_image, lambda *a: open_small(a[0], a[1], 8, a[2])):
        try:
            look(data, "a.png", ENOUGH)
            outcomes.append("good")
        except InvalidDataset:
            outcomes.append("bad")
    assert len(set(outcomes)) == 1


@pytest.mark.parametrize("look", [inspect_image, open_image])
def test_an_image_that_takes_more_than_the_budget_is_refused_before_it_is_decoded(look):
    data = saved(Image.new("P", (4000, 4000)))
    budget = DecodingBudget(4 * MB)
    with pytest.raises(ImageTooLarge, match=r"4000x4000 pixels are more than [0-9,]+\nScale"):
        look(data, "a.png", budget)
    assert budget.most_bytes == 0


def test_the_limit_that_is_named_is_the_one_that_holds():
    budget = DecodingBudget(4 * MB)
    with pytest.raises(ImageTooLarge) as caught:
        open_image(saved(Image.new("RGB", (2000, 2000))), "a.png", budget)
    limit = int(caught.value.message.rpartition(" ")[2].replace(",", ""))
    assert open_image(saved(Image.new("RGB", (limit // 64, 64))), "a.png", budget)


def test_many_threads_share_one_budget():
    data = saved(Image.new("P", (1000, 1000)))
    budget = DecodingBudget(12 * MB)  # two at a time: five bytes a pixel
    threads = [threading.Thread(target=open_image, args=(data, "a.png", budget)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < budget.most_bytes <= 12 * MB


def test_a_large_image_has_its_turn_though_small_ones_keep_coming():
    budget = DecodingBudget(10)
    order = []

    def take(name, size, began):
        began.set()
        with budget.reserved(size):
            order.append(name)

    with budget.reserved(5):
        threads = []
        for name, size in (("large", 10), ("small", 1)):
            began = threading.Event()
            threads.append(threading.Thread(target=take, args=(name, size, began)))
            threads[-1].start()
            began.wait()
            while len(budget._waiting) < len(threads):
                pass
        assert order == []  # the small one would fit, and waits behind the large one
    for thread in threads:
        thread.join()
    assert order == ["large", "small"]


def test_what_fails_gives_its_part_back():
    budget = DecodingBudget(4 * MB)
    broken = saved(colourful())[:-400]
    for _ in range(30):  # 240 kB each
        with pytest.raises(InvalidDataset):
            open_image(broken, "a.png", budget)
    assert budget._used_bytes == 0


def test_more_than_there_is_at_all_is_never_waited_for():
    with pytest.raises(ValueError, match="11 bytes of 10"), DecodingBudget(10).reserved(11):
        pass


def test_the_budget_fits_the_container_and_not_the_host():
    assert budget_bytes(64 * 2**30, None) == 2**30
    assert budget_bytes(64 * 2**30, 2**30) == 2**28
    assert budget_bytes(64 * MB, None) == 32 * MB


_PEAK = """
import io, resource, sys
from PIL import Image
from loradash.datasets.images import inspect_image, open_image, open_small
buffer = io.BytesIO()
Image.new("P", (8000, 8000)).save(buffer, "PNG", transparency=0)
data = buffer.getvalue()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
look = {"inspect": inspect_image, "open": open_image,
        "small": lambda data, name: open_small(data, name, 256)}[sys.argv[1]]
look(data, "a.png")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(("how", "bytes_a_pixel"), [("inspect", 1), ("small", 1), ("open", 5)])
def test_a_palette_image_takes_what_was_reckoned(how, bytes_a_pixel):
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, how], capture_output=True, text=True, check=True
    )
    # making the example took 64 MB, which stand in the peak before already
    assert int(done.stdout) * 1024 <= (bytes_a_pixel * 64 + 24) * 10**6


def test_fitting_leaves_what_fits_alone():
    image = colourful((64, 64))
    assert fit(image, 64, 64) is image


BOMBS = {
    "gif": saved(Image.new("P", (9000, 9000)), "GIF"),
    "tiff": saved(Image.new("RGB", (4000, 4000)), "TIFF", compression="tiff_deflate"),
    "grey tiff": saved(Image.new("L", (7000, 7000)), "TIFF", compression="tiff_deflate"),
    "avif": saved(Image.new("RGB", (3000, 3000)), "AVIF", speed=10),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_small_file_of_any_format_that_takes_much_memory_is_refused_undecoded(kind, monkeypatch):
    """Within memory that a PNG of its size hardly fits into."""

    def decode(*_arguments):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    monkeypatch.setattr("PIL.AvifImagePlugin.AvifImageFile.load", decode)
    assert len(BOMBS[kind]) < 500_000
    for look in (inspect_image, open_image):
        with pytest.raises(ImageTooLarge):
            look(BOMBS[kind], "a", ENOUGH)


def heic_of(width, height):
    """The picture of a HEIC file with another size in its header."""
    data = (Path(__file__).parents[1] / "data" / "half.heic").read_bytes()
    coded = b"ispe" + bytes(4) + (64).to_bytes(4, "big") * 2  # of which 64 x 48 are shown
    assert data.count(coded) == 1
    other = b"ispe" + bytes(4) + width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return data.replace(coded, other)


def test_a_heic_image_that_takes_much_memory_is_refused_undecoded(monkeypatch):
    assert inspect_image(heic_of(64, 64), "a.heic", ENOUGH)[:2] == (64, 48)

    def decode(_image):
        raise AssertionError("decoded")

    monkeypatch.setattr("pi_heif.HeifImageFile.load", decode)
    with pytest.raises(ImageTooLarge):
        inspect_image(heic_of(9000, 9000), "a.heic", ENOUGH)
    with pytest.raises(ImageTooLarge):
        inspect_image(heic_of(30_000, 30_000), "a.heic", DecodingBudget(2**40))


def test_a_heic_image_that_is_larger_than_it_says_is_refused():
    with pytest.raises(InvalidDataset):
        inspect_image(heic_of(8, 8), "a.heic", ENOUGH)
