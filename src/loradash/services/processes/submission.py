"""The way of every process into the registry: its config first, then its record, and once only.

Two submissions under one idempotency key may run at once. Each writes its config under a key of its
own, and the record names the one that it was created with, so that the two always agree.
"""

import contextlib
from secrets import token_hex

import structlog

from loradash.domain.process import ProcessRecord
from loradash.errors import ConflictingState, LoradashError, NotFound
from loradash.registry.registry import Change, ProcessRegistry
from loradash.runtime.submitted_config import config_key
from loradash.storage import keys
from loradash.storage.store import ObjectStore

log = structlog.get_logger("loradash.submission")


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
    key = keys.submitted_config(record.id, token_hex(8))
    store.put(key, config.encode())
    record = record.model_copy(update={"config_key": key})
    try:
        return registry.create(taking(record) if taking else record, contested=may_exist)
    except ConflictingState:  # another submission was faster
        present = registry.get(record.id)
        if present.config_key != key:
            _discard(store, key)
        if not may_exist:
            raise
        return present


def stored_config(store: ObjectStore, record: ProcessRecord) -> str:
    """Return the text of the config that a process runs with. Raises `NotFound`."""
    return store.get(config_key(record)).decode("utf-8-sig")


def _discard(store: ObjectStore, key: str) -> None:
    try:
        store.delete(key)
    except LoradashError as error:  # it's swept later
        log.warning("config_not_deleted", key=key, error=error.message)
