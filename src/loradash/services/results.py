"""Results: list, fetch, delete. What exists is what the registry lists; nothing is searched for."""

import base64
import io
import mimetypes
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from loradash.domain.process import ProcessRecord, Status
from loradash.domain.requests import ResultType
from loradash.domain.sizes import size_text
from loradash.errors import ConflictingState, InvalidKey, InvalidRequest, NotFound
from loradash.registry.cursors import ArtifactPlace
from loradash.registry.registry import ArtifactKind, ProcessRegistry, StoredArtifact
from loradash.runtime.results import write_manifest
from loradash.runtime.workspace import Workspace
from loradash.storage import keys
from loradash.storage.store import ObjectStore, check_key

_TYPES: dict[ResultType, tuple[ArtifactKind, ...]] = {
    "lora": ("lora",),
    "samples": ("sample",),
    "images": ("image",),
    "checkpoints": ("checkpoint",),
    "logs": ("log", "metrics"),
    "all": ("lora", "sample", "image", "checkpoint", "log", "metrics", "config", "job"),
}
_TYPE_OF = {kind: name for name, kinds in _TYPES.items() if name != "all" for kind in kinds}
_READABLE_FOLDERS = ("output", "models/loras", "training_data")

Url = Callable[[str], str | None]


class ResultService:
    """Files that processes have produced."""

    def __init__(
        self,
        registry: ProcessRegistry,
        store: ObjectStore,
        workspace: Workspace,
        max_inline_bytes: int,
        address: keys.Address = keys.NOWHERE,
    ) -> None:
        self._registry = registry
        self._store = store
        self._workspace = workspace
        self._max_inline_bytes = max_inline_bytes
        self._address = address

    def models(self, limit: int, cursor: str) -> dict[str, Any]:
        """Return the finished adapters, the newest first."""
        found, next_cursor = self._registry.newest_artifacts(["lora"], limit=limit, before=cursor)
        return {
            "models": [self._model(entry) for entry in found],
            "count": len(found),
            "next_cursor": next_cursor or None,
        }

    def files(self, path: str, limit: int, cursor: str) -> dict[str, Any]:
        """Return adapters and pictures, of all processes or below a path such as results/<id>."""
        prefix = self._key_of(path).rstrip("/") if path else ""
        process_id = keys.process_of(f"{prefix}/") if prefix else ""
        found: Sequence[StoredArtifact]
        if process_id:
            found, next_cursor = self._files_below(prefix, process_id, limit, cursor)
        elif prefix in ("", "results"):
            found, next_cursor = self._registry.newest_artifacts(
                ["lora", "image", "sample"], limit=limit, before=cursor
            )
        else:
            found, next_cursor = [], ""
        return {
            "lora_files": [self._file(entry) for entry in found if entry.kind == "lora"],
            "image_files": [self._file(entry) for entry in found if entry.kind != "lora"],
            "total_files": len(found),
            "next_cursor": next_cursor or None,
        }

    def download(self, process_id: str, key: str | None, url: Url) -> dict[str, Any]:
        """Return a process's result: an adapter, an image, or several images as one zip file.

        Raises `NotFound` and `ConflictingState` if it isn't completed.
        """
        record = self._registry.get(process_id)
        if key is not None:
            return self._entry(self._artifact(self._key_of(key), process_id), url)
        if record.status is not Status.COMPLETED:
            raise ConflictingState(
                f"process {process_id} is {record.status}, so it has no results to download yet",
                remedy="Wait until it is completed, or ask for one of its files by s3_key.",
            )
        kind: ArtifactKind = "lora" if record.kind == "training" else "image"
        found = self._registry.artifacts(process_id, [kind])
        if not found:
            raise NotFound(
                f"the results of process {process_id} were deleted", remedy="Run it again."
            )
        if len(found) == 1:
            return self._entry(found[0], url)
        if sum(entry.size_bytes for entry in found) > self._max_inline_bytes:
            raise InvalidRequest(
                f"the {len(found)} images of {process_id} are too large for one reply",
                remedy="Use bulk_download, which gives a link for each.",
            )
        return _inline(f"{process_id}.zip", self._zip(found))

    def by_key(self, key: str, url: Url) -> dict[str, Any]:
        """Return one result by its key. Raises `NotFound`, `InvalidKey`."""
        return self._entry(self._artifact(self._key_of(key)), url)

    def by_path(self, path: str, url: Url) -> dict[str, Any]:
        """Return a file by what a list showed: a key, ``s3://``, or a path in the workspace.

        Of the workspace, only what processes made or use can be read: no settings, no logs. Raises
        `NotFound` and `InvalidRequest`.
        """
        if not Path(path).is_absolute():
            return self.by_key(path, url)
        refused = NotFound(
            f"there is no result {path[:200]!r}", remedy="Use the path that list_files shows."
        )
        try:
            real = Path(path).resolve(strict=True)
            roots = [(self._workspace.root / name).resolve() for name in _READABLE_FOLDERS]
        except (OSError, ValueError, RuntimeError) as error:
            raise refused from error
        inside = [real.relative_to(root) for root in roots if real.is_relative_to(root)]
        hidden = any(part.startswith(".") for below in inside for part in below.parts)
        if not inside or hidden or not real.is_file():
            raise refused
        if real.stat().st_size > self._max_inline_bytes:
            raise InvalidRequest(
                f"{real.name} is larger than {self._max_inline_bytes} bytes",
                remedy="Ask for it by its key once its process has stored it.",
            )
        return _inline(real.name, real.read_bytes())

    def bulk(
        self, process_ids: Sequence[str], *, images: bool, loras: bool, url: Url
    ) -> dict[str, Any]:
        """Return a link to each result of several processes. Raises `NotFound`."""
        wanted: dict[ArtifactKind, bool] = {"lora": loras, "image": images}
        kinds = [kind for kind, is_wanted in wanted.items() if is_wanted]
        items: list[dict[str, Any]] = []
        for process_id in process_ids:
            self._registry.get(process_id)
            if kinds:
                found = self._registry.artifacts(process_id, kinds)
                items += [_item(entry, url(entry.key)) for entry in found]
        return {
            "download_items": items,
            "zip_url": None,
            "total_files": len(items),
            "total_size": sum(item["size"] for item in items),
        }

    def delete(self, process_ids: Sequence[str], result_type: ResultType) -> dict[str, Any]:
        """Delete results of processes that have ended; their records stay.

        Lists and manifest forget a file before its object goes. Raises `NotFound` and
        `ConflictingState` before anything is deleted.
        """
        for process_id in process_ids:
            _require_ended(self._registry.get(process_id))
        deleted, freed = 0, 0
        for process_id in process_ids:
            found = self._registry.artifacts(process_id, _TYPES[result_type])
            self._registry.drop_artifacts(process_id, [entry.key for entry in found])
            if found:
                self._rewrite_manifest(process_id)
            for entry in found:
                self._store.delete(entry.key)
            self._delete_copies(process_id, result_type)
            deleted += len(found)
            freed += sum(entry.size_bytes for entry in found)
        return {
            "message": f"{deleted} files deleted",
            "result_type": result_type,
            "deleted": deleted,
            "found": deleted,
            "freed_bytes": freed,
        }

    def _delete_copies(self, process_id: str, result_type: ResultType) -> None:
        """Remove what the workspace still holds of the deleted results."""
        for folder in self._workspace.result_folders(process_id, result_type):
            if folder.is_dir():
                shutil.rmtree(folder)
            else:
                folder.unlink(missing_ok=True)

    def stored(self, key: str) -> StoredArtifact:
        """Return what is listed under a key. Raises `NotFound`, `InvalidKey`."""
        return self._artifact(key)

    def _files_below(
        self, prefix: str, process_id: str, limit: int, cursor: str
    ) -> tuple[Sequence[StoredArtifact], str]:
        """One page of a process's files, by key."""
        after = ArtifactPlace.read(cursor).key if cursor else ""
        found = [
            entry
            for entry in self._registry.artifacts(process_id, ["lora", "image", "sample"])
            if f"{entry.key}/".startswith(f"{prefix}/") and entry.key > after
        ]
        if len(found) <= limit:
            return found, ""
        return found[:limit], ArtifactPlace.of(found[limit - 1]).cursor

    def _rewrite_manifest(self, process_id: str) -> None:
        left = self._registry.artifacts(process_id)
        if not left:
            self._store.delete(keys.manifest(process_id))
            return
        write_manifest(self._store, process_id, left)

    def _artifact(self, key: str, process_id: str = "") -> StoredArtifact:
        check_key(key)
        owner = keys.process_of(key)
        if owner and process_id in ("", owner):
            for entry in self._registry.artifacts(owner):
                if entry.key == key:
                    return entry
        raise NotFound(f"there is no result {key[:200]!r}", remedy="`list_files` shows the keys.")

    def _key_of(self, reference: str) -> str:
        key = self._address.key_of(reference)
        if reference.startswith("s3://") and not key:
            raise InvalidKey(
                f"{reference[:200]!r} isn't in this server's store",
                remedy="Use a key that list_files shows.",
            )
        return check_key((key or reference).rstrip("/"))

    def _entry(self, entry: StoredArtifact, url: Url) -> dict[str, Any]:
        if entry.size_bytes <= self._max_inline_bytes:
            return {**_inline(entry.name, self._store.get(entry.key)), "s3_key": entry.key}
        link = url(entry.key)
        if link is None:
            raise InvalidRequest(
                f"{entry.name} has {entry.size_bytes} bytes, too many for one reply",
                remedy=f"Read the object {entry.key} from the store.",
            )
        return {
            "type": "url", "url": link, "filename": entry.name, "size": entry.size_bytes,
            "s3_key": entry.key,
        }  # fmt: skip

    def _zip(self, entries: Sequence[StoredArtifact]) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for entry in entries:
                archive.writestr(PurePosixPath(entry.name).name, self._store.get(entry.key))
        return buffer.getvalue()

    def _model(self, entry: StoredArtifact) -> dict[str, Any]:
        summary = self._registry.get(entry.process_id).summary
        return {
            "id": f"{entry.process_id}_{PurePosixPath(entry.name).stem}",
            "filename": entry.name,
            "name": PurePosixPath(entry.name).stem,
            "path": self._path(entry.key),
            "s3_key": entry.key,
            "process_id": entry.process_id,
            "size": entry.size_bytes,
            "size_mb": round(entry.size_bytes / 2**20, 3),
            "sha256": entry.sha256,
            "created_at": entry.created_at.isoformat(timespec="milliseconds"),
            "modified_date": entry.created_at.isoformat(timespec="milliseconds"),
            "status": "ready",
            "metadata": {
                "steps": summary.get("steps"), "trigger_word": summary.get("trigger_word"),
                "base_model": summary.get("base_model"),
            },
        }  # fmt: skip

    def _file(self, entry: StoredArtifact) -> dict[str, Any]:
        return {
            "id": f"{entry.process_id}_{PurePosixPath(entry.name).stem}",
            "filename": entry.name,
            "path": self._path(entry.key),
            "s3_key": entry.key,
            "process_id": entry.process_id,
            "size": entry.size_bytes,
            "size_formatted": size_text(entry.size_bytes),
            "sha256": entry.sha256,
            "created_at": entry.created_at.isoformat(timespec="milliseconds"),
            "type": "lora" if entry.kind == "lora" else "image",
            "result_type": _TYPE_OF[entry.kind],
        }

    def _path(self, key: str) -> str:
        return self._address.shown(key)


def link_below(base_url: str) -> Url:
    """Return how keys become links to a server; no links without a server."""
    return lambda key: f"{base_url}/files/{quote(key)}" if base_url else None


def _item(entry: StoredArtifact, link: str | None) -> dict[str, Any]:
    return {
        "filename": entry.name,
        "process_id": entry.process_id,
        "key": entry.key,
        "url": link,
        "size": entry.size_bytes,
        "sha256": entry.sha256,
        "type": entry.kind,
        "content_type": _content_type(entry.name),
    }


def _require_ended(record: ProcessRecord) -> None:
    if not record.status.is_end:
        raise ConflictingState(
            f"process {record.id} is {record.status}, so its results can't be deleted",
            remedy="Cancel it first.",
        )


def _inline(name: str, data: bytes) -> dict[str, Any]:
    return {
        "type": "file_data",
        "filename": name,
        "content_type": _content_type(name),
        "size": len(data),
        "data": base64.b64encode(data).decode("ascii"),
    }


def _content_type(name: str) -> str:
    if name.endswith(".safetensors"):
        return "application/octet-stream"
    return mimetypes.guess_type(name)[0] or "application/octet-stream"
