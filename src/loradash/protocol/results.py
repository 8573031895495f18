"""Replies to requests about results: downloads, lists, deletions."""

from loradash.domain import requests
from loradash.protocol.context import Context, Reply
from loradash.services.use_cases import Services


def download(services: Services, request: requests.DownloadRequest, context: Context) -> Reply:
    """Return a file, or a zip file of a process's images, or a link to it."""
    return services.results.download(
        request.process_id, request.s3_key, context.base_url, links=context.follows_links
    )


def download_by_key(
    services: Services, request: requests.DownloadByKeyRequest, context: Context
) -> Reply:
    """Return the file with this key, or a link to it."""
    return services.results.by_key(request.s3_key, context.base_url, links=context.follows_links)


def download_file(
    services: Services, request: requests.DownloadFileRequest, context: Context
) -> Reply:
    """Return the file with the path that a list showed, or a link to it."""
    return services.results.by_path(
        request.file_path, context.base_url, links=context.follows_links
    )


def bulk_download(
    services: Services, request: requests.BulkDownloadRequest, context: Context
) -> Reply:
    """Return links to the files of several processes."""
    return services.results.bulk(
        request.process_ids, images=request.include_images, loras=request.include_loras,
        base_url=context.base_url,
    )  # fmt: skip


def list_models(services: Services, request: requests.ListModelsRequest, context: Context) -> Reply:
    """List trained adapters by pages."""
    del context
    return services.results.models(request.limit, request.cursor)


def list_files(services: Services, request: requests.ListFilesRequest, context: Context) -> Reply:
    """List result files by pages."""
    del context
    return services.results.files(
        request.path, request.limit, request.cursor, overview=request.is_overview
    )


def delete_results(
    services: Services, request: requests.DeleteResultsRequest, context: Context
) -> Reply:
    """Delete results of processes."""
    del context
    return services.results.delete(request.ids, request.result_type)
