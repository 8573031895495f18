"""The order of the training data, as a function of the seed alone.

A killed training must see the same batches after it is resumed, so nothing here depends on time or
on a generator's hidden state: the sequence is replayed from the seed up to any position. Every
image is used equally often, and every batch is full: what is left of a bucket at the end of an
epoch waits there for the next one.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeAlias

Bucket: TypeAlias = tuple[int, int]


def batches(
    buckets: Sequence[Bucket],
    repeats: Sequence[int],
    regularization: Sequence[bool],
    batch_size: int,
    seed: int,
    start: int = 0,
) -> Iterator[list[int]]:
    """Yield batches of item numbers for ever, from batch number ``start``.

    Item n has size ``buckets[n]`` and comes ``repeats[n]`` times an epoch; a batch holds items of
    one bucket only. Regularisation items are cycled until there are as many of them in an epoch as
    of all others, so both kinds get half of the steps (as in DreamBooth and kohya's trainers).
    """
    return islice(_all_batches(buckets, repeats, regularization, batch_size, seed), start, None)


def _all_batches(
    buckets: Sequence[Bucket],
    repeats: Sequence[int],
    regularization: Sequence[bool],
    batch_size: int,
    seed: int,
) -> Iterator[list[int]]:
    concept = [
        n for n, is_reg in enumerate(regularization) if not is_reg for _ in range(repeats[n])
    ]
    prior = [n for n, is_reg in enumerate(regularization) if is_reg for _ in range(repeats[n])]
    if not (concept or prior):
        raise ValueError("no items to draw batches from")
    waiting: dict[Bucket, list[int]] = {}
    prior_stream = _cycled(prior, seed)
    epoch = 0
    while True:
        items = list(concept or prior)
        if concept and prior:
            items += islice(prior_stream, len(concept))
        random.Random(f"{seed}/order/{epoch}").shuffle(items)
        for item in items:
            queue = waiting.setdefault(buckets[item], [])
            queue.append(item)
            if len(queue) == batch_size:
                yield queue
                waiting[buckets[item]] = []
        epoch += 1


def _cycled(items: list[int], seed: int) -> Iterator[int]:
    turn = 0
    while items:
        turn_items = list(items)
        random.Random(f"{seed}/prior/{turn}").shuffle(turn_items)
        yield from turn_items
        turn += 1
