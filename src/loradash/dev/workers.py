"""Workers as the queue sees them: by their polls and pings only."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Worker:
    """A worker of an endpoint, the time it was last heard, and jobs that it's to stop."""

    id: str
    heard_s: float
    open_polls: int = 0
    unhealthy: str = ""
    """What it said when it called itself unhealthy."""
    to_stop: list[str] = field(default_factory=list)

    @contextmanager
    def polling(self) -> Iterator[None]:
        """Count a poll as open."""
        self.open_polls += 1
        try:
            yield
        finally:
            self.open_polls -= 1
