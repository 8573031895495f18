"""What ``loradash datasets upload`` does: announce the files, send those that are asked for.

A repeated command goes on where the one before it ended, however that was: the server knows by the
files' sizes and hashes which upload it is and what of it has arrived.
"""

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from loradash.cli.backend import Backend
from loradash.datasets.inventory import FolderFile, take_inventory
from loradash.domain.dataset_files import IMAGE_KINDS, LeftOut
from loradash.domain.dataset_findings import left_out_text, left_out_warnings
from loradash.errors import InvalidDataset
from loradash.protocol.reply_reading import view_of
from loradash.services.datasets.upload_plan import PlannedFile, UploadPlan
from loradash.storage.transfer import in_parallel
from loradash.visible_text import visible

_HASHED_AT_ONCE = 4

OnBytes = Callable[[int], None]


class _ToSend(NamedTuple):
    """A file and what the plan of the upload says of it."""

    path: Path
    planned: PlannedFile


class ToUpload(NamedTuple):
    """A folder's images and captions, by name, and what isn't sent."""

    files: tuple[FolderFile, ...]
    left_out: tuple[LeftOut, ...]


def files_to_upload(folder: Path) -> ToUpload:
    """Return what a dataset takes of a folder. Raises `InvalidDataset` if that is nothing."""
    there = take_inventory(folder)
    files = tuple(sorted((*there.images, *there.captions)))
    if not files:
        raise InvalidDataset(
            f"folder {folder} holds no images",
            problems=[left_out_text(one) for one in there.left_out],
            remedy=f"Put {IMAGE_KINDS} files there.",
        )
    problems = [
        f"{visible(file.name)}: {reason}" for file in files if (reason := _unsendable(file))
    ]
    if problems:
        raise InvalidDataset(
            f"folder {folder}: {len(problems)} of {len(files)} files can't be uploaded",
            problems=problems,
            remedy="Rename or remove these files.",
        )
    return ToUpload(files, there.left_out)


def upload_files(
    target: Backend, folder: ToUpload, *, name: str, trigger_word: str, add: bool
) -> dict[str, Any]:
    """Make a folder's files a dataset, or a part of one; return the server's reply.

    The reply names what isn't sent, too. Raises `TransferFailed` that names each file which
    didn't arrive, after all were tried.
    """
    announced = in_parallel(folder.files, _announced, concurrency=_HASHED_AT_ONCE)
    reply = target.ask(
        type="create_upload",
        training_name=name,
        trigger_word=trigger_word,
        cleanup_existing=not add,
        files=list(announced.or_raise("reading", lambda file: file.name)),
    )
    plan = view_of(UploadPlan, reply)
    files = zip(folder.files, plan.files, strict=True)
    waiting = [_ToSend(file.path, planned) for file, planned in files if planned.state == "send"]
    with _progress(sum(one.path.stat().st_size for one in waiting)) as on_bytes:
        outcomes = in_parallel(waiting, lambda one: _send(target, one, on_bytes))
    outcomes.or_raise(f"dataset {plan.dataset_folder!r}", lambda one: one.planned.filename)
    reply = target.ask(
        type="complete_upload",
        dataset_folder=plan.dataset_folder,
        upload_id=plan.upload_id,
    )
    left_out = [one.model_dump() for one in folder.left_out]
    return {
        **reply,
        "left_out": [*left_out, *reply.get("left_out", ())],
        "warnings": [*left_out_warnings(folder.left_out), *reply["warnings"]],
    }


def _unsendable(file: FolderFile) -> str:
    try:
        file.name.encode()
    except UnicodeEncodeError:
        return "its name isn't UTF-8"
    return "" if file.path.is_file() else "not a file, or a link that leads nowhere"


def _announced(file: FolderFile) -> dict[str, Any]:
    with file.path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        return {"filename": file.name, "size": content.tell(), "sha256": digest}


def _send(target: Backend, one: _ToSend, on_bytes: OnBytes) -> None:
    sent = 0

    def count(more_bytes: int) -> None:
        nonlocal sent
        sent += more_bytes
        on_bytes(more_bytes)

    try:
        target.send(one.planned, one.path, count)
    except BaseException:
        on_bytes(-sent)  # it may be tried once more
        raise


@contextlib.contextmanager
def _progress(total_bytes: int) -> Iterator[OnBytes]:
    """Show how much has been sent, to a person at a terminal."""
    if not sys.stderr.isatty() or not total_bytes:
        yield lambda _more_bytes: None
        return
    from loradash.cli.terminal import transfer_progress

    with transfer_progress() as progress:
        task = progress.add_task("sending", total=total_bytes)
        yield lambda more_bytes: progress.update(task, advance=more_bytes)
