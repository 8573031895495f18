"""Results for clients: in a reply if they are small, else as links; one, several, or all in a zip.

The store is asked for its links only when a file is too large for a reply.
"""

import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

from loradash.domain.kinds import KINDS
from loradash.domain.process import Status
from loradash.domain.sizes import counted, size_text
from loradash.errors import ConflictingState, InvalidRequest, NotFound
from loradash.registry.registry import ProcessRegistry, StoredArtifact
from loradash.runtime.workspace import Workspace
from loradash.services.results.archive import result_zip
from loradash.services.results.content import not_what_was_stored
from loradash.services.results.links import Links, Url
from loradash.services.results.names import file_names, plain_name
from loradash.services.results.pieces import ZipPieces
from loradash.services.results.stored import StoredResults
from loradash.services.results.views import BulkDownload, Download, LinkedFile
from loradash.services.results.workspace_files import readable_file
from loradash.storage.store import ObjectStore

_MAX_PROBLEMS = 20


class ResultDownloads:
    """Delivers results; ``max_inline_bytes`` is what fits into a reply. Thread-safe."""

    def __init__(
        self,
        registry: ProcessRegistry,
        store: ObjectStore,
        workspace: Workspace,
        stored: StoredResults,
        links: Links,
        max_inline_bytes: int,
    ) -> None:
        self._registry = registry
        self._store = store
        self._workspace = workspace
        self._stored = stored
        self._links = links
        self._max_inline_bytes = max_inline_bytes

    def of_process(
        self, reference: str, key: str | None, base_url: str, *, links: bool = True
    ) -> Download:
        """Return a process's result: an adapter, an image, or several images as one zip file.

        A file's key or address in place of the process's id stands for this file. What is too large
        for a reply comes as a link, below ``base_url`` if it isn't the store's; for a client that
        follows no ``links`` that is an `InvalidRequest` which says what to do. Raises `NotFound`,
        and `ConflictingState` if the process isn't completed.
        """
        url = self._links.below(base_url, followed=links)
        if "/" in reference:
            entry = self._stored.named(reference)
            if key is not None and entry != self._stored.named(key):
                raise InvalidRequest(
                    "process_id, s3_key: both name a file, but not the same",
                    remedy="Send one of them.",
                )
            return self._one(entry, url)
        if key is not None:
            self._registry.get(reference)
            return self._one(self._stored.named(key, reference), url)
        found = self._main_results(reference)
        return self._one(found[0], url) if len(found) == 1 else self._all_of(found, url)

    def by_key(self, key: str, base_url: str, *, links: bool = True) -> Download:
        """Return one result by its key or address, as `of_process` does.

        Raises `NotFound`, `InvalidKey`.
        """
        url = self._links.below(base_url, followed=links)
        return self._one(self._stored.named(key), url)

    def by_path(self, path: str, base_url: str, *, links: bool = True) -> Download:
        """Return a file by what a list showed: a key, ``s3://``, or a path in the workspace.

        Raises `NotFound` and `InvalidRequest`.
        """
        if not Path(path).is_absolute():
            return self.by_key(path, base_url, links=links)
        file = readable_file(self._workspace, path)
        if file.stat().st_size > self._max_inline_bytes:
            raise InvalidRequest(
                f"{file.name} is larger than {self._max_inline_bytes} bytes",
                remedy="Ask for it by its key once its process has stored it.",
            )
        return _inline(file.name, file.read_bytes())

    def bulk(
        self, references: Sequence[str], *, images: bool, loras: bool, base_url: str
    ) -> BulkDownload:
        """Return a link to each of several results, and one to all of them.

        A reference is a process's id, which stands for all its adapters and images, previews too,
        or the key or address of one file. Raises `NotFound`.
        """
        url = self._links.below(base_url)
        found = self._stored.wanted(references, images=images, loras=loras)
        return BulkDownload(
            items=tuple(
                LinkedFile(file=self._stored.view(entry, name), url=url.file(entry.key, name))
                for entry, name in zip(found, file_names(found), strict=True)
            ),
            zip_url=url.zip(references, images=images, loras=loras) if len(found) > 1 else None,
        )

    def archive(self, references: Sequence[str], *, images: bool, loras: bool) -> ZipPieces:
        """Return what `bulk` links to as one zip file that hasn't been read yet.

        Raises `NotFound` if that is nothing, or if the store hasn't got all of it any more.
        """
        found = self._stored.wanted(references, images=images, loras=loras)
        if not found:
            raise NotFound(
                "these processes have no results of the kinds that were asked for",
                remedy="`list_files` shows what there is.",
            )
        self._require_stored(found)
        return result_zip(self._store, found)

    def _main_results(self, process_id: str) -> Sequence[StoredArtifact]:
        """The adapter of a completed training, or the images of a completed generation."""
        record = self._registry.get(process_id)
        if record.status is not Status.COMPLETED:
            raise ConflictingState(
                f"process {process_id} is {record.status}, so it has no results to download yet",
                remedy="Wait until it is completed, or ask for one of its files by s3_key.",
            )
        kind = KINDS[record.kind].main_artifact
        found = self._registry.artifacts(process_id, [kind])
        if not found:
            raise NotFound(
                f"the results of process {process_id} were deleted", remedy="Run it again."
            )
        return found

    def _require_stored(self, entries: Sequence[StoredArtifact]) -> None:
        """Raise `NotFound` now for what would break a download in its middle.

        A folder is looked at as a whole, since a look at each object would take as many requests.
        """
        folders = sorted({entry.key.rpartition("/")[0] for entry in entries})
        sizes = {info.key: info.size_bytes for one in folders for info in self._store.list(one)}
        missing = [entry.key for entry in entries if sizes.get(entry.key) != entry.size_bytes]
        if missing:
            raise NotFound(
                f"{len(missing)} of {len(entries)} files aren't in the object store as they were",
                problems=missing[:_MAX_PROBLEMS],
                remedy="Ask for the other processes only, or for single files.",
            )

    def _one(self, entry: StoredArtifact, url: Url) -> Download:
        filename = self._stored.saved_as(entry)
        if entry.size_bytes <= self._max_inline_bytes:
            return _inline(filename, self._content(entry), entry.key)
        link = url.file(entry.key, filename)
        if link is None:
            raise self._too_large(
                f"{entry.name} has {size_text(entry.size_bytes)}", url,
                f"read the object {entry.key} from the store",
            )  # fmt: skip
        return Download(filename=filename, size_bytes=entry.size_bytes, key=entry.key, url=link)

    def _all_of(self, entries: Sequence[StoredArtifact], url: Url) -> Download:
        """Several images of one process as a zip file, or the link to one."""
        process_id = entries[0].process_id
        filename = f"{process_id}.zip"
        size_bytes = sum(entry.size_bytes for entry in entries)
        if size_bytes <= self._max_inline_bytes:
            return _inline(filename, self._zip(entries))
        link = url.zip([process_id], images=True, loras=False)
        if link is None:
            raise self._too_large(
                f"{counted(len(entries), 'image')} of {process_id}: {size_text(size_bytes)} "
                "together", url, "use bulk_download, which gives a link for each",
            )  # fmt: skip
        zipped_bytes = result_zip(self._store, entries).size_bytes
        return Download(filename=filename, size_bytes=zipped_bytes, url=link)

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


def _inline(filename: str, data: bytes, key: str = "") -> Download:
    return Download(filename=filename, size_bytes=len(data), key=key, data=data)
