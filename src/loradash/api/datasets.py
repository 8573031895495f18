"""Datasets over HTTP: looked into by pages, changed file by file, and moved as zip files."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from loradash.api.bodies import receive
from loradash.api.gateway import json_response
from loradash.api.streams import file_headers, streamed
from loradash.datasets.captions import MAX_CAPTION_BYTES
from loradash.domain.dataset_manifest import DatasetFile
from loradash.domain.media_types import media_type
from loradash.domain.sizes import size_text
from loradash.domain.upload_fields import DatasetFolder, Name
from loradash.errors import InvalidRequest
from loradash.services.datasets.content import content
from loradash.services.datasets.details import MAX_PAGE
from loradash.services.datasets.url_import import MAX_URL_CHARACTERS
from loradash.services.use_cases import Services
from loradash.storage.store import LocalFiles, ObjectStore

_ZIP_TYPES = frozenset(
    {"application/zip", "application/x-zip-compressed", "application/octet-stream"}
)
_MAX_NAMES = 10_000

Folder = Annotated[str, Path(max_length=200)]
File = Annotated[str, Path(max_length=1000)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Cursor = Annotated[str, Query(max_length=1000, description="next_cursor of the previous page")]

_ZIP = {
    "requestBody": {
        "required": True,
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _NewDataset(_Body):
    name: DatasetFolder
    training_name: Name = ""
    trigger_word: Name = ""


class _Description(_Body):
    training_name: Name | None = None
    trigger_word: Name | None = None
    if_version: Annotated[str, Field(max_length=200)] | None = None


class _CaptionText(_Body):
    text: Annotated[str, Field(max_length=MAX_CAPTION_BYTES)]
    if_version: Annotated[str, Field(max_length=1000)] | None = Field(
        None, description="version of the caption to replace; '' if there is none yet"
    )


class _Import(_Body):
    url: Annotated[str, Field(min_length=1, max_length=MAX_URL_CHARACTERS)]
    replace: bool = False


class _Names(_Body):
    files: Annotated[list[str], Field(min_length=1, max_length=_MAX_NAMES)]


def make_router(store: ObjectStore, services: Services) -> APIRouter:
    """Return the routes below ``/datasets``."""
    router = APIRouter(prefix="/datasets", tags=["datasets"])
    _add_datasets(router, services)
    _add_files(router, store, services)
    _add_imports(router, services)
    return router


def _add_datasets(router: APIRouter, services: Services) -> None:
    editor = services.dataset_editor

    @router.get("", summary="List the datasets")
    def list_datasets(limit: Limit = 100, cursor: Cursor = "") -> Response:
        return _reply(editor.details.summaries(limit, cursor))

    @router.post("", summary="Create a dataset without files")
    def create(wanted: _NewDataset) -> Response:
        made = editor.create(
            wanted.name, training_name=wanted.training_name, trigger_word=wanted.trigger_word
        )
        return _reply(made, 201)

    @router.get("/{name}", summary="List a dataset's images and captions")
    def images(
        name: Folder,
        limit: Limit = 100,
        cursor: Cursor = "",
        text: Annotated[
            str, Query(max_length=200, description="only images whose name or caption contains it")
        ] = "",
        without_caption: bool = False,
    ) -> Response:
        page = editor.details.images(
            name, limit=limit, cursor=cursor, text=text, without_caption=without_caption
        )
        return _reply(page)

    @router.patch("/{name}", summary="Change a dataset's trigger word or training name")
    def describe(name: Folder, wanted: _Description) -> Response:
        changed = editor.describe(
            name, training_name=wanted.training_name, trigger_word=wanted.trigger_word,
            if_version=wanted.if_version,
        )  # fmt: skip
        return _reply(changed)

    @router.delete("/{name}", summary="Delete a dataset with all its files")
    def delete(name: Folder) -> Response:
        return json_response({"name": name, "deleted_files": editor.delete(name)})

    @router.get("/{name}/statistics", summary="Statistics of a dataset")
    def statistics(
        name: Folder,
        resolution: Annotated[int, Query(ge=64, le=8192, description="for the buckets")] = 512,
        step: Annotated[int, Query(ge=1, le=1024, description="of the buckets, in pixels")] = 64,
    ) -> Response:
        return _reply(editor.figures.statistics(name, resolution=resolution, step=step))

    @router.get("/{name}/duplicates", summary="Duplicate images of a dataset")
    def duplicates(name: Folder) -> Response:
        return _reply(editor.figures.duplicates(name))

    @router.post("/{name}/remove", summary="Delete files (all or none) and the captions of images")
    def remove(name: Folder, wanted: _Names) -> Response:
        return json_response({"removed": list(editor.remove(name, wanted.files))})


def _add_files(router: APIRouter, store: ObjectStore, services: Services) -> None:
    editor = services.dataset_editor

    @router.head("/{name}/files/{file:path}", include_in_schema=False)
    @router.get("/{name}/files/{file:path}", summary="A file of a dataset")
    def get_file(request: Request, name: Folder, file: File) -> Response:
        return _file(request, store, editor.details.file(name, file))

    @router.delete(
        "/{name}/files/{file:path}", summary="Delete a file and, for an image, its caption"
    )
    def delete_file(name: Folder, file: File) -> Response:
        return json_response({"removed": list(editor.remove(name, [file]))})

    @router.get("/{name}/thumbnails/{file:path}", summary="Thumbnail of an image (WebP)")
    def thumbnail(
        name: Folder,
        file: File,
        size: Annotated[int, Query(description="longest side in pixels: 128, 256 or 512")] = 256,
    ) -> Response:
        data = editor.thumbnail(name, file, size)
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=60"}
        return Response(data, 200, headers, "image/webp")

    @router.get("/{name}/captions/{file:path}", summary="The caption of an image")
    def caption(name: Folder, file: File) -> Response:
        return _reply(editor.details.caption(name, file))

    @router.put("/{name}/captions/{file:path}", summary="Write the caption of an image")
    def write_caption(name: Folder, file: File, wanted: _CaptionText) -> Response:
        return _reply(editor.write_caption(name, file, wanted.text, wanted.if_version))


def _add_imports(router: APIRouter, services: Services) -> None:
    editor = services.dataset_editor

    @router.head("/{name}/zip", include_in_schema=False)
    @router.get("/{name}/zip", summary="A dataset as one zip file")
    def get_zip(request: Request, name: Folder) -> Response:
        archive = editor.zip(name)
        headers = {
            **file_headers(f"{name}.zip"),
            "Accept-Ranges": "none",
            "Cache-Control": "no-store",
            "Content-Length": str(archive.size_bytes),
        }
        return streamed(request, iter(archive), f"{name}.zip", headers)

    @router.post(
        "/{name}/zip", openapi_extra=_ZIP, summary="Upload a zip file of images and captions"
    )
    async def post_zip(
        name: Folder,
        request: Request,
        replace: Annotated[
            bool, Query(description="replace the dataset instead of adding to it")
        ] = False,
    ) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in _ZIP_TYPES:
            raise InvalidRequest(
                f"content-type is {kind[:100]!r}", remedy="Send a zip file as application/zip."
            )
        scratch = services.datasets.scratch
        with scratch.room() as kept, scratch.folder() as place:
            path = place / "sent.zip"
            most = services.datasets.limits.max_upload_bytes
            await receive(
                request, path, "zip file", lambda size, _is_all: _refuse_too_large(size, most),
                kept.arriving,
            )  # fmt: skip
            result = await asyncio.to_thread(editor.import_zip, name, path, replace=replace)
        return _reply(result)

    @router.post("/{name}/import", summary="Import a zip file or an image from a URL")
    def import_url(name: Folder, wanted: _Import) -> Response:
        return _reply(editor.import_url(name, wanted.url, replace=wanted.replace))


def _reply(model: BaseModel, status: int = 200) -> Response:
    return json_response(model.model_dump(mode="json"), status)


def _file(request: Request, store: ObjectStore, file: DatasetFile) -> Response:
    name = file.name.rpartition("/")[2]
    headers = {**file_headers(name), "Cache-Control": "private, no-cache"}
    if file.sha256:
        headers["ETag"] = f'"{file.sha256}"'
        if headers["ETag"] in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
    if isinstance(store, LocalFiles):
        return FileResponse(store.path_of(file.key), headers=headers, media_type=media_type(name))
    headers["Content-Length"] = str(file.size_bytes)
    return streamed(request, content(store, file), name, headers)


def _refuse_too_large(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise HTTPException(
            413,
            f"the zip file has more than {size_text(max_bytes)}; split it, or raise "
            "MAX_UPLOAD_SIZE_MB",
        )
