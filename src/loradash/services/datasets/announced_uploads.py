"""What is known of an upload whose files come one by one: an object beside them in the store.

Its state only goes forward, by conditional writes where the store has them, so that an upload can't
be given up while its files become part of a dataset:

    open -> switching -> completed
         -> aborted
"""

import contextlib
import time
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from loradash.domain.dataset_files import LeftOut
from loradash.domain.dataset_manifest import UPLOAD_SESSION, Upload
from loradash.domain.dataset_uploads import AnnouncedFile
from loradash.domain.ids import upload_time_s
from loradash.errors import ConflictingState, InvalidDataset, NotFound, PreconditionFailed
from loradash.services.datasets.upload_results import UploadResult
from loradash.storage import keys
from loradash.storage.store import ObjectStore, conditional_put
from loradash.storage.transfer import in_parallel

EXPIRES_AFTER_S = 20 * 3600.0  # well before what is abandoned is deleted
_LOOKED_AT = 100  # uploads of one dataset among which the one to continue is looked for


class AnnouncedUpload(BaseModel):
    """What was announced, and how far it is. There is a ``result`` once it's completed."""

    model_config = ConfigDict(frozen=True)

    folder: str
    upload_id: str
    replace: bool
    training_name: str
    trigger_word: str
    original_name: str = ""
    files: tuple[AnnouncedFile, ...]
    left_out: tuple[LeftOut, ...] = ()
    """What was announced beside them, and isn't a dataset's."""
    state: Literal["open", "switching", "completed", "aborted"] = "open"
    result: UploadResult | None = None

    @property
    def upload(self) -> Upload:
        """What it says of the dataset that it becomes."""
        return Upload(
            self.folder, self.upload_id, self.replace, self.training_name, self.trigger_word,
            self.original_name,
        )  # fmt: skip

    @property
    def expires_at(self) -> datetime:
        """When nothing can be sent any more."""
        return datetime.fromtimestamp((upload_time_s(self.upload_id) or 0) + EXPIRES_AFTER_S, UTC)

    @property
    def is_open(self) -> bool:
        """Whether files can still be sent."""
        return self.state in ("open", "switching") and datetime.now(UTC) < self.expires_at

    def key_of(self, file: AnnouncedFile) -> str:
        """Return the key under which a file arrives."""
        return keys.dataset_file(self.folder, self.upload_id, file.filename)

    def is_like(self, other: "AnnouncedUpload") -> bool:
        """Whether both are of the same files and settings."""
        mine, theirs = self.upload._replace(upload_id=""), other.upload._replace(upload_id="")
        return mine == theirs and set(self.files) == set(other.files)

    def require_open(self) -> None:
        """Raise `ConflictingState` if nothing can be sent any more."""
        if self.is_open:
            return
        ended = self.state in ("completed", "aborted")
        raise ConflictingState(
            f"upload {self.upload_id} of dataset {self.folder!r} "
            f"{f'was {self.state}' if ended else 'has expired'}",
            remedy="Create the upload again.",
        )


class AnnouncedUploads:
    """The uploads that an object store knows of."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def create(self, upload: AnnouncedUpload) -> None:
        """Write down a new upload."""
        self._store.put(_key(upload), _document(upload))

    def read(self, folder: str, upload_id: str) -> tuple[AnnouncedUpload, str]:
        """Return an upload and its object's etag, which is never newer than it.

        Raises `NotFound`, and `InvalidDataset` for a damaged one.
        """
        key = keys.upload_session(folder, upload_id)
        try:
            etag = self._store.head(key).etag
            upload = AnnouncedUpload.model_validate_json(self._store.get(key))
            if (upload.folder, upload.upload_id) != (folder, upload_id):
                raise ValueError("another upload")
        except NotFound as error:
            raise NotFound(
                f"there is no upload {upload_id} to dataset {folder!r}",
                remedy="Create the upload again: it has expired, or was aborted.",
            ) from error
        except ValueError as error:  # pydantic's are too
            raise InvalidDataset(
                f"upload {upload_id} of dataset {folder!r}: its {UPLOAD_SESSION} is damaged",
                remedy="Create the upload again.",
            ) from error
        return upload, etag

    def write(self, upload: AnnouncedUpload, etag: str) -> None:
        """Replace the upload that was read with this etag.

        Raises `ConflictingState` if another client has done so meanwhile.
        """
        store = conditional_put(self._store)
        try:
            if store:
                store.put_if(_key(upload), _document(upload), etag)
            else:
                self._store.put(_key(upload), _document(upload))
        except PreconditionFailed as error:
            raise ConflictingState(
                f"upload {upload.upload_id} is being completed or aborted by another request",
                remedy="Ask again in a moment.",
            ) from error

    def claim(self, upload: AnnouncedUpload, etag: str) -> None:
        """Record that the dataset is about to be switched, so that no client aborts the upload.

        Another client may have done so before. Raises `ConflictingState` if it was aborted.
        """
        if upload.state != "open":
            return
        with contextlib.suppress(ConflictingState):
            self.write(upload.model_copy(update={"state": "switching"}), etag)
            return
        now, _ = self.read(upload.folder, upload.upload_id)
        if now.state == "aborted":
            now.require_open()

    def record(self, upload: AnnouncedUpload, result: UploadResult) -> UploadResult:
        """Keep the reply to a completed upload, unless one is kept; return the one that is.

        So all who complete an upload get the same reply, also at the same time.
        """
        with contextlib.suppress(NotFound):
            now, etag = self.read(upload.folder, upload.upload_id)
            if now.result:
                return now.result
            try:
                self.write(now.model_copy(update={"state": "completed", "result": result}), etag)
            except ConflictingState:
                now, _ = self.read(upload.folder, upload.upload_id)
                return now.result or result
        return result

    def delete(self, upload: AnnouncedUpload) -> None:
        """Forget an upload."""
        self._store.delete(_key(upload))

    def interrupted(self, wanted: AnnouncedUpload) -> AnnouncedUpload | None:
        """Return the newest open upload of the same files and settings, or None."""
        names = self._store.folders(keys.dataset(wanted.folder))
        young = [name for name in names if _age_s(name) < EXPIRES_AFTER_S]

        def read(upload_id: str) -> AnnouncedUpload | None:
            with contextlib.suppress(NotFound, InvalidDataset):  # of another kind, or damaged
                return self.read(wanted.folder, upload_id)[0]
            return None

        outcomes = in_parallel(sorted(young, reverse=True)[:_LOOKED_AT], read)
        for _, problem in outcomes.failed:
            raise problem
        found = [one for _, one in outcomes.done if one and one.is_open and one.is_like(wanted)]
        return found[0] if found else None


def _age_s(upload_id: str) -> float:
    made_s = upload_time_s(upload_id)
    return float("inf") if made_s is None else time.time() - made_s


def _key(upload: AnnouncedUpload) -> str:
    return keys.upload_session(upload.folder, upload.upload_id)


def _document(upload: AnnouncedUpload) -> bytes:
    return upload.model_dump_json().encode()
