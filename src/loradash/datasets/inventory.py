"""What lies in a dataset folder: images, captions, and what isn't taken, before any is read.

Links are followed: who names a folder of an own machine means what is linked there too, as in a
snapshot of the Hugging Face cache, which is nothing but links. For folders that a request named,
links lead only to where requests may read (``link_roots``).
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from loradash.domain.dataset_files import (
    CAPTION_SUFFIX,
    LeftOut,
    LeftOutReason,
    caption_suffixes,
    file_reason,
    folder_reason,
    grouped,
    suffix_of,
)
from loradash.errors import InvalidDataset
from loradash.paths import local_path

LinkRoots = Sequence[Path] | None
"""Resolved folders that links may lead to, beside the dataset's own; None for any."""


class FolderFile(NamedTuple):
    """A file by its path within the folder, with ``/``, and where it is."""

    name: str
    path: Path


class Inventory(NamedTuple):
    """The files of a folder, each list in the order of their names."""

    folder: Path
    images: tuple[FolderFile, ...]
    captions: tuple[FolderFile, ...]
    left_out: tuple[LeftOut, ...]
    escaping: tuple[str, ...] = ()
    """Linked folders that lead where links may not."""


def take_inventory(
    folder: Path, caption_suffix: str = CAPTION_SUFFIX, *, link_roots: LinkRoots = None
) -> Inventory:
    """List a folder and what is below it, without reading any file.

    Folders that are left out aren't looked into, nor a linked one a second time. Raises
    `InvalidDataset` if it is missing, or anything of it can't be listed.
    """
    folder = local_path(folder, InvalidDataset, "dataset folder")
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "doesn't exist"
        raise InvalidDataset(
            f"dataset folder {folder} {what}",
            remedy="Give a folder with images and, beside each, a .txt caption of the same name.",
        )
    endings = caption_suffixes(caption_suffix)
    walk = _Walk(folder.resolve(), link_roots)
    try:
        files = sorted(walk.files(folder, ""))
    except OSError as error:
        raise InvalidDataset(
            f"dataset folder {folder}: {error.strerror or error}", remedy="Check its permissions."
        ) from error
    taken = []
    for file in files:
        reason = file_reason(file.path.name, endings)
        if reason is None:
            taken.append(file)
        else:
            walk.left.append((reason, file.name))
    captions = tuple(file for file in taken if suffix_of(file.name) in endings)
    images = tuple(file for file in taken if suffix_of(file.name) not in endings)
    return Inventory(folder, images, captions, grouped(walk.left), tuple(walk.escaping))


def is_reachable(path: Path, root: Path, link_roots: LinkRoots) -> bool:
    """Whether a file may be read: links may lead only to certain places.

    Raises `OSError` for a link that leads nowhere, and `RuntimeError` for one in a circle.
    """
    real = path.resolve(strict=True)
    return link_roots is None or any(real.is_relative_to(place) for place in (root, *link_roots))


class _Walk:
    """A way through a folder that ends, whatever its links lead to."""

    def __init__(self, root: Path, link_roots: LinkRoots) -> None:
        self._root = root
        self._link_roots = link_roots
        self._entered = {root}
        self.left: list[tuple[LeftOutReason, str]] = []
        self.escaping: list[str] = []

    def files(self, folder: Path, prefix: str) -> Iterator[FolderFile]:
        """Yield the files of a folder, and of those below it that are looked into."""
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
        for entry in found:
            name, path = f"{prefix}{entry.name}", folder / entry.name
            if not _is_folder(entry):
                yield FolderFile(name, path)
            elif reason := folder_reason(entry.name):
                self.left.append((reason, f"{name}/"))
            elif entry.is_symlink() and path.resolve() in self._entered:
                self.left.append(("linked_folder", f"{name}/"))
            elif entry.is_symlink() and not is_reachable(path, self._root, self._link_roots):
                self.escaping.append(name)
            else:
                self._entered.add(path.resolve())
                yield from self.files(path, f"{name}/")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself; it is told about where it's read
        return False
