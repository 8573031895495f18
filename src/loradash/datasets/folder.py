"""Reading a dataset folder: which images and captions are there, and which can't be used."""

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path

from loradash.datasets.captions import MAX_CAPTION_BYTES, decode_caption
from loradash.datasets.images import ImageTooLarge, inspect_image
from loradash.datasets.inventory import FolderFile, LinkRoots, is_reachable, take_inventory
from loradash.domain.dataset import (
    DatasetReport,
    ImageFile,
    ImageProblem,
    ProblemKind,
    SharedCaption,
)
from loradash.domain.dataset_files import (
    CAPTION_SUFFIX,
    IMAGE_KINDS,
    caption_suffixes,
    grouped,
    merged,
    paired,
)
from loradash.errors import InvalidDataset

_LEADS_OUT = "a link that leads out of the folder, to where requests may not read"


def scan(
    folder: Path,
    caption_suffix: str = CAPTION_SUFFIX,
    *,
    skip: Collection[str] = (),
    on_image: Callable[[int, int], None] | None = None,
    link_roots: LinkRoots = None,
) -> DatasetReport:
    """Read every image of ``folder`` and below, completely, in a fixed order.

    What is taken and paired is said in `loradash.domain.dataset_files`; the relative paths in
    ``skip`` are left out too. Links that lead out of the folder and of ``link_roots`` are problems,
    not images. ``on_image(done, total)`` follows the progress. The report's hash covers paths,
    image bytes and captions: equal hash, equal dataset.
    Raises `InvalidDataset` if the folder is missing or isn't a folder.
    """
    there = take_inventory(folder, caption_suffix, link_roots=link_roots)
    pairs = paired(
        [file.name for file in there.images],
        [file.name for file in there.captions],
        caption_suffixes(caption_suffix),
    )
    captions = {file.name: file for file in there.captions}
    reader = _Reader(there.folder.resolve(), link_roots)
    images: list[ImageFile] = []
    problems = [_escapes(_unicode(name)) for name in there.escaping]
    for done, file in enumerate(there.images, start=1):
        if file.name not in skip:
            caption = pairs.caption_of[file.name]
            result = reader.image(file, None if caption is None else captions[caption])
            if isinstance(result, ImageFile):
                images.append(result)
            else:
                problems.append(result)
        if on_image:
            on_image(done, len(there.images))
    lost = [name for name in pairs.lost if reader.can_read(captions[name])]
    unreadable = sorted(set(pairs.lost) - set(lost))
    return DatasetReport(
        folder=str(there.folder),
        images=tuple(images),
        problems=tuple(problems),
        captions_without_image=tuple(_unicode(name) for name in lost),
        shared_captions=tuple(
            SharedCaption(caption=_unicode(caption), images=tuple(_unicode(name) for name in names))
            for caption, names in pairs.shared.items()
        ),
        left_out=merged(
            there.left_out,
            grouped(("unused_caption", name) for name in pairs.unused),
            grouped(("unreadable_caption", name) for name in unreadable),
        ),
        sha256=_hash(images),
    )


def require_usable(report: DatasetReport, *, on_bad_image: str = "stop") -> None:
    """Raise `InvalidDataset` if there is no image, or if there are bad ones and they may not be."""
    if report.problems and on_bad_image == "stop":
        raise InvalidDataset(
            f"dataset folder {report.folder}: {len(report.problems)} of "
            f"{len(report.problems) + len(report.images)} images can't be used",
            problems=[f"{problem.relative_path}: {problem.message}" for problem in report.problems],
            remedy="Replace or remove these files, or set on_bad_image: skip for this dataset.",
        )
    if not report.images:
        raise InvalidDataset(
            f"dataset folder {report.folder} holds no usable image",
            problems=[f"{problem.relative_path}: {problem.message}" for problem in report.problems],
            remedy=f"Put {IMAGE_KINDS} images there, each with a .txt caption.",
        )


def combined_hash(reports: Collection[DatasetReport]) -> str:
    """Return one hash for several folders in their order; for one folder it is its own."""
    if len(reports) == 1:
        return next(iter(reports)).sha256
    return hashlib.sha256("".join(report.sha256 for report in reports).encode()).hexdigest()


class _Reader:
    """Reads images and captions below ``root``, and what their links lead to."""

    def __init__(self, root: Path, link_roots: LinkRoots) -> None:
        self._root = root
        self._link_roots = link_roots

    def image(self, file: FolderFile, caption: FolderFile | None) -> ImageFile | ImageProblem:
        """Read an image with its caption, or tell why it can't be used."""
        name = file.name
        try:
            name.encode()
            if not is_reachable(file.path, self._root, self._link_roots):
                return _escapes(name)
            if not file.path.is_file():
                return ImageProblem(relative_path=name, kind="unreadable", message="not a file")
            data = file.path.read_bytes()
            facts = inspect_image(data, name)
        except InvalidDataset as error:
            kind: ProblemKind = "too_large" if isinstance(error, ImageTooLarge) else "corrupt"
            message = error.message.removeprefix(f"{name}: ")
            return ImageProblem(relative_path=name, kind=kind, message=message)
        except UnicodeEncodeError:
            return ImageProblem(
                relative_path=_unicode(name), kind="unreadable", message="its name isn't UTF-8"
            )
        except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
            return ImageProblem(relative_path=name, kind="unreadable", message=_reason(error))
        try:
            text = None if caption is None else self._caption(caption.path)
        except (OSError, RuntimeError, ValueError) as error:
            return ImageProblem(
                relative_path=name, kind="unreadable", message=f"its caption: {_reason(error)}"
            )
        return ImageFile(
            relative_path=name,
            width=facts.width,
            height=facts.height,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            caption=text,
            has_alpha=facts.has_alpha,
            has_more_frames=facts.has_more_frames,
            colour_note=facts.colour_note,
        )

    def can_read(self, caption: FolderFile) -> bool:
        """Whether a text file could be a caption."""
        try:
            self._caption(caption.path)
        except (OSError, RuntimeError, ValueError):
            return False
        return True

    def _caption(self, path: Path) -> str:
        if not is_reachable(path, self._root, self._link_roots):
            raise ValueError(_LEADS_OUT)
        if not path.is_file():
            raise ValueError("not a file")
        with path.open("rb") as file:
            text = decode_caption(file.read(MAX_CAPTION_BYTES + 1))
        return " ".join(text.split())


def _escapes(name: str) -> ImageProblem:
    return ImageProblem(relative_path=name, kind="escapes_folder", message=_LEADS_OUT)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).partition("\n")[0]


def _unicode(name: str) -> str:
    """Return a file's name as text that can be written down; it may not be Unicode."""
    return name.encode("utf-8", "backslashreplace").decode()


def _hash(images: list[ImageFile]) -> str:
    digest = hashlib.sha256()
    for image in images:
        caption = "-" if image.caption is None else f"+{image.caption}"
        digest.update(f"{image.relative_path}\0{image.sha256}\0{caption}\n".encode())
    return digest.hexdigest()
