"""The port of an executor: it is told that something waits, and sees to it that it runs."""

from typing import Any, Protocol

from loradash.domain.process import ProcessRecord


class Executor(Protocol):
    """Runs what waits in the registry's queue."""

    def submitted(self, process_id: str) -> None:
        """A process waits now; returns at once."""
        ...

    def cancelled(self, record: ProcessRecord) -> None:
        """Somebody wants this process to end: it is cancelled, or marked so; returns at once."""
        ...

    def state(self) -> dict[str, Any]:
        """What is busy, and why what waits is waiting; for people to read.

        ``slots`` are lanes of this machine, ``endpoint`` is a place elsewhere where processes run,
        and ``trouble`` is why nothing can be started at the moment.
        """
        ...


class NoExecutor:
    """For commands that only queue: a server that uses the same registry runs the process."""

    def submitted(self, process_id: str) -> None:
        """Do nothing: the server looks into the queue by itself."""

    def cancelled(self, record: ProcessRecord) -> None:
        """Do nothing: the owner sees the mark in the registry."""

    def state(self) -> dict[str, Any]:
        """Say that nothing runs here."""
        return {"slots": []}
