"""The list of a process's results beside them, so that they are found without a registry.

Each owner of a process writes it under a key of its own, and so does each change after its end:
whoever comes late replaces nothing. The one that counts is that of the latest attempt, and after
that of the latest change.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from secrets import token_hex

from loradash.domain.process import ProcessRecord
from loradash.errors import NotFound, ResultsNotStored
from loradash.registry.registry import StoredArtifact
from loradash.storage import keys
from loradash.storage.store import ObjectInfo, ObjectStore

_EDIT_TRIES = 5


def write_manifest(
    store: ObjectStore, process_id: str, mark: str, listed: Sequence[StoredArtifact]
) -> None:
    """Write a process's list of results, as the owner or the change with this mark."""
    manifest = {
        "process_id": process_id,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": [
            entry.model_dump(include={"key", "kind", "size_bytes", "sha256"}) for entry in listed
        ],
    }
    store.put(keys.manifest(process_id, mark), json.dumps(manifest, indent=1).encode())


def edit_manifest(
    store: ObjectStore, record: ProcessRecord, listed: Callable[[], Sequence[StoredArtifact]]
) -> None:
    """Write the list of an ended process anew, and delete the earlier ones; all if it is empty.

    Another program may change the list at the same time, so it's compared with what was written.
    """
    attempts = record.attempt_count
    before = [one.key for one in stored_manifests(store, record.id)]
    mark = keys.edit_mark(attempts, token_hex(5))
    for _ in range(_EDIT_TRIES):
        if not (written := listed()):
            before.append(keys.manifest(record.id, mark))
            break
        write_manifest(store, record.id, mark, written)
        if listed() == written:
            break
    # Those of an attempt that began meanwhile stay.
    for key in before:
        if keys.mark_of(key).attempt <= attempts:
            store.delete(key)


def read_manifest(store: ObjectStore, process_id: str) -> list[StoredArtifact]:
    """Return what a process's manifest lists, without a registry; nothing if there is none."""
    try:
        latest = latest_manifest(stored_manifests(store, process_id))
        if latest is None:
            return []
        manifest = json.loads(store.get(latest.key))
        return [
            StoredArtifact(
                **entry, process_id=process_id, name=entry["key"].rpartition("/")[2],
                created_at=datetime.fromisoformat(manifest["created_at"]),
            )
            for entry in manifest["files"]
        ]  # fmt: skip
    except NotFound:
        return []
    except (ValueError, LookupError, TypeError) as error:
        raise ResultsNotStored(
            f"the list of the results of {process_id} is damaged",
            remedy="Give the key of the result itself.",
        ) from error


def stored_manifests(store: ObjectStore, process_id: str) -> list[ObjectInfo]:
    """Return all lists of a process's results, also that of an earlier release."""
    found = list(store.list(keys.manifests(process_id)))
    try:
        return [*found, store.head(keys.old_manifest(process_id))]
    except NotFound:
        return found


def latest_manifest(infos: Iterable[ObjectInfo]) -> ObjectInfo | None:
    """Return the manifest that counts; times are the store's, compared with each other only."""

    def rank(info: ObjectInfo) -> tuple[int, bool, float]:
        mark = keys.mark_of(info.key)
        return mark.attempt, mark.is_edit, info.modified_s

    return max(infos, key=rank, default=None)
