"""Which files belong to a dataset, and which caption belongs to which image: the one set of rules.

Folders, uploads, zip files, imports and requests all ask here, by names alone: paths in a dataset,
with ``/``. What isn't taken is never dropped in silence but counted and named, with the reason.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from loradash.visible_text import visible

IMAGE_SUFFIXES = frozenset(
    {
        ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".heic", ".heics", ".heif", ".heifs",
        ".hif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip
"""Endings of the images that are read, in any letter case."""

IMAGE_KINDS = "jpg, png, webp, bmp, gif, tiff, avif or heic"
"""The same as people read it."""

CAPTION_SUFFIX = ".txt"
CAPTION_SUFFIXES = (CAPTION_SUFFIX, ".caption")
"""Endings of captions; of two for one image, the first one counts."""

OTHER_SUFFIXES = frozenset({".json", ".yaml", ".yml"})
"""What a stored dataset may hold beside: no training uses it."""

FileType = Literal["image", "caption", "other"]

LeftOutReason = Literal[
    "system_file", "hidden", "helper_folder", "helper_file", "image_format", "archive",
    "other_kind", "unused_caption", "unreadable_caption", "linked_folder",
]  # fmt: skip

NAMES_KEPT = 100
"""So many names of each reason are kept; how many there are is always known."""

_SYSTEM_FILES = frozenset(
    {".ds_store", ".directory", ".localized", "desktop.ini", "ehthumbs.db", "icon\r", "thumbs.db"}
)
_SYSTEM_FOLDERS = frozenset({"__macosx"})
_HELPER_FOLDERS = frozenset(
    {
        "#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "@tmp",
        "@__thumb", "__pycache__", "_controls", "lost+found", "recycler",
        "system volume information",
    }
)  # fmt: skip
_CACHE_FOLDER = re.compile(r"_\w+_cache")  # ai-toolkit's, beside the images: _latent_cache and such
_HELPER_FILE = re.compile(r".+-(masklabel|condlabel)")  # OneTrainer's, beside the images
_OTHER_IMAGES = frozenset(
    {
        ".arw", ".cr2", ".cr3", ".cur", ".dds", ".dng", ".eps", ".exr", ".hdr", ".icns", ".ico",
        ".j2k", ".jp2", ".jpf", ".jpx", ".jxl", ".mpo", ".nef", ".orf", ".pbm", ".pcx", ".pgm",
        ".pnm", ".ppm", ".psb", ".psd", ".qoi", ".raf", ".rw2", ".sgi", ".svg", ".tga", ".xcf",
    }
)  # fmt: skip
_ARCHIVES = frozenset({".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"})


class LeftOut(BaseModel):
    """Files that aren't taken for one reason: how many there are, and the first of their names.

    A folder that isn't looked into counts as one, and its name ends with ``/``.
    """

    model_config = ConfigDict(frozen=True)

    reason: LeftOutReason
    count: int
    names: tuple[str, ...]


class SortedOut(NamedTuple):
    """Names of files that are taken, in the order in which they were given, and all others."""

    taken: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


class Pairs(NamedTuple):
    """Captions and images that belong together.

    ``caption_of`` has every image, with None for one without a caption. ``unused`` are captions of
    images that have another one, ``lost`` those of no image at all.
    """

    caption_of: Mapping[str, str | None]
    unused: tuple[str, ...]
    lost: tuple[str, ...]

    @property
    def shared(self) -> dict[str, list[str]]:
        """Captions that several images have, with these images."""
        images: dict[str, list[str]] = {}
        for image, caption in self.caption_of.items():
            if caption is not None:
                images.setdefault(caption, []).append(image)
        return {caption: names for caption, names in images.items() if len(names) > 1}


def file_type(name: str) -> FileType:
    """Tell by its ending what a file of a dataset is."""
    suffix = suffix_of(name)
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return "caption" if suffix in CAPTION_SUFFIXES else "other"


def suffix_of(name: str) -> str:
    """Return a name's ending in lower case, with its dot; '' if it has none."""
    return PurePosixPath(name).suffix.lower()


def caption_suffixes(preferred: str = CAPTION_SUFFIX) -> tuple[str, ...]:
    """Return the endings of captions where one of them is asked for, that one first.

    An ending of the user's own stands alone.
    """
    preferred = preferred.lower()
    if preferred not in CAPTION_SUFFIXES:
        return (preferred,)
    return (preferred, *(suffix for suffix in CAPTION_SUFFIXES if suffix != preferred))


def folder_reason(name: str) -> LeftOutReason | None:
    """Return why a folder of this name, within a dataset, isn't looked into."""
    lower = name.lower()
    if lower in _SYSTEM_FOLDERS:
        return "system_file"
    if lower in _HELPER_FOLDERS or _CACHE_FOLDER.fullmatch(lower):
        return "helper_folder"
    return "hidden" if name.startswith(".") else None


def file_reason(name: str, captions: Sequence[str] = CAPTION_SUFFIXES) -> LeftOutReason | None:
    """Return why a file of this name, without folders, isn't taken; ``captions`` are endings.

    Files of a stored dataset that aren't trained (`OTHER_SUFFIXES`) have the reason ``other_kind``.
    """
    lower, suffix = name.lower(), suffix_of(name)
    if lower in _SYSTEM_FILES or name.startswith("._"):
        return "system_file"
    if name.startswith("."):
        return "hidden"
    if suffix in IMAGE_SUFFIXES:
        return "helper_file" if _HELPER_FILE.fullmatch(PurePosixPath(lower).stem) else None
    if suffix in captions:
        return None
    if suffix in CAPTION_SUFFIXES:
        return "unused_caption"
    if suffix in _OTHER_IMAGES:
        return "image_format"
    return "archive" if suffix in _ARCHIVES else "other_kind"


def sorted_out(names: Iterable[str], others: Iterable[str] = ()) -> SortedOut:
    """Sort the files of an upload or a zip file; ``others`` are endings that are taken as well."""
    also = frozenset(others)
    taken: list[str] = []
    left: list[tuple[LeftOutReason, str]] = []
    for name in names:
        *folders, last = name.split("/")
        for depth, folder in enumerate(folders, start=1):
            if reason := folder_reason(folder):
                left.append((reason, "/".join(folders[:depth]) + "/"))
                break
        else:
            why = file_reason(last)
            if why is None or (why == "other_kind" and suffix_of(last) in also):
                taken.append(name)
            else:
                left.append((why, name))
    return SortedOut(tuple(taken), grouped(left))


def grouped(left: Iterable[tuple[LeftOutReason, str]]) -> tuple[LeftOut, ...]:
    """Put together what is left out for the same reason; a name that comes twice counts once."""
    groups: dict[LeftOutReason, dict[str, None]] = {}
    for reason, name in left:
        groups.setdefault(reason, {})[name] = None
    return tuple(
        LeftOut(
            reason=reason,
            count=len(names),
            names=tuple(visible(name) for name in sorted(names)[:NAMES_KEPT]),
        )
        for reason, names in sorted(groups.items())
    )


def merged(*groups: Sequence[LeftOut]) -> tuple[LeftOut, ...]:
    """Add up what several looks have left out of different files."""
    found: dict[LeftOutReason, LeftOut] = {}
    for one in (one for group in groups for one in group):
        before = found.get(one.reason)
        names = (*(before.names if before else ()), *one.names)[:NAMES_KEPT]
        count = (before.count if before else 0) + one.count
        found[one.reason] = LeftOut(reason=one.reason, count=count, names=names)
    return tuple(found[reason] for reason in sorted(found))


def paired(
    images: Iterable[str], captions: Iterable[str], suffixes: Sequence[str] = CAPTION_SUFFIXES
) -> Pairs:
    """Find each image's caption: of the same path but the ending, or with the ending added.

    ``a.png`` has ``a.txt``, else ``a.caption``, else ``a.png.txt`` and so on; ``suffixes`` are the
    endings in their order. The very same letters go before others in letter case or composition,
    as Windows and macOS take them for one name; a caption that fits an image by its very letters
    isn't given to another one whose name only resembles it.
    """
    images, captions = list(images), sorted(captions)
    there = frozenset(captions)
    meant = {  # captions that are some image's by their very letters
        name for image in images for base in _bases(image) for suffix in suffixes
        if (name := base + suffix) in there
    }  # fmt: skip
    alike: dict[str, list[str]] = {}
    for caption in captions:
        alike.setdefault(_folded(caption), []).append(caption)
    caption_of: dict[str, str | None] = {}
    fitting: set[str] = set()
    for image in images:
        found: list[str] = []
        for base in _bases(image):
            for suffix in suffixes:
                name = base + suffix
                similar = alike.get(_folded(name), ())
                if name in there:
                    found.append(name)
                else:
                    found += [other for other in similar if other not in meant]
                fitting.update(similar)
        caption_of[image] = found[0] if found else None
    used = {name for name in caption_of.values() if name is not None}
    unused = tuple(name for name in captions if name in fitting and name not in used)
    lost = tuple(name for name in captions if name not in fitting)
    return Pairs(caption_of, unused, lost)


def _bases(image: str) -> tuple[str, str]:
    return str(PurePosixPath(image).with_suffix("")), image


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
