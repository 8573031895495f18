"""A job of the emulated queue, and each delivery of it to a worker."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """States of a job, by RunPod's names."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def final(self) -> bool:
        """Whether nothing happens to the job any more."""
        return self not in (Status.IN_QUEUE, Status.IN_PROGRESS)


@dataclass(eq=False)
class Delivery:
    """A job handed to a worker. Times are those of the queue's clock, in seconds."""

    worker: str
    taken_s: float
    seen_s: float
    """When a ping of the worker last named the job, or it was taken."""
    active: bool = True
    """Whether the queue believes that the worker still has it."""
    swallowed: bool = False
    """Whether the worker was never told: a fault."""


@dataclass(eq=False)
class Job:
    """A request, what became of it, and what was said about it too late."""

    id: str
    endpoint: str
    input: Any
    sync: bool
    queued_s: float
    execution_timeout_s: float
    ttl_s: float
    webhook: str = ""
    s3_config: Any = None
    status: Status = Status.IN_QUEUE
    started_s: float = 0.0
    ended_s: float = 0.0
    worker: str = ""
    """Which one has it, or has ended it."""
    said: dict[str, Any] = field(default_factory=dict)
    """``output`` and ``error`` as the worker sent them: a key that is missing stays missing."""
    stream: list[Any] = field(default_factory=list)
    """Pieces of output that no client has fetched yet."""
    deliveries: list[Delivery] = field(default_factory=list)
    run_begins: int = 0
    """How many deliveries belong to runs before the last ``/retry``."""
    late_posts: int = 0
    """Posts that were ignored: the job was final or in the queue, or the worker hadn't it."""
    overtaken_results: int = 0
    """Results that were accepted although a later delivery existed."""
    removed: str = ""
    """Why clients don't find it any more."""

    @property
    def active(self) -> list[Delivery]:
        """Deliveries that the queue still believes in."""
        return [delivery for delivery in self.deliveries if delivery.active]

    def delivery_to(self, worker: str) -> Delivery | None:
        """Return the newest delivery to this worker in the present run."""
        run = self.deliveries[self.run_begins :]
        return next((each for each in reversed(run) if each.worker == worker), None)

    def for_worker(self) -> dict[str, Any]:
        """What a worker is sent."""
        document = {"id": self.id, "input": self.input}
        if self.webhook:
            document["webhook"] = self.webhook
        if self.s3_config is not None:
            document["s3Config"] = self.s3_config
        return document

    def for_client(self) -> dict[str, Any]:
        """What ``/status`` replies."""
        document: dict[str, Any] = {"id": self.id, "status": self.status, **self.said}
        if self.status.final:
            # A job that never ran has waited until its end.
            began_s = self.started_s or self.ended_s
            document["delayTime"] = _milliseconds(began_s - self.queued_s)
            document["executionTime"] = _milliseconds(self.ended_s - began_s)
            if self.worker:
                document["workerId"] = self.worker
        return document

    def for_inspection(self) -> dict[str, Any]:
        """All that tests want to know."""
        return {
            **self.for_client(),
            "endpoint": self.endpoint,
            "input": self.input,
            "sync": self.sync,
            "policy": {
                "executionTimeout": _milliseconds(self.execution_timeout_s),
                "ttl": _milliseconds(self.ttl_s),
            },
            "worker": self.worker,
            "deliveries": len(self.deliveries),
            "workers": [delivery.worker for delivery in self.deliveries],
            "swallowed": sum(delivery.swallowed for delivery in self.deliveries),
            "latePosts": self.late_posts,
            "overtakenResults": self.overtaken_results,
            "removed": self.removed,
        }


def _milliseconds(seconds: float) -> int:
    return round(max(0.0, seconds) * 1000)
