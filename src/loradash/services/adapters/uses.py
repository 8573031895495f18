"""Which processes need a training's results: those results aren't deleted while they do."""

from collections.abc import Iterator, Sequence

from loradash.domain.addresses import result_key_in
from loradash.domain.artifacts import ResultType
from loradash.domain.process import ProcessRecord, Status
from loradash.errors import ConflictingState
from loradash.registry.registry import ProcessRegistry
from loradash.storage import keys

_PAGE = 200
_SHOWN = 5
_PARTS: dict[ResultType, tuple[str, ...]] = {
    "lora": ("lora",),
    "checkpoints": ("checkpoints",),
    "all": ("lora", "checkpoints"),
}


def users_of(
    registry: ProcessRegistry, process_id: str, result_type: ResultType = "all"
) -> list[ProcessRecord]:
    """Return the processes that wait or run and need these results of a training."""
    parts = _PARTS.get(result_type, ())
    return [
        record
        for record in _active(registry)
        if parts
        and (
            any(_names(text, process_id, parts) for text in _references(record))
            or ("checkpoints" in parts and _extends(record, process_id))
        )
    ]


def require_unused(registry: ProcessRegistry, process_id: str, result_type: ResultType) -> None:
    """Raise `ConflictingState` if a process that waits or runs needs these results."""
    if users := users_of(registry, process_id, result_type):
        names = [f"{one.id} ({one.kind}, {one.status})" for one in users[:_SHOWN]]
        more = len(users) - len(names)
        raise ConflictingState(
            f"the results of {process_id} are used by {', '.join(names)}"
            + (f" and {more} more" if more else ""),
            remedy="Wait for them, or cancel them first.",
        )


def _active(registry: ProcessRegistry) -> Iterator[ProcessRecord]:
    yield from registry.running()
    cursor = ""
    while True:
        page = registry.page(statuses=[Status.PENDING], limit=_PAGE, cursor=cursor)
        yield from page.records
        cursor = page.next_cursor
        if not cursor:
            return


def _references(record: ProcessRecord) -> Sequence[str]:
    """What a process needs of others, as its record names it."""
    adapters = record.summary.get("adapters") or ()
    named = [str(one["path"]) for one in adapters if isinstance(one, dict) and "path" in one]
    return [*named, str(record.summary.get("from_adapter") or "")]


def _extends(record: ProcessRecord, process_id: str) -> bool:
    """Whether it goes on from this training's checkpoints, or may have to once more."""
    origin = record.origin
    return origin is not None and origin.kind == "extends" and origin.process_id == process_id


def _names(reference: str, process_id: str, parts: Sequence[str]) -> bool:
    """Whether a reference means such a result; an address ends with the key."""
    if reference == process_id:
        return "lora" in parts
    key = result_key_in(reference)
    return keys.process_of(key) == process_id and key.split("/")[2] in parts
