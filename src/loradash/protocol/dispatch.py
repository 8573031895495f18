"""One request in, one reply out: the table from a request's type to its handler.

Every entry point (HTTP, a queue's worker, the command line) hands the client's ``input`` in here.
Nothing escapes: whatever goes wrong becomes ``{"error": text}`` and nothing else, which is the
only form that published clients recognize as an error.
"""

import time
import traceback
from collections.abc import Callable, Mapping
from secrets import token_hex
from typing import Any

import structlog

from loradash.errors import LoradashError
from loradash.protocol import datasets, processes, requests, results, system
from loradash.protocol.context import Context, Reply
from loradash.protocol.requests import AnyRequest, parse_request, unknown_fields
from loradash.runtime.patience import AWAY
from loradash.services.use_cases import Services
from loradash.storage.disk import as_disk_full
from loradash.telemetry.logging import bound
from loradash.telemetry.masking import masked
from loradash.telemetry.metrics import Metrics, Outcome

log = structlog.get_logger("loradash.requests")


class Dispatcher:
    """Answers requests; thread-safe."""

    def __init__(self, services: Services, metrics: Metrics, *, debug: bool = False) -> None:
        self.services = services
        self._metrics = metrics
        self._debug = debug

    def answer(
        self,
        data: object,
        *,
        base_url: str = "",
        request_id: str = "",
        idempotency_key: str = "",
        waits: bool = False,
        follows_links: bool = True,
    ) -> Reply:
        """Return the reply to a client's ``input``: JSON-ready, or exactly ``{"error": text}``.

        With ``waits`` what may pass by itself (`AWAY`) is raised: the caller tries again.
        ``follows_links`` is `Context.follows_links`.
        """
        context = Context(request_id or new_request_id(), base_url, idempotency_key, follows_links)
        began_s = time.monotonic()
        kind, error_text = "unknown", ""
        outcome: Outcome = "ok"
        with bound(request_id=context.request_id):
            try:
                request = parse_request(data)
                kind = request.type
                reply = _HANDLERS[type(request)](self.services, request, context)
                if warnings := unknown_fields(request):
                    reply["warnings"] = [*reply.get("warnings", ()), *warnings]
                reply["request_id"] = context.request_id
            except LoradashError as error:
                if waits and isinstance(error, AWAY):
                    raise
                outcome, error_text = "invalid", error.message
                kind = kind if kind != "unknown" else _type_named(data)
                reply = self._error(str(error), error)
            except Exception as error:
                outcome, error_text = "error", f"{type(error).__name__}: {error}"
                log.exception("request_broke", type=kind)
                text = (
                    f"internal error ({type(error).__name__}); see {context.request_id} in the "
                    "server's log"
                )
                reply = self._error(str(as_disk_full(error) or text), error)
            seconds = time.monotonic() - began_s
            self._metrics.observe_request(kind, outcome, seconds, error_text)
            log.info(
                "request_answered", type=kind, outcome=outcome, seconds=round(seconds, 4),
                **({"error": error_text} if error_text else {}),
            )  # fmt: skip
        return reply

    def _error(self, text: str, error: Exception) -> Reply:
        if self._debug:
            text = f"{text}\n{''.join(traceback.format_exception(error))}"
        return {"error": masked(text)}


def new_request_id() -> str:
    """Return a fresh id that stands in the reply, in the log and in the record."""
    return f"req_{token_hex(8)}"


def _type_named(data: object) -> str:
    """The type of a request that couldn't be parsed, if it is one of ours."""
    kind = data.get("type") if isinstance(data, Mapping) else None
    return kind if isinstance(kind, str) and kind in requests.REQUEST_TYPES else "unknown"


_HANDLERS: Mapping[type[AnyRequest], Callable[[Services, Any, Context], Reply]] = {
    requests.HealthRequest: system.health,
    requests.TrainRequest: processes.train,
    requests.GenerateRequest: processes.generate,
    requests.ProcessesRequest: processes.list_processes,
    requests.ProcessStatusRequest: processes.process_status,
    requests.CancelRequest: processes.cancel,
    requests.DownloadRequest: results.download,
    requests.DownloadByKeyRequest: results.download_by_key,
    requests.DownloadFileRequest: results.download_file,
    requests.BulkDownloadRequest: results.bulk_download,
    requests.ListModelsRequest: results.list_models,
    requests.ListFilesRequest: results.list_files,
    requests.DeleteResultsRequest: results.delete_results,
    requests.UploadRequest: datasets.upload,
    requests.CreateUploadRequest: datasets.create_upload,
    requests.CompleteUploadRequest: datasets.complete_upload,
    requests.AbortUploadRequest: datasets.abort_upload,
    requests.ListDatasetFoldersRequest: datasets.list_dataset_folders,
    requests.ClearLogsRequest: system.clear_logs,
}
