"""What has become of a dataset since a training began: each file by name, not just "changed"."""

import hashlib
from collections.abc import Iterator, Mapping

from loradash.domain.dataset import DatasetReport, ImageFile
from loradash.domain.sizes import counted

_IMAGE_DIGITS, _CAPTION_DIGITS = 16, 8


def marks(report: DatasetReport) -> dict[str, str]:
    """Return what is remembered of each image: ``<hash of the image>/<hash of its caption>``.

    The hashes are the first hex digits of SHA-256; ``-`` stands for no caption.
    """
    return {image.relative_path: _mark(image) for image in report.images}


def changes(before: Mapping[str, str], report: DatasetReport) -> list[str]:
    """Return one line for each file that isn't what it was when `marks` were ``before``."""
    now = marks(report)
    bad = {problem.relative_path: problem.message for problem in report.problems}
    added = {name: mark for name, mark in now.items() if name not in before}
    removed = {name: mark for name, mark in before.items() if name not in now and name not in bad}
    lines = [f"can't be read any more: {name}: {bad[name]}" for name in before if name in bad]
    for name, other in _renamed(removed, added):
        lines.append(f"renamed: {name} is now {other}")
        del removed[name], added[other]
    lines += [f"removed: {name}" for name in removed]
    lines += [f"added: {name}" for name in added]
    lines += [f"added: {name}: {bad[name]}" for name in bad if name not in before]
    for name in before.keys() & now.keys():
        image, caption = (
            one != other
            for one, other in zip(before[name].split("/"), now[name].split("/"), strict=True)
        )
        lines += [f"with another image: {name}"] if image else []
        lines += [f"with another caption: {name}"] if caption else []
    return sorted(lines)


def summary(lines: list[str]) -> str:
    """Return how many changes there are of each kind, such as ``1 removed, 2 added``."""
    kinds = [line.partition(":")[0] for line in lines]
    parts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
    return f"{counted(len(lines), 'file')} ({', '.join(parts)})"


def _mark(image: ImageFile) -> str:
    caption = "-"
    if image.caption is not None:
        caption = hashlib.sha256(image.caption.encode()).hexdigest()[:_CAPTION_DIGITS]
    return f"{image.sha256[:_IMAGE_DIGITS]}/{caption}"


def _renamed(removed: Mapping[str, str], added: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs of a name that is gone and a new one with the same image and caption."""
    by_mark: dict[str, list[str]] = {}
    for name in sorted(added, reverse=True):
        by_mark.setdefault(added[name], []).append(name)
    pairs = [(name, by_mark[mark].pop()) for name, mark in sorted(removed.items())
             if by_mark.get(mark)]  # fmt: skip
    yield from pairs
