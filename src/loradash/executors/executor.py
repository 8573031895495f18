"""The port of an executor: it is told that something waits, and sees to it that it runs."""

from typing import Any, Protocol


class Executor(Protocol):
    """Runs what waits in the registry's queue."""

    def submitted(self, process_id: str) -> None:
        """A process waits now; returns at once."""
        ...

    def state(self) -> dict[str, Any]:
        """What is busy, and why what waits is waiting; for people to read."""
        ...


class NoExecutor:
    """For commands that only queue: a server that uses the same registry runs the process."""

    def submitted(self, process_id: str) -> None:
        """Do nothing: the server looks into the queue by itself."""

    def state(self) -> dict[str, Any]:
        """Say that nothing runs here."""
        return {"slots": []}
