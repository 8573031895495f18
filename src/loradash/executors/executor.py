"""The port of an executor: it is told that something waits, and sees to it that it runs."""

from typing import Protocol

from loradash.domain.process import ProcessRecord
from loradash.executors.state import ExecutorState


class Executor(Protocol):
    """Runs what waits in the registry's queue."""

    def submitted(self, process_id: str) -> None:
        """A process waits now; returns at once."""
        ...

    def cancelled(self, record: ProcessRecord) -> None:
        """This process is cancelled, or marked to be; returns at once."""
        ...

    def state(self) -> ExecutorState:
        """What runs where, and why what waits is waiting."""
        ...


class NoExecutor:
    """For commands that only queue: a server that uses the same registry runs the process."""

    def submitted(self, process_id: str) -> None:
        """Do nothing: the server looks into the queue by itself."""

    def cancelled(self, record: ProcessRecord) -> None:
        """Do nothing: the owner sees the mark in the registry."""

    def state(self) -> ExecutorState:
        """Say that nothing runs here."""
        return ExecutorState()
