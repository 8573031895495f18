"""Results: list, fetch, delete. What exists is what the registry lists; nothing is searched for."""

import base64
import hashlib
import io
import shutil
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from loradash.domain.addresses import NO_ADDRESS, Address, is_address
from loradash.domain.media_types import media_type
from loradash.domain.process import ProcessRecord, Status
from loradash.domain.requests import ResultType
from loradash.domain.sizes import counted, size_text
from loradash.engines.engine import Engine
from loradash.errors import ConflictingState, InvalidKey, InvalidRequest, NotFound
from loradash.registry.cursors import ArtifactPlace
from loradash.registry.registry import ArtifactKind, ProcessRegistry, StoredArtifact
from loradash.runtime.manifests import edit_manifest
from loradash.runtime.workspace import Workspace
from loradash.services.adapters.uses import require_unused
from loradash.services.results.archive import result_zip
from loradash.services.results.content import not_what_was_stored
from loradash.services.results.links import Links, Url
from loradash.services.results.names import (
    distinct_name,
    file_names,
    is_shared,
    plain_name,
    short_id,
)
from loradash.services.results.pieces import ZipPieces
from loradash.services.results.presence import Presence, note_of
from loradash.storage import keys
from loradash.storage.store import ObjectInfo, ObjectStore, check_key

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
_URL_EXPIRES_S = 3600
_MAX_PROBLEMS = 20
_NAMES_COMPARED = 200  # of the newest adapters, which are those that clients list


class ResultService:
    """Files that processes have produced."""

    def __init__(
        self,
        registry: ProcessRegistry,
        store: ObjectStore,
        workspace: Workspace,
        max_inline_bytes: int,
        address: Address = NO_ADDRESS,
        url_expires_s: int = _URL_EXPIRES_S,
        engine: Engine | None = None,
    ) -> None:
        """The ``engine`` knows which files in the workspace are copies of results."""
        self._engine = engine
        self._registry = registry
        self._store = store
        self._workspace = workspace
        self._max_inline_bytes = max_inline_bytes
        self._address = address
        self._links = Links(store, url_expires_s)
        self._presence = Presence(store)

    def models(self, limit: int, cursor: str) -> dict[str, Any]:
        """Return the finished adapters, the newest first; a note tells of those that are gone."""
        listed, next_cursor = self._registry.newest_artifacts(["lora"], limit=limit, before=cursor)
        found, missing = self._presence.split(listed)
        models = [
            self._model(entry, name) for entry, name in zip(found, file_names(found), strict=True)
        ]
        names = Counter(model["name"].casefold() for model in models)
        for model, entry in zip(models, found, strict=True):
            if names[model["name"].casefold()] > 1:
                model["name"] += f" ({short_id(entry)})"
        return {
            "models": models,
            "count": len(found),
            "next_cursor": next_cursor or None,
            **note_of(missing),
        }

    def model(self, entry: StoredArtifact) -> dict[str, Any]:
        """Return one finished adapter as `models` lists it, with the name it is saved under."""
        return self._model(entry, self.saved_as(entry))

    def files(
        self, path: str, limit: int, cursor: str, *, overview: bool = False
    ) -> dict[str, Any]:
        """Return adapters and pictures, of all processes or below a path such as results/<id>.

        An ``overview`` is for a client that shows one page only: many new images don't hide the
        adapters that are older, which come too.
        """
        prefix = self._key_of(path).rstrip("/") if path else ""
        process_id = keys.process_of(f"{prefix}/") if prefix else ""
        found: Sequence[StoredArtifact]
        if process_id:
            found, next_cursor = self._files_below(prefix, process_id, limit, cursor)
        elif prefix in ("", "results"):
            found, next_cursor = self._registry.newest_artifacts(
                ["lora", "image", "sample"], limit=limit, before=cursor
            )
            if overview and next_cursor:
                adapters, _ = self._registry.newest_artifacts(["lora"], limit=limit, before="")
                found = [*found, *(entry for entry in adapters if entry not in found)]
        else:
            found, next_cursor = [], ""
        found, missing = self._presence.split(found)
        named = list(zip(found, file_names(found), strict=True))
        return {
            "lora_files": [self._file(one, name) for one, name in named if one.kind == "lora"],
            "image_files": [self._file(one, name) for one, name in named if one.kind != "lora"],
            "total_files": len(found),
            "next_cursor": next_cursor or None,
            **note_of(missing),
        }

    def download(
        self, reference: str, key: str | None, base_url: str, *, links: bool = True
    ) -> dict[str, Any]:
        """Return a process's result: an adapter, an image, or several images as one zip file.

        A file's key or address in place of the process's id stands for this file. What is too large
        for a reply comes as a link, below ``base_url`` if it isn't the store's; for a client that
        follows no ``links`` that is an `InvalidRequest` which says what to do. Raises `NotFound`,
        and `ConflictingState` if the process isn't completed.
        """
        url = self._links.below(base_url, followed=links)
        if "/" in reference:
            entry = self._artifact(self._key_of(reference))
            if key is not None and entry != self._artifact(self._key_of(key)):
                raise InvalidRequest(
                    "process_id, s3_key: both name a file, but not the same",
                    remedy="Send one of them.",
                )
            return self._entry(entry, url)
        process_id = reference
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
        return self._entry(found[0], url) if len(found) == 1 else self._all_of(found, url)

    def by_key(self, key: str, base_url: str, *, links: bool = True) -> dict[str, Any]:
        """Return one result by its key, as `download` does. Raises `NotFound`, `InvalidKey`."""
        url = self._links.below(base_url, followed=links)
        return self._entry(self._artifact(self._key_of(key)), url)

    def by_path(self, path: str, base_url: str, *, links: bool = True) -> dict[str, Any]:
        """Return a file by what a list showed: a key, ``s3://``, or a path in the workspace.

        Of the workspace, only what processes made or use can be read: no settings, no logs. Raises
        `NotFound` and `InvalidRequest`.
        """
        if not Path(path).is_absolute():
            return self.by_key(path, base_url, links=links)
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
        self, references: Sequence[str], *, images: bool, loras: bool, base_url: str
    ) -> dict[str, Any]:
        """Return a link to each of several results, and one to all of them.

        A reference is a process's id, which stands for all its adapters and images, previews too,
        or the key or address of one file. Raises `NotFound`.
        """
        url = self._links.below(base_url)
        found = self._wanted(references, images=images, loras=loras)
        items = [
            _item(entry, name, url.file(entry.key, name))
            for entry, name in zip(found, file_names(found), strict=True)
        ]
        return {
            "download_items": items,
            # The published client opens it, if there is one, in place of the single items.
            "zip_url": url.zip(references, images=images, loras=loras) if len(found) > 1 else None,
            "total_files": len(items),
            "total_size": sum(item["size"] for item in items),
        }

    def archive(self, references: Sequence[str], *, images: bool, loras: bool) -> ZipPieces:
        """Return what `bulk` links to as one zip file that hasn't been read yet.

        Raises `NotFound` if that is nothing, or if the store hasn't got all of it any more.
        """
        found = self._wanted(references, images=images, loras=loras)
        if not found:
            raise NotFound(
                "these processes have no results of the kinds that were asked for",
                remedy="`list_files` shows what there is.",
            )
        self._require_stored(found)
        return result_zip(self._store, found)

    def delete(self, process_ids: Sequence[str], result_type: ResultType) -> dict[str, Any]:
        """Delete results of processes that have ended; their records stay.

        Lists and manifest forget a file before its object goes. If the store fails meanwhile, the
        same request again deletes the rest: what goes is every object of this type that no list
        names. Raises `NotFound` and `ConflictingState` before anything is deleted, also for what a
        process that waits or runs needs.
        """
        for process_id in process_ids:
            _require_ended(self._registry.get(process_id))
            require_unused(self._registry, process_id, result_type)
        gone: list[ObjectInfo] = []
        for process_id in process_ids:
            gone += self._delete_of(process_id, result_type)
        return {
            "status": "success",
            "message": f"{counted(len(gone), 'file')} deleted",
            "result_type": result_type,
            "deleted": len(gone),
            "found": len(gone),
            "freed_bytes": sum(info.size_bytes for info in gone),
        }

    def delete_model(self, process_id: str) -> dict[str, Any]:
        """Delete a training's adapter. Raises `NotFound` if it has none, and `ConflictingState`."""
        if not self._registry.artifacts(process_id, ["lora"]):
            self._registry.get(process_id)
            raise NotFound(
                f"process {process_id} has no trained LoRA",
                remedy="`loradash adapters list` shows those that exist.",
            )
        return self.delete([process_id], "lora")

    def _delete_of(self, process_id: str, result_type: ResultType) -> list[ObjectInfo]:
        """Delete one process's results; return the objects that are gone."""
        listed = self._registry.artifacts(process_id, _TYPES[result_type])
        self._registry.drop_artifacts(
            process_id, [entry.key for entry in listed], guard=_require_ended
        )
        unlisted = self._unlisted(process_id, result_type)
        if listed or unlisted:
            self._rewrite_manifest(process_id)
        _require_ended(self._registry.get(process_id))  # a resumed one lists what it has stored
        self._store.delete_many([info.key for info in unlisted])
        self._delete_copies(process_id, result_type)
        return unlisted

    def _unlisted(self, process_id: str, result_type: ResultType) -> list[ObjectInfo]:
        """Objects of a type that no list names (any more)."""
        prefix = keys.results(process_id)
        if result_type != "all":
            prefix = f"{prefix}/{result_type}"
        named = {entry.key for entry in self._registry.artifacts(process_id)}
        return [
            info
            for info in self._store.list(prefix)
            if info.key not in named and not keys.is_manifest(info.key)
        ]

    def _delete_copies(self, process_id: str, result_type: ResultType) -> None:
        """Remove what the workspace still holds of the deleted results."""
        for path in (
            *self._engines_files(process_id, result_type),
            *self._workspace.result_folders(process_id, result_type),
        ):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _engines_files(self, process_id: str, result_type: ResultType) -> list[Path]:
        if self._engine is None:
            return []
        folder = self._workspace.training(process_id)
        kinds = _TYPES[result_type]
        found = [one.path for one in self._engine.artifacts(folder) if one.kind in kinds]
        if "checkpoint" in kinds:
            found += [one.folder for one in self._engine.checkpoints(folder)]
        return found

    def saved_as(self, entry: StoredArtifact) -> str:
        """Return what a file is called that is saved: an adapter unlike all others of the list."""
        if entry.kind != "lora":
            return plain_name(entry)
        others, _ = self._registry.newest_artifacts(["lora"], limit=_NAMES_COMPARED, before="")
        return distinct_name(entry) if is_shared(entry, others) else plain_name(entry)

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
            if any(
                f"{name}/".startswith(f"{prefix}/")
                for name in (entry.key, keys.published(entry.key))
            )
            and entry.key > after
        ]
        if len(found) <= limit:
            return found, ""
        return found[:limit], ArtifactPlace.of(found[limit - 1]).cursor

    def _wanted(
        self, references: Iterable[str], *, images: bool, loras: bool
    ) -> list[StoredArtifact]:
        """Adapters, images, or both, of all that is named, each once. Raises `NotFound`."""
        wanted: dict[ArtifactKind, bool] = {"lora": loras, "image": images, "sample": images}
        kinds = [kind for kind, is_wanted in wanted.items() if is_wanted]
        found: dict[str, StoredArtifact] = {}
        for reference in references:
            entries: Sequence[StoredArtifact]
            if "/" in reference:
                one = self._artifact(self._key_of(reference))
                entries = [one] if wanted.get(one.kind, True) else []
            else:
                self._registry.get(reference)
                entries = self._registry.artifacts(reference, kinds) if kinds else ()
            found |= {entry.key: entry for entry in entries}
        return list(found.values())

    def _require_stored(self, entries: Sequence[StoredArtifact]) -> None:
        """Raise `NotFound` now for what would break a download in its middle.

        A folder is looked at as a whole, since a look at each object would take as many requests.
        """
        folders = sorted({entry.key.rpartition("/")[0] for entry in entries})
        sizes = {info.key: info.size_bytes for one in folders for info in self._store.list(one)}
        lost = [entry.key for entry in entries if sizes.get(entry.key) != entry.size_bytes]
        if lost:
            raise NotFound(
                f"{len(lost)} of {len(entries)} files aren't in the object store as they were",
                problems=lost[:_MAX_PROBLEMS],
                remedy="Ask for the other processes only, or for single files.",
            )

    def _rewrite_manifest(self, process_id: str) -> None:
        record = self._registry.get(process_id)
        edit_manifest(self._store, record, lambda: self._registry.artifacts(process_id))

    def _artifact(self, key: str, process_id: str = "") -> StoredArtifact:
        check_key(key)
        owner = keys.process_of(key)
        if owner and process_id in ("", owner):
            for entry in self._registry.artifacts(owner):
                if key in (entry.key, keys.published(entry.key)):
                    return entry
        raise NotFound(f"there is no result {key[:200]!r}", remedy="`list_files` shows the keys.")

    def _key_of(self, reference: str) -> str:
        key = self._address.key_of(reference)
        if not key and is_address(reference):
            raise InvalidKey(
                f"{reference[:200]!r} isn't in this server's store",
                remedy="Use a key that list_files shows.",
            )
        return check_key((key or reference).rstrip("/"))

    def _entry(self, entry: StoredArtifact, url: Url) -> dict[str, Any]:
        name = self.saved_as(entry)
        if entry.size_bytes <= self._max_inline_bytes:
            return {**_inline(name, self._content(entry)), "s3_key": entry.key}
        link = url.file(entry.key, name)
        if link is None:
            raise self._too_large(
                f"{entry.name} has {size_text(entry.size_bytes)}", url,
                f"read the object {entry.key} from the store",
            )  # fmt: skip
        return {**_link(link, name, entry.size_bytes), "s3_key": entry.key}

    def _all_of(self, entries: Sequence[StoredArtifact], url: Url) -> dict[str, Any]:
        """Several images of one process as a zip file, or the link to one."""
        process_id = entries[0].process_id
        name = f"{process_id}.zip"
        if sum(entry.size_bytes for entry in entries) <= self._max_inline_bytes:
            return _inline(name, self._zip(entries))
        link = url.zip([process_id], images=True, loras=False)
        if link is None:
            size = size_text(sum(entry.size_bytes for entry in entries))
            raise self._too_large(
                f"{counted(len(entries), 'image')} of {process_id}: {size} together", url,
                "use bulk_download, which gives a link for each",
            )  # fmt: skip
        return _link(link, name, result_zip(self._store, entries).size_bytes)

    def _too_large(self, what: str, url: Url, otherwise: str) -> InvalidRequest:
        """What doesn't fit into a reply and has no link, or none that the client follows."""
        remedy = otherwise if url.followed else "select it for a bulk download, which gives a link"
        return InvalidRequest(
            f"{what}, too much for one reply (at most {size_text(self._max_inline_bytes)})",
            remedy=f"{remedy[0].upper()}{remedy[1:]}.",
        )

    def _zip(self, entries: Sequence[StoredArtifact]) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for entry in entries:
                archive.writestr(plain_name(entry), self._content(entry))
        return buffer.getvalue()

    def _content(self, entry: StoredArtifact) -> bytes:
        data = self._store.get(entry.key)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise not_what_was_stored(entry)
        return data

    def _model(self, entry: StoredArtifact, name: str) -> dict[str, Any]:
        record = self._registry.get(entry.process_id)
        summary = record.summary
        return {
            "id": f"{entry.process_id}_{PurePosixPath(entry.name).stem}",
            "filename": name,
            "name": record.name,
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

    def _file(self, entry: StoredArtifact, name: str) -> dict[str, Any]:
        return {
            "id": f"{entry.process_id}_{PurePosixPath(entry.name).stem}",
            "filename": name,
            "path": self._path(entry.key),
            "s3_key": entry.key,
            # The published client asks `download` for an image by this, so it must name the image.
            "process_id": entry.process_id if entry.kind == "lora" else entry.key,
            "made_by": entry.process_id,
            "size": entry.size_bytes,
            "size_formatted": size_text(entry.size_bytes),
            "sha256": entry.sha256,
            "created_at": entry.created_at.isoformat(timespec="milliseconds"),
            "type": "lora" if entry.kind == "lora" else "image",
            "result_type": _TYPE_OF[entry.kind],
        }

    def _path(self, key: str) -> str:
        return self._address.shown(key)


def _item(entry: StoredArtifact, name: str, link: str | None) -> dict[str, Any]:
    return {
        "filename": name,
        "process_id": entry.process_id,
        "key": entry.key,
        "url": link,
        "size": entry.size_bytes,
        "sha256": entry.sha256,
        "type": "lora" if entry.kind == "lora" else "image",
        "content_type": media_type(entry.name),
    }


def _require_ended(record: ProcessRecord) -> ProcessRecord:
    if not record.status.is_end:
        raise ConflictingState(
            f"process {record.id} is {record.status}, so its results can't be deleted",
            remedy="Cancel it first.",
        )
    return record


def _inline(name: str, data: bytes) -> dict[str, Any]:
    return {
        "type": "file_data",
        "filename": name,
        "content_type": media_type(name),
        "size": len(data),
        "data": base64.b64encode(data).decode("ascii"),
    }


def _link(url: str, name: str, size_bytes: int) -> dict[str, Any]:
    return {"type": "url", "url": url, "filename": name, "size": size_bytes}
