"""Numbers about a dataset, and which of its images are there more than once."""

import re
from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from loradash.datasets.buckets import bucket_size
from loradash.datasets.image_hash import MAX_DISTANCE, pairs_alike
from loradash.errors import InvalidDataset, NotFound
from loradash.services.datasets.reading import DatasetReader, images_of
from loradash.services.datasets.stored_images import StoredImages
from loradash.services.datasets.summary import DatasetSummary, summary_of
from loradash.storage.transfer import in_parallel

NAMES_LISTED = 100
_SIZES_LISTED = 50
_WORDS_LISTED = 50
_HASHED_AT_ONCE = 4
_WORD = re.compile(r"[^\W\d_][\w'-]*")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class NameList(_Model):
    """How many, and the first of their names."""

    count: int
    names: tuple[str, ...]


class SizeCount(_Model):
    """How many images have a size, or are trained at it."""

    width: int
    height: int
    images: int


class WordCount(_Model):
    """In how many captions a word stands."""

    word: str
    captions: int


class DatasetStatistics(_Model):
    """Numbers about a dataset. The lists hold the most frequent entries first.

    ``buckets`` are the sizes at which the images would be trained at that resolution.
    """

    dataset: DatasetSummary
    total_files: int
    other_files: int
    image_bytes: int
    missing_captions: NameList
    captions_without_image: NameList
    unused_captions: NameList
    empty_captions: NameList
    unreadable_captions: NameList
    images_of_unknown_size: int
    sizes: tuple[SizeCount, ...]
    resolution: int
    step: int
    buckets: tuple[SizeCount, ...]
    words: tuple[WordCount, ...]


class AlikeGroup(_Model):
    """Images that look alike; ``distance`` is the most by which two neighbours of it differ."""

    names: tuple[str, ...]
    distance: int


class Duplicates(_Model):
    """Images that are there more than once.

    ``identical`` are groups of equal files. ``alike`` are groups of other files whose difference
    hashes differ in at most ``max_distance`` of 64 bits; of equal files they name the first.
    """

    identical: tuple[tuple[str, ...], ...]
    alike: tuple[AlikeGroup, ...]
    max_distance: int
    unreadable: tuple[str, ...]


class DatasetFigures:
    """Counts what is in datasets; thread-safe."""

    def __init__(self, reader: DatasetReader, images: StoredImages) -> None:
        self._reader = reader
        self._images = images

    def statistics(
        self, folder: str, *, resolution: int = 512, step: int = 64
    ) -> DatasetStatistics:
        """Return numbers about a dataset. All of its captions are read for that."""
        manifest = self._reader.manifest(folder)
        images = images_of(manifest)
        pairs = self._reader.pairs(manifest)
        captions = manifest.of_type("caption")
        texts = self._reader.texts(captions)
        known = [(file.width, file.height) for file in images if file.width and file.height]
        buckets = [bucket_size(width, height, resolution, step) for width, height in known]
        return DatasetStatistics(
            dataset=summary_of(folder, manifest),
            total_files=len(manifest.files),
            other_files=len(manifest.of_type("other")),
            image_bytes=sum(file.size_bytes for file in images),
            missing_captions=_listed(
                [image for image, caption in pairs.caption_of.items() if caption is None]
            ),
            captions_without_image=_listed(pairs.lost),
            unused_captions=_listed(pairs.unused),
            empty_captions=_listed(
                [
                    name
                    for name, one in texts.items()
                    if one.text is not None and not one.text.strip()
                ]
            ),
            unreadable_captions=_listed([name for name, one in texts.items() if one.problem]),
            images_of_unknown_size=len(images) - len(known),
            sizes=_counted(known),
            resolution=resolution,
            step=step,
            buckets=_counted(buckets),
            words=_words([one.text for one in texts.values() if one.text]),
        )

    def duplicates(self, folder: str) -> Duplicates:
        """Return which images are there more than once. All are decoded, the first time."""
        groups: dict[str, list[str]] = {}
        images = images_of(self._reader.manifest(folder))
        hashed = in_parallel(images, self._images.sha256_of, concurrency=_HASHED_AT_ONCE)
        for file, sha256 in hashed.done:
            groups.setdefault(sha256, []).append(file.name)
        first = {names[0] for names in groups.values()}
        looked_at = in_parallel(
            [file for file in images if file.name in first],
            self._images.hash_of,
            concurrency=_HASHED_AT_ONCE,
            tries=1,
        )
        for _, problem in (*hashed.failed, *looked_at.failed):
            if not isinstance(problem, InvalidDataset | NotFound):
                raise problem
        unreadable = {file.name for file, _ in (*hashed.failed, *looked_at.failed)}
        return Duplicates(
            identical=tuple(tuple(names) for names in groups.values() if len(names) > 1),
            alike=_alike([(file.name, value) for file, value in looked_at.done]),
            max_distance=MAX_DISTANCE,
            unreadable=tuple(sorted(unreadable)),
        )


def _listed(names: Sequence[str]) -> NameList:
    return NameList(count=len(names), names=tuple(sorted(names)[:NAMES_LISTED]))


def _counted(sizes: Sequence[tuple[int, int]]) -> tuple[SizeCount, ...]:
    counts = sorted(Counter(sizes).items(), key=lambda one: (-one[1], one[0]))
    return tuple(
        SizeCount(width=width, height=height, images=count)
        for (width, height), count in counts[:_SIZES_LISTED]
    )


def _words(texts: Sequence[str]) -> tuple[WordCount, ...]:
    counts = Counter(word for text in texts for word in set(_WORD.findall(text.casefold())))
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return tuple(WordCount(word=word, captions=count) for word, count in ordered[:_WORDS_LISTED])


def _alike(hashes: Sequence[tuple[str, int]]) -> tuple[AlikeGroup, ...]:
    """Put images together that are alike, directly or through others."""
    group_of = list(range(len(hashes)))
    distances: dict[int, int] = {}

    def root(place: int) -> int:
        while group_of[place] != place:
            group_of[place] = group_of[group_of[place]]
            place = group_of[place]
        return place

    for first, second, distance in pairs_alike([value for _, value in hashes]):
        low, high = sorted((root(first), root(second)))
        group_of[high] = low
        distances[low] = max(distance, distances.pop(high, 0), distances.get(low, 0))
    groups: dict[int, list[str]] = {}
    for place, (name, _) in enumerate(hashes):
        groups.setdefault(root(place), []).append(name)
    return tuple(
        AlikeGroup(names=tuple(names), distance=distances[place])
        for place, names in groups.items()
        if len(names) > 1
    )
