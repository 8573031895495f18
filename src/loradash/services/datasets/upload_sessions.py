"""Uploads whose files come one by one, from wherever they are, straight into the object store.

A client announces its files, sends them to the URLs that it gets (of the store if that can sign
some, else of our server), and completes the upload. What is known of it is one object, so any
server can go on with it, and a client that was killed asks once more and sends only the rest:

    dataset/<folder>/<upload id>/_upload.json   what was announced, and how far the upload is
    dataset/<folder>/<upload id>/<file>         what has arrived

Nothing of it belongs to the dataset until `UploadSessions.complete` has looked at every file.
"""

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from loradash.domain.dataset_files import LeftOut, file_type, merged
from loradash.domain.dataset_manifest import Content, DatasetFile, DatasetManifest
from loradash.domain.dataset_uploads import AnnouncedDataset, AnnouncedFile
from loradash.domain.ids import new_upload_id
from loradash.domain.media_types import media_type
from loradash.errors import ConflictingState, InvalidDataset, InvalidRequest, NotFound
from loradash.services.datasets.announced_uploads import AnnouncedUpload, AnnouncedUploads
from loradash.services.datasets.store import DatasetStore, images_kept, is_part
from loradash.services.datasets.upload_checks import (
    CHECKED_AT_ONCE,
    TURNS_IN_MEMORY,
    CheckedFile,
    FileProblem,
    check_amounts,
    check_file,
    check_number,
    check_warnings,
    problem_text,
    refuse,
    selected,
    without_lost,
)
from loradash.services.datasets.upload_plan import PlannedFile, UploadPlan
from loradash.services.datasets.upload_results import UploadResult
from loradash.storage import keys
from loradash.storage.store import ObjectInfo, ObjectStore, PresignedUrls, presigned_urls
from loradash.storage.transfer import in_parallel


class ExpectedFile(NamedTuple):
    """The object that an announced file becomes."""

    key: str
    size_bytes: int


class UploadSessions:
    """Uploads to the datasets of a store; thread-safe, and several servers may share the store.

    URLs that the store signs are good for ``url_expiry_s``, at most until the upload expires.
    """

    def __init__(
        self, store: ObjectStore, datasets: DatasetStore, *, url_expiry_s: int = 3600
    ) -> None:
        self._store = store
        self._datasets = datasets
        self._url_expiry_s = url_expiry_s
        self._uploads = AnnouncedUploads(store)

    def create(self, request: AnnouncedDataset, base_url: str = "") -> UploadPlan:
        """Begin an upload, or continue the open one of the same files and settings.

        Without ``base_url`` and without a store that signs URLs there are none: who asks has the
        store itself. Raises `InvalidRequest` if the files are too many or too large, and
        `InvalidDataset` if they are to join a dataset that is damaged.
        """
        found = selected([file.filename for file in request.files])
        taken = frozenset(found.taken)
        files = tuple(file for file in request.files if file.filename in taken)
        self._check_amounts(files)
        folder, original_name = self._datasets.place_of(request)
        wanted = AnnouncedUpload(
            folder=folder,
            original_name=original_name,
            upload_id=new_upload_id(),
            replace=request.cleanup_existing,
            training_name=request.training_name,
            trigger_word=request.trigger_word,
            files=files,
            left_out=found.left_out,
        )
        before = self._datasets.before(wanted.upload)
        upload = self._uploads.interrupted(wanted)
        if upload is None:
            if not presigned_urls(self._store):  # else nothing of it comes through this machine
                with self._datasets.scratch.room(sum(file.size for file in wanted.files)):
                    pass  # there is room for all of it; each file keeps its own when it comes
            upload = wanted
            self._uploads.create(upload)
        plan = self._plan(upload, before, base_url)
        return plan.model_copy(update={"files": tuple(_in_order(plan.files, request.files))})

    def complete(self, folder: str, upload_id: str) -> UploadResult:
        """Look at every file of an upload, and make them the dataset or a part of it.

        Completed again, it is answered with the same. If anything is wrong, each file is named and
        the dataset stays as it was; files that arrived and can't be used are deleted, so that they
        are asked for again. Raises `NotFound`, `InvalidRequest`, `InvalidDataset`,
        `ConflictingState`.
        """
        upload, etag = self._uploads.read(folder, upload_id)
        if upload.result:
            return upload.result
        before = self._datasets.before(upload.upload)
        if is_part(upload.upload, before):  # all was done; only the answer was lost
            return self._switch(upload, _Checked([], ()))
        upload.require_open()
        checked = self._checked(upload, before)
        self._uploads.claim(upload, etag)
        return self._switch(upload, checked)

    def abort(self, folder: str, upload_id: str) -> int:
        """Delete what has arrived of an upload; return how many files that were.

        Raises `NotFound`, and `ConflictingState` if it is or is being completed.
        """
        upload, etag = self._uploads.read(folder, upload_id)
        if upload.state in ("switching", "completed"):
            raise ConflictingState(
                f"upload {upload_id} of dataset {folder!r} was completed, or is being completed",
                remedy="Look at the dataset. What isn't part of it is deleted after a day.",
            )
        if upload.state == "open":
            self._uploads.write(upload.model_copy(update={"state": "aborted"}), etag)
        files = sorted(self._arrived(upload))
        self._store.delete_many(files)
        self._uploads.delete(upload)
        return len(files)

    def expected(self, folder: str, upload_id: str, filename: str) -> ExpectedFile:
        """Return what was announced of a file that is about to arrive at our server.

        Raises `NotFound` and `ConflictingState`.
        """
        upload, _ = self._uploads.read(folder, upload_id)
        upload.require_open()
        for file in upload.files:
            if file.filename == filename:
                return ExpectedFile(upload.key_of(file), file.size)
        raise NotFound(
            f"upload {upload_id} has no file {filename[:200]!r}",
            remedy="Send the files that were announced, to the URLs that create_upload returned.",
        )

    def receive(self, file: ExpectedFile, path: Path) -> ObjectInfo:
        """Store a file that has arrived at our server. Raises `InvalidRequest` for another size."""
        size_bytes = path.stat().st_size
        if size_bytes != file.size_bytes:
            raise InvalidRequest(
                f"{size_bytes:,} bytes arrived, but {file.size_bytes:,} were announced",
                remedy="Send the whole file; if it was changed, create the upload again.",
            )
        return self._store.put_file(file.key, path)

    def _check_amounts(self, files: Sequence[AnnouncedFile]) -> None:
        check_number(len(files), self._datasets.limits)
        sizes = [(file.filename, file.size) for file in files]
        refuse(check_amounts(sizes, self._datasets.limits), len(files))

    def _arrived(self, upload: AnnouncedUpload) -> dict[str, int]:
        """Return the size of each file that has arrived, by its key."""
        listed = self._store.list(keys.upload(upload.folder, upload.upload_id))
        own = keys.upload_session(upload.folder, upload.upload_id)
        return {info.key: info.size_bytes for info in listed if info.key != own}

    # The plan

    def _plan(self, upload: AnnouncedUpload, before: DatasetManifest, base_url: str) -> UploadPlan:
        arrived = self._arrived(upload)
        held = self._datasets.held(before)
        urls = presigned_urls(self._store)
        files = []
        for file in upload.files:
            key = upload.key_of(file)
            content = _content(file)
            if arrived.get(key) == file.size:
                files.append(PlannedFile(filename=file.filename, key=key, state="arrived"))
            elif content and content in held:
                there = held[content].key
                files.append(PlannedFile(filename=file.filename, key=there, state="unchanged"))
            else:
                files.append(self._to_send(upload, file, urls, base_url))
        return UploadPlan(
            upload_id=upload.upload_id,
            dataset_folder=upload.folder,
            expires_at=upload.expires_at,
            files=tuple(files),
            s3_path=f"{self._datasets.prefix}/{upload.folder}",
        )

    def _to_send(
        self,
        upload: AnnouncedUpload,
        file: AnnouncedFile,
        urls: PresignedUrls | None,
        base_url: str,
    ) -> PlannedFile:
        key = upload.key_of(file)
        kind = media_type(file.filename)
        url, headers = None, {"Content-Type": kind}
        if urls:
            left_s = int((upload.expires_at - datetime.now(UTC)).total_seconds())
            expires_s = max(1, min(left_s, self._url_expiry_s))
            signed = urls.put_url(key, content_type=kind, size_bytes=file.size, expires_s=expires_s)
            url, headers = signed.url, dict(signed.headers)
        elif base_url:
            name = quote(file.filename)
            url = f"{base_url}/uploads/{upload.folder}/{upload.upload_id}/{name}"
        return PlannedFile(filename=file.filename, key=key, state="send", url=url, headers=headers)

    # Completing

    def _checked(self, upload: AnnouncedUpload, before: DatasetManifest) -> "_Checked":
        """Look at all that has arrived; the dataset may hold the rest. Raises if a file is bad."""
        arrived = self._arrived(upload)
        held = self._datasets.held(before)

        def look(file: AnnouncedFile) -> CheckedFile | FileProblem | None:
            size_bytes = arrived.get(upload.key_of(file))
            if size_bytes == file.size:
                return self._look(upload.key_of(file), file)
            if (content := _content(file)) and content in held:
                return None
            return _not_whole(file, size_bytes)

        outcomes = in_parallel(upload.files, look, concurrency=CHECKED_AT_ONCE)
        for _, error in outcomes.failed:
            raise error
        problems = [one for _, one in outcomes.done if isinstance(one, FileProblem)]
        problems, lost = without_lost(
            [file.filename for file in upload.files], problems, images_kept(before, upload.upload)
        )
        wrong = {problem.name for problem in problems}
        bad = {upload.key_of(file) for file in upload.files if file.filename in wrong}
        self._store.delete_many(sorted(bad & set(arrived)))
        refuse(problems, len(upload.files))
        return _Checked([one for _, one in outcomes.done if isinstance(one, CheckedFile)], lost)

    def _look(self, key: str, file: AnnouncedFile) -> CheckedFile | FileProblem:
        """Read one object, at most a byte more than was announced, and check it."""
        with TURNS_IN_MEMORY:
            return self._looked_at(key, file)

    def _looked_at(self, key: str, file: AnnouncedFile) -> CheckedFile | FileProblem:
        name = file.filename
        try:
            data = b"".join(self._store.read(key, 0, file.size + 1)) if file.size else b""
        except NotFound:
            return _not_whole(file, None)
        if len(data) != file.size:
            return _not_whole(file, len(data))
        if file.sha256 and hashlib.sha256(data).hexdigest() != file.sha256:
            text = "the file isn't the one that was announced (its sha256 differs); send it again"
            return FileProblem(name, text, is_damaged=True)
        try:
            return check_file(name, data)
        except InvalidDataset as error:
            return FileProblem(name, problem_text(name, error))

    def _switch(self, upload: AnnouncedUpload, checked: "_Checked") -> UploadResult:
        sent = {file.name: file for file in checked.files}
        lost = {name for one in checked.left_out for name in one.names}
        wanted = [file for file in upload.files if file.filename not in lost]

        def files_of(old: DatasetManifest) -> list[DatasetFile]:
            held = self._datasets.held(old)
            files, gone = [], []
            for file in wanted:
                content = _content(file)
                if file.filename in sent:
                    files.append(sent[file.filename].at(upload.key_of(file)))
                elif content and content in held:
                    files.append(held[content].model_copy(update={"name": file.filename}))
                else:
                    gone.append(file.filename)
            text = "was in the dataset and isn't any more; create the upload again and send it"
            refuse([FileProblem(name, text, is_damaged=True) for name in gone], len(upload.files))
            return files

        names = {file.filename for file in wanted}
        left_out = merged(upload.left_out, checked.left_out)
        result = self._datasets.switch(
            upload.upload, names, files_of, check_warnings(checked.files), left_out
        )
        return self._uploads.record(upload, result)


class _Checked(NamedTuple):
    """The good files of an upload that have arrived, and what of it is left out after all."""

    files: Sequence[CheckedFile]
    left_out: tuple[LeftOut, ...]


def _in_order(
    planned: Sequence[PlannedFile], wanted: Sequence[AnnouncedFile]
) -> Iterator[PlannedFile]:
    by_name = {one.filename: one for one in planned}
    return (by_name.get(file.filename) or _left_out(file) for file in wanted)


def _left_out(file: AnnouncedFile) -> PlannedFile:
    return PlannedFile(filename=file.filename, key="", state="left_out")


def _content(file: AnnouncedFile) -> Content | None:
    """What a file was announced to hold, if that is known."""
    return Content(file.sha256, file.size, file_type(file.filename)) if file.sha256 else None


def _not_whole(file: AnnouncedFile, size_bytes: int | None) -> FileProblem:
    if size_bytes is None:
        text = "wasn't received; send it"
    else:
        text = f"{size_bytes:,} bytes arrived, but {file.size:,} were announced; send it again"
    return FileProblem(file.filename, text, is_damaged=True)
