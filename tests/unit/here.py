"""What one program needs to run processes, in memory: registry, object store, workspace, runner."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loradash.domain import process as changes
from loradash.domain.process import ProcessRecord
from loradash.registry.memory import MemoryRegistry
from loradash.runtime.attempt import Timing
from loradash.runtime.supervisor import Limits, StopRequest
from loradash.runtime.workspace import Workspace
from loradash.services.datasets.store import DatasetStore
from loradash.services.processes.running import Runner
from loradash.storage.memory import MemoryStore

from .published import names

LIMITS = Limits(timeout_s=30, stall_s=30, grace_s=30)
TIMING = Timing(lease_s=10, cancel_grace_s=5, max_attempts=3)


@dataclass
class Here:
    """The parts, and the shortest ways to use them."""

    root: Path
    store: Any = field(default_factory=MemoryStore)
    registry: Any = field(default_factory=MemoryRegistry)
    timing: Timing = TIMING

    def __post_init__(self):
        self.workspace = Workspace(self.root)
        self.datasets = DatasetStore(self.store)
        self.works: dict[str, Any] = {}

    @property
    def runner(self):
        """A runner for the works that were named."""
        return Runner(self.registry, self.store, self.works, self.timing)

    def run(self, process_id, on_event=lambda event: None, stop=None):
        """Take a process and run it to its end."""
        return self.runner.run_here(process_id, on_event, stop or StopRequest())

    def run_beside_its_owner(self, process_id):
        """Try to take a process whose owner renews its lease meanwhile."""

        def renew(_pause_s):
            self.registry.change(
                process_id,
                lambda one: changes.renewed(
                    one, one.lease.token, now=datetime.now(UTC), lease_s=self.timing.lease_s
                ),
            )

        runner = Runner(self.registry, self.store, self.works, self.timing, pause=renew)
        return runner.run_here(process_id, lambda event: None, StopRequest())

    def record(self, process_id) -> ProcessRecord:
        return self.registry.get(process_id)

    def log(self, process_id, source=None):
        """The text of the log lines, of one source if one is named."""
        lines = self.registry.log(process_id)
        return [line.text for line in lines if source in (None, line.source)]

    def artifacts(self, process_id, *kinds):
        """The artifacts by name."""
        return {entry.name: entry for entry in self.registry.artifacts(process_id, kinds)}

    def keys(self, prefix=""):
        """The published names of the objects."""
        return names(self.store, prefix)
