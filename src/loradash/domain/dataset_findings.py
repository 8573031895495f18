"""What people are told of a dataset that can be used: in the same words at every door."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from loradash.domain.dataset import DatasetReport
from loradash.domain.dataset_files import LeftOut, LeftOutReason
from loradash.domain.kohya.folders import repeats_and_caption
from loradash.domain.sizes import counted

NAMES_SHOWN = 10


class Finding(NamedTuple):
    """Something that doesn't stop a training but that the user should know; the code is stable."""

    code: str
    text: str


_LEFT_OUT: dict[LeftOutReason, tuple[str, str]] = {
    "archive": ("archive", "unpack it to train on what is in it"),
    "helper_file": ("file that another program keeps beside images", ""),
    "helper_folder": ("folder that another program keeps beside images", ""),
    "hidden": ("hidden file or folder", "what begins with a dot isn't looked at"),
    "image_format": ("image of a format that isn't read", "convert it to png or jpg"),
    "linked_folder": ("linked folder", "it leads in a circle or where it may not"),
    "other_kind": ("file of another kind", ""),
    "system_file": ("file or folder of an operating system", ""),
    "unreadable_caption": ("text that is no image's caption and can't be read", ""),
    "unused_caption": ("caption that isn't used", "its image has another one"),
}
_PLURALS = {
    "hidden file or folder": "hidden files or folders",
    "image of a format that isn't read": "images of formats that aren't read",
    "caption that isn't used": "captions that aren't used",
    "file of another kind": "files of other kinds",
    "file or folder of an operating system": "files or folders of an operating system",
    "file that another program keeps beside images": "files that other programs keep beside images",
    "folder that another program keeps beside images": (
        "folders that other programs keep beside images"
    ),
    "text that is no image's caption and can't be read": (
        "texts that are no image's captions and can't be read"
    ),
}


def left_out_text(one: LeftOut) -> str:
    """Say in a sentence what is left out for one reason: how many, which, and what to do."""
    noun, hint = _LEFT_OUT[one.reason]
    if one.count == 1:
        what, verb = f"1 {noun}", "is"
    else:
        what, verb = f"{one.count:,} {_PLURALS.get(noun, f'{noun}s')}", "are"
        hint = hint.replace("it to", "them to").replace("its image has", "their images have")
        hint = hint.replace("it leads", "they lead").replace("what is in it", "what is in them")
    text = f"{what} {verb} left out: {name_list(one.names, one.count)}"
    return f"{text}; {hint}" if hint else text


def left_out_warnings(left_out: Sequence[LeftOut]) -> list[str]:
    """Return a sentence for each reason, but for files of systems, which nobody misses."""
    return [left_out_text(one) for one in left_out if one.reason != "system_file"]


def findings(report: DatasetReport) -> list[Finding]:
    """Return what of a folder isn't used, or otherwise than may be expected."""
    found = [Finding("files_left_out", text) for text in left_out_warnings(report.left_out)]
    if lost := report.captions_without_image:
        found.append(Finding("captions_without_image", lost_captions(lost)))
    shared = {one.caption: one.images for one in report.shared_captions}
    found += [Finding("captions_shared", text) for text in shared_captions(shared)]
    if empty := report.empty_captions:
        found.append(Finding("captions_empty", empty_captions(empty)))
    if frames := report.only_first_frames:
        found.append(Finding("first_frames_only", only_first_frames(frames)))
    if named := folders_with_repeats([image.relative_path for image in report.images]):
        found.append(Finding("repeats_not_followed", repeats_not_followed(named)))
    return found


def folders_with_repeats(paths: Sequence[str]) -> list[str]:
    """Folders such as ``10_sks dog``, if all images are in such ones, as sd-scripts wants it."""
    folders = sorted({path.partition("/")[0] if "/" in path else "" for path in paths})
    with_repeats = [name for name in folders if "_" in name and repeats_and_caption(name)]
    return folders if folders == with_repeats else []


def repeats_not_followed(folders: Sequence[str]) -> str:
    """Say what the names of folders mean in sd-scripts, and how to have it here."""
    return (
        f"{name_list(folders)}: repeats and captions in the names of folders aren't followed, each "
        "image comes num_repeats times; `loradash convert-config` with the folder above makes a "
        "config that follows them"
    )


def check_warnings(reports: Iterable[DatasetReport]) -> list[str]:
    """Return what a training would warn of in these folders, for who only asks beforehand."""
    warnings = []
    for report in reports:
        warnings += [f"{report.folder}: {finding.text}" for finding in findings(report)]
        if bare := report.missing_captions:
            text = f"{counted(len(bare), 'image')} without a caption: {name_list(bare)}"
            warnings.append(f"{report.folder}: {text}")
    return warnings


def lost_captions(names: Sequence[str]) -> str:
    """Say which captions belong to no image."""
    return f"{counted(len(names), 'caption')} without an image: {name_list(names)}"


def unused_captions(names: Sequence[str]) -> str:
    """Say which captions aren't used, as their images have another one."""
    return f"{counted(len(names), 'caption')} beside the one that is used: {name_list(names)}"


def shared_captions(images_of: Mapping[str, Sequence[str]]) -> list[str]:
    """Say for each of some captions that images of the same name but the ending have it."""
    texts = [
        f"one caption for {len(images)} images: {caption} is used for {name_list(images)}"
        for caption, images in list(images_of.items())[:NAMES_SHOWN]
    ]
    if (more := len(images_of) - NAMES_SHOWN) > 0:
        texts.append(f"{counted(more, 'more caption')} of several images")
    return texts


def empty_captions(names: Sequence[str]) -> str:
    """Say which images or captions have an empty text."""
    verb = "is" if len(names) == 1 else "are"
    return f"{counted(len(names), 'caption')} {verb} empty: {name_list(names)}"


def only_first_frames(names: Sequence[str]) -> str:
    """Say of which images only the first frame or page is used."""
    noun = "image is" if len(names) == 1 else "images are"
    which = "its file" if len(names) == 1 else "their files"
    return (
        f"{len(names):,} {noun} only the first of several frames or pages in {which}: "
        f"{name_list(names)}"
    )


def images_enlarged(names: Sequence[str], side: int) -> str:
    """Say which images are smaller than the smallest side in pixels that can be trained."""
    verb, whose = ("is", "its") if len(names) == 1 else ("are", "their")
    return (
        f"{counted(len(names), 'image')} {verb} enlarged, since {whose} shorter side has fewer "
        f"than {side} pixels: {name_list(names)}"
    )


def name_list(names: Sequence[str], total: int | None = None) -> str:
    """Return the first names, and how many more there are of all or of ``total``."""
    more = (len(names) if total is None else total) - min(len(names), NAMES_SHOWN)
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
