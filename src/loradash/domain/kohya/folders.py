"""What sd-scripts takes from a folder's name: ``10_sks dog`` is ten repeats of "sks dog"."""

import re
from typing import NamedTuple, Protocol

_REPEATS = re.compile(r"([0-9]{1,5})(?:_(.*))?", re.DOTALL)


class NamedFolder(NamedTuple):
    """A folder of images whose name says how often each comes, and what is on it."""

    path: str
    repeats: int
    caption: str
    """Of images without a caption file."""


class Files(Protocol):
    """What a conversion looks up on this machine."""

    def folders(self, path: str) -> list[str] | None:
        """Names of the folders in a folder, sorted; None if it isn't here."""

    def images(self, path: str) -> int | None:
        """How many images a folder has; None if it isn't here."""

    def images_beside(self, path: str) -> int:
        """How many images are in a folder itself, beside its folders."""

    def text(self, path: str) -> str | None:
        """The text of a file; None if it isn't here."""


def repeats_and_caption(name: str) -> tuple[int, str] | None:
    """Return what a folder's name says, or None if it has no repeats."""
    match = _REPEATS.fullmatch(name)
    if match is None or int(match[1]) < 1:
        return None
    return int(match[1]), match[2] or ""


def named_folders(parent: str, names: list[str]) -> tuple[list[NamedFolder], list[str]]:
    """Return the folders of a parent that have repeats, and the names of the others."""
    found, others = [], []
    for name in names:
        parts = repeats_and_caption(name)
        if parts is None:
            others.append(name)
        else:
            found.append(NamedFolder(f"{parent.rstrip('/')}/{name}", *parts))
    return found, others
