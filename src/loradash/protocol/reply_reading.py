"""Replies of a server, read back into the views that its services have returned.

For programs that talk to a server elsewhere: what they show comes from the same models, wherever
the work is done. Fields that a newer server has added are left out.
"""

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, TypeVar

from pydantic import BaseModel

from loradash.errors import ServerUnreachable
from loradash.executors.state import ExecutorState, LaneState, SlotState
from loradash.protocol.process_json import WAITING_REASON
from loradash.services.adapters.views import AdapterName, AdapterView
from loradash.services.datasets.summary import DatasetSummary
from loradash.services.processes.views import QueuedProcess, QueueView
from loradash.services.results.views import DeletionReport, FileView, ModelPage, ModelView

Reply = Mapping[str, Any]
View = TypeVar("View")
Model = TypeVar("Model", bound=BaseModel)


def models_of(reply: Reply) -> ModelPage:
    """Read the reply to ``list_models``."""
    return _read(
        lambda: ModelPage(
            models=tuple(_model(one) for one in reply["models"]),
            next_cursor=reply["next_cursor"],
            missing=reply.get("missing", ()),
        )
    )


def adapter_of(reply: Reply) -> AdapterView:
    """Read what ``GET /models/...`` returns."""

    def read() -> AdapterView:
        metadata = reply["metadata"]
        return AdapterView(
            model=_model(reply),
            **{
                field: metadata[field]
                for field in ("family", "rank", "alpha", "key_names", "dtype", "layers")
            },
            works_in=reply["works_in"],
            used_by=reply["used_by"],
            file_metadata=reply["file_metadata"],
            elapsed_ms=reply["elapsed_ms"],
        )

    return _read(read)


def adapter_name_of(reply: Reply) -> AdapterName:
    """Read what ``PATCH /models/...`` returns."""
    return view_of(AdapterName, reply)


def deletion_of(reply: Reply) -> DeletionReport:
    """Read the reply to a deletion of results."""
    return view_of(DeletionReport, reply)


def datasets_of(reply: Reply) -> tuple[DatasetSummary, ...]:
    """Read the reply to ``list_dataset_folders``."""
    return _read(lambda: tuple(DatasetSummary.model_validate(one) for one in reply["datasets"]))


def view_of(model: type[Model], reply: Reply) -> Model:
    """Read a reply that is a view's own JSON. Raises `ServerUnreachable` for another form."""
    return _read(lambda: model.model_validate(reply))


def queue_of(reply: Reply) -> QueueView:
    """Read what ``GET /queue`` returns."""
    return _read(
        lambda: QueueView(
            is_paused=reply["paused"],
            pending_count=reply["pending"],
            running_count=reply["running"],
            waiting=tuple(
                QueuedProcess(
                    id=one["id"], kind=one["type"], name=one["name"], priority=one["priority"]
                )
                for one in reply["order"]
            ),
            executor=ExecutorState(
                slots=tuple(_slot(one) for one in reply["slots"]),
                endpoint=reply.get("endpoint"),
                error=reply["executor_error"] or "",
            ),
        )
    )


def _slot(reply: Reply) -> SlotState:
    names = [name for name in reply if name != "slot" and not name.endswith(WAITING_REASON)]
    lanes = tuple(
        LaneState(
            name=name,
            process_id=reply[name],
            waiting_reason=reply.get(f"{name}{WAITING_REASON}", ""),
        )
        for name in names
    )
    return SlotState(name=reply["slot"], lanes=lanes)


def _model(reply: Reply) -> ModelView:
    metadata = reply["metadata"]
    return ModelView(
        file=FileView(
            process_id=reply["process_id"],
            kind="lora",
            key=reply["s3_key"],
            address=reply["path"],
            name=PurePosixPath(reply["s3_key"]).name,
            filename=reply["filename"],
            size_bytes=reply["size"],
            sha256=reply["sha256"],
            created_at=reply["created_at"],
        ),
        name=reply["name"],
        steps=metadata["steps"],
        trigger_word=metadata["trigger_word"],
        base_model=metadata["base_model"],
    )


def _read(make: Callable[[], View]) -> View:
    """Return what a reply says. Raises `ServerUnreachable` for one of another form."""
    try:
        return make()
    except (LookupError, TypeError, ValueError) as error:  # pydantic's are too
        raise ServerUnreachable(
            "the server's reply has another form, as that of an older or newer release",
            remedy="Use the same release here and there.",
        ) from error
