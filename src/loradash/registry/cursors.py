"""PathPolicy in the lists that are read newest first, and the cursors that name them to clients.

A cursor is opaque, so that the order may change without breaking clients. It names the last entry
of its page and not a count, so entries that are added meanwhile shift nothing.
"""

import base64
import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Self

from loradash.domain.process import ProcessRecord
from loradash.errors import InvalidRequest
from loradash.registry.registry import StoredArtifact

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PROCESS = re.compile(r"(-?[0-9]{1,18})/((?:train|gen)_[0-9a-z]{20})")
_ARTIFACT = re.compile(_PROCESS.pattern + r"/([^\0]+)", re.DOTALL)


def microseconds(time: datetime) -> int:
    """Return a time since 1970 as a database can sort it: exact, unlike a float."""
    return (time - _EPOCH) // timedelta(microseconds=1)


class ProcessPlace(NamedTuple):
    """Where a process stands among all; the greatest is the newest."""

    created_us: int
    id: str

    @classmethod
    def of(cls, record: ProcessRecord) -> Self:
        """Return a process's place."""
        return cls(microseconds(record.created_at), record.id)

    @classmethod
    def read(cls, cursor: str) -> Self:
        """Return the place that a cursor names. Raises `InvalidRequest`."""
        created_us, process_id = _decoded(cursor, _PROCESS)
        return cls(int(created_us), process_id)

    @property
    def cursor(self) -> str:
        """The cursor of what follows."""
        return _encoded(*self)


class ArtifactPlace(NamedTuple):
    """Where an artifact stands among those of all processes; the greatest is the newest."""

    created_us: int
    process_id: str
    key: str

    @classmethod
    def of(cls, artifact: StoredArtifact) -> Self:
        """Return an artifact's place."""
        return cls(microseconds(artifact.created_at), artifact.process_id, artifact.key)

    @classmethod
    def read(cls, cursor: str) -> Self:
        """Return the place that a cursor names. Raises `InvalidRequest`."""
        created_us, process_id, key = _decoded(cursor, _ARTIFACT)
        return cls(int(created_us), process_id, key)

    @property
    def cursor(self) -> str:
        """The cursor of what follows."""
        return _encoded(*self)


def _encoded(*parts: int | str) -> str:
    text = "/".join(str(part) for part in parts)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _decoded(cursor: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        match = pattern.fullmatch(base64.b64decode(padded, b"-_", validate=True).decode())
    except ValueError:  # neither base64 nor UTF-8
        match = None
    # Only the one way in which we write it: no other padding, no leading zeros.
    if match is None or _encoded(int(match[1]), *match.groups()[1:]) != cursor:
        raise InvalidRequest(
            "the cursor is not one of this list",
            remedy="Use the cursor of the page before as it is, or none for the first page.",
        )
    return match.groups()
