"""What a look into a dataset folder found."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from loradash.domain.dataset_files import LeftOut

ProblemKind = Literal["corrupt", "too_large", "unreadable", "escapes_folder"]


class ImageFile(BaseModel):
    """One usable image of a dataset, upright (EXIF orientation applied), sizes in pixels."""

    model_config = ConfigDict(frozen=True)

    relative_path: str
    width: int
    height: int
    size_bytes: int
    sha256: str
    caption: str | None
    has_alpha: bool = False
    has_more_frames: bool = False
    """Whether its file is an animation or has several pages, of which only the first is used."""
    colour_note: str = ""
    """What isn't followed of what its file says of its colours."""


class ImageProblem(BaseModel):
    """A file that looks like an image and can't be used, and why."""

    model_config = ConfigDict(frozen=True)

    relative_path: str
    kind: ProblemKind
    message: str


class SharedCaption(BaseModel):
    """A caption that several images have, as their names differ in the ending alone."""

    model_config = ConfigDict(frozen=True)

    caption: str
    images: tuple[str, ...]


class DatasetReport(BaseModel):
    """All images of a folder, in the order of their paths, with what is wrong among them."""

    model_config = ConfigDict(frozen=True)

    folder: str
    images: tuple[ImageFile, ...]
    problems: tuple[ImageProblem, ...]
    captions_without_image: tuple[str, ...] = ()
    shared_captions: tuple[SharedCaption, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    sha256: str

    @property
    def missing_captions(self) -> list[str]:
        """Images that have no caption file."""
        return [image.relative_path for image in self.images if image.caption is None]

    @property
    def empty_captions(self) -> list[str]:
        """Images whose caption file holds no text."""
        return [image.relative_path for image in self.images if image.caption == ""]

    @property
    def only_first_frames(self) -> list[str]:
        """Images of which there is more in their files than is used."""
        return [image.relative_path for image in self.images if image.has_more_frames]

    @property
    def colour_notes(self) -> list[str]:
        """What isn't followed of what files say of their colours, with their names."""
        return [f"{one.relative_path}: {one.colour_note}" for one in self.images if one.colour_note]

    @property
    def duplicates(self) -> list[list[str]]:
        """Groups of images whose files are byte for byte the same."""
        groups: dict[str, list[str]] = {}
        for image in self.images:
            groups.setdefault(image.sha256, []).append(image.relative_path)
        return [paths for paths in groups.values() if len(paths) > 1]
