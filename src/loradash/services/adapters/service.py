"""Trained adapters as things that a user keeps: shown, renamed, deleted."""

import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from loradash.domain import process as changes
from loradash.domain.process import ProcessRecord
from loradash.errors import ConflictingState, NotFound
from loradash.registry.registry import ProcessRegistry
from loradash.services.adapters.stored import StoredAdapters
from loradash.services.adapters.stored_header import read_header
from loradash.services.adapters.uses import users_of
from loradash.services.adapters.views import AdapterName, AdapterView
from loradash.services.results.results import Results
from loradash.services.results.views import DeletionReport, ModelView
from loradash.storage.store import ObjectStore

_FAMILIES = {
    "stable-diffusion-v1": "Stable Diffusion 1.x",
    "stable-diffusion-v2-512": "Stable Diffusion 2.x, 512 px",
    "stable-diffusion-v2-768-v": "Stable Diffusion 2.x, 768 px (v-prediction)",
    "stable-diffusion-v2": "Stable Diffusion 2.x",
    "stable-diffusion-xl-v1-base": "Stable Diffusion XL",
}
_NOWHERE = frozenset({"scripted"})
"""Engines whose adapters are of no use anywhere: their weights mean nothing."""
_READERS = {
    "kohya": ("loradash", "diffusers", "sd-scripts", "ComfyUI", "A1111"),
    "diffusers": ("loradash", "diffusers", "ComfyUI"),
}
"""Programs that read files with these names of tensors (`docs/adapters.md`)."""


_DOWN = re.compile(r"lora_(?:A|down)\b|lora(?:_linear_layer)?\.down\b")
"""The one tensor of each layer whose first dimension is the rank, in all programs' names."""


class AdapterService:
    """What can be asked of trained adapters, and done to them, from any entry point.

    A reference is a process id, a result's key, or a name that only one adapter has.
    """

    def __init__(
        self,
        registry: ProcessRegistry,
        store: ObjectStore,
        results: Results,
        adapters: StoredAdapters,
    ) -> None:
        self._registry = registry
        self._store = store
        self._results = results
        self._adapters = adapters

    def show(self, reference: str) -> AdapterView:
        """Return all that is known of one adapter: as lists show it, and what its file says.

        Raises `NotFound` and `InvalidAdapter`.
        """
        entry = self._adapters.require(reference)
        header = read_header(self._store, entry)
        stored = header.pop("__metadata__", None)
        metadata = stored if isinstance(stored, Mapping) else {}
        architecture = str(metadata.get("modelspec.architecture") or "").removesuffix("/lora")
        names = _key_names(header)
        elapsed_s = self._registry.get(entry.process_id).elapsed_s(datetime.now(UTC))
        return AdapterView(
            model=_as_its_file_says(self._results.lists.model(entry), metadata),
            family=_FAMILIES.get(architecture, architecture) or None,
            rank=_number(metadata, "loradash.rank", "ss_network_dim") or _rank(header),
            alpha=_number(metadata, "loradash.alpha", "ss_network_alpha"),
            key_names=names,
            dtype=_most_common_dtype(header),
            layers=sum(1 for name in header if _DOWN.search(name)),
            works_in=() if metadata.get("loradash.engine") in _NOWHERE else _READERS.get(names, ()),
            used_by=tuple(one.id for one in users_of(self._registry, entry.process_id, "lora")),
            file_metadata={str(key): str(value) for key, value in metadata.items()},
            elapsed_ms=round(elapsed_s * 1000),
        )

    def rename(self, reference: str, name: str) -> AdapterName:
        """Change the name that an adapter is shown with; its files keep theirs.

        Raises `NotFound`, `InvalidRequest` for what can't be a name, and `ConflictingState` for a
        name that another one has.
        """
        process_id = self._adapters.require(reference).process_id

        def change(record: ProcessRecord) -> ProcessRecord:
            return changes.renamed(record, name, datetime.now(UTC))

        change(self._registry.get(process_id))
        others = (one for one in self._adapters.named(name) if one.id != process_id)
        if taken := next(islice(others, 1), None):
            raise ConflictingState(
                f"the trained LoRA {taken.id} is called {taken.name!r} already",
                remedy="Give another name, or rename that one first.",
            )
        renamed = self._registry.change(process_id, change)
        return AdapterName(process_id=renamed.id, name=renamed.name)

    def delete(self, reference: str) -> DeletionReport:
        """Delete an adapter; the training's record, previews and checkpoints stay.

        Raises `NotFound`, and `ConflictingState` while a process that waits or runs needs it.
        """
        try:
            process_id = self._adapters.require(reference).process_id
        except NotFound:
            return self._results.deletion.delete_adapter(reference)  # says what is there instead
        return self._results.deletion.delete_adapter(process_id)


def _as_its_file_says(model: ModelView, metadata: Mapping[str, Any]) -> ModelView:
    """Return an adapter with what its file says of its training, as far as it does."""
    return model.model_copy(
        update={
            "base_model": metadata.get("loradash.base_model") or model.base_model,
            "trigger_word": metadata.get("loradash.trigger_word") or model.trigger_word,
            "steps": _number(metadata, "loradash.steps", "ss_steps") or model.steps,
        }
    )


def _rank(header: Mapping[str, Any]) -> int | None:
    """The rank that most layers have."""
    shapes = (one.get("shape") for name, one in header.items() if _DOWN.search(name))
    ranks = Counter(shape[0] for shape in shapes if isinstance(shape, list) and shape)
    return ranks.most_common(1)[0][0] if ranks else None


def _key_names(header: Mapping[str, Any]) -> str:
    if any(name.startswith(("lora_unet_", "lora_te")) for name in header):
        return "kohya"
    if any(name.startswith(("unet.", "text_encoder.", "transformer.")) for name in header):
        return "diffusers"
    return "other"


def _number(metadata: Mapping[str, Any], *names: str) -> float | int | None:
    """The first of these fields that holds a number, whole if it is."""
    for name in names:
        try:
            value = float(metadata.get(name, ""))
            return int(value) if value.is_integer() else value
        except (TypeError, ValueError, OverflowError):
            continue
    return None


def _most_common_dtype(header: Mapping[str, Any]) -> str | None:
    kinds = Counter(str(one.get("dtype")) for one in header.values() if isinstance(one, Mapping))
    return kinds.most_common(1)[0][0] if kinds else None
