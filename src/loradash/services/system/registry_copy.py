"""Records moved from one registry to another, whichever kinds of registry they are.

A process is created as running under a lease of the copy, so that the port takes what belongs to
it, and gets its own record last. Whatever was interrupted is found by that lease and done again.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from typing import NamedTuple, Protocol

from pydantic import BaseModel

from loradash.domain.process import Lease, ProcessRecord, Status
from loradash.errors import ConflictingState, NotFound
from loradash.registry.registry import (
    LogLine,
    Metric,
    NewLine,
    ProcessQueue,
    ProcessRegistry,
    StoredArtifact,
)

_TOKEN = "copy of a registry"  # noqa: S105 - it grants nothing
_LEASE_S = 3600.0
_ROWS = 1000
_PAGE = 100


class Registry(ProcessRegistry, ProcessQueue, Protocol):
    """What can be copied."""


class Copied(NamedTuple):
    """What a copy has brought over, and what was there from an earlier try."""

    processes: int = 0
    there: int = 0
    metrics: int = 0
    log_lines: int = 0
    artifacts: int = 0


def copy_registry(
    source: Registry,
    target: Registry,
    *,
    with_running: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Copied:
    """Copy all processes, and verify that the target holds the same ones afterwards.

    Nobody else may write to either registry meanwhile. The target's queue is paused until
    everything is there. Raises `ConflictingState` if processes run in the source, unless
    ``with_running`` says that their workers have ended; if the target holds processes that the
    source doesn't have; and if the source has changed meanwhile.
    """
    if not with_running and (running := source.running()):
        raise ConflictingState(
            f"{len(running)} processes are running in the registry that is to be copied",
            remedy="Stop all servers and workers first. If these have no workers any more, "
            "add --with-running: they will be taken over from the copy.",
        )
    _refuse_others(source, target)
    target.pause(True)
    copied = Copied()
    total = sum(source.counts().values())
    for record in _records(source):
        copied = _copy(source, target, record, copied)
        if on_progress:
            on_progress(copied.processes + copied.there, total)
    _verify(source, target)
    target.pause(source.paused())
    return copied


def _records(registry: Registry) -> Iterator[ProcessRecord]:
    cursor = ""
    while True:
        page = registry.page(limit=_PAGE, cursor=cursor)
        yield from page.records
        cursor = page.next_cursor
        if not cursor:
            return


def _refuse_others(source: Registry, target: Registry) -> None:
    """Raise `ConflictingState` unless the target is empty, or a copy that was begun."""
    for record in _records(target):
        try:
            same = source.get(record.id)
        except NotFound:
            same = None
        if same is None or (record != same and not _is_begun(record)):
            raise ConflictingState(
                f"the registry to copy to holds process {record.id}, which isn't one of the copy",
                remedy="Name an empty registry.",
            )


def _is_begun(record: ProcessRecord) -> bool:
    return record.lease is not None and record.lease.token == _TOKEN


def _copy(source: Registry, target: Registry, record: ProcessRecord, copied: Copied) -> Copied:
    """Copy a process with all that belongs to it, unless it is there."""
    try:
        there: ProcessRecord | None = target.get(record.id)
    except NotFound:
        there = None
    if there == record:
        return copied._replace(there=copied.there + 1)
    if there is None:
        target.create(_under_lease(record))
    metrics = log_lines = 0
    for rows in _metrics(source, record.id):
        target.append_metrics(record.id, _TOKEN, rows)
        metrics += len(rows)
    written = target.log(record.id, limit=1, newest=True)
    for lines in _log(source, record.id, written[0].number if written else 0):
        target.append_log(record.id, _TOKEN, [_new(line) for line in lines])
        log_lines += len(lines)
    artifacts = source.artifacts(record.id)
    if artifacts:
        target.put_artifacts(_TOKEN, artifacts)
    _compare(source, target, record.id, artifacts)
    target.change(record.id, lambda _: record)
    return copied._replace(
        processes=copied.processes + 1,
        metrics=copied.metrics + metrics,
        log_lines=copied.log_lines + log_lines,
        artifacts=copied.artifacts + len(artifacts),
    )


def _under_lease(record: ProcessRecord) -> ProcessRecord:
    lease = Lease(owner=_TOKEN, token=_TOKEN, expires_at=datetime.now(UTC), length_s=_LEASE_S)
    return record.model_copy(update={"status": Status.RUNNING, "lease": lease})


def _metrics(registry: Registry, process_id: str) -> Iterator[tuple[Metric, ...]]:
    step = -1
    while rows := registry.metrics(process_id, after_step=step, limit=_ROWS):
        yield rows
        step = rows[-1].step


def _log(registry: Registry, process_id: str, after: int) -> Iterator[tuple[LogLine, ...]]:
    while lines := registry.log(process_id, after=after, limit=_ROWS):
        yield lines
        after = lines[-1].number


def _new(line: LogLine) -> NewLine:
    return NewLine(line.attempt, line.time, line.source, line.text)


def _compare(
    source: Registry, target: Registry, process_id: str, artifacts: tuple[StoredArtifact, ...]
) -> None:
    """Raise `ConflictingState` unless both hold the same of a process, except its record."""
    pairs = {
        "measurements": zip_longest(_metrics(source, process_id), _metrics(target, process_id)),
        "log lines": zip_longest(_log(source, process_id, 0), _log(target, process_id, 0)),
        "files": [(artifacts, target.artifacts(process_id))],
    }
    for what, compared in pairs.items():
        if any(_texts(one) != _texts(other) for one, other in compared):
            raise _changed(f"{what} of process {process_id}")


def _texts(rows: Sequence[BaseModel] | None) -> list[str]:
    """Return rows in a form that can be compared: a loss may be NaN, which equals nothing."""
    return [row.model_dump_json() for row in rows or ()]


def _verify(source: Registry, target: Registry) -> None:
    """Raise `ConflictingState` unless both hold the same records, and count them alike."""
    for one, other in zip_longest(_records(source), _records(target)):
        if one != other:
            found = one or other
            assert found is not None
            raise _changed(f"the record of process {found.id}")
    if source.counts() != target.counts():
        raise _changed("the number of processes")


def _changed(what: str) -> ConflictingState:
    return ConflictingState(
        f"{what} changed while the registry was copied, or differs in the copy",
        remedy="Stop whatever writes to the two registries, empty the copy, and repeat.",
    )
