"""A folder of small files that can be made again: bounded, the longest unused go first.

Several programs may share it. A name stands for its content for ever, so whoever writes first is
right.
"""

import contextlib
import os
import threading
from pathlib import Path

from loradash.errors import DiskFull
from loradash.storage.disk import arriving

_KEPT_SHARE = 0.9  # of what is allowed stays when it's too much, so that this isn't done each time


class CacheFolder:
    """Files by name; thread-safe. It is only made when something is put into it."""

    def __init__(self, root: Path, *, max_files: int, max_bytes: int) -> None:
        self._root = root
        self._max_files = max_files
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._counted: tuple[int, int] | None = None  # files and bytes, as far as we know

    def get(self, name: str) -> bytes | None:
        """Return a file's content, or None if it isn't there."""
        path = self._root / name
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # when it was used last
        return data

    def put(self, name: str, data: bytes) -> None:
        """Keep a file, as far as there is room. Failing costs only time, so nothing is raised."""
        with contextlib.suppress(OSError, DiskFull):
            with (
                arriving(self._root / name) as descriptor,
                os.fdopen(descriptor, "wb", closefd=False) as file,
            ):
                file.write(data)
            self._make_room(len(data))

    def _make_room(self, added_bytes: int) -> None:
        with self._lock:
            if self._counted is not None:
                files, size_bytes = self._counted
                self._counted = files + 1, size_bytes + added_bytes
            if self._counted is None or self._is_too_much(*self._counted):
                self._counted = self._trimmed()

    def _is_too_much(self, files: int, size_bytes: int) -> bool:
        return files > self._max_files or size_bytes > self._max_bytes

    def _trimmed(self) -> tuple[int, int]:
        """Look at the folder, and delete what was used longest ago if it holds too much."""
        found = []
        with os.scandir(self._root) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another program deletes too
                    facts = entry.stat()
                    found.append((facts.st_mtime_ns, facts.st_size, entry.path))
        files, size_bytes = len(found), sum(size for _, size, _ in found)
        if self._is_too_much(files, size_bytes):
            for _, size, path in sorted(found):
                if (
                    files <= self._max_files * _KEPT_SHARE
                    and size_bytes <= self._max_bytes * _KEPT_SHARE
                ):
                    break
                Path(path).unlink(missing_ok=True)
                files, size_bytes = files - 1, size_bytes - size
        return files, size_bytes
