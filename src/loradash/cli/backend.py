"""Where a command's requests go: into this program's services, or to a running server.

Commands send the same requests as any client, so what they show is what every client sees.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, Self
from urllib.parse import quote

from loradash.errors import ServerUnreachable, TransferFailed, error_told
from loradash.settings import Settings

if TYPE_CHECKING:
    import httpx2

    from loradash.protocol.dispatch import Dispatcher
    from loradash.services.adapters.views import AdapterName, AdapterView
    from loradash.services.datasets.summary import DatasetSummary
    from loradash.services.datasets.upload_plan import PlannedFile
    from loradash.services.processes.service import ProcessService
    from loradash.services.processes.views import QueueView
    from loradash.services.results.views import DeletionReport, ModelPage
    from loradash.services.use_cases import Services
    from loradash.wiring.core import Core

POLL_S = 0.5
"""How often a server is asked for a process that is followed."""

_TIMEOUT_S = 300.0
_LONGEST_WAIT_S = 2.0  # a place in the queue changes with other processes
_PIECE_BYTES = 64 * 1024


class Backend(Protocol):
    """Answers requests. Errors are raised, not returned."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the reply to a request."""
        ...

    def send(self, file: "PlannedFile", path: Path, on_bytes: Callable[[int], None]) -> None:
        """Send one file of an upload, as its plan says."""
        ...

    def fetch(self, key: str, path: Path) -> None:
        """Write a result into a file of this machine."""
        ...

    def watching(self, process_id: str) -> AbstractContextManager[Callable[[], None]]:
        """Lend a call that waits until a process may have changed, for a moment at most."""
        ...

    def resume(self, process_id: str) -> None:
        """Queue a failed or cancelled process again."""
        ...

    def queue(self, action: str) -> "QueueView":
        """Show, pause or resume the queue."""
        ...

    def models(self, limit: int, cursor: str) -> "ModelPage":
        """Return trained LoRAs, the newest first."""
        ...

    def adapter(self, reference: str) -> "AdapterView":
        """Return what is known of a trained LoRA, by its id or name."""
        ...

    def rename_adapter(self, reference: str, name: str) -> "AdapterName":
        """Change the name that a trained LoRA is shown with."""
        ...

    def delete_adapter(self, reference: str) -> "DeletionReport":
        """Delete a trained LoRA."""
        ...

    def datasets(self) -> "tuple[DatasetSummary, ...]":
        """Return the stored datasets by name."""
        ...


def open_core(settings: Settings, *, threads: int = 0) -> "Core":
    """Return the parts that run processes in this program; only warnings reach the terminal."""
    import sys

    from loradash.telemetry import logging
    from loradash.wiring.core import make_core

    logging.configure(None, "warning", as_json=False, stream=sys.stderr)
    return make_core(settings, threads=threads)


def backend(settings: Settings, *, timeout_s: float = _TIMEOUT_S) -> Backend:
    """Return the backend that the settings ask for; a server may take so long to answer."""
    if settings.server_url:
        return HttpBackend(settings.server_url, timeout_s)
    if settings.executor == "runpod":
        from loradash.wiring.core import for_workers_elsewhere

        return LocalBackend(for_workers_elsewhere(settings))
    return LocalBackend(settings)


class LocalBackend:
    """Works on this machine's registry and objects, whether a server runs or not."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._dispatcher: Dispatcher | None = None
        self._core: Core | None = None

    def __enter__(self) -> Self:
        from loradash.wiring.core import make_dispatcher

        self._core = open_core(self._settings)
        self._dispatcher = make_dispatcher(self._core)
        return self

    def __exit__(self, *_: object) -> None:
        if self._core:
            self._core.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """See `Backend.ask`."""
        assert self._dispatcher
        return _unless_error(self._dispatcher.answer(request))

    def send(self, file: "PlannedFile", path: Path, on_bytes: Callable[[int], None]) -> None:
        """See `Backend.send`; straight into the store."""
        assert self._core
        self._core.store.put_file(file.key, path, on_bytes)

    def fetch(self, key: str, path: Path) -> None:
        """See `Backend.fetch`."""
        assert self._core
        self._core.store.get_file(key, path)

    @contextmanager
    def watching(self, process_id: str) -> Iterator[Callable[[], None]]:
        """See `Backend.watching`; by the change feed, which costs less than asking again."""
        assert self._core
        with self._core.changes.listen(process_ids=[process_id]) as listener:

            def wait() -> None:
                listener.next(_LONGEST_WAIT_S)

            yield wait

    def resume(self, process_id: str) -> None:
        """See `Backend.resume`."""
        self._processes.resume(process_id)

    def queue(self, action: str) -> "QueueView":
        """See `Backend.queue`."""
        if action != "show":
            self._processes.pause(action == "pause")
        return self._processes.queue()

    def models(self, limit: int, cursor: str) -> "ModelPage":
        """See `Backend.models`."""
        return self._services.results.lists.models(limit, cursor)

    def adapter(self, reference: str) -> "AdapterView":
        """See `Backend.adapter`."""
        return self._services.adapters.show(reference)

    def rename_adapter(self, reference: str, name: str) -> "AdapterName":
        """See `Backend.rename_adapter`."""
        return self._services.adapters.rename(reference, name)

    def delete_adapter(self, reference: str) -> "DeletionReport":
        """See `Backend.delete_adapter`."""
        return self._services.adapters.delete(reference)

    def datasets(self) -> "tuple[DatasetSummary, ...]":
        """See `Backend.datasets`."""
        return self._services.datasets.details.all()

    @property
    def _services(self) -> "Services":
        assert self._dispatcher
        return self._dispatcher.services

    @property
    def _processes(self) -> "ProcessService":
        return self._services.processes


class HttpBackend:
    """Talks to a server's job API."""

    def __init__(self, url: str, timeout_s: float = _TIMEOUT_S) -> None:
        import httpx2

        self._url = url.rstrip("/")
        self._http = httpx2.Client(timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """See `Backend.ask`."""
        job = self._send("POST", "/v2/local/runsync?wait=300000", {"input": request})
        if job.get("status") != "COMPLETED":
            raise ServerUnreachable(
                f"{self._url} has not answered in time (job {job.get('id')})",
                remedy="Check the server and its log.",
            )
        output: dict[str, Any] = job["output"]
        return output

    def send(self, file: "PlannedFile", path: Path, on_bytes: Callable[[int], None]) -> None:
        """See `Backend.send`; to where the server has said, which may be the object store."""
        import httpx2

        if file.url is None:
            raise TransferFailed(f"{file.filename}: the server names no place to send it to")
        headers = {name.lower(): value for name, value in file.headers.items()}
        headers["content-length"] = str(path.stat().st_size)  # stores take no other bodies
        try:
            with path.open("rb") as opened:
                pieces = _pieces(opened, on_bytes)
                response = self._http.put(file.url, content=pieces, headers=headers)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ServerUnreachable(
                f"not sent: {error or type(error).__name__}", remedy="Try again."
            ) from error
        if not response.is_success:
            raise TransferFailed(f"refused with {response.status_code}: {_reason(response)}")

    def fetch(self, key: str, path: Path) -> None:
        """See `Backend.fetch`."""
        import httpx2

        partial = path.with_name(f".{path.name}.partial")
        try:
            with (
                self._http.stream(
                    "GET", f"{self._url}/files/{quote(key)}", follow_redirects=True
                ) as response,
                partial.open("wb") as file,
            ):
                if not response.is_success:
                    response.read()
                    raise TransferFailed(f"{key}: {_reason(response)}")
                for piece in response.iter_bytes(_PIECE_BYTES):
                    file.write(piece)
            partial.replace(path)
        except httpx2.HTTPError as error:
            raise ServerUnreachable(
                f"{key}: {error or type(error).__name__}",
                remedy="The process is completed; fetch its files again from the server.",
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def watching(self, process_id: str) -> Iterator[Callable[[], None]]:
        """See `Backend.watching`."""
        del process_id
        yield lambda: time.sleep(POLL_S)

    def resume(self, process_id: str) -> None:
        """See `Backend.resume`."""
        self._send("POST", f"/v2/local/retry/{process_id}")

    def queue(self, action: str) -> "QueueView":
        """See `Backend.queue`."""
        from loradash.protocol.reply_reading import queue_of

        if action != "show":
            self._send("POST", f"/queue/{action}")
        return queue_of(self._send("GET", "/queue"))

    def models(self, limit: int, cursor: str) -> "ModelPage":
        """See `Backend.models`."""
        from loradash.protocol.reply_reading import models_of

        more = {"cursor": cursor} if cursor else {}
        return models_of(self.ask(type="list_models", limit=limit, **more))

    def adapter(self, reference: str) -> "AdapterView":
        """See `Backend.adapter`."""
        from loradash.protocol.reply_reading import adapter_of

        return adapter_of(self._send("GET", _model_path(reference)))

    def rename_adapter(self, reference: str, name: str) -> "AdapterName":
        """See `Backend.rename_adapter`."""
        from loradash.protocol.reply_reading import adapter_name_of

        return adapter_name_of(self._send("PATCH", _model_path(reference), {"name": name}))

    def delete_adapter(self, reference: str) -> "DeletionReport":
        """See `Backend.delete_adapter`."""
        from loradash.protocol.reply_reading import deletion_of

        return deletion_of(self._send("DELETE", _model_path(reference)))

    def datasets(self) -> "tuple[DatasetSummary, ...]":
        """See `Backend.datasets`."""
        from loradash.protocol.reply_reading import datasets_of

        return datasets_of(self.ask(type="list_dataset_folders"))

    def _send(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        import httpx2

        try:
            response = self._http.request(method, self._url + path, json=body)
            reply = response.json()
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            raise ServerUnreachable(
                f"{self._url}: {error or type(error).__name__}",
                remedy="Start it with `loradash up`, or correct LORADASH_URL.",
            ) from error
        if not isinstance(reply, dict):
            raise ServerUnreachable(
                f"{self._url} isn't a loradash server", remedy="Correct LORADASH_URL."
            )
        return _unless_error(reply)


def _model_path(reference: str) -> str:
    return f"/models/{quote(reference, safe='')}"


def _pieces(file: IO[bytes], on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece
        on_bytes(len(piece))


def _reason(response: "httpx2.Response") -> str:
    """What a server or an object store says in a reply that refuses a file."""
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        found = re.search(r"<Message>([^<]*)</Message>", response.text[:10_000])
        return found[1] if found else response.reason_phrase


def _unless_error(reply: dict[str, Any]) -> dict[str, Any]:
    if "error" in reply and ("process_id" not in reply or reply.get("status") == "FAILED"):
        raise error_told(str(reply["error"]))
    return reply
