"""The way of every process into the registry: its config first, then its record, and once only."""

import contextlib

from loradash.domain.process import ProcessRecord
from loradash.errors import ConflictingState, NotFound
from loradash.registry.registry import Change, ProcessRegistry
from loradash.storage import keys
from loradash.storage.store import ObjectStore


def submit(
    registry: ProcessRegistry,
    store: ObjectStore,
    record: ProcessRecord,
    config: str,
    *,
    may_exist: bool,
    taking: Change | None = None,
) -> ProcessRecord:
    """Store the config, create the record, and return it; with ``taking`` it is taken at once.

    With ``may_exist`` its id was made from an idempotency key: what was submitted before under the
    same key is returned as it is now, and nothing of it is changed.
    """
    if may_exist:
        with contextlib.suppress(NotFound):
            return registry.get(record.id)
    store.put(keys.result_config(record.id), config.encode())
    try:
        return registry.create(taking(record) if taking else record)
    except ConflictingState:
        if not may_exist:
            raise
        return registry.get(record.id)  # somebody else was faster
