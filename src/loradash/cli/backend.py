"""Where a command's requests go: into this program's services, or to a running server.

Commands send the same requests as any client, so what they show is what every client sees.
"""

from typing import TYPE_CHECKING, Any, Protocol, Self

from loradash.errors import LoradashError, ServerUnreachable
from loradash.settings import Settings

if TYPE_CHECKING:
    from loradash.services.dispatch import Dispatcher
    from loradash.wiring import Core

_TIMEOUT_S = 300.0


class Backend(Protocol):
    """Answers requests. Errors are raised, not returned."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the reply to a request."""
        ...

    def resume(self, process_id: str) -> None:
        """Queue a failed or cancelled process again."""
        ...

    def queue(self, action: str) -> dict[str, Any]:
        """Show, pause or resume the queue."""
        ...


def open_core(settings: Settings, *, threads: int = 0) -> "Core":
    """Return the parts that run processes in this program; only warnings reach the terminal."""
    import sys

    from loradash.telemetry import logging
    from loradash.wiring import make_core

    logging.configure(None, "warning", as_json=False, stream=sys.stderr)
    return make_core(settings, threads=threads)


def backend(settings: Settings) -> Backend:
    """Return the backend that the settings ask for."""
    if settings.server_url:
        return HttpBackend(settings.server_url)
    return LocalBackend(settings)


class LocalBackend:
    """Works on this machine's registry and objects, whether a server runs or not."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._dispatcher: Dispatcher | None = None
        self._core: Core | None = None

    def __enter__(self) -> Self:
        from loradash.wiring import make_dispatcher

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

    def resume(self, process_id: str) -> None:
        """See `Backend.resume`."""
        self._processes.resume(process_id)

    def queue(self, action: str) -> dict[str, Any]:
        """See `Backend.queue`."""
        if action != "show":
            self._processes.pause(action == "pause")
        state: dict[str, Any] = self._processes.queue()
        return state

    @property
    def _processes(self) -> Any:
        assert self._dispatcher
        return self._dispatcher.services.processes


class HttpBackend:
    """Talks to a server's job API."""

    def __init__(self, url: str) -> None:
        import httpx2

        self._url = url.rstrip("/")
        self._http = httpx2.Client(timeout=_TIMEOUT_S)

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
                remedy="Look at the server.",
            )
        output: dict[str, Any] = job["output"]
        return output

    def resume(self, process_id: str) -> None:
        """See `Backend.resume`."""
        self._send("POST", f"/v2/local/retry/{process_id}")

    def queue(self, action: str) -> dict[str, Any]:
        """See `Backend.queue`."""
        if action != "show":
            self._send("POST", f"/queue/{action}")
        return self._send("GET", "/queue")

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


def _unless_error(reply: dict[str, Any]) -> dict[str, Any]:
    if "error" in reply and ("process_id" not in reply or reply.get("status") == "FAILED"):
        raise LoradashError(str(reply["error"]))
    return reply
