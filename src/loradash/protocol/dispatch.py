"""One request in, one reply out: the table from a request's type to the use case behind it.

Every entry point (HTTP, a queue's worker, the command line) hands the client's ``input`` in here.
Nothing escapes: whatever goes wrong becomes ``{"error": text}`` and nothing else, which is the
only form that published clients recognize as an error.
"""

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import structlog

from loradash.domain import requests
from loradash.domain.generation import GenerationRequest, parse_generation_text
from loradash.domain.ids import key_of_client
from loradash.domain.native_sizes import users_text
from loradash.domain.requests import AnyRequest, parse_request, unknown_fields
from loradash.domain.schema import validate
from loradash.domain.sizes import counted
from loradash.domain.training_text import parse_training
from loradash.errors import InvalidRequest, LoradashError
from loradash.executors.executor import Executor
from loradash.runtime.owner import this_owner
from loradash.runtime.patience import AWAY
from loradash.services.adapters.service import AdapterService
from loradash.services.datasets.editing import DatasetEditor
from loradash.services.datasets.store import DatasetStore
from loradash.services.datasets.upload_sessions import UploadSessions
from loradash.services.generation.service import GenerationService
from loradash.services.path_policy import PathPolicy
from loradash.services.processes.service import ProcessService
from loradash.services.results.service import ResultService
from loradash.services.system.health import HealthService
from loradash.services.system.log_files import LogFiles
from loradash.services.training.service import TrainingService
from loradash.storage.disk import as_disk_full
from loradash.telemetry.logging import bound
from loradash.telemetry.masking import masked
from loradash.telemetry.metrics import Metrics, Outcome

log = structlog.get_logger("loradash.requests")

Reply = dict[str, Any]


@dataclass(frozen=True)
class Context:
    """What a use case may need to know of where its request came from."""

    request_id: str
    base_url: str = ""
    idempotency_key: str = ""
    """Makes the same process of the same request, if the client gives no key of its own."""
    follows_links: bool = True
    """Whether a file that is too large for a reply may come as a link to it."""


@dataclass(frozen=True)
class Services:
    """The use cases."""

    training: TrainingService
    generation: GenerationService
    processes: ProcessService
    results: ResultService
    adapters: AdapterService
    datasets: DatasetStore
    uploads: UploadSessions
    dataset_editor: DatasetEditor
    health: HealthService
    executor: Executor
    log_files: LogFiles
    path_policy: PathPolicy
    records_in_store: bool = False
    """The records lie in the object store, where all workers see them, and not in a database."""


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


def _health(services: Services, request: requests.HealthRequest, context: Context) -> Reply:
    del request, context
    return services.health.report()


def _train(services: Services, request: requests.TrainRequest, context: Context) -> Reply:
    text = ""
    if extend := request.extend:
        checked = services.training.check_extension(
            extend.process_id, extend.steps, extend.name, services.path_policy
        )
    else:
        config = parse_training(request.document)
        checked = services.training.quick_check(config, services.path_policy)
        text = users_text(request.text, checked.config)
    record = services.training.submit(
        checked, text,
        request_id=context.request_id, priority=request.priority,
        key=_key(request.idempotency_key, context),
    )  # fmt: skip
    services.executor.submitted(record.id)
    return _started(record.id, "training", checked.warnings)


def _key(given: str | None, context: Context) -> str:
    return key_of_client(given) if given else context.idempotency_key


def _generate(services: Services, request: requests.GenerateRequest, context: Context) -> Reply:
    fields = request.fields()
    if request.document is not None:
        parsed = parse_generation_text(request.text).model_dump(exclude_unset=True)
        if "prompts" in fields:
            parsed.pop("prompt_settings", None)  # of the config's own prompts
        fields = {**parsed, **fields}
    if "base_model" not in fields:
        if not fields.get("adapters"):
            raise InvalidRequest(
                "base_model: missing",
                remedy="Send base_model, or an adapter that says which one it belongs to.",
            )
        # The adapter knows; only well-formed ones can be asked.
        probe = validate(GenerationRequest, {**fields, "base_model": "unknown"}, "generate")
        for use in probe.adapters:
            services.generation.check_adapter(use.path, services.path_policy)
        fields["base_model"] = services.generation.base_model_of(probe.adapters[0].path)
    wanted = validate(GenerationRequest, fields, "generate")
    wanted = services.generation.check(wanted, services.path_policy)
    record = services.generation.submit(
        wanted, request_id=context.request_id, priority=request.priority,
        key=_key(request.idempotency_key, context),
    )  # fmt: skip
    services.executor.submitted(record.id)
    return _started(record.id, "generation", wanted.warnings)


def _started(process_id: str, what: str, warnings: tuple[str, ...]) -> Reply:
    return {
        "process_id": process_id,
        "data": {"process_id": process_id},
        "message": f"{what} {process_id} is queued",
        "status": "started",
        **({"warnings": list(warnings)} if warnings else {}),
    }


def _processes(services: Services, request: requests.ProcessesRequest, context: Context) -> Reply:
    del context
    counts = services.processes.counts()
    if request.is_overview:
        found, cursor = services.processes.overview(request.limit, counts)
    else:
        found, cursor = services.processes.page(
            kind=request.kind, statuses=request.status, limit=request.limit, cursor=request.cursor
        )
    total = sum(counts.values())
    in_store = total if services.records_in_store else 0
    where = "the object store" if services.records_in_store else "the database"
    return {  # no "status" beside "processes": the published client would then drop half of it
        "processes": found,
        "next_cursor": cursor or None,
        "counts": {str(status): number for status, number in counts.items()},
        "total": total,
        "environment": services.health.environment,
        "worker_id": this_owner(),
        "note": f"{len(found)} of {total} processes, from the records in {where}",
        "data_sources": {
            "s3_processes": in_store, "local_processes": total - in_store, "total": total,
        },
    }  # fmt: skip


def _process_status(
    services: Services, request: requests.ProcessStatusRequest, context: Context
) -> Reply:
    del context
    process = services.processes.get(request.process_id)
    reply = {**process, "process": process}
    del reply["error"]  # a worker's queue would take the whole reply for an error
    if request.log_after is not None:
        lines = services.processes.log(request.process_id, request.log_after, request.log_limit)
        reply["log"] = [line.model_dump(mode="json") for line in lines]
    if request.metrics_after is not None:
        rows = services.processes.metrics(
            request.process_id, request.metrics_after, request.metrics_limit
        )
        reply["metrics"] = [row.model_dump(mode="json") for row in rows]
    return reply


def _cancel(services: Services, request: requests.CancelRequest, context: Context) -> Reply:
    del context
    record = services.processes.cancel(request.process_id)
    said = "was cancelled" if record.status.is_end else "is being stopped"
    return {
        "message": f"process {record.id} {said}",
        "process_id": record.id,
        "process_status": str(record.status),
    }


def _download(services: Services, request: requests.DownloadRequest, context: Context) -> Reply:
    return services.results.download(
        request.process_id, request.s3_key, context.base_url, links=context.follows_links
    )


def _download_by_key(
    services: Services, request: requests.DownloadByKeyRequest, context: Context
) -> Reply:
    return services.results.by_key(request.s3_key, context.base_url, links=context.follows_links)


def _download_file(
    services: Services, request: requests.DownloadFileRequest, context: Context
) -> Reply:
    return services.results.by_path(
        request.file_path, context.base_url, links=context.follows_links
    )


def _bulk_download(
    services: Services, request: requests.BulkDownloadRequest, context: Context
) -> Reply:
    return services.results.bulk(
        request.process_ids, images=request.include_images, loras=request.include_loras,
        base_url=context.base_url,
    )  # fmt: skip


def _list_models(
    services: Services, request: requests.ListModelsRequest, context: Context
) -> Reply:
    del context
    return services.results.models(request.limit, request.cursor)


def _list_files(services: Services, request: requests.ListFilesRequest, context: Context) -> Reply:
    del context
    return services.results.files(
        request.path, request.limit, request.cursor, overview=request.is_overview
    )


def _delete_results(
    services: Services, request: requests.DeleteResultsRequest, context: Context
) -> Reply:
    del context
    return services.results.delete(request.ids, request.result_type)


def _upload(services: Services, request: requests.UploadRequest, context: Context) -> Reply:
    del context
    return services.datasets.upload(request).model_dump(mode="json")


def _create_upload(
    services: Services, request: requests.CreateUploadRequest, context: Context
) -> Reply:
    return services.uploads.create(request, context.base_url).model_dump(mode="json")


def _complete_upload(
    services: Services, request: requests.CompleteUploadRequest, context: Context
) -> Reply:
    del context
    result = services.uploads.complete(request.dataset_folder, request.upload_id)
    return result.model_dump(mode="json")


def _abort_upload(
    services: Services, request: requests.AbortUploadRequest, context: Context
) -> Reply:
    del context
    deleted = services.uploads.abort(request.dataset_folder, request.upload_id)
    return {
        "message": f"upload {request.upload_id} was aborted",
        "upload_id": request.upload_id,
        "dataset_folder": request.dataset_folder,
        "deleted": deleted,
    }


def _list_dataset_folders(
    services: Services, request: requests.ListDatasetFoldersRequest, context: Context
) -> Reply:
    del request, context
    datasets = services.datasets.list()
    return {
        "folders": [entry.name for entry in datasets],
        "datasets": [entry.model_dump(mode="json") for entry in datasets],
        "prefix": services.datasets.prefix,
    }


def _clear_logs(services: Services, request: requests.ClearLogsRequest, context: Context) -> Reply:
    del context
    cleared = services.log_files.clear(request.log_type)
    return {
        "message": f"{counted(len(cleared), 'log file')} cleared",
        "log_type": request.log_type,
        "cleared": [{"name": entry.name, "size": entry.size_bytes} for entry in cleared],
    }


_HANDLERS: Mapping[type[AnyRequest], Callable[[Services, Any, Context], Reply]] = {
    requests.HealthRequest: _health,
    requests.TrainRequest: _train,
    requests.GenerateRequest: _generate,
    requests.ProcessesRequest: _processes,
    requests.ProcessStatusRequest: _process_status,
    requests.CancelRequest: _cancel,
    requests.DownloadRequest: _download,
    requests.DownloadByKeyRequest: _download_by_key,
    requests.DownloadFileRequest: _download_file,
    requests.BulkDownloadRequest: _bulk_download,
    requests.ListModelsRequest: _list_models,
    requests.ListFilesRequest: _list_files,
    requests.DeleteResultsRequest: _delete_results,
    requests.UploadRequest: _upload,
    requests.CreateUploadRequest: _create_upload,
    requests.CompleteUploadRequest: _complete_upload,
    requests.AbortUploadRequest: _abort_upload,
    requests.ListDatasetFoldersRequest: _list_dataset_folders,
    requests.ClearLogsRequest: _clear_logs,
}
