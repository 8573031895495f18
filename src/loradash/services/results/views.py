"""What is said of results: what lists, downloads and deletions return. JSON is made elsewhere."""

from datetime import datetime
from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict

from loradash.domain.artifacts import ADAPTER_KINDS, ResultType


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class FileView(_View):
    """A stored result as lists show it.

    ``filename`` is what the file is called where it is saved: its own ``name``, with the end of its
    process's id if another one beside it has the same. ``address`` is the key with its bucket, or
    the key alone without one.
    """

    process_id: str
    kind: str
    """One of `ArtifactKind`, or what a newer loradash has stored."""
    key: str
    address: str
    name: str
    filename: str
    size_bytes: int
    sha256: str
    created_at: datetime

    @property
    def is_adapter(self) -> bool:
        """Whether lists show it among the adapters."""
        return self.kind in ADAPTER_KINDS

    @property
    def id(self) -> str:
        """An id that no other file of a list has, unless two of one process have one name."""
        return f"{self.process_id}_{PurePosixPath(self.name).stem}"


class ModelView(_View):
    """A finished adapter: its file, the name it is shown with, and what its training was about."""

    file: FileView
    name: str
    steps: int | float | None = None
    trigger_word: str | None = None
    base_model: str | None = None


class ModelPage(_View):
    """Some finished adapters, the newest first; ``next_cursor`` is None after the last ones.

    ``missing`` are the keys of listed adapters whose objects the store hasn't got.
    """

    models: tuple[ModelView, ...]
    next_cursor: str | None = None
    missing: tuple[str, ...] = ()


class FilePage(_View):
    """Some adapters and images; ``next_cursor`` and ``missing`` as in `ModelPage`."""

    files: tuple[FileView, ...]
    next_cursor: str | None = None
    missing: tuple[str, ...] = ()

    @property
    def adapters(self) -> tuple[FileView, ...]:
        """The adapters among the files."""
        return tuple(file for file in self.files if file.is_adapter)

    @property
    def images(self) -> tuple[FileView, ...]:
        """The images and previews among the files."""
        return tuple(file for file in self.files if not file.is_adapter)


class Download(_View):
    """A file for a client: its content, or where it is. One of ``data`` and ``url`` is None.

    ``key`` is '' for a file that isn't stored as such, as a zip file of several results.
    """

    filename: str
    size_bytes: int
    key: str = ""
    data: bytes | None = None
    url: str | None = None


class LinkedFile(_View):
    """A result with the link to it; ``url`` is None for a client that has the store itself."""

    file: FileView
    url: str | None


class BulkDownload(_View):
    """Links to several results, and one to all of them if there are several and a server."""

    items: tuple[LinkedFile, ...]
    zip_url: str | None

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(item.file.size_bytes for item in self.items)


class DeletionReport(_View):
    """What a deletion has removed from the store."""

    result_type: ResultType
    deleted: int
    freed_bytes: int
