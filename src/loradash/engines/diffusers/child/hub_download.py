"""Bringing a base model from the hub onto this machine: only what is needed, with its progress.

Files that are whole stay in the hub's cache, so an interrupted download goes on with the next file;
a connection that breaks goes on within the file (huggingface_hub, ``http_get``).
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.utils.tqdm import tqdm

from loradash.domain.sizes import size_text
from loradash.engines.diffusers.base_models.families import BaseModelSource
from loradash.engines.diffusers.base_models.findings import Finding, invalid_base_model
from loradash.engines.diffusers.base_models.hub import TIMEOUT_S, HubFiles, HubModel
from loradash.engines.diffusers.base_models.hub_errors import told
from loradash.engines.diffusers.base_models.inspection import inspect
from loradash.engines.diffusers.child.emitter import Emitter
from loradash.engines.stop_signal import StopSignal
from loradash.errors import Interrupted
from loradash.storage.disk import as_disk_full

_BETWEEN_EVENTS_S = 1.0


def on_this_disk(
    source: BaseModelSource, emitter: Emitter, stop: StopSignal, *, offline: bool
) -> BaseModelSource:
    """Return the base model as a folder or file of this machine, downloaded if need be.

    Whatever is wrong with it is told before a weight is fetched. Raises `InvalidBaseModel`,
    `DiskFull` and, once a stop is asked for, `Interrupted`.
    """
    found = inspect(source, offline=offline)
    for warning in found.warnings:
        emitter.warn("base_model", warning)
    if found.hub is None or found.layout is None:
        return source
    folder = found.hub.folder or _download(found.hub, found.layout.needed, emitter, stop)
    if source.kind == "single_file":
        return source.model_copy(update={"extras": str(folder)})
    return source.model_copy(update={"kind": "folder", "location": str(folder)})


def _download(hub: HubModel, needed: list[str], emitter: Emitter, stop: StopSignal) -> Path:
    assert isinstance(hub.files, HubFiles)
    missing = [name for name in needed if not _is_there(hub, name)]
    total = sum(hub.files.size(name) for name in missing)
    counter = _Counter(hub.name, total, emitter, stop)
    for name in missing:
        stop.check()
        try:
            hf_hub_download(
                hub.name,
                name,
                revision=hub.revision,
                etag_timeout=TIMEOUT_S,
                tqdm_class=_bar_class(counter.add),
            )
        except Interrupted:
            raise
        except Exception as error:
            if full := as_disk_full(error, "Free space, or set HF_HOME to another disk."):
                raise full from error
            finding = told(error, hub.name)
            raise invalid_base_model(
                hub.name,
                [Finding(f"the download of {name} broke off: {finding.text}", finding.remedy)],
            ) from error
    _note_branch(hub)
    found = try_to_load_from_cache(hub.name, needed[0], revision=hub.revision)
    return Path(str(found)).parent


def _is_there(hub: HubModel, name: str) -> bool:
    return isinstance(try_to_load_from_cache(hub.name, name, revision=hub.revision), str)


def _note_branch(hub: HubModel) -> None:
    """Let the cache know that this commit is the branch's newest, for when the hub isn't there."""
    if hub.is_newest:
        hf_hub_download(hub.name, "model_index.json", etag_timeout=TIMEOUT_S)


class _Counter:
    """Adds up what has arrived and tells it once a second; notices that a stop is asked for."""

    def __init__(self, name: str, total: int, emitter: Emitter, stop: StopSignal) -> None:
        self._name = name
        self._total = total
        self._emitter = emitter
        self._stop = stop
        self._done = 0
        self._told_at_s = float("-inf")

    def add(self, size: int) -> None:
        """Count bytes. Raises `Interrupted`, which ends the download."""
        self._stop.check()
        self._done += size
        now = time.monotonic()
        if now - self._told_at_s >= _BETWEEN_EVENTS_S or self._done >= self._total:
            self._told_at_s = now
            self._emitter.phase(
                "loading",
                f"{self._name}: {size_text(self._done)} of {size_text(self._total)} downloaded",
            )


def _bar_class(add: Callable[[int], None]) -> type[tqdm]:
    """A progress bar that draws nothing and counts."""

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            add(int(n or 0))

    return Bar
