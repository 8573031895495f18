"""Files of an upload that arrive one by one at our own server, where the store signs no URLs."""

import asyncio
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Request, Response
from starlette.requests import ClientDisconnect

from loradash.api.gateway import json_response
from loradash.errors import InvalidRequest
from loradash.services.dispatch import Services
from loradash.services.upload_sessions import ExpectedFile

_PIECE_BYTES = 2**20  # written at once, from a thread

Folder = Annotated[str, Path(max_length=150)]
UploadId = Annotated[str, Path(max_length=100)]
FileName = Annotated[str, Path(max_length=255)]

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
        "/uploads/{folder}/{upload_id}/{filename}",
        openapi_extra=_FILE,
        summary="Send one file of an upload that create_upload has announced",
    )
    async def put_file(
        folder: Folder, upload_id: UploadId, filename: FileName, request: Request
    ) -> Response:
        uploads = services.uploads
        expected = await asyncio.to_thread(uploads.expected, folder, upload_id, filename)
        _check_length(request, expected)
        with services.datasets.scratch.folder() as place:
            path = place / "file"
            await _write(request, path, expected)
            stored = await asyncio.to_thread(uploads.receive, expected, path)
        return json_response({"filename": filename, "key": stored.key, "size": stored.size_bytes})

    return router


def _check_length(request: Request, expected: ExpectedFile) -> None:
    """Refuse a body before it is read, if its length is said and isn't right."""
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdecimal() and len(length) < 20:
        _check_size(int(length), expected)


def _check_size(size_bytes: int, expected: ExpectedFile) -> None:
    if size_bytes > expected.size_bytes:
        raise HTTPException(413, f"more than the {expected.size_bytes:,} bytes that were announced")
    if size_bytes < expected.size_bytes:
        raise InvalidRequest(
            f"{size_bytes:,} bytes, but {expected.size_bytes:,} were announced",
            remedy="Send the whole file; if it was changed, create the upload again.",
        )


async def _write(request: Request, path: FilePath, expected: ExpectedFile) -> None:
    """Write the body to a file; refuse it as soon as it is larger than was announced."""
    size_bytes = 0
    piece = bytearray()
    with path.open("wb") as file:
        try:
            async for part in request.stream():
                size_bytes += len(part)
                if size_bytes > expected.size_bytes:
                    _check_size(size_bytes, expected)
                piece += part
                if len(piece) >= _PIECE_BYTES:
                    await asyncio.to_thread(file.write, bytes(piece))
                    piece.clear()
        except ClientDisconnect as error:
            raise InvalidRequest(
                "the file ended before its end", remedy="Send it again."
            ) from error
        await asyncio.to_thread(file.write, bytes(piece))
