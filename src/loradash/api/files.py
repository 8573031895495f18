"""Result files over HTTP: one by its key, whole or by range, and many as one zip file.

Files of a local store are sent as such. Of every other store the pieces are passed on as they come,
so that a file of any size takes little memory. A store that breaks in the middle breaks the
connection too: the client was told how many bytes to expect, and can ask for the rest.
"""

import re
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import FileResponse

from loradash.api.gateway import json_response
from loradash.api.streams import file_headers, streamed
from loradash.domain.media_types import media_type
from loradash.protocol.request_fields import MAX_REFERENCE_CHARACTERS
from loradash.protocol.requests import MAX_REFERENCES
from loradash.registry.registry import StoredArtifact
from loradash.services.results.content import content, not_what_was_stored
from loradash.services.results.names import plain_name
from loradash.services.results.results import Results
from loradash.storage.store import LocalFiles, ObjectStore

_RANGE = re.compile(r"bytes\s*=\s*([0-9]{0,18})-([0-9]{0,18})", re.ASCII | re.IGNORECASE)
_ETAG = re.compile(r'(?:W/)?("[^"]*")')

Key = Annotated[str, Path(max_length=1000)]
ProcessIds = Annotated[
    list[Annotated[str, Query(max_length=MAX_REFERENCE_CHARACTERS)]],
    Query(
        min_length=1,
        max_length=MAX_REFERENCES,
        description="whose results, or a file's key; may be repeated",
    ),
]


def make_router(store: ObjectStore, results: Results) -> APIRouter:
    """Return the routes below ``/files`` and ``/download``."""
    router = APIRouter(tags=["results"])

    @router.head("/files/{key:path}", include_in_schema=False)
    @router.get("/files/{key:path}", summary="A result file, whole or by range")
    def file(
        request: Request,
        key: Key,
        download: Annotated[bool, Query(description="save an image too, don't show it")] = False,
    ) -> Response:
        entry = results.stored.require(key)
        saved_as = results.stored.saved_as(entry) if download else ""
        return _file(request, store, entry, saved_as=saved_as)

    @router.head("/download/zip", include_in_schema=False)
    @router.get("/download/zip", summary="Results of some processes as one zip file")
    def zip_file(
        request: Request, process_id: ProcessIds, images: bool = True, loras: bool = True
    ) -> Response:
        archive = results.downloads.archive(process_id, images=images, loras=loras)
        is_one = len(set(process_id)) == 1 and "/" not in process_id[0]
        name = f"{process_id[0]}.zip" if is_one else "loradash-results.zip"
        headers = {
            **file_headers(name),
            "Accept-Ranges": "none",
            "Cache-Control": "no-store",
            "Content-Length": str(archive.size_bytes),
        }
        return streamed(request, iter(archive), name, headers)

    return router


class _Part(NamedTuple):
    """The bytes from ``start`` up to, without, ``end``; none if ``start`` isn't before ``end``."""

    start: int
    end: int


def _file(
    request: Request, store: ObjectStore, entry: StoredArtifact, *, saved_as: str
) -> Response:
    """Answer with a file, a part of it, or that the client has it already.

    Raises `NotFound`, `ResultsNotStored`, and what the store raises, before anything is sent.
    """
    etag = f'"{entry.sha256}"'
    name = saved_as or plain_name(entry)
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if _names(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    headers |= file_headers(name, save=bool(saved_as))
    size = store.head(entry.key).size_bytes
    if size != entry.size_bytes:
        raise not_what_was_stored(entry)
    if isinstance(store, LocalFiles):
        path = store.path_of(entry.key)
        return FileResponse(path, headers=headers, media_type=media_type(name))
    headers |= {"Accept-Ranges": "bytes", "Content-Length": str(size)}
    part = _wanted(request, etag, size)
    if part is None:
        return streamed(request, content(store, entry), name, headers)
    if part.start >= part.end:
        response = json_response({"error": f"the file has {size} bytes"}, 416)
        response.headers["Content-Range"] = f"bytes */{size}"
        return response
    headers["Content-Range"] = f"bytes {part.start}-{part.end - 1}/{size}"
    headers["Content-Length"] = str(part.end - part.start)
    return streamed(request, content(store, entry, *part), name, headers, 206)


def _names(header: str, etag: str) -> bool:
    """Whether an ``If-None-Match`` names this version."""
    return header.strip() == "*" or etag in _ETAG.findall(header)


def _wanted(request: Request, etag: str, size: int) -> _Part | None:
    """The part of a file that is asked for, perhaps an empty one; None for the whole file.

    The whole is also sent for several ranges, for what can't be read as a range, and for a range
    of a version that isn't there any more (``If-Range``). RFC 9110 lets a server choose that.
    """
    match = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if match is None or request.method != "GET" or request.headers.get("if-range", etag) != etag:
        return None
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
        return None if last and int(last) < start else _Part(start, end)
    return _Part(max(size - int(last), 0), size) if last else None
