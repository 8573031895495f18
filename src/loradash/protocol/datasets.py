"""Replies to requests about datasets: uploads and the list."""

from loradash.protocol import requests
from loradash.protocol.context import Context, Reply
from loradash.protocol.dataset_json import datasets_reply
from loradash.services.use_cases import Services


def upload(services: Services, request: requests.UploadRequest, context: Context) -> Reply:
    """Store a dataset whose files came with the request."""
    del context
    return services.datasets.upload(request).model_dump(mode="json")


def create_upload(
    services: Services, request: requests.CreateUploadRequest, context: Context
) -> Reply:
    """Begin an upload whose files come one by one."""
    return services.uploads.create(request, context.base_url).model_dump(mode="json")


def complete_upload(
    services: Services, request: requests.CompleteUploadRequest, context: Context
) -> Reply:
    """Make what has arrived the dataset."""
    del context
    result = services.uploads.complete(request.dataset_folder, request.upload_id)
    return result.model_dump(mode="json")


def abort_upload(
    services: Services, request: requests.AbortUploadRequest, context: Context
) -> Reply:
    """Delete what has arrived."""
    del context
    deleted = services.uploads.abort(request.dataset_folder, request.upload_id)
    return {
        "message": f"upload {request.upload_id} was aborted",
        "upload_id": request.upload_id,
        "dataset_folder": request.dataset_folder,
        "deleted": deleted,
    }


def list_dataset_folders(
    services: Services, request: requests.ListDatasetFoldersRequest, context: Context
) -> Reply:
    """List the stored datasets."""
    del request, context
    return datasets_reply(services.datasets.details.all(), services.datasets.prefix)
