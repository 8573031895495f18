from collections import Counter
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from loradash.datasets.batches import batches

SIZES = [(64, 64), (64, 96), (96, 64)]


@st.composite
def datasets(draw):
    items = draw(
        st.lists(
            st.tuples(st.sampled_from(SIZES), st.integers(1, 3), st.booleans()),
            min_size=1,
            max_size=12,
        )
    )
    buckets, repeats, regularization = (list(column) for column in zip(*items, strict=True))
    return buckets, repeats, regularization, draw(st.integers(1, 5)), draw(st.integers(0, 2**63))


def take(dataset, count, start=0):
    return list(islice(batches(*dataset, start=start), count))


@given(datasets())
def test_every_batch_is_full_and_of_one_bucket(dataset):
    buckets, _, _, batch_size, _ = dataset
    for batch in take(dataset, 40):
        assert len(batch) == batch_size
        assert len({buckets[item] for item in batch}) == 1


@given(datasets(), st.integers(0, 50))
def test_starting_later_is_the_same_as_going_on(dataset, start):
    assert take(dataset, 20, start) == take(dataset, start + 20)[start:]


@given(datasets())
def test_within_a_bucket_every_epoch_uses_every_image_as_often_as_it_is_repeated(dataset):
    buckets, repeats, _, batch_size, seed = dataset
    dataset = (buckets, repeats, [False] * len(buckets), batch_size, seed)
    drawn = [item for batch in take(dataset, 60) for item in batch]
    for bucket in set(buckets):
        epoch = Counter({n: repeats[n] for n, size in enumerate(buckets) if size == bucket})
        sequence = [item for item in drawn if buckets[item] == bucket]
        for start in range(0, len(sequence) - epoch.total() + 1, epoch.total()):
            assert Counter(sequence[start : start + epoch.total()]) == epoch


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=8),
    st.lists(st.integers(1, 3), min_size=1, max_size=8),
    st.integers(1, 4),
)
def test_regularisation_images_get_half_of_every_epoch_and_equal_use(concept, prior, batch_size):
    repeats = concept + prior
    regularization = [False] * len(concept) + [True] * len(prior)
    epoch = 2 * sum(concept)
    dataset = ([SIZES[0]] * len(repeats), repeats, regularization, batch_size, 7)
    drawn = [item for batch in take(dataset, 5 * epoch) for item in batch]
    for start in range(0, len(drawn) - epoch + 1, epoch):
        part = drawn[start : start + epoch]
        assert sum(regularization[item] for item in part) == epoch // 2
    whole = drawn[: len(drawn) // epoch * epoch]
    uses = Counter(whole)
    turns = (len(whole) // 2) / sum(prior)
    for n, count in enumerate(prior, start=len(concept)):
        assert int(turns) * count <= uses[n] <= (int(turns) + 1) * count


def test_regularisation_images_alone_are_used_as_they_are():
    dataset = ([SIZES[0]] * 3, [1, 1, 1], [True] * 3, 1, 0)
    assert Counter(item for batch in take(dataset, 30) for item in batch) == {0: 10, 1: 10, 2: 10}


def test_another_seed_gives_another_order():
    orders = {str(take(([SIZES[0]] * 8, [1] * 8, [False] * 8, 1, seed), 8)) for seed in range(20)}
    assert len(orders) == 20


def test_the_order_of_each_epoch_is_its_own():
    drawn = [batch[0] for batch in take(([SIZES[0]] * 10, [1] * 10, [False] * 10, 1, 0), 30)]
    assert len({tuple(drawn[start : start + 10]) for start in (0, 10, 20)}) == 3


def test_a_batch_larger_than_its_bucket_is_filled_over_epochs():
    dataset = ([SIZES[0], SIZES[1]], [1, 1], [False, False], 4, 0)
    assert sorted(take(dataset, 2)) == [[0] * 4, [1] * 4]


def test_the_sequence_of_a_seed_stays_the_same_from_version_to_version():
    """A training that was started with an older loradash must resume with the same data."""
    dataset = ([SIZES[0], SIZES[0], SIZES[1], SIZES[0]], [1, 2, 1, 1], [False] * 3 + [True], 2, 42)
    assert take(dataset, 6) == [[0, 3], [3, 1], [1, 3], [3, 1], [2, 2], [3, 3]]
