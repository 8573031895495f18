"""What ``loradash datasets upload`` does: announce the files, send those that are asked for.

A repeated command goes on where the one before it ended, however that was: the server knows by the
files' sizes and hashes which upload it is and what of it has arrived.
"""

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from loradash.cli.backend import Backend
from loradash.domain.dataset_files import CAPTION_SUFFIXES, IMAGE_KINDS, IMAGE_SUFFIXES
from loradash.errors import InvalidDataset
from loradash.storage.transfer import in_parallel

_HASHED_AT_ONCE = 4

OnBytes = Callable[[int], None]


class _ToSend(NamedTuple):
    """A file and what the server has answered for it."""

    path: Path
    entry: dict[str, Any]


def files_to_upload(folder: Path) -> list[Path]:
    """Return a folder's images and captions. Raises `InvalidDataset` if there are none."""
    wanted = IMAGE_SUFFIXES | set(CAPTION_SUFFIXES)
    if not folder.is_dir():
        raise InvalidDataset(f"there is no folder {folder}", remedy="Check the path.")
    paths = sorted(
        path for path in folder.iterdir()
        if path.is_file() and path.suffix.lower() in wanted and not path.name.startswith(".")
    )  # fmt: skip
    if not paths:
        raise InvalidDataset(
            f"folder {folder} holds no images", remedy=f"Put {IMAGE_KINDS} files there."
        )
    return paths


def upload_files(
    target: Backend, paths: Sequence[Path], *, name: str, trigger_word: str, add: bool
) -> dict[str, Any]:
    """Make files a dataset, or a part of one; return the server's reply.

    Raises `TransferFailed` that names each file which didn't arrive, after all were tried.
    """
    announced = in_parallel(paths, _announced, concurrency=_HASHED_AT_ONCE)
    plan = target.ask(
        type="create_upload",
        training_name=name,
        trigger_word=trigger_word,
        cleanup_existing=not add,
        files=list(announced.or_raise("reading", lambda path: path.name)),
    )
    entries = zip(paths, plan["files"], strict=True)
    waiting = [_ToSend(path, entry) for path, entry in entries if entry["state"] == "send"]
    with _progress(sum(one.path.stat().st_size for one in waiting)) as on_bytes:
        outcomes = in_parallel(waiting, lambda one: _send(target, one, on_bytes))
    outcomes.or_raise(f"dataset {plan['dataset_folder']!r}", lambda one: one.path.name)
    return target.ask(
        type="complete_upload",
        dataset_folder=plan["dataset_folder"],
        upload_id=plan["upload_id"],
    )


def _announced(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"filename": path.name, "size": file.tell(), "sha256": digest}


def _send(target: Backend, one: _ToSend, on_bytes: OnBytes) -> None:
    sent = 0

    def count(more_bytes: int) -> None:
        nonlocal sent
        sent += more_bytes
        on_bytes(more_bytes)

    try:
        target.send(one.entry, one.path, count)
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
