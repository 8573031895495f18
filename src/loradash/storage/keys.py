"""Where things live in the object store. Keys are built here and nowhere else."""

import hashlib
import re
from typing import NamedTuple

from loradash.domain.addresses import DATASETS, RESULTS
from loradash.domain.artifacts import ARTIFACTS, ResultFolder
from loradash.domain.dataset_manifest import UPLOAD_SESSION
from loradash.domain.ids import is_process_id
from loradash.errors import InvalidKey
from loradash.storage.store import check_key

DATASET_MANIFEST = "_training_info.json"

_TIMELINE_ENTRY = re.compile(r"timeline/([0-9a-f]{16})-(.+)")

_MARKED = re.compile(
    r"results/(?P<id>[^/]+)/(?P<kind>[^/]+)/(?P<mark>s-[0-9a-f]{16}|[ae][0-9]+-[0-9a-f]{10}(\.[0-9]+)?)"
    r"/(?P<name>.+)"
)
_UNFOLDERED = {"manifest", *(one.folder for one in ARTIFACTS.values() if not one.is_folder_shown)}


def attempt_mark(number: int, token: str) -> str:
    """Return what stands in the keys of all that one owner of a process writes.

    No other owner has the same one, so none can replace what another has written, however late
    its put arrives.
    """
    return f"a{number}-{hashlib.sha256(token.encode()).hexdigest()[:10]}"


def edit_mark(number: int, nonce: str) -> str:
    """Return the mark of a change that was made after so many attempts, by no owner."""
    return f"e{number}-{nonce}"


def result(process_id: str, kind: ResultFolder, mark: str, name: str) -> str:
    """Key of one result file of a process, as the owner with this mark writes it."""
    return check_key(f"{RESULTS}/{process_id}/{kind}/{mark}/{name}")


def all_results() -> str:
    """Prefix of the results of all processes."""
    return RESULTS


def results(process_id: str) -> str:
    """Prefix of all results of a process."""
    return check_key(f"{RESULTS}/{process_id}")


def result_config(process_id: str) -> str:
    """Key of the config that a process runs with, as earlier releases wrote it."""
    return check_key(f"{RESULTS}/{process_id}/config.yaml")


def submitted_config(process_id: str, nonce: str) -> str:
    """Key of the config as one submission wrote it; the record names the one that counts."""
    return check_key(f"{RESULTS}/{process_id}/config/s-{nonce}/config.yaml")


def manifest(process_id: str, mark: str) -> str:
    """Key of the list of a process's results as one owner writes it; see `latest_manifest`."""
    return check_key(f"{manifests(process_id)}/{mark}/manifest.json")


def manifests(process_id: str) -> str:
    """Prefix of the lists of a process's results, except that of earlier releases."""
    return check_key(f"{RESULTS}/{process_id}/manifest")


def old_manifest(process_id: str) -> str:
    """Key of the list of a process's results, as earlier releases wrote it."""
    return check_key(f"{RESULTS}/{process_id}/manifest.json")


class Mark(NamedTuple):
    """Who wrote a result: in which attempt, as its owner or after it, and which mark that is.

    ``attempt`` is -1 for a submission's config, and for keys of earlier releases, without a mark.
    """

    attempt: int = -1
    is_edit: bool = False
    text: str = ""


def mark_of(key: str) -> Mark:
    """Return who wrote a result."""
    match = _MARKED.fullmatch(key)
    if match is None:
        return Mark()
    text = match["mark"].partition(".")[0]
    number = text[1:].partition("-")[0]
    return Mark(int(number) if number else -1, text.startswith("e"), text)


def is_manifest(key: str) -> bool:
    """Whether a key is that of a list of a process's results."""
    name = published(key)
    return name.endswith("/manifest.json") and name.count("/") == 2


def published(key: str) -> str:
    """Return the name under which a result is known, whoever wrote it: without the writer's mark.

    ``results/<id>/config.yaml`` stands for ``results/<id>/config/<mark>/config.yaml``. Other keys
    are returned as they are.
    """
    match = _MARKED.fullmatch(key)
    if match is None or not is_process_id(match["id"]):
        return key
    kind = "" if match["kind"] in _UNFOLDERED else f"{match['kind']}/"
    return f"{RESULTS}/{match['id']}/{kind}{match['name']}"


def process_of(key: str) -> str:
    """Return the id of the process that a result's key belongs to, or '' for other keys."""
    parts = key.split("/")
    return parts[1] if len(parts) > 2 and parts[0] == RESULTS and is_process_id(parts[1]) else ""


def datasets() -> str:
    """Prefix of all datasets."""
    return DATASETS


def dataset(folder: str) -> str:
    """Prefix of one dataset. Raises `InvalidKey` if the name has more than one part."""
    if "/" in folder:
        raise InvalidKey(
            f"dataset {folder[:200]!r}: the name holds a '/'", remedy="Give the folder's name only."
        )
    return check_key(f"{DATASETS}/{folder}")


def dataset_manifest(folder: str) -> str:
    """Key of the list of a dataset's files, which makes them one dataset."""
    return f"{dataset(folder)}/{DATASET_MANIFEST}"


def dataset_file(folder: str, upload_id: str, name: str) -> str:
    """Key of one file of an upload; uploads never write over each other's files."""
    return check_key(f"{dataset(folder)}/{upload_id}/{name}")


def upload(folder: str, upload_id: str) -> str:
    """Prefix of what one upload has sent."""
    return check_key(f"{dataset(folder)}/{upload_id}")


def upload_session(folder: str, upload_id: str) -> str:
    """Key of what is known of an upload whose files come one by one."""
    return f"{upload(folder, upload_id)}/{UPLOAD_SESSION}"


def dataset_of(key: str) -> tuple[str, str]:
    """Return the dataset that a key belongs to and the rest of the key; '' and '' for others."""
    root, _, rest = key.partition("/")
    folder, _, name = rest.partition("/")
    return (folder, name) if root == datasets() and folder and name else ("", "")


def processes() -> str:
    """Prefix of the records of all processes."""
    return "processes"


def process_record(process_id: str) -> str:
    """Key of a process's record; where nothing can be written on condition, only its first."""
    return check_key(f"processes/{process_id}.json")


def process_epochs(process_id: str) -> str:
    """Prefix of a process's later records and the claims to write them."""
    return check_key(f"processes/{process_id}")


def process_claim(process_id: str, epoch: int, nonce: str) -> str:
    """Key of the claim to be the one that writes a process's record from now on."""
    return check_key(f"processes/{process_id}/{epoch:08d}-{nonce}.claim")


def process_epoch_record(process_id: str, epoch: int, nonce: str) -> str:
    """Key of a process's record as the winner of an epoch writes it."""
    return check_key(f"processes/{process_id}/{epoch:08d}-{nonce}.json")


def process_cancel(process_id: str) -> str:
    """Key of the request to end a process, by a program that doesn't write its record."""
    return check_key(f"processes/{process_id}/cancel")


def recorded_process(key: str) -> tuple[str, str]:
    """Return the process that a key below `processes` belongs to, and the key's part below it.

    That part is '' for `process_record`. Both are '' for keys that aren't ours.
    """
    root, _, path = key.partition("/")
    process_id, _, rest = path.partition("/")
    if not rest:
        process_id, dot, suffix = path.partition(".")
        if dot + suffix != ".json":
            return "", ""
    return (process_id, rest) if root == processes() and is_process_id(process_id) else ("", "")


def process_part(process_id: str, nonce: str) -> str:
    """Key of some rows (metrics, log lines, artifacts) that a process's record names."""
    return check_key(f"process-data/{process_id}/{nonce}.jsonl")


def process_parts() -> str:
    """Prefix of the rows of all processes."""
    return "process-data"


def process_of_part(key: str) -> str:
    """Return the id of the process that a key below `process_parts` belongs to, or ''."""
    parts = key.split("/")
    is_ours = len(parts) == 3 and parts[0] == process_parts() and is_process_id(parts[1])
    return parts[1] if is_ours else ""


def timeline() -> str:
    """Prefix of the list of all processes, the newest first."""
    return "timeline"


def timeline_entry(created_us: int, process_id: str) -> str:
    """Key of a process's place in the timeline: an earlier time has a greater key."""
    return check_key(f"timeline/{2**63 - 1 - created_us:016x}-{process_id}")


def timeline_place(key: str) -> tuple[int, str] | None:
    """Return the time and the process that a key of the timeline stands for, or None."""
    match = _TIMELINE_ENTRY.fullmatch(key)
    if match is None or not is_process_id(match[2]):
        return None
    return 2**63 - 1 - int(match[1], 16), match[2]


def queue_paused() -> str:
    """Key of whether the queue is paused."""
    return "queue/paused.json"
