"""Results as JSON: replies to the requests of published clients."""

import base64
from collections.abc import Sequence
from typing import Any

from loradash.domain.artifacts import result_type_of
from loradash.domain.media_types import media_type
from loradash.domain.sizes import counted, size_text
from loradash.services.adapters.views import AdapterView
from loradash.services.results.views import (
    BulkDownload,
    DeletionReport,
    Download,
    FilePage,
    FileView,
    LinkedFile,
    ModelPage,
    ModelView,
)

_NOTE = (
    "{count} of these results are in the records and not in the object store. If they are in a "
    "folder that was used before: `loradash storage copy FOLDER`."
)


def models_reply(page: ModelPage) -> dict[str, Any]:
    """Return the reply to ``list_models``; a note names adapters that the store hasn't got."""
    return {
        "models": [model_json(model) for model in page.models],
        "count": len(page.models),
        "next_cursor": page.next_cursor,
        **_note_of(page.missing),
    }


def model_json(model: ModelView) -> dict[str, Any]:
    """Return an adapter as ``list_models`` shows it."""
    file = model.file
    created_at = _time(file)
    return {
        "id": file.id,
        "filename": file.filename,
        "name": model.name,
        "path": file.address,
        "s3_key": file.key,
        "process_id": file.process_id,
        "size": file.size_bytes,
        "size_mb": round(file.size_bytes / 2**20, 3),
        "sha256": file.sha256,
        "created_at": created_at,
        "modified_date": created_at,
        "status": "ready",
        "metadata": {
            "steps": model.steps,
            "trigger_word": model.trigger_word,
            "base_model": model.base_model,
        },
    }


def adapter_json(adapter: AdapterView) -> dict[str, Any]:
    """Return all that is known of one adapter, beginning as ``list_models`` shows it."""
    shown = model_json(adapter.model)
    return {
        **shown,
        "metadata": {
            **shown["metadata"],
            "family": adapter.family,
            "rank": adapter.rank,
            "alpha": adapter.alpha,
            "key_names": adapter.key_names,
            "dtype": adapter.dtype,
            "layers": adapter.layers,
        },
        "works_in": list(adapter.works_in),
        "used_by": list(adapter.used_by),
        "file_metadata": dict(adapter.file_metadata),
        "elapsed_ms": adapter.elapsed_ms,
    }


def files_reply(page: FilePage) -> dict[str, Any]:
    """Return the reply to ``list_files``."""
    return {
        "lora_files": [_file_json(file) for file in page.adapters],
        "image_files": [_file_json(file) for file in page.images],
        "total_files": len(page.files),
        "next_cursor": page.next_cursor,
        **_note_of(page.missing),
    }


def download_reply(download: Download) -> dict[str, Any]:
    """Return the reply to a request for a file: its content as base64, or the link to it."""
    key = {"s3_key": download.key} if download.key else {}
    if download.data is None:
        return {
            "type": "url",
            "url": download.url,
            "filename": download.filename,
            "size": download.size_bytes,
            **key,
        }
    return {
        "type": "file_data",
        "filename": download.filename,
        "content_type": media_type(download.filename),
        "size": download.size_bytes,
        "data": base64.b64encode(download.data).decode("ascii"),
        **key,
    }


def bulk_reply(bulk: BulkDownload) -> dict[str, Any]:
    """Return the reply to ``bulk_download``.

    The published client opens ``zip_url``, if there is one, in place of the single items.
    """
    return {
        "download_items": [_item_json(item) for item in bulk.items],
        "zip_url": bulk.zip_url,
        "total_files": len(bulk.items),
        "total_size": bulk.size_bytes,
    }


def deletion_reply(report: DeletionReport) -> dict[str, Any]:
    """Return the reply to ``delete_results``."""
    return {
        "status": "success",
        "message": f"{counted(report.deleted, 'file')} deleted",
        "result_type": report.result_type,
        "deleted": report.deleted,
        "found": report.deleted,
        "freed_bytes": report.freed_bytes,
    }


def _file_json(file: FileView) -> dict[str, Any]:
    return {
        "id": file.id,
        "filename": file.filename,
        "path": file.address,
        "s3_key": file.key,
        # The published client asks `download` for an image by this, so it must name the image.
        "process_id": file.process_id if file.is_adapter else file.key,
        "made_by": file.process_id,
        "size": file.size_bytes,
        "size_formatted": size_text(file.size_bytes),
        "sha256": file.sha256,
        "created_at": _time(file),
        "type": _client_type(file),
        "result_type": result_type_of(file.kind),
    }


def _item_json(item: LinkedFile) -> dict[str, Any]:
    file = item.file
    return {
        "filename": file.filename,
        "process_id": file.process_id,
        "key": file.key,
        "url": item.url,
        "size": file.size_bytes,
        "sha256": file.sha256,
        "type": _client_type(file),
        "content_type": media_type(file.name),
    }


def _client_type(file: FileView) -> str:
    """What published clients tell apart."""
    return "lora" if file.is_adapter else "image"


def _time(file: FileView) -> str:
    return file.created_at.isoformat(timespec="milliseconds")


def missing_note(missing: Sequence[str]) -> str:
    """Say what to do about results that a list leaves out, as the store hasn't got them."""
    return _NOTE.format(count=len(missing)) if missing else ""


def _note_of(missing: Sequence[str]) -> dict[str, Any]:
    return {"missing": list(missing), "note": missing_note(missing)} if missing else {}
