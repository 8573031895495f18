"""A hash by which images that look alike are found, whatever their size, format and quality.

It is the difference hash: scaled to 9 x 8 grey pixels, each bit says whether a pixel is darker than
the one right of it. (N. Krawetz, "Kind of Like That", 2013.)
"""

from collections.abc import Iterator, Sequence

from PIL import Image

BITS = 64
MAX_DISTANCE = 5
"""So many of the 64 bits may differ between images that look alike: a rule of thumb.

A copy that was scaled or saved again differs by 0 to 3, other pictures mostly by 20 and more.
"""

_COLUMNS, _ROWS = 8, 8
_PLAIN = (0, 2**BITS - 1)  # pictures without any detail, which all have the same hash


def difference_hash(image: Image.Image) -> int:
    """Return the 64-bit difference hash of an image."""
    grey = image.convert("L").resize((_COLUMNS + 1, _ROWS), Image.Resampling.LANCZOS)
    pixels = grey.tobytes()
    value = 0
    for row in range(_ROWS):
        for column in range(_COLUMNS):
            at = row * (_COLUMNS + 1) + column
            value = value << 1 | (pixels[at] < pixels[at + 1])
    return value


def pairs_alike(hashes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield the places of two images that look alike, and by how many bits they differ.

    If at most `MAX_DISTANCE` bits differ, then at least one of so many bands and one more is equal
    in both; so only images that share a band are compared, and not each with each. Images without
    any detail are like none: their hash says nothing.
    """
    seen: set[tuple[int, int]] = set()
    bands = MAX_DISTANCE + 1
    for band in range(bands):
        low, high = BITS * band // bands, BITS * (band + 1) // bands
        mask = (1 << (high - low)) - 1
        groups: dict[int, list[int]] = {}
        for place, value in enumerate(hashes):
            if value not in _PLAIN:
                groups.setdefault(value >> low & mask, []).append(place)
        for places in groups.values():
            for number, first in enumerate(places):
                for second in places[number + 1 :]:
                    distance = (hashes[first] ^ hashes[second]).bit_count()
                    if distance <= MAX_DISTANCE and (first, second) not in seen:
                        seen.add((first, second))
                        yield first, second, distance
