"""Replies to requests about results: downloads, lists, deletions."""

from loradash.protocol import requests, result_json
from loradash.protocol.context import Context, Reply
from loradash.services.use_cases import Services


def download(services: Services, request: requests.DownloadRequest, context: Context) -> Reply:
    """Return a file, or a zip file of a process's images, or a link to it."""
    found = services.results.downloads.of_process(
        request.process_id, request.s3_key, context.base_url, links=context.follows_links
    )
    return result_json.download_reply(found)


def download_by_key(
    services: Services, request: requests.DownloadByKeyRequest, context: Context
) -> Reply:
    """Return the file with this key, or a link to it."""
    found = services.results.downloads.by_key(
        request.s3_key, context.base_url, links=context.follows_links
    )
    return result_json.download_reply(found)


def download_file(
    services: Services, request: requests.DownloadFileRequest, context: Context
) -> Reply:
    """Return the file with the path that a list showed, or a link to it."""
    found = services.results.downloads.by_path(
        request.file_path, context.base_url, links=context.follows_links
    )
    return result_json.download_reply(found)


def bulk_download(
    services: Services, request: requests.BulkDownloadRequest, context: Context
) -> Reply:
    """Return links to the files of several processes."""
    found = services.results.downloads.bulk(
        request.process_ids, images=request.include_images, loras=request.include_loras,
        base_url=context.base_url,
    )  # fmt: skip
    return result_json.bulk_reply(found)


def list_models(services: Services, request: requests.ListModelsRequest, context: Context) -> Reply:
    """List trained adapters by pages."""
    del context
    return result_json.models_reply(services.results.lists.models(request.limit, request.cursor))


def list_files(services: Services, request: requests.ListFilesRequest, context: Context) -> Reply:
    """List result files by pages."""
    del context
    page = services.results.lists.files(
        request.path, request.limit, request.cursor, overview=request.is_overview
    )
    return result_json.files_reply(page)


def delete_results(
    services: Services, request: requests.DeleteResultsRequest, context: Context
) -> Reply:
    """Delete results of processes."""
    del context
    report = services.results.deletion.delete(request.ids, request.result_type)
    return result_json.deletion_reply(report)
