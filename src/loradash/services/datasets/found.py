"""Which dataset a training means: a folder of this machine, or one in the object store."""

from typing import Literal, NamedTuple

from loradash.domain.dataset_references import parse_dataset_reference
from loradash.domain.sizes import counted
from loradash.errors import InvalidDataset, LoradashError, NotFound
from loradash.paths import full_path, local_path
from loradash.services.datasets.store import DatasetStore
from loradash.services.path_policy import ANYWHERE, PathPolicy

_FOLDER_REMEDY = (
    "Give a folder with images and, beside each, a .txt caption of the same name, or the name of "
    "an uploaded dataset."
)


class FoundDataset(NamedTuple):
    """A dataset of a training, and how the config shall name it from now on."""

    kind: Literal["folder", "stored"]
    name: str
    """The folder's full path, or the stored dataset's name."""
    folder_path: str
    images: int | None = None
    """How many images it has; None for a folder that hasn't been read."""
    warning: str = ""

    def text(self) -> str:
        """Which dataset it is, as people read it."""
        what = "folder" if self.kind == "folder" else "stored dataset"
        images = "" if self.images is None else f", {counted(self.images, 'image')}"
        return f"{what} {self.name}{images}"


def find_dataset(
    datasets: DatasetStore, reference: str, what: str, path_policy: PathPolicy
) -> FoundDataset:
    """Find what a config's ``folder_path`` names; ``what`` is its place in the config.

    Whoever may name any place is a command, for which a folder comes first. Raises
    `InvalidDataset` and `NotFound`.
    """
    kind, text = parse_dataset_reference(reference)
    is_command = path_policy is ANYWHERE
    path = local_path(text, InvalidDataset, what) if text else None
    if path is None:
        raise InvalidDataset(f"{what}: no name", remedy=_FOLDER_REMEDY)
    if kind == "folder" and not is_command and not path.is_absolute():
        raise InvalidDataset(
            f"{what}: folder {text[:200]} isn't a full path",
            remedy="Requests name folders by their full path, and stored datasets by their name.",
        )
    if kind == "folder" or (kind == "either" and is_command and path.is_dir()):
        path_policy.check(text, InvalidDataset, what)
        if not path.is_dir():
            reason = "is a file, not a folder" if path.is_file() else "doesn't exist"
            raise InvalidDataset(
                f"{what}: dataset folder {text[:200]} {reason}", remedy=_FOLDER_REMEDY
            )
        full = full_path(text)
        warning = _other_meaning(datasets, text, what, full) if kind == "either" else ""
        return FoundDataset("folder", full, full, warning=warning)
    name = datasets.resolve(reference)
    if name is None:  # only paths in full, which are folders
        raise InvalidDataset(f"{what}: {text[:200]} isn't a dataset's name", remedy=_FOLDER_REMEDY)
    try:
        stored = datasets.details.for_training(name)
    except NotFound as error:
        if kind == "stored" and is_command and path.is_dir():
            raise NotFound(
                error.message,
                remedy=f"{error.remedy} There is a folder of that name: folder:{text}",
            ) from error
        raise
    return FoundDataset("stored", name, reference, stored.total_images)


def _other_meaning(datasets: DatasetStore, text: str, what: str, full: str) -> str:
    """Say that a stored dataset of the folder's name was not taken; '' if there is none."""
    try:
        name = datasets.resolve(text)
        if name is None:
            return ""
        datasets.details.for_training(name)
    except LoradashError:  # no such name, or a store that is away: nothing else was meant
        return ""
    return (
        f"{what}: {text} is a folder here and a stored dataset; the folder {full} is taken "
        f"(dataset:{text} means the other one)"
    )
