import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradash.datasets.buckets import bucket_size

SIDES = st.integers(1, 20_000)
RESOLUTIONS = st.integers(64, 2048)
STEPS = st.sampled_from([8, 16, 32, 64])


@pytest.mark.parametrize(
    ("width", "height", "resolution", "bucket"),
    [
        (512, 512, 512, (512, 512)),
        (1024, 1024, 512, (512, 512)),
        (4000, 3000, 512, (576, 384)),
        (3000, 4000, 512, (384, 576)),
        (1920, 1080, 1024, (1344, 768)),
        (300, 300, 512, (256, 256)),
        (600, 200, 512, (576, 192)),
        (1000, 1000, 1000, (960, 960)),
        (40, 500, 512, (64, 448)),
        (1, 1, 512, (64, 64)),
    ],
)
def test_known_sizes_get_their_bucket(width, height, resolution, bucket):
    assert bucket_size(width, height, resolution, 64) == bucket


@given(SIDES, SIDES, RESOLUTIONS, STEPS)
def test_both_sides_are_multiples_of_the_step(width, height, resolution, step):
    bucket = bucket_size(width, height, resolution, step)
    assert all(side >= step and side % step == 0 for side in bucket)


@given(SIDES, SIDES, RESOLUTIONS, STEPS)
def test_an_image_is_never_scaled_up_but_to_one_step(width, height, resolution, step):
    bucket = bucket_size(width, height, resolution, step)
    assert bucket[0] <= max(width, step)
    assert bucket[1] <= max(height, step)


@given(SIDES, SIDES, RESOLUTIONS, STEPS)
def test_a_bucket_is_not_larger_than_the_square_of_the_resolution(width, height, resolution, step):
    bucket = bucket_size(width, height, resolution, step)
    assert bucket[0] * bucket[1] <= max(resolution, step) ** 2


@given(SIDES, SIDES, RESOLUTIONS, STEPS)
def test_a_turned_image_gets_the_turned_bucket(width, height, resolution, step):
    bucket = bucket_size(width, height, resolution, step)
    assert bucket_size(height, width, resolution, step) == bucket[::-1]


@given(st.integers(1, 64), STEPS)
def test_a_square_of_the_resolution_is_kept_whole(multiple, step):
    side = multiple * step
    assert bucket_size(side, side, side, step) == (side, side)
