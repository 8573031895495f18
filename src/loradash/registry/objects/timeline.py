"""All processes, the newest first, without reading them: one empty object for each."""

from collections.abc import Iterator
from itertools import groupby

from loradash.registry.cursors import ProcessPlace
from loradash.registry.objects.backend import Backend
from loradash.storage import keys


class Timeline:
    """The places of processes, in an order in which stores list them by themselves.

    A place may belong to no process: whoever wrote it died before it wrote the record.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def add(self, place: ProcessPlace) -> None:
        """Add a place."""
        self._backend.put(keys.timeline_entry(*place), b"")

    def discard(self, place: ProcessPlace) -> None:
        """Remove a place."""
        self._backend.discard(keys.timeline_entry(*place))

    def after(self, place: ProcessPlace | None) -> Iterator[ProcessPlace]:
        """Yield the places after that one, or all; no more is listed than is asked for."""
        for _, at_once in groupby(self._listed(), key=lambda one: one.created_us):
            for found in sorted(at_once, reverse=True):
                if place is None or found < place:
                    yield found

    def _listed(self) -> Iterator[ProcessPlace]:
        listed = (info.key for info in self._backend.list(keys.timeline()))
        # Stores that ignore conditions tend to be file systems, which order as they like.
        for key in listed if self._backend.is_conditional else sorted(listed):
            if found := keys.timeline_place(key):
                yield ProcessPlace(*found)
