"""Reading a dataset folder: which images and captions are there, and which can't be used."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from loradash.datasets.images import ImageTooLarge, inspect_image
from loradash.domain.dataset import (
    IMAGE_SUFFIXES,
    DatasetReport,
    ImageFile,
    ImageProblem,
    ProblemKind,
)
from loradash.errors import InvalidDataset
from loradash.paths import local_path

MAX_CAPTION_BYTES = 64_000


def scan(
    folder: Path,
    caption_suffix: str = ".txt",
    *,
    skip: Collection[str] = (),
    on_image: Callable[[int, int], None] | None = None,
) -> DatasetReport:
    """Read every image of ``folder`` and below, completely, in a fixed order.

    Hidden files and folders are left out, as are the relative paths in ``skip``. Links that lead
    out of the folder are problems, not images. ``on_image(done, total)`` follows the progress.
    The report's hash covers paths, image bytes and captions: equal hash, equal dataset.
    Raises `InvalidDataset` if the folder is missing or isn't a folder.
    """
    folder = local_path(folder, InvalidDataset, "dataset folder")
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "doesn't exist"
        raise InvalidDataset(
            f"dataset folder {folder} {what}",
            remedy="Give a folder with images and, beside each, a .txt caption of the same name.",
        )
    try:
        files = sorted(_files(folder), key=lambda path: path.relative_to(folder).as_posix())
    except OSError as error:
        raise InvalidDataset(
            f"dataset folder {folder}: {error.strerror or error}", remedy="Check its permissions."
        ) from error
    root = folder.resolve()
    candidates = [path for path in files if _is_candidate(path)]
    images: list[ImageFile] = []
    problems: list[ImageProblem] = []
    for done, path in enumerate(candidates, start=1):
        name = path.relative_to(folder).as_posix()
        if name not in skip:
            result = _read_image(path, name, root, caption_suffix)
            if isinstance(result, ImageFile):
                images.append(result)
            else:
                problems.append(result)
        if on_image:
            on_image(done, len(candidates))
    stems = {path.with_suffix("") for path in candidates}
    orphans = [
        path.relative_to(folder).as_posix()
        for path in files
        if path.suffix == caption_suffix and path.with_suffix("") not in stems
    ]
    return DatasetReport(
        folder=str(folder),
        images=tuple(images),
        problems=tuple(problems),
        captions_without_image=tuple(orphans),
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
            remedy="Put jpg, png, webp or bmp images there, each with a .txt caption.",
        )


def combined_hash(reports: Collection[DatasetReport]) -> str:
    """Return one hash for several folders in their order; for one folder it is its own."""
    if len(reports) == 1:
        return next(iter(reports)).sha256
    return hashlib.sha256("".join(report.sha256 for report in reports).encode()).hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for directory, subfolders, names in os.walk(folder, onerror=_raise):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        links = [name for name in subfolders if Path(directory, name).is_symlink()]
        for name in (*names, *links):
            if not name.startswith("."):
                yield Path(directory, name)


def _is_candidate(path: Path) -> bool:
    """Whether the file should be an image; a linked folder is one too, so that it's told about."""
    return path.suffix.lower() in IMAGE_SUFFIXES or path.is_dir()


def _raise(error: OSError) -> None:
    raise error


def _read_image(path: Path, name: str, root: Path, caption_suffix: str) -> ImageFile | ImageProblem:
    try:
        name.encode()
        if not path.resolve(strict=True).is_relative_to(root):
            return ImageProblem(
                relative_path=name,
                kind="escapes_folder",
                message="a link that leads out of the folder",
            )
        if not path.is_file():
            return ImageProblem(
                relative_path=name, kind="unreadable", message="not a file, or a linked folder"
            )
        data = path.read_bytes()
        facts = inspect_image(data, name)
    except InvalidDataset as error:
        kind: ProblemKind = "too_large" if isinstance(error, ImageTooLarge) else "corrupt"
        message = error.message.removeprefix(f"{name}: ")
        return ImageProblem(relative_path=name, kind=kind, message=message)
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode()
        return ImageProblem(relative_path=shown, kind="unreadable", message="its name isn't UTF-8")
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        message = getattr(error, "strerror", None) or str(error)
        return ImageProblem(relative_path=name, kind="unreadable", message=message)
    try:
        caption = _read_caption(path.with_suffix(caption_suffix), root)
    except (OSError, RuntimeError, InvalidDataset) as error:
        return ImageProblem(
            relative_path=name, kind="unreadable", message=f"its caption: {error}".splitlines()[0]
        )
    return ImageFile(
        relative_path=name,
        width=facts.width,
        height=facts.height,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        caption=caption,
        has_alpha=facts.has_alpha,
    )


def _read_caption(path: Path, root: Path) -> str | None:
    if not path.is_file():
        return None
    if not path.resolve().is_relative_to(root):
        raise InvalidDataset("a link that leads out of the folder")
    if path.stat().st_size > MAX_CAPTION_BYTES:
        raise InvalidDataset(f"longer than {MAX_CAPTION_BYTES:,} bytes")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidDataset(f"not UTF-8 text (byte {error.start})") from error
    return " ".join(text.split())


def _hash(images: list[ImageFile]) -> str:
    digest = hashlib.sha256()
    for image in images:
        caption = "-" if image.caption is None else f"+{image.caption}"
        digest.update(f"{image.relative_path}\0{image.sha256}\0{caption}\n".encode())
    return digest.hexdigest()
