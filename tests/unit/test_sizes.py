import pytest

from loradash.domain.sizes import counted, size_text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1536, "1.5 kB"), (999_949, "999.9 kB"),
        (999_950, "1.0 MB"), (9_200_000, "9.2 MB"), (999_949_999, "999.9 MB"), (1e9, "1.0 GB"),
        (5_368_709_120, "5.4 GB"), (1e13, "10000.0 GB"),
    ],
)  # fmt: skip
def test_sizes_are_told_for_people(size_bytes: float, text: str) -> None:
    assert size_text(size_bytes) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1200, "1,200 images")]
)
def test_one_thing_has_no_plural(number, text):
    assert counted(number, "image") == text
