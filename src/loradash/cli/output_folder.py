"""Files that a command writes where its user says: beside what is there, never over it.

A file appears whole or not at all. In a folder, one whose name is taken gets a number, unless the
same file is there already; a file that is named itself must not exist. What would keep a file from
being written is looked for before the work starts, and what keeps it from it afterwards costs no
result: those are in the workspace and in the object store.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path

from loradash.domain.sizes import counted
from loradash.errors import (
    DiskFull,
    InvalidSettings,
    LoradashError,
    ResultsNotStored,
    TransferFailed,
)
from loradash.paths import local_path
from loradash.runtime.results import sha256_of
from loradash.storage.disk import as_disk_full, new_file, write_all

_REMEDY = "Give a folder that can be written, or free space."
_PROBE_BYTES = 2**16


class OutputFolder:
    """The folder of an option such as ``--output``."""

    def __init__(self, folder: Path, option: str = "--output") -> None:
        self._option = option
        self.path = local_path(folder, InvalidSettings, option).absolute()

    def check(self) -> None:
        """Raise `InvalidSettings` or `DiskFull` if no file can be written there; leave nothing."""
        there = next(one for one in (self.path, *self.path.parents) if os.path.lexists(one))
        if not there.is_dir():
            raise InvalidSettings(
                f"{self._option} {self.path}: {there} isn't a folder", remedy=_REMEDY
            )
        try:
            descriptor, probe = new_file(there, ".loradash-probe-")
            try:
                write_all(descriptor, bytes(_PROBE_BYTES))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
                probe.unlink()
        except OSError as error:
            raise self._problem(error) from error

    def write(self, name: str, fill: Callable[[Path], object], sha256: str = "") -> Path:
        """Write a file and return its path, with the first name of this kind that is free.

        ``fill`` writes it beside its place, to a path with the same ending. Raises `DiskFull`,
        `InvalidSettings`, and `ResultsNotStored` if the file hasn't the SHA-256 that is given.
        """
        with self.arriving(name, fill, sha256) as arrived:
            for number in count(1):
                target = self.path / numbered(Path(name).name, number)
                if is_same_file(target, arrived) or put_in_place(arrived, target):
                    return target
        raise AssertionError

    @contextmanager
    def arriving(self, name: str, fill: Callable[[Path], object], sha256: str) -> Iterator[Path]:
        """Give the finished file beside its place; it's gone afterwards, unless it was moved."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor, new = new_file(self.path, ".partial-")
            os.close(descriptor)
            arrived = new.rename(new.with_name(new.name + Path(name).suffix))
            try:
                fill(arrived)
                if sha256 and sha256_of(arrived) != sha256:
                    raise ResultsNotStored(f"{name} isn't what was stored", remedy="Try again.")
                yield arrived
            finally:
                arrived.unlink(missing_ok=True)
        except OSError as error:
            raise self._problem(error) from error

    def copy(self, path: Path) -> Path:
        """Copy a file into the folder, as `write` does."""
        return self.write(path.name, lambda arrived: shutil.copyfile(path, arrived))

    def _problem(self, error: OSError) -> DiskFull | InvalidSettings:
        where = f"{self._option} {self.path}"
        if full := as_disk_full(error):
            return DiskFull(f"{where}: {full.message}", remedy=full.remedy)
        return InvalidSettings(f"{where}: {error.strerror or error}", remedy=_REMEDY)


class NamedFile:
    """The file of an option such as ``--output``, which must not exist."""

    def __init__(self, path: Path, option: str = "--output") -> None:
        self.path = local_path(path, InvalidSettings, option).absolute()
        self._option = option
        self._folder = OutputFolder(self.path.parent, option)

    def check(self) -> None:
        """Raise `InvalidSettings` if it exists, and what `OutputFolder.check` raises."""
        if os.path.lexists(self.path):
            raise self._taken()
        self._folder.check()

    def write(self, fill: Callable[[Path], object], sha256: str = "") -> Path:
        """Write it as `OutputFolder.write` does; raises `InvalidSettings` if it exists by now."""
        with self._folder.arriving(self.path.name, fill, sha256) as arrived:
            if not put_in_place(arrived, self.path):
                raise self._taken()
        return self.path

    def _taken(self) -> InvalidSettings:
        return InvalidSettings(
            f"{self._option} {self.path} exists, and no file is written over",
            remedy="Give another name, or remove it.",
        )


def numbered(name: str, number: int) -> str:
    """Return the name of the nth file of a name: ``cat.png``, ``cat-2.png``, ``cat-3.png``."""
    path = Path(name)
    return name if number == 1 else f"{path.stem}-{number}{path.suffix}"


def is_same_file(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes; one that isn't there, or no file, is no such file."""
    if one.is_symlink() or not one.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    return sha256_of(one) == sha256_of(other)


def put_in_place(arrived: Path, target: Path) -> bool:
    """Give a file its name unless that is taken; return whether it has it now."""
    try:
        os.link(arrived, target)
    except FileExistsError:
        return False
    except OSError:  # a file system without links: take the name first
        try:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError:
            return False
        arrived.replace(target)
    return True


def copied(
    folder: OutputFolder | None, paths: Iterable[Path], kept: str
) -> tuple[list[Path], TransferFailed | None]:
    """Copy finished files into the folder, if one is given, as `written` does."""
    if folder is None:
        return [], None
    return written([(path.name, partial(folder.copy, path)) for path in paths], kept)


def written(
    writes: Iterable[tuple[str, Callable[[], Path]]], kept: str
) -> tuple[list[Path], TransferFailed | None]:
    """Write named files; return their paths, and an error that names those that failed.

    ``kept`` says how the user still gets them.
    """
    paths: list[Path] = []
    problems: list[str] = []
    for name, write in writes:
        try:
            paths.append(write())
        except LoradashError as error:
            problems.append(
                f"{name}: {error.message}" if name not in error.message else error.message
            )
    if not problems:
        return paths, None
    of = counted(len(problems) + len(paths), "file")
    failed = TransferFailed(
        f"{len(problems)} of {of} could not be written, but nothing is lost",
        problems=problems, remedy=kept,
    )  # fmt: skip
    return paths, failed
