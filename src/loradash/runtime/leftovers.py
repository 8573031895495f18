"""Which objects of a process nobody lists, nor ever will: what late and dead writers have left.

No times are looked at. An object's key says which attempt wrote it; only the owner of a process
lists, and only what it wrote itself. So what an attempt wrote that is over, and what isn't listed,
won't be listed either, however long its writer sleeps. That holds if objects, record and list are
read in this order: what is put or listed later is left alone.
"""

from collections.abc import Collection, Sequence

from loradash.domain.process import ProcessRecord, Status
from loradash.runtime.manifests import latest_manifest
from loradash.runtime.submitted_config import config_key
from loradash.storage import keys
from loradash.storage.store import ObjectInfo


def leftovers(
    record: ProcessRecord,
    listed: Collection[str],
    stored: Sequence[ObjectInfo],
    *,
    old_layout: bool = False,
) -> list[str]:
    """Return the keys among the ``stored`` that can go; see above for the order of reading.

    With ``old_layout``, which only the owner may ask for, also those that earlier releases have put
    and not listed: their keys don't say who wrote them, and it could be a living owner.
    """
    current = _mark_of_owner(record)
    manifests = [info for info in stored if keys.is_manifest(info.key)]
    latest = latest_manifest(manifests) if listed else None
    keep = {*listed, config_key(record)}
    if latest is not None:
        keep.add(latest.key)
    gone = []
    for info in stored:
        mark = keys.mark_of(info.key)
        is_current = bool(mark.text) and mark.text == current
        is_ours = bool(mark.text) or old_layout
        # An attempt that began after the record was read.
        is_later = mark.attempt > record.attempt_count
        if info.key not in keep and is_ours and not is_current and not is_later:
            gone.append(info.key)
    return gone


def _mark_of_owner(record: ProcessRecord) -> str:
    if record.status is not Status.RUNNING or record.lease is None:
        return ""
    return keys.attempt_mark(record.attempt_count, record.lease.token)
