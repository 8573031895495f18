"""Files of an upload that arrive one by one at our own server, where the store signs no URLs."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Request, Response

from loradash.api.bodies import receive
from loradash.api.gateway import json_response
from loradash.domain.upload_fields import MAX_FILE_NAME_CHARACTERS
from loradash.errors import InvalidRequest
from loradash.services.datasets.upload_sessions import ExpectedFile
from loradash.services.use_cases import Services

Folder = Annotated[str, Path(max_length=150)]
UploadId = Annotated[str, Path(max_length=100)]
FileName = Annotated[str, Path(max_length=MAX_FILE_NAME_CHARACTERS)]

_FILE = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def make_router(services: Services) -> APIRouter:
    """Return the route below ``/uploads``."""
    router = APIRouter(tags=["datasets"])

    @router.put(
        "/uploads/{folder}/{upload_id}/{filename:path}",
        openapi_extra=_FILE,
        summary="Send one file of an upload that create_upload has announced",
    )
    async def put_file(
        folder: Folder, upload_id: UploadId, filename: FileName, request: Request
    ) -> Response:
        uploads = services.uploads
        expected = await asyncio.to_thread(uploads.expected, folder, upload_id, filename)
        scratch = services.datasets.scratch
        with scratch.room(expected.size_bytes) as kept, scratch.folder() as place:
            path = place / "file"
            await receive(
                request, path, "file", lambda size, is_all: _check_size(size, is_all, expected),
                kept.arriving,
            )  # fmt: skip
            stored = await asyncio.to_thread(uploads.receive, expected, path)
        return json_response({"filename": filename, "key": stored.key, "size": stored.size_bytes})

    return router


def _check_size(size_bytes: int, is_all: bool, expected: ExpectedFile) -> None:
    if size_bytes > expected.size_bytes:
        raise HTTPException(413, f"more than the {expected.size_bytes:,} bytes that were announced")
    if is_all and size_bytes < expected.size_bytes:
        raise InvalidRequest(
            f"{size_bytes:,} bytes, but {expected.size_bytes:,} were announced",
            remedy="Send the whole file; if it was changed, create the upload again.",
        )
