"""Replies to requests about processes: starting, listing and ending them."""

from loradash.domain.generation import parse_generation_text
from loradash.domain.ids import key_of_client
from loradash.protocol import requests
from loradash.protocol.context import Context, Reply
from loradash.protocol.process_json import process_detail_json, process_json
from loradash.runtime.owner import this_owner
from loradash.services.processes.starting import StartedProcess, Submission
from loradash.services.use_cases import Services


def train(services: Services, request: requests.TrainRequest, context: Context) -> Reply:
    """Check a training and queue it."""
    submission = _submission(request, context)
    if extend := request.extend:
        return _started(
            services.starting.extend(extend.process_id, extend.steps, extend.name, submission)
        )
    return _started(services.starting.train(request.document, request.text, submission))


def generate(services: Services, request: requests.GenerateRequest, context: Context) -> Reply:
    """Check a generation and queue it; direct fields come before those of the config."""
    settings = request.fields()
    if request.document is not None:
        parsed = parse_generation_text(request.text).model_dump(exclude_unset=True)
        if "prompts" in settings:
            parsed.pop("prompt_settings", None)  # of the config's own prompts
        settings = {**parsed, **settings}
    return _started(services.starting.generate(settings, _submission(request, context)))


def list_processes(
    services: Services, request: requests.ProcessesRequest, context: Context
) -> Reply:
    """List processes by pages, with how many of each status there are."""
    del context
    counts = services.processes.counts()
    if request.is_overview:
        page = services.processes.overview(request.limit, counts)
    else:
        page = services.processes.page(
            kind=request.kind, statuses=request.status, limit=request.limit, cursor=request.cursor
        )
    total = sum(counts.values())
    in_store = total if services.records_in_store else 0
    where = "the object store" if services.records_in_store else "the database"
    return {  # no "status" beside "processes": the published client would then drop half of it
        "processes": [process_json(view) for view in page.processes],
        "next_cursor": page.next_cursor or None,
        "counts": {str(status): number for status, number in counts.items()},
        "total": total,
        "environment": services.health.environment,
        "worker_id": this_owner(),
        "note": f"{len(page.processes)} of {total} processes, from the records in {where}",
        "data_sources": {
            "s3_processes": in_store, "local_processes": total - in_store, "total": total,
        },
    }  # fmt: skip


def process_status(
    services: Services, request: requests.ProcessStatusRequest, context: Context
) -> Reply:
    """Describe one process, with log lines and measurements if asked for."""
    del context
    process = process_detail_json(services.processes.get(request.process_id))
    reply = {**process, "process": process}
    del reply["error"]  # a worker's queue would take the whole reply for an error
    del reply["warnings"]  # beside a reply they are about the request
    if request.log_after is not None:
        lines = services.processes.log(request.process_id, request.log_after, request.log_limit)
        reply["log"] = [line.model_dump(mode="json") for line in lines]
    if request.metrics_after is not None:
        rows = services.processes.metrics(
            request.process_id, request.metrics_after, request.metrics_limit
        )
        reply["metrics"] = [row.model_dump(mode="json") for row in rows]
    return reply


def cancel(services: Services, request: requests.CancelRequest, context: Context) -> Reply:
    """Ask for the end of a process."""
    del context
    record = services.processes.cancel(request.process_id)
    said = "was cancelled" if record.status.is_end else "is being stopped"
    return {
        "message": f"process {record.id} {said}",
        "process_id": record.id,
        "process_status": str(record.status),
    }


def _submission(
    request: requests.TrainRequest | requests.GenerateRequest, context: Context
) -> Submission:
    given = request.idempotency_key
    return Submission(
        request_id=context.request_id, priority=request.priority,
        idempotency_key=key_of_client(given) if given else context.idempotency_key,
    )  # fmt: skip


def _started(process: StartedProcess) -> Reply:
    return {
        "process_id": process.id,
        "data": {"process_id": process.id},
        "message": f"{process.kind} {process.id} is queued",
        "status": "started",
        **({"warnings": list(process.warnings)} if process.warnings else {}),
    }
