"""Where commands look into datasets and change them: on this machine, or on a running server."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

from loradash.errors import ServerUnreachable, error_told
from loradash.protocol.reply_reading import view_of
from loradash.settings import Settings

if TYPE_CHECKING:
    import httpx2

    from loradash.services.datasets.details import Caption, ImagePage
    from loradash.services.datasets.editing import DatasetEditor
    from loradash.services.datasets.upload_results import UploadResult

_TIMEOUT_S = 1800.0  # a server may fetch and check a large file before it answers
_PIECE_BYTES = 2**20

Reply = dict[str, Any]


class DatasetTarget(Protocol):
    """Datasets by name. What is returned is the same, wherever they are; errors are raised."""

    def images(self, name: str, *, limit: int, cursor: str, text: str) -> "ImagePage":
        """Return some of the images with their captions."""
        ...

    def delete(self, name: str) -> int:
        """Delete a dataset; return how many files it had."""
        ...

    def remove(self, name: str, files: list[str]) -> tuple[str, ...]:
        """Remove files, all or none; return the names of all that were removed."""
        ...

    def caption(self, name: str, image: str) -> "Caption":
        """Return an image's caption."""
        ...

    def write_caption(self, name: str, image: str, text: str) -> "Caption":
        """Set an image's caption."""
        ...

    def zip(self, name: str, write: Callable[[bytes], object]) -> None:
        """Write a dataset as the pieces of a zip file."""
        ...

    def import_zip(self, name: str, path: Path, *, replace: bool) -> "UploadResult":
        """Store what is in a zip file of this machine."""
        ...

    def import_url(self, name: str, url: str, *, replace: bool) -> "UploadResult":
        """Store what is at a web address."""
        ...


@contextmanager
def dataset_target(settings: Settings) -> Iterator[DatasetTarget]:
    """Open what the settings ask for."""
    if settings.server_url:
        import httpx2

        with httpx2.Client(timeout=_TIMEOUT_S) as http:
            yield ServerDatasets(http, settings.server_url)
        return
    from loradash.cli.backend import open_core
    from loradash.wiring.core import make_dispatcher

    core = open_core(settings)
    try:
        yield LocalDatasets(make_dispatcher(core).services.dataset_editor)
    finally:
        core.close()


class LocalDatasets:
    """Datasets in the object store of this machine's settings."""

    def __init__(self, editor: "DatasetEditor") -> None:
        self._editor = editor

    def images(self, name: str, *, limit: int, cursor: str, text: str) -> "ImagePage":
        """See `DatasetTarget.images`."""
        return self._editor.details.images(name, limit=limit, cursor=cursor, text=text)

    def delete(self, name: str) -> int:
        """See `DatasetTarget.delete`."""
        return self._editor.delete(name)

    def remove(self, name: str, files: list[str]) -> tuple[str, ...]:
        """See `DatasetTarget.remove`."""
        return self._editor.remove(name, files)

    def caption(self, name: str, image: str) -> "Caption":
        """See `DatasetTarget.caption`."""
        return self._editor.details.caption(name, image)

    def write_caption(self, name: str, image: str, text: str) -> "Caption":
        """See `DatasetTarget.write_caption`."""
        return self._editor.write_caption(name, image, text)

    def zip(self, name: str, write: Callable[[bytes], object]) -> None:
        """See `DatasetTarget.zip`."""
        for piece in self._editor.zip(name):
            write(piece)

    def import_zip(self, name: str, path: Path, *, replace: bool) -> "UploadResult":
        """See `DatasetTarget.import_zip`."""
        return self._editor.import_zip(name, path, replace=replace)

    def import_url(self, name: str, url: str, *, replace: bool) -> "UploadResult":
        """See `DatasetTarget.import_url`."""
        return self._editor.import_url(name, url, replace=replace)


class ServerDatasets:
    """Datasets of a running server."""

    def __init__(self, http: "httpx2.Client", url: str) -> None:
        self._http = http
        self._url = url.rstrip("/")

    def images(self, name: str, *, limit: int, cursor: str, text: str) -> "ImagePage":
        """See `DatasetTarget.images`."""
        wanted = {"limit": limit, "cursor": cursor, "text": text}
        from loradash.services.datasets.details import ImagePage

        return view_of(ImagePage, self._ask("GET", _path(name), params=wanted))

    def delete(self, name: str) -> int:
        """See `DatasetTarget.delete`."""
        return int(self._ask("DELETE", _path(name))["deleted_files"])

    def remove(self, name: str, files: list[str]) -> tuple[str, ...]:
        """See `DatasetTarget.remove`."""
        return tuple(self._ask("POST", f"{_path(name)}/remove", json={"files": files})["removed"])

    def caption(self, name: str, image: str) -> "Caption":
        """See `DatasetTarget.caption`."""
        from loradash.services.datasets.details import Caption

        return view_of(Caption, self._ask("GET", f"{_path(name)}/captions/{quote(image)}"))

    def write_caption(self, name: str, image: str, text: str) -> "Caption":
        """See `DatasetTarget.write_caption`."""
        from loradash.services.datasets.details import Caption

        path = f"{_path(name)}/captions/{quote(image)}"
        return view_of(Caption, self._ask("PUT", path, json={"text": text}))

    def zip(self, name: str, write: Callable[[bytes], object]) -> None:
        """See `DatasetTarget.zip`."""
        with (
            self._translated(),
            self._http.stream("GET", f"{self._url}{_path(name)}/zip") as response,
        ):
            if not response.is_success:
                response.read()
                _reply(response, self._url)
            for piece in response.iter_raw(_PIECE_BYTES):
                write(piece)

    def import_zip(self, name: str, path: Path, *, replace: bool) -> "UploadResult":
        """See `DatasetTarget.import_zip`."""
        from loradash.services.datasets.upload_results import UploadResult

        headers = {
            "Content-Type": "application/zip",
            "Content-Length": str(path.stat().st_size),
        }
        with path.open("rb") as file:
            reply = self._ask(
                "POST", f"{_path(name)}/zip", params={"replace": replace}, headers=headers,
                content=iter(lambda: file.read(_PIECE_BYTES), b""),
            )  # fmt: skip
        return view_of(UploadResult, reply)

    def import_url(self, name: str, url: str, *, replace: bool) -> "UploadResult":
        """See `DatasetTarget.import_url`."""
        from loradash.services.datasets.upload_results import UploadResult

        wanted = {"url": url, "replace": replace}
        return view_of(UploadResult, self._ask("POST", f"{_path(name)}/import", json=wanted))

    def _ask(self, method: str, path: str, **request: Any) -> Reply:
        with self._translated():
            return _reply(self._http.request(method, self._url + path, **request), self._url)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        import httpx2

        try:
            yield
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ServerUnreachable(
                f"{self._url}: {error or type(error).__name__}",
                remedy="Start it with `loradash up`, or correct LORADASH_URL.",
            ) from error


def _path(name: str) -> str:
    return f"/datasets/{quote(name, safe='')}"


def _reply(response: "httpx2.Response", url: str) -> Reply:
    """Return a reply's document. Raises `LoradashError` with what the server says is wrong."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ServerUnreachable(
            f"{url} isn't a loradash server, or an older one", remedy="Correct LORADASH_URL."
        )
    if not response.is_success:
        raise error_told(str(document.get("error", response.reason_phrase)))
    return document
