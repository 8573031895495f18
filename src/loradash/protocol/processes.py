"""Replies to requests about processes: starting, listing and ending them."""

from loradash.domain import requests
from loradash.domain.generation import GenerationRequest, parse_generation_text
from loradash.domain.ids import key_of_client
from loradash.domain.native_sizes import users_text
from loradash.domain.schema import validate
from loradash.domain.training_text import parse_training
from loradash.errors import InvalidRequest
from loradash.protocol.context import Context, Reply
from loradash.protocol.process_json import process_detail_json, process_json
from loradash.runtime.owner import this_owner
from loradash.services.use_cases import Services


def train(services: Services, request: requests.TrainRequest, context: Context) -> Reply:
    """Check a training and queue it."""
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


def generate(services: Services, request: requests.GenerateRequest, context: Context) -> Reply:
    """Check a generation and queue it."""
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
            services.generation.check_adapter(use.path, services.path_policy, probe.engine)
        first = probe.adapters[0].path
        fields["base_model"] = services.generation.base_model_of(first, probe.engine)
    wanted = validate(GenerationRequest, fields, "generate")
    wanted = services.generation.check(wanted, services.path_policy)
    record = services.generation.submit(
        wanted, request_id=context.request_id, priority=request.priority,
        key=_key(request.idempotency_key, context),
    )  # fmt: skip
    services.executor.submitted(record.id)
    return _started(record.id, "generation", wanted.warnings)


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


def _key(given: str | None, context: Context) -> str:
    return key_of_client(given) if given else context.idempotency_key


def _started(process_id: str, what: str, warnings: tuple[str, ...]) -> Reply:
    return {
        "process_id": process_id,
        "data": {"process_id": process_id},
        "message": f"{what} {process_id} is queued",
        "status": "started",
        **({"warnings": list(warnings)} if warnings else {}),
    }
